//! Bundles by tenant and digest, in an object store: a folder with a subfolder for each tenant.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};

use casemate_api::error::code;
use casemate_api::limits::MAX_BUNDLE_BYTES;
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{RwLock, RwLockWriteGuard, Semaphore};

use crate::fault::Fault;

/// Uploads at a time; others wait. Each needs a few chunks of memory and a temporary file.
const MAX_UPLOADS: usize = 16;
/// Uploads of one tenant at a time: a tenant with slow uploads delays only its own.
const MAX_UPLOADS_OF_TENANT: usize = 4;
/// Bytes of one part: the upload is written as it comes.
const PART_BYTES: usize = 256 * 1024;

/// The bundles of all tenants; clones share one store. Owned by the plane, which has checked that a
/// tenant may have what it asks for.
#[derive(Debug, Clone)]
pub(crate) struct Bundles {
    store: Arc<dyn ObjectStore>,
    uploads: Arc<Semaphore>,
    /// Each tenant's share of the uploads, while it is used or awaited.
    shares: Arc<Mutex<HashMap<TenantId, Weak<Semaphore>>>>,
    /// Uploads take it for reading, removals for writing: a removal that was decided earlier cannot
    /// remove a bundle that was stored just now.
    moving: Arc<RwLock<()>>,
}

impl Bundles {
    /// Opens the existing folder and removes what a killed upload has left.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        for tenant in std::fs::read_dir(folder)? {
            let tenant = tenant?;
            if !tenant.file_type()?.is_dir() {
                continue;
            }
            for entry in std::fs::read_dir(tenant.path())? {
                let entry = entry?;
                // The object store writes to `NAME#NUMBER` and renames.
                if entry.file_name().to_string_lossy().contains('#') {
                    std::fs::remove_file(entry.path())?;
                }
            }
        }
        let store = LocalFileSystem::new_with_prefix(folder).map_err(io::Error::other)?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            uploads: Arc::new(Semaphore::new(MAX_UPLOADS)),
            shares: Arc::default(),
            moving: Arc::default(),
        })
    }

    /// Every bundle: tenant, digest, size in bytes and Unix time of its upload. A file that cannot
    /// be read is logged.
    pub(crate) fn list(&self) -> BoxStream<'static, (TenantId, Digest, u64, Seconds)> {
        let listed = self.store.list(None).filter_map(async |found| {
            let found = found.inspect_err(|error| drop(fault(error))).ok()?;
            let (tenant, digest) = found.location.as_ref().split_once('/')?;
            let since = Seconds::try_from(found.last_modified.timestamp()).unwrap_or(0);
            Some((
                tenant.parse().ok()?,
                digest.parse().ok()?,
                found.size,
                since,
            ))
        });
        listed.boxed()
    }

    /// Size of a bundle, if it exists.
    pub(crate) async fn size(
        &self,
        tenant: &TenantId,
        digest: &Digest,
    ) -> Result<Option<u64>, Fault> {
        match self.store.head(&name(tenant, digest)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    fn share(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let shares = &mut *self.shares.lock();
        if let Some(share) = shares.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(MAX_UPLOADS_OF_TENANT));
        shares.insert(*tenant, Arc::downgrade(&share));
        share
    }

    /// Stores the content of `body`, if its digest is `digest`. It is complete and synced when
    /// `kept` receives its size.
    pub(crate) async fn put(
        &self,
        tenant: &TenantId,
        digest: &Digest,
        mut body: impl futures_util::Stream<Item = Result<bytes::Bytes, Fault>> + Unpin,
        kept: impl FnOnce(u64),
    ) -> Result<(), Fault> {
        let closed = |_| Fault::storage_failed();
        // The tenant's own share comes first: a request that waits for it delays no other tenant.
        let share = self.share(tenant);
        let _own = share.acquire().await.map_err(closed)?;
        let _permit = self.uploads.acquire().await.map_err(closed)?;
        let mut upload = self
            .store
            .put_multipart(&name(tenant, digest))
            .await
            .map_err(|error| fault(&error))?;
        let (mut hash, mut total) = (ring::digest::Context::new(&ring::digest::SHA256), 0);
        let mut part = Vec::new();
        let received = async {
            while let Some(chunk) = body.next().await {
                let chunk = chunk?;
                total += chunk.len() as u64;
                if total > MAX_BUNDLE_BYTES {
                    let message = format!("expected a bundle of at most {MAX_BUNDLE_BYTES} bytes");
                    let details = json!({ "limit_bytes": MAX_BUNDLE_BYTES });
                    return Err(Fault::new(413, code::TOO_LARGE, message).with(details));
                }
                hash.update(&chunk);
                part.extend_from_slice(&chunk);
                if part.len() >= PART_BYTES {
                    let full = std::mem::take(&mut part);
                    upload
                        .put_part(full.into())
                        .await
                        .map_err(|error| fault(&error))?;
                }
            }
            let found = hash.finish();
            if found.as_ref() != digest.0 {
                let found = hex::encode(found);
                let message = format!("the bundle's digest is {found}, not {digest}");
                return Err(Fault::new(422, code::DIGEST_MISMATCH, message)
                    .with(json!({ "digest": found })));
            }
            upload
                .put_part(part.into())
                .await
                .map_err(|error| fault(&error))?;
            let _moving = self.moving.read().await;
            upload.complete().await.map_err(|error| fault(&error))?;
            kept(total);
            Ok(())
        };
        match received.await {
            Ok(()) => Ok(()),
            Err(refused) => {
                // The temporary file; one that cannot be removed now is removed at the next start.
                upload.abort().await.ok();
                Err(refused)
            }
        }
    }

    /// Begins a removal.
    pub(crate) async fn begin_removal(&self) -> Removal<'_> {
        Removal {
            bundles: self,
            _moving: self.moving.write().await,
        }
    }

    /// Size of a bundle and its bytes from `offset` on.
    pub(crate) async fn get(
        &self,
        tenant: &TenantId,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<(u64, BoxStream<'static, Result<bytes::Bytes, Error>>)>, Fault> {
        let Some(total) = self
            .size(tenant, digest)
            .await?
            .filter(|total| offset <= *total)
        else {
            return Ok(None);
        };
        if offset == total {
            return Ok(Some((total, futures_util::stream::empty().boxed())));
        }
        let options = GetOptions {
            range: Some(GetRange::Offset(offset)),
            ..GetOptions::default()
        };
        match self.store.get_opts(&name(tenant, digest), options).await {
            Ok(found) => Ok(Some((total, found.into_stream()))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }
}

/// While this is held, no upload is completed.
pub(crate) struct Removal<'a> {
    bundles: &'a Bundles,
    _moving: RwLockWriteGuard<'a, ()>,
}

impl Removal<'_> {
    /// Removes a bundle. A request that is reading it can read it to its end.
    pub(crate) async fn remove(&self, tenant: &TenantId, digest: &Digest) -> Result<(), Fault> {
        match self.bundles.store.delete(&name(tenant, digest)).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault(&error)),
        }
    }
}

fn name(tenant: &TenantId, digest: &Digest) -> ObjectPath {
    ObjectPath::from_iter([tenant.to_string(), digest.to_string()])
}

fn fault(error: &Error) -> Fault {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "the bundle store failed"
    );
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        let io = inner.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(
            io,
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        ) {
            return Fault::storage_full();
        }
        source = inner.source();
    }
    Fault::storage_failed()
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const SHOP: TenantId = TenantId([1; 32]);
    const BANK: TenantId = TenantId([2; 32]);

    fn unkept(_: u64) {
        panic!("a refused bundle is not kept");
    }

    fn body(
        chunks: &[&'static [u8]],
    ) -> impl futures_util::Stream<Item = Result<bytes::Bytes, Fault>> + Unpin + use<> {
        stream::iter(
            chunks
                .iter()
                .map(|chunk| Ok(bytes::Bytes::from_static(chunk)))
                .collect::<Vec<_>>(),
        )
    }

    #[tokio::test]
    async fn a_bundle_is_stored_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(folder.path()).unwrap();
        let digest = Digest::of(b"hello world");
        let refused = bundles
            .put(&SHOP, &digest, body(&[b"hello ", b"word"]), unkept)
            .await
            .unwrap_err();
        assert_eq!(refused.code(), code::DIGEST_MISMATCH);
        let cut = stream::iter([
            Ok(bytes::Bytes::from_static(b"hello ")),
            Err(Fault::bad_request("cut")),
        ]);
        assert!(bundles.put(&SHOP, &digest, cut, unkept).await.is_err());
        assert_eq!(bundles.size(&SHOP, &digest).await.unwrap(), None);
        assert_eq!(
            std::fs::read_dir(folder.path().join(SHOP.to_string()))
                .unwrap()
                .count(),
            0,
            "nothing is left behind"
        );
        for _ in 0..2 {
            let mut size = 0;
            bundles
                .put(&SHOP, &digest, body(&[b"hello ", b"world"]), |bytes| {
                    size = bytes;
                })
                .await
                .unwrap();
            assert_eq!(size, 11);
        }
        let (total, rest) = bundles.get(&SHOP, &digest, 6).await.unwrap().unwrap();
        let rest: Vec<_> = rest.map(Result::unwrap).collect().await;
        assert_eq!((total, rest.concat()), (11, b"world".to_vec()));
        assert!(bundles.get(&SHOP, &digest, 12).await.unwrap().is_none());
        assert_eq!(
            bundles
                .get(&SHOP, &digest, 11)
                .await
                .unwrap()
                .unwrap()
                .1
                .count()
                .await,
            0
        );
    }

    #[tokio::test]
    async fn removing_one_tenants_bundle_keeps_the_other_tenants() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(folder.path()).unwrap();
        let digest = Digest::of(b"shared");
        for tenant in [SHOP, BANK] {
            let put = bundles.put(&tenant, &digest, body(&[b"shared"]), |_| {});
            put.await.unwrap();
        }
        let read = bundles.get(&SHOP, &digest, 0).await.unwrap().unwrap().1;
        let removal = bundles.begin_removal().await;
        // Removing a bundle that is gone is not an error: a crash may have come after the first
        // removal.
        for _ in 0..2 {
            removal.remove(&SHOP, &digest).await.unwrap();
        }
        drop(removal);
        assert_eq!(bundles.size(&SHOP, &digest).await.unwrap(), None);
        assert_eq!(bundles.size(&BANK, &digest).await.unwrap(), Some(6));
        let read: Vec<_> = read.map(Result::unwrap).collect().await;
        assert_eq!(
            read.concat(),
            b"shared",
            "a request that was reading it continues"
        );
        let listed: Vec<_> = bundles.list().collect().await;
        let (tenant, listed, bytes, since) = listed[0];
        assert_eq!((tenant, listed, bytes), (BANK, digest, 6));
        assert!(since.abs_diff(crate::plane::now()) < 60);
    }

    #[tokio::test]
    async fn one_tenants_slow_uploads_leave_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(folder.path()).unwrap();
        let digest = Digest::of(b"quick");
        let slow = (0..MAX_UPLOADS).map(|_| {
            let bundles = bundles.clone();
            tokio::spawn(async move {
                let body = stream::pending();
                bundles.put(&SHOP, &digest, body, unkept).await.unwrap();
            })
        });
        let slow: Vec<_> = slow.collect();
        while bundles.uploads.available_permits() > MAX_UPLOADS - MAX_UPLOADS_OF_TENANT {
            tokio::task::yield_now().await;
        }
        let quick = bundles.put(&BANK, &digest, body(&[b"quick"]), |_| {});
        let soon = std::time::Duration::from_secs(20);
        tokio::time::timeout(soon, quick).await.unwrap().unwrap();
        for upload in slow {
            upload.abort();
            upload.await.unwrap_err();
        }
        let last = bundles.put(&SHOP, &digest, body(&[b"quick"]), |_| {});
        last.await.unwrap();
        let shares = bundles.shares.lock();
        assert!(shares.values().all(|share| share.strong_count() == 0));
    }

    #[tokio::test]
    async fn a_bundle_that_never_ends_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let bundles = Bundles::open(folder.path()).unwrap();
        let endless = stream::repeat_with(|| Ok(bytes::Bytes::from_static(&[0; 65_536])));
        let refused = bundles
            .put(&SHOP, &Digest([1; 32]), endless, unkept)
            .await
            .unwrap_err();
        assert_eq!((refused.status, refused.code()), (413, code::TOO_LARGE));
    }

    #[test]
    fn left_overs_of_a_killed_program_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let tenant = folder.path().join(SHOP.to_string());
        std::fs::create_dir(&tenant).unwrap();
        let left = tenant.join(format!("{}#1", Digest([1; 32])));
        std::fs::write(&left, "half").unwrap();
        Bundles::open(folder.path()).unwrap();
        assert!(!left.exists());
    }
}
