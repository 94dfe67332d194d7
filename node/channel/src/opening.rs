//! Opening a stream when the channel can carry one more.
//!
//! Callers that find the channel full wait in one queue and open in the order in which they came. A
//! channel is full while too much output waits to be written, or while as many streams as allowed
//! are open; both pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use casemate_wire::{OpenError, RequestHead, StreamId};

use crate::driver::{Alive, Shared, State};
use crate::openings::Ticket;
use crate::{Exchange, StreamError, stream};

impl State {
    fn poll_open(
        &mut self,
        opening: &mut Waiting,
        context: &Context<'_>,
    ) -> Poll<Result<StreamId, StreamError>> {
        let opened = if self.closed {
            Err(StreamError::Closed)
        } else if self.openings.is_first(opening.ticket) {
            let opened = match opening.body {
                Body::None => self.channel.open(&opening.head, true),
                Body::Sent => self.channel.open(&opening.head, false),
                Body::WhenAsked => self.channel.open_to_ask(&opening.head),
            };
            opened.map_err(StreamError::from)
        } else {
            Err(OpenError::Stalled.into())
        };
        if let Err(StreamError::Open(OpenError::Stalled | OpenError::TooManyStreams)) = opened {
            self.openings.wait(&mut opening.ticket, context.waker());
            return Poll::Pending;
        }
        self.openings.leave(opening.ticket.take());
        if let Ok(id) = opened {
            self.streams.entry(id).or_default().handles = 2;
        }
        Poll::Ready(opened)
    }
}

/// How the body of a stream is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Sent,
    /// Only its beginning, until the other end asks for the rest.
    WhenAsked,
}

/// The request of a caller in the queue.
#[derive(Debug)]
struct Waiting {
    head: RequestHead,
    body: Body,
    ticket: Option<Ticket>,
}

/// A stream that is being opened: resolves when the channel can carry it and all earlier callers
/// have opened theirs. Dropping it gives its place in the queue to the next caller.
#[derive(Debug)]
#[must_use = "a stream is opened by polling"]
pub struct Opening {
    shared: Arc<Shared>,
    alive: Arc<Alive>,
    waiting: Waiting,
}

impl Opening {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        alive: &Arc<Alive>,
        head: RequestHead,
        body: Body,
    ) -> Self {
        Self {
            shared: shared.clone(),
            alive: alive.clone(),
            waiting: Waiting {
                head,
                body,
                ticket: None,
            },
        }
    }
}

impl Future for Opening {
    type Output = Result<Exchange, StreamError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            shared,
            alive,
            waiting,
        } = &mut *self;
        shared
            .with(|state| state.poll_open(waiting, context))
            .map_ok(|id| stream::exchange(shared, alive, id, waiting.body == Body::None))
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let ticket = self.waiting.ticket.take();
        if ticket.is_some() {
            self.shared.with(|state| state.openings.leave(ticket));
        }
    }
}
