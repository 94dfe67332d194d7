//! A hostile upstream's body on its way to a function: however the body is cut, the secret never
//! gets through.
#![no_main]

use casemate_trust::release::Slot;
use casemate_vault_core::scrub::{BodyScrubber, HeadScrubber, Searcher, Watched};
use libfuzzer_sys::fuzz_target;

fn searcher(secret: &[u8]) -> Option<Searcher> {
    Searcher::new(&[Watched {
        value: secret,
        slot: &Slot::Bearer,
    }])
}

fn scrubbed(secret: &[u8], body: &[u8], piece: usize) -> Option<(Vec<u8>, u32)> {
    let mut scrubber = BodyScrubber::new(searcher(secret)?);
    let mut seen = Vec::new();
    for piece in body.chunks(piece) {
        seen.extend(scrubber.push(piece).ok()?);
    }
    seen.extend(scrubber.finish().ok()?);
    Some((seen, scrubber.take_matches().into_iter().sum()))
}

fuzz_target!(|input: (&[u8], &[u8], u8)| {
    let (secret, body, piece) = input;
    let piece = usize::from(piece).max(1);
    let (Some(searcher), Some((seen, matches))) = (searcher(secret), scrubbed(secret, body, piece))
    else {
        return;
    };
    let mut head = HeadScrubber::new(&searcher);
    if head.finds(body) == Ok(false)
        && !body
            .windows(2)
            .any(|pair| matches!(pair, b"\n\n" | b"\r\r"))
    {
        assert_eq!((seen.as_slice(), matches), (body, 0));
    }
    // The replacement text may itself look like a secret.
    let canonical: Vec<u8> = secret
        .iter()
        .filter(|byte| byte.is_ascii_graphic())
        .copied()
        .collect();
    let may_be_marker = b"[scrubbed]".iter().any(|byte| canonical.contains(byte));
    if !may_be_marker && matches > 0 {
        assert!(seen.windows(10).any(|window| window == b"[scrubbed]"));
    }
});
