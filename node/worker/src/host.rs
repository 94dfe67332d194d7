//! Carries out JavaScript's operations on the state. Called in the middle of a turn: nothing here
//! waits or enters V8.

use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate_channel::{RecvBody, SendBody};
use casemate_wire::ResponseHead;
use casemate_wire::control::Failure;
use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable, abortable};
use hashbrown::HashMap;

use crate::call_error::CallError;
use crate::calls::Early;
use crate::engine::ops::{Call, Handle, Host, RequestId, TimerStart};
use crate::engine::{self, Event, Piece, Pieces};
use crate::fields;
use crate::logs::cut;
use crate::state::{Done, Held, State, Worker};

/// Size up to which pieces of a stream are joined. Larger pieces would enlarge every copy and every
/// decompressed piece.
const JOINED_BYTES: usize = 32 * 1024;

/// Level of a warning, as [`Host::log`] counts them.
pub(crate) const WARN: u8 = 2;

/// The call cannot be made: see [`Host::fetch`].
const NO_CALL: Handle = u32::MAX;

impl Host for Worker {
    fn url(&self, request: RequestId) -> String {
        let state = self.state.borrow();
        state
            .requests
            .get(&request)
            .map(|request| request.head.target.clone())
            .unwrap_or_default()
    }

    fn headers(&self, request: RequestId) -> Vec<u8> {
        let state = self.state.borrow();
        state
            .requests
            .get(&request)
            .map(|request| fields::to_script(&request.head.fields))
            .unwrap_or_default()
    }

    fn respond(&self, id: RequestId, status: u16, headers: &[u8], body: Option<&[u8]>) {
        let mut state = self.state.borrow_mut();
        let Some(mut head) = state.response_head(id, status, headers) else {
            return;
        };
        if let Some(body) = body {
            head.fields.push("content-length", body.len().to_string());
        }
        let Some(request) = state.requests.get_mut(&id) else {
            return;
        };
        request.answered = true;
        let Some(reply) = request.reply.take() else {
            return;
        };
        let mut sending = reply.send(&head, body.is_none());
        let body = body.unwrap_or_default();
        let sent = sending.send_now(body);
        if sent == body.len() {
            sending.finish();
            state.ready.push_back(Done::Responded(id));
            return;
        }
        let rest = Bytes::copy_from_slice(&body[sent..]);
        state.start(async move {
            if sending.send(rest).await.is_ok() {
                sending.finish();
            }
            Some(Done::Responded(id))
        });
    }

    fn respond_stream(&self, id: RequestId, status: u16, headers: &[u8]) -> Handle {
        let mut state = self.state.borrow_mut();
        let Some(head) = state.response_head(id, status, headers) else {
            return 0;
        };
        let Some(reply) = state
            .requests
            .get_mut(&id)
            .and_then(|request| request.reply.take())
        else {
            return 0;
        };
        let handle = state.new_handle();
        let sending = reply.send(&head, false);
        state.sending.insert(handle, Held::new(id, sending));
        if let Some(request) = state.requests.get_mut(&id) {
            request.response = handle;
        }
        handle
    }

    fn fail(&self, request: RequestId, uncaught: u16, message: String) {
        let failure = Failure::from_reset(uncaught).unwrap_or(Failure::Exception);
        let mut state = self.state.borrow_mut();
        state.give_up(request, failure, &message);
        state.ready.push_back(Done::Responded(request));
    }

    fn wait_until(&self, id: RequestId, up: bool) {
        let mut state = self.state.borrow_mut();
        let Some(request) = state.requests.get_mut(&id) else {
            return;
        };
        request.waiting = if up {
            request.waiting.saturating_add(1)
        } else {
            request.waiting.saturating_sub(1)
        };
        if request.waiting == 0 {
            state.ready.push_back(Done::Responded(id));
        }
    }

    fn on_cancel(&self, request: RequestId) {
        if let Some(request) = self.state.borrow_mut().requests.get_mut(&request) {
            request.wants_cancel = true;
        }
    }

    fn fetch(&self, id: RequestId, call: Call<'_>) -> Handle {
        let mut state = self.state.borrow_mut();
        let most = state.limits.subrequests;
        let Some(request) = state.requests.get_mut(&id) else {
            return NO_CALL;
        };
        if request.subrequests >= most {
            return 0;
        }
        request.subrequests += 1;
        let name = request.name.clone();
        let handle = state.new_handle();
        if let Err(error) = state.call(id, name, handle, call) {
            self.tell(Event::failed(id, handle, error));
        }
        handle
    }

    fn pull(&self, handle: Handle) {
        let mut state = self.state.borrow_mut();
        state.receive(handle, async move |mut body| {
            let piece = next_pieces(&mut body).await;
            Done::Pulled(handle, Some(body), piece)
        });
    }

    fn gather(&self, handle: Handle) {
        let mut state = self.state.borrow_mut();
        if let Some(held) = state.receiving.get_mut(&handle) {
            held.is_whole = true;
        }
        state.receive(handle, async move |mut body| {
            Done::Pulled(handle, None, all_pieces(&mut body).await)
        });
    }

    fn write(&self, handle: Handle, bytes: Bytes) {
        self.state.borrow_mut().write(handle, bytes);
    }

    fn finish(&self, handle: Handle) {
        let mut state = self.state.borrow_mut();
        if let Some(early) = state.early.get_mut(&handle) {
            *early = Early::End;
            return;
        }
        let Some(mut held) = state.sending.remove(&handle) else {
            return;
        };
        if let Some(body) = held.body.take() {
            body.finish();
        }
        let owner = held.owner;
        if let Some(request) = state.requests.get_mut(&owner)
            && request.response == handle
        {
            request.answered = true;
            state.ready.push_back(Done::Responded(owner));
        }
    }

    fn cancel(&self, handle: Handle) {
        let mut state = self.state.borrow_mut();
        state.receiving.remove(&handle);
        state.sending.remove(&handle);
        state.early.remove(&handle);
        if let Some((_, call)) = state.calling.remove(&handle) {
            call.abort();
        }
    }

    fn timer(&self, request: RequestId, timer: u32, delay_ms: u32, repeats: bool) -> TimerStart {
        let at = self.now.get() + Duration::from_millis(delay_ms.into());
        let mut state = self.state.borrow_mut();
        if request != 0 && !state.requests.contains_key(&request) {
            TimerStart::RequestEnded
        } else if state.timers.start(timer, at, request, repeats) {
            TimerStart::Started
        } else {
            TimerStart::TooMany
        }
    }

    fn clear_timer(&self, timer: u32) {
        self.state.borrow_mut().timers.stop(timer);
    }

    fn pool_begin(&self, request: RequestId) {
        engine::pool::begin(request, self.cpu_left(request));
    }

    fn pool_end(&self, request: RequestId) {
        engine::pool::end(request);
    }

    fn put_off(&self, request: RequestId, ticket: u32) -> bool {
        let serving = self.serving.get();
        if serving {
            self.tell(Event::Resume { request, ticket });
        }
        serving
    }

    fn log(&self, request: RequestId, level: u8, message: &str) {
        let mut state = self.state.borrow_mut();
        let name = state.name(request).map(str::to_owned);
        state.say(name, level, message);
    }

    fn clock(&self) -> (u64, u64) {
        engine::clock()
    }
}

impl State {
    /// The head of a response; too many headers fail the request instead.
    fn response_head(
        &mut self,
        request: RequestId,
        status: u16,
        headers: &[u8],
    ) -> Option<ResponseHead> {
        let Some(fields) = fields::from_script(headers) else {
            self.give_up(
                request,
                Failure::Exception,
                "the response has too many headers",
            );
            self.ready.push_back(Done::Responded(request));
            return None;
        };
        Some(ResponseHead { status, fields })
    }

    /// Passes a body that is being received to a future.
    fn receive<F: Future<Output = Done> + 'static>(
        &mut self,
        handle: Handle,
        take: impl FnOnce(RecvBody) -> F,
    ) {
        let held = self.receiving.get_mut(&handle);
        let Some(body) = held.and_then(|held| held.body.take()) else {
            return;
        };
        let busy = self.start_abortable(take(body));
        if let Some(held) = self.receiving.get_mut(&handle) {
            held.busy = Some(busy);
        }
    }

    /// Starts a future. One that completes at once never enters the set of those that wait.
    pub(crate) fn start(&mut self, future: impl Future<Output = Option<Done>> + 'static) {
        let mut future = future.boxed_local();
        match (&mut future).now_or_never() {
            Some(done) => self.ready.extend(done),
            None => self.work.push(future),
        }
    }

    pub(crate) fn start_abortable(
        &mut self,
        future: impl Future<Output = Done> + 'static,
    ) -> AbortHandle {
        let (future, handle): (Abortable<_>, _) = abortable(future);
        self.start(future.map(Result::ok));
        handle
    }

    /// Ends the response with a failure, if it is not over; the caller then releases the rest.
    pub(crate) fn give_up(&mut self, id: RequestId, failure: Failure, message: &str) {
        let Some(request) = self.requests.get_mut(&id) else {
            return;
        };
        if request.answered {
            let name = Some(request.name.clone());
            self.say(name, WARN, &format!("after the response: {message}"));
            return;
        }
        request.answered = true;
        request.failure = Some((failure, cut(message)));
        let response = request.response;
        if let Some(reply) = request.reply.take() {
            reply.reset(failure.to_reset());
        }
        if let Some(body) = self
            .sending
            .remove(&response)
            .and_then(|mut held| held.body.take())
        {
            body.reset(failure.to_reset());
        }
    }

    pub(crate) fn hold_receiving(&mut self, owner: RequestId, body: RecvBody) -> Handle {
        let handle = self.new_handle();
        self.receiving.insert(handle, Held::new(owner, body));
        handle
    }

    fn new_handle(&mut self) -> Handle {
        loop {
            self.last_handle = if self.last_handle == NO_CALL - 1 {
                1
            } else {
                self.last_handle + 1
            };
            let handle = self.last_handle;
            // Handles wrap around after four thousand million: a handle that is still in use is
            // skipped.
            let used = self.receiving.contains_key(&handle) || self.sending.contains_key(&handle);
            if !used && !self.calling.contains_key(&handle) {
                return handle;
            }
        }
    }

    /// Releases everything that belongs to a request; returns the timers and handles for which
    /// JavaScript may wait.
    pub(crate) fn let_go(&mut self, owner: RequestId, now: Instant) -> (Vec<u32>, Vec<Handle>) {
        let longest = Duration::from_millis(self.limits.wall_time_ms.into());
        let timers = self.timers.end(owner, now, longest);
        let mut handles = owned(&self.receiving, |held| held.owner == owner);
        handles.extend(owned(&self.sending, |held: &Held<SendBody>| {
            held.owner == owner
        }));
        handles.extend(owned(&self.calling, |(request, _)| *request == owner));
        for handle in &handles {
            self.receiving.remove(handle);
            self.sending.remove(handle);
            self.early.remove(handle);
            if let Some((_, call)) = self.calling.remove(handle) {
                call.abort();
            }
        }
        (timers, handles)
    }
}

/// The next piece, joined with the small pieces that have arrived behind it.
async fn next_pieces(body: &mut RecvBody) -> Piece {
    let mut next = match body.next().await {
        Some(Ok(first)) => Some(first),
        Some(Err(error)) => return Piece::Cut(CallError::cut(body, error)),
        None => return Piece::End,
    };
    let mut pieces = Pieces::default();
    while let Some(piece) = next {
        if !pieces.push(&piece) {
            return Piece::TooMuch;
        }
        next = (pieces.len() < JOINED_BYTES)
            .then(|| body.arrived())
            .flatten();
    }
    Piece::Bytes(pieces)
}

async fn all_pieces(body: &mut RecvBody) -> Piece {
    let mut pieces = Pieces::default();
    while let Some(next) = body.next().await {
        let piece = match next {
            Ok(piece) => piece,
            Err(error) => return Piece::Cut(CallError::cut(body, error)),
        };
        if !pieces.push(&piece) {
            return Piece::TooMuch;
        }
    }
    if pieces.len() == 0 {
        Piece::End
    } else {
        Piece::Bytes(pieces)
    }
}

/// Keys of the entries that belong to an owner.
fn owned<T>(map: &HashMap<u32, T>, belongs: impl Fn(&T) -> bool) -> Vec<u32> {
    map.iter()
        .filter(|(_, value)| belongs(value))
        .map(|(key, _)| *key)
        .collect()
}
