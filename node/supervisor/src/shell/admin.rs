//! The local admin socket: whoever may open it reads the node's status as one JSON object.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::Happening;

/// Until a reader that does not read is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Binds the socket, 0600, in place of one that an earlier run left.
pub(crate) fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers one reader at a time.
pub(crate) async fn serve(
    listener: std::os::unix::net::UnixListener,
    happenings: mpsc::Sender<Happening>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    loop {
        let (mut reader, _) = listener.accept().await?;
        let (ask, answer) = oneshot::channel();
        if happenings.send(Happening::Status(ask)).await.is_err() {
            return Ok(());
        }
        if let Ok(status) = answer.await {
            let text = format!("{status}\n");
            // A reader that leaves early has read enough.
            let _written =
                tokio::time::timeout(WRITE_TIMEOUT, reader.write_all(text.as_bytes())).await;
        }
    }
}
