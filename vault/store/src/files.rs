//! Files beside sled, which are replaced whole and synced with their folder.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use casemate_trust::format::MAX_MARK_BYTES;
use zeroize::Zeroizing;

use crate::sealing::Sealer;
use crate::{MAX_FILE_BYTES, StoreError};

/// A sealed file beside the records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateFile {
    /// The node's keys and its fleet.
    Identity,
    /// The lease of this boot.
    Lease,
}

impl StateFile {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Lease => "lease",
        }
    }

    /// Whether a state folder contains this file.
    pub fn is_in(self, folder: &Path) -> bool {
        fs::symlink_metadata(folder.join(self.name())).is_ok()
    }
}

pub(crate) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full(path.to_owned()),
        _ => StoreError::Io {
            what,
            path: path.to_owned(),
            source,
        },
    }
}

pub(crate) fn make_folder(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("cannot make the folder", path))
}

/// Takes an exclusive lock that ends with the process.
pub(crate) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(failed("cannot open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed("cannot lock", &path)(error)),
    }
}

/// The content of a folder's mark, up to one byte beyond the limit; `None` when there is none.
pub(crate) fn read_mark(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot open", path)(error)),
    };
    let mut mark = Vec::new();
    opened
        .take(MAX_MARK_BYTES as u64 + 1)
        .read_to_end(&mut mark)
        .map_err(failed("cannot read", path))?;
    Ok(Some(mark))
}

pub(crate) fn sync_folder(folder: &Path) -> Result<(), StoreError> {
    casemate_durable::sync_folder(folder).map_err(failed("cannot sync", folder))
}

/// Replaces a file, wholly or not at all: see [`casemate_durable::replace`].
///
/// # Errors
/// The disk is full or failed; the old file is unchanged.
pub fn replace_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), StoreError> {
    casemate_durable::replace(path, mode, bytes).map_err(failed("cannot write", path))
}

/// The content of a file; `None` when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("cannot open", path)(error)),
    };
    let mut bytes = Vec::new();
    opened
        .take(MAX_FILE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed("cannot read", path))?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(StoreError::Sealed(path.to_owned()));
    }
    Ok(Some(bytes))
}

pub(crate) fn read_sealed(
    folder: &Path,
    file: StateFile,
    sealer: &Sealer,
) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    let path = folder.join(file.name());
    let Some(sealed) = read(&path)? else {
        return Ok(None);
    };
    let bytes = sealer.open(file.name(), &sealed);
    bytes.map(Some).ok_or(StoreError::Sealed(path))
}

/// Moves a file or folder into `set-aside/` under a free name.
pub(crate) fn set_aside(folder: &Path, path: &Path) -> Result<PathBuf, StoreError> {
    let name = path.file_name().expect("the path of a file of ours");
    let to = free_place(folder, &name.to_string_lossy())?;
    fs::rename(path, &to).map_err(failed("cannot set aside", path))?;
    sync_folder(folder)?;
    Ok(to)
}

/// A free name in `set-aside/`.
pub(crate) fn free_place(folder: &Path, name: &str) -> Result<PathBuf, StoreError> {
    /// Most files in `set-aside/`: more would mean that no person has looked for long.
    const MOST: usize = 10_000;
    let aside = folder.join("set-aside");
    make_folder(&aside)?;
    let free = (1..=MOST)
        .map(|number| aside.join(format!("{name}.{number}")))
        .find(|path| !path.exists());
    free.ok_or(StoreError::Io {
        what: "too many files are set aside in",
        path: aside,
        source: ErrorKind::AlreadyExists.into(),
    })
}
