//! One node a state folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use casemate_config::{EXIT_IO, EXIT_TEMPORARY};

/// A node that was killed holds its folder until the kernel has taken it apart, which its successor may come before.
const WAIT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(5);

/// Takes the folder until the file is dropped; otherwise the exit code and why. Before anything in it is touched: a second
/// node must take nothing from the first.
pub(crate) fn lock(state: &Path) -> Result<File, (u8, String)> {
    lock_within(state, WAIT)
}

fn lock_within(state: &Path, wait: Duration) -> Result<File, (u8, String)> {
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
    let until = Instant::now() + wait;
    let mut has_said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                if !has_said {
                    tracing::info!("waiting for the node that has {}", state.display());
                    has_said = true;
                }
                std::thread::sleep(RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                let message = format!(
                    "{} is in use by another node: stop it, or choose another --state",
                    state.display()
                );
                return Err((EXIT_TEMPORARY, message));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_node_is_told_and_a_later_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let (code, message) = lock_within(folder.path(), Duration::ZERO).unwrap_err();
        assert_eq!(code, EXIT_TEMPORARY);
        assert!(message.contains("another node"), "{message}");
        drop(first);
        assert!(lock_within(folder.path(), Duration::ZERO).is_ok());
        let nowhere = lock(Path::new("/proc/nowhere")).unwrap_err();
        assert_eq!(nowhere.0, EXIT_IO);
    }

    #[test]
    fn a_node_that_ends_meanwhile_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        let (begun, waits) = std::sync::mpsc::channel();
        let state = folder.path().to_owned();
        let second = std::thread::spawn(move || {
            begun.send(()).unwrap();
            lock_within(&state, Duration::from_secs(60)).is_ok()
        });
        waits.recv().unwrap();
        std::thread::sleep(RETRY * 4);
        assert!(!second.is_finished(), "it is held");
        drop(first);
        assert!(second.join().unwrap());
    }
}
