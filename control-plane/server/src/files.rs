//! Private files of the state folder, written atomically.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use casemate_durable::{PRIVATE, PUBLIC};

use crate::failure::Failure;

/// Largest file that is read whole, bytes: keys and settings.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Creates a folder that only its owner can enter.
pub(crate) fn create_folder(path: &Path) -> Result<(), Failure> {
    let created = DirBuilder::new().mode(0o700).create(path);
    created.map_err(|error| {
        Failure::cannot_create(format!(
            "cannot create the folder {}: {error}",
            path.display()
        ))
    })
}

/// Writes a file that only its owner can read; it exists completely and synced, or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    casemate_durable::replace(path, PRIVATE, bytes).map_err(|error| {
        Failure::cannot_create(format!("cannot write {}: {error}", path.display()))
    })
}

/// Like [`write_private`], for a file that every user may read.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    casemate_durable::replace(path, PUBLIC, bytes).map_err(|error| {
        Failure::cannot_create(format!("cannot write {}: {error}", path.display()))
    })
}

/// Reads a small file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let named =
        |error: io::Error| Failure::config(format!("cannot read {}: {error}", path.display()));
    let found = fs::metadata(path).map_err(named)?;
    if found.len() > MAX_FILE_BYTES {
        let message = format!(
            "{}: expected at most {MAX_FILE_BYTES} bytes, got {}",
            path.display(),
            found.len()
        );
        return Err(Failure::config(message));
    }
    fs::read(path).map_err(named)
}
