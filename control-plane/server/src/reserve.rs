//! Reserved space on the disk for the operator. A file occupies it; when the disk is full the file
//! is removed, so that the operator's changes can still be written, above all revocations. Until
//! the file exists again nobody else may write.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::fs;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::fault::Fault;

const FILE: &str = "reserve";
/// Space for hundreds of changes, each some pages of the store.
const RESERVE_BYTES: usize = 4 * 1024 * 1024;
/// Pause between two tries to occupy it again.
const RETRY: Duration = Duration::from_secs(10);

/// The file that keeps the room, and whether it is whole. Owned by the plane: whoever writes for
/// somebody else than the operator calls `hold` first, and `give` frees the room for a change of
/// the operator.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Unknown,
    Held,
    /// The time since when it is missing.
    Lacking(Instant),
}

impl Reserve {
    /// The reserve in the folder of the store.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            path: folder.join(FILE),
            state: Mutex::new(State::Unknown),
        }
    }

    /// Releases the space before anything is open; returns whether there was any.
    pub(crate) fn release(folder: &Path) -> bool {
        std::fs::remove_file(folder.join(FILE)).is_ok()
    }

    /// Occupies the space, if it is not occupied.
    ///
    /// # Errors
    /// The disk is full.
    pub(crate) async fn hold(&self) -> Result<(), Fault> {
        let mut state = self.state.lock().await;
        match &*state {
            State::Held => return Ok(()),
            State::Lacking(since) if since.elapsed() < RETRY => return Err(Fault::storage_full()),
            State::Lacking(_) | State::Unknown => {}
        }
        if let Err(error) = self.take().await {
            tracing::error!(%error, "the disk is full: only the operator can change anything");
            fs::remove_file(&self.path).await.ok();
            *state = State::Lacking(Instant::now());
            return Err(Fault::storage_full());
        }
        *state = State::Held;
        Ok(())
    }

    /// Releases the space for a change that has failed for lack of it; returns whether there was
    /// any.
    pub(crate) async fn give(&self) -> bool {
        let mut state = self.state.lock().await;
        *state = State::Lacking(Instant::now());
        let given = fs::remove_file(&self.path).await.is_ok();
        if given {
            tracing::warn!("the disk is full: the operator's change uses the reserved space");
        }
        given
    }

    async fn take(&self) -> io::Result<()> {
        if fs::metadata(&self.path)
            .await
            .is_ok_and(|found| found.len() == RESERVE_BYTES as u64)
        {
            return Ok(());
        }
        // Some file systems store repeated bytes in less space.
        let mut bytes = vec![0; RESERVE_BYTES];
        let no_random = |_| io::Error::other("the kernel gave no random bytes");
        SystemRandom::new().fill(&mut bytes).map_err(no_random)?;
        let mut file = fs::File::create(&self.path).await?;
        file.write_all(&bytes).await?;
        file.sync_all().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn released_space_is_not_occupied_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let reserve = Reserve::new(folder.path());
        assert!(!reserve.give().await, "there is none yet");
        let reserve = Reserve::new(folder.path());
        std::fs::write(&path, "half").unwrap();
        reserve.hold().await.unwrap();
        let held = std::fs::metadata(&path).unwrap().len();
        assert_eq!(held, RESERVE_BYTES as u64);
        assert!(reserve.give().await && !path.exists());
        let full = reserve.hold().await.unwrap_err();
        assert_eq!((full.status, path.exists()), (507, false));
        *reserve.state.lock().await = State::Unknown;
        reserve.hold().await.unwrap();
        assert!(path.exists());
    }
}
