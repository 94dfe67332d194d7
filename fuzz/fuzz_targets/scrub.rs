//! A hostile upstream's body on its way to a function: however it is cut, the same comes out, and never the secret.
#![no_main]

use bytes::Bytes;
use casemate_vault_core::scrub::{BodyScrubber, Scrubber};
use libfuzzer_sys::fuzz_target;

fn scrubbed(secret: &[u8], body: &[u8], piece: usize) -> Option<Vec<u8>> {
    let mut scrubber = BodyScrubber::new(Scrubber::new(secret)?);
    let mut seen = Vec::new();
    for piece in body.chunks(piece) {
        seen.extend(scrubber.push(Bytes::copy_from_slice(piece)).ok()?);
    }
    seen.extend(scrubber.finish().ok()?);
    Some(seen)
}

fuzz_target!(|input: (&[u8], &[u8], u8)| {
    let (secret, body, piece) = input;
    let whole = scrubbed(secret, body, body.len().max(1));
    let cut = scrubbed(secret, body, usize::from(piece).max(1));
    assert_eq!(whole, cut);
    // What stands for a secret may itself look like one.
    if let Some(whole) = whole
        && !b"[scrubbed]".windows(2).any(|pair| secret.windows(2).any(|own| own == pair))
        && !b"[]".iter().any(|edge| secret.contains(edge))
    {
        assert!(!whole.windows(secret.len()).any(|window| window == secret));
    }
});
