//! A service manager that keeps descriptors over a restart: systemd's descriptor store, with the
//! protocol of sd_notify(3). A program that stores a descriptor gets it back in `LISTEN_FDS` at the
//! next start.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

/// The variable with the path of the manager's socket.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service manager that has started us.
#[derive(Debug)]
pub(crate) struct Manager {
    socket: OwnedFd,
    address: SocketAddrUnix,
}

impl Manager {
    /// The manager that the environment names, if any.
    pub(crate) fn from_environment() -> Option<Self> {
        let path = std::env::var_os(SOCKET_VARIABLE)?;
        match Self::at(&path) {
            Ok(manager) => Some(manager),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "{SOCKET_VARIABLE} is not a socket's address: listening sockets are not stored for a restart"
                );
                None
            }
        }
    }

    fn at(path: &OsString) -> io::Result<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
            path => SocketAddrUnix::new(path)?,
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { socket, address })
    }

    /// Asks the manager to keep a copy of a socket.
    pub(crate) fn store(&self, address: SocketAddr, socket: &OwnedFd) {
        let text = format!("FDSTORE=1\nFDNAME={}", name(address));
        self.tell(&text, &[socket.as_fd()]);
    }

    /// Asks the manager to close its copy.
    pub(crate) fn remove(&self, address: SocketAddr) {
        self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={}", name(address)), &[]);
    }

    /// Sends without waiting: if the manager does not read, only the copy is lost.
    fn tell(&self, text: &str, descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let sent = sendmsg_addr(
            &self.socket,
            &self.address,
            &[IoSlice::new(text.as_bytes())],
            &mut ancillary,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        );
        if let Err(error) = sent {
            tracing::warn!(
                %error,
                "the service manager did not take a listening socket: a restart may refuse callers"
            );
        }
    }
}

/// The manager's name of the socket, which must not contain a colon.
pub(crate) fn name(address: SocketAddr) -> String {
    address.to_string().replace(':', "_")
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;

    use casemate_sandbox::launch::listener_address;
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    #[test]
    fn a_manager_gets_a_copy_and_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(&path.into_os_string()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let listener: OwnedFd = listener.into();
        manager.store(address, &listener);
        manager.remove(address);
        let take = || {
            let mut bytes = [0; 200];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = recvmsg(&theirs, &mut slices, &mut ancillary, flags).unwrap();
            let descriptors = ancillary.drain().flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
                _ => Vec::new(),
            });
            let descriptors: Vec<OwnedFd> = descriptors.collect();
            let text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
            (text, descriptors)
        };
        let name = format!("127.0.0.1_{}", address.port());
        let (text, descriptors) = take();
        assert_eq!(text, format!("FDSTORE=1\nFDNAME={name}"));
        assert_eq!(listener_address(&descriptors[0]), Ok(address));
        let (text, descriptors) = take();
        assert_eq!(text, format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        assert!(descriptors.is_empty());
    }

    #[test]
    fn a_name_has_no_colon() {
        for text in ["0.0.0.0:80", "[::]:443", "[fe80::1%3]:1"] {
            assert!(!name(text.parse().unwrap()).contains(':'), "{text}");
        }
    }
}
