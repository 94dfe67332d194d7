//! What of an answer's head the function may see: nothing that holds the secret that was just sent, in clear or in the
//! encodings that servers echo in. A server may do more to it (reverse it, encrypt it): the declared host is the defence.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

/// What stands where a secret stood.
pub const SCRUBBED: &str = "[scrubbed]";
/// Shorter secrets would be found everywhere by chance.
const MIN_SECRET_BYTES: usize = 4;

/// Finds one secret in its encodings.
pub struct Scrubber {
    needles: Vec<Zeroizing<Vec<u8>>>,
    hex: Zeroizing<Vec<u8>>,
}

impl Scrubber {
    /// For the secret of one call, and for what was made of it, such as the pair of Basic.
    pub fn new(secret: &[u8]) -> Self {
        let mut needles = Vec::new();
        let mut hexed = Zeroizing::new(Vec::new());
        if secret.len() >= MIN_SECRET_BYTES {
            needles.push(Zeroizing::new(secret.to_vec()));
            *hexed = hex::encode(secret).into_bytes();
            // In base64 a text looks in one of three ways, by where it begins; the letters that mix with neighbours are cut.
            for shift in 0..3 {
                let padded = Zeroizing::new([&b"\0\0"[..shift], secret].concat());
                let skip = [0, 2, 3][shift];
                for encoded in [
                    STANDARD_NO_PAD.encode(padded.as_slice()),
                    URL_SAFE_NO_PAD.encode(padded.as_slice()),
                ] {
                    let encoded = Zeroizing::new(encoded.into_bytes());
                    let whole = padded.len() * 8 / 6;
                    needles.push(Zeroizing::new(encoded[skip.min(whole)..whole].to_vec()));
                }
            }
            needles.retain(|needle| needle.len() >= MIN_SECRET_BYTES);
        }
        Self {
            needles,
            hex: hexed,
        }
    }

    /// Whether these bytes hold the secret.
    pub fn finds(&self, bytes: &[u8]) -> bool {
        if self.needles.is_empty() {
            return false;
        }
        let decoded = Zeroizing::new(percent_decode(bytes).collect::<Vec<u8>>());
        let lower = Zeroizing::new(bytes.to_ascii_lowercase());
        let plus = Zeroizing::new(
            decoded
                .iter()
                .map(|byte| if *byte == b'+' { b' ' } else { *byte })
                .collect::<Vec<u8>>(),
        );
        let found = |haystack: &[u8]| self.needles.iter().any(|needle| contains(haystack, needle));
        // JSON writes `/` as `\/`, and quotes and backslashes with a backslash before.
        let unescaped = Zeroizing::new(
            bytes
                .iter()
                .copied()
                .filter(|byte| *byte != b'\\')
                .collect::<Vec<u8>>(),
        );
        found(bytes)
            || found(&decoded)
            || found(&plus)
            || found(&unescaped)
            || contains(&lower, &self.hex)
    }

    /// The value that the function may see.
    pub fn scrub(&self, value: Bytes) -> Bytes {
        if self.finds(&value) {
            Bytes::from_static(SCRUBBED.as_bytes())
        } else {
            value
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty()
        && haystack
            .windows(needle.len())
            .any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_encoding_is_found_wherever_it_begins(
            secret in proptest::collection::vec(1u8..255, 6..40), before in proptest::collection::vec(any::<u8>(), 0..7),
            after in proptest::collection::vec(any::<u8>(), 0..7),
        ) {
            let scrubber = Scrubber::new(&secret);
            let whole = [&before[..], &secret, &after].concat();
            prop_assert!(scrubber.finds(&whole));
            prop_assert!(scrubber.finds(STANDARD.encode(&whole).as_bytes()));
            prop_assert!(scrubber.finds(URL_SAFE.encode(&whole).as_bytes()));
            prop_assert!(scrubber.finds(hex::encode(&whole).as_bytes()));
            prop_assert!(scrubber.finds(hex::encode_upper(&whole).as_bytes()));
            prop_assert!(scrubber.finds(percent_encode(&whole, NON_ALPHANUMERIC).to_string().as_bytes()));
        }
    }

    #[test]
    fn other_values_stay() {
        let scrubber = Scrubber::new(b"hunter2hunter2");
        for value in ["text/html", "https://a.test/?q=hunter", "aHVudGVy", ""] {
            assert_eq!(scrubber.scrub(Bytes::from_static(value.as_bytes())), value);
        }
        assert_eq!(
            scrubber.scrub(Bytes::from_static(b"/?k=hunter2hunter2")),
            SCRUBBED
        );
    }

    #[test]
    fn a_secret_in_json_escapes_is_found() {
        assert!(Scrubber::new(b"ab/cd\"ef").finds(br#"{"k":"ab\/cd\"ef"}"#));
    }
}
