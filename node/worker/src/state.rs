//! The worker's state: requests, and what belongs to each.
//!
//! Everything here belongs to a request and ends with it. Nothing waits: an operation that takes
//! time is a future in `work`, and its completion becomes an [`Event`] for the function's side.
//! Only [`crate::serve`] runs turns.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use casemate_channel::{Exchange, Incoming, Opener, RecvBody, Reply, SendBody, StreamError};
use casemate_wire::control::worker::{FromWorker, Outcome};
use casemate_wire::control::{Failure, Limits};
use casemate_wire::{RequestHead, ResponseHead};
use futures_util::StreamExt;
use futures_util::future::{AbortHandle, LocalBoxFuture};
use futures_util::stream::FuturesUnordered;
use hashbrown::HashMap;
use tokio::sync::mpsc;

use crate::account::Nobody;
use crate::call_error::{lost, refusal};
use crate::calls::Early;
use crate::engine::ops::{CallBody, Handle, RequestId};
use crate::engine::{Event, Piece};
use crate::fields;
use crate::logs::Logs;
use crate::past::Past;
use crate::timers::Timers;

/// Answered requests that may wait for promises given to `waitUntil`. They hold no slot, or they
/// could keep callers out of all slots; but each keeps its head, up to 48 KiB, and what the
/// function keeps for it.
const MAX_WAITING: usize = 128;

/// Status that only the vault sends, for a refusal.
const REFUSED: u16 = 0;

/// The state behind the operations; the serving loop and the operations share it.
pub(crate) struct Worker {
    pub(crate) state: RefCell<State>,
    /// Events that are not delivered yet. They are separate from the state, so that delivering them
    /// needs no borrow.
    events: RefCell<VecDeque<Event>>,
    /// The time of the loop's current round.
    pub(crate) now: Cell<Instant>,
    /// Whether events are delivered: the function is loaded and served.
    pub(crate) serving: Cell<bool>,
}

/// All mutable state.
pub(crate) struct State {
    pub(crate) limits: Limits,
    pub(crate) bindings: Vec<String>,
    pub(crate) vault: Option<Opener>,
    pub(crate) requests: HashMap<RequestId, Request>,
    pub(crate) nobody: Nobody,
    pub(crate) last_request: RequestId,
    pub(crate) receiving: HashMap<Handle, Held<RecvBody>>,
    pub(crate) sending: HashMap<Handle, Held<SendBody>>,
    pub(crate) calling: HashMap<Handle, (RequestId, AbortHandle)>,
    /// Bodies that JavaScript sends in pieces, of calls that wait for their stream.
    pub(crate) early: HashMap<Handle, Early>,
    pub(crate) last_handle: Handle,
    pub(crate) timers: Timers,
    pub(crate) past: Past,
    pub(crate) work: FuturesUnordered<LocalBoxFuture<'static, Option<Done>>>,
    pub(crate) ready: VecDeque<Done>,
    pub(crate) logs: Logs,
    pub(crate) outcomes: Vec<Outcome>,
    /// When the outcomes must be reported at the latest.
    pub(crate) outcomes_due: Option<Instant>,
    pub(crate) outbox: mpsc::Sender<FromWorker>,
}

/// A body, and the future that currently uses it.
pub(crate) struct Held<T> {
    pub(crate) owner: RequestId,
    pub(crate) body: Option<T>,
    pub(crate) busy: Option<AbortHandle>,
    /// All of the body is requested in one piece.
    pub(crate) is_whole: bool,
}

impl<T> Held<T> {
    pub(crate) fn new(owner: RequestId, body: T) -> Self {
        Self {
            owner,
            body: Some(body),
            busy: None,
            is_whole: false,
        }
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        // The future owns the body: dropping the future drops it.
        if let Some(busy) = &self.busy {
            busy.abort();
        }
    }
}

/// A request under way.
pub(crate) struct Request {
    /// The `:request` field: the request's id outside of this worker.
    pub(crate) name: String,
    pub(crate) head: RequestHead,
    pub(crate) reply: Option<Reply>,
    /// The handle on which the response's body is sent.
    pub(crate) response: Handle,
    pub(crate) began: Instant,
    pub(crate) cpu: Duration,
    pub(crate) subrequests: u32,
    /// Number of promises given to `waitUntil` that are not settled.
    pub(crate) waiting: u32,
    /// The response is over, and needs no further report.
    pub(crate) answered: bool,
    pub(crate) wants_cancel: bool,
    /// Its `Cancelled` event is not delivered yet: until then the request has not ended.
    pub(crate) cancel_due: bool,
    pub(crate) failure: Option<(Failure, String)>,
}

/// The completion of an operation.
pub(crate) enum Done {
    /// A piece, with the body when there may be more of it.
    Pulled(Handle, Option<RecvBody>, Piece),
    Written(Handle, SendBody, Result<(), StreamError>),
    /// A waiting call got its stream, with its body.
    Opened(Handle, Result<Exchange, StreamError>, CallBody),
    Answered(Handle, Result<(ResponseHead, RecvBody), StreamError>),
    /// A response is over, or a promise of a request has settled.
    Responded(RequestId),
    /// A piece was sent for a body that is not wanted any more.
    Unwanted(Handle),
}

impl Worker {
    /// Makes the state of a worker without a function.
    pub(crate) fn new(outbox: mpsc::Sender<FromWorker>) -> Rc<Self> {
        let now = Instant::now();
        let limits = Limits {
            cpu_time_ms: 1,
            wall_time_ms: 1,
            heap_mib: 1,
            subrequests: 0,
            concurrency: 0,
        };
        let state = State {
            limits,
            bindings: Vec::new(),
            vault: None,
            requests: HashMap::new(),
            nobody: Nobody::default(),
            last_request: 0,
            receiving: HashMap::new(),
            sending: HashMap::new(),
            calling: HashMap::new(),
            early: HashMap::new(),
            last_handle: 0,
            timers: Timers::default(),
            past: Past::default(),
            work: FuturesUnordered::new(),
            ready: VecDeque::new(),
            logs: Logs::new(now),
            outcomes: Vec::new(),
            outcomes_due: None,
            outbox,
        };
        Rc::new(Self {
            state: RefCell::new(state),
            events: RefCell::default(),
            now: Cell::new(now),
            serving: Cell::new(false),
        })
    }

    /// Sets the function's limits and bindings.
    pub(crate) fn configure(&self, limits: Limits, bindings: Vec<String>, vault: Opener) {
        let mut state = self.state.borrow_mut();
        state.limits = limits;
        state.bindings = bindings;
        state.vault = Some(vault);
    }

    /// Sends outgoing calls through this channel from now on.
    pub(crate) fn set_vault(&self, vault: Opener) {
        self.state.borrow_mut().vault = Some(vault);
    }

    /// Accepts a request; over the limit it is sent back. If too many requests wait, the oldest of
    /// them ends.
    pub(crate) fn accept(&self, incoming: Incoming) {
        let Incoming {
            head, body, reply, ..
        } = incoming;
        let mut state = self.state.borrow_mut();
        if state.unanswered() >= state.limits.concurrency as usize {
            reply.reset(Failure::Unavailable.to_reset());
            return;
        }
        state.last_request = state.last_request.wrapping_add(1).max(1);
        let request = state.last_request;
        let body = if body.is_end() {
            0
        } else {
            state.hold_receiving(request, body)
        };
        let method = head.method.clone();
        let name = head.fields.text(":request").unwrap_or_default().to_owned();
        let taken = Request {
            name,
            head,
            reply: Some(reply),
            response: 0,
            began: self.now.get(),
            cpu: Duration::ZERO,
            subrequests: 0,
            waiting: 0,
            answered: false,
            wants_cancel: false,
            cancel_due: false,
            failure: None,
        };
        state.requests.insert(request, taken);
        let surplus = state.surplus_waiting();
        drop(state);
        self.tell(Event::Dispatch {
            request,
            method,
            body,
        });
        if let Some(surplus) = surplus {
            let message = "too many requests wait for waitUntil promises";
            self.abort(surplus, Failure::Unavailable, message);
        }
    }

    pub(crate) fn tell(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
    }

    /// The next event to deliver.
    pub(crate) fn next_event(&self) -> Option<Event> {
        let event = self.events.borrow_mut().pop_front();
        if let Some(Event::Cancelled { request }) = &event
            && let Some(request) = self.state.borrow_mut().requests.get_mut(request)
        {
            request.cancel_due = false;
        }
        event
    }

    /// Sends back requests that were not delivered to the function yet: the worker ends, and
    /// another worker may take them.
    pub(crate) fn refuse_undispatched(&self) {
        let mut state = self.state.borrow_mut();
        for event in self.events.borrow_mut().drain(..) {
            if let Event::Dispatch { request, .. } = event
                && let Some(mut taken) = state.requests.remove(&request)
            {
                state.let_go(request, self.now.get());
                taken.reply.take().into_iter().for_each(Reply::refuse);
            }
        }
    }

    /// Whether there is an event to deliver.
    pub(crate) fn has_events(&self) -> bool {
        !self.events.borrow().is_empty() || !self.state.borrow().ready.is_empty()
    }

    /// Releases everything: the worker ends.
    pub(crate) fn end(&self) {
        let mut state = self.state.borrow_mut();
        state.say_outcomes();
        let requests: Vec<RequestId> = state.requests.keys().copied().collect();
        for request in requests {
            state.requests.remove(&request);
            state.let_go(request, self.now.get());
        }
        state.work.clear();
        state.vault = None;
        // The engine lives on and holds this state: receivers of our messages must see the channel
        // closed.
        state.outbox = mpsc::channel(1).0;
    }

    /// Number of requests under way.
    pub(crate) fn under_way(&self) -> usize {
        self.state.borrow().requests.len()
    }

    /// Sets the time for timers and deadlines.
    pub(crate) fn set_now(&self, now: Instant) {
        self.now.set(now);
    }

    /// Delivers the timers that are due, and ends requests that are over their time.
    pub(crate) fn time_passed(&self) {
        let now = self.now.get();
        let mut state = self.state.borrow_mut();
        if state.outcomes_due.is_some_and(|due| due <= now) {
            state.say_outcomes();
        }
        while let Some((request, timer)) = state.timers.take_due(now) {
            self.tell(Event::Fire { request, timer });
        }
        let wall = Duration::from_millis(state.limits.wall_time_ms.into());
        let late = state
            .requests
            .iter()
            .filter(|(_, request)| now >= request.began + wall);
        let late: Vec<RequestId> = late.map(|(id, _)| *id).collect();
        drop(state);
        for request in late {
            let message = self.state.borrow().too_late(request);
            self.abort(request, Failure::ExceededWall, &message);
        }
    }

    /// Ends a request from outside: resets its response if that is not over, and releases all that
    /// belongs to it.
    pub(crate) fn abort(&self, request: RequestId, failure: Failure, message: &str) {
        self.state.borrow_mut().give_up(request, failure, message);
        self.finish(request);
    }

    /// Reports the waiting outcomes.
    pub(crate) fn say_outcomes(&self) {
        self.state.borrow_mut().say_outcomes();
    }

    /// Removes an ended request, and reports its outcome.
    fn finish(&self, id: RequestId) {
        let mut state = self.state.borrow_mut();
        let Some(request) = state.requests.remove(&id) else {
            return;
        };
        state.say_given_up(&request, id);
        let (timers, handles) = state.let_go(id, self.now.get());
        state.past.add(id, request.name.clone());
        let limit = Duration::from_millis(state.limits.cpu_time_ms.into());
        state.nobody.inherit(limit.saturating_sub(request.cpu));
        let wall = request.began.elapsed();
        let (failure, message) = request
            .failure
            .map_or((None, String::new()), |(failure, message)| {
                (Some(failure), message)
            });
        let outcome = Outcome {
            request: request.name,
            failure,
            message,
            cpu_us: micros(request.cpu),
            wall_us: micros(wall),
            subrequests: request.subrequests,
        };
        state.outcome(outcome, self.now.get());
        drop(state);
        if request.wants_cancel || !timers.is_empty() || !handles.is_empty() {
            self.tell(Event::Over {
                request: id,
                timers,
                handles,
            });
        }
    }

    /// Finishes `request` if its response is over and all its promises are settled.
    fn finish_if_over(&self, request: RequestId) {
        let over = self
            .state
            .borrow()
            .requests
            .get(&request)
            .is_some_and(|request| request.answered && request.waiting == 0 && !request.cancel_due);
        if over {
            self.finish(request);
        }
    }

    /// Called after each turn of `request`, when its account is settled.
    pub(crate) fn after_turn(&self, request: RequestId) {
        self.finish_if_over(request);
    }

    /// The completion of an operation, if there is one.
    pub(crate) fn poll_done(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let done = match state.ready.pop_front() {
            Some(done) => done,
            None => match state.work.poll_next_unpin(context) {
                Poll::Ready(Some(Some(done))) => done,
                Poll::Ready(Some(None)) => return Poll::Ready(()),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            },
        };
        drop(state);
        self.handle(done);
        Poll::Ready(())
    }

    fn handle(&self, done: Done) {
        let mut state = self.state.borrow_mut();
        match done {
            Done::Responded(request) => {
                drop(state);
                self.finish_if_over(request);
            }
            Done::Unwanted(body) => {
                drop(state);
                self.tell(Event::Taken {
                    request: 0,
                    body,
                    wanted: false,
                });
            }
            Done::Pulled(handle, body, piece) => {
                let Some(held) = state.receiving.get_mut(&handle) else {
                    return;
                };
                let request = held.owner;
                held.busy = None;
                held.body = body.filter(|_| matches!(piece, Piece::Bytes(_)));
                if held.body.is_none() {
                    state.receiving.remove(&handle);
                }
                self.tell(Event::Arrived {
                    request,
                    body: handle,
                    piece,
                });
            }
            Done::Written(handle, body, result) => {
                drop(state);
                self.written(handle, body, result.is_ok());
            }
            Done::Opened(call, opened, body) => {
                drop(state);
                self.call_opened(call, opened, body);
            }
            Done::Answered(call, result) => {
                drop(state);
                self.call_answered(call, result);
            }
        }
    }

    /// A piece of a body was taken, or its reader has left and wants no more.
    fn written(&self, handle: Handle, body: SendBody, is_wanted: bool) {
        let mut state = self.state.borrow_mut();
        let Some(held) = state.sending.get_mut(&handle) else {
            return;
        };
        let request = held.owner;
        held.busy = None;
        if is_wanted {
            held.body = Some(body);
        } else {
            state.sending.remove(&handle);
        }
        self.tell(Event::Taken {
            request,
            body: handle,
            wanted: is_wanted,
        });
        let response = state.requests.get(&request).map(|request| request.response);
        if !is_wanted && response == Some(handle) {
            drop(state);
            self.caller_left(request);
        }
    }

    fn call_answered(&self, call: Handle, result: Result<(ResponseHead, RecvBody), StreamError>) {
        let mut state = self.state.borrow_mut();
        let Some((request, _)) = state.calling.remove(&call) else {
            return;
        };
        let event = match result {
            Ok((head, _)) if head.status == REFUSED => refusal(request, call, &head),
            Ok((head, body)) => {
                let headers = fields::to_script(&head.fields);
                let body = match body.is_end() {
                    true => 0,
                    false => state.hold_receiving(request, body),
                };
                Event::Answered {
                    request,
                    call,
                    status: head.status,
                    headers,
                    body,
                }
            }
            Err(error) => lost(request, call, error),
        };
        drop(state);
        self.tell(event);
    }

    /// Notifies requests whose callers have left, and ends those that nothing keeps.
    pub(crate) fn poll_cancelled(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.borrow_mut();
        let State {
            requests, sending, ..
        } = &mut *state;
        let mut left = Vec::new();
        for (id, request) in requests.iter_mut().filter(|(_, request)| !request.answered) {
            let gone = match (&mut request.reply, sending.get_mut(&request.response)) {
                (Some(reply), _) => std::pin::pin!(reply.cancelled()).poll(context).is_ready(),
                (
                    None,
                    Some(Held {
                        body: Some(body), ..
                    }),
                ) => std::pin::pin!(body.cancelled()).poll(context).is_ready(),
                (None, _) => false,
            };
            if gone {
                left.push(*id);
            }
        }
        drop(state);
        for request in &left {
            self.caller_left(*request);
        }
        if left.is_empty() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    fn caller_left(&self, id: RequestId) {
        let mut state = self.state.borrow_mut();
        let Some(request) = state.requests.get_mut(&id) else {
            return;
        };
        request.reply = None;
        request.answered = true;
        request.cancel_due = request.wants_cancel;
        let (response, wants_cancel) = (request.response, request.wants_cancel);
        let was_sending = state.sending.remove(&response).is_some();
        drop(state);
        if was_sending {
            self.tell(Event::Taken {
                request: id,
                body: response,
                wanted: false,
            });
        }
        if wants_cancel {
            self.tell(Event::Cancelled { request: id });
        } else {
            self.finish_if_over(id);
        }
    }
}

impl State {
    /// Number of requests whose responses are not over.
    fn unanswered(&self) -> usize {
        let requests = self.requests.values();
        requests.filter(|request| !request.answered).count()
    }

    /// The oldest request, if more than [`MAX_WAITING`] wait for promises.
    fn surplus_waiting(&self) -> Option<RequestId> {
        let waiting = |request: &Request| request.answered && request.waiting > 0;
        let waiting = self.requests.iter().filter(|(_, request)| waiting(request));
        if waiting.clone().count() <= MAX_WAITING {
            return None;
        }
        waiting
            .min_by_key(|(_, request)| request.began)
            .map(|(id, _)| *id)
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
