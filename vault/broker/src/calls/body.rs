//! A request's body on its way out.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use casemate_channel::{RecvBody, StreamError};
use http_body::{Body, Frame, SizeHint};

/// A channel's body as hyper wants it. A declared length makes hyper send `Content-Length` and hold the function to it.
pub(crate) struct CallBody {
    body: RecvBody,
    length: Option<u64>,
    ended: bool,
}

impl CallBody {
    pub(crate) fn new(body: RecvBody, length: Option<u64>) -> Self {
        let ended = body.is_end();
        Self {
            body,
            length: if ended { Some(0) } else { length },
            ended,
        }
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
        let piece = self.body.poll_next(context);
        if let Poll::Ready(Some(Ok(bytes))) = &piece
            && let Some(left) = &mut self.length
        {
            // More than was declared: the connection is not to carry it.
            let Some(rest) = left.checked_sub(bytes.len() as u64) else {
                return Poll::Ready(Some(Err(StreamError::Reset(
                    casemate_wire::RESET_CANCELLED,
                ))));
            };
            *left = rest;
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
