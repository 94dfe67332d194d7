//! Credential slots: which secret is sent to which host, and in which part of a request.

use serde::{Deserialize, Serialize};

use crate::authority::CaPem;
use crate::host::HostName;
use crate::id::Digest;
use crate::name::Identifier;
use crate::path::{Method, PathPattern};
use crate::secret::SecretLimits;

/// A credential slot: a secret, a host, and a part of the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// Property of `env`.
    pub binding: Identifier,
    /// The secret.
    pub secret: Identifier,
    /// Host; always over TLS.
    pub host: HostName,
    /// Port.
    pub port: u16,
    /// Methods; an empty list means every method.
    #[serde(default)]
    pub methods: Vec<Method>,
    /// Paths; an empty list means every path.
    #[serde(default)]
    pub paths: Vec<PathPattern>,
    /// The part of the request that holds the secret.
    pub slot: Slot,
    /// Whether plain `fetch` to this host, these methods and paths gets it too.
    #[serde(default)]
    pub auto: bool,
    /// PEM of the certificate authority to trust for this host instead of the node's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaPem>,
    /// Whether the function may ask for parts of an answer (`Range`). Parts can be searched for the
    /// secret only one by one, so a function that chooses the parts can cut the secret in two.
    #[serde(default)]
    pub ranges: bool,
}

/// The part of a request that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Slot {
    /// A header, with an optional prefix.
    Header {
        /// Lower-case name.
        name: String,
        /// Text before the secret.
        #[serde(default)]
        prefix: String,
    },
    /// `Authorization: Bearer SECRET` (RFC 6750, section 2.1).
    Bearer,
    /// `Authorization: Basic BASE64(username:SECRET)` (RFC 7617).
    Basic {
        /// The user.
        username: String,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
    },
}

/// The kinds of slot, as a secret's limits name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    /// [`Slot::Header`]
    Header,
    /// [`Slot::Bearer`]
    Bearer,
    /// [`Slot::Basic`]
    Basic,
    /// [`Slot::Query`]
    Query,
}

impl SlotKind {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Query => "query",
        }
    }
}

/// Headers that a slot may not fill, because they frame or route the message.
const NEVER_A_SLOT: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "content-type",
    "content-encoding",
    "cookie2",
    "date",
    "via",
    "forwarded",
    "accept-encoding",
    "range",
    "if-range",
    "cdn-loop",
];

impl Slot {
    /// Its kind.
    pub const fn kind(&self) -> SlotKind {
        match self {
            Self::Header { .. } => SlotKind::Header,
            Self::Bearer => SlotKind::Bearer,
            Self::Basic { .. } => SlotKind::Basic,
            Self::Query { .. } => SlotKind::Query,
        }
    }

    /// The header that it sets, if it sets one.
    pub fn header(&self) -> Option<&str> {
        match self {
            Self::Header { name, .. } => Some(name),
            Self::Bearer | Self::Basic { .. } => Some("authorization"),
            Self::Query { .. } => None,
        }
    }

    /// The name of the header or query parameter that it fills.
    pub fn name(&self) -> &str {
        match self {
            Self::Header { name, .. } | Self::Query { name } => name,
            Self::Bearer | Self::Basic { .. } => "authorization",
        }
    }

    /// The kind of place that it fills, for messages.
    const fn place(&self) -> &'static str {
        match self {
            Self::Query { .. } => "query parameter",
            Self::Header { .. } | Self::Bearer | Self::Basic { .. } => "header",
        }
    }

    /// Whether a name in a secret's limits is this slot's. Header names are case-insensitive, query
    /// parameters are not.
    fn is_named(&self, name: &str) -> bool {
        match self {
            Self::Query { name: own } => own == name,
            _ => self.name().eq_ignore_ascii_case(name),
        }
    }

    fn flaw(&self) -> Option<String> {
        let token = |text: &str| {
            (1..=64).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let visible =
            |text: &str| text.len() <= 256 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        match self {
            Self::Header { name, .. } if !token(name) => Some(format!(
                "expected a header name in lower case, got {:?}",
                crate::name::excerpt(name)
            )),
            Self::Header { name, .. } if NEVER_A_SLOT.contains(&name.as_str()) => {
                Some(format!("the header {name} is no place for a credential"))
            }
            Self::Header { prefix, .. } if !visible(prefix) => {
                Some("expected a prefix of visible ASCII, 256 bytes at most".into())
            }
            Self::Basic { username } if !visible(username) || username.contains(':') => {
                Some("expected a username without `:`".into())
            }
            Self::Query { name } if name.parse::<Identifier>().is_err() => Some(format!(
                "expected a parameter name, got {:?}",
                crate::name::excerpt(name)
            )),
            _ => None,
        }
    }
}

impl Credential {
    pub(crate) fn flaw(&self) -> Option<String> {
        if self.port == 0 {
            return Some("expected a port from 1 to 65535, got 0".into());
        }
        self.slot.flaw()
    }

    /// The limit of the secret that this slot exceeds, if any.
    pub fn widens(&self, limits: &SecretLimits) -> Option<String> {
        // Every limit is named here, so that a new one cannot be forgotten. Reflection concerns
        // answers, and only the secret decides on it: a slot cannot exceed it.
        let SecretLimits {
            hosts,
            ports: _,
            methods,
            paths,
            slots,
            names,
            ca,
            reflection: _,
        } = limits;
        if !hosts.contains(&self.host) {
            return Some(format!("the secret may not go to {}", self.host));
        }
        if !limits.allows_port(self.port) {
            return Some(format!(
                "the secret may not go to port {}, only to {}",
                self.port,
                limits.ports_text()
            ));
        }
        self.widens_methods(methods)
            .or_else(|| self.widens_paths(paths))
            .or_else(|| self.widens_slot(slots, names))
            .or_else(|| self.widens_ca(*ca))
    }

    fn widens_methods(&self, allowed: &[Method]) -> Option<String> {
        if allowed.is_empty() {
            return None;
        }
        if self.methods.is_empty() {
            return Some("the secret is limited to some methods, the slot is not".into());
        }
        let other = self
            .methods
            .iter()
            .find(|method| !allowed.contains(method))?;
        Some(format!("the secret may not go with {other}"))
    }

    fn widens_paths(&self, allowed: &[PathPattern]) -> Option<String> {
        if allowed.is_empty() {
            return None;
        }
        if self.paths.is_empty() {
            return Some("the secret is limited to some paths, the slot is not".into());
        }
        let covered = |path: &PathPattern| allowed.iter().any(|limit| limit.covers(path));
        let other = self.paths.iter().find(|path| !covered(path))?;
        Some(format!("the secret may not go to {other}"))
    }

    fn widens_slot(&self, kinds: &[SlotKind], names: &[String]) -> Option<String> {
        let kind = self.slot.kind();
        if !kinds.is_empty() && !kinds.contains(&kind) {
            return Some(format!(
                "the secret may not go into a {} slot",
                kind.as_str()
            ));
        }
        let named = names.is_empty() || names.iter().any(|name| self.slot.is_named(name));
        (!named).then(|| {
            format!(
                "the secret may not go into the {} {}, only into {}",
                self.slot.place(),
                self.slot.name(),
                names.join(", ")
            )
        })
    }

    fn widens_ca(&self, allowed: Option<Digest>) -> Option<String> {
        match (allowed, self.ca.as_ref().map(CaPem::digest)) {
            (Some(allowed), Some(own)) if allowed == own => None,
            (None, None) => None,
            (Some(_), Some(own)) => Some(format!(
                "the secret may go only to servers of another certificate authority than `ca` (SHA-256 {own})"
            )),
            (Some(allowed), None) => Some(format!(
                "the secret may go only to servers of one certificate authority (SHA-256 {allowed}), and the slot has no `ca`"
            )),
            (None, Some(_)) => Some(
                "the secret may go only to servers that the node's own certificate authorities vouch for, \
                 and the slot has a `ca`"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\n";

    fn slot(slot: Slot) -> Credential {
        Credential {
            binding: "pay".parse().unwrap(),
            secret: "KEY".parse().unwrap(),
            host: "api.test".parse().unwrap(),
            port: 443,
            methods: vec![],
            paths: vec![],
            slot,
            auto: false,
            ca: None,
            ranges: false,
        }
    }

    fn limits() -> SecretLimits {
        SecretLimits::to_hosts(vec!["api.test".parse().unwrap()])
    }

    #[test]
    fn a_secret_goes_to_its_ports_and_to_443_where_none_is_named() {
        let mut credential = slot(Slot::Bearer);
        assert_eq!(credential.widens(&limits()), None);
        credential.port = 8443;
        let refusal = credential.widens(&limits()).unwrap();
        assert_eq!(refusal, "the secret may not go to port 8443, only to 443");
        let mut other = limits();
        other.ports = vec![8443];
        assert_eq!(credential.widens(&other), None);
        credential.port = 443;
        assert!(credential.widens(&other).is_some());
    }

    #[test]
    fn a_secret_goes_into_the_header_or_parameter_that_its_limits_name() {
        let header = |name: &str| {
            slot(Slot::Header {
                name: name.into(),
                prefix: String::new(),
            })
        };
        let query = |name: &str| slot(Slot::Query { name: name.into() });
        let mut limits = limits();
        limits.names = vec!["X-Api-Key".into(), "appid".into()];
        assert_eq!(header("x-api-key").widens(&limits), None);
        assert_eq!(query("appid").widens(&limits), None);
        for other in [header("user-agent"), query("APPID"), slot(Slot::Bearer)] {
            assert!(other.widens(&limits).is_some(), "{other:?}");
        }
        let refusal = header("user-agent").widens(&limits).unwrap();
        assert_eq!(
            refusal,
            "the secret may not go into the header user-agent, only into X-Api-Key, appid"
        );
        limits.names = vec!["authorization".into()];
        assert_eq!(slot(Slot::Bearer).widens(&limits), None);
        assert!(query("authorization").widens(&limits).is_none());
    }

    #[test]
    fn a_secret_goes_to_servers_of_its_own_authority_only() {
        let ca = |text: &str| format!("{PEM}{text}").parse::<CaPem>().unwrap();
        let mut credential = slot(Slot::Bearer);
        let mut pinned = limits();
        pinned.ca = Some(ca("ours").digest());
        assert!(credential.widens(&pinned).is_some(), "no authority");
        credential.ca = Some(ca("theirs"));
        assert!(credential.widens(&pinned).is_some(), "another authority");
        assert!(credential.widens(&limits()).is_some(), "not the node's");
        credential.ca = Some(ca("ours"));
        assert_eq!(credential.widens(&pinned), None);
    }

    #[test]
    fn headers_that_the_vault_sets_itself_are_no_slots() {
        for name in ["cdn-loop", "accept-encoding", "range", "host"] {
            let slot = Slot::Header {
                name: name.into(),
                prefix: String::new(),
            };
            assert!(slot.flaw().is_some(), "{name}");
        }
    }
}
