//! A hostile upstream's gzip: each step is bounded, and the output does not depend on how the body
//! is cut.
#![no_main]

use bytes::Bytes;
use casemate_vault_core::gunzip::{Gunzip, GzipError, STEP_OUTPUT_BYTES};
use libfuzzer_sys::fuzz_target;

/// Decoded bytes after which a run ends.
const ENOUGH_BYTES: usize = 1 << 20;

fn decoded(body: &[u8], piece: usize) -> (Vec<u8>, Result<(), GzipError>) {
    let (mut gunzip, mut all) = (Gunzip::new(), Vec::new());
    for piece in body.chunks(piece) {
        let (mut input, mut more) = (Bytes::copy_from_slice(piece), true);
        while more && all.len() < ENOUGH_BYTES {
            let mut output = Vec::new();
            let before = input.len();
            match gunzip.step(&mut input, &mut output) {
                Ok(again) => more = again,
                Err(error) => return (all, Err(error)),
            }
            assert!(output.len() <= STEP_OUTPUT_BYTES);
            assert!(
                !more || input.len() < before || !output.is_empty(),
                "a step does nothing"
            );
            all.extend_from_slice(&output);
        }
    }
    (all, gunzip.finish())
}

fuzz_target!(|input: (&[u8], u8)| {
    let (body, piece) = input;
    // Any body, and any data behind a header that is well-formed.
    let headed = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0][..], body].concat();
    for body in [body, &headed] {
        let (whole, ended) = decoded(body, body.len().max(1));
        let (cut, cut_ended) = decoded(body, usize::from(piece).max(1));
        if whole.len().max(cut.len()) < ENOUGH_BYTES {
            assert_eq!(ended, cut_ended);
            // The output of a damaged body before the damage is found depends on how the body was
            // cut.
            assert!(ended.is_err() || whole == cut);
        }
    }
});
