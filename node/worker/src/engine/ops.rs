//! Operations that JavaScript can call: thin wrappers of the [`Host`] trait.
//!
//! `build.rs` compiles this file too, because a snapshot must know the same operations in the same
//! order. So the file uses nothing but `deno_core` and `bytes`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use deno_core::{OpState, op2, v8};

/// Number of a request inside this worker; 0 is "no request".
pub(crate) type RequestId = u32;
/// Number of an object that carries bytes: a body being received, a body being sent, or an outgoing
/// call.
pub(crate) type Handle = u32;

/// The program behind the operations. Every method returns at once; the result of an operation that
/// takes time comes later as an `engine::Event`.
pub(crate) trait Host {
    /// Absolute URL of a request.
    fn url(&self, request: RequestId) -> String;
    /// Header fields of a request, as `name NUL value NUL ...`.
    fn headers(&self, request: RequestId) -> Vec<u8>;
    /// Sends the head of a response and all of its body, if it has one; the exchange is then over.
    fn respond(&self, request: RequestId, status: u16, headers: &[u8], body: Option<&[u8]>);
    /// Sends the head of a response whose body follows on the returned handle.
    fn respond_stream(&self, request: RequestId, status: u16, headers: &[u8]) -> Handle;
    /// Reports that the handler failed; `uncaught` is the failure of the outgoing call whose error
    /// the handler did not catch, or 0.
    fn fail(&self, request: RequestId, uncaught: u16, message: String);
    /// Counts promises given to `waitUntil`: up when given, down when settled.
    fn wait_until(&self, request: RequestId, up: bool);
    /// Asks for an event when the caller of a request leaves.
    fn on_cancel(&self, request: RequestId);
    /// Starts an outgoing call. Returns zero when the request has used up its calls, and `u32::MAX`
    /// when it has ended or there is no vault.
    fn fetch(&self, request: RequestId, call: Call<'_>) -> Handle;
    /// Asks for the next piece of a body.
    fn pull(&self, body: Handle);
    /// Asks for all of a body in one piece.
    fn gather(&self, body: Handle);
    /// Sends a piece of a body.
    fn write(&self, body: Handle, bytes: Bytes);
    /// Ends a body that was sent in pieces.
    fn finish(&self, body: Handle);
    /// Gives up a body or a call.
    fn cancel(&self, handle: Handle);
    /// Starts a timer. JavaScript starts a repeating timer again after each event.
    fn timer(&self, request: RequestId, timer: u32, delay_ms: u32, repeats: bool) -> TimerStart;
    /// Stops a timer.
    fn clear_timer(&self, timer: u32);
    /// The next work for the pool's thread belongs to this request.
    fn pool_begin(&self, request: RequestId);
    /// Work for the pool's thread has finished.
    fn pool_end(&self, request: RequestId);
    /// Defers work to a turn of `request`, which is identified by this number; false when turns do
    /// not run yet.
    fn put_off(&self, request: RequestId, ticket: u32) -> bool;
    /// A line of the console; level 0 is debug, 3 is error.
    fn log(&self, request: RequestId, level: u8, message: &str);
    /// The visible time: microseconds since the Unix epoch and since the worker started.
    fn clock(&self) -> (u64, u64);
}

/// The result of starting a timer. JavaScript uses the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum TimerStart {
    /// It will fire.
    Started = 0,
    /// There are too many.
    TooMany = 1,
    /// Its request has ended.
    RequestEnded = 2,
}

/// An outgoing call, as JavaScript passes it.
pub(crate) struct Call<'a> {
    /// Index into the bindings, or -1 for a plain `fetch`.
    pub(crate) binding: i32,
    /// Method.
    pub(crate) method: &'a str,
    /// Absolute URL.
    pub(crate) url: &'a str,
    /// Header fields, as `name NUL value NUL ...`.
    pub(crate) headers: &'a [u8],
    /// The body.
    pub(crate) body: CallBody,
}

/// Body of an outgoing call.
pub(crate) enum CallBody {
    /// No body.
    Empty,
    /// A whole body.
    Whole(Bytes),
    /// A body that is written later to the call's handle.
    Stream,
}

fn host(state: &OpState) -> Rc<dyn Host> {
    Rc::clone(state.borrow::<Rc<dyn Host>>())
}

#[op2]
#[string]
fn op_casemate_url(state: &OpState, request: u32) -> String {
    host(state).url(request)
}

#[op2]
#[string(onebyte)]
fn op_casemate_headers(state: &OpState, request: u32) -> Cow<'static, [u8]> {
    Cow::Owned(host(state).headers(request))
}

#[op2(fast)]
fn op_casemate_respond_empty(
    state: &OpState,
    request: u32,
    status: u16,
    #[string(onebyte)] headers: Cow<'_, [u8]>,
) {
    host(state).respond(request, status, &headers, None);
}

#[op2(fast)]
fn op_casemate_respond_text(
    state: &OpState,
    request: u32,
    status: u16,
    #[string(onebyte)] headers: Cow<'_, [u8]>,
    #[string] body: &str,
) {
    host(state).respond(request, status, &headers, Some(body.as_bytes()));
}

#[op2]
fn op_casemate_respond_bytes(
    state: &OpState,
    request: u32,
    status: u16,
    #[string(onebyte)] headers: Cow<'_, [u8]>,
    #[anybuffer] body: &[u8],
) {
    host(state).respond(request, status, &headers, Some(body));
}

#[op2(fast)]
fn op_casemate_respond_stream(
    state: &OpState,
    request: u32,
    status: u16,
    #[string(onebyte)] headers: Cow<'_, [u8]>,
) -> u32 {
    host(state).respond_stream(request, status, &headers)
}

#[op2(fast)]
fn op_casemate_fail(state: &OpState, request: u32, uncaught: u16, #[string] message: String) {
    host(state).fail(request, uncaught, message);
}

#[op2(fast)]
fn op_casemate_wait_until(state: &OpState, request: u32, up: bool) {
    host(state).wait_until(request, up);
}

#[op2(fast)]
fn op_casemate_on_cancel(state: &OpState, request: u32) {
    host(state).on_cancel(request);
}

/// `kind`: 0 no body, 1 the bytes in `body`, 2 a stream.
#[op2]
fn op_casemate_fetch(
    state: &OpState,
    request: u32,
    binding: i32,
    #[string] method: &str,
    #[string] url: &str,
    #[string(onebyte)] headers: Cow<'_, [u8]>,
    kind: u8,
    #[anybuffer] body: &[u8],
) -> u32 {
    let body = match kind {
        0 => CallBody::Empty,
        1 => CallBody::Whole(Bytes::copy_from_slice(body)),
        _ => CallBody::Stream,
    };
    host(state).fetch(
        request,
        Call {
            binding,
            method,
            url,
            headers: &headers,
            body,
        },
    )
}

#[op2(fast)]
fn op_casemate_pull(state: &OpState, body: u32) {
    host(state).pull(body);
}

#[op2(fast)]
fn op_casemate_gather(state: &OpState, body: u32) {
    host(state).gather(body);
}

#[op2]
fn op_casemate_write(state: &OpState, body: u32, #[anybuffer] bytes: &[u8]) {
    host(state).write(body, Bytes::copy_from_slice(bytes));
}

#[op2(fast)]
fn op_casemate_finish(state: &OpState, body: u32) {
    host(state).finish(body);
}

#[op2(fast)]
fn op_casemate_cancel(state: &OpState, handle: u32) {
    host(state).cancel(handle);
}

#[op2(fast)]
fn op_casemate_timer(
    state: &OpState,
    request: u32,
    timer: u32,
    delay_ms: u32,
    repeats: bool,
) -> u8 {
    host(state).timer(request, timer, delay_ms, repeats) as u8
}

#[op2(fast)]
fn op_casemate_clear_timer(state: &OpState, timer: u32) {
    host(state).clear_timer(timer);
}

#[op2(fast)]
fn op_casemate_pool_begin(state: &OpState, request: u32) {
    host(state).pool_begin(request);
}

#[op2(fast)]
fn op_casemate_pool_end(state: &OpState, request: u32) {
    host(state).pool_end(request);
}

#[op2(fast)]
fn op_casemate_put_off(state: &OpState, request: u32, ticket: u32) -> bool {
    host(state).put_off(request, ticket)
}

#[op2(fast)]
fn op_casemate_log(state: &OpState, request: u32, level: u8, #[string] message: &str) {
    host(state).log(request, level, message);
}

/// Replaces deno_web's clock: the time stands still while code runs, in whole milliseconds.
#[op2(fast)]
fn op_casemate_now(state: &OpState, #[buffer] out: &mut [u8]) {
    expose(host(state).clock().1, out);
}

/// Replaces deno_web's time origin.
#[op2(fast)]
fn op_casemate_time_origin(state: &OpState, #[buffer] out: &mut [u8]) {
    let (wall_us, since_start_us) = host(state).clock();
    expose(wall_us.saturating_sub(since_start_us), out);
}

/// Writes seconds and nanoseconds in native byte order, at a resolution of one millisecond.
fn expose(time_us: u64, out: &mut [u8]) {
    let time_ms = time_us / 1000;
    if let Some(out) = out.first_chunk_mut::<8>() {
        let secs = u32::try_from(time_ms / 1000).unwrap_or(u32::MAX);
        let nanos = u32::try_from(time_ms % 1000).unwrap_or(0) * 1_000_000;
        out[..4].copy_from_slice(&secs.to_ne_bytes());
        out[4..].copy_from_slice(&nanos.to_ne_bytes());
    }
}

/// Describes an error for the tenant: a function of `boot.js`.
struct Describe(v8::Global<v8::Function>);

/// Takes the function that describes errors.
#[op2(fast)]
fn op_casemate_describe_with(
    scope: &mut v8::PinScope<'_, '_>,
    state: &mut OpState,
    describe: v8::Local<'_, v8::Function>,
) {
    state.put(Describe(v8::Global::new(scope, describe)));
}

/// Replaces deno_core's reporting, which would end the event loop: an uncaught error becomes a line
/// in the log of the request whose code threw it. Inspecting the error may run code of the
/// function, which may call any operation.
#[op2(nofast, reentrant)]
fn op_casemate_uncaught(
    scope: &mut v8::PinScope<'_, '_>,
    state: Rc<RefCell<OpState>>,
    error: v8::Local<'_, v8::Value>,
    _in_promise: bool,
) {
    let (host, describe) = {
        let state = state.borrow();
        let describe = state.try_borrow::<Describe>();
        (
            host(&state),
            describe.map(|Describe(function)| function.clone()),
        )
    };
    let request = scope.get_continuation_preserved_embedder_data();
    let request = request.uint32_value(scope).unwrap_or_default();
    v8::tc_scope!(let scope, scope);
    let shown = describe.and_then(|describe| {
        let this = v8::undefined(scope).into();
        v8::Local::new(scope, describe).call(scope, this, &[error])
    });
    let shown = shown.map(|shown| shown.to_rust_string_lossy(scope));
    let shown = shown.unwrap_or_else(|| "an error that cannot be shown".to_owned());
    host.log(request, 3, &format!("Uncaught {shown}"));
}

deno_core::extension!(
    casemate,
    deps = [deno_webidl, deno_web, deno_fetch, deno_crypto],
    ops = [
        op_casemate_url,
        op_casemate_headers,
        op_casemate_respond_empty,
        op_casemate_respond_text,
        op_casemate_respond_bytes,
        op_casemate_respond_stream,
        op_casemate_fail,
        op_casemate_wait_until,
        op_casemate_on_cancel,
        op_casemate_fetch,
        op_casemate_pull,
        op_casemate_gather,
        op_casemate_write,
        op_casemate_finish,
        op_casemate_cancel,
        op_casemate_timer,
        op_casemate_clear_timer,
        op_casemate_pool_begin,
        op_casemate_pool_end,
        op_casemate_put_off,
        op_casemate_log,
        op_casemate_describe_with,
        op_casemate_now,
        op_casemate_time_origin,
        op_casemate_uncaught,
    ],
    esm_entry_point = "ext:casemate/boot.js",
    esm = [
        dir "src/js",
        "web.js", "errors.js", "calls.js", "formdata.js", "subtle.js", "body.js", "timers.js", "local.js", "fetch.js", "incoming.js",
        "globals.js", "wasm.js", "boot.js"
    ],
    middleware = |op| match op.name {
        "op_now" => op.with_implementation_from(&op_casemate_now()),
        "op_time_origin" => op.with_implementation_from(&op_casemate_time_origin()),
        "op_dispatch_exception" => op.with_implementation_from(&op_casemate_uncaught()),
        _ => op,
    },
);
