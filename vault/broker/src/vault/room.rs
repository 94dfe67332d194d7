//! Which statements may use the store's reserve, when something else has filled the disk: what takes away, and what the root
//! says. A tenant or a control plane cannot spend the reserve: what it holds for them never grows by such a write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use casemate_trust::dsse::Envelope;
use casemate_trust::id::TenantId;
use casemate_trust::judge::{Accord, Change, Judge, Row, RowKey};
use casemate_vault_store::{Room, Store, StoreError};

use super::record::record;

/// What signatures and base64 add to a payload, bytes: sixteen keys' signatures with their ids, and a third. What is longer
/// was made so by whoever carries it.
const SIGNATURES_BYTES: usize = 8 * 1024;

/// Lengths are compared in these, so that a version of one more digit is no growth; many small steps are.
const BLOCK_BYTES: usize = 256;
/// What one tenant may write of the reserve until it is whole again, bytes: its largest withdrawal, or hundreds of usual ones.
/// What a record replaces stays on the disk until sled cleans up.
const TENANT_BYTES: usize = 2 * 1024 * 1024;
/// What the smallest write takes, bytes.
const WRITE_BYTES: usize = 4 * 1024;

/// What each tenant has written of the reserve since that was whole.
#[derive(Debug, Default)]
pub(super) struct Spending(Mutex<BTreeMap<TenantId, usize>>);

impl Spending {
    /// Room for a change that a statement of so many bytes makes.
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

    /// Room for a manifest: with no object that was not held, and no longer in all than what it replaces and drops, it is a
    /// withdrawal, a rollback or a renewal.
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
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

/// Of a row as it is held.
fn length(store: &Store, key: &RowKey) -> Result<usize, StoreError> {
    let (kind, name) = record(key);
    let held = store.get(kind, &name)?;
    Ok(held.map_or(0, |bytes| bytes.len()))
}
