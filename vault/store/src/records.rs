//! The only module that names sled.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_durable::PRIVATE;
use casemate_trust::Random;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use crate::files::{failed, free_place, make_folder, replace_file, set_aside, sync_folder};
use crate::sealing::Sealer;
use crate::{SetAside, SetAsideRecord, StoreError};

/// sled's cache, bytes: the judge holds the relevant state in memory anyway.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;

/// How long to wait for a lock that another process is about to release.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Pause between two tries for the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The kind of a record.
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
    /// Envelope of a tenant's newest `Freshness`, by tenant id.
    Freshness,
    /// A release or a sealed secret, by digest.
    Object,
    /// A grant, by pool and epoch.
    Grant,
    /// Envelope of the pool's newest `Image`.
    Image,
    /// Envelope of the newest `Revocations`.
    Revocations,
    /// Number of answers that have contained a tenant's secrets, by tenant id.
    Reflections,
}

impl Kind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Root => "root/",
            Self::OnlineKey => "online-key/",
            Self::Pool => "pool/",
            Self::Tenant => "tenant/",
            Self::Manifest => "manifest/",
            Self::Freshness => "freshness/",
            Self::Object => "object/",
            Self::Grant => "grant/",
            Self::Image => "image/",
            Self::Revocations => "revocations/",
            Self::Reflections => "reflections/",
        }
    }
}

/// One change of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Puts a record.
    Put(Kind, String, Vec<u8>),
    /// Removes a record that nothing lists any more.
    Drop(Kind, String),
}

/// A record in its stored form: its key, and its sealed bytes unless it is dropped.
pub(crate) type Sealed = (String, Option<Vec<u8>>);

/// Seals the records to write.
pub(crate) fn seal(
    sealer: &Sealer,
    writes: &[Write],
    random: Random<'_>,
) -> Result<Vec<Sealed>, StoreError> {
    let mut sealed = Vec::with_capacity(writes.len());
    for write in writes {
        sealed.push(match write {
            Write::Put(kind, name, bytes) => {
                let key = format!("{}{name}", kind.prefix());
                let bytes = sealer.seal(&key, bytes, random)?;
                (key, Some(bytes))
            }
            Write::Drop(kind, name) => (format!("{}{name}", kind.prefix()), None),
        });
    }
    Ok(sealed)
}

/// A record with its name.
pub type Named = (String, Zeroizing<Vec<u8>>);

#[derive(Debug)]
pub(crate) struct Records {
    /// `None` after a failed write: once the disk has refused sled a write, sled stops working or
    /// waits without end, and its view may differ from the disk.
    db: Mutex<Option<sled::Db>>,
    folder: PathBuf,
    /// The files of `blobs/` that are synced: sled writes each once.
    synced_blobs: Mutex<BTreeSet<OsString>>,
}

impl Records {
    pub(crate) fn open(folder: &Path) -> Result<(Self, Option<PathBuf>), StoreError> {
        let path = folder.join("records");
        make_folder(&path)?;
        remove_half_written_snapshots(&path)?;
        let (db, aside) = match open_whole(&path) {
            Ok(db) => (db, None),
            Err(error) if is_damage(&error) => {
                let aside = set_aside(folder, &path)?;
                let place = aside.display();
                tracing::error!(%error, aside = %place, "the record store is damaged; it is set aside and an empty one begun");
                make_folder(&path)?;
                let db = open_whole(&path).map_err(refused("cannot open", &path))?;
                (db, Some(aside))
            }
            Err(error) => return Err(refused("cannot open", &path)(error)),
        };
        let records = Self {
            db: Mutex::new(Some(db)),
            folder: path,
            synced_blobs: Mutex::default(),
        };
        Ok((records, aside))
    }

    /// Runs an operation on the open records. After a failed write there are none: see
    /// [`StoreError::Broken`].
    fn with<T>(
        &self,
        what: &'static str,
        work: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, StoreError> {
        let db = self.db.lock();
        let Some(db) = &*db else {
            return Err(StoreError::Broken(self.folder.clone()));
        };
        guarded(|| work(db)).map_err(refused(what, &self.folder))
    }

    /// Runs a write, and closes the records if it fails.
    fn write(&self, work: impl FnOnce(&sled::Db) -> sled::Result<()>) -> Result<(), StoreError> {
        self.with("cannot write", work)
            .inspect_err(|_| self.close())
    }

    /// Closes the records for reading and writing: see [`StoreError::Broken`].
    pub(crate) fn close(&self) {
        let mut db = self.db.lock();
        if let Some(db) = db.take() {
            // Dropping it could wait without end for a flush of unwritable data.
            std::mem::forget(db);
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        let db = self.db.lock();
        db.is_none()
    }

    /// Writes all of `writes`, which are sealed, or none.
    pub(crate) fn commit(&self, writes: &[Sealed]) -> Result<(), StoreError> {
        self.write(|db| {
            let mut batch = sled::Batch::default();
            for (key, sealed) in writes {
                match sealed {
                    Some(sealed) => batch.insert(key.as_bytes(), sealed.as_slice()),
                    None => batch.remove(key.as_bytes()),
                }
            }
            db.apply_batch(batch)?;
            db.flush().map(drop)
        })?;
        self.sync()
    }

    /// sled's flush is `sync_file_range`, which does not flush the disk's cache.
    fn sync(&self) -> Result<(), StoreError> {
        for name in ["db", "conf"] {
            let path = self.folder.join(name);
            if path.exists() {
                self.sync_file(&path)
                    .map_err(failed("cannot sync", &path))?;
            }
        }
        self.sync_blobs()?;
        sync_folder(&self.folder)
    }

    /// Syncs a file. If that fails, the records are closed: the kernel reports the failure once,
    /// may have dropped the unwritten data, and would report success at the next sync.
    fn sync_file(&self, path: &Path) -> std::io::Result<()> {
        let file = fs::File::open(path)?;
        file.sync_all().inspect_err(|_| self.close())
    }

    /// sled keeps data that does not fit into a segment of its log in a file of its own, which it
    /// never syncs.
    fn sync_blobs(&self) -> Result<(), StoreError> {
        let folder = self.folder.join("blobs");
        let listed = fs::read_dir(&folder).map_err(failed("cannot list", &folder))?;
        let found: BTreeSet<_> = listed.flatten().map(|entry| entry.file_name()).collect();
        let mut synced = self.synced_blobs.lock();
        if found.is_subset(&synced) {
            return Ok(());
        }
        for name in found.difference(&synced) {
            let path = folder.join(name);
            match self.sync_file(&path) {
                // The file was replaced since, and removed.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done.map_err(failed("cannot sync", &path))?,
            }
        }
        sync_folder(&folder)?;
        *synced = found;
        Ok(())
    }

    pub(crate) fn get(
        &self,
        sealer: &Sealer,
        kind: Kind,
        name: &str,
        folder: &Path,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let key = format!("{}{name}", kind.prefix());
        let found = self.with("cannot read", |db| db.get(&key))?;
        match found {
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
        let found: Vec<_> =
            self.with("cannot read", |db| db.scan_prefix(kind.prefix()).collect())?;
        for (key, sealed) in found {
            let name = String::from_utf8_lossy(&key).into_owned();
            match sealer.open(&name, &sealed) {
                Some(bytes) => opened.push((name[kind.prefix().len()..].to_owned(), bytes)),
                None => broken.push((key, sealed, name)),
            }
        }
        for (key, sealed, record) in broken {
            let place = free_place(folder, &record.replace('/', "-"))?;
            replace_file(&place, PRIVATE, &sealed)?;
            self.write(|db| db.remove(&key).map(drop))?;
            tracing::error!(record, aside = %place.display(), "a record does not open; it is set aside");
            let name = record[kind.prefix().len()..].to_owned();
            aside.single.push(SetAsideRecord { kind, name, place });
        }
        Ok(opened)
    }
}

/// Removes an empty or partial snapshot that a kill left: it makes every later open fail, though it
/// contains nothing.
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

/// Turns a panic of sled into an error: on some damage sled panics.
fn guarded<T>(work: impl FnOnce() -> sled::Result<T>) -> sled::Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let text = format!("it panicked: {}", text.unwrap_or("and did not say why"));
        Err(sled::Error::ReportableBug(text))
    })
}

fn try_open(path: &Path) -> sled::Result<sled::Db> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(CACHE_BYTES)
        .flush_every_ms(None)
        .mode(sled::Mode::LowSpace);
    guarded(|| config.open())
}

/// Opens sled, waiting for the lock of a killed process that has not quite ended.
fn open_once_free(path: &Path) -> sled::Result<sled::Db> {
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

/// Drops sled, which may find damage at this point and panic.
fn close(db: sled::Db) {
    let _closed = guarded(|| {
        drop(db);
        Ok(())
    });
}

/// Opens sled and reads everything once: sled finds damage in most of its pages only when they are
/// read, and in the middle of a replay that would be too late.
fn open_whole(path: &Path) -> sled::Result<sled::Db> {
    let db = open_once_free(path)?;
    let walked = guarded(|| db.iter().try_for_each(|entry| entry.map(drop)));
    match walked {
        Ok(()) => Ok(db),
        Err(error) => {
            // Closed before its folder is moved, because sled writes by path.
            close(db);
            Err(error)
        }
    }
}

/// Whether an error means that the files are damaged. A refusal of the system may pass (a full
/// disk, a lock, a permission, a limit), and setting the records aside for it would lose them for
/// nothing.
fn is_damage(error: &sled::Error) -> bool {
    match error {
        sled::Error::Io(error) => {
            let is_unreadable = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
            is_unreadable
                || matches!(
                    error.kind(),
                    ErrorKind::NotFound
                        | ErrorKind::UnexpectedEof
                        | ErrorKind::InvalidData
                        | ErrorKind::InvalidInput
                        | ErrorKind::IsADirectory
                        | ErrorKind::NotADirectory
                )
        }
        // sled unwraps some of the system's errors, so the panic's text contains them.
        sled::Error::ReportableBug(text) => !is_full(text) && !text.contains("PermissionDenied"),
        _ => true,
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn is_full(text: &str) -> bool {
    text.contains("StorageFull") || text.contains("QuotaExceeded")
}

fn refused(what: &'static str, path: &Path) -> impl FnOnce(sled::Error) -> StoreError {
    move |error| match error {
        error if is_locked(&error) => StoreError::Locked(path.to_owned()),
        sled::Error::Io(error) => failed(what, path)(error),
        sled::Error::ReportableBug(text) if is_full(&text) => StoreError::Full(path.to_owned()),
        error => StoreError::Records(error.to_string()),
    }
}

#[cfg(test)]
impl Records {
    pub(crate) fn db(&self) -> sled::Db {
        self.db.lock().clone().unwrap()
    }

    /// Whether sled itself finds no damage at opening.
    pub(crate) fn opens(path: &Path) -> bool {
        try_open(path).is_ok_and(|db| {
            // Damage that sled has not seen yet may make it panic here.
            guarded(|| {
                drop(db);
                Ok(())
            })
            .is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_refusal_of_the_system_is_not_damage() {
        let os = |errno: Errno| sled::Error::Io(io::Error::from_raw_os_error(errno.raw_os_error()));
        for errno in [
            Errno::NOSPC,
            Errno::DQUOT,
            Errno::ACCESS,
            Errno::PERM,
            Errno::ROFS,
            Errno::MFILE,
            Errno::NOMEM,
        ] {
            assert!(!is_damage(&os(errno)), "{errno}");
            let unwrapped = guarded(|| -> sled::Result<()> { panic!("{:?}", os(errno)) });
            let is_named = matches!(
                errno,
                Errno::NOSPC | Errno::DQUOT | Errno::ACCESS | Errno::PERM
            );
            assert_eq!(!is_damage(&unwrapped.unwrap_err()), is_named, "{errno}");
        }
        let path = Path::new("/records");
        for full in [Errno::NOSPC, Errno::DQUOT] {
            let error = refused("cannot open", path)(os(full));
            assert!(matches!(error, StoreError::Full(_)), "{error}");
        }
        for errno in [Errno::IO, Errno::NOENT, Errno::ISDIR] {
            assert!(is_damage(&os(errno)), "{errno}");
        }
        assert!(is_damage(&sled::Error::Corruption { at: None, bt: () }));
        let panicked = guarded(|| -> sled::Result<()> { panic!("a page is not where it was") });
        assert!(is_damage(&panicked.unwrap_err()));
    }

    #[test]
    fn large_records_are_on_the_disk_too() {
        let folder = tempfile::tempdir().unwrap();
        let (records, _) = Records::open(folder.path()).unwrap();
        let sealer = Sealer::new(&Zeroizing::new([7; crate::KEY_BYTES])).unwrap();
        for at in 0..3 {
            let large = Write::Put(Kind::Object, format!("{at}"), vec![at; 300_000]);
            let sealed = seal(&sealer, &[large], &mut |bytes| bytes.fill(1)).unwrap();
            records.commit(&sealed).unwrap();
            let listed = fs::read_dir(folder.path().join("records/blobs")).unwrap();
            let blobs: BTreeSet<_> = listed.map(|entry| entry.unwrap().file_name()).collect();
            assert!(!blobs.is_empty());
            assert!(blobs.is_subset(&records.synced_blobs.lock()));
        }
    }

    #[test]
    fn after_a_sync_that_failed_nothing_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let (records, _) = Records::open(folder.path()).unwrap();
        let sealer = Sealer::new(&Zeroizing::new([7; crate::KEY_BYTES])).unwrap();
        let put = Write::Put(Kind::Object, "one".into(), vec![1]);
        let sealed = seal(&sealer, &[put], &mut |bytes| bytes.fill(1)).unwrap();
        records.commit(&sealed).unwrap();
        // A file that opens and cannot be synced.
        let stands_in = folder.path().join("records/blobs/1");
        std::os::unix::fs::symlink("/dev/null", &stands_in).unwrap();
        assert!(records.commit(&sealed).is_err());
        fs::remove_file(&stands_in).unwrap();
        assert!(records.is_broken());
        let again = records.commit(&sealed).unwrap_err();
        assert!(matches!(again, StoreError::Broken(_)), "{again}");
    }

    #[test]
    fn a_lock_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let _held = try_open(folder.path()).unwrap();
        let error = try_open(folder.path()).unwrap_err();
        assert!(is_locked(&error) && !is_damage(&error));
        let error = refused("cannot open", folder.path())(error);
        assert!(matches!(error, StoreError::Locked(_)), "{error}");
    }
}
