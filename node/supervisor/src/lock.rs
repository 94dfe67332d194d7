//! One node a state folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use casemate_config::{EXIT_IO, EXIT_TEMPORARY};

/// Takes the folder until the file is dropped; otherwise the exit code and why. Before anything in it is touched: a second
/// node must take nothing from the first.
pub(crate) fn lock(state: &Path) -> Result<File, (u8, String)> {
    let path = state.join("lock");
    let cannot = |error: std::io::Error| {
        let message = format!("cannot lock {}: {error}", path.display());
        (EXIT_IO, message)
    };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err((
            EXIT_TEMPORARY,
            format!(
                "{} is in use by another node: stop it, or choose another --state",
                state.display()
            ),
        )),
        Err(TryLockError::Error(error)) => Err(cannot(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_told_and_a_later_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let (code, message) = lock(folder.path()).unwrap_err();
        assert_eq!(code, EXIT_TEMPORARY);
        assert!(message.contains("another node"), "{message}");
        drop(first);
        assert!(lock(folder.path()).is_ok());
        let nowhere = lock(Path::new("/proc/nowhere")).unwrap_err();
        assert_eq!(nowhere.0, EXIT_IO);
    }
}
