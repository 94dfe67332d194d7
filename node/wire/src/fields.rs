//! Header fields in their encoded form: one allocation a head, whatever it contains.

use std::fmt;

use crate::error::HeadError;
use crate::frame::MAX_PAYLOAD_BYTES;
use crate::limits::{MAX_FIELDS, MAX_NAME_BYTES};
use crate::payload::{Reader, is_token};

/// Bytes of a field beside its name and value: two lengths.
const LENGTHS_BYTES: usize = 6;

/// Header fields in order, with names in lower case. A name that starts with `:` is Casemate's own
/// and never comes from or goes to a network.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fields {
    count: usize,
    encoded: Vec<u8>,
    /// The first field that does not fit into a head; it was left out, and writing the head fails.
    fault: Option<HeadError>,
}

impl Fields {
    /// Makes an empty list with capacity for `fields` fields and `bytes` bytes of names and values.
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        Self {
            encoded: Vec::with_capacity(fields * LENGTHS_BYTES + bytes),
            ..Self::default()
        }
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        let mut reader = Reader(&self.encoded);
        std::iter::from_fn(move || read_field(&mut reader).ok())
    }

    /// First value of `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value)
    }

    /// First value of `name` as text, when it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Appends a field. An invalid one makes the sending of the head fail.
    pub fn push(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        let room = MAX_PAYLOAD_BYTES.saturating_sub(self.encoded.len());
        let fits = self.count < MAX_FIELDS && name.len() + value.len() + LENGTHS_BYTES <= room;
        let checked = if fits {
            check_field(name, value)
        } else {
            Err(HeadError::TooLarge)
        };
        if let Err(fault) = checked {
            self.fault.get_or_insert(fault);
            return;
        }
        self.count += 1;
        self.encoded
            .extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.encoded.extend_from_slice(name.as_bytes());
        self.encoded
            .extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.encoded.extend_from_slice(value);
    }

    /// Returns the list with one more field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.push(name, value);
        self
    }

    /// Checks that the fields fit into a head.
    ///
    /// # Errors
    /// The reason; sending them fails in the same way.
    pub fn check(&self) -> Result<(), HeadError> {
        self.fault.map_or(Ok(()), Err)
    }

    /// Appends the fields to the payload that begins at `start`.
    pub(crate) fn write(&self, out: &mut Vec<u8>, start: usize) -> Result<(), HeadError> {
        self.check()?;
        out.extend_from_slice(&(self.count as u16).to_le_bytes());
        out.extend_from_slice(&self.encoded);
        if out.len() - start > MAX_PAYLOAD_BYTES {
            Err(HeadError::TooLarge)
        } else {
            Ok(())
        }
    }

    /// Reads the rest of a payload.
    pub(crate) fn read(mut from: Reader<'_>) -> Result<Self, HeadError> {
        let count = from.u16()? as usize;
        if count > MAX_FIELDS {
            return Err(HeadError::TooLarge);
        }
        let encoded = from.0;
        for _ in 0..count {
            let (name, value) = read_field(&mut from)?;
            check_field(name, value)?;
        }
        from.finish()?;
        Ok(Self {
            count,
            encoded: encoded.to_vec(),
            fault: None,
        })
    }

    /// Parses fields alone, the form of trailers.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        Self::read(Reader(bytes))
    }
}

impl<N: AsRef<str>, V: AsRef<[u8]>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        let mut all = Self::default();
        fields
            .into_iter()
            .for_each(|(name, value)| all.push(name.as_ref(), value));
        all
    }
}

impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = self
            .iter()
            .map(|(name, value)| (name, String::from_utf8_lossy(value)));
        f.debug_map().entries(fields).finish()
    }
}

fn read_field<'a>(from: &mut Reader<'a>) -> Result<(&'a str, &'a [u8]), HeadError> {
    let length = from.u16()? as usize;
    let name = from.text(length)?;
    let length = from.u32()? as usize;
    Ok((name, from.take(length)?))
}

fn check_field(name: &str, value: &[u8]) -> Result<(), HeadError> {
    let plain = name.strip_prefix(':').unwrap_or(name);
    let is_lower_token = !plain.is_empty()
        && plain
            .bytes()
            .all(|byte| is_token(byte) && !byte.is_ascii_uppercase());
    if name.len() > MAX_NAME_BYTES {
        return Err(HeadError::TooLarge);
    }
    if !is_lower_token {
        return Err(HeadError::Characters);
    }
    // Casemate's own fields may contain line breaks; a field that can reach a network may not.
    if plain.len() == name.len() && value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(HeadError::Value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_out_in_their_order() {
        let fields = Fields::default()
            .with("cookie", "a=1")
            .with(":request", "r1")
            .with("cookie", b"\xff")
            .with("x-empty", "");
        let all: Vec<(&str, &[u8])> = fields.iter().collect();
        let expected: [(&str, &[u8]); 4] = [
            ("cookie", b"a=1"),
            (":request", b"r1"),
            ("cookie", b"\xff"),
            ("x-empty", b""),
        ];
        assert_eq!(all, expected);
        assert_eq!((fields.len(), fields.is_empty()), (4, false));
        assert_eq!(fields.text("cookie"), Some("a=1"));
        assert_eq!(fields.get("none"), None);
        assert_eq!(all.iter().copied().collect::<Fields>(), fields);
    }

    #[test]
    fn fields_that_do_not_fit_are_left_out_and_refused_when_written() {
        let faults = |fields: Fields| (fields.len(), fields.write(&mut Vec::new(), 0));
        let long = "n".repeat(MAX_NAME_BYTES + 1);
        let huge = vec![b'v'; MAX_PAYLOAD_BYTES];
        for (name, value, fault) in [
            (long.as_str(), &b""[..], HeadError::TooLarge),
            ("x", &huge[..], HeadError::TooLarge),
            ("X", b"", HeadError::Characters),
            ("", b"", HeadError::Characters),
            (":", b"", HeadError::Characters),
            ("a b", b"", HeadError::Characters),
            ("x", b"a\r\nb: c", HeadError::Value),
            ("x", b"a\0", HeadError::Value),
        ] {
            let fields = Fields::default().with("good", "1").with(name, value);
            assert_eq!(
                faults(fields.with("also", "2")),
                (2, Err(fault)),
                "{name:?}"
            );
        }
        let crowd: Fields = (0..=MAX_FIELDS).map(|_| ("x", "")).collect();
        assert_eq!(faults(crowd), (MAX_FIELDS, Err(HeadError::TooLarge)));
        assert_eq!(
            faults(Fields::default().with(":message", "two\nlines")),
            (1, Ok(()))
        );
    }
}
