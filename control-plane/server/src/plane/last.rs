//! A node's last report of itself, and its last answers to the statements that it was sent.

use std::collections::BTreeMap;

use casemate_api::tenant::Refused;
use casemate_push::{Has, LOAD_FAILED_EARLIER, StatementId};
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::now;
use super::stopped::Stopped;

/// Refusals that are kept of a node: the newest of each object.
const MAX_REFUSED: usize = 256;
/// Tenants whose acknowledgements are written when a node disconnects; the next hello contains the
/// rest.
const MAX_WRITTEN_TENANTS: usize = 5000;

/// A manifest that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) version: u64,
    /// Digest of its payload; unknown if a later one had replaced it here before the node answered.
    pub(crate) digest: Option<Digest>,
    /// Time of the node's report.
    pub(crate) at: Seconds,
    /// Whether the node has every bundle that the manifest wants of it.
    #[serde(default)]
    pub(crate) is_stored: bool,
}

/// The last report of a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) node: Name,
    pub(crate) last_seen: Option<Seconds>,
    pub(crate) software: Option<String>,
    pub(crate) synced: Option<u64>,
    /// The newest acknowledged manifest, by tenant.
    pub(crate) manifests: BTreeMap<TenantId, Taken>,
    pub(crate) refused: Vec<(StatementId, Refused)>,
    pub(crate) status: Value,
    /// Credentials that its status listed as stopped.
    #[serde(default)]
    pub(super) stopped: Vec<Stopped>,
    /// When two machines with its key were last seen at the same time.
    #[serde(default)]
    pub(crate) duplicate: Option<Seconds>,
    /// How far the node's clock was ahead of the control plane's at its last report.
    #[serde(default)]
    pub(super) clock_ahead_secs: Option<i64>,
    /// Why the node was not served at its last connection: no common protocol version. It
    /// reconnects within minutes, so that a restart need not remember this.
    #[serde(skip)]
    pub(super) apart: Option<String>,
}

impl Last {
    pub(super) fn new(node: Name) -> Self {
        Self {
            node,
            last_seen: None,
            software: None,
            synced: None,
            manifests: BTreeMap::new(),
            refused: Vec::new(),
            status: Value::Null,
            stopped: Vec::new(),
            duplicate: None,
            clock_ahead_secs: None,
            apart: None,
        }
    }

    pub(super) fn acknowledge(&mut self, id: &StatementId, digest: Option<Digest>) {
        self.refused
            .retain(|(refused, _)| !refused.is_same_thing(id) || refused.version() > id.version());
        if let StatementId::Manifest { tenant, version } = *id {
            let before = self.manifests.get(&tenant);
            let is_same = |before: &&Taken| {
                let are_known = before.digest.zip(digest);
                before.version == version && are_known.is_none_or(|(before, now)| before == now)
            };
            let taken = Taken {
                version,
                digest,
                at: now(),
                // A repeated report contains no new information about its bundles.
                is_stored: before
                    .filter(is_same)
                    .is_some_and(|before| before.is_stored),
            };
            self.manifests.insert(tenant, taken);
        }
    }

    pub(super) fn stored(&mut self, tenant: &TenantId, version: u64) {
        let taken = self.manifests.get_mut(tenant);
        if let Some(taken) = taken.filter(|taken| taken.version == version) {
            let is_first = !std::mem::replace(&mut taken.is_stored, true);
            // The node had accepted the manifest before, and had no space for a bundle. Releases of
            // an earlier manifest that the node cannot load are reported just before; a node that
            // sends this report again has loaded them, or reports them again.
            let tenant = *tenant;
            let stored = StatementId::Manifest { tenant, version };
            let stays = |refused: &Refused| is_first && refused.code == LOAD_FAILED_EARLIER;
            self.refused
                .retain(|(id, refused)| *id != stored || stays(refused));
        }
    }

    /// Records the statements that the node reports to have, for existing tenants. If the node
    /// lists all of them, statements that it does not list are removed.
    pub(super) fn has(&mut self, has: &Has, is_tenant: impl Fn(&TenantId) -> bool) {
        self.refused.retain(|(refused, _)| !is_held(has, refused));
        let mut before = std::mem::take(&mut self.manifests);
        let listed = has
            .tenants
            .iter()
            .filter(|(tenant, _)| is_tenant(tenant))
            .filter_map(|(tenant, has)| Some((*tenant, has.manifest?, has.is_stored)));
        for (tenant, (version, digest), is_stored) in listed {
            match before.remove(&tenant) {
                Some(known) if known.version == version && known.digest == Some(digest) => {
                    self.manifests.insert(tenant, Taken { is_stored, ..known });
                    if is_stored {
                        self.stored(&tenant, version);
                    }
                }
                _ => {
                    self.acknowledge(&StatementId::Manifest { tenant, version }, Some(digest));
                    if is_stored {
                        self.stored(&tenant, version);
                    }
                }
            }
        }
        if has.more_tenants {
            let unlisted = before.into_iter().filter(|(tenant, _)| is_tenant(tenant));
            self.manifests.extend(unlisted);
        }
    }

    /// A statement was refused, or does not run; whether the code is new for it.
    pub(super) fn refuse(&mut self, id: StatementId, refused: Refused) -> bool {
        let is_known =
            |(other, before): &(StatementId, Refused)| *other == id && before.code == refused.code;
        let is_new = !self.refused.iter().any(is_known);
        self.refused.retain(|(other, _)| !other.is_same_thing(&id));
        self.refused.push((id, refused));
        let over = self.refused.len().saturating_sub(MAX_REFUSED);
        self.refused.drain(..over);
        is_new
    }

    /// The report as it is written: small enough for one record.
    pub(super) fn shortened(&self) -> Self {
        let manifests = self.manifests.iter().take(MAX_WRITTEN_TENANTS);
        Self {
            manifests: manifests.map(|(tenant, seen)| (*tenant, *seen)).collect(),
            ..self.clone()
        }
    }
}

/// Whether a node that once refused this statement has it now, or a later one: it tries again by
/// itself after a temporary failure. Manifests are compared with their digests.
fn is_held(has: &Has, refused: &StatementId) -> bool {
    let tenant = |tenant| has.tenants.get(tenant);
    match refused {
        StatementId::Root { version } => has.root >= *version,
        StatementId::OnlineKey { version } => has.online >= *version,
        StatementId::Pool { epoch, .. } => has.epochs.contains(epoch),
        StatementId::Grant { epoch, .. } => has.grants.contains(epoch),
        StatementId::Tenant {
            tenant: id,
            version,
        } => tenant(id).is_some_and(|has| has.version >= *version),
        StatementId::Freshness {
            tenant: id,
            version,
            issued,
        } => tenant(id)
            .and_then(|has| has.freshness)
            .is_some_and(|held| held >= (*version, *issued)),
        StatementId::Image { version, .. } => has.image.is_some_and(|(held, _)| held >= *version),
        StatementId::Revocations { version } => has.revocations >= *version,
        StatementId::Manifest { .. } => false,
    }
}
