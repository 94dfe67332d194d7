//! The commit protocol. A statement is decided, its change is written, and only then applied:
//!
//! 1. [`Judge::decide`] looks at the state and changes nothing. The answer is a [`Change`] or a
//!    named refusal.
//! 2. [`Change::commit`] passes the rows to the owner (vault, control plane, command line), which
//!    writes them in one transaction. A change that was not written cannot become a [`Committed`].
//! 3. [`Judge::apply`] applies the `Committed` to the state for which it was decided, and to no
//!    other.
//!
//! [`Judge::replay`] rebuilds the same state from the written rows.

use std::sync::Arc;

use super::memory::MemoryRow;
use super::tenant_state::Accord;
use super::{Accepted, Judge};
use crate::dsse::Envelope;
use crate::freshness::Freshness;
use crate::id::{Digest, TenantId};
use crate::image::{Image, ImageVersion};
use crate::name::Name;
use crate::revocation::Revocations;
use crate::statement::{OnlineKey, Pool, Root, Tenant};

/// Identifies a row. An owner that stores only the newest of a kind may map several keys to one
/// place, because dropped rows come before put rows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// A root.
    Root(u64),
    /// The online key.
    OnlineKey,
    /// The list of revoked nodes.
    Revocations,
    /// An epoch of a pool.
    Pool(Name, u64),
    /// An image, by version and by digest of its statement.
    Image(ImageVersion, Digest),
    /// A version of a tenant.
    Tenant(TenantId, u64),
    /// A tenant's manifest.
    Manifest(TenantId),
    /// A tenant's statement of freshness.
    Freshness(TenantId),
    /// A release or a sealed secret that a manifest lists.
    Object(Digest),
}

/// A row to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// Removes a row that is no longer needed.
    Drop(RowKey),
    /// Puts a signed envelope, or an object.
    Put(RowKey, Vec<u8>),
}

/// Identifies a state of a judge.
#[derive(Debug, Clone, Default)]
pub(super) struct Stamp {
    judge: Arc<()>,
    generation: u64,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.judge, &other.judge) && self.generation == other.generation
    }
}

/// A judge's state after a change.
#[derive(Debug)]
pub(super) enum Held {
    Root(Root),
    OnlineKey(OnlineKey),
    Revocations(Revocations),
    Pool(Pool),
    Image(Vec<Name>, Image),
    Tenant(Box<Tenant>),
    Manifest(Box<Accord>),
    Freshness(Freshness),
}

/// The change that accepting a statement makes to one state of one judge.
#[derive(Debug)]
#[must_use = "a change that is not committed and applied is a statement that was not accepted"]
pub struct Change {
    pub(super) stamp: Stamp,
    pub(super) accepted: Accepted,
    pub(super) rows: Vec<Row>,
    pub(super) memory: Vec<MemoryRow>,
    pub(super) affected: Vec<TenantId>,
    pub(super) held: Option<Held>,
}

/// A change that its owner has written.
#[derive(Debug)]
#[must_use = "a change that was written has to be applied"]
pub struct Committed(Change);

impl Change {
    /// The meaning of accepting the statement.
    pub fn accepted(&self) -> Accepted {
        self.accepted
    }

    /// Whether the statement is held already, so that there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// The rows of the statement and of the objects that it lists, dropped rows first. An owner
    /// that stores objects on arrival skips their rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// The replaced rows of the memory: at most one of each tenant.
    pub fn memory(&self) -> &[MemoryRow] {
        &self.memory
    }

    /// Tenants that the change may affect: the statement's own first, then those whose hosts it
    /// takes or returns.
    pub fn affected(&self) -> &[TenantId] {
        &self.affected
    }

    /// The list of revoked nodes, if this is one.
    pub fn revocations(&self) -> Option<&Revocations> {
        match &self.held {
            Some(Held::Revocations(list)) => Some(list),
            _ => None,
        }
    }

    /// The image, if this is one.
    pub fn image(&self) -> Option<&Image> {
        match &self.held {
            Some(Held::Image(_, image)) => Some(image),
            _ => None,
        }
    }

    /// Writes the change: `write` returns when all rows are on the disk, or none.
    ///
    /// # Errors
    /// The errors of `write`; the change is dropped.
    pub fn commit<T, E>(
        self,
        write: impl FnOnce(&Self) -> Result<T, E>,
    ) -> Result<(Committed, T), E> {
        let written = write(&self)?;
        Ok((Committed(self), written))
    }

    /// Writes the change with a future, which gets the rows.
    ///
    /// # Errors
    /// The errors of `write`; the change is dropped.
    pub async fn commit_with<T, E>(
        self,
        write: impl Future<Output = Result<T, E>>,
    ) -> Result<(Committed, T), E> {
        let written = write.await?;
        Ok((Committed(self), written))
    }
}

impl Judge {
    /// Makes a change that puts a statement.
    pub(super) fn put(
        &self,
        accepted: Accepted,
        (key, envelope): (RowKey, &Envelope),
        held: Held,
        memory: Vec<MemoryRow>,
    ) -> Change {
        Change {
            stamp: self.stamp.clone(),
            accepted,
            rows: vec![Row::Put(key, envelope.to_bytes())],
            memory,
            affected: Vec::new(),
            held: Some(held),
        }
    }

    /// Makes the change for a statement that is held already.
    pub(super) fn unchanged(&self) -> Change {
        Change {
            stamp: self.stamp.clone(),
            accepted: Accepted::Held,
            rows: Vec::new(),
            memory: Vec::new(),
            affected: Vec::new(),
            held: None,
        }
    }

    /// Applies a written change. This costs no signature, no copy of other tenants, and no disk
    /// access.
    ///
    /// # Panics
    /// The change was decided for another judge, or for an earlier state of this one: the disk then
    /// differs from what this judge would have written.
    pub fn apply(&mut self, committed: Committed) {
        let Committed(change) = committed;
        assert!(
            change.stamp == self.stamp,
            "expected a change of this judge's present state"
        );
        self.install(change);
    }

    pub(super) fn install(&mut self, change: Change) {
        let Some(held) = change.held else { return };
        for row in change.memory {
            self.memory.put(row);
        }
        match held {
            Held::Root(root) => self.root = Some(root),
            Held::OnlineKey(online) => self.online = Some(online),
            Held::Revocations(list) => self.revocations = Some(list),
            Held::Pool(pool) => {
                self.pools.insert((pool.name.clone(), pool.epoch), pool);
            }
            Held::Image(pools, image) => {
                let pools = pools.into_iter().map(|pool| (pool, image.clone()));
                self.images.extend(pools);
            }
            Held::Tenant(tenant) => self.hold_tenant(*tenant),
            Held::Manifest(accord) => self.hold_manifest(*accord),
            Held::Freshness(statement) => {
                if let Some(state) = self.tenants.get_mut(&statement.tenant) {
                    state.freshness = Some(statement);
                }
            }
        }
        self.stamp.generation += 1;
    }
}
