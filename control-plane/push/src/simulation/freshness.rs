//! Statements of freshness in the simulated world.

use casemate_trust::Seconds;
use casemate_trust::id::TenantId;

use super::{Vault, World};
use crate::StatementId;

impl World {
    /// The tenant states once more that its newest manifest is the newest.
    pub(super) fn publish_freshness(&mut self, tenant: TenantId) {
        let version = self.highest(&StatementId::Manifest { tenant, version: 0 });
        if version > 0 {
            let id = StatementId::Freshness {
                tenant,
                version,
                issued: self.revision,
            };
            let bytes = id.to_string().into_bytes();
            self.put(id, bytes);
        }
    }

    /// The newest statement of freshness is held, as long as no manifest is newer.
    pub(super) fn drop_superseded_freshness(&mut self, newer: &StatementId) {
        let goes = |held: &StatementId| {
            matches!(held, StatementId::Freshness { .. })
                && held.tenant() == newer.tenant()
                && match newer {
                    StatementId::Freshness { .. } => true,
                    StatementId::Manifest { version, .. } => held.version() < *version,
                    _ => false,
                }
        };
        self.statements.retain(|_, held| !goes(held));
        self.bytes.retain(|held, _| !goes(held));
    }
}

impl Vault {
    pub(super) fn judge_freshness(
        &mut self,
        tenant: &TenantId,
        statement: (u64, Seconds),
    ) -> Result<(), &'static str> {
        let held = self.has.tenants.get_mut(tenant).ok_or("unknown tenant")?;
        let manifest = held.manifest.map_or(0, |(version, _)| version);
        if statement.0 < manifest || held.freshness.is_some_and(|before| statement < before) {
            return Err("lower");
        }
        if held.freshness == Some(statement) {
            return Err("again");
        }
        held.freshness = Some(statement);
        Ok(())
    }

    /// Whether the node has the statement, or needs none.
    pub(super) fn has_freshness(&self, tenant: &TenantId, statement: (u64, Seconds)) -> bool {
        let held = self.has.tenants.get(tenant).and_then(|has| has.manifest);
        // A node without a manifest of the tenant has nothing that could be stale.
        held.is_none_or(|(manifest, _)| {
            self.has.tenants[tenant].freshness >= Some(statement) || manifest > statement.0
        })
    }
}

/// A statement is sent only when no manifest of its tenant waits to be judged.
pub(super) fn assert_in_order(id: &StatementId, unjudged: &[(StatementId, Vec<u8>)]) {
    if matches!(id, StatementId::Freshness { .. }) {
        let waits = |(other, _): &(StatementId, Vec<u8>)| {
            matches!(other, StatementId::Manifest { .. }) && other.tenant() == id.tenant()
        };
        assert!(
            !unjudged.iter().any(waits),
            "{id} came before its manifest was judged"
        );
    }
}
