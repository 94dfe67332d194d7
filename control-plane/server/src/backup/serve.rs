//! The socket in the state folder at which a running control plane hands its store to the program that makes a backup. Only
//! whoever may enter the state folder reaches it, and they could read the files too.

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
/// How long the other program may let us wait, between two of its words or before it takes more.
const PATIENCE: Duration = Duration::from_secs(60);
/// After an accept that failed.
const PAUSE: Duration = Duration::from_millis(100);

/// The socket, while it is listened at.
pub(crate) struct Socket {
    path: PathBuf,
    listener: UnixListener,
}

impl Socket {
    /// Listens in a state folder, once the store is open: whoever has opened it is the one that listens. `None` where that is
    /// not possible, which the log says.
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

/// Hands out the store, one backup after the other, until `stopping`.
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
    // Of a program that was killed: the store is ours, so nobody listens there.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Sends the store, and keeps every bundle until the other program has what it wants of them and goes.
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

/// Ends what still waits for the socket.
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
        let message = "asked for something that this version does not know";
        Err(io::Error::new(io::ErrorKind::InvalidData, message))
    }
}

/// The other program says a byte now and then while it copies bundles.
fn wait_for_end(mut socket: UnixStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    while socket.read(&mut bytes)? > 0 {}
    Ok(())
}
