//! Statements of the fleet's root and of the tenants, each the payload of a DSSE envelope.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::dsse::Envelope;
use crate::freshness::FreshnessDemand;
use crate::host::HostPattern;
use crate::id::{Digest, FleetId, TenantId};
use crate::key::{PublicKey, SealingKey, SigningKey};
use crate::name::{Identifier, Name};
use crate::note::{self, Note};

pub use crate::ceiling::{Ceilings, EgressCeiling, MIN_MEMORY_MIB};

/// Most keys in a key set.
pub const MAX_KEYS: usize = 16;
/// Most host patterns of a tenant.
pub const MAX_TENANT_HOSTS: usize = 256;
/// Most functions in a manifest.
pub const MAX_FUNCTIONS: usize = 1000;
/// Most secrets in a manifest.
pub const MAX_SECRETS: usize = 1000;
/// Most fallback releases of a function.
pub const MAX_FALLBACKS: usize = 8;
/// Most pools of a function or a secret.
pub const MAX_POOLS: usize = 64;
/// Largest version: JSON readers everywhere represent it exactly, and an increment does not
/// overflow.
pub const MAX_VERSION: u64 = (1 << 53) - 1;

/// A payload that can be signed.
pub trait Statement: Serialize + DeserializeOwned {
    /// The payload type in its envelope.
    const TYPE: &'static str;

    /// The inconsistency of the statement, if any.
    fn flaw(&self) -> Option<String>;

    /// Signs the statement.
    fn sign(&self, keys: &[&SigningKey]) -> Envelope {
        Envelope::sign(
            Self::TYPE,
            serde_json::to_vec(self).expect("plain data with text as keys is JSON"),
            keys,
        )
    }

    /// Reads an envelope's statement, unverified: only for finding out which keys to check with.
    ///
    /// # Errors
    /// The type differs, or the payload is not such a statement, or is inconsistent.
    fn read(envelope: &Envelope) -> Result<Self, String> {
        if envelope.payload_type() != Self::TYPE {
            let hint = if is_other_version(Self::TYPE, envelope.payload_type()) {
                OF_NEWER
            } else {
                ""
            };
            return Err(format!(
                "expected {}, got {:?}{hint}",
                Self::TYPE,
                crate::name::excerpt(envelope.payload_type())
            ));
        }
        let statement: Self =
            serde_json::from_slice(envelope.unverified_payload()).map_err(|error| {
                let error = error.to_string();
                let hint = if error.starts_with("unknown ") {
                    OF_NEWER
                } else {
                    ""
                };
                error + hint
            })?;
        statement.flaw().map_or(Ok(statement), Err)
    }
}

/// The hint for statements that a newer program has signed.
const OF_NEWER: &str = "; a newer casemate has signed this: upgrade the program that refuses it";

/// Whether two payload types are versions of the same statement.
fn is_other_version(one: &str, other: &str) -> bool {
    let stem = |payload_type: &str| {
        let (stem, version) = payload_type.strip_suffix("+json")?.rsplit_once(".v")?;
        version.parse::<u32>().ok().map(|_| stem.to_owned())
    };
    stem(one).is_some_and(|one| stem(other) == Some(one))
}

/// The fleet's root keys. Version n + 1 is signed by its own keys and by those of version n; the
/// fleet's id is the digest of the first one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Version; it rises by one.
    pub version: u64,
    /// Root keys.
    pub keys: Vec<PublicKey>,
    /// Number of keys that must sign.
    pub threshold: u32,
    /// When the root was signed.
    pub issued: Seconds,
    /// Until when its statements are accepted.
    pub expires: Seconds,
}

/// The control plane's keys. Signed by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineKey {
    /// The fleet.
    pub fleet: FleetId,
    /// Version; it only rises.
    pub version: u64,
    /// Signs leases.
    pub liveness: PublicKey,
    /// TLS raw public key of the QUIC socket.
    pub quic: PublicKey,
    /// Key of the API's self-signed certificate.
    pub api: PublicKey,
    /// When the statement was signed.
    pub issued: Seconds,
    /// Until when it is accepted.
    pub expires: Seconds,
}

/// A pool of nodes and the key to which its secrets are sealed. Signed by the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pool {
    /// The fleet.
    pub fleet: FleetId,
    /// Name.
    pub name: Name,
    /// The epoch, which rises with each new key.
    pub epoch: u64,
    /// X-Wing public key.
    pub public_key: SealingKey,
    /// When the statement was signed.
    pub issued: Seconds,
    /// Until when secrets of this epoch are sealed and opened.
    pub expires: Seconds,
}

/// A set of keys, and the number of them that must sign.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    /// Keys.
    pub keys: Vec<PublicKey>,
    /// Number of keys that must sign.
    pub threshold: u32,
}

/// A tenant: its keys and its ceilings. Signed by the root, or, if only its keys change, by the
/// threshold of the earlier keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    /// The fleet.
    pub fleet: FleetId,
    /// [`TenantId::derive`] of fleet, name and genesis keys: always checked.
    pub id: TenantId,
    /// Name, for people.
    pub name: Name,
    /// Version; it only rises.
    pub version: u64,
    /// The first keys.
    pub genesis: KeySet,
    /// The present keys.
    #[serde(rename = "keys")]
    pub current: KeySet,
    /// When the root admitted the tenant, the same in each of its statements: of two tenants with
    /// the same host, the one that was admitted first owns it. Statements from before this member
    /// have none and come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admitted: Option<Seconds>,
    /// Hosts that its functions may answer for.
    pub hosts: Vec<HostPattern>,
    /// Ceilings.
    pub ceilings: Ceilings,
    /// Where its functions may call at most; `None`: wherever their releases declare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressCeiling>,
    /// When the statement was signed.
    pub issued: Seconds,
    /// Until when its credentials are used.
    pub expires: Seconds,
}

/// Everything that a tenant wants: only what the newest manifest lists runs or is injected. Signed
/// by the threshold of its keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The fleet.
    pub fleet: FleetId,
    /// The tenant.
    pub tenant: TenantId,
    /// Version of the `Tenant` statement that the signer knew.
    pub tenant_version: u64,
    /// Version; it only rises.
    pub version: u64,
    /// The functions to run.
    pub functions: BTreeMap<Name, Wanted>,
    /// The secrets that may be injected: for each secret and each pool, the digest of the sealed
    /// object.
    pub secrets: BTreeMap<Identifier, BTreeMap<Name, Digest>>,
    /// How long its credentials may be used without a renewal; `None`: until it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<FreshnessDemand>,
    /// Notes on the listed releases.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<Digest, Note>,
    /// When the manifest was signed.
    pub issued: Seconds,
    /// Until when its credentials are used.
    pub expires: Seconds,
}

/// One function of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Digest of the release that runs.
    pub release: Digest,
    /// Releases that traffic may be moved to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallbacks: Vec<Digest>,
    /// Pools that it runs in.
    pub pools: Vec<Name>,
}

impl KeySet {
    /// One key.
    pub fn single(key: PublicKey) -> Self {
        Self {
            keys: vec![key],
            threshold: 1,
        }
    }

    fn flaw(&self) -> Option<String> {
        let distinct: BTreeSet<_> = self.keys.iter().collect();
        if distinct.len() != self.keys.len() {
            return Some("a key appears twice".into());
        }
        if !(1..=MAX_KEYS).contains(&self.keys.len()) {
            return Some(format!(
                "expected 1 to {MAX_KEYS} keys, got {}",
                self.keys.len()
            ));
        }
        let fits = (1..=self.keys.len()).contains(&(self.threshold as usize));
        (!fits).then(|| {
            format!(
                "expected a threshold from 1 to {}, got {}",
                self.keys.len(),
                self.threshold
            )
        })
    }
}

pub(crate) fn version_flaw(version: u64) -> Option<String> {
    (!(1..=MAX_VERSION).contains(&version))
        .then(|| format!("expected a version from 1 to 2^53 - 1, got {version}"))
}

pub(crate) fn span_flaw(issued: Seconds, expires: Seconds) -> Option<String> {
    (expires <= issued).then(|| format!("it expires ({expires}) before it is issued ({issued})"))
}

impl Root {
    /// The keys as a set.
    pub fn key_set(&self) -> KeySet {
        KeySet {
            keys: self.keys.clone(),
            threshold: self.threshold,
        }
    }
}

impl Statement for Root {
    const TYPE: &'static str = "application/vnd.casemate.root.v1+json";

    fn flaw(&self) -> Option<String> {
        version_flaw(self.version)
            .or_else(|| self.key_set().flaw())
            .or_else(|| span_flaw(self.issued, self.expires))
    }
}

impl Statement for OnlineKey {
    const TYPE: &'static str = "application/vnd.casemate.online-key.v1+json";

    fn flaw(&self) -> Option<String> {
        version_flaw(self.version).or_else(|| span_flaw(self.issued, self.expires))
    }
}

impl Statement for Pool {
    const TYPE: &'static str = "application/vnd.casemate.pool.v1+json";

    fn flaw(&self) -> Option<String> {
        version_flaw(self.epoch).or_else(|| span_flaw(self.issued, self.expires))
    }
}

impl Tenant {
    /// The first statement of a tenant, which is admitted at the time of its signature.
    pub fn first(
        fleet: FleetId,
        name: Name,
        keys: KeySet,
        hosts: Vec<HostPattern>,
        issued: Seconds,
        expires: Seconds,
    ) -> Self {
        let id = TenantId::derive(fleet, &name, &keys.keys, keys.threshold);
        Self {
            fleet,
            id,
            name,
            version: 1,
            genesis: keys.clone(),
            current: keys,
            admitted: Some(issued),
            hosts,
            ceilings: Ceilings::default(),
            egress: None,
            issued,
            expires,
        }
    }

    /// Whether `next` differs only in keys and dates: then the tenant may sign it itself.
    pub(crate) fn only_keys_change(&self, next: &Self) -> bool {
        let keys_apart = |tenant: &Self| Self {
            version: 0,
            current: self.current.clone(),
            issued: 0,
            ..tenant.clone()
        };
        keys_apart(self) == keys_apart(next)
    }
}

impl Statement for Tenant {
    const TYPE: &'static str = "application/vnd.casemate.tenant.v1+json";

    fn flaw(&self) -> Option<String> {
        if self.hosts.len() > MAX_TENANT_HOSTS {
            return Some(format!(
                "expected at most {MAX_TENANT_HOSTS} hosts, got {}",
                self.hosts.len()
            ));
        }
        let id = TenantId::derive(
            self.fleet,
            &self.name,
            &self.genesis.keys,
            self.genesis.threshold,
        );
        if id != self.id {
            return Some(format!(
                "fleet, name and first keys make the id {id}, not {}",
                self.id
            ));
        }
        let keys = self.genesis.flaw().or_else(|| self.current.flaw());
        let egress = self.egress.as_ref().and_then(EgressCeiling::flaw);
        keys.or(egress)
            .or_else(|| self.ceilings.flaw())
            .or_else(|| version_flaw(self.version))
            .or_else(|| span_flaw(self.issued, self.expires))
    }
}

impl Statement for Manifest {
    const TYPE: &'static str = "application/vnd.casemate.manifest.v1+json";

    fn flaw(&self) -> Option<String> {
        let counts = [
            ("functions", self.functions.len(), MAX_FUNCTIONS),
            ("secrets", self.secrets.len(), MAX_SECRETS),
            (
                "fallbacks",
                self.functions
                    .values()
                    .map(|wanted| wanted.fallbacks.len())
                    .max()
                    .unwrap_or(0),
                MAX_FALLBACKS,
            ),
            (
                "pools",
                self.functions
                    .values()
                    .map(|wanted| wanted.pools.len())
                    .max()
                    .unwrap_or(0),
                MAX_POOLS,
            ),
            (
                "pools",
                self.secrets.values().map(BTreeMap::len).max().unwrap_or(0),
                MAX_POOLS,
            ),
        ];
        if let Some((what, count, most)) = counts.into_iter().find(|(_, count, most)| count > most)
        {
            return Some(format!("expected at most {most} {what}, got {count}"));
        }
        let freshness = self.freshness.as_ref().and_then(FreshnessDemand::flaw);
        version_flaw(self.version)
            .or_else(|| version_flaw(self.tenant_version))
            .or(freshness)
            .or_else(|| note::flaw(&self.notes))
            .or_else(|| span_flaw(self.issued, self.expires))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(payload_type: &str, payload: &str) -> String {
        let envelope = Envelope::sign(payload_type, payload.as_bytes().to_vec(), &[]);
        Root::read(&envelope).unwrap_err()
    }

    #[test]
    fn what_a_newer_program_has_signed_is_refused_by_that_name() {
        let root = r#"{"version":1,"keys":[],"threshold":1,"issued":1,"expires":2,"later":true}"#;
        let later = refusal(Root::TYPE, root);
        assert!(
            later.contains("`later`") && later.ends_with(OF_NEWER),
            "{later}"
        );
        let version = refusal("application/vnd.casemate.root.v2+json", "{}");
        assert!(
            version.contains(Root::TYPE) && version.ends_with(OF_NEWER),
            "{version}"
        );
        for other in [
            Pool::TYPE,
            "application/vnd.casemate.root.vx+json",
            "root",
            "",
        ] {
            let text = refusal(other, "{}");
            assert!(!text.ends_with(OF_NEWER), "{text}");
        }
        assert!(!refusal(Root::TYPE, "{").ends_with(OF_NEWER));
    }
}
