//! Secrets: a value sealed to a pool, with limits on where it may be sent.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::{Canonical, base64_bytes};
use crate::host::HostName;
use crate::id::{Digest, FleetId, TenantId};
use crate::name::{Identifier, Name};
use crate::path::{Method, PathPattern};
use crate::payload::MAX_VERSION;
use crate::scheme::Scheme;
use crate::seal::{ENCAPSULATED_BYTES, SealError, TAG_BYTES, seal};
use crate::slot::SlotKind;
use crate::statement::Pool;

/// Largest value, bytes.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;
/// Largest secret object, bytes of JSON: value and encapsulated key in base64, and its limits.
pub const MAX_SECRET_BYTES: usize = 160 * 1024;
/// Most hosts, ports, methods, paths, kinds of slot or names in a secret's limits, each.
pub const MAX_LIMITS: usize = 64;
/// Longest name of a slot in a secret's limits, bytes.
const MAX_SLOT_NAME_BYTES: usize = 64;
/// The HPKE info string of a secret.
pub const SECRET_INFO: &[u8] = b"casemate secret v1";

/// Limits on where a secret may be sent. A release's slot can narrow them and never widen them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretLimits {
    /// Hosts; at least one.
    pub hosts: Vec<HostName>,
    /// Ports of each host; an empty list means 443 only.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Methods; an empty list means every method.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Paths; an empty list means every path.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// Kinds of slot; an empty list means every kind.
    #[serde(default)]
    pub slots: Vec<SlotKind>,
    /// Names of the header or query parameter that may hold it (`authorization` for bearer and
    /// basic slots); an empty list means every name.
    #[serde(default)]
    pub names: Vec<String>,
    /// Digest of the certificate authority ([`crate::authority::CaPem::digest`]) that the slot must
    /// name; `None`: the slot must name none, and the node's own authorities are trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Digest>,
    /// What happens when an upstream returns the secret.
    #[serde(default)]
    pub reflection: Reflection,
}

/// What the vault does with a secret that an upstream keeps returning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reflection {
    /// Each match is replaced and counted; after a few matches the credential stops.
    #[default]
    Refuse,
    /// Each match is replaced and never counted, for upstreams that echo by design. The function
    /// can then test guesses of the secret without limit.
    Scrub,
}

impl Reflection {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Scrub => "scrub",
        }
    }
}

impl SecretLimits {
    /// Limits that name hosts and leave everything else at its default.
    pub const fn to_hosts(hosts: Vec<HostName>) -> Self {
        Self {
            hosts,
            ports: Vec::new(),
            methods: Vec::new(),
            paths: Vec::new(),
            slots: Vec::new(),
            names: Vec::new(),
            ca: None,
            reflection: Reflection::Refuse,
        }
    }

    /// Whether the secret may go to this port.
    pub fn allows_port(&self, port: u16) -> bool {
        match self.ports.as_slice() {
            [] => port == Scheme::Https.default_port(),
            ports => ports.contains(&port),
        }
    }

    /// The ports that the secret may be sent to, for people.
    pub fn ports_text(&self) -> String {
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        match ports.is_empty() {
            true => Scheme::Https.default_port().to_string(),
            false => ports.join(", "),
        }
    }
}

/// The place that a sealed value is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretPlace {
    /// The fleet.
    pub fleet: FleetId,
    /// The tenant.
    pub tenant: TenantId,
    /// Name.
    pub name: Identifier,
    /// The secret's own version.
    pub version: u64,
    /// The pool that it is sealed to.
    pub pool: Name,
    /// The pool's key epoch.
    pub epoch: u64,
    /// Where it may be sent.
    pub limits: SecretLimits,
}

/// A sealed secret in transit, named by the digest of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The place that it is bound to.
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
    /// The bytes are not a secret object.
    #[error("{0}")]
    Format(String),
    /// The value is empty or too long.
    #[error("expected a value of 1 to {MAX_VALUE_BYTES} bytes, got {0}")]
    ValueLength(usize),
    /// The value contains a byte that would break a header.
    #[error("the value has {what} at byte {at}: no header can carry that")]
    ValueByte {
        /// The byte.
        what: &'static str,
        /// Its position, counted from 0.
        at: usize,
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// A value in clear, wiped when dropped. It has no `Debug` and no `Clone`.
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// Parses a typed value or a file. One final line break is dropped, because editors add it.
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
    /// The additional data for HPKE: every field, length-prefixed. Both types are destructured by
    /// name, so that a new field cannot be forgotten.
    pub fn aad(&self) -> Vec<u8> {
        let Self {
            fleet,
            tenant,
            name,
            version,
            pool,
            epoch,
            limits,
        } = self;
        let SecretLimits {
            hosts,
            ports,
            methods,
            paths,
            slots,
            names,
            ca,
            reflection,
        } = limits;
        Canonical::new("casemate secret v2")
            .part(&fleet.0)
            .part(&tenant.0)
            .part(name.as_str().as_bytes())
            .number(*version)
            .part(pool.as_str().as_bytes())
            .number(*epoch)
            .list(hosts.iter().map(HostName::as_str))
            .list(ports.iter().map(|port| port.to_be_bytes()))
            .list(methods.iter().map(Method::as_str))
            .list(paths.iter().map(PathPattern::as_str))
            .list(slots.iter().map(|slot| slot.as_str()))
            .list(names.iter())
            .list(ca.iter().map(|digest| digest.0))
            .part(reflection.as_str().as_bytes())
            .bytes()
    }

    /// The inconsistency of the place, if any.
    pub fn flaw(&self) -> Option<String> {
        let SecretLimits {
            hosts,
            ports,
            methods,
            paths,
            slots,
            names,
            ca: _,
            reflection: _,
        } = &self.limits;
        if hosts.is_empty() {
            return Some("a secret names at least one host that it may go to".into());
        }
        let counts = [
            ("hosts", hosts.len()),
            ("ports", ports.len()),
            ("methods", methods.len()),
            ("paths", paths.len()),
            ("kinds of slot", slots.len()),
            ("names", names.len()),
        ];
        if let Some((what, count)) = counts.into_iter().find(|(_, count)| *count > MAX_LIMITS) {
            return Some(format!("expected at most {MAX_LIMITS} {what}, got {count}"));
        }
        if ports.contains(&0) {
            return Some("expected ports from 1 to 65535, got 0".into());
        }
        if let Some(name) = names.iter().find(|name| !is_slot_name(name)) {
            return Some(format!(
                "expected names of headers or query parameters (letters, digits, `-` and `_`, at most \
                 {MAX_SLOT_NAME_BYTES}), got {:?}",
                crate::name::excerpt(name)
            ));
        }
        let versions = 1..=MAX_VERSION;
        let known = versions.contains(&self.version) && versions.contains(&self.epoch);
        (!known).then(|| "expected version and epoch from 1 to 2^53 - 1".into())
    }
}

/// Whether a header or query parameter that a slot can fill may have this name.
fn is_slot_name(name: &str) -> bool {
    (1..=MAX_SLOT_NAME_BYTES).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

impl Secret {
    /// Seals a value to the pool's key.
    ///
    /// # Errors
    /// The place is inconsistent, or sealing failed.
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

    /// The bytes, whose SHA-256 is the secret's name.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data with text as keys is JSON")
    }

    /// Parses bytes from an untrusted sender.
    ///
    /// # Errors
    /// The bytes are too large, not a secret, or inconsistent.
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
    fn limits_that_make_no_sense_are_named() {
        let place = |limits: SecretLimits| SecretPlace {
            fleet: FleetId([1; 32]),
            tenant: TenantId([2; 32]),
            name: "KEY".parse().unwrap(),
            version: 1,
            pool: "main".parse().unwrap(),
            epoch: 1,
            limits,
        };
        let hosts = || SecretLimits::to_hosts(vec!["a.test".parse().unwrap()]);
        assert_eq!(place(hosts()).flaw(), None);
        type Change = fn(&mut SecretLimits);
        let changes: [(Change, &str); 5] = [
            (|limits| limits.hosts.clear(), "at least one host"),
            (|limits| limits.ports = vec![0], "1 to 65535"),
            (|limits| limits.ports = vec![1; 65], "at most 64 ports"),
            (|limits| limits.names = vec!["a b".into()], "got \"a b\""),
            (|limits| limits.names = vec![String::new()], "got \"\""),
        ];
        for (change, flaw) in changes {
            let mut limits = hosts();
            change(&mut limits);
            let found = place(limits).flaw().unwrap();
            assert!(found.contains(flaw), "{found}");
        }
    }

    #[test]
    fn limits_without_the_newer_fields_have_the_narrow_defaults() {
        let limits: SecretLimits = serde_json::from_str(r#"{"hosts":["a.test"]}"#).unwrap();
        assert_eq!(
            limits,
            SecretLimits::to_hosts(vec!["a.test".parse().unwrap()])
        );
        assert!(limits.allows_port(443) && !limits.allows_port(8443));
        assert_eq!(limits.reflection, Reflection::Refuse);
        let unknown = r#"{"hosts":["a.test"],"reflection":"ignore"}"#;
        assert!(serde_json::from_str::<SecretLimits>(unknown).is_err());
    }

    #[test]
    fn an_editors_line_break_is_not_the_secrets() {
        assert_eq!(value(b"key\n").unwrap().expose_secret(), b"key");
        assert_eq!(value(b"key\r\n").unwrap().expose_secret(), b"key");
        assert!(!format!("{:?}", value(b"hunter2").unwrap()).contains("hunter2"));
    }
}
