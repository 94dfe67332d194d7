//! Heads: length-prefixed method, target and header fields. No compression, no text parsing.

pub use crate::error::HeadError;
use crate::fields::Fields;
pub use crate::limits::{MAX_FIELDS, MAX_METHOD_BYTES, MAX_NAME_BYTES, MAX_TARGET_BYTES};
use crate::payload::{Reader, is_token};

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
