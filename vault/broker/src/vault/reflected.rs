//! The counts of complete matches: in memory for calls, and on the disk, so that they outlive the
//! process. A function that can crash the vault gains no guesses by it.

use std::sync::Arc;

use casemate_trust::id::TenantId;
use casemate_trust::name::{Identifier, Name};
use casemate_vault_core::reflection::{Counted, Recorded, Reflections};
use casemate_vault_store::{Kind, Room, SetAside, Store, StoreError, Write};
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::clock;

/// Most stopped credentials in a description.
const MAX_DESCRIBED_STOPPED: usize = 100;

/// Complete matches of secrets in answers, which calls count.
#[derive(Debug)]
pub(crate) struct Reflected {
    counts: Mutex<Reflections>,
    store: Arc<Store>,
    boot_id: String,
    /// Held while a tenant's record is written, so that an older record never replaces a newer one.
    writing: tokio::sync::Mutex<()>,
}

/// The owner of a secret that an answer held.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) tenant: TenantId,
    pub(crate) function: Name,
    pub(crate) secret: Identifier,
}

/// Matches that are counted in memory. A task of its own writes them, so that a function that
/// abandons the call undoes nothing.
#[derive(Debug)]
pub(crate) struct Recording {
    recorded: Recorded,
    writing: Option<JoinHandle<bool>>,
}

impl Recording {
    /// Waits until the count is on the disk. A count that cannot be written stops the credential.
    pub(crate) async fn written(self) -> Recorded {
        let Some(writing) = self.writing else {
            return self.recorded;
        };
        match writing.await {
            Ok(true) => self.recorded,
            Ok(false) | Err(_) => Recorded::Stops,
        }
    }
}

/// The stored form of a tenant's counts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCounts {
    /// The boot whose clock the times use.
    boot_id: String,
    counts: Vec<StoredCount>,
    /// When all of the tenant's credentials were stopped because an earlier record could not be
    /// read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unread_since_ms: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCount {
    function: Name,
    secret: Identifier,
    matches: u32,
    since_ms: u64,
}

impl Reflected {
    /// Reads the counts of an earlier run. Times of an earlier boot's clock cannot be compared, so
    /// those matches count for another hour from now.
    pub(super) fn open(
        store: Arc<Store>,
        boot_id: String,
        aside: &mut SetAside,
    ) -> Result<Self, StoreError> {
        let records = store.all(Kind::Reflections, aside)?;
        let not_opened = aside.single.iter();
        let not_opened = not_opened.filter(|record| record.kind == Kind::Reflections);
        let reflected = Self {
            counts: Mutex::default(),
            store,
            boot_id,
            writing: tokio::sync::Mutex::default(),
        };
        let mut writes = Vec::new();
        let opened = records.iter().map(|(name, bytes)| (name, Some(bytes)));
        for (name, bytes) in opened.chain(not_opened.map(|record| (&record.name, None))) {
            let Ok(tenant) = name.parse::<TenantId>() else {
                continue;
            };
            let bytes = bytes.map(|bytes| bytes.as_slice());
            writes.extend(reflected.restore(tenant, bytes));
        }
        // Without it, matches of an earlier boot count for an hour from the next start too.
        if !writes.is_empty()
            && let Err(error) =
                reflected
                    .store
                    .commit(&writes, None, Room::Free, &mut clock::random)
        {
            tracing::warn!(
                %error,
                "counts of credentials in answers could not be brought up to date; the next start tries again"
            );
        }
        Ok(reflected)
    }

    /// Restores a tenant's record, `None` if it did not open; returns the record to write in its
    /// place. The credentials of a tenant whose record cannot be read are stopped.
    fn restore(&self, tenant: TenantId, bytes: Option<&[u8]>) -> Option<Write> {
        let now_ms = clock::boot_ms();
        let stored = bytes
            .ok_or_else(|| "the record does not open".to_owned())
            .and_then(|bytes| {
                serde_json::from_slice::<StoredCounts>(bytes).map_err(|error| error.to_string())
            });
        let mut counts = self.lock();
        let is_current = match stored {
            Ok(stored) => {
                let is_of_this_boot = !self.boot_id.is_empty() && stored.boot_id == self.boot_id;
                let since_ms = |since_ms| if is_of_this_boot { since_ms } else { now_ms };
                if let Some(unread_since_ms) = stored.unread_since_ms {
                    counts.stop_tenant(tenant, since_ms(unread_since_ms));
                }
                let counted = stored.counts.into_iter().map(|count| Counted {
                    function: count.function,
                    secret: count.secret,
                    matches: count.matches,
                    since_ms: since_ms(count.since_ms),
                });
                counts.restore(tenant, counted.collect(), now_ms);
                is_of_this_boot
            }
            Err(error) => {
                tracing::error!(
                    %tenant, error,
                    "the counts of the tenant's credentials in answers cannot be read; all of them are stopped for an hour"
                );
                counts.stop_tenant(tenant, now_ms);
                false
            }
        };
        let has_ended = counts.counted(&tenant, now_ms).is_empty()
            && counts.tenant_stopped_since(&tenant, now_ms).is_none();
        drop(counts);
        if has_ended {
            return Some(Write::Drop(Kind::Reflections, tenant.to_string()));
        }
        (!is_current).then(|| self.row(&tenant))
    }

    /// Until when a credential is stopped for a function, ms of the boot clock.
    pub(crate) fn stopped_until(
        &self,
        tenant: &TenantId,
        function: &Name,
        secret: &Identifier,
    ) -> Option<u64> {
        self.lock()
            .stopped_until(tenant, function, secret, clock::boot_ms())
    }

    /// Counts complete matches, and begins to write the count.
    pub(crate) fn record(self: &Arc<Self>, owner: Owner, matches: u32) -> Recording {
        let recorded = {
            let Owner {
                tenant,
                function,
                secret,
            } = &owner;
            let now_ms = clock::boot_ms();
            self.lock()
                .record(*tenant, function, secret, matches, now_ms)
        };
        let reflected = self.clone();
        let is_new = recorded != Recorded::IsStopped;
        let writing = is_new.then(|| tokio::spawn(async move { reflected.write(&owner).await }));
        Recording { recorded, writing }
    }

    /// Whether the newest counts of the owner's tenant were written; if not, the credential is
    /// stopped.
    async fn write(self: &Arc<Self>, owner: &Owner) -> bool {
        let _turn = self.writing.lock().await;
        let reflected = self.clone();
        let tenant = owner.tenant;
        let written = tokio::task::spawn_blocking(move || {
            let row = reflected.row(&tenant);
            reflected
                .store
                .commit(&[row], None, Room::Free, &mut clock::random)
        });
        let error = match written.await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let Owner {
            tenant,
            function,
            secret,
        } = owner;
        tracing::error!(
            %tenant, %function, %secret, error,
            "a match of a secret could not be written; the credential is stopped for this function for an hour"
        );
        self.lock()
            .stop(*tenant, function, secret, clock::boot_ms());
        false
    }

    /// The present record of a tenant.
    fn row(&self, tenant: &TenantId) -> Write {
        let now_ms = clock::boot_ms();
        let counts = self.lock();
        let counted = counts.counted(tenant, now_ms);
        let unread_since_ms = counts.tenant_stopped_since(tenant, now_ms);
        drop(counts);
        let stored = StoredCounts {
            boot_id: self.boot_id.clone(),
            counts: counted
                .into_iter()
                .map(|counted| StoredCount {
                    function: counted.function,
                    secret: counted.secret,
                    matches: counted.matches,
                    since_ms: counted.since_ms,
                })
                .collect(),
            unread_since_ms,
        };
        let bytes = serde_json::to_vec(&stored).expect("names and numbers are JSON");
        Write::Put(Kind::Reflections, tenant.to_string(), bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Reflections> {
        self.counts.lock()
    }

    /// For the status page: credentials that are stopped, and for how much longer. A secret that
    /// was withdrawn, or sealed again so that its echoes do not count, stops no call: `counts`
    /// selects the others.
    pub(super) fn describe(
        &self,
        counts: impl Fn(&TenantId, &Identifier) -> bool,
    ) -> serde_json::Value {
        let now_ms = clock::boot_ms();
        let stopped = self.lock().stopped(now_ms);
        let stopping = stopped
            .iter()
            .filter(|stopped| counts(&stopped.tenant, &stopped.secret));
        let listed = stopping.take(MAX_DESCRIBED_STOPPED).map(|stopped| {
            serde_json::json!({
                "tenant": stopped.tenant, "function": stopped.function, "secret": stopped.secret,
                "left_secs": stopped.until_ms.saturating_sub(now_ms).div_ceil(1000),
            })
        });
        listed.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zeroize::Zeroizing;

    use super::*;

    fn store(folder: &Path) -> Arc<Store> {
        let (store, _) = Store::open(folder, &Zeroizing::new([1; 32])).unwrap();
        Arc::new(store)
    }

    fn reflected(store: Arc<Store>, boot_id: &str) -> Arc<Reflected> {
        let opened = Reflected::open(store, boot_id.to_owned(), &mut SetAside::default());
        Arc::new(opened.unwrap())
    }

    fn owner() -> Owner {
        Owner {
            tenant: TenantId([1; 32]),
            function: "web".parse().unwrap(),
            secret: "KEY".parse().unwrap(),
        }
    }

    fn is_stopped(reflected: &Reflected) -> bool {
        let Owner {
            tenant,
            function,
            secret,
        } = owner();
        let until_ms = reflected.stopped_until(&tenant, &function, &secret);
        until_ms.is_some()
    }

    #[tokio::test]
    async fn counts_from_before_a_reboot_still_count() {
        let folder = tempfile::tempdir().unwrap();
        let boots = [
            ("one", Recorded::Counts),
            ("two", Recorded::Counts),
            // The kernel has no boot id.
            ("", Recorded::Stops),
        ];
        for (boot_id, expected) in boots {
            let reflected = reflected(store(folder.path()), boot_id);
            let recorded = reflected.record(owner(), 1).written().await;
            assert_eq!(recorded, expected, "boot {boot_id}");
        }
        for boot_id in ["", "three", "three"] {
            assert!(is_stopped(&reflected(store(folder.path()), boot_id)));
        }
    }

    #[tokio::test]
    async fn a_secret_whose_echoes_no_longer_count_is_not_reported_as_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let reflected = reflected(store(folder.path()), "one");
        let recorded = reflected.record(owner(), 3).written().await;
        assert_eq!(recorded, Recorded::Stops);
        let told = |counts: bool| {
            let listed = reflected.describe(|tenant, secret| {
                assert_eq!((*tenant, secret), (owner().tenant, &owner().secret));
                counts
            });
            listed.as_array().unwrap().len()
        };
        assert_eq!((told(true), told(false)), (1, 0));
    }

    #[test]
    fn counts_that_cannot_be_read_stop_the_tenants_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let name = owner().tenant.to_string();
        let unreadable = Write::Put(Kind::Reflections, name, b"{}".to_vec());
        store
            .commit(&[unreadable], None, Room::Free, &mut clock::random)
            .unwrap();
        for boot_id in ["one", "one", "two"] {
            assert!(is_stopped(&reflected(store.clone(), boot_id)), "{boot_id}");
        }
    }

    #[tokio::test]
    async fn a_record_that_does_not_open_stops_the_tenants_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let counted = reflected(store(folder.path()), "one");
        counted.record(owner(), 1).written().await;
        drop(counted);
        for boot_id in ["one", "one", "two"] {
            let (store, _) = Store::open(folder.path(), &Zeroizing::new([2; 32])).unwrap();
            assert!(
                is_stopped(&reflected(Arc::new(store), boot_id)),
                "{boot_id}"
            );
        }
    }
}
