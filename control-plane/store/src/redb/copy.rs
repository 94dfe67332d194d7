//! Copies a store: reads it as of one moment while commits continue, and writes it again with the
//! revisions of its entries.

use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _};

use super::{DATA, Failure, META, META_ID, META_REVISION, Redb, begin, entry, open, read_revision};
use crate::{Entry, StoreError, StoreId};

/// The contents of a store at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    /// The store's id.
    pub id: StoreId,
    /// The newest revision.
    pub revision: u64,
    /// Number of entries that follow.
    pub entries: u64,
}

/// Receives what [`Redb::read_all`] reads: first the contents, then each entry in the order of
/// keys.
pub trait Sink {
    /// Receives the contents.
    ///
    /// # Errors
    /// Receiving failed.
    fn begin(&mut self, contents: &Contents) -> io::Result<()>;

    /// An entry.
    ///
    /// # Errors
    /// Receiving failed.
    fn entry(&mut self, entry: Entry) -> io::Result<()>;
}

impl Redb {
    /// Passes the whole store as of one moment to `sink`, whatever is committed meanwhile. The
    /// inner error is the sink's.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn read_all<S: Sink + Send + 'static>(
        &self,
        mut sink: S,
    ) -> Result<io::Result<S>, StoreError> {
        let id = self.inner.id;
        self.run(move |database| {
            let transaction = database.begin_read()?;
            let (data, meta) = (transaction.open_table(DATA)?, transaction.open_table(META)?);
            let revision = meta.get(META_REVISION)?.map(|bytes| bytes.value().to_vec());
            let contents = Contents {
                id,
                revision: read_revision(revision.as_deref()),
                entries: data.len()?,
            };
            if let Err(error) = sink.begin(&contents) {
                return Ok(Err(error));
            }
            for item in data.iter()? {
                let (key, value) = item?;
                if let Err(error) = sink.entry(entry(key.value(), value.value())) {
                    return Ok(Err(error));
                }
            }
            Ok(Ok(sink))
        })
        .await
    }
}

/// A store that is written from the entries of another one. It is complete when
/// [`StoreCopy::finish`] has returned.
#[derive(Debug)]
pub struct StoreCopy {
    path: PathBuf,
    database: Database,
    contents: Contents,
}

impl StoreCopy {
    /// Begins a copy in a file that does not exist yet.
    ///
    /// # Errors
    /// The file exists, or cannot be made.
    pub fn create(path: &Path, contents: Contents) -> Result<Self, StoreError> {
        let path = path.to_owned();
        if path.exists() {
            let source = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(StoreError::Io { path, source });
        }
        let database = open(&path, |builder, path| builder.create(path))?;
        begin(&database, contents.id).map_err(|failure| failure.named(&path))?;
        Ok(Self {
            path,
            database,
            contents,
        })
    }

    /// Writes some entries.
    ///
    /// # Errors
    /// The disk failed.
    pub fn write(&self, entries: &[Entry]) -> Result<(), StoreError> {
        let write = || {
            let transaction = self.database.begin_write()?;
            {
                let mut data = transaction.open_table(DATA)?;
                for entry in entries {
                    let row = (entry.revision, entry.value.as_slice());
                    drop(data.insert(entry.key.as_str(), row)?);
                }
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|failure: Failure| failure.named(&self.path))
    }

    /// Writes the revision: from now on the file is a copy of the original store.
    ///
    /// # Errors
    /// Entries are missing, or the disk failed.
    pub fn finish(self) -> Result<(), StoreError> {
        let Contents {
            revision, entries, ..
        } = self.contents;
        let write = || {
            let transaction = self.database.begin_write()?;
            let written = transaction.open_table(DATA)?.len()?;
            if written != entries {
                let message = format!("expected {entries} entries, got {written}");
                return Err(Failure::Other(message));
            }
            let number = revision.to_be_bytes();
            transaction
                .open_table(META)?
                .insert(META_REVISION, number.as_slice())?;
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|failure: Failure| failure.named(&self.path))
    }
}

/// Gives a copy an id of its own. From then on the two stores have different contents under the
/// same revisions, so a client of one must not mistake the other for it.
///
/// # Errors
/// The store is locked or damaged, or the disk failed.
pub fn set_id(path: &Path, id: StoreId) -> Result<(), StoreError> {
    let database = open(path, |builder, path| builder.create(path))?;
    let write = || {
        let transaction = database.begin_write()?;
        transaction
            .open_table(META)?
            .insert(META_ID, id.0.as_slice())?;
        transaction.commit()?;
        Ok(())
    };
    write().map_err(|failure: Failure| failure.named(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Store as _};

    /// Writes entries into a copy as they come; calls `at` before the second of them.
    struct Writer<F> {
        path: PathBuf,
        copy: Option<StoreCopy>,
        at: Option<F>,
    }

    impl<F: FnOnce() + Send + 'static> Sink for Writer<F> {
        fn begin(&mut self, contents: &Contents) -> io::Result<()> {
            let copy = StoreCopy::create(&self.path, *contents).map_err(io::Error::other)?;
            self.copy = Some(copy);
            Ok(())
        }

        fn entry(&mut self, entry: Entry) -> io::Result<()> {
            if entry.key != "a"
                && let Some(at) = self.at.take()
            {
                at();
            }
            let copy = self.copy.as_ref().unwrap();
            copy.write(&[entry]).map_err(io::Error::other)
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_is_of_one_moment_and_keeps_every_revision() {
        let folder = tempfile::tempdir().unwrap();
        let store = Redb::open(&folder.path().join("store"), StoreId([1; 16])).unwrap();
        for key in ["a", "b", "a", "c"] {
            store
                .commit(vec![], vec![Change::put(key, "1")])
                .await
                .unwrap();
        }
        let (meanwhile, runtime) = (store.clone(), tokio::runtime::Handle::current());
        let path = folder.path().join("copy");
        let writer = Writer {
            path: path.clone(),
            copy: None,
            at: Some(move || {
                let changes = vec![Change::put("b", "2"), Change::delete("c")];
                let committed = runtime.block_on(meanwhile.commit(vec![], changes));
                assert_eq!(committed.unwrap(), 5);
            }),
        };
        let writer = store.read_all(writer).await.unwrap().unwrap();
        assert!(writer.at.is_none(), "something was written in between");
        writer.copy.unwrap().finish().unwrap();
        assert_eq!(store.get("c").await.unwrap(), None);

        let copy = Redb::open(&path, StoreId([9; 16])).unwrap();
        assert_eq!((copy.id(), copy.revision()), (store.id(), 4));
        let entries = copy.range("", None, 10).await.unwrap();
        let entries = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry.value.as_slice(), entry.revision));
        let expected: [(&str, &[u8], u64); 3] = [("a", b"1", 3), ("b", b"1", 2), ("c", b"1", 4)];
        assert!(entries.eq(expected));
        drop(copy);
        assert!(StoreCopy::create(&path, contents(4, 3)).is_err());
        set_id(&path, StoreId([2; 16])).unwrap();
        let copy = Redb::open(&path, StoreId([9; 16])).unwrap();
        assert_eq!((copy.id(), copy.revision()), (StoreId([2; 16]), 4));
    }

    fn contents(revision: u64, entries: u64) -> Contents {
        Contents {
            id: StoreId([1; 16]),
            revision,
            entries,
        }
    }

    #[test]
    fn a_copy_that_lacks_entries_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let copy = StoreCopy::create(&folder.path().join("copy"), contents(7, 2)).unwrap();
        let (key, value) = ("a".to_owned(), vec![1]);
        let revision = 7;
        copy.write(&[Entry {
            key,
            value,
            revision,
        }])
        .unwrap();
        assert!(matches!(copy.finish(), Err(StoreError::Corrupted { .. })));
    }
}
