//! The stored bytes of each tenant, and its limit. Nothing is shared between tenants: a bundle that
//! two of them upload is stored twice, so that one tenant's copy can be removed without looking at
//! the others.

use std::collections::BTreeMap;

use casemate_api::error::code;
use casemate_api::limits::MAX_BUNDLE_BYTES;
use casemate_api::tenant::StorageView;
use casemate_control_store::{Redb, StoreError};
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use futures_util::{Stream, StreamExt as _};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Plane, key, now, rows};
use crate::bundles::Bundles;
use crate::fault::Fault;

/// How long an unlisted item stays after its upload, seconds: much longer than a deploy takes from
/// its first upload to its manifest, and short enough that abandoned uploads do not fill a tenant's
/// storage.
pub(super) const GRACE_SECS: Seconds = 60 * 60;

/// A stored item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Item {
    /// A bundle.
    Bundle(Digest),
    /// A release or a sealed secret.
    Object(Digest),
}

/// Size and age of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub(crate) bytes: u64,
    /// Time of the newest upload.
    pub(crate) since: Seconds,
}

#[derive(Debug, Default)]
struct Account {
    kept: BTreeMap<Item, Kept>,
    /// Bytes of the stored items, and of uploads in progress.
    used_bytes: u64,
}

/// Bytes by tenant, owned by the plane: asked before an upload, told after it and after a removal.
/// In memory; read at the start from where the things themselves are.
#[derive(Debug)]
pub(crate) struct Ledger {
    accounts: Mutex<BTreeMap<TenantId, Account>>,
    limit_bytes: u64,
}

impl Ledger {
    /// Reads the existing items.
    pub(crate) async fn load(
        store: &Redb,
        bundles: &Bundles,
        limit_bytes: u64,
    ) -> Result<Self, StoreError> {
        let ledger = Self {
            accounts: Mutex::default(),
            limit_bytes,
        };
        for (entry, kept) in rows::rows(store, key::KEPT).await? {
            if let Some((tenant, digest)) = key::parse_kept(&entry.key) {
                ledger.keep(&tenant, Item::Object(digest), kept);
            }
        }
        let mut found = bundles.list();
        while let Some((tenant, digest, bytes, since)) = found.next().await {
            ledger.keep(&tenant, Item::Bundle(digest), Kept { bytes, since });
        }
        Ok(ledger)
    }

    fn accounts(&self) -> MutexGuard<'_, BTreeMap<TenantId, Account>> {
        self.accounts.lock()
    }

    /// Reserves bytes for an upload. An item that exists already under the same digest has the same
    /// size and needs no more.
    pub(crate) fn reserve(
        &self,
        tenant: &TenantId,
        item: Item,
        bytes: u64,
    ) -> Result<Room<'_>, Fault> {
        let mut accounts = self.accounts();
        let account = accounts.entry(*tenant).or_default();
        let there = account.kept.get(&item).map_or(0, |kept| kept.bytes);
        let bytes = bytes.saturating_sub(there);
        if account.used_bytes.saturating_add(bytes) > self.limit_bytes {
            return Err(quota_exceeded(account.used_bytes, bytes, self.limit_bytes));
        }
        account.used_bytes += bytes;
        Ok(Room {
            ledger: self,
            tenant: *tenant,
            bytes,
        })
    }

    /// Records a stored item.
    pub(crate) fn keep(&self, tenant: &TenantId, item: Item, kept: Kept) {
        let mut accounts = self.accounts();
        let account = accounts.entry(*tenant).or_default();
        let before = account.kept.insert(item, kept);
        account.used_bytes += kept.bytes;
        account.used_bytes -= before.map_or(0, |before| before.bytes);
    }

    /// Records a removed item.
    pub(crate) fn forget(&self, tenant: &TenantId, item: &Item) {
        if let Some(account) = self.accounts().get_mut(tenant)
            && let Some(kept) = account.kept.remove(item)
        {
            account.used_bytes -= kept.bytes;
        }
    }

    pub(crate) fn get(&self, tenant: &TenantId, item: &Item) -> Option<Kept> {
        self.accounts().get(tenant)?.kept.get(item).copied()
    }

    /// The items that were uploaded before `time`.
    pub(crate) fn older(&self, tenant: &TenantId, time: Seconds) -> Vec<(Item, Kept)> {
        let accounts = self.accounts();
        let kept = accounts.get(tenant).into_iter().flat_map(|of| &of.kept);
        kept.filter(|(_, kept)| kept.since < time)
            .map(|(item, kept)| (*item, *kept))
            .collect()
    }

    pub(crate) fn tenants(&self) -> Vec<TenantId> {
        self.accounts().keys().copied().collect()
    }

    pub(crate) fn view(&self, tenant: &TenantId) -> StorageView {
        let used = self.accounts().get(tenant).map(|of| of.used_bytes);
        StorageView {
            used_bytes: used.unwrap_or(0),
            limit_bytes: self.limit_bytes,
        }
    }
}

/// Bytes that are reserved for an upload, released at its end: a stored item is counted on its own.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    ledger: &'a Ledger,
    tenant: TenantId,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if let Some(account) = self.ledger.accounts().get_mut(&self.tenant) {
            account.used_bytes -= self.bytes;
        }
    }
}

fn quota_exceeded(used: u64, asked: u64, limit: u64) -> Fault {
    let message = format!(
        "the tenant's storage is full: {used} of {limit} bytes are used, this needs {asked} more. Earlier releases keep \
         their bundles: `casemate prune FUNCTION` forgets them, `casemate remove FUNCTION` withdraws the function; what no \
         manifest lists is removed {} minutes after its upload. The operator can allow more (`tenant_storage_mib`)",
        GRACE_SECS / 60
    );
    let details = json!({ "used_bytes": used, "asked_bytes": asked, "limit_bytes": limit });
    Fault::new(413, code::QUOTA_EXCEEDED, message).with(details)
}

impl Plane {
    /// Size of a tenant's bundle, if it exists and will still exist when the manifest arrives that
    /// lists it: a bundle that may be removed before that is reported as absent, so that it is
    /// uploaded again.
    pub(crate) async fn bundle_size(
        &self,
        tenant: &TenantId,
        digest: &Digest,
    ) -> Result<Option<u64>, Fault> {
        if self.stays(tenant, &Item::Bundle(*digest)) {
            self.bundles.size(tenant, digest).await
        } else {
            Ok(None)
        }
    }

    /// Whether an item exists that will not be removed soon.
    pub(crate) fn stays(&self, tenant: &TenantId, item: &Item) -> bool {
        let kept = self.ledger.get(tenant, item);
        kept.is_some_and(|kept| {
            now() < kept.since.saturating_add(GRACE_SECS / 2) || self.listed(tenant).contains(item)
        })
    }

    /// Stores a tenant's bundle. An upload without a stated length must have space for the largest
    /// bundle.
    pub(crate) async fn put_bundle(
        &self,
        tenant: &TenantId,
        digest: &Digest,
        declared_bytes: Option<u64>,
        mut body: impl Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
    ) -> Result<(), Fault> {
        // An existing bundle need not be uploaded again; reading the body would only take time.
        if self.bundle_size(tenant, digest).await?.is_some() {
            return Ok(());
        }
        self.reserve().await?;
        let item = Item::Bundle(*digest);
        let asked = declared_bytes.unwrap_or(MAX_BUNDLE_BYTES);
        let room = match self
            .ledger
            .reserve(tenant, item, asked.min(MAX_BUNDLE_BYTES))
        {
            Ok(room) => room,
            Err(fault) => {
                // A client that is still sending when the connection closes may never read the
                // reason.
                let mut read = 0;
                while read <= MAX_BUNDLE_BYTES
                    && let Some(Ok(chunk)) = body.next().await
                {
                    read += chunk.len() as u64;
                }
                return Err(fault);
            }
        };
        let kept = |bytes| {
            let since = now();
            self.ledger.keep(tenant, item, Kept { bytes, since });
        };
        self.bundles.put(tenant, digest, body, kept).await?;
        drop(room);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: TenantId = TenantId([1; 32]);
    const BANK: TenantId = TenantId([2; 32]);

    fn item(number: u8) -> Item {
        Item::Bundle(Digest([number; 32]))
    }

    fn kept(bytes: u64) -> Kept {
        Kept { bytes, since: 10 }
    }

    #[test]
    fn concurrent_uploads_share_the_limit() {
        let ledger = Ledger {
            accounts: Mutex::default(),
            limit_bytes: 100,
        };
        let first = ledger.reserve(&SHOP, item(1), 60).unwrap();
        let refused = ledger.reserve(&SHOP, item(2), 60).unwrap_err();
        assert_eq!((refused.status, refused.code()), (413, "quota_exceeded"));
        assert_eq!(
            refused.body.error.details,
            json!({ "used_bytes": 60, "asked_bytes": 60, "limit_bytes": 100 })
        );
        drop(ledger.reserve(&BANK, item(2), 100).unwrap());
        // The item was shorter than announced.
        ledger.keep(&SHOP, item(1), kept(50));
        drop(first);
        assert_eq!(ledger.view(&SHOP).used_bytes, 50);
        drop(ledger.reserve(&SHOP, item(2), 50).unwrap());
        assert_eq!(ledger.view(&SHOP).used_bytes, 50, "it did not come");
    }

    #[test]
    fn an_item_that_is_uploaded_again_needs_no_more_storage() {
        let ledger = Ledger {
            accounts: Mutex::default(),
            limit_bytes: 100,
        };
        ledger.keep(&SHOP, item(1), kept(100));
        let again = ledger.reserve(&SHOP, item(1), 100).unwrap();
        ledger.keep(
            &SHOP,
            item(1),
            Kept {
                bytes: 100,
                since: 20,
            },
        );
        drop(again);
        assert_eq!(ledger.view(&SHOP).used_bytes, 100);
        assert!(ledger.older(&SHOP, 20).is_empty() && ledger.older(&SHOP, 21).len() == 1);
        ledger.forget(&SHOP, &item(1));
        ledger.forget(&SHOP, &item(1));
        assert_eq!(ledger.view(&SHOP).used_bytes, 0);
    }
}
