//! Handles of one stream. Each direction has its own handle; dropping one early notifies the other
//! end.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use casemate_wire::{
    Fields, RESET_ABANDONED, RESET_CANCELLED, RESET_REFUSED, RequestHead, ResponseHead, StreamId,
};

use crate::StreamError;
use crate::driver::{Alive, Shared};

/// A stream that we opened.
#[derive(Debug)]
pub struct Exchange {
    /// The stream's id: later streams have higher ones.
    pub id: StreamId,
    /// The request's body.
    pub body: SendBody,
    /// The response.
    pub response: PendingResponse,
}

/// A stream that the other end opened.
#[derive(Debug)]
pub struct Incoming {
    /// The stream's id: later streams have higher ones.
    pub id: StreamId,
    /// The request's head.
    pub head: RequestHead,
    /// The request's body.
    pub body: RecvBody,
    /// The handle for the answer.
    pub reply: Reply,
}

/// Half of a stream; it counts down the handles when it is dropped.
#[derive(Debug)]
struct Half {
    shared: Arc<Shared>,
    _alive: Arc<Alive>,
    id: StreamId,
}

impl Half {
    fn new(shared: &Arc<Shared>, alive: &Arc<Alive>, id: StreamId) -> Self {
        Self {
            shared: shared.clone(),
            _alive: alive.clone(),
            id,
        }
    }

    /// Waits until the stream is reset or the channel has closed.
    async fn cancelled(&self) {
        std::future::poll_fn(|context| {
            let mut state = self.shared.lock();
            if state.failure(self.id).is_some() {
                return Poll::Ready(());
            }
            if let Some(stream) = state.streams.get_mut(&self.id) {
                stream.writing = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Half {
    fn drop(&mut self) {
        self.shared.with(|state| state.let_go(self.id));
    }
}

pub(crate) fn exchange(
    shared: &Arc<Shared>,
    alive: &Arc<Alive>,
    id: StreamId,
    end: bool,
) -> Exchange {
    let body = SendBody {
        half: Half::new(shared, alive, id),
        open: !end,
        opener: true,
    };
    Exchange {
        id,
        body,
        response: PendingResponse {
            half: Some(Half::new(shared, alive, id)),
        },
    }
}

pub(crate) fn incoming(
    shared: &Arc<Shared>,
    alive: &Arc<Alive>,
    id: StreamId,
    head: RequestHead,
    end: bool,
) -> Incoming {
    let body = RecvBody {
        half: Half::new(shared, alive, id),
        done: end,
        opener: false,
        is_unasked: !end,
        trailers: None,
    };
    Incoming {
        id,
        head,
        body,
        reply: Reply {
            half: Some(Half::new(shared, alive, id)),
        },
    }
}

/// The answer to a stream that we opened. Dropping it resets the stream.
#[derive(Debug)]
pub struct PendingResponse {
    half: Option<Half>,
}

impl PendingResponse {
    /// Waits for the head.
    ///
    /// # Errors
    /// The stream was reset or the channel has closed.
    pub async fn head(mut self) -> Result<(ResponseHead, RecvBody), StreamError> {
        let (head, end) = {
            let half = self.half.as_ref().ok_or(StreamError::Closed)?;
            std::future::poll_fn(|context| {
                let mut state = half.shared.lock();
                if let Some(stream) = state.streams.get_mut(&half.id) {
                    if let Some(head) = stream.head.take() {
                        return Poll::Ready(Ok(head));
                    }
                    stream.reading = Some(context.waker().clone());
                }
                state
                    .failure(half.id)
                    .map_or(Poll::Pending, |failure| Poll::Ready(Err(failure)))
            })
            .await?
        };
        let half = self.half.take().ok_or(StreamError::Closed)?;
        Ok((
            head,
            RecvBody {
                half,
                done: end,
                opener: true,
                is_unasked: false,
                trailers: None,
            },
        ))
    }
}

impl Drop for PendingResponse {
    fn drop(&mut self) {
        if let Some(half) = &self.half {
            half.shared
                .with(|state| state.reset(half.id, RESET_CANCELLED));
        }
    }
}

/// Answers a stream. Dropping it resets the stream.
#[derive(Debug)]
pub struct Reply {
    half: Option<Half>,
}

impl Reply {
    /// Sends the head; with `end`, there is no body. A head that does not fit resets the stream.
    pub fn send(mut self, head: &ResponseHead, end: bool) -> SendBody {
        // Only methods that consume the reply take it, so it is there.
        let half = self
            .half
            .take()
            .unwrap_or_else(|| unreachable!("a reply is used once"));
        let open = half
            .shared
            .with(|state| match state.channel.respond(half.id, head, end) {
                Ok(()) => !end,
                Err(_) => {
                    state.reset(half.id, RESET_ABANDONED);
                    false
                }
            });
        SendBody {
            half,
            open,
            opener: false,
        }
    }

    /// Ends the stream with a code.
    pub fn reset(mut self, code: u16) {
        if let Some(half) = self.half.take() {
            half.shared.with(|state| state.reset(half.id, code));
        }
    }

    /// Ends the stream as not begun: the other end may send the request elsewhere.
    pub fn refuse(self) {
        self.reset(RESET_REFUSED);
    }

    /// Waits until the answer is no longer wanted.
    pub async fn cancelled(&mut self) {
        if let Some(half) = &self.half {
            half.cancelled().await;
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(half) = &self.half {
            half.shared
                .with(|state| state.reset(half.id, RESET_ABANDONED));
        }
    }
}

/// Sends a body. Dropping it before [`SendBody::finish`] resets the stream.
#[derive(Debug)]
pub struct SendBody {
    half: Half,
    open: bool,
    opener: bool,
}

impl SendBody {
    /// Sends these bytes; returns when all of them had credit.
    ///
    /// # Errors
    /// The stream was reset or the channel has closed.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), StreamError> {
        self.send_from(&mut bytes).await
    }

    /// Like [`SendBody::send`]; bytes that were not sent stay in `bytes`, even when the future is
    /// dropped.
    ///
    /// # Errors
    /// As for [`SendBody::send`].
    pub async fn send_from(&mut self, bytes: &mut Bytes) -> Result<(), StreamError> {
        let Half { shared, id, .. } = &self.half;
        std::future::poll_fn(|context| shared.with(|state| state.poll_send(*id, bytes, context)))
            .await
    }

    /// Waits until the other end has asked for the body: see
    /// [`crate::Opener::open_to_ask_in_turn`].
    ///
    /// # Errors
    /// The stream was reset or the channel has closed.
    pub async fn asked(&mut self) -> Result<(), StreamError> {
        let Half { shared, id, .. } = &self.half;
        std::future::poll_fn(|context| shared.with(|state| state.poll_asked(*id, context))).await
    }

    /// Whether nothing can be sent any more.
    pub fn is_over(&self) -> bool {
        self.half.shared.lock().failure(self.half.id).is_some()
    }

    /// Sends the beginning of these bytes for which there is credit, without a copy, and returns
    /// its length. The rest is for [`SendBody::send`], which also reports when the stream has
    /// ended.
    pub fn send_now(&mut self, bytes: &[u8]) -> usize {
        let Half { shared, id, .. } = &self.half;
        shared.with(|state| {
            if state.is_full() {
                0
            } else {
                state.channel.send(*id, bytes).unwrap_or(0)
            }
        })
    }

    /// Ends the body.
    pub fn finish(self) {
        self.finish_with(&Fields::default());
    }

    /// Ends the body with trailers.
    pub fn finish_with(mut self, trailers: &Fields) {
        if std::mem::take(&mut self.open) {
            let Half { shared, id, .. } = &self.half;
            shared.with(|state| state.channel.finish(*id, trailers));
        }
    }

    /// Ends the stream with a code.
    pub fn reset(mut self, code: u16) {
        self.open = false;
        let Half { shared, id, .. } = &self.half;
        shared.with(|state| state.reset(*id, code));
    }

    /// Waits until the stream is reset or the channel has closed.
    pub async fn cancelled(&mut self) {
        self.half.cancelled().await;
    }
}

impl Drop for SendBody {
    fn drop(&mut self) {
        if self.open {
            let code = if self.opener {
                RESET_CANCELLED
            } else {
                RESET_ABANDONED
            };
            self.half
                .shared
                .with(|state| state.reset(self.half.id, code));
        }
    }
}

/// Receives a body. Dropping a response's body before its end resets the stream; dropping a
/// request's body discards what the sender still sends.
#[derive(Debug)]
pub struct RecvBody {
    half: Half,
    done: bool,
    opener: bool,
    /// The other end may be waiting to be asked for the body.
    is_unasked: bool,
    trailers: Option<Fields>,
}

impl RecvBody {
    /// Whether the body belongs to the answer of a stream that we opened.
    pub fn is_of_answer(&self) -> bool {
        self.opener
    }

    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, StreamError>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// Like [`RecvBody::next`], for body traits of other libraries.
    pub fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, StreamError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let Half { shared, id, .. } = &self.half;
        let is_unasked = std::mem::take(&mut self.is_unasked);
        let piece = shared.with(|state| {
            if is_unasked {
                state.channel.ask(*id);
            }
            if let Some(bytes) = state.take(*id) {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if let Some(stream) = state.streams.get_mut(id) {
                if stream.end {
                    self.trailers = stream.trailers.take();
                    return Poll::Ready(None);
                }
                stream.reading = Some(context.waker().clone());
            }
            state
                .failure(*id)
                .map_or(Poll::Pending, |failure| Poll::Ready(Some(Err(failure))))
        });
        self.done = matches!(piece, Poll::Ready(None | Some(Err(_))));
        piece
    }

    /// The next piece, if it has arrived.
    pub fn arrived(&mut self) -> Option<Bytes> {
        let Half { shared, id, .. } = &self.half;
        shared.with(|state| state.take(*id))
    }

    /// Whether the body has ended, as far as is known without waiting.
    pub fn is_end(&self) -> bool {
        let state = self.half.shared.lock();
        self.done
            || state
                .streams
                .get(&self.half.id)
                .is_some_and(|stream| stream.end && stream.is_empty())
    }

    /// Trailers, once the body has ended.
    pub fn trailers(&self) -> Option<&Fields> {
        self.trailers.as_ref()
    }
}

impl Drop for RecvBody {
    fn drop(&mut self) {
        let Half { shared, id, .. } = &self.half;
        if !self.done && self.opener {
            shared.with(|state| state.reset(*id, RESET_CANCELLED));
        } else if !self.done {
            shared.with(|state| state.channel.discard(*id));
        }
    }
}
