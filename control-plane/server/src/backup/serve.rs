//! The socket in the state folder over which a running control plane sends its store to the backup
//! program. Only users who may enter the state folder can reach it, and they could read the files
//! too.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::wire::{ASK, Sender};
use crate::plane::Plane;

/// The socket's name in the state folder.
pub(super) const SOCKET: &str = "control.sock";
/// Time limit for the other program, between two signs of life or before it reads more.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket, while it accepts connections.
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens in a state folder, once the store is open: only the program that has opened the
    /// store listens. `None` if that is not possible, with a log message.
    pub(crate) fn open(state: &Path) -> Option<Self> {
        let path = state.join(SOCKET);
        match listen(&path) {
            Ok(listener) => Some(Self { path, listener }),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "cannot listen: no backup can be made while this control plane runs");
                None
            }
        }
    }
}

/// Sends the store, to one backup program after the other, until `stopping`.
pub(crate) async fn run(socket: Option<Socket>, plane: Arc<Plane>, stopping: CancellationToken) {
    let Some(Socket { path, listener }) = socket else {
        return;
    };
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let handed_out = async { hand_out(accepted?.0.into_std()?, &plane, &stopping).await };
        match handed_out.await {
            Ok(()) => tracing::info!("a backup was made"),
            Err(error) => {
                tracing::warn!(%error, "a backup failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    std::fs::remove_file(&path).ok();
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // A killed program may have left the socket: only this program has the store open and listens.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends the store, and keeps every bundle until the other program has copied what it needs and
/// disconnects.
async fn hand_out(
    socket: UnixStream,
    plane: &Plane,
    stopping: &CancellationToken,
) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let closer = socket.try_clone()?;
    let _closing = Closing(&closer);
    let handing_out = async {
        let socket = blocking(move || read_question(socket)).await?;
        let _keeping = plane.keep_everything().await;
        let sender = Sender::new(socket.try_clone()?);
        let sent = plane.read_all(sender).await.map_err(io::Error::other)?;
        blocking(move || {
            sent?.end()?;
            wait_for_end(socket)
        })
        .await
    };
    tokio::select! {
        handed_out = handing_out => handed_out,
        () = stopping.cancelled() => Err(io::Error::other("the control plane stops")),
    }
}

/// Closes the socket when dropped, so that waiting reads and writes end.
struct Closing<'a>(&'a UnixStream);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.shutdown(Shutdown::Both).ok();
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other)?
}

fn read_question(mut socket: UnixStream) -> io::Result<UnixStream> {
    let mut question = [0; ASK.len()];
    socket.read_exact(&mut question)?;
    if question == ASK {
        Ok(socket)
    } else {
        let message = "the request names an operation that this version does not support";
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

/// Waits for the end: the other program sends a byte now and then while it copies bundles.
fn wait_for_end(mut socket: UnixStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    while socket.read(&mut bytes)? > 0 {}
    Ok(())
}
