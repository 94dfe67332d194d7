//! Certificate authorities that a release names for one upstream, in place of the node's own.

use std::str::FromStr;

use crate::encoding::parsed_string;
use crate::id::Digest;

/// Largest PEM of a private certificate authority, bytes.
pub const MAX_CA_BYTES: usize = 32 * 1024;

/// How a certificate begins in PEM (RFC 7468, section 5).
pub const PEM_BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// Why a PEM text was refused as a certificate authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaError {
    /// The text is too long.
    #[error("expected a certificate authority of at most {MAX_CA_BYTES} bytes, got {0}")]
    Length(usize),
    /// The text holds no certificate.
    #[error("expected certificates in PEM (`{PEM_BEGIN}`)")]
    NoCertificate,
    /// The text holds a private key, which would be published with the release.
    #[error("expected certificates in PEM and no key")]
    PrivateKey,
}

/// The PEM text of a certificate authority, and the digest by which a secret's limits name it.
///
/// The digest is the SHA-256 of the text exactly as the release holds it, comments and line ends included. A
/// digest of the decoded certificates would make this crate and the TLS library agree on how to read PEM: where
/// they disagreed, the TLS library would trust a certificate that the digest does not cover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaPem {
    text: String,
    digest: Digest,
}

impl CaPem {
    /// The PEM text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The SHA-256 of the text.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl FromStr for CaPem {
    type Err = CaError;

    fn from_str(text: &str) -> Result<Self, CaError> {
        if text.len() > MAX_CA_BYTES {
            return Err(CaError::Length(text.len()));
        }
        if text.contains("PRIVATE KEY") {
            return Err(CaError::PrivateKey);
        }
        if !text.contains(PEM_BEGIN) {
            return Err(CaError::NoCertificate);
        }
        Ok(Self {
            digest: Digest::of(text.as_bytes()),
            text: text.to_owned(),
        })
    }
}

parsed_string!(CaPem);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_of_a_bounded_size_are_an_authority() {
        let parse = |text: &str| text.parse::<CaPem>();
        assert_eq!(parse("nothing").unwrap_err(), CaError::NoCertificate);
        let key = format!("{PEM_BEGIN}\n-----BEGIN PRIVATE KEY-----\n");
        assert_eq!(parse(&key).unwrap_err(), CaError::PrivateKey);
        let long = PEM_BEGIN.repeat(MAX_CA_BYTES / PEM_BEGIN.len() + 1);
        assert_eq!(parse(&long).unwrap_err(), CaError::Length(long.len()));
        assert!(serde_json::from_str::<CaPem>("\"nothing\"").is_err());
    }

    #[test]
    fn the_digest_covers_every_byte_of_the_text() {
        let one: CaPem = format!("{PEM_BEGIN}\nA\n").parse().unwrap();
        let other: CaPem = format!("{PEM_BEGIN}\nB\n").parse().unwrap();
        assert_ne!(one.digest(), other.digest());
        assert_eq!(one.digest(), Digest::of(one.as_str().as_bytes()));
    }
}
