//! Hex and base64 inside JSON, and length-prefixed canonical bytes.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// `#[serde(with = "encoding::base64_bytes")]` for byte strings.
pub(crate) mod base64_bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::to_base64(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        super::from_base64(&text).ok_or_else(|| de::Error::custom("expected standard base64"))
    }
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// Canonical bytes: each part follows its length as a big-endian `u64`, so that no two lists of
/// parts collide.
#[derive(Debug, Default)]
pub(crate) struct Canonical(Vec<u8>);

impl Canonical {
    pub(crate) fn new(context: &str) -> Self {
        Self::default().part(context.as_bytes())
    }

    pub(crate) fn part(mut self, bytes: &[u8]) -> Self {
        self.0
            .extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.part(&number.to_be_bytes())
    }

    /// A list is encoded as its length and then its parts.
    pub(crate) fn list<T: AsRef<[u8]>>(self, items: impl ExactSizeIterator<Item = T>) -> Self {
        let counted = self.number(items.len() as u64);
        items.fold(counted, |bytes, item| bytes.part(item.as_ref()))
    }

    pub(crate) fn bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Implements serde for a string newtype through its parser.
macro_rules! parsed_string {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                to.write_str(self.as_str())
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use parsed_string;
