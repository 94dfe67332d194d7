//! The rollback memory: digests and versions, small enough to outlive the loss of the statements
//! themselves. The memory is a set of rows, and a change names the rows that it replaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::{Digest, FleetId, TenantId};
use crate::image::ImageVersion;
use crate::name::Name;

/// Most epochs of a pool that are remembered, the highest ones: a key that is replaced weekly and
/// is valid for 400 days has 58 at a time.
pub const MAX_EPOCHS_REMEMBERED: usize = 64;

/// A version and its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Version, or epoch.
    pub version: u64,
    /// Digest of the payload.
    pub digest: Digest,
}

/// A tenant's newest statement of freshness. Statements are ordered by the version of the manifest
/// that they name, then by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessSeen {
    /// Version of the manifest.
    pub version: u64,
    /// When the statement was signed.
    pub issued: Seconds,
    /// Digest of the payload.
    pub digest: Digest,
}

/// The newest image of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSeen {
    /// Its version.
    pub version: ImageVersion,
    /// Digest of the file.
    pub digest: Digest,
    /// Digest of the statement's payload. The same image may be signed again, for more pools or a
    /// longer time.
    pub statement: Digest,
}

/// The highest versions of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSeen {
    /// Its `Tenant` statement.
    pub tenant: Seen,
    /// Its manifest.
    pub manifest: Option<Seen>,
    /// Its newest statement of freshness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<FreshnessSeen>,
}

/// The epochs of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSeen {
    /// The newest.
    #[serde(flatten)]
    pub newest: Seen,
    /// Digests of the epochs before it. Earlier programs remembered only the newest.
    #[serde(default)]
    pub older: BTreeMap<u64, Digest>,
}

impl PoolSeen {
    pub(super) fn digest(&self, epoch: u64) -> Option<&Digest> {
        if epoch == self.newest.version {
            Some(&self.newest.digest)
        } else {
            self.older.get(&epoch)
        }
    }

    /// Adds an epoch. The lowest epochs are dropped when there are too many.
    pub(super) fn with(seen: Option<&Self>, epoch: Seen) -> Self {
        let Some(seen) = seen else {
            let older = BTreeMap::new();
            return Self {
                newest: epoch,
                older,
            };
        };
        let mut pool = seen.clone();
        let older = if epoch.version > pool.newest.version {
            std::mem::replace(&mut pool.newest, epoch)
        } else {
            epoch
        };
        pool.older.insert(older.version, older.digest);
        while pool.older.len() >= MAX_EPOCHS_REMEMBERED {
            pool.older.pop_first();
        }
        pool
    }
}

/// The rollback memory. Members of a later program are refused, not dropped, because the next write
/// would lose them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The fleet: digest of the first root.
    pub fleet: FleetId,
    /// The root.
    pub root: Option<Seen>,
    /// The online key.
    pub online: Option<Seen>,
    /// Pools by name.
    pub pools: BTreeMap<Name, PoolSeen>,
    /// Tenants by id.
    pub tenants: BTreeMap<TenantId, TenantSeen>,
    /// The newest image of each pool. Earlier programs had none.
    #[serde(default)]
    pub images: BTreeMap<Name, ImageSeen>,
    /// The list of revoked nodes. Earlier programs had none.
    #[serde(default)]
    pub revocations: Option<Seen>,
    /// The latest time at which the root has signed an accepted statement: the present is not
    /// earlier.
    pub floor: Seconds,
}

/// One row of a [`Memory`] in its stored form. A later row of the same kind and name replaces an
/// earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryRow {
    /// The fleet; the first row of every memory.
    Fleet(FleetId),
    /// The root.
    Root(Seen),
    /// The online key.
    Online(Seen),
    /// The list of revoked nodes.
    Revocations(Seen),
    /// The epochs of a pool.
    Pool(Name, PoolSeen),
    /// The newest image of a pool.
    Image(Name, ImageSeen),
    /// What is remembered of a tenant.
    Tenant(TenantId, TenantSeen),
    /// The latest time at which the root has signed an accepted statement.
    Floor(Seconds),
}

impl Memory {
    /// The memory of a program that knows only a fleet's fingerprint.
    pub fn new(fleet: FleetId) -> Self {
        Self {
            fleet,
            root: None,
            online: None,
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            images: BTreeMap::new(),
            revocations: None,
            floor: 0,
        }
    }

    /// Replaces one row.
    pub fn put(&mut self, row: MemoryRow) {
        match row {
            MemoryRow::Fleet(fleet) => self.fleet = fleet,
            MemoryRow::Root(seen) => self.root = Some(seen),
            MemoryRow::Online(seen) => self.online = Some(seen),
            MemoryRow::Revocations(seen) => self.revocations = Some(seen),
            MemoryRow::Pool(name, seen) => drop(self.pools.insert(name, seen)),
            MemoryRow::Image(pool, seen) => drop(self.images.insert(pool, seen)),
            MemoryRow::Tenant(id, seen) => drop(self.tenants.insert(id, seen)),
            MemoryRow::Floor(floor) => self.floor = floor,
        }
    }

    /// Every row, the fleet first.
    pub fn rows(&self) -> impl Iterator<Item = MemoryRow> {
        let single = [
            Some(MemoryRow::Fleet(self.fleet)),
            self.root.map(MemoryRow::Root),
            self.online.map(MemoryRow::Online),
            self.revocations.map(MemoryRow::Revocations),
            Some(MemoryRow::Floor(self.floor)),
        ];
        let pools = self.pools.iter();
        let images = self.images.iter();
        let tenants = self.tenants.iter();
        single
            .into_iter()
            .flatten()
            .chain(pools.map(|(name, seen)| MemoryRow::Pool(name.clone(), seen.clone())))
            .chain(images.map(|(pool, seen)| MemoryRow::Image(pool.clone(), *seen)))
            .chain(tenants.map(|(id, seen)| MemoryRow::Tenant(*id, *seen)))
    }

    /// The memory with these rows; `None` if the first row is not the fleet.
    pub fn from_rows(rows: impl IntoIterator<Item = MemoryRow>) -> Option<Self> {
        let mut rows = rows.into_iter();
        let MemoryRow::Fleet(fleet) = rows.next()? else {
            return None;
        };
        let mut memory = Self::new(fleet);
        rows.for_each(|row| memory.put(row));
        Some(memory)
    }
}
