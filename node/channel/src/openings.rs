//! The queue of callers that wait to open a stream.

use std::collections::VecDeque;
use std::task::Waker;

/// Identifies a caller in the queue.
pub(crate) type Ticket = u64;

/// Callers that wait to open a stream, in order. Each holds its own head, so the owner of the
/// futures bounds the queue.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    waiting: VecDeque<(Ticket, Waker)>,
    last: Ticket,
}

impl Openings {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The first caller in the queue.
    pub(crate) fn first(&self) -> Option<Waker> {
        self.waiting.front().map(|(_, waker)| waker.clone())
    }

    /// All callers, to be woken when the channel has closed.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waker> + '_ {
        self.waiting.drain(..).map(|(_, waker)| waker)
    }

    /// Whether no caller came before the holder of this ticket, or before a caller without one.
    pub(crate) fn is_first(&self, ticket: Option<Ticket>) -> bool {
        self.waiting
            .front()
            .is_none_or(|(first, _)| Some(*first) == ticket)
    }

    /// Queues the caller, or remembers its newest waker if it is queued already.
    pub(crate) fn wait(&mut self, ticket: &mut Option<Ticket>, waker: &Waker) {
        let place = ticket.and_then(|ticket| self.waiting.iter_mut().find(|(id, _)| *id == ticket));
        match place {
            Some((_, old)) => old.clone_from(waker),
            None => {
                self.last += 1;
                *ticket = Some(self.last);
                self.waiting.push_back((self.last, waker.clone()));
            }
        }
    }

    /// Takes the caller out of the queue.
    pub(crate) fn leave(&mut self, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            self.waiting.retain(|(id, _)| *id != ticket);
        }
    }
}
