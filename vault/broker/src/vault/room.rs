//! Decides which statements may use the store's reserve when another program has filled the disk:
//! those that remove something, and those of the root. A tenant or a control plane cannot use the
//! reserve up, because such a write never increases what the reserve stores for them.

use std::collections::{BTreeMap, BTreeSet};

use casemate_trust::dsse::Envelope;
use casemate_trust::id::TenantId;
use casemate_trust::judge::{Accord, Change, Judge, Row, RowKey};
use casemate_vault_store::{Room, Store, StoreError};
use parking_lot::Mutex;

use super::record::record;

/// Bytes that signatures and base64 add to a payload: sixteen keys' signatures with their ids, and
/// a third. A longer envelope was padded by its carrier.
const SIGNATURES_BYTES: usize = 8 * 1024;

/// Lengths are compared in blocks of this size, so that a version with one more digit does not
/// count as growth; many small steps do.
const BLOCK_BYTES: usize = 256;
/// Bytes of the reserve that one tenant may use until the reserve is whole again: its largest
/// withdrawal, or hundreds of usual ones. A replaced record stays on the disk until sled cleans up.
const TENANT_BYTES: usize = 2 * 1024 * 1024;
/// Bytes that the smallest write takes.
const WRITE_BYTES: usize = 4 * 1024;

/// Bytes of the reserve that each tenant has used since it was whole.
#[derive(Debug, Default)]
pub(super) struct Spending(Mutex<BTreeMap<TenantId, usize>>);

impl Spending {
    /// The class of a change that a statement of so many bytes makes.
    pub(super) fn of_change(
        &self,
        store: &Store,
        judge: &Judge,
        change: &Change,
        (envelope, bytes): (&Envelope, usize),
    ) -> Result<Room, StoreError> {
        let statement = change.rows().iter().find_map(|row| match row {
            Row::Put(key, _) => Some(key),
            Row::Drop(_) => None,
        });
        let tenant = match statement {
            Some(RowKey::Manifest(tenant)) => {
                return self.of_manifest(store, judge, change, (*tenant, bytes));
            }
            Some(RowKey::Tenant(tenant, _) | RowKey::Freshness(tenant)) => Some(*tenant),
            _ => None,
        };
        let by_root = || {
            let root = judge.root();
            root.is_some_and(|root| envelope.verify(&root.keys, root.threshold))
        };
        let plain = envelope.unverified_payload().len() * 2 + SIGNATURES_BYTES;
        if bytes <= plain && (tenant.is_none() || by_root()) {
            return Ok(Room::Root);
        }
        match (tenant, statement) {
            (Some(tenant), Some(key)) => {
                Ok(self.of_tenant(store, tenant, bytes, length(store, key)?))
            }
            _ => Ok(Room::Free),
        }
    }

    /// The class of a manifest: with no object that was not held, and no longer in all than what it
    /// replaces and drops, it is a withdrawal, a rollback or a renewal.
    fn of_manifest(
        &self,
        store: &Store,
        judge: &Judge,
        change: &Change,
        (tenant, bytes): (TenantId, usize),
    ) -> Result<Room, StoreError> {
        let accord = judge
            .tenant(&tenant)
            .and_then(|state| state.manifest.as_ref());
        let held = accord.map_or_else(BTreeSet::new, Accord::objects);
        let mut freed = length(store, &RowKey::Manifest(tenant))?;
        for row in change.rows() {
            match row {
                Row::Put(RowKey::Object(digest), _) if !held.contains(digest) => {
                    return Ok(Room::Free);
                }
                Row::Drop(key @ RowKey::Object(_)) => freed += length(store, key)?,
                _ => {}
            }
        }
        Ok(self.of_tenant(store, tenant, bytes, freed))
    }

    fn of_tenant(&self, store: &Store, tenant: TenantId, bytes: usize, freed: usize) -> Room {
        if bytes.div_ceil(BLOCK_BYTES) > freed.div_ceil(BLOCK_BYTES) {
            return Room::Free;
        }
        let mut spent = self.0.lock();
        let reserve = store.fill_reserve();
        if reserve.held >= reserve.wanted {
            spent.clear();
        }
        let spent = spent.entry(tenant).or_default();
        if *spent + bytes > TENANT_BYTES {
            return Room::Free;
        }
        *spent += bytes.max(WRITE_BYTES);
        Room::Withdrawal
    }
}

/// The length of a row as it is held.
fn length(store: &Store, key: &RowKey) -> Result<usize, StoreError> {
    let (kind, name) = record(key);
    let held = store.get(kind, &name)?;
    Ok(held.map_or(0, |bytes| bytes.len()))
}
