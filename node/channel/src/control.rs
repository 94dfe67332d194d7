//! Control channels: each packet holds one message, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use casemate_wire::control::{
    MAX_DESCRIPTORS, MAX_INLINE_BYTES, Message, MessageError, decode, encode,
};
use casemate_wire::frame::{FrameError, HEADER_BYTES, control_packet, control_payload};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Pause between two log lines about skipped packets.
const SKIPPED_INTERVAL: Duration = Duration::from_secs(10);

/// Why a message could not be sent or was refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("the control socket failed")]
    Socket(#[source] io::Error),
    /// The packet is malformed.
    #[error("the packet holds no control frame")]
    Frame(#[from] FrameError),
    /// The message is malformed.
    #[error("the message was refused")]
    Message(#[from] MessageError),
    /// The packet was cut off, or had too many descriptors.
    #[error("the packet was cut off")]
    Truncated,
    /// No memfd is available for a large message: nothing was sent, and a retry may succeed.
    #[error("no memfd is available for a large message")]
    NoMemfd(#[source] io::Error),
    /// The memfd of a large message is not sealed, or too large.
    #[error("expected a sealed memfd of at most {0} bytes")]
    Memfd(usize),
}

impl ControlError {
    /// Whether only one message is lost: the socket still works. A process without free descriptors
    /// gets `Truncated` too, which is then not the sender's fault.
    pub fn is_of_one_message(&self) -> bool {
        !matches!(self, Self::Socket(_))
    }
}

/// Skipped packets, counted so that a flood of them does not fill a log.
#[derive(Debug, Default)]
pub struct Skipped {
    unsaid: u64,
    said: Option<Instant>,
}

impl Skipped {
    /// Counts one more; returns the number to log, if a log line is due.
    pub fn one_more(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        let early = |said| now.saturating_duration_since(said) < SKIPPED_INTERVAL;
        if self.said.is_some_and(early) {
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

impl From<rustix::io::Errno> for ControlError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Socket(errno.into())
    }
}

/// One end of a control channel: sends `Out`, receives `In`.
#[derive(Debug)]
pub struct Control<Out, In> {
    /// tokio's stream type only polls the descriptor: packets are sent by `sendmsg` and `recvmsg`.
    socket: UnixStream,
    messages: PhantomData<fn(Out) -> In>,
}

/// The two ends of a new socket pair for a control channel.
///
/// # Errors
/// No descriptors are left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// A memfd that holds `bytes` and can never change again.
///
/// # Errors
/// No memory or no descriptors are left.
pub fn sealed_memfd(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(&fd, &bytes[written..], written as u64)?;
    }
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(fd)
}

/// Reads a sealed memfd of at most `max_bytes` bytes.
///
/// # Errors
/// The memfd is not sealed (the sender could change it during the read), too large, or unreadable.
pub fn read_sealed_memfd(fd: impl AsFd, max_bytes: usize) -> Result<Vec<u8>, ControlError> {
    let wanted = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let sealed = rustix::fs::fcntl_get_seals(&fd).is_ok_and(|seals| seals.contains(wanted));
    let size = rustix::fs::fstat(&fd).map_or(-1, |stat| stat.st_size);
    let size = usize::try_from(size)
        .ok()
        .filter(|size| sealed && *size <= max_bytes)
        .ok_or(ControlError::Memfd(max_bytes))?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match rustix::io::pread(&fd, &mut bytes[filled..], filled as u64) {
            Ok(0) | Err(_) => return Err(ControlError::Memfd(max_bytes)),
            Ok(count) => filled += count,
        }
    }
    Ok(bytes)
}

impl<Out: Message, In: Message> Control<Out, In> {
    /// Makes the end on this socket.
    ///
    /// # Errors
    /// There is no runtime with which the socket could be registered.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: UnixStream::from_std(socket)?,
            messages: PhantomData,
        })
    }

    /// Sends a message with descriptors, at most [`MAX_DESCRIPTORS`]; waits while the other end's
    /// buffer is full.
    ///
    /// # Errors
    /// See [`ControlError`]; the message was not sent.
    pub async fn send(&self, message: &Out, fds: &[BorrowedFd<'_>]) -> Result<(), ControlError> {
        let payload = encode(message)?;
        let memfd = spill(&payload)?;
        let (packet, all) = packet(&payload, memfd.as_ref(), fds);
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || {
                Ok(send_packet(self.socket.as_fd(), &packet, &all)?)
            })
            .await;
        sent.map_err(ControlError::Socket)
    }

    /// Sends a message without waiting; `false` when the other end's buffer is full and nothing was
    /// sent.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn try_send(&self, message: &Out, fds: &[BorrowedFd<'_>]) -> Result<bool, ControlError> {
        let payload = encode(message)?;
        let memfd = spill(&payload)?;
        let (packet, all) = packet(&payload, memfd.as_ref(), fds);
        match send_packet(self.socket.as_fd(), &packet, &all) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives the next message with its descriptors; `None` when the other end has closed.
    ///
    /// # Errors
    /// See [`ControlError`]; the packet is lost, and its descriptors are closed. If only a hostile
    /// peer can cause the error, close the channel; after [`ControlError::is_of_one_message`] the
    /// channel may also be read further.
    pub async fn recv(&self) -> Result<Option<(In, Vec<OwnedFd>)>, ControlError> {
        let mut packet = vec![0; HEADER_BYTES + MAX_INLINE_BYTES];
        let received = self.socket.async_io(Interest::READABLE, || {
            match receive_packet(self.socket.as_fd(), &mut packet) {
                // Only `WouldBlock` makes the runtime wait and try again.
                Err(ControlError::Socket(error)) => Err(error),
                other => Ok(other),
            }
        });
        let (length, mut fds) = match received.await {
            Ok(received) => received?,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(ControlError::Socket(error)),
        };
        if length == 0 {
            return Ok(None);
        }
        let payload = control_payload(&packet[..length])?;
        let message = if payload.is_empty() {
            decode(&read_sealed_memfd(
                fds.pop().ok_or(ControlError::Memfd(In::MAX_BYTES))?,
                In::MAX_BYTES,
            )?)?
        } else {
            decode(payload)?
        };
        Ok(Some((message, fds)))
    }
}

/// A message over the inline limit goes into a memfd; its packet is then empty. No message has an
/// empty encoding.
fn spill(payload: &[u8]) -> Result<Option<OwnedFd>, ControlError> {
    if payload.len() <= MAX_INLINE_BYTES {
        return Ok(None);
    }
    sealed_memfd("casemate-message", payload)
        .map(Some)
        .map_err(ControlError::NoMemfd)
}

fn packet<'a>(
    payload: &[u8],
    memfd: Option<&'a OwnedFd>,
    fds: &[BorrowedFd<'a>],
) -> (Vec<u8>, Vec<BorrowedFd<'a>>) {
    assert!(
        fds.len() <= MAX_DESCRIPTORS,
        "more descriptors than a packet has"
    );
    let inline = if memfd.is_some() { &[] } else { payload };
    (
        control_packet(inline),
        fds.iter().copied().chain(memfd.map(AsFd::as_fd)).collect(),
    )
}

fn send_packet(
    socket: BorrowedFd<'_>,
    packet: &[u8],
    fds: &[BorrowedFd<'_>],
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(rustix::io::Errno::INVAL);
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(packet)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

fn receive_packet(
    socket: BorrowedFd<'_>,
    packet: &mut [u8],
) -> Result<(usize, Vec<OwnedFd>), ControlError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(packet)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
    if received.flags.intersects(cut) {
        Err(ControlError::Truncated)
    } else {
        Ok((received.bytes, fds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_in_ten_seconds() {
        let (mut skipped, start) = (Skipped::default(), Instant::now());
        assert_eq!(
            skipped.one_more(start),
            Some(1),
            "the first packet is logged at once"
        );
        for _ in 0..1000 {
            assert_eq!(skipped.one_more(start), None);
        }
        let later = start + SKIPPED_INTERVAL;
        assert_eq!(skipped.one_more(later), Some(1001));
        assert_eq!(skipped.one_more(later), None);
    }
}
