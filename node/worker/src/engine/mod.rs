//! V8: one isolate, made from the snapshot, entered only through [`Engine`]. The only module of the
//! worker with `unsafe`.
//!
//! Code of the function runs in *turns*. Every turn belongs to a request, has a budget of CPU time,
//! sees a clock that stands still, and ends when the microtask queue is empty. An operation that
//! takes time is started through [`ops::Host`] and completes with an [`Event`], in a turn of the
//! request that began it; so CPU time is charged to the request that caused it.

#![allow(unsafe_code, reason = "V8 and the process's own memory and timers")]

mod clock;
#[cfg(test)]
mod error_classes;
mod extensions;
mod functions;
mod last_words;
mod locks;
mod memory;
mod modules;
pub(crate) mod ops;
mod pieces;
pub(crate) mod pool;
mod stacks;
mod wasm_memory;
mod watch;

use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use casemate_wire::control::worker::Load;
use casemate_wire::control::{Failure, Limits};
use deno_core::error::{CoreError, CoreErrorKind};
use deno_core::{JsRuntime, PollEventLoopOptions, RuntimeOptions, v8};

use crate::bundle::Bundle;
use crate::call_error::CallError;
use functions::Functions;
use memory::MIB;
use modules::Modules;
use ops::{Handle, Host, RequestId};
use watch::WATCH;
pub(crate) use watch::thread_cpu;

/// The snapshot: the web platform and our scripts, evaluated when this program was built.
static SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/snapshot.bin"));

/// Most of V8's own tasks between two turns, so that they cannot starve requests.
const MAX_PLATFORM_TASKS: usize = 64;

/// CPU time for evaluating the function's modules, of each thread: ten times what a large bundle
/// takes.
const LOAD_CPU: Duration = Duration::from_secs(2);
/// Wall-clock time for evaluating the modules.
const LOAD_WALL: Duration = Duration::from_secs(10);

/// An event that the program delivers to the function's side.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request has arrived. `body` is 0 when it has none.
    Dispatch {
        request: RequestId,
        method: String,
        body: Handle,
    },
    /// The caller of the request has left.
    Cancelled { request: RequestId },
    /// The request has ended: JavaScript can drop what it keeps for it.
    Over {
        request: RequestId,
        timers: Vec<u32>,
        handles: Vec<Handle>,
    },
    /// The head of an outgoing call's response. `body` is 0 when it has none.
    Answered {
        request: RequestId,
        call: Handle,
        status: u16,
        headers: Vec<u8>,
        body: Handle,
    },
    /// An outgoing call failed or was refused.
    Refused {
        request: RequestId,
        call: Handle,
        error: CallError,
        /// How the request fails if the function does not catch the error.
        uncaught: Failure,
    },
    /// A piece of a body has arrived.
    Arrived {
        request: RequestId,
        body: Handle,
        piece: Piece,
    },
    /// A sent piece has been taken, or the body is not wanted any more.
    Taken {
        request: RequestId,
        body: Handle,
        wanted: bool,
    },
    /// A timer is due.
    Fire { request: RequestId, timer: u32 },
    /// Work that JavaScript deferred to a turn of the request, under this number.
    Resume { request: RequestId, ticket: u32 },
}

impl Event {
    /// An outgoing call failed, for a reason that is not a refusal.
    pub(crate) fn failed(request: RequestId, call: Handle, error: CallError) -> Self {
        Self::Refused {
            request,
            call,
            error,
            uncaught: Failure::Exception,
        }
    }

    /// Whether the bytes that arrive exceed the function's limit.
    fn is_too_much(&self) -> bool {
        matches!(
            self,
            Self::Arrived {
                piece: Piece::TooMuch,
                ..
            }
        )
    }
}

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes.
    Bytes(Pieces),
    /// There are no more pieces.
    End,
    /// The body broke off; for the answer to a call, with the reason.
    Cut(Option<CallError>),
    /// The piece exceeds the function's limit.
    TooMuch,
}

/// The budget of a turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Wall-clock time.
    pub(crate) wall: Duration,
}

/// The result of a turn.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Turn {
    /// CPU time of the turn.
    pub(crate) cpu: Duration,
    /// The thread's CPU time at the turn's end, at which the next turn may begin.
    pub(crate) ended: Duration,
    /// Why the turn was stopped. The isolate must not be entered again.
    pub(crate) stopped: Option<Failure>,
    /// The request whose code was running when the watch stopped the turn, if known; 0 for code
    /// outside of requests.
    pub(crate) running: Option<RequestId>,
}

/// Why a function could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The function's fault, as the tenant reads it.
    #[error("{0}")]
    Function(String),
    /// Loading was stopped.
    #[error("stopped while loading: {}", last_words::message(*.0))]
    Stopped(Failure),
}

pub(crate) use last_words::{begun, exit_code, message as limit_message, note_begun};
pub(crate) use memory::prepare as prepare_memory;
pub(crate) use pieces::Pieces;

/// Initialises V8. Call it once in a process, before any other thread exists.
pub(crate) fn initialize() -> Platform {
    // SAFETY: called before any other thread exists. Only one arena, because freeing into another
    // thread's arena would read a file of /proc, which the sandbox forbids.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    locks::prepare_thread();
    // V8 would read /dev/urandom, which Landlock has closed, and fall back to the time of day: its
    // hash seeds and `Math.random` could then be guessed.
    v8::V8::set_entropy_source(fill_with_randomness);
    v8::V8::set_flags_from_string(&memory::flags());
    let platform = v8::new_single_threaded_default_platform(false).make_shared();
    JsRuntime::init_platform(Some(platform.clone()));
    Platform(platform)
}

/// Fills the buffer with random bytes from the kernel; false on failure.
fn fill_with_randomness(buffer: &mut [u8]) -> bool {
    // SAFETY: pointer and length are those of a live buffer.
    let filled = unsafe { libc::getrandom(buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(filled) == Ok(buffer.len())
}

/// V8's initialised platform.
pub(crate) struct Platform(v8::SharedRef<v8::Platform>);

/// The isolate and the functions of `boot.js`.
pub(crate) struct Engine {
    /// Never dropped: it lives as long as the process, and after a stop it must not be entered
    /// again, even to be torn down.
    runtime: ManuallyDrop<JsRuntime>,
    platform: v8::SharedRef<v8::Platform>,
    modules: Rc<Modules>,
    functions: Functions,
}

impl Engine {
    /// Makes the isolate and starts the watch over it. Call it inside a tokio runtime, before the
    /// sandbox closes.
    ///
    /// # Errors
    /// A thread, timer or memory is unavailable, or the snapshot is not ours.
    pub(crate) async fn start(
        platform: Platform,
        host: Rc<dyn Host>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        last_words::prepare()?;
        clock::advance();
        let modules = Rc::new(Modules::default());
        let params = v8::CreateParams::default()
            .heap_limits(0, memory::SPARE_HEAP_BYTES)
            .array_buffer_allocator(memory::allocator())
            .allow_atomics_wait(false);
        let mut runtime = JsRuntime::try_new(RuntimeOptions {
            module_loader: Some(modules.clone()),
            extensions: extensions::all(Vec::new()),
            startup_snapshot: Some(SNAPSHOT),
            create_params: Some(params),
            custom_module_evaluation_cb: Some(Box::new(modules::evaluate)),
            ..Default::default()
        })?;
        runtime.op_state().borrow_mut().put(host);
        runtime
            .v8_isolate()
            .set_oom_error_handler(memory::out_of_memory);
        runtime
            .v8_isolate()
            .set_prepare_stack_trace_callback(stacks::prepare);
        memory::limit_heap(&mut runtime, memory::SPARE_HEAP_BYTES, &WATCH);
        let context = runtime.main_context();
        watch::start(runtime.v8_isolate().thread_safe_handle(), context)?;
        let (start, functions) = functions::take(&mut runtime)?;
        let started = Box::pin(runtime.call(&start));
        runtime
            .with_event_loop_promise(started, PollEventLoopOptions::default())
            .await?;
        Ok(Self {
            runtime: ManuallyDrop::new(runtime),
            platform: platform.0,
            modules,
            functions,
        })
    }

    /// Applies the function's limits, then loads and evaluates its modules.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(crate) async fn load(&mut self, bundle: Bundle, load: &Load) -> Result<(), LoadError> {
        self.limit(&load.limits, load.dynamic_code);
        pool::settle(|_, _| (), |_| LOAD_CPU);
        self.modules.fill(bundle);
        let entry = Modules::specifier(&load.entry)
            .map_err(|error| LoadError::Function(error.to_string()))?;
        let runtime = &mut self.runtime;
        let id = watched(async {
            let id = runtime.load_main_es_module(&entry).await?;
            let evaluated = runtime.mod_evaluate(id);
            runtime
                .with_event_loop_promise(Box::pin(evaluated), PollEventLoopOptions::default())
                .await?;
            Ok(id)
        })
        .await?;
        let namespace = self
            .runtime
            .get_module_namespace(id)
            .map_err(|error| LoadError::Function(error.to_string()))?;
        let start = thread_cpu();
        WATCH.begin(start, LOAD_CPU, LOAD_WALL);
        let installed =
            functions::install(&mut self.runtime, &self.functions.load, &namespace, load);
        if let Some(failure) = WATCH.end(start).stopped {
            return Err(LoadError::Stopped(failure));
        }
        installed.map_err(LoadError::Function)
    }

    fn limit(&mut self, limits: &Limits, dynamic_code: bool) {
        let heap_bytes = limits.heap_mib as usize * MIB;
        let bytes = heap_bytes.max(memory::LEAST_HEAP_BYTES);
        memory::limit_heap(&mut self.runtime, bytes, &WATCH);
        memory::BUFFERS.set_limit(bytes);
        memory::ARRIVING.set_limit(bytes);
        wasm_memory::set_limit(bytes);
        WATCH.limit_memory(heap_bytes + memory::OVERHEAD_BYTES);
        deno_core::scope!(scope, &mut self.runtime);
        scope
            .get_current_context()
            .set_allow_generation_from_strings(dynamic_code);
    }

    /// Delivers an event to the function's side and runs code until it has nothing more to do. The
    /// turn begins at this CPU time of the thread.
    pub(crate) fn turn(&mut self, event: &Event, budget: Budget, start: Duration) -> Turn {
        clock::advance();
        WATCH.begin(start, budget.cpu, budget.wall);
        if has_room(event) {
            deno_core::scope!(scope, &mut self.runtime);
            v8::tc_scope!(let scope, scope);
            self.functions.tell(scope, event);
            // The function's code is called inside `try`, so an exception here is a bug of ours; or
            // the turn was stopped.
            if let Some(exception) = scope.exception()
                && !scope.has_terminated()
                && !scope.is_execution_terminating()
            {
                let exception = exception.to_rust_string_lossy(scope);
                tracing::error!(exception, ?event, "boot.js threw");
            }
            scope.perform_microtask_checkpoint();
        } else {
            WATCH.stop(Failure::ExceededMemory);
        }
        WATCH.end(start)
    }

    /// Lets V8 collect garbage when arriving bytes do not fit and unreferenced buffers may take the
    /// space. Returns whether it did, because that takes CPU time.
    pub(crate) fn make_room(&mut self, event: &Event) -> bool {
        let is_needed = !event.is_too_much() && !has_room(event);
        if is_needed {
            self.runtime.v8_isolate().low_memory_notification();
        }
        is_needed
    }

    /// Runs the platform's own asynchrony that is due: cryptography, dynamic imports, abort timers,
    /// V8's tasks, and rejections that were not handled. Wakes `context` when there is more. The
    /// turn begins at this CPU time of the thread.
    pub(crate) fn poll(
        &mut self,
        context: &mut Context<'_>,
        budget: Budget,
        start: Duration,
    ) -> Turn {
        clock::advance();
        WATCH.begin(start, budget.cpu, budget.wall);
        for _ in 0..MAX_PLATFORM_TASKS {
            if !v8::Platform::pump_message_loop(&self.platform, self.runtime.v8_isolate(), false) {
                break;
            }
        }
        let polled = self
            .runtime
            .poll_event_loop(context, PollEventLoopOptions::default());
        let turn = WATCH.end(start);
        if let (std::task::Poll::Ready(Err(error)), None) = (polled, turn.stopped) {
            tracing::warn!(%error, "the event loop reported an error");
        }
        turn
    }
}

/// Whether the arriving bytes may become a buffer.
fn has_room(event: &Event) -> bool {
    match event {
        Event::Arrived {
            piece: Piece::Bytes(pieces),
            ..
        } => memory::BUFFERS.has_room(pieces.capacity()),
        _ => !event.is_too_much(),
    }
}

/// Polls `future` in turns with the budget for loading.
async fn watched<T>(future: impl Future<Output = Result<T, CoreError>>) -> Result<T, LoadError> {
    let mut future = std::pin::pin!(future);
    let mut used = Duration::ZERO;
    std::future::poll_fn(|context| {
        clock::advance();
        let start = thread_cpu();
        WATCH.begin(start, LOAD_CPU.saturating_sub(used), LOAD_WALL);
        let polled = future.as_mut().poll(context);
        let Turn { cpu, stopped, .. } = WATCH.end(start);
        used += cpu;
        match stopped {
            Some(failure) => std::task::Poll::Ready(Err(LoadError::Stopped(failure))),
            None => polled.map_err(|error| LoadError::Function(told(&error))),
        }
    })
    .await
}

/// An error of loading in the form for the tenant, with its stack if it has one.
fn told(error: &CoreError) -> String {
    let CoreErrorKind::Js(error) = error.as_kind() else {
        return error.to_string();
    };
    match &error.stack {
        Some(stack) if error.frames.len() > 1 => format!("Uncaught {stack}"),
        _ => error.to_string(),
    }
}

/// The visible time: microseconds since the Unix epoch and since the start.
pub(crate) fn clock() -> (u64, u64) {
    clock::shown()
}
