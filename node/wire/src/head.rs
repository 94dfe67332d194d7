//! Heads: length-prefixed method, target and header fields. No compression, no text parsing.

use crate::fields::Fields;
use crate::frame::MAX_PAYLOAD_BYTES;

/// Most header fields in a head.
pub const MAX_FIELDS: usize = 256;
/// Longest field name, bytes.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest method, bytes.
pub const MAX_METHOD_BYTES: usize = 24;
/// Longest target, bytes.
pub const MAX_TARGET_BYTES: usize = 16 * 1024;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// Method, such as `GET`.
    pub method: String,
    /// Absolute URL.
    pub target: String,
    /// Header fields.
    pub fields: Fields,
}

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status; 0 is a refusal by the vault, explained by `:error` and `:message`.
    pub status: u16,
    /// Header fields.
    pub fields: Fields,
}

/// Why a head was refused, on sending or receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The head ends too early, or bytes follow it.
    #[error("the head's lengths do not add up")]
    Length,
    /// The head exceeds a limit.
    #[error("expected a head of at most {MAX_PAYLOAD_BYTES} bytes and {MAX_FIELDS} fields")]
    TooLarge,
    /// A method, target or name has forbidden characters.
    #[error("expected a token as method, visible ASCII as target and lower-case tokens as names")]
    Characters,
    /// A value contains CR, LF or NUL.
    #[error("expected field values without CR, LF and NUL")]
    Value,
}

impl RequestHead {
    /// Appends the payload of a head frame.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), HeadError> {
        check_method_and_target(&self.method, &self.target)?;
        let start = out.len();
        out.push(self.method.len() as u8);
        out.extend_from_slice(self.method.as_bytes());
        out.extend_from_slice(&(self.target.len() as u16).to_le_bytes());
        out.extend_from_slice(self.target.as_bytes());
        self.fields.write(out, start)
    }

    /// Parses the payload of a head frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader(bytes);
        let length = reader.take(1)?[0] as usize;
        let method = reader.text(length)?;
        let length = reader.u16()? as usize;
        let target = reader.text(length)?;
        check_method_and_target(method, target)?;
        Ok(Self {
            method: method.to_owned(),
            target: target.to_owned(),
            fields: Fields::read(reader)?,
        })
    }
}

impl ResponseHead {
    /// Appends the payload of a head frame.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), HeadError> {
        let start = out.len();
        out.extend_from_slice(&self.status.to_le_bytes());
        self.fields.write(out, start)
    }

    /// Parses the payload of a head frame.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeadError> {
        let mut reader = Reader(bytes);
        Ok(Self {
            status: reader.u16()?,
            fields: Fields::read(reader)?,
        })
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

/// `tchar` of RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads values from the front of a payload.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], HeadError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HeadError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn text(&mut self, length: usize) -> Result<&'a str, HeadError> {
        std::str::from_utf8(self.take(length)?).map_err(|_| HeadError::Characters)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, HeadError> {
        self.take(2)
            .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, HeadError> {
        self.take(4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(crate) fn finish(self) -> Result<(), HeadError> {
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
        proptest::collection::vec(("[a-z0-9-]{1,20}", value), 0..20).prop_map(Fields::from_iter)
    }

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), HeadError>) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn request_heads_round_trip(method in "[A-Z]{1,8}", target in "https://[a-z]{1,9}/[a-z0-9%]{0,50}", fields in fields()) {
            let head = RequestHead { method, target, fields };
            prop_assert_eq!(RequestHead::parse(&written(|out| head.write(out))).unwrap(), head);
        }

        #[test]
        fn response_heads_round_trip(status: u16, fields in fields()) {
            let head = ResponseHead { status, fields };
            prop_assert_eq!(ResponseHead::parse(&written(|out| head.write(out))).unwrap(), head);
        }

        #[test]
        fn what_parses_writes_itself(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(head) = RequestHead::parse(&bytes) {
                prop_assert_eq!(written(|out| head.write(out)), bytes.clone());
            }
            if let Ok(head) = ResponseHead::parse(&bytes) {
                prop_assert_eq!(written(|out| head.write(out)), bytes);
            }
        }
    }
}
