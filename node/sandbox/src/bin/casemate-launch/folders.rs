//! The state folders: one for the supervisor and one for the vault, each accessible to its owner
//! alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, fchmod, fchown, mkdirat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::uid;

/// Makes `state` with its two folders, and returns its absolute path. With `base`, the folders are
/// given to the programs' users; existing contents keep their owner.
pub(crate) fn prepare(state: &Path, base: Option<u32>) -> io::Result<PathBuf> {
    fs::create_dir_all(state)?;
    let state = fs::canonicalize(state)?;

    if base.is_some() {
        // The programs may pass through the folder, but not list it.
        let folder = openat(
            CWD,
            &state,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        fchmod(&folder, Mode::from_raw_mode(0o711))?;
    }

    for (name, number) in [("node", uid::SUPERVISOR), ("vault", uid::VAULT)] {
        let path = state.join(name);
        match mkdirat(CWD, &path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }

        // A link in its place would make us give away another folder.
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(CWD, &path, flags, Mode::empty())?;

        if let Some(base) = base {
            let id = base + number;
            fchown(&folder, Some(Uid::from_raw(id)), Some(Gid::from_raw(id)))?;
        }
        fchmod(&folder, Mode::RWXU)?;
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn folders_are_their_owners_alone_and_a_second_time_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        let base = rustix::process::geteuid().is_root().then_some(710_000);
        for _ in 0..2 {
            let state = prepare(&folder.path().join("a/state"), base).unwrap();
            for (name, number) in [("node", 1), ("vault", 2)] {
                let metadata = fs::metadata(state.join(name)).unwrap();
                assert_eq!(metadata.mode() & 0o7777, 0o700);
                assert!(base.is_none_or(
                    |base| metadata.uid() == base + number && metadata.gid() == base + number
                ));
            }
        }
    }

    #[test]
    fn a_link_in_place_of_a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mode = fs::metadata(folder.path()).unwrap().mode();
        symlink(folder.path(), folder.path().join("vault")).unwrap();
        prepare(folder.path(), None).unwrap_err();
        assert_eq!(fs::metadata(folder.path()).unwrap().mode(), mode);
    }
}
