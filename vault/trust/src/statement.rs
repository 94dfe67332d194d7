//! Statements of the fleet's root and of the tenants, each the payload of a DSSE envelope.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::encoding::Canonical;
use crate::freshness::FreshnessDemand;
use crate::host::HostPattern;
use crate::id::{Digest, FleetId, TenantId, sha256};
use crate::key::{PublicKey, SealingKey};
use crate::name::{Identifier, Name};
use crate::note::{self, Note};
use crate::payload::{span_flaw, version_flaw};

pub use crate::ceiling::{Ceilings, EgressCeiling, MIN_MEMORY_MIB};
pub use crate::payload::{MAX_VERSION, Statement};

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
/// Most pools of a fleet.
pub const MAX_FLEET_POOLS: usize = 1000;

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
    /// Until when it is accepted.
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

impl TenantId {
    /// Derives the id of the tenant with these first keys. A statement with another id is refused,
    /// so not even the root can put other keys under an existing id.
    pub fn derive(fleet: FleetId, name: &Name, keys: &[PublicKey], threshold: u32) -> Self {
        let mut keys: Vec<_> = keys.iter().map(PublicKey::as_bytes).collect();
        keys.sort_unstable();
        let bytes = Canonical::new("casemate tenant v1")
            .part(&fleet.0)
            .part(name.as_str().as_bytes());
        let bytes = bytes.number(threshold.into()).list(keys.into_iter());
        Self(sha256(&bytes.bytes()))
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
