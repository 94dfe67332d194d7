//! Heads: length-prefixed method, target and header fields. No compression, no text parsing.

use bytes::Bytes;

use crate::frame::MAX_PAYLOAD_BYTES;

/// Most header fields in a head.
pub const MAX_FIELDS: usize = 256;
/// Longest field name, bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest method, bytes.
pub const MAX_METHOD_BYTES: usize = 24;
/// Longest target, bytes.
pub const MAX_TARGET_BYTES: usize = 16 * 1024;

/// Header fields in their order: names in lower case. A name that starts with `:` is ours and never comes from or goes
/// to a network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, Bytes)>);

/// Begins a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Method, such as `GET`.
    pub method: String,
    /// Absolute URL.
    pub target: String,
    /// Header fields.
    pub fields: Fields,
}

/// Begins a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status; 0 is a refusal of ours, explained by `:error` and `:message`.
    pub status: u16,
    /// Header fields.
    pub fields: Fields,
}

/// Why a head was refused, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Ends before it should, or goes on after.
    #[error("the head's lengths do not add up")]
    Length,
    /// Over one of the limits.
    #[error("expected a head of at most {MAX_PAYLOAD_BYTES} bytes and {MAX_FIELDS} fields")]
    TooLarge,
    /// A method, target or name with other characters than allowed.
    #[error("expected a token as method, visible ASCII as target and lower-case tokens as names")]
    Characters,
    /// A value with CR, LF or NUL.
    #[error("expected field values without CR, LF and NUL")]
    Value,
}

impl Fields {
    /// First value of `name`.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_ref())
    }

    /// First value of `name` as text, when it is UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Appends a field.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }

    /// With one more field.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.push(name, value);
        self
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), HeadError> {
        if self.0.len() > MAX_FIELDS {
            return Err(HeadError::TooLarge);
        }
        out.extend_from_slice(&(self.0.len() as u16).to_le_bytes());
        for (name, value) in &self.0 {
            check_field(name, value)?;
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        }
        if out.len() > MAX_PAYLOAD_BYTES {
            Err(HeadError::TooLarge)
        } else {
            Ok(())
        }
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, HeadError> {
        let count = from.u16()? as usize;
        if count > MAX_FIELDS {
            return Err(HeadError::TooLarge);
        }
        let mut fields = Vec::with_capacity(count);
        for _ in 0..count {
            let length = from.u16()? as usize;
            let name = from.text(length)?;
            let length = from.u32()? as usize;
            let value = from.take(length)?;
            check_field(name, value)?;
            fields.push((name.to_owned(), Bytes::copy_from_slice(value)));
        }
        Ok(Self(fields))
    }

    /// Fields alone, as trailers travel.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader(bytes);
        let fields = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(fields)
    }
}

impl<N: Into<String>, V: Into<Bytes>> FromIterator<(N, V)> for Fields {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(fields: I) -> Self {
        Self(
            fields
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

impl RequestHead {
    pub(crate) fn write(&self) -> Result<Vec<u8>, HeadError> {
        check_method_and_target(&self.method, &self.target)?;
        let mut out = Vec::with_capacity(256);
        out.push(self.method.len() as u8);
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(&(self.target.len() as u16).to_le_bytes());
        out.extend_from_slice(self.target.as_bytes());
        self.fields.write(&mut out)?;
        Ok(out)
    }

    /// From the payload of a head frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader(bytes);
        let length = reader.take(1)?[0] as usize;
        let method = reader.text(length)?;
        let length = reader.u16()? as usize;
        let target = reader.text(length)?;
        check_method_and_target(method, target)?;
        let head = Self {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: Fields::read(&mut reader)?,
        };
        reader.finish()?;
        Ok(head)
    }
}

impl ResponseHead {
    pub(crate) fn write(&self) -> Result<Vec<u8>, HeadError> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(&self.status.to_le_bytes());
        self.fields.write(&mut out)?;
        Ok(out)
    }

    /// From the payload of a head frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader(bytes);
        let head = Self {
            status: reader.u16()?,
            fields: Fields::read(&mut reader)?,
        };
        reader.finish()?;
        Ok(head)
    }
}

fn check_method_and_target(method: &str, target: &str) -> Result<(), HeadError> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(HeadError::TooLarge);
    }
    let method_fits =
        (1..=MAX_METHOD_BYTES).contains(&method.len()) && method.bytes().all(is_token);
    let target_fits = !target.is_empty() && target.bytes().all(|byte| byte.is_ascii_graphic());
    if method_fits && target_fits {
        Ok(())
    } else {
        Err(HeadError::Characters)
    }
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
    // Ours may carry text of several lines; what can reach a network may not.
    if plain.len() == name.len() && value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        return Err(HeadError::Value);
    }
    Ok(())
}

/// `tchar` of RFC 9110, section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Takes from the front of a payload.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HeadError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HeadError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    fn text(&mut self, length: usize) -> Result<&'a str, HeadError> {
        std::str::from_utf8(self.take(length)?).map_err(|_| HeadError::Characters)
    }

    fn u16(&mut self) -> Result<u16, HeadError> {
        self.take(2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, HeadError> {
        self.take(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn finish(self) -> Result<(), HeadError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(HeadError::Length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields() -> impl Strategy<Value = Fields> {
        let value = proptest::collection::vec(
            any::<u8>().prop_filter("text", |b| !matches!(b, b'\r' | b'\n' | 0)),
            0..50,
        );
        proptest::collection::vec(("[a-z0-9-]{1,20}", value.prop_map(Bytes::from)), 0..20)
            .prop_map(Fields)
    }

    proptest! {
        #[test]
        fn request_heads_round_trip(method in "[A-Z]{1,8}", target in "https://[a-z]{1,9}/[a-z0-9%]{0,50}", fields in fields()) {
            let head = RequestHead { method, target, fields };
            prop_assert_eq!(RequestHead::parse(&head.write().unwrap()).unwrap(), head);
        }

        #[test]
        fn response_heads_round_trip(status: u16, fields in fields()) {
            let head = ResponseHead { status, fields };
            prop_assert_eq!(ResponseHead::parse(&head.write().unwrap()).unwrap(), head);
        }

        #[test]
        fn what_parses_writes_itself(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(head) = RequestHead::parse(&bytes) {
                prop_assert_eq!(head.write().unwrap(), bytes.clone());
            }
            if let Ok(head) = ResponseHead::parse(&bytes) {
                prop_assert_eq!(head.write().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn line_breaks_upper_case_and_empty_names_are_refused() {
        let head = |name: &str, value: &'static [u8]| {
            ResponseHead {
                status: 200,
                fields: Fields::default().with(name, value),
            }
            .write()
        };
        assert_eq!(head("x", b"a\r\nb: c"), Err(HeadError::Value));
        assert_eq!(head("x", b"a\0"), Err(HeadError::Value));
        assert_eq!(head("X", b""), Err(HeadError::Characters));
        assert_eq!(head("", b""), Err(HeadError::Characters));
        assert_eq!(head("a b", b""), Err(HeadError::Characters));
        assert!(head(":message", b"two\nlines").is_ok());
    }
}
