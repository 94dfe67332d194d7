//! What a function can observe of scrubbing: complete matches, and positions; never a part of a
//! match.
#![no_main]

use casemate_trust::release::Slot;
use casemate_vault_core::scrub::{BodyScrubber, Searcher, Watched};
use libfuzzer_sys::fuzz_target;

/// Some times what the scrubber holds back of a short secret.
const MAX_FILLER_BYTES: usize = 8192;

/// What came out after each piece, and how many matches were counted in all.
struct Seen {
    pieces: Vec<Vec<u8>>,
    matches: u32,
}

impl Seen {
    fn of(secret: &[u8], body: &[u8], cuts: &[u8]) -> Option<Self> {
        let watched = [Watched {
            value: secret,
            slot: &Slot::Bearer,
        }];
        let mut scrubber = BodyScrubber::new(Searcher::new(&watched)?);
        let mut pieces = Vec::new();
        let mut rest = body;
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            // Long pieces too, so that something comes out before the end.
            let length = usize::from(*cut).pow(2).clamp(1, rest.len());
            let (piece, after) = rest.split_at(length);
            pieces.push(scrubber.push(piece).ok()?.to_vec());
            rest = after;
        }
        pieces.push(scrubber.finish().ok()?.to_vec());
        let matches = scrubber.take_matches().into_iter().sum();
        Some(Self { pieces, matches })
    }

    fn sizes(&self) -> Vec<usize> {
        self.pieces.iter().map(Vec::len).collect()
    }

    fn text(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}

fuzz_target!(|input: (&[u8], &[u8], &[u8], u16)| {
    let (secret, body, cuts, at) = input;
    let cuts = if cuts.is_empty() { &[16][..] } else { cuts };
    let Some(seen) = Seen::of(secret, body, cuts) else {
        return;
    };

    // A longer secret goes in pieces; what goes on behind a marker is not counted again.
    if seen.matches == 0 && secret.len() <= 256 {
        assert_eq!(
            seen.text(),
            body,
            "nothing was found and something was changed"
        );
        // The same lines without any byte of the secret: what comes out, and when, must look the
        // same.
        let other = (b'a'..=b'z').find(|letter| !secret.to_ascii_lowercase().contains(letter));
        if let Some(letter) = other {
            let is_line_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
            let plain: Vec<u8> = body
                .iter()
                .map(|byte| if is_line_end(byte) { *byte } else { letter })
                .collect();
            let plain = Seen::of(secret, &plain, cuts).expect("letters cost little");
            // Many equal letters can be the secret in some coding.
            if plain.matches == 0 {
                let (seen, plain) = (seen.sizes(), plain.sizes());
                assert_eq!(seen, plain, "pieces differ by what is in them");
            }
        }
    }

    // A complete secret is never seen, wherever it stands and however it is cut, and it is counted.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric();
    let marker = b"[scrubbed]";
    let is_watched = secret.len() >= 8 && secret.iter().all(is_plain);
    if is_watched && !marker.windows(4).any(|part| secret.starts_with(part)) {
        // Long enough that bytes come out before the end, at any distance from the secret.
        let filler = vec![b'.'; usize::from(at) % MAX_FILLER_BYTES];
        let at = usize::from(at) % (body.len() + 1);
        let (before, after) = body.split_at(at);
        let planted = [before, &filler, secret, &filler, after].concat();
        if let Some(seen) = Seen::of(secret, &planted, cuts) {
            assert!(seen.matches >= 1, "a secret that is not counted");
            let text = seen.text();
            let there = text.windows(secret.len()).any(|part| part == secret);
            assert!(!there, "the secret came through");
        }
    }
});
