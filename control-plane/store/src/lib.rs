//! The control plane's revisioned store: a sorted map of keys, one revision counter over all of
//! them.
//!
//! The model is etcd's: [`Store::get`], [`Store::range`], [`Store::commit`] (compare, then write,
//! all or nothing) and [`Store::watch`]. [`Redb`] keeps it in one file, which one program opens at
//! a time. [`conformance`] tests the behaviour that every backend must have.
//!
//! A commit is on disk when `commit` returns. A commit that failed for lack of space, or because
//! the disk did not answer, has changed nothing that a later read sees; the store works again as
//! soon as the disk does.
#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod history;
mod redb;

use std::fmt;
use std::future::Future;

pub use error::StoreError;
pub use history::Watch;
pub use redb::{Contents, Redb, Sink, StoreCopy, set_id};

/// Longest key, bytes.
pub const MAX_KEY_BYTES: usize = 512;
/// Longest value, bytes: etcd's limit for a request, less a margin for the rest of it.
pub const MAX_VALUE_BYTES: usize = 1_400_000;
/// Most comparisons and writes in a commit, each: etcd's default for a transaction.
pub const MAX_COMMIT_ITEMS: usize = 128;
/// Most entries in one answer of a range.
pub const MAX_RANGE: usize = 1000;
/// Number of revisions that a watch can go back.
pub const HISTORY_REVISIONS: usize = 1024;
/// Sum of the keys and values that are kept for watches, bytes.
pub const HISTORY_BYTES: usize = 16 * 1024 * 1024;

/// Id of a store, random at its creation: revisions have no meaning outside of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Debug for StoreId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("StoreId(")?;
        self.0
            .iter()
            .try_for_each(|byte| write!(to, "{byte:02x}"))?;
        to.write_str(")")
    }
}

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Vec<u8>,
    /// Revision of the commit that wrote it last.
    pub revision: u64,
}

/// A condition of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// Key.
    pub key: String,
    /// Revision of the commit that wrote it last; `None`: the key must not exist.
    pub revision: Option<u64>,
}

impl Compare {
    /// The key must not exist.
    pub fn absent(key: impl Into<String>) -> Self {
        let key = key.into();
        Self {
            key,
            revision: None,
        }
    }

    /// The key must have been last written by this commit.
    pub fn at(key: impl Into<String>, revision: u64) -> Self {
        let (key, revision) = (key.into(), Some(revision));
        Self { key, revision }
    }
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Key.
    pub key: String,
    /// New value; `None` deletes.
    pub value: Option<Vec<u8>>,
}

impl Change {
    /// Writes a value.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        let (key, value) = (key.into(), Some(value.into()));
        Self { key, value }
    }

    /// Deletes a key, if it exists.
    pub fn delete(key: impl Into<String>) -> Self {
        let key = key.into();
        Self { key, value: None }
    }
}

/// One commit, as a watch sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// The changes that it made.
    pub changes: Vec<Change>,
}

/// A revisioned map of keys.
pub trait Store: Send + Sync + 'static {
    /// The id of this store.
    fn id(&self) -> StoreId;

    /// The newest revision; 0 before the first commit.
    fn revision(&self) -> u64;

    /// Reads one key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Up to [`MAX_RANGE`] keys that begin with `prefix`, in order, after the key `after` if it is
    /// given. Fewer than `limit` means that there are no more.
    fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<Entry>, StoreError>> + Send;

    /// Makes all changes or none; returns the revision. The changes are on disk when it returns.
    fn commit(
        &self,
        compare: Vec<Compare>,
        changes: Vec<Change>,
    ) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Every commit after `revision`, each once and in order.
    ///
    /// # Errors
    /// The store no longer remembers that revision: read everything again.
    fn watch(&self, revision: u64) -> Result<Watch, StoreError>;
}
