//! The statements that one node may see.

use casemate_push::{Cursor, StatementId};
use casemate_trust::id::TenantId;
use casemate_trust::name::Name;

use super::held::Held;
use super::image::newest_of;

/// Whether a tenant has no hosts: the operator has removed it. Its manifest is signed by keys that
/// are not the tenant's any more, so a node that joins later would only refuse it.
pub(super) fn is_removed(held: &Held, tenant: &TenantId) -> bool {
    let state = held.judge.as_ref().and_then(|judge| judge.tenant(tenant));
    state.is_some_and(|state| state.tenant.hosts.is_empty())
}

/// The state as one node may see it: made by [`Plane::with_catalog`](super::Plane::with_catalog)
/// for one call of the push protocol, while the state is locked for reading.
pub(crate) struct NodeCatalog<'a> {
    pub(crate) held: &'a Held,
    pub(crate) node: &'a Name,
    pub(crate) pool: &'a Name,
}

impl NodeCatalog<'_> {
    /// Whether the statement is the manifest of a removed tenant.
    fn is_of_nobody(&self, id: &StatementId) -> bool {
        matches!(id, StatementId::Manifest { tenant, .. } if is_removed(self.held, tenant))
    }
}

impl casemate_push::Catalog for NodeCatalog<'_> {
    fn now(&self) -> Cursor {
        Cursor {
            store: self.held.store,
            revision: self.held.index.newest(self.node),
        }
    }

    fn next_after(&self, revision: u64) -> Option<(u64, Vec<StatementId>)> {
        let mut statement = self.held.index.after(revision);
        while let Some((at, id)) = &statement
            && self.is_of_nobody(id)
        {
            statement = self.held.index.after(*at);
        }
        let grants = || {
            self.held
                .index
                .grants(self.node)
                .filter(|(_, at, _)| *at > revision)
        };
        let first = grants().map(|(_, at, _)| at).min();
        match (first, statement) {
            (Some(at), statement) if statement.as_ref().is_none_or(|(other, _)| at < *other) => {
                let grant = |epoch| StatementId::Grant {
                    pool: self.pool.clone(),
                    epoch,
                };
                let together = grants().filter(|(_, other, _)| *other == at);
                Some((at, together.map(|(epoch, _, _)| grant(epoch)).collect()))
            }
            (_, statement) => statement.map(|(at, id)| (at, vec![id])),
        }
    }

    fn tenant_versions(&self, tenant: &TenantId) -> Vec<(u64, u64)> {
        let of = |version| StatementId::Tenant {
            tenant: *tenant,
            version,
        };
        let versions = self.held.index.range(of(0), of(u64::MAX));
        versions
            .map(|(id, revision, _)| (id.version(), revision))
            .collect()
    }

    fn statement(&self, id: &StatementId) -> Option<Vec<u8>> {
        match id {
            StatementId::Grant { epoch, .. } => {
                let mut grants = self.held.index.grants(self.node);
                grants
                    .find(|(of, _, _)| of == epoch)
                    .map(|(_, _, bytes)| bytes.to_vec())
            }
            id => self.held.index.get(id).map(|(_, bytes)| bytes.to_vec()),
        }
    }

    fn image(&self, pool: &Name) -> Option<StatementId> {
        newest_of(self.held, pool)
    }

    fn manifest(&self, tenant: &TenantId) -> Option<(u64, &[u8])> {
        let of = |version| StatementId::Manifest {
            tenant: *tenant,
            version,
        };
        let newest = self.held.index.range(of(0), of(u64::MAX)).next_back();
        let newest = newest.filter(|_| !is_removed(self.held, tenant));
        newest.map(|(_, revision, bytes)| (revision, bytes))
    }
}
