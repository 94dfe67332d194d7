//! Secrets: a value sealed to a pool, with the limits of where it may ever go.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::{Canonical, base64_bytes};
use crate::host::HostName;
use crate::id::{FleetId, TenantId};
use crate::name::{Identifier, Name};
use crate::path::{Method, PathPattern};
use crate::release::SlotKind;
use crate::seal::{ENCAPSULATED_BYTES, SealError, TAG_BYTES, seal};
use crate::statement::{MAX_VERSION, Pool};

/// Largest value, bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Largest secret object, bytes of JSON: value and encapsulated key in base64, and its limits.
pub const MAX_SECRET_BYTES: usize = 160 * 1024;
/// Most hosts, methods or paths in a secret's limits, each.
pub const MAX_LIMITS: usize = 64;
/// What HPKE is told that a secret is.
pub const SECRET_INFO: &[u8] = b"casemate secret v1";

/// Where a secret may ever go. A release's slot narrows this and never widens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretLimits {
    /// Hosts; at least one.
    pub hosts: Vec<HostName>,
    /// Methods; empty means every one.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Paths; empty means every one.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// Kinds of slot; empty means every one.
    #[serde(default)]
    pub slots: Vec<SlotKind>,
}

/// What a sealed value is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPlace {
    /// The fleet.
    pub fleet: FleetId,
    /// The tenant.
    pub tenant: TenantId,
    /// Name.
    pub name: Identifier,
    /// Its own version.
    pub version: u64,
    /// The pool that it is sealed to.
    pub pool: Name,
    /// The pool's key epoch.
    pub epoch: u64,
    /// Where it may go.
    pub limits: SecretLimits,
}

/// A sealed secret as it travels, named by the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// What it is bound to.
    #[serde(flatten)]
    pub place: SecretPlace,
    /// HPKE's encapsulated key.
    #[serde(with = "base64_bytes")]
    pub enc: Vec<u8>,
    /// Sealed value.
    #[serde(with = "base64_bytes")]
    pub ciphertext: Vec<u8>,
}

/// Why a secret or its value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not a secret object.
    #[error("{0}")]
    Format(String),
    /// The value is empty or too long.
    #[error("expected a value of 1 to {MAX_VALUE_BYTES} bytes, got {0}")]
    ValueLength(usize),
    /// The value holds a byte that would break a header.
    #[error("the value has {what} at byte {at}: no header can carry that")]
    ValueByte {
        /// Which byte.
        what: &'static str,
        /// Where, counted from 0.
        at: usize,
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A value in clear, wiped when dropped. It has no `Debug` that shows it and no `Clone`.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// From what a person typed or a file held. One final line break is an editor's, not the secret's.
    ///
    /// # Errors
    /// Empty, over [`MAX_VALUE_BYTES`], or with CR, LF or NUL.
    pub fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<Self, SecretError> {
        let end = bytes
            .strip_suffix(b"\r\n")
            .or_else(|| bytes.strip_suffix(b"\n"))
            .map_or(bytes.len(), <[u8]>::len);
        let value = Zeroizing::new(bytes[..end].to_vec());
        if !(1..=MAX_VALUE_BYTES).contains(&value.len()) {
            return Err(SecretError::ValueLength(value.len()));
        }
        let named = |byte: &u8| match byte {
            b'\r' => Some("CR"),
            b'\n' => Some("LF"),
            0 => Some("NUL"),
            _ => None,
        };
        match value
            .iter()
            .enumerate()
            .find_map(|(at, byte)| Some((at, named(byte)?)))
        {
            Some((at, what)) => Err(SecretError::ValueByte { what, at }),
            None => Ok(Self(value)),
        }
    }

    /// The bytes in clear.
    pub fn expose_secret(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "SecretValue({} bytes)", self.0.len())
    }
}

impl SecretPlace {
    /// What HPKE authenticates beside the value: every field, length-prefixed.
    pub fn aad(&self) -> Vec<u8> {
        Canonical::new("casemate secret v1")
            .part(&self.fleet.0)
            .part(&self.tenant.0)
            .part(self.name.as_str().as_bytes())
            .number(self.version)
            .part(self.pool.as_str().as_bytes())
            .number(self.epoch)
            .list(self.limits.hosts.iter().map(HostName::as_str))
            .list(self.limits.methods.iter().map(Method::as_str))
            .list(self.limits.paths.iter().map(PathPattern::as_str))
            .list(self.limits.slots.iter().map(|slot| slot.as_str()))
            .bytes()
    }

    fn flaw(&self) -> Option<String> {
        let SecretLimits {
            hosts,
            methods,
            paths,
            slots,
        } = &self.limits;
        if hosts.is_empty() {
            return Some("a secret names at least one host that it may go to".into());
        }
        if [hosts.len(), methods.len(), paths.len(), slots.len()]
            .iter()
            .any(|count| *count > MAX_LIMITS)
        {
            return Some(format!(
                "expected at most {MAX_LIMITS} hosts, methods and paths each"
            ));
        }
        let versions = 1..=MAX_VERSION;
        let known = versions.contains(&self.version) && versions.contains(&self.epoch);
        (!known).then(|| "expected version and epoch from 1 to 2^53 - 1".into())
    }
}

impl Secret {
    /// Seals a value to the pool's key.
    ///
    /// # Errors
    /// The place makes no sense, or sealing failed.
    pub fn seal(
        place: SecretPlace,
        pool: &Pool,
        value: &SecretValue,
        random: crate::Random<'_>,
    ) -> Result<Self, SecretError> {
        if let Some(flaw) = place.flaw() {
            return Err(SecretError::Format(flaw));
        }
        let sealed = seal(
            &pool.public_key,
            SECRET_INFO,
            &place.aad(),
            value.expose_secret(),
            random,
        )?;
        Ok(Self {
            place,
            enc: sealed.enc,
            ciphertext: sealed.ciphertext,
        })
    }

    /// Its bytes, whose SHA-256 is its name.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes that anybody may have sent.
    ///
    /// # Errors
    /// Too large, no secret, or one that makes no sense.
    pub fn parse(bytes: &[u8]) -> Result<Self, SecretError> {
        if bytes.len() > MAX_SECRET_BYTES {
            return Err(SecretError::Format(format!(
                "expected a secret of at most {MAX_SECRET_BYTES} bytes, got {}",
                bytes.len()
            )));
        }
        let secret: Self = serde_json::from_slice(bytes)
            .map_err(|error| SecretError::Format(error.to_string()))?;
        if secret.enc.len() != ENCAPSULATED_BYTES || secret.ciphertext.len() <= TAG_BYTES {
            return Err(SecretError::Format("the sealed value is cut off".into()));
        }
        secret
            .place
            .flaw()
            .map_or(Ok(secret), |flaw| Err(SecretError::Format(flaw)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> Result<SecretValue, SecretError> {
        SecretValue::parse(Zeroizing::new(bytes.to_vec()))
    }

    #[test]
    fn values_with_line_breaks_or_nul_are_refused_without_showing_them() {
        for (bytes, what) in [
            (&b"ab\rsecret"[..], "CR"),
            (b"ab\nsecret", "LF"),
            (b"ab\0secret", "NUL"),
        ] {
            let error = value(bytes).unwrap_err();
            assert_eq!(error, SecretError::ValueByte { what, at: 2 });
            assert!(!error.to_string().contains("secret"));
        }
        assert_eq!(value(b"").unwrap_err(), SecretError::ValueLength(0));
        assert_eq!(
            value(&[b'x'; MAX_VALUE_BYTES + 1]).unwrap_err(),
            SecretError::ValueLength(MAX_VALUE_BYTES + 1)
        );
    }

    #[test]
    fn an_editors_line_break_is_not_the_secrets() {
        assert_eq!(value(b"key\n").unwrap().expose_secret(), b"key");
        assert_eq!(value(b"key\r\n").unwrap().expose_secret(), b"key");
        assert!(!format!("{:?}", value(b"hunter2").unwrap()).contains("hunter2"));
    }
}
