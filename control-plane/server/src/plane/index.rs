//! The statements and grants in memory, by revision and by name.

use std::collections::BTreeMap;

use casemate_push::StatementId;
use casemate_trust::name::Name;

/// Statements by revision and by name, and grants by node: the part of [`Held`](super::held::Held)
/// from which nodes are sent what they lack. Changed after each write.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) by_revision: BTreeMap<u64, StatementId>,
    pub(super) held: BTreeMap<StatementId, (u64, Vec<u8>)>,
    grants: BTreeMap<Name, BTreeMap<u64, (u64, Vec<u8>)>>,
}

impl Index {
    /// Adds a statement. An older online key, list of revoked nodes or manifest is removed; an
    /// envelope that was signed again replaces the earlier one.
    pub(crate) fn insert(&mut self, revision: u64, id: StatementId, bytes: Vec<u8>) {
        self.drop_freshness(&id);
        let lone = match &id {
            StatementId::OnlineKey { .. } => Some(
                StatementId::OnlineKey { version: 0 }..=StatementId::OnlineKey {
                    version: u64::MAX,
                },
            ),
            StatementId::Revocations { .. } => Some(
                StatementId::Revocations { version: 0 }..=StatementId::Revocations {
                    version: u64::MAX,
                },
            ),
            StatementId::Manifest { tenant, .. } => {
                let of = |version| StatementId::Manifest {
                    tenant: *tenant,
                    version,
                };
                Some(of(0)..=of(u64::MAX))
            }
            _ => None,
        };
        let replaced: Vec<_> = match lone {
            Some(range) => self.held.range(range).map(|(id, _)| id.clone()).collect(),
            None => self
                .held
                .contains_key(&id)
                .then(|| id.clone())
                .into_iter()
                .collect(),
        };
        replaced.iter().for_each(|id| self.remove(id));
        self.by_revision.insert(revision, id.clone());
        self.held.insert(id, (revision, bytes));
    }

    pub(super) fn remove(&mut self, id: &StatementId) {
        if let Some((revision, _)) = self.held.remove(id) {
            self.by_revision.remove(&revision);
        }
    }

    pub(crate) fn insert_grant(&mut self, node: Name, epoch: u64, revision: u64, bytes: Vec<u8>) {
        self.grants
            .entry(node)
            .or_default()
            .insert(epoch, (revision, bytes));
    }

    pub(crate) fn remove_grants(&mut self, node: &Name) {
        self.grants.remove(node);
    }

    pub(crate) fn grants(&self, node: &Name) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let grants = self.grants.get(node).into_iter().flatten();
        grants.map(|(epoch, (revision, bytes))| (*epoch, *revision, bytes.as_slice()))
    }

    pub(crate) fn get(&self, id: &StatementId) -> Option<(u64, &[u8])> {
        self.held
            .get(id)
            .map(|(revision, bytes)| (*revision, bytes.as_slice()))
    }

    /// The statements between two ids, in the order of their kind, name and version.
    pub(crate) fn range(
        &self,
        from: StatementId,
        to: StatementId,
    ) -> impl DoubleEndedIterator<Item = (&StatementId, u64, &[u8])> {
        self.held
            .range(from..=to)
            .map(|(id, (revision, bytes))| (id, *revision, bytes.as_slice()))
    }

    pub(crate) fn after(&self, revision: u64) -> Option<(u64, StatementId)> {
        self.by_revision
            .range(revision + 1..)
            .next()
            .map(|(revision, id)| (*revision, id.clone()))
    }

    /// Revision of the newest statement or grant of a node.
    pub(crate) fn newest(&self, node: &Name) -> u64 {
        let statement = self
            .by_revision
            .last_key_value()
            .map_or(0, |(revision, _)| *revision);
        let grant = self.grants(node).map(|(_, revision, _)| revision).max();
        statement.max(grant.unwrap_or(0))
    }
}
