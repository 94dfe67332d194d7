//! A service manager that keeps descriptors over a restart. `casemate-launch` cannot distinguish it
//! from systemd.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// Descriptor numbers from here on are out of the way of those that a started process receives.
const AWAY: i32 = 200;
/// Longest message, bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// The stand-in for systemd, with its notification socket.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    stored: Vec<(String, OwnedFd)>,
}

impl Manager {
    /// A manager whose socket is in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).context("the manager's socket")?;
        Ok(Self {
            socket,
            path,
            stored: Vec::new(),
        })
    }

    /// The same command, started by this manager: the process can store descriptors, and receives
    /// those that are stored. They start at number 3. The environment has to name the process's id,
    /// which a shell knows before it executes the program.
    pub fn wrap(&mut self, command: &Command) -> Result<Command> {
        self.listen()?;
        let mut moves = String::new();
        for ((_, descriptor), number) in self.stored.iter_mut().zip(3..) {
            let away = rustix::io::fcntl_dupfd_cloexec(&descriptor, AWAY)?;
            rustix::io::fcntl_setfd(&away, FdFlags::empty())?;
            moves += &format!("{number}<&{} ", away.as_raw_fd());
            *descriptor = away;
        }
        let script = format!(r#"exec {moves}; LISTEN_PID=$$ exec "$0" "$@""#);
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(script);
        shell.arg(command.get_program()).args(command.get_args());
        shell.env("NOTIFY_SOCKET", &self.path);
        shell.env("LISTEN_FDS", self.stored.len().to_string());
        Ok(shell)
    }

    /// Receives the notifications that have been sent so far.
    fn listen(&mut self) -> Result<()> {
        let mut bytes = [0; MAX_MESSAGE_BYTES];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = match recvmsg(&self.socket, &mut slices, &mut ancillary, flags) {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let descriptors = ancillary.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
                _ => Vec::new(),
            });
            let descriptors: Vec<OwnedFd> = descriptors.collect();
            let text = String::from_utf8_lossy(&bytes[..received]).into_owned();
            let name = text.lines().find_map(|line| line.strip_prefix("FDNAME="));
            let name = name.context("a name")?.to_owned();
            if text.starts_with("FDSTORE=1\n") {
                let named = descriptors.into_iter().map(|one| (name.clone(), one));
                self.stored.extend(named);
            } else {
                self.stored.retain(|(stored, _)| *stored != name);
            }
        }
    }
}
