//! Private files of the state folder, written atomically.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

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
    write(path, bytes, 0o600).map_err(|error| {
        Failure::cannot_create(format!("cannot write {}: {error}", path.display()))
    })
}

/// Like [`write_private`], for a file that every user may read.
pub(crate) fn write_public(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    write(path, bytes, 0o644).map_err(|error| {
        Failure::cannot_create(format!("cannot write {}: {error}", path.display()))
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    fs::remove_file(&temporary).or_else(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            Ok(())
        } else {
            Err(error)
        }
    })?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Syncs a folder, so that the names in it survive a crash.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
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
