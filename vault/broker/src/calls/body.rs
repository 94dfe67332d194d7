//! A request's body on its way out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use casemate_channel::{RecvBody, StreamError};
use casemate_wire::RESET_CANCELLED;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use super::share::Permit;

/// A body from a channel, as hyper's `Body`. A declared length makes hyper send `Content-Length`
/// and hold the function to that length.
///
/// hyper owns the body. An HTTP/2 upstream that gives no credit makes hyper keep it, so the body
/// holds the call's permit too.
pub(super) struct CallBody {
    /// `None`: the request has no body.
    body: Option<RecvBody>,
    length: Option<u64>,
    ended: bool,
    sent: Arc<AtomicBool>,
    /// Cancelled when the call is over; the body ends then too.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: Arc<Permit>,
}

impl CallBody {
    pub(super) fn new(
        body: RecvBody,
        length: Option<u64>,
        over: &CancellationToken,
        permit: Arc<Permit>,
    ) -> Self {
        let ended = body.is_end();
        Self {
            body: Some(body),
            length: if ended { Some(0) } else { length },
            ended,
            sent: Arc::new(AtomicBool::new(ended)),
            over: Box::pin(over.clone().cancelled_owned()),
            _permit: permit,
        }
    }

    /// An empty body.
    pub(super) fn empty(over: &CancellationToken, permit: Arc<Permit>) -> Self {
        Self {
            body: None,
            length: Some(0),
            ended: true,
            sent: Arc::new(AtomicBool::new(true)),
            over: Box::pin(over.clone().cancelled_owned()),
            _permit: permit,
        }
    }

    /// A flag that is set when all of the body has been handed to hyper.
    pub(super) fn sent(&self) -> Arc<AtomicBool> {
        self.sent.clone()
    }
}

impl Body for CallBody {
    type Data = Bytes;
    type Error = StreamError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.over.as_mut().poll(context).is_ready() {
            self.ended = true;
            return Poll::Ready(Some(Err(StreamError::Reset(RESET_CANCELLED))));
        }
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let piece = body.poll_next(context);
        if let Poll::Ready(Some(Ok(bytes))) = &piece
            && let Some(left) = &mut self.length
        {
            // The function sent more than it declared: the connection must not carry the excess.
            let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                return Poll::Ready(Some(Err(StreamError::Reset(RESET_CANCELLED))));
            };
            *left = rest;
        }
        let is_whole = matches!(piece, Poll::Ready(None)) || self.length == Some(0);
        if is_whole {
            self.sent.store(true, Ordering::Release);
        }
        self.ended = matches!(piece, Poll::Ready(None | Some(Err(_))));
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
