//! Checks that a received descriptor is a listening socket.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, getsockname, ipproto, sockopt};

/// Why launch does not hold a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAListener {
    /// The descriptor is not a socket, or the kernel does not answer for it.
    #[error("expected a listening TCP socket, got another descriptor: {0}")]
    NoSocket(Errno),
    /// The descriptor is a socket of another kind.
    #[error("expected a TCP socket over IPv4 or IPv6, got another socket")]
    NotTcp,
    /// No client can connect: listen(2) was never called, or the socket was shut down.
    #[error("expected a listening socket, got one without listen(2)")]
    NotListening,
}

/// The address of a listening TCP socket. Only the kernel is asked, because the sender of the
/// descriptor is not trusted.
///
/// # Errors
/// The descriptor is not such a socket.
pub fn listener_address(socket: impl AsFd) -> Result<SocketAddr, NotAListener> {
    let socket = socket.as_fd();
    let kind = sockopt::socket_type(socket).map_err(NotAListener::NoSocket)?;
    let family = sockopt::socket_domain(socket).map_err(NotAListener::NoSocket)?;
    let protocol = sockopt::socket_protocol(socket).map_err(NotAListener::NoSocket)?;
    let is_internet = family == AddressFamily::INET || family == AddressFamily::INET6;
    if kind != SocketType::STREAM || !is_internet || protocol != Some(ipproto::TCP) {
        return Err(NotAListener::NotTcp);
    }
    if !sockopt::socket_acceptconn(socket).map_err(NotAListener::NoSocket)? {
        return Err(NotAListener::NotListening);
    }
    let address = getsockname(socket).map_err(NotAListener::NoSocket)?;
    SocketAddr::try_from(address).map_err(NotAListener::NoSocket)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn the_address_of_a_listener_is_returned_and_everything_else_refused() {
        for text in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(text) else {
                continue;
            };
            assert_eq!(
                listener_address(&listener),
                Ok(listener.local_addr().unwrap())
            );
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let not_tcp: [OwnedFd; 3] = [
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            UnixListener::bind(folder.path().join("socket"))
                .unwrap()
                .into(),
            rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::SEQPACKET,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .unwrap()
            .0,
        ];
        for socket in &not_tcp {
            assert_eq!(listener_address(socket), Err(NotAListener::NotTcp));
        }
        assert_eq!(listener_address(&stream), Err(NotAListener::NotListening));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            listener_address(&null),
            Err(NotAListener::NoSocket(_))
        ));
        // A taken-over gateway can shut down a socket that other processes share.
        let other = listener.try_clone().unwrap();
        rustix::net::shutdown(&other, rustix::net::Shutdown::Both).unwrap();
        assert_eq!(listener_address(&listener), Err(NotAListener::NotListening));
    }
}
