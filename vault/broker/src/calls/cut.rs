//! Cuts off what a call has begun when the call is over.
//!
//! hyper notices an abandoned request only when it next polls it, which over HTTP/1.1 is not before
//! the body has been sent: an upstream that stops reading could hold the connection without limit.
//! So each HTTP/1.1 connection can be cut from outside; its only call does so unless its exchange
//! is complete.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use hyper_util::client::legacy::connect::CaptureConnection;
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Debug, Default)]
struct State {
    is_cut: AtomicBool,
    /// The last write had to wait for the upstream to read.
    is_blocked: AtomicBool,
    /// A write has failed: the upstream no longer reads.
    is_deaf: AtomicBool,
    /// Bytes that the upstream has sent.
    received: AtomicU64,
    /// The part of them that belongs to complete exchanges.
    answered: AtomicU64,
    waker: AtomicWaker,
}

/// The connection's end of the cutter: it fails once cut.
#[derive(Debug, Default)]
pub(super) struct Cut(Arc<State>);

impl Cut {
    /// Checks before each use of the connection, and registers its task to be woken when it is cut.
    ///
    /// # Errors
    /// The connection has been cut.
    pub(super) fn check(&self, context: &Context<'_>) -> io::Result<()> {
        self.0.waker.register(context.waker());
        if self.is_cut() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Whether the connection has been cut.
    pub(super) fn is_cut(&self) -> bool {
        self.0.is_cut.load(Ordering::Acquire)
    }

    /// Whether a write has failed.
    pub(super) fn is_deaf(&self) -> bool {
        self.0.is_deaf.load(Ordering::Acquire)
    }

    /// Records whether a write had to wait, or failed, and passes its result on. It returns
    /// `instead` in place of an error: an upstream that no longer reads may have answered before
    /// (RFC 9112, section 9.6), and hyper would discard that answer. Reading finds the answer, or
    /// the end of the connection.
    pub(super) fn wrote<T>(&self, result: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        self.0
            .is_blocked
            .store(result.is_pending(), Ordering::Release);
        match result {
            Poll::Ready(Err(_)) => {
                self.0.is_deaf.store(true, Ordering::Release);
                Poll::Ready(Ok(instead))
            }
            other => other,
        }
    }

    /// Records that the upstream has sent so many bytes.
    pub(super) fn received(&self, bytes: usize) {
        self.0.received.fetch_add(bytes as u64, Ordering::AcqRel);
    }
}

/// The call's end of the cutter, stored in the connection's description.
#[derive(Debug, Clone)]
pub(super) struct CutWhenOver(Arc<State>);

impl CutWhenOver {
    pub(super) fn new(cut: &Cut) -> Self {
        Self(cut.0.clone())
    }
}

/// Belongs to a call. When it is dropped, the request's body ends, and so does the connection,
/// unless the exchange was complete in both directions.
pub(super) struct Exchange {
    connection: CaptureConnection,
    /// Set when the request's body has been sent.
    sent: Arc<AtomicBool>,
    _ends_body: DropGuard,
    is_answered: bool,
}

impl Exchange {
    pub(super) fn new(
        connection: CaptureConnection,
        sent: Arc<AtomicBool>,
        body: CancellationToken,
    ) -> Self {
        Self {
            connection,
            sent,
            _ends_body: body.drop_guard(),
            is_answered: false,
        }
    }

    /// The whole answer has come.
    pub(super) fn answered(&mut self) {
        self.is_answered = true;
    }

    /// Whether the request was sent on a connection that had carried another one before, and on
    /// which no byte has come since: the upstream may have closed it before it read the request.
    pub(super) fn was_stale(&self) -> bool {
        self.state().is_some_and(|state| {
            let answered = state.answered.load(Ordering::Acquire);
            answered > 0 && state.received.load(Ordering::Acquire) == answered
        })
    }

    /// The state of the HTTP/1.1 connection that carries the request, once there is one.
    fn state(&self) -> Option<Arc<State>> {
        let mut extras = http::Extensions::new();
        if let Some(connected) = self.connection.connection_metadata().as_ref() {
            connected.get_extras(&mut extras);
        }
        extras
            .remove::<CutWhenOver>()
            .map(|CutWhenOver(state)| state)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(state) = self.state() else {
            return;
        };
        // An upstream may answer early and never read the rest of the body, which hyper may have
        // taken from us already.
        let is_complete = self.is_answered
            && self.sent.load(Ordering::Acquire)
            && !state.is_deaf.load(Ordering::Acquire)
            && !state.is_blocked.load(Ordering::Acquire);
        if is_complete {
            let received = state.received.load(Ordering::Acquire);
            state.answered.store(received, Ordering::Release);
        } else {
            state.is_cut.store(true, Ordering::Release);
            state.waker.wake();
        }
    }
}
