//! The tokio driver of `casemate-wire`: one socket pair, one channel; and control channels, which
//! pass descriptors.
//!
//! [`opener`] and [`acceptor`] each spawn one task that moves bytes between the socket and a
//! [`casemate_wire::Channel`]; everything that the handles send between two polls of the task goes
//! out in one write. The driver works on a current-thread runtime.
#![forbid(unsafe_code)]

mod arrived;
pub mod budget;
pub mod control;
mod driver;
pub mod fair;
mod opening;
mod openings;
mod stream;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use casemate_wire::{OpenError, RequestHead, Side};

pub use control::{Control, ControlError, Skipped};
use driver::Shared;
use opening::Body;
pub use opening::Opening;
pub use stream::{Exchange, Incoming, PendingResponse, RecvBody, Reply, SendBody};

/// Why a stream ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other end reset it with this code.
    #[error("the other end reset the stream with code {0}")]
    Reset(u16),
    /// The channel has closed: the other process is gone, or broke the protocol.
    #[error("the channel is closed")]
    Closed,
    /// The stream could not be opened.
    #[error("the stream could not be opened")]
    Open(#[from] OpenError),
}

/// The end that opens streams.
#[derive(Debug, Clone)]
pub struct Opener {
    shared: Arc<Shared>,
    _alive: Arc<driver::Alive>,
}

/// The end that accepts streams.
#[derive(Debug)]
pub struct Acceptor {
    shared: Arc<Shared>,
    _alive: Arc<driver::Alive>,
}

/// The opening end of the channel on this socket. The channel closes when the last clone and the
/// last stream are dropped.
///
/// # Errors
/// The descriptor is not a stream socket, or there is no runtime with which it could be registered.
pub fn opener(fd: OwnedFd) -> io::Result<Opener> {
    let (shared, alive) = driver::start(fd, Side::Opener)?;
    Ok(Opener {
        shared,
        _alive: alive,
    })
}

/// The accepting end of the channel on this socket.
///
/// # Errors
/// As for [`opener`].
pub fn acceptor(fd: OwnedFd) -> io::Result<Acceptor> {
    let (shared, alive) = driver::start(fd, Side::Acceptor)?;
    Ok(Acceptor {
        shared,
        _alive: alive,
    })
}

/// The two ends of a new socket pair for a data channel.
///
/// # Errors
/// No descriptors are left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        flags,
        None,
    )?)
}

impl Opener {
    /// Opens a stream when the channel can carry one more, after all earlier callers; with `end`,
    /// without a request body.
    pub fn open_in_turn(&self, head: RequestHead, end: bool) -> Opening {
        let body = if end { Body::None } else { Body::Sent };
        Opening::new(&self.shared, &self._alive, head, body)
    }

    /// Like [`Opener::open_in_turn`], with a body of which only the beginning is sent before the
    /// other end asks for the rest: see [`SendBody::asked`] and
    /// [`casemate_wire::channel::EARLY_BYTES`].
    pub fn open_to_ask_in_turn(&self, head: RequestHead) -> Opening {
        Opening::new(&self.shared, &self._alive, head, Body::WhenAsked)
    }

    /// Opens a stream without waiting; with `end`, without a request body.
    ///
    /// # Errors
    /// Too many streams are open, or the channel has closed.
    pub fn open(&self, head: RequestHead, end: bool) -> Result<Exchange, StreamError> {
        let id = self.shared.open(&head, end)?;
        Ok(stream::exchange(&self.shared, &self._alive, id, end))
    }

    /// Number of open streams.
    pub fn streams(&self) -> usize {
        self.shared.lock().channel.streams()
    }

    /// Whether the channel has closed.
    pub fn is_closed(&self) -> bool {
        self.shared.lock().closed
    }

    /// Waits until the channel has closed.
    pub async fn closed(&self) {
        self.shared.closed().await;
    }

    /// Ends the streams above this one with [`casemate_wire::RESET_REFUSED`]: another source
    /// reports that the other end has begun none of them.
    pub fn refuse_above(&self, last: casemate_wire::StreamId) {
        self.shared.refuse_above(last);
    }

    /// Waits until the other end takes no new streams, or the channel has closed.
    pub async fn goes_away(&self) {
        self.shared.goes_away().await;
    }
}

impl Acceptor {
    /// The next stream that the other end opens; `None` when the channel has closed.
    pub async fn accept(&mut self) -> Option<Incoming> {
        let (id, head, end) = self.shared.accept().await?;
        Some(stream::incoming(&self.shared, &self._alive, id, head, end))
    }

    /// Completes when the channel has closed and all output is written, as far as the other end
    /// reads it: a process that exits earlier loses its last messages.
    pub fn ended(&self) -> impl Future<Output = ()> + 'static {
        let shared = self.shared.clone();
        async move { shared.ended().await }
    }

    /// Asks the other end to open no more streams. Accepted streams continue; the others end as not
    /// begun, and the other end may send their requests elsewhere.
    pub fn go_away(&self) {
        self.shared.go_away();
    }
}
