//! Credential slots: which secret is sent to which host, and in which part of a request.

use serde::{Deserialize, Serialize};

use crate::authority::CaPem;
use crate::host::HostName;
use crate::id::Digest;
use crate::name::Identifier;
use crate::path::{Method, PathPattern};
use crate::secret::SecretLimits;
use crate::slot::{Slot, SlotKind};

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
