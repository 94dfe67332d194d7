use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

const ID: StoreId = StoreId([1; 16]);

fn store(folder: &tempfile::TempDir) -> Redb {
    Redb::open(&folder.path().join("store"), ID).unwrap()
}

async fn put(store: &Redb, key: &str, value: &[u8]) -> Result<u64, StoreError> {
    store.commit(vec![], vec![Change::put(key, value)]).await
}

#[tokio::test]
async fn redb_conforms() {
    let folder = tempfile::tempdir().unwrap();
    crate::conformance::check(&store(&folder)).await;
}

#[tokio::test]
async fn everything_is_there_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let first = store(&folder);
    put(&first, "a", b"1").await.unwrap();
    put(&first, "b", b"2").await.unwrap();
    drop(first);
    let again = Redb::open(&folder.path().join("store"), StoreId([2; 16])).unwrap();
    assert_eq!(again.id(), ID, "the id is the store's, not the opener's");
    assert_eq!(again.revision(), 2);
    assert_eq!(again.get("a").await.unwrap().unwrap().revision, 1);
    assert!(matches!(
        again.watch(1),
        Err(StoreError::Compacted {
            asked: 1,
            oldest: 2
        })
    ));
    assert_eq!(put(&again, "c", b"3").await.unwrap(), 3);
}

#[tokio::test]
async fn a_locked_store_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let _first = store(&folder);
    let second = Redb::open(&folder.path().join("store"), ID);
    assert!(matches!(second, Err(StoreError::Locked(_))), "{second:?}");
}

#[tokio::test]
async fn a_damaged_file_is_found_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let first = store(&folder);
    for number in 0..50_u8 {
        put(&first, &format!("key-{number}"), &[number; 3000])
            .await
            .unwrap();
    }
    drop(first);
    let whole = fs::read(&path).unwrap();
    let at = whole
        .windows(64)
        .position(|window| window == [7; 64])
        .unwrap();
    let mut flipped = whole.clone();
    flipped[at + 5] ^= 1;
    let damaged = [
        flipped,
        whole[..whole.len() / 3].to_vec(),
        b"not a store at all".to_vec(),
        Vec::new(),
    ];
    for (number, bytes) in damaged.into_iter().enumerate() {
        fs::write(&path, bytes).unwrap();
        let opened = Redb::open(&path, ID);
        assert!(
            matches!(opened, Err(StoreError::Corrupted { .. })),
            "{number}: {opened:?}"
        );
    }
    fs::write(&path, whole).unwrap();
    assert!(
        Redb::open(&path, ID)
            .unwrap()
            .get("key-7")
            .await
            .unwrap()
            .is_some()
    );
}

/// A file on a disk that is full while `IS_FULL` is set.
#[derive(Debug)]
struct FullDisk(FileBackend);

static IS_FULL: AtomicBool = AtomicBool::new(false);

fn refuse_if_full() -> io::Result<()> {
    match IS_FULL.load(Ordering::SeqCst) {
        true => Err(io::ErrorKind::StorageFull.into()),
        false => Ok(()),
    }
}

impl StorageBackend for FullDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        refuse_if_full()?;
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        refuse_if_full()?;
        self.0.write(offset, data)
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_ends_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let create: Create = |builder, path| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(StorageError::Io)?;
        builder.create_with_backend(FullDisk(FileBackend::new(file)?))
    };
    let store = Redb::open_with(&folder.path().join("store"), ID, create).unwrap();
    put(&store, "before", b"1").await.unwrap();
    IS_FULL.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        let failed = put(&store, "during", &[0; 100_000]).await;
        assert!(matches!(failed, Err(StoreError::Full(_))), "{failed:?}");
    }
    IS_FULL.store(false, Ordering::SeqCst);
    assert!(store.get("during").await.unwrap().is_none());
    assert_eq!(store.get("before").await.unwrap().unwrap().value, b"1");
    assert_eq!(put(&store, "after", b"2").await.unwrap(), 2);
}

/// A disk that carries out one sync after [`FAILS_IN`] was set, but reports a failure.
#[derive(Debug)]
struct Liar(FileBackend);

static FAILS_IN: AtomicUsize = AtomicUsize::new(usize::MAX);

impl StorageBackend for Liar {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()?;
        match FAILS_IN.fetch_sub(1, Ordering::SeqCst) {
            0 => Err(io::Error::other("a sync failed")),
            _ => Ok(()),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// If a caller learns that a commit has failed, the commit has changed nothing, even where the disk
/// has taken all of it.
#[tokio::test]
async fn a_commit_that_failed_has_changed_nothing_wherever_it_failed() {
    let create: Create = |builder, path| {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(StorageError::Io)?;
        builder.create_with_backend(Liar(FileBackend::new(file)?))
    };
    let (mut failed, mut made) = (0, 0);
    for sync in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        FAILS_IN.store(usize::MAX, Ordering::SeqCst);
        let path = folder.path().join("store");
        let store = Redb::open_with(&path, ID, create).unwrap();
        put(&store, "replaced", b"old").await.unwrap();
        put(&store, "removed", b"old").await.unwrap();
        FAILS_IN.store(sync, Ordering::SeqCst);
        let changes = vec![
            Change::put("replaced", b"new"),
            Change::put("added", b"new"),
            Change::put("replaced", b"newer"),
            Change::delete("removed"),
        ];
        let Err(error) = store.commit(vec![], changes).await else {
            continue;
        };
        assert!(matches!(error, StoreError::Io { .. }), "{error}");
        failed += 1;
        // The state that a reader of the file finds.
        let copied = folder.path().join("copy");
        fs::copy(&path, &copied).unwrap();
        let there = Redb::open(&copied, ID).unwrap();
        made += usize::from(there.get("added").await.unwrap().is_some());
        for (key, value) in [("replaced", 1), ("removed", 2)] {
            let found = store.get(key).await.unwrap().unwrap();
            assert_eq!(
                (found.value.as_slice(), found.revision),
                (&b"old"[..], value)
            );
        }
        assert!(store.get("added").await.unwrap().is_none());
        assert_eq!(put(&store, "next", b"3").await.unwrap(), 3);
        drop(store);
        let again = Redb::open(&path, ID).unwrap();
        assert_eq!(again.revision(), 3);
        assert!(again.get("added").await.unwrap().is_none());
    }
    assert!(
        failed > 0 && made > 0,
        "{failed} commits failed, {made} succeeded"
    );
}
