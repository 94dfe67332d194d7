//! The supervisor's end of the launch socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{Command, Event, PACKET_BYTES};

/// The supervisor's end of its socket to `casemate-launch`. It never blocks, and is made for
/// tokio's `AsyncFd`.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Takes the socket and makes it non-blocking.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket })
    }

    /// Takes descriptor 0, where launch puts the socket.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn from_stdin() -> io::Result<Self> {
        Self::new(io::stdin().as_fd().try_clone_to_owned()?)
    }

    /// Sends a command, with a descriptor if and only if it is [`Command::Start`] or [`Command::Hold`].
    ///
    /// # Errors
    /// `WouldBlock` while launch is busy; any other error means that launch is gone.
    pub fn send(&self, command: &Command, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_with(command, descriptor.as_slice())
    }

    /// Sends [`Command::Start`] with both ends of the child's control socket, the child's first.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub fn start(&self, command: &Command, ends: [BorrowedFd<'_>; 2]) -> io::Result<()> {
        self.send_with(command, &ends)
    }

    fn send_with(&self, command: &Command, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if !command.descriptors().contains(&descriptors.len()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "start takes one descriptor or two, hold takes one, and the others take none",
            ));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        sendmsg(
            &self.socket,
            &[IoSlice::new(&command.encode())],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// The next event; `None` when launch is gone.
    ///
    /// # Errors
    /// `WouldBlock` if there is none yet; `InvalidData` if the packet is malformed.
    pub fn recv(&self) -> io::Result<Option<Event>> {
        Ok(self.recv_with_descriptor()?.map(|(event, _)| event))
    }

    /// The next event, with the descriptor that comes with [`Event::Adopted`] and [`Event::Held`].
    ///
    /// # Errors
    /// As [`Client::recv`].
    pub fn recv_with_descriptor(&self) -> io::Result<Option<(Event, Option<OwnedFd>)>> {
        // One byte more than a packet, so that a longer packet is noticed.
        let mut bytes = [0; PACKET_BYTES + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, super::Malformed));
        }
        let event = Event::decode(&bytes[..received.bytes]);
        event
            .map(|event| Some((event, descriptor)))
            .map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
