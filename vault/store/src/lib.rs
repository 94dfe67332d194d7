//! The vault's state on disk: records in sled, and beside it the sealed files that must outlive
//! sled.
//!
//! ```text
//! DIR/records/        sled: statements, releases, secrets, grants: a cache of what the control plane holds; and counts of
//!                     secrets in answers, which matter for an hour
//! DIR/memory          the rollback memory (highest versions seen); a sealed log
//! DIR/identity        the node's keys and its fleet; sealed, replaced whole
//! DIR/set-aside/      files that could not be read: kept for a person, never deleted
//! DIR/reserve/        space for withdrawals on a disk that another program has filled
//! DIR/lock            held while a vault runs
//! DIR/format.json     the format of all these files; read first
//! ```
//! Every record and file is sealed (ChaCha20-Poly1305, RFC 8439) with its name as additional data, so that none can stand
//! in for another. Acknowledged means synced: sled's own flush does not reach the disk, so its files are synced after it.
#![forbid(unsafe_code)]

mod files;
mod memory;
mod records;
mod reserve;
mod sealing;

use std::path::{Path, PathBuf};

use casemate_durable::PRIVATE;
use casemate_trust::Random;
use casemate_trust::format::{Format, FormatError, MARK, Marking};
use parking_lot::{Mutex, MutexGuard};
use zeroize::Zeroizing;

pub use files::{StateFile, replace_file};
pub use memory::StoredMemory;
use memory::{MEMORY, MemoryLog};
pub use records::{Kind, Named, Write};
use reserve::{LOG_BYTES, Reserve};
pub use reserve::{ReserveState, Room};
use sealing::Sealer;

/// Length of the key that seals everything, bytes.
pub const KEY_BYTES: usize = 32;
/// Largest state file, bytes: larger than the memory of the most tenants and pools that are
/// remembered.
pub const MAX_FILE_BYTES: usize = 128 * 1024 * 1024;

/// The formats of a vault's folder. A change that earlier vaults would misread gets a new number,
/// and a fixture.
pub const FORMAT: Format = Format {
    what: "the vault's state",
    newest: 2,
};

/// Why an operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another vault has the lock.
    #[error("{} is in use by another vault", .0.display())]
    Locked(PathBuf),
    /// A newer vault has written the folder.
    #[error("cannot open {}", path.display())]
    Format {
        /// The folder.
        path: PathBuf,
        /// What is wrong with its mark.
        source: FormatError,
    },
    /// An operation of the system failed.
    #[error("{what} {}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The disk is full.
    #[error(
        "the disk that holds {} is full: nothing was lost, and until it has room only withdrawals and what the root has signed \
         are accepted",
        .0.display()
    )]
    Full(PathBuf),
    /// A write has failed halfway, and the record store's view may differ from the disk: it has to
    /// be opened again, in a new process.
    #[error("a write to {} has failed: the vault must be started again", .0.display())]
    Broken(PathBuf),
    /// A frame was appended to a memory without a base.
    #[error("the memory has to be written whole before it grows")]
    MemoryNotBegun,
    /// The file would be too large to be read again.
    #[error("{} would be larger than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A sealed file does not open: the storage key differs, or the file was changed.
    #[error(
        "{} does not open with this storage key: put back the file, or the key that it was sealed with. If that is lost for good, \
         `casemate node revoke` the node, move its state folder aside and give it a new join token",
        .0.display()
    )]
    Sealed(PathBuf),
    /// sled failed.
    #[error("the record store failed: {0}")]
    Records(String),
    /// The sealing library failed.
    #[error("sealing failed")]
    Sealing,
}

/// What was damaged at opening, and where it is now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The whole record store, when it could not be opened or read to its end.
    pub records: Option<PathBuf>,
    /// Single records that did not open.
    pub single: Vec<SetAsideRecord>,
}

/// A record that did not open, and the file that holds its bytes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAsideRecord {
    /// The record's kind.
    pub kind: Kind,
    /// The record's name within its kind.
    pub name: String,
    /// The file.
    pub place: PathBuf,
}

impl SetAside {
    /// Whether nothing was damaged.
    pub fn is_empty(&self) -> bool {
        self.records.is_none() && self.single.is_empty()
    }
}

/// Reads a folder's mark, before anything in the folder is read or changed.
///
/// # Errors
/// A newer vault has written the folder, or the mark cannot be read.
pub fn must_be_readable(folder: &Path) -> Result<Marking, StoreError> {
    let mark = files::read_mark(&folder.join(MARK))?;
    FORMAT
        .check(mark.as_deref())
        .map_err(|source| StoreError::Format {
            path: folder.to_owned(),
            source,
        })
}

/// The store. One process opens it at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    sealer: Sealer,
    records: records::Records,
    /// Locked by every writer.
    reserve: Mutex<Reserve>,
    /// Locked after the reserve; `None` before the memory was first written.
    memory: Mutex<Option<MemoryLog>>,
    _lock: std::fs::File,
}

impl Store {
    /// Opens the store in `folder`, and makes it when it does not exist. A damaged record store is
    /// set aside and replaced by an empty one. Records that sled mistakes for a write that a kill
    /// cut short are silently dropped; the caller compares with its memory. On a full disk the
    /// reserve is used.
    ///
    /// # Errors
    /// The store is in use, of a newer vault, full, or refused by the system.
    pub fn open(
        folder: &Path,
        key: &Zeroizing<[u8; KEY_BYTES]>,
    ) -> Result<(Self, SetAside), StoreError> {
        files::make_folder(folder)?;
        let lock = files::lock(folder)?;
        let marking = must_be_readable(folder)?;
        let sealer = Sealer::new(key)?;
        let mut reserve = Reserve::open(folder)?;
        let memory = std::fs::metadata(folder.join(MEMORY));
        reserve.covers(memory.map_or(0, |found| found.len()));
        let opened = within(&mut reserve, Room::Root, || records::Records::open(folder));
        let marked = match (&opened, marking) {
            (Err(_), _) | (Ok(_), Marking::Done) => Ok(()),
            (Ok(_), Marking::Wanted | Marking::Needed) => within(&mut reserve, Room::Root, || {
                replace_file(&folder.join(MARK), PRIVATE, &FORMAT.mark())
            }),
        };
        reserve.fill();
        let (records, set_aside) = opened?;
        if marking == Marking::Needed {
            marked?;
        }
        Ok((
            Self {
                folder: folder.to_owned(),
                sealer,
                records,
                reserve: Mutex::new(reserve),
                memory: Mutex::default(),
                _lock: lock,
            },
            SetAside {
                records: set_aside,
                single: Vec::new(),
            },
        ))
    }

    fn reserve(&self) -> MutexGuard<'_, Reserve> {
        self.reserve.lock()
    }

    /// Whether a write has failed halfway, so that no write is possible any more.
    pub fn is_broken(&self) -> bool {
        self.records.is_broken()
    }

    /// Fills the reserve again, as far as the disk has space; returns its state.
    pub fn fill_reserve(&self) -> ReserveState {
        let mut reserve = self.reserve();
        if reserve.state().held < reserve.state().wanted {
            reserve.fill();
        }
        reserve.state()
    }

    /// Writes all of `writes` or none, then appends `frame` to the memory, and returns when both
    /// are on the disk. A kill in between leaves records that are newer than the memory.
    ///
    /// # Errors
    /// The disk is full, as far as `room` allows to use it, or failed.
    pub fn commit(
        &self,
        writes: &[Write],
        frame: Option<&[u8]>,
        room: Room,
        random: Random<'_>,
    ) -> Result<(), StoreError> {
        let sealed = records::seal(&self.sealer, writes, random)?;
        let put = sealed.iter().filter_map(|(_, bytes)| bytes.as_ref());
        let records_bytes: usize = put.map(Vec::len).sum();
        let mut reserve = self.reserve();
        let mut memory = self.memory();
        let frame = match (frame, &mut *memory) {
            (None, _) => None,
            (Some(_), None) => return Err(StoreError::MemoryNotBegun),
            (Some(frame), Some(log)) => Some((log.seal(&self.sealer, frame, random)?, log)),
        };
        let needed = 2 * records_bytes + frame.as_ref().map_or(0, |(frame, _)| frame.len());
        reserve.make_room(needed as u64 + LOG_BYTES, room)?;
        let mut done = self.records.commit(&sealed);
        if let (Ok(()), Some((frame, log))) = (&done, frame) {
            // Records that are ahead of the memory are repaired at the next start, before anything
            // else is written.
            done = within(&mut reserve, Room::Root, || log.append(&frame))
                .inspect_err(|_| self.records.close());
            reserve.covers(log.length());
        }
        reserve.fill();
        done
    }

    fn memory(&self) -> MutexGuard<'_, Option<MemoryLog>> {
        self.memory.lock()
    }

    /// The memory on the disk; `None` when there is none.
    ///
    /// # Errors
    /// The memory is damaged or sealed with another key, or the disk failed.
    pub fn read_memory(&self) -> Result<Option<StoredMemory>, StoreError> {
        MemoryLog::read(&self.folder, &self.sealer)
    }

    /// Replaces the memory as a whole by a base of these frames. It may use the reserve, as every
    /// write of a state file may.
    ///
    /// # Errors
    /// The disk is full or failed; the memory is unchanged.
    pub fn write_memory(
        &self,
        frames: impl ExactSizeIterator<Item = Vec<u8>>,
        random: Random<'_>,
    ) -> Result<(), StoreError> {
        let mut reserve = self.reserve();
        let log = MemoryLog::write(&self.folder, &self.sealer, frames, random, |write| {
            within(&mut reserve, Room::Root, write)
        });
        let done = log.map(|log| {
            reserve.covers(log.length());
            *self.memory() = Some(log);
        });
        reserve.fill();
        done
    }

    /// Whether the memory has grown so long that it should be rewritten.
    pub fn is_memory_long(&self) -> bool {
        self.memory().as_ref().is_some_and(MemoryLog::is_long)
    }

    /// Moves a memory that does not open aside; returns its new path.
    ///
    /// # Errors
    /// The disk failed.
    pub fn set_memory_aside(&self) -> Result<PathBuf, StoreError> {
        files::set_aside(&self.folder, &self.folder.join(MEMORY))
    }

    /// Reads every record of a kind. Those that do not open are set aside and named in `set_aside`.
    ///
    /// # Errors
    /// The disk failed.
    pub fn all(&self, kind: Kind, set_aside: &mut SetAside) -> Result<Vec<Named>, StoreError> {
        self.records
            .all(&self.sealer, kind, &self.folder, set_aside)
    }

    /// Reads one record.
    ///
    /// # Errors
    /// The record does not open, or the disk failed.
    pub fn get(&self, kind: Kind, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.records.get(&self.sealer, kind, name, &self.folder)
    }

    /// Reads a state file; `None` when there is none.
    ///
    /// # Errors
    /// The file does not open with this key, or cannot be read.
    pub fn read(&self, file: StateFile) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        files::read_sealed(&self.folder, file, &self.sealer)
    }

    /// Replaces a state file as a whole, and returns when it is on the disk. It may use the
    /// reserve, because its size hardly changes, so that the space is free again afterwards.
    ///
    /// # Errors
    /// The disk is full or failed; the old file is unchanged.
    pub fn write(
        &self,
        file: StateFile,
        bytes: &[u8],
        random: Random<'_>,
    ) -> Result<(), StoreError> {
        let path = self.folder.join(file.name());
        let sealed = self.sealer.seal(file.name(), bytes, random)?;
        if sealed.len() > MAX_FILE_BYTES {
            return Err(StoreError::TooLarge(path));
        }
        let mut reserve = self.reserve();
        let done = within(&mut reserve, Room::Root, || {
            replace_file(&path, PRIVATE, &sealed)
        });
        reserve.fill();
        done
    }

    /// Replaces a file in the store's folder that other programs read, as [`replace_file`] does.
    ///
    /// # Errors
    /// The disk is full, as far as `room` allows to use it, or failed; the old file is unchanged.
    pub fn replace(
        &self,
        path: &Path,
        mode: u32,
        bytes: &[u8],
        room: Room,
    ) -> Result<(), StoreError> {
        let mut reserve = self.reserve();
        reserve.make_room(bytes.len() as u64, room)?;
        let done = within(&mut reserve, room, || replace_file(path, mode, bytes));
        reserve.fill();
        done
    }
}

/// Runs an operation that may need disk space, and retries it after each slice of the reserve that
/// it may use is freed.
fn within<T>(
    reserve: &mut Reserve,
    room: Room,
    mut work: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    loop {
        match work() {
            Err(StoreError::Full(_)) if reserve.release(room)? => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests;
