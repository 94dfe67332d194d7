//! Files that are replaced whole, and survive a crash.
//!
//! A program that is killed, or a machine that loses power, leaves either the old file or the new
//! one, never a part of one: the bytes go to a temporary file in the same folder, which is synced,
//! renamed and made durable by syncing the folder. All programs write their state files this way.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// Mode of a file that only its owner can read and write.
pub const PRIVATE: u32 = 0o600;
/// Mode of a file that every user can read, and its owner can write.
pub const PUBLIC: u32 = 0o644;

/// Age at which a temporary file belongs to a program that was killed.
const LEFT_OVER: Duration = Duration::from_secs(3600);

/// Replaces a file, or creates it, with this mode (less the process's umask). When it returns,
/// the file and its name are on the disk. A link at this path is replaced and not followed.
///
/// # Errors
/// The folder cannot be written, or the disk is full or has failed. Unless only the sync of the
/// folder failed, the old file is unchanged. No partial file remains.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let prefix = temporary_prefix(path.file_name().unwrap_or_default());
    remove_left_over(folder, &prefix);
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_folder(folder)
}

/// Syncs a folder, so that the names in it survive a crash.
///
/// # Errors
/// It is not a folder, or the disk has failed.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temporary_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".new-");
    prefix
}

/// Removes temporary files of killed programs, so that they do not pile up. A file that cannot be
/// removed does no harm.
fn remove_left_over(folder: &Path, prefix: &OsStr) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let is_old = || {
            entry
                .metadata()?
                .modified()?
                .elapsed()
                .map_err(io::Error::other)
        };
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes())
            && is_old().is_ok_and(|age| age > LEFT_OVER)
        {
            let _removed = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use super::*;

    fn names(folder: &Path) -> BTreeSet<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn a_file_is_created_and_replaced_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        for (bytes, mode) in [(&b"long text"[..], PRIVATE), (b"short", 0o400)] {
            replace(&path, mode, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            let found = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(found & 0o777, mode);
        }
        assert_eq!(names(folder.path()), BTreeSet::from(["state".into()]));
    }

    #[test]
    fn after_a_failure_the_old_file_is_unchanged_and_no_part_remains() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        // The name is taken by a folder with a file in it.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("old"), "old").unwrap();
        replace(&path, PRIVATE, b"new").unwrap_err();
        assert_eq!(fs::read(path.join("old")).unwrap(), b"old");
        assert_eq!(names(folder.path()), BTreeSet::from(["state".into()]));
        replace(&folder.path().join("absent/state"), PRIVATE, b"new").unwrap_err();
    }

    #[test]
    fn links_of_others_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("state"), folder.path().join("other"));
        fs::write(&other, "other").unwrap();
        symlink(&other, &path).unwrap();
        for name in [".state.new-", ".state.new", "state.new"] {
            symlink(&other, folder.path().join(name)).unwrap();
        }
        replace(&path, PRIVATE, b"new").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"other");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }

    #[test]
    fn only_old_temporary_files_of_the_same_file_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * LEFT_OVER;
        for (name, modified) in [
            (".state.new-killed", old),
            (".state.new-living", SystemTime::now()),
            (".states.new-other", old),
        ] {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_modified(modified).unwrap();
        }
        replace(&folder.path().join("state"), PRIVATE, b"new").unwrap();
        let kept = ["state", ".state.new-living", ".states.new-other"];
        assert_eq!(names(folder.path()), kept.map(OsString::from).into());
    }
}
