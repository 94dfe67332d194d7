//! The one place that names sled.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_trust::Random;
use zeroize::Zeroizing;

use crate::files::{failed, free_place, make_folder, set_aside, sync_folder, write_whole};
use crate::sealing::Sealer;
use crate::{SetAside, StoreError};

/// sled's cache, bytes: the judge holds what matters in memory anyway.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// How long a lock that somebody is about to let go of is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Between two tries for it.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Envelope of a `Root`, by version.
    Root,
    /// Envelope of an `OnlineKey`.
    OnlineKey,
    /// Envelope of a `Pool`, by name and epoch.
    Pool,
    /// Envelope of a `Tenant`, by id.
    Tenant,
    /// Envelope of a `Manifest`, by tenant id.
    Manifest,
    /// A release or a sealed secret, by digest.
    Object,
    /// A grant, by pool and epoch.
    Grant,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Root => "root/",
            Self::OnlineKey => "online-key/",
            Self::Pool => "pool/",
            Self::Tenant => "tenant/",
            Self::Manifest => "manifest/",
            Self::Object => "object/",
            Self::Grant => "grant/",
        }
    }
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Puts a record.
    Put(Kind, String, Vec<u8>),
    /// Takes a record away that nothing lists any more.
    Drop(Kind, String),
}

/// A record with its name.
pub type Named = (String, Zeroizing<Vec<u8>>);

#[derive(Debug)]
pub(crate) struct Records {
    db: sled::Db,
    folder: PathBuf,
}

impl Records {
    pub(crate) fn open(folder: &Path) -> Result<(Self, Option<PathBuf>), StoreError> {
        let path = folder.join("records");
        make_folder(&path)?;
        remove_half_written_snapshots(&path)?;
        let (db, aside) = match open_once_free(&path) {
            Ok(db) => (db, None),
            Err(error) if is_full(&error) => return Err(StoreError::Full(path)),
            // Never taken for damage: whoever has it will let go, or is another vault.
            Err(error) if is_locked(&error) => return Err(StoreError::Locked(path)),
            Err(error) => {
                let aside = set_aside(folder, &path)?;
                let place = aside.display();
                tracing::error!(%error, aside = %place, "the record store cannot be opened; it is set aside and an empty one begun");
                make_folder(&path)?;
                (try_open(&path).map_err(StoreError::Records)?, Some(aside))
            }
        };
        Ok((Self { db, folder: path }, aside))
    }

    pub(crate) fn commit(
        &self,
        sealer: &Sealer,
        writes: &[Write],
        random: Random<'_>,
    ) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for write in writes {
            match write {
                Write::Put(kind, name, bytes) => {
                    let key = format!("{}{name}", kind.prefix());
                    batch.insert(key.as_bytes(), sealer.seal(&key, bytes, random)?);
                }
                Write::Drop(kind, name) => {
                    batch.remove(format!("{}{name}", kind.prefix()).as_bytes());
                }
            }
        }
        let written = catch_unwind(AssertUnwindSafe(|| {
            self.db.apply_batch(batch).and_then(|()| self.db.flush())
        }));
        match written {
            Ok(Ok(_)) => self.sync(),
            Ok(Err(sled::Error::Io(error))) => Err(failed("cannot write", &self.folder)(error)),
            Ok(Err(error)) => Err(StoreError::Records(error.to_string())),
            Err(_) => Err(StoreError::Records("sled panicked while writing".into())),
        }
    }

    /// sled's flush is `sync_file_range`, which no disk cache hears of.
    fn sync(&self) -> Result<(), StoreError> {
        for name in ["db", "conf"] {
            let path = self.folder.join(name);
            if path.exists() {
                fs::File::open(&path)
                    .and_then(|file| file.sync_all())
                    .map_err(failed("cannot sync", &path))?;
            }
        }
        sync_folder(&self.folder)
    }

    pub(crate) fn get(
        &self,
        sealer: &Sealer,
        kind: Kind,
        name: &str,
        folder: &Path,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let key = format!("{}{name}", kind.prefix());
        match self
            .db
            .get(&key)
            .map_err(|error| StoreError::Records(error.to_string()))?
        {
            None => Ok(None),
            Some(sealed) => sealer
                .open(&key, &sealed)
                .map(Some)
                .ok_or_else(|| StoreError::Sealed(folder.join("records").join(name))),
        }
    }

    pub(crate) fn all(
        &self,
        sealer: &Sealer,
        kind: Kind,
        folder: &Path,
        aside: &mut SetAside,
    ) -> Result<Vec<Named>, StoreError> {
        let (mut opened, mut broken) = (Vec::new(), Vec::new());
        for entry in self.db.scan_prefix(kind.prefix()) {
            let (key, sealed) = entry.map_err(|error| StoreError::Records(error.to_string()))?;
            let name = String::from_utf8_lossy(&key).into_owned();
            match sealer.open(&name, &sealed) {
                Some(bytes) => opened.push((name[kind.prefix().len()..].to_owned(), bytes)),
                None => broken.push((key, sealed, name)),
            }
        }
        for (key, sealed, name) in broken {
            let place = free_place(folder, &name.replace('/', "-"))?;
            write_whole(&place, &sealed)?;
            self.db
                .remove(&key)
                .map_err(|error| StoreError::Records(error.to_string()))?;
            tracing::error!(record = name, aside = %place.display(), "a record does not open; it is set aside");
            aside.single.push(place);
        }
        Ok(opened)
    }
}

/// An empty or partial snapshot that a kill left makes every later open fail, though it holds nothing.
fn remove_half_written_snapshots(path: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(path)
        .map_err(failed("cannot list", path))?
        .flatten()
    {
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(failed("cannot remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// sled panics on some damage instead of saying so.
fn try_open(path: &Path) -> Result<sled::Db, String> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("sled panicked while opening".into()),
    }
}

/// A process that was killed holds its lock until it is quite gone.
fn open_once_free(path: &Path) -> Result<sled::Db, String> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match try_open(path) {
            Err(error) if is_locked(&error) && Instant::now() < until => {
                std::thread::sleep(LOCK_RETRY);
            }
            opened => return opened,
        }
    }
}

fn is_locked(error: &str) -> bool {
    error.contains("could not acquire lock")
}

fn is_full(error: &str) -> bool {
    let text =
        std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()).to_string();
    error.contains(&text) || error.contains("StorageFull")
}

#[cfg(test)]
impl Records {
    pub(crate) fn db(&self) -> &sled::Db {
        &self.db
    }
}
