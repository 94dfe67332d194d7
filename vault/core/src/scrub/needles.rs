//! The needles: each value that was sent, in each form in which a view may show it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use casemate_trust::release::Slot;
use percent_encoding::utf8_percent_encode;
use zeroize::Zeroizing;

use super::automaton::is_skipped;
use crate::slot::QUERY_VALUE;

/// Shortest needle, bytes that are not skipped: a shorter one would match everywhere by chance.
const MIN_NEEDLE_BYTES: usize = 4;
/// Longer values are searched for in pieces of about this size, bytes. The number of bytes held
/// back grows with the longest needle.
const MAX_NEEDLE_BYTES: usize = 256;
/// Most bytes of all needles together. The automaton has a row for each byte, of up to 190 numbers,
/// and is made for a call. Of longer values some pieces are left out, evenly.
const MAX_NEEDLES_BYTES: usize = 8 * 1024;

/// A value to search an answer for.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// The secret.
    pub value: &'a [u8],
    /// The slot in which it was or may be sent.
    pub slot: &'a Slot,
}

/// A needle: a value, or one of its pieces.
pub(super) struct Needle {
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// The index of its value in the given list.
    pub(super) value: usize,
    /// Whether it is a later piece of a value, which belongs to the match before it.
    pub(super) is_continuation: bool,
}

/// All needles of some values; none for a value that is too short to be searched for.
pub(super) fn needles(watched: &[Watched<'_>]) -> Vec<Needle> {
    let mut forms: Vec<(usize, Zeroizing<Vec<u8>>)> = Vec::new();
    for (value, watched) in watched.iter().enumerate() {
        for form in forms_of(watched) {
            let form = canonical(&form);
            let is_new = !forms.iter().any(|(_, known)| *known == form);
            if form.len() >= MIN_NEEDLE_BYTES && is_new {
                forms.push((value, form));
            }
        }
    }
    let total: usize = forms.iter().map(|(_, form)| form.len()).sum();
    let every = total.div_ceil(MAX_NEEDLES_BYTES).max(1);
    let mut needles = Vec::new();
    for (value, form) in forms {
        // Pieces of equal length, so that none is too short.
        let pieces = form.len().div_ceil(MAX_NEEDLE_BYTES);
        let length = form.len().div_ceil(pieces);
        for (number, piece) in form.chunks(length).enumerate().step_by(every) {
            if piece.len() >= MIN_NEEDLE_BYTES {
                needles.push(Needle {
                    bytes: Zeroizing::new(piece.to_vec()),
                    value,
                    is_continuation: number > 0,
                });
            }
        }
    }
    needles
}

/// A text in the form that the automaton compares.
fn canonical(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let kept = text.iter().filter(|byte| !is_skipped(**byte));
    bytes.extend(kept.map(u8::to_ascii_lowercase));
    bytes
}

/// The value itself, the form that the slot gives it, and for non-ASCII characters the other
/// charsets.
fn forms_of(watched: &Watched<'_>) -> Vec<Zeroizing<Vec<u8>>> {
    let Watched { value, slot } = *watched;
    let mut forms = vec![Zeroizing::new(value.to_vec())];
    match slot {
        Slot::Basic { username } => {
            let pair = Zeroizing::new([username.as_bytes(), b":", value].concat());
            let encoded = Zeroizing::new(STANDARD_NO_PAD.encode(pair.as_slice()));
            forms.push(Zeroizing::new(encoded.as_bytes().to_vec()));
        }
        Slot::Query { .. } => {
            let text = Zeroizing::new(String::from_utf8_lossy(value).into_owned());
            let encoded = utf8_percent_encode(&text, QUERY_VALUE);
            forms.push(Zeroizing::new(encoded.flat_map(str::bytes).collect()));
        }
        Slot::Header { .. } | Slot::Bearer => {}
    }
    if !value.is_ascii() {
        forms.extend(charsets(value));
    }
    forms
}

/// The value in Latin-1, in UTF-16, and in UTF-8 that was read as Latin-1 and encoded as UTF-8
/// again.
fn charsets(value: &[u8]) -> Vec<Zeroizing<Vec<u8>>> {
    let misread = value.iter().map(|byte| char::from(*byte));
    let mut form = Zeroizing::new(String::with_capacity(2 * value.len()));
    form.extend(misread);
    let mut forms = vec![Zeroizing::new(form.as_bytes().to_vec())];
    let Ok(text) = std::str::from_utf8(value) else {
        return forms;
    };
    let latin_1: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(char).ok()).collect();
    forms.extend(latin_1.map(Zeroizing::new));
    // The zeros of both are skipped, here and in the text.
    let units = || text.encode_utf16();
    forms.push(Zeroizing::new(units().flat_map(u16::to_le_bytes).collect()));
    forms.push(Zeroizing::new(units().flat_map(u16::to_be_bytes).collect()));
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(value: &[u8], slot: &Slot) -> Vec<usize> {
        let needles = needles(&[Watched { value, slot }]);
        needles.iter().map(|needle| needle.bytes.len()).collect()
    }

    #[test]
    fn a_long_value_is_cut_into_pieces_of_one_length_without_a_gap() {
        assert_eq!(lengths(&[b'a'; 256], &Slot::Bearer), [256]);
        assert_eq!(lengths(&[b'a'; 257], &Slot::Bearer), [129, 128]);
        assert_eq!(lengths(&[b'a'; 1000], &Slot::Bearer), [250; 4]);
    }

    #[test]
    fn all_needles_together_are_bounded() {
        let value = vec![b'a'; 64 * 1024];
        let total: usize = lengths(&value, &Slot::Bearer).iter().sum();
        assert!((4 * 1024..=MAX_NEEDLES_BYTES).contains(&total), "{total}");
    }

    #[test]
    fn what_was_sent_is_a_needle_beside_the_secret() {
        let basic = Slot::Basic {
            username: "user".into(),
        };
        let needles = needles(&[Watched {
            value: b"Hunter2-hunter2",
            slot: &basic,
        }]);
        let bytes: Vec<&[u8]> = needles
            .iter()
            .map(|needle| needle.bytes.as_slice())
            .collect();
        assert_eq!(
            bytes,
            [&b"hunter2hunter2"[..], b"dxnlcjpidw50zxiylwh1bnrlcji"]
        );
        assert_eq!(lengths(b"ab", &Slot::Bearer), [0; 0]);
        assert_eq!(lengths(b"--ab--", &Slot::Bearer), [0; 0]);
    }
}
