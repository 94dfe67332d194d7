//! A function that sends guesses through an echoing upstream, and observes the answers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

/// Random secrets of these lengths, of letters and digits behind a known beginning.
const LENGTHS: [usize; 3] = [16, 24, 64];
const KNOWN: &str = "sk_live_";

fn secret(length: usize) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let random = (0..length as u64).map(|n| {
        let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        char::from(letters[(mixed >> 40) as usize % letters.len()])
    });
    let random: String = random.collect();
    format!("{KNOWN}{}", &random[KNOWN.len()..])
}

/// What a function can observe of an answer: the size and the text of each piece, and its cost.
fn observe(secret: &str, pieces: &[&[u8]]) -> (Vec<Vec<u8>>, u64) {
    let mut scrubber = BodyScrubber::new(searcher(&[secret.as_bytes()]));
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    let allowed = scrubber.left() + bytes as u64 * MAX_STEPS_PER_BYTE;
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for piece in pieces {
        seen.push(scrubber.push(piece).unwrap().to_vec());
    }
    seen.push(scrubber.finish().unwrap().to_vec());
    (seen, allowed - scrubber.left())
}

/// Asserts that the text is unchanged, and that everything observable is the same as for an
/// unrelated secret of the same length.
fn assert_tells_nothing(secret: &str, text: &[u8], cut: usize) {
    let other: String = secret.chars().map(|_| '~').collect();
    let pieces: Vec<&[u8]> = text.chunks(cut).collect();
    let (seen, steps) = observe(secret, &pieces);
    assert_eq!(seen.concat(), text, "cut at {cut}");
    assert_eq!((seen, steps), observe(&other, &pieces), "cut at {cut}");
}

#[test]
fn a_prefix_of_the_secret_looks_like_any_other_text() {
    for length in LENGTHS {
        let secret = secret(length);
        for known in 0..length {
            let guess = &secret[..known];
            let spelled = guess.bytes().map(|byte| format!("%{byte:02x}"));
            let texts = [
                guess.to_owned(),
                format!("{{\"v\":\"{guess}\"}}"),
                format!("data: {guess}\n\ndata: {guess}"),
                hex::encode(guess),
                STANDARD.encode(guess),
                spelled.collect(),
            ];
            for text in &texts {
                for cut in [1, 7, 64, 4096] {
                    assert_tells_nothing(&secret, text.as_bytes(), cut);
                }
            }
        }
    }
}

#[test]
fn many_guesses_in_one_answer_tell_nothing() {
    let letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    for length in LENGTHS {
        let secret = secret(length);
        for known in [KNOWN.len(), length / 2, length - 2] {
            let guesses = letters
                .chars()
                .map(|letter| format!("{}{letter}", &secret[..known]));
            let text = guesses.collect::<Vec<_>>().join("\n");
            let (seen, _) = observe(&secret, &[text.as_bytes()]);
            assert_eq!(seen.concat(), text.as_bytes());
            let searcher = searcher(&[secret.as_bytes()]);
            let mut head = HeadScrubber::new(&searcher);
            for guess in text.lines() {
                assert!(!head.finds(guess.as_bytes()).unwrap(), "{guess}");
            }
        }
    }
}

#[test]
fn a_large_text_of_almost_secrets_costs_what_it_costs_with_any_other_secret() {
    for length in LENGTHS {
        let secret = secret(length);
        for almost in [&secret[..length - 1], &secret[..1], &secret[1..]] {
            let text = almost.repeat(100_000 / almost.len());
            assert_tells_nothing(&secret, text.as_bytes(), 16 * 1024);
            let encoded = STANDARD.encode(&text);
            assert_tells_nothing(&secret, encoded.as_bytes(), 16 * 1024);
        }
    }
}
