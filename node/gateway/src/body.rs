//! The bodies of responses, from a worker to a caller.

use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::{RecvBody, StreamError};
use futures_util::FutureExt as _;
use http_body::{Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};

use crate::connection::InFlight;
use crate::fields;
use crate::workers::{Lease, now_ms};

/// A response's body broke off: the caller's connection or stream is cut, so that the caller cannot
/// mistake the body for a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cut {
    /// The worker's stream ended early.
    #[error("the worker's stream ended early")]
    Worker,
    /// Neither side moved a byte for too long.
    #[error("no byte moved in either direction within the time limit")]
    Stalled,
    /// The worker sent more or fewer bytes than it declared.
    #[error("the body is not as long as the worker declared")]
    Length,
}

/// A response's body for the caller.
#[derive(Debug)]
pub struct Body {
    inner: Inner,
    /// Keeps the request under way until its body has been sent.
    _flight: InFlight,
}

#[derive(Debug)]
enum Inner {
    Whole {
        bytes: Bytes,
        /// On HTTP/2, where a caller may read the connection's bytes but not the stream's.
        _watched: Option<Arc<SharedFlow>>,
    },
    Flow(Flow),
}

/// A body that is streamed from the worker.
#[derive(Debug)]
struct Flow {
    shared: Arc<SharedFlow>,
    /// Bytes of the declared length that are still to come.
    left: Option<u64>,
    first: Option<Bytes>,
    over: bool,
}

/// The state of a streamed body. The connection holds it too, and cuts a body that does not move:
/// while the caller reads nothing, hyper does not poll for the next piece.
#[derive(Debug)]
pub struct SharedFlow {
    source: Mutex<Source>,
    moved_ms: AtomicU64,
}

#[derive(Debug)]
struct Source {
    /// The worker's stream, with the slot in the worker. `None` once it is cut or over, and for a
    /// body that was whole.
    stream: Option<(RecvBody, Lease)>,
    reader: Option<Waker>,
}

/// The result of a check for a stalled body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// The body moves.
    No,
    /// The body stalled, and its worker was released; the caller gets an error.
    Cut,
    /// The worker was released earlier, and the caller does not read the rest: the connection must
    /// be cut.
    Untaken,
}

impl SharedFlow {
    fn new(stream: Option<(RecvBody, Lease)>) -> Arc<Self> {
        let reader = None;
        Arc::new(Self {
            source: Mutex::new(Source { stream, reader }),
            moved_ms: AtomicU64::new(now_ms()),
        })
    }

    /// Releases the worker when nothing has moved for `idle`.
    pub fn cut_if_stalled(&self, now_ms: u64, idle: Duration) -> Stalled {
        let moved_ms = self.moved_ms.load(Ordering::Relaxed);
        if u128::from(now_ms.saturating_sub(moved_ms)) < idle.as_millis() {
            return Stalled::No;
        }
        let (stream, reader) = {
            let mut source = self.source();
            (source.stream.take(), source.reader.take())
        };
        if stream.is_none() {
            return Stalled::Untaken;
        }
        // The caller has as much time again to read the error.
        self.moved_ms.store(now_ms, Ordering::Relaxed);
        drop(stream);
        reader.into_iter().for_each(Waker::wake);
        Stalled::Cut
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock()
    }
}

/// The part of a response's body that is known when its head has come.
#[derive(Debug)]
pub enum Known {
    /// The whole body.
    Whole(Bytes),
    /// The beginning, and the stream of the rest.
    Begun(Option<Bytes>, RecvBody),
    /// The body broke off already.
    Broken(StreamError),
}

/// Reads what has arrived with the head: a small response is then whole, and is sent in one piece
/// with its length.
pub fn known(mut body: RecvBody) -> Known {
    match body.next().now_or_never() {
        None => Known::Begun(None, body),
        Some(None) if body.trailers().is_none() => Known::Whole(Bytes::new()),
        Some(None) => Known::Begun(None, body),
        Some(Some(Err(error))) => Known::Broken(error),
        Some(Some(Ok(first))) => {
            if !body.is_end() {
                return Known::Begun(Some(first), body);
            }
            match body.next().now_or_never() {
                Some(None) if body.trailers().is_none() => Known::Whole(first),
                _ => Known::Begun(Some(first), body),
            }
        }
    }
}

impl Body {
    /// A body that is whole.
    pub fn whole(bytes: Bytes, flight: InFlight) -> Self {
        let watched = flight.is_http2() && !bytes.is_empty();
        let shared = watched.then(|| SharedFlow::new(None));
        if let Some(shared) = &shared {
            flight.watch(shared);
        }
        Self {
            inner: Inner::Whole {
                bytes,
                _watched: shared,
            },
            _flight: flight,
        }
    }

    /// A body streamed from a worker. `length`: as declared.
    pub fn flow(
        first: Option<Bytes>,
        rest: RecvBody,
        lease: Lease,
        length: Option<u64>,
        flight: InFlight,
    ) -> Self {
        let shared = SharedFlow::new(Some((rest, lease)));
        flight.watch(&shared);
        let flow = Flow {
            shared,
            left: length,
            first,
            over: false,
        };
        Self {
            inner: Inner::Flow(flow),
            _flight: flight,
        }
    }
}

impl Flow {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let piece = match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => {
                let mut source = self.shared.source();
                let Some((stream, _)) = source.stream.as_mut() else {
                    self.over = true;
                    return Poll::Ready(Some(Err(Cut::Stalled)));
                };
                let Poll::Ready(piece) = pin!(stream.next()).poll(context) else {
                    source.reader = Some(context.waker().clone());
                    return Poll::Pending;
                };
                piece
            }
        };
        self.shared.moved_ms.store(now_ms(), Ordering::Relaxed);
        let result = match piece {
            Some(Ok(bytes)) => match self.left.map(|left| left.checked_sub(bytes.len() as u64)) {
                Some(None) => Some(Err(Cut::Length)),
                left => {
                    self.left = left.flatten();
                    Some(Ok(Frame::data(bytes)))
                }
            },
            Some(Err(_)) => Some(Err(Cut::Worker)),
            None if self.left.is_some_and(|left| left > 0) => Some(Err(Cut::Length)),
            None => {
                self.over = true;
                self.trailers()
            }
        };
        self.over |= !matches!(&result, Some(Ok(frame)) if frame.is_data());
        if self.over {
            let stream = self.shared.source().stream.take();
            drop(stream);
        }
        Poll::Ready(result)
    }

    fn trailers(&self) -> Option<Result<Frame<Bytes>, Cut>> {
        let source = self.shared.source();
        let trailers = source
            .stream
            .as_ref()
            .and_then(|(stream, _)| stream.trailers())?;
        Some(
            fields::trailers_to_caller(trailers)
                .map(Frame::trailers)
                .map_err(|_| Cut::Worker),
        )
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match &mut self.get_mut().inner {
            Inner::Whole { bytes, .. } if bytes.is_empty() => Poll::Ready(None),
            Inner::Whole { bytes, .. } => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Inner::Flow(flow) => flow.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Whole { bytes, .. } => bytes.is_empty(),
            Inner::Flow(flow) => flow.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Inner::Flow(Flow {
                left: Some(left), ..
            }) => SizeHint::with_exact(*left),
            Inner::Flow(_) => SizeHint::default(),
        }
    }
}
