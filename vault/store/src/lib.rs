//! The vault's memory on disk: records in sled, and beside it the sealed files that must outlive sled.
//!
//! ```text
//! DIR/records/        sled: statements, releases, secrets, grants: a cache of what the control plane holds; and counts of
//!                     secrets in answers, which matter for an hour
//! DIR/memory          what must never be forgotten (highest versions seen); sealed, replaced whole
//! DIR/identity        the node's keys and its fleet; sealed, replaced whole
//! DIR/set-aside/      what could not be read: kept for a person, never deleted
//! DIR/lock            held while a vault runs
//! ```
//! Every record and file is sealed (ChaCha20-Poly1305, RFC 8439) with its name as additional data, so that none can stand
//! in for another. Acknowledged means synced: sled's own flush does not reach the disk, so its files are synced after it.
#![forbid(unsafe_code)]

mod files;
mod records;
mod sealing;

use std::path::{Path, PathBuf};

use casemate_trust::Random;
use zeroize::Zeroizing;

pub use files::StateFile;
pub use records::{Kind, Named, Write};
use sealing::Sealer;

/// Length of the key that everything is sealed with, bytes.
pub const KEY_BYTES: usize = 32;
/// Largest state file, bytes: over the memory of as many tenants and pools as are ever remembered.
pub const MAX_FILE_BYTES: usize = 128 * 1024 * 1024;

/// Why the store could not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another vault has it.
    #[error("{} is in use by another vault", .0.display())]
    Locked(PathBuf),
    /// The operating system refused.
    #[error("{what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk is full.
    #[error("the disk that holds {} is full: nothing was lost, nothing more can be accepted", .0.display())]
    Full(PathBuf),
    /// It could not be read again.
    #[error("{} would be larger than {MAX_FILE_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// A sealed file does not open: another storage key, or changed.
    #[error("{} does not open with this storage key", .0.display())]
    Sealed(PathBuf),
    /// sled failed.
    #[error("the record store failed: {0}")]
    Records(String),
    /// The sealing library failed.
    #[error("sealing failed")]
    Sealing,
}

/// What was found wrong at opening, and where it is now.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// The whole record store, when it could not be opened or read to its end.
    pub records: Option<PathBuf>,
    /// Single records that did not open.
    pub single: Vec<PathBuf>,
}

impl SetAside {
    /// Whether everything must be sent again.
    pub fn is_empty(&self) -> bool {
        self.records.is_none() && self.single.is_empty()
    }
}

/// The store. One process has it at a time.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    sealer: Sealer,
    records: records::Records,
    _lock: std::fs::File,
}

impl Store {
    /// Opens the store in `folder`, making it when there is none. A record store that is damaged, wherever in it, is set aside
    /// and an empty one begun. What sled cannot tell from a write that a kill cut short, it drops without a word: whoever has
    /// a memory compares.
    ///
    /// # Errors
    /// In use, full, or refused by the system.
    pub fn open(
        folder: &Path,
        key: &Zeroizing<[u8; KEY_BYTES]>,
    ) -> Result<(Self, SetAside), StoreError> {
        files::make_folder(folder)?;
        let lock = files::lock(folder)?;
        let sealer = Sealer::new(key)?;
        let (records, set_aside) = records::Records::open(folder)?;
        Ok((
            Self {
                folder: folder.to_owned(),
                sealer,
                records,
                _lock: lock,
            },
            SetAside {
                records: set_aside,
                single: Vec::new(),
            },
        ))
    }

    /// Writes all of `writes` or none, and returns when they are on the disk.
    ///
    /// # Errors
    /// The disk is full or failed.
    pub fn commit(&self, writes: &[Write], random: Random<'_>) -> Result<(), StoreError> {
        self.records.commit(&self.sealer, writes, random)
    }

    /// Every record of a kind, opened. Those that do not open are set aside and named in `set_aside`.
    ///
    /// # Errors
    /// The disk failed.
    pub fn all(&self, kind: Kind, set_aside: &mut SetAside) -> Result<Vec<Named>, StoreError> {
        self.records
            .all(&self.sealer, kind, &self.folder, set_aside)
    }

    /// One record.
    ///
    /// # Errors
    /// It does not open, or the disk failed.
    pub fn get(&self, kind: Kind, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        self.records.get(&self.sealer, kind, name, &self.folder)
    }

    /// What a state file holds; `None` when there is none.
    ///
    /// # Errors
    /// It does not open with this key, or cannot be read.
    pub fn read(&self, file: StateFile) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        files::read_sealed(&self.folder, file, &self.sealer)
    }

    /// Replaces a state file as a whole, and returns when it is on the disk.
    ///
    /// # Errors
    /// The disk is full or failed; the old file is as it was.
    pub fn write(
        &self,
        file: StateFile,
        bytes: &[u8],
        random: Random<'_>,
    ) -> Result<(), StoreError> {
        files::write_sealed(&self.folder, file, bytes, &self.sealer, random)
    }

    /// Moves a state file that does not open out of the way; says where it is.
    ///
    /// # Errors
    /// The disk failed.
    pub fn set_aside(&self, file: StateFile) -> Result<PathBuf, StoreError> {
        files::set_aside(&self.folder, &self.folder.join(file.name()))
    }
}

#[cfg(test)]
mod tests;
