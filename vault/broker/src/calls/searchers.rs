//! Searchers, which find the values of a call's answer. Making one for long values takes
//! milliseconds and megabytes, so calls under way share it, and a tenant may have only a few.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use casemate_trust::host::HostName;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::release::Slot;
use casemate_trust::secret::{Secret, SecretValue};
use casemate_vault_core::opening::OpeningError;
use casemate_vault_core::scrub::{Searcher, Watched};
use casemate_wire::CallCode;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refused::Refused;
use super::share::{MAX_WAIT, PerTenant};
use crate::vault::Vault;

/// Values up to so many bytes in all, sealed, give a searcher of some hundred KiB, which is too
/// small to be worth sharing.
const SMALL_BYTES: usize = 128;
/// Searchers of a tenant for longer values, each of up to some six megabytes.
const MAX_LARGE_OF_TENANT: usize = 8;

/// Identifies the values: those of a release for a host, as the tenant's manifest lists them now.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    tenant: TenantId,
    release: Digest,
    host: HostName,
    secrets: Vec<Digest>,
}

impl Key {
    pub(super) fn new(tenant: TenantId, release: Digest, host: HostName) -> Self {
        Self {
            tenant,
            release,
            host,
            secrets: Vec::new(),
        }
    }
}

/// The values to search an answer for, sealed.
pub(super) struct Values {
    key: Key,
    secrets: Vec<(Arc<Secret>, Slot)>,
    /// Number of bytes of all values, sealed.
    bytes: usize,
}

impl Values {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            secrets: Vec::new(),
            bytes: 0,
        }
    }

    pub(super) fn add(&mut self, digest: Digest, secret: Arc<Secret>, slot: Slot) {
        self.bytes += secret.ciphertext.len();
        self.key.secrets.push(digest);
        self.secrets.push((secret, slot));
    }

    /// Makes the searcher for these values, in order; `None` where all of them are too short.
    ///
    /// # Errors
    /// The pool's key was removed since the call began: a value that the call has sent could return
    /// unseen.
    pub(super) fn searcher(&self, vault: &Vault) -> Result<Option<Searcher>, Refused> {
        let mut opened = Vec::new();
        {
            let state = vault.read();
            for ((secret, slot), digest) in self.secrets.iter().zip(&self.key.secrets) {
                let value = match vault.kept.open(digest, secret, &state.pool_keys) {
                    Ok(value) => Some(value),
                    Err(error @ OpeningError::NoKey) => {
                        let code = CallCode::CredentialUnopenable;
                        return Err(Refused::new(code, error.to_string()));
                    }
                    // A secret that this node cannot open was never sent by it.
                    Err(_) => None,
                };
                opened.push((value, slot));
            }
        }
        let watched = opened.iter().map(|(value, slot)| Watched {
            value: value.as_ref().map_or(&[], SecretValue::expose_secret),
            slot,
        });
        Ok(Searcher::new(&watched.collect::<Vec<_>>()))
    }
}

/// A searcher, which exists as long as one of the calls that share it is under way.
pub(super) struct Shared {
    searcher: Arc<Searcher>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Shared {
    fn new(searcher: Searcher, room: Option<OwnedSemaphorePermit>) -> Arc<Self> {
        Arc::new(Self {
            searcher: Arc::new(searcher),
            _room: room,
        })
    }

    pub(super) fn searcher(&self) -> &Arc<Searcher> {
        &self.searcher
    }
}

/// The searchers of calls under way.
pub(super) struct Searchers {
    under_way: Mutex<HashMap<Key, Weak<Shared>>>,
    rooms: PerTenant,
}

impl Default for Searchers {
    fn default() -> Self {
        Self {
            under_way: Mutex::default(),
            rooms: PerTenant::new(MAX_LARGE_OF_TENANT),
        }
    }
}

impl Searchers {
    /// The searcher for these values, made by `make`; `None` where all of them are too short.
    /// `turn`: the tenant's permit for work that takes processor time.
    ///
    /// The error of `make`, or `too_many_calls`: the tenant's calls search for too many long values
    /// at a time.
    pub(super) async fn of(
        &self,
        values: Values,
        turn: &Semaphore,
        make: impl FnOnce(&Values) -> Result<Option<Searcher>, Refused>,
    ) -> Result<Option<Arc<Shared>>, Refused> {
        if values.bytes <= SMALL_BYTES {
            return Ok(make(&values)?.map(|searcher| Shared::new(searcher, None)));
        }
        if let Some(shared) = self.find(&values.key) {
            return Ok(Some(shared));
        }
        let room = self.rooms.of(values.key.tenant).acquire_owned();
        let Ok(Ok(room)) = tokio::time::timeout(MAX_WAIT, room).await else {
            let message = format!(
                "answers of the tenant's calls on this node are searched for {MAX_LARGE_OF_TENANT} \
                 lists of long secrets already: try again later"
            );
            return Err(Refused::new(CallCode::TooManyCalls, message));
        };
        let _turn = turn.acquire().await;
        if let Some(shared) = self.find(&values.key) {
            return Ok(Some(shared));
        }
        // Other tasks of this thread continue on other threads.
        let Some(searcher) = tokio::task::block_in_place(|| make(&values))? else {
            return Ok(None);
        };
        let shared = Shared::new(searcher, Some(room));
        let mut under_way = self.under_way.lock();
        under_way.retain(|_, shared| shared.strong_count() > 0);
        under_way.insert(values.key, Arc::downgrade(&shared));
        Ok(Some(shared))
    }

    fn find(&self, key: &Key) -> Option<Arc<Shared>> {
        let under_way = self.under_way.lock();
        under_way.get(key).and_then(Weak::upgrade)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn values(host: u8, bytes: usize) -> Values {
        let host = format!("h{host}.test").parse().unwrap();
        let key = Key::new(TenantId([1; 32]), Digest([2; 32]), host);
        Values {
            bytes,
            ..Values::new(key)
        }
    }

    fn made(values: &Values) -> Result<Option<Searcher>, Refused> {
        let value = vec![b'a'; values.bytes];
        Ok(Searcher::new(&[Watched {
            value: &value,
            slot: &Slot::Bearer,
        }]))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn calls_that_search_for_the_same_long_values_share_what_finds_them() {
        let (searchers, turn) = (Searchers::default(), Semaphore::new(1));
        let of = async |host, bytes| searchers.of(values(host, bytes), &turn, made).await;
        let [one, other] = [of(1, 5000).await, of(1, 5000).await].map(|one| one.unwrap().unwrap());
        assert!(Arc::ptr_eq(&one, &other));
        let another = of(2, 5000).await.unwrap().unwrap();
        assert!(!Arc::ptr_eq(&one, &another));
        // The searcher is dropped with the last call.
        let key = values(1, 5000).key;
        assert!(searchers.find(&key).is_some());
        drop((one, other));
        assert!(searchers.find(&key).is_none());
        assert!(of(1, 2).await.unwrap().is_none(), "too short");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_tenant_has_room_for_a_few_and_waits_for_more() {
        let (searchers, turn) = (Searchers::default(), Semaphore::new(1));
        let of = async |host, bytes| searchers.of(values(host, bytes), &turn, made).await;
        let mut held = Vec::new();
        for host in 0..MAX_LARGE_OF_TENANT as u8 {
            held.push(of(host, 5000).await.unwrap().unwrap());
        }
        let moment = Duration::from_millis(20);
        assert!(
            tokio::time::timeout(moment, of(100, 5000)).await.is_err(),
            "it waits"
        );
        // An existing searcher is shared, and a small one does not count.
        for (host, bytes) in [(0, 5000), (101, 50)] {
            assert!(of(host, bytes).await.unwrap().is_some());
        }
        held.pop();
        assert!(of(100, 5000).await.unwrap().is_some());
    }
}
