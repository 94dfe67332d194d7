//! The store in one file.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError,
    TableDefinition,
};

use crate::history::{History, Watch};
use crate::{
    Change, Compare, Entry, Event, MAX_COMMIT_ITEMS, MAX_KEY_BYTES, MAX_RANGE, MAX_VALUE_BYTES,
    Store, StoreError, StoreId,
};

mod copy;

pub use copy::{Contents, Sink, StoreCopy, set_id};

/// Key to (revision of the commit that wrote it, value).
const DATA: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("data");
/// The store's own id and revision.
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");
const META_ID: &str = "store-id";
const META_REVISION: &str = "revision";
/// Page cache, bytes: redb's own default of a GiB is a lot for a small machine.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// A [`Store`](crate::Store) in one file, which one program has open at a time. Clones share it; a
/// commit is on the disk when it returns.
#[derive(Debug, Clone)]
pub struct Redb {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    create: Create,
    /// `None` after a failed write, until the file can be opened again, because redb then refuses
    /// everything.
    database: RwLock<Option<Database>>,
    history: Arc<History>,
    /// The commit that failed on its way to the disk, until it is certain that the disk does not
    /// have it.
    unsettled: Mutex<Option<Unsettled>>,
    /// Held from the beginning of a commit until the history has it, so that watches see commits in
    /// order.
    writing: Mutex<()>,
    id: StoreId,
}

/// The revision of the commit that wrote a value, and the value.
type Row = (u64, Vec<u8>);

/// The values that a commit replaces.
#[derive(Debug)]
struct Unsettled {
    /// Revision of the commit.
    revision: u64,
    /// Each key with its value before, in the order of the changes.
    before: Vec<(String, Option<Row>)>,
}

/// The function that makes a database of a file; tests replace it.
type Create = fn(&Builder, &Path) -> Result<Database, DatabaseError>;

impl Redb {
    /// Opens the store, or creates it with `new_id`. The whole file is checked, so a damaged one is
    /// found here.
    ///
    /// # Errors
    /// The store is locked or damaged, or the disk failed.
    pub fn open(path: &Path, new_id: StoreId) -> Result<Self, StoreError> {
        Self::open_with(path, new_id, |builder, path| builder.create(path))
    }

    fn open_with(path: &Path, new_id: StoreId, create: Create) -> Result<Self, StoreError> {
        let is_new = !path.exists();
        let database = open(path, create)?;
        if is_new && let Some(folder) = path.parent() {
            let synced = File::open(folder).and_then(|folder| folder.sync_all());
            synced.map_err(|source| io_error(path, source))?;
        }
        let (id, revision) = begin(&database, new_id).map_err(|error| error.named(path))?;
        let inner = Inner {
            path: path.to_owned(),
            create,
            database: RwLock::new(Some(database)),
            history: Arc::new(History::new(revision)),
            unsettled: Mutex::new(None),
            writing: Mutex::new(()),
            id,
        };
        let inner = Arc::new(inner);
        Ok(Self { inner })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.inner);
        let done = tokio::task::spawn_blocking(move || inner.run(work)).await;
        done.unwrap_or(Err(StoreError::Closed))
    }
}

impl Inner {
    fn run<T>(&self, work: impl FnOnce(&Database) -> Result<T, Failure>) -> Result<T, StoreError> {
        self.reopen()?;
        let guard = self.database.read();
        let database = guard.as_ref().ok_or(StoreError::Closed)?;
        let done = work(database);
        let is_unusable = matches!(
            done,
            Err(Failure::Storage(
                StorageError::Io(_) | StorageError::PreviousIo
            ))
        );
        drop(guard);
        if is_unusable {
            *self.database.write() = None;
        }
        done.map_err(|failure| failure.named(&self.path))
    }

    /// Opens the file again after a failed write.
    fn reopen(&self) -> Result<(), StoreError> {
        let is_open = self.database.read().is_some();
        if is_open {
            return Ok(());
        }
        let mut database = self.database.write();
        if database.is_none() {
            let opened = open(&self.path, self.create)?;
            let (_, revision) =
                begin(&opened, self.id).map_err(|failure| failure.named(&self.path))?;
            let revision = self
                .settle(&opened, revision)
                .map_err(|failure| failure.named(&self.path))?;
            self.history.restart(revision);
            *database = Some(opened);
        }
        Ok(())
    }

    /// Reverts a failed commit that may be on the disk all the same, because its caller was told
    /// that nothing was changed. Returns the revision after that.
    fn settle(&self, database: &Database, revision: u64) -> Result<u64, Failure> {
        let mut unsettled = self.unsettled();
        let made = unsettled.as_ref().filter(|made| made.revision == revision);
        let Some(Unsettled { before, .. }) = made else {
            *unsettled = None;
            return Ok(revision);
        };
        let revision = revision - 1;
        let transaction = database.begin_write()?;
        {
            let mut data = transaction.open_table(DATA)?;
            for (key, before) in before.iter().rev() {
                match before {
                    Some((revision, value)) => {
                        drop(data.insert(key.as_str(), (*revision, value.as_slice()))?);
                    }
                    None => drop(data.remove(key.as_str())?),
                }
            }
            let mut meta = transaction.open_table(META)?;
            meta.insert(META_REVISION, revision.to_be_bytes().as_slice())?;
        }
        transaction.commit()?;
        *unsettled = None;
        Ok(revision)
    }

    fn unsettled(&self) -> MutexGuard<'_, Option<Unsettled>> {
        self.unsettled.lock()
    }
}

impl Store for Redb {
    fn id(&self) -> StoreId {
        self.inner.id
    }

    fn revision(&self) -> u64 {
        self.inner.history.newest()
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.run(move |database| {
            let table = database.begin_read()?.open_table(DATA)?;
            let found = table.get(key.as_str())?;
            Ok(found.map(|found| entry(&key, found.value())))
        })
        .await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.run(move |database| {
            let table = database.begin_read()?.open_table(DATA)?;
            let start = after
                .as_deref()
                .filter(|after| *after >= prefix.as_str())
                .unwrap_or(&prefix);
            let mut found = Vec::new();
            for item in table.range(start..)? {
                let (key, value) = item?;
                let key = key.value();
                if !key.starts_with(&prefix) || found.len() >= limit.min(MAX_RANGE) {
                    break;
                }
                if after.as_deref() != Some(key) {
                    found.push(entry(key, value.value()));
                }
            }
            Ok(found)
        })
        .await
    }

    async fn commit(&self, compare: Vec<Compare>, changes: Vec<Change>) -> Result<u64, StoreError> {
        check_bounds(&compare, &changes)?;
        let inner = Arc::clone(&self.inner);
        self.run(move |database| {
            let _writing = inner.writing.lock();
            let transaction = database.begin_write()?;
            let mut before = Vec::with_capacity(changes.len());
            let revision = {
                let mut data = transaction.open_table(DATA)?;
                let mut meta = transaction.open_table(META)?;
                for Compare { key, revision } in compare {
                    let found = data.get(key.as_str())?.map(|found| found.value().0);
                    if found != revision {
                        return Err(Failure::Conflict(key));
                    }
                }
                let revision = read_revision(
                    meta.get(META_REVISION)?
                        .map(|bytes| bytes.value().to_vec())
                        .as_deref(),
                ) + 1;
                for Change { key, value } in &changes {
                    let replaced = match value {
                        Some(value) => data.insert(key.as_str(), (revision, value.as_slice()))?,
                        None => data.remove(key.as_str())?,
                    };
                    let replaced = replaced.map(|found| {
                        let (revision, value) = found.value();
                        (revision, value.to_vec())
                    });
                    before.push((key.clone(), replaced));
                }
                meta.insert(META_REVISION, revision.to_be_bytes().as_slice())?;
                revision
            };
            *inner.unsettled() = Some(Unsettled { revision, before });
            transaction.commit()?;
            *inner.unsettled() = None;
            inner.history.push(Event { revision, changes });
            Ok(revision)
        })
        .await
    }

    fn watch(&self, revision: u64) -> Result<Watch, StoreError> {
        Watch::new(Arc::clone(&self.inner.history), revision)
    }
}

fn check_bounds(compare: &[Compare], changes: &[Change]) -> Result<(), StoreError> {
    let keys = compare
        .iter()
        .map(|compare| compare.key.len())
        .chain(changes.iter().map(|change| change.key.len()));
    let values = changes
        .iter()
        .filter_map(|change| change.value.as_ref())
        .map(Vec::len);
    let bounds = [
        (
            "items of a commit",
            MAX_COMMIT_ITEMS,
            compare.len().max(changes.len()),
        ),
        ("bytes of a key", MAX_KEY_BYTES, keys.max().unwrap_or(0)),
        (
            "bytes of a value",
            MAX_VALUE_BYTES,
            values.max().unwrap_or(0),
        ),
    ];
    match bounds.into_iter().find(|(_, most, got)| got > most) {
        Some((what, most, got)) => Err(StoreError::TooLarge { what, most, got }),
        None => Ok(()),
    }
}

fn entry(key: &str, (revision, value): (u64, &[u8])) -> Entry {
    Entry {
        key: key.to_owned(),
        value: value.to_vec(),
        revision,
    }
}

fn open(path: &Path, create: Create) -> Result<Database, StoreError> {
    // An empty file would be mistaken for a new store, although a crash or a person may have
    // emptied it.
    if fs::metadata(path).is_ok_and(|found| found.len() == 0) {
        let (path, message) = (path.to_owned(), "the file is empty".to_owned());
        return Err(StoreError::Corrupted { path, message });
    }
    let mut builder = Database::builder();
    builder
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true);
    // A malformed page can make redb panic; the reason must not get lost.
    let opened = catch_unwind(AssertUnwindSafe(|| create(&builder, path)));
    match opened {
        Ok(opened) => opened.map_err(|error| Failure::from(error).named(path)),
        Err(_) => Err(StoreError::Corrupted {
            path: path.to_owned(),
            message: "its pages make no sense".into(),
        }),
    }
}

/// Reads the id and the revision, or writes the first ones.
fn begin(database: &Database, new_id: StoreId) -> Result<(StoreId, u64), Failure> {
    let transaction = database.begin_write()?;
    let (id, revision, is_new);
    {
        transaction.open_table(DATA)?;
        let mut meta = transaction.open_table(META)?;
        let found = meta.get(META_ID)?.map(|bytes| bytes.value().to_vec());
        revision = read_revision(
            meta.get(META_REVISION)?
                .map(|bytes| bytes.value().to_vec())
                .as_deref(),
        );
        is_new = found.is_none();
        id = found
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(new_id, StoreId);
        if is_new {
            meta.insert(META_ID, new_id.0.as_slice())?;
        }
    }
    if is_new {
        transaction.commit()?;
    } else {
        transaction.abort()?;
    }
    Ok((id, revision))
}

fn read_revision(bytes: Option<&[u8]>) -> u64 {
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_be_bytes)
}

/// A failure, without the path.
enum Failure {
    Storage(StorageError),
    Locked,
    Conflict(String),
    Other(String),
}

impl Failure {
    fn named(self, path: &Path) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Locked => StoreError::Locked(path),
            Self::Conflict(key) => StoreError::Conflict(key),
            Self::Storage(StorageError::Io(source)) => io_error(&path, source),
            Self::Storage(StorageError::PreviousIo) => {
                let source = io::Error::other("an earlier write failed");
                StoreError::Io { path, source }
            }
            Self::Storage(StorageError::Backend(source)) => {
                let source = io::Error::other(source);
                StoreError::Io { path, source }
            }
            Self::Storage(other) => {
                let message = other.to_string();
                StoreError::Corrupted { path, message }
            }
            Self::Other(message) => StoreError::Corrupted { path, message },
        }
    }
}

fn io_error(path: &Path, source: io::Error) -> StoreError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            StoreError::Full(path)
        }
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            let message = source.to_string();
            StoreError::Corrupted { path, message }
        }
        _ => StoreError::Io { path, source },
    }
}

impl From<DatabaseError> for Failure {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::DatabaseAlreadyOpen => Self::Locked,
            DatabaseError::Storage(storage) => Self::Storage(storage),
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Failure {
            fn from(error: redb::$error) -> Self {
                match error {
                    redb::$error::Storage(storage) => Self::Storage(storage),
                    other => Self::Other(other.to_string()),
                }
            }
        }
    )*};
}
from_redb!(TableError, TransactionError, CommitError);

#[cfg(test)]
mod tests;
