//! Images of a whole machine: their versions, and the root's statement about each.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::{Digest, FleetId};
use crate::name::{Name, excerpt};
use crate::payload::{Statement, span_flaw};
use crate::statement::MAX_POOLS;

/// Largest image, bytes: two of them, the running one and the next, fit a boot partition of 512 MiB.
pub const MAX_IMAGE_BYTES: u64 = 250 * 1024 * 1024;

/// Why a version was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a version such as 1.2.3, each number from 0 to 65535, got {0:?}")]
pub struct ImageVersionError(String);

/// Version of an image: `MAJOR.MINOR.PATCH`, without leading zeros, so that each version is written in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageVersion {
    /// First number.
    pub major: u16,
    /// Second number.
    pub minor: u16,
    /// Third number.
    pub patch: u16,
}

impl ImageVersion {
    /// The version as one number, in the same order.
    pub const fn as_u64(self) -> u64 {
        (self.major as u64) << 32 | (self.minor as u64) << 16 | self.patch as u64
    }

    /// The version of that number.
    pub fn from_u64(number: u64) -> Option<Self> {
        let part = |shift: u32| (number >> shift) as u16;
        let version = Self {
            major: u16::try_from(number >> 32).ok()?,
            minor: part(16),
            patch: part(0),
        };
        Some(version)
    }
}

impl fmt::Display for ImageVersion {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for ImageVersion {
    type Err = ImageVersionError;

    fn from_str(text: &str) -> Result<Self, ImageVersionError> {
        let wrong = || ImageVersionError(excerpt(text));
        let number = |part: Option<&str>| {
            let part = part.ok_or_else(wrong)?;
            let is_plain = part.bytes().all(|byte| byte.is_ascii_digit());
            let has_zeros = part.len() > 1 && part.starts_with('0');
            if !is_plain || has_zeros {
                return Err(wrong());
            }
            part.parse().map_err(|_| wrong())
        };
        let mut parts = text.split('.');
        let version = Self {
            major: number(parts.next())?,
            minor: number(parts.next())?,
            patch: number(parts.next())?,
        };
        parts.next().map_or(Ok(version), |_| Err(wrong()))
    }
}

impl Serialize for ImageVersion {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageVersion {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The image that the machines of some pools are to run. Signed by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The fleet.
    pub fleet: FleetId,
    /// Version; it only rises in each pool.
    pub version: ImageVersion,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
    /// Pools whose machines run it.
    pub pools: Vec<Name>,
    /// When the statement was signed.
    pub issued: Seconds,
    /// Until when the image is accepted.
    pub expires: Seconds,
}

impl Statement for Image {
    const TYPE: &'static str = "application/vnd.casemate.image.v1+json";

    fn flaw(&self) -> Option<String> {
        if !(1..=MAX_IMAGE_BYTES).contains(&self.bytes) {
            return Some(format!(
                "expected an image of 1 to {MAX_IMAGE_BYTES} bytes, got {}",
                self.bytes
            ));
        }
        if !(1..=MAX_POOLS).contains(&self.pools.len()) {
            return Some(format!(
                "expected 1 to {MAX_POOLS} pools, got {}",
                self.pools.len()
            ));
        }
        let distinct: BTreeSet<_> = self.pools.iter().collect();
        if distinct.len() != self.pools.len() {
            return Some("a pool appears twice".into());
        }
        span_flaw(self.issued, self.expires)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_version_is_written_in_one_way() {
        let version: ImageVersion = "1.2.65535".parse().unwrap();
        assert_eq!((version.major, version.minor, version.patch), (1, 2, 65535));
        assert_eq!(serde_json::to_string(&version).unwrap(), "\"1.2.65535\"");
        let bad = [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.3.",
            ".1.2",
            "1..3",
            "01.2.3",
            "1.2.+3",
            "1.2.-3",
            "1.2.65536",
            "v1.2.3",
            "1.2.3 ",
            "1.2.3-rc1",
            "1.2.\u{663}",
            "1.2.00",
        ];
        for bad in bad {
            assert!(bad.parse::<ImageVersion>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ImageVersion>("1").is_err());
    }

    proptest! {
        #[test]
        fn order_text_and_number_agree(one: (u16, u16, u16), other: (u16, u16, u16)) {
            let version = |(major, minor, patch)| ImageVersion { major, minor, patch };
            let (one, other) = (version(one), version(other));
            prop_assert_eq!(one.cmp(&other), one.as_u64().cmp(&other.as_u64()));
            prop_assert_eq!(one.to_string().parse(), Ok(one));
            prop_assert_eq!(ImageVersion::from_u64(one.as_u64()), Some(one));
        }

        #[test]
        fn no_text_does_harm(text in "\\PC{0,40}") {
            if let Ok(version) = text.parse::<ImageVersion>() {
                prop_assert_eq!(version.to_string(), text);
            }
        }
    }

    #[test]
    fn an_image_has_bytes_and_pools() {
        let image = Image {
            fleet: FleetId([1; 32]),
            version: "1.0.0".parse().unwrap(),
            digest: Digest([2; 32]),
            bytes: 7,
            pools: vec!["main".parse().unwrap()],
            issued: 1,
            expires: 2,
        };
        assert_eq!(image.flaw(), None);
        let flawed = |change: fn(&mut Image)| {
            let mut image = image.clone();
            change(&mut image);
            image.flaw().is_some()
        };
        assert!(flawed(|image| image.bytes = 0));
        assert!(flawed(|image| image.bytes = MAX_IMAGE_BYTES + 1));
        assert!(flawed(|image| image.pools.clear()));
        assert!(flawed(|image| image.pools.push("main".parse().unwrap())));
        assert!(flawed(
            |image| image.pools = vec!["main".parse().unwrap(); MAX_POOLS + 1]
        ));
        assert!(flawed(|image| image.expires = image.issued));
    }
}
