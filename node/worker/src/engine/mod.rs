//! V8: one isolate, made from the snapshot, entered only through [`Engine`]. The only part of the worker with `unsafe`.
//!
//! Code of the function runs in *turns*. Every turn belongs to a request, has a budget of CPU time, sees a clock that
//! stands still, and ends when the microtask queue is empty. What takes time is an operation of [`ops::Host`] whose end
//! comes back as an [`Event`], in a turn of the request that began it; so CPU time is charged to whoever caused it.

mod clock;
mod extensions;
mod last_words;
mod memory;
mod modules;
pub(crate) mod ops;
mod watch;

use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use casemate_wire::control::worker::Load;
use casemate_wire::control::{Failure, Limits};
use deno_core::{JsRuntime, PollEventLoopOptions, RuntimeOptions, v8};

use crate::bundle::Bundle;
use memory::MIB;
use modules::Modules;
use ops::{Handle, Host, RequestId};
use watch::WATCH;

/// The web platform and our scripts, evaluated when this program was built.
static SNAPSHOT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/snapshot.bin"));

/// Tasks of V8's own that run between two turns at most, so that they cannot starve requests.
const MAX_PLATFORM_TASKS: usize = 64;

/// CPU time for evaluating the function's modules: what a large bundle takes, ten times over.
const LOAD_CPU: Duration = Duration::from_secs(2);
/// Wall-clock time for the same.
const LOAD_WALL: Duration = Duration::from_secs(10);

/// What the program tells the function's side.
#[derive(Debug)]
pub(crate) enum Event {
    /// A request has come. `body` is 0 when it has none.
    Dispatch {
        request: RequestId,
        method: String,
        body: Handle,
    },
    /// Its caller went away.
    Cancelled { request: RequestId },
    /// It is over: what JavaScript still keeps for it can go.
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
    /// An outgoing call came to nothing.
    Refused {
        request: RequestId,
        call: Handle,
        code: String,
        message: String,
        by_vault: bool,
    },
    /// A piece of a body.
    Arrived {
        request: RequestId,
        body: Handle,
        piece: Piece,
    },
    /// A piece that was sent has been taken, or nobody wants the body.
    Taken {
        request: RequestId,
        body: Handle,
        wanted: bool,
    },
    /// A timer is due.
    Fire { request: RequestId, timer: u32 },
}

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Bytes.
    Bytes(Bytes),
    /// There are no more.
    End,
    /// It broke off.
    Cut,
}

/// What a turn may use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Wall-clock time.
    pub(crate) wall: Duration,
}

/// How a turn ended.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub(crate) struct Turn {
    /// CPU time that it took.
    pub(crate) cpu: Duration,
    /// Why it was stopped. The isolate must not be entered again.
    pub(crate) stopped: Option<Failure>,
}

/// Why a function could not be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Its fault: what the tenant reads.
    #[error("{0}")]
    Function(String),
    /// It was stopped.
    #[error("stopped while loading: {}", last_words::message(*.0))]
    Stopped(Failure),
}

pub(crate) use last_words::{exit_code, message as limit_message};

/// Initialises V8. Once a process, before any other thread exists.
pub(crate) fn initialize() -> Platform {
    v8::V8::set_flags_from_string("--single-threaded");
    let platform = v8::new_single_threaded_default_platform(false).make_shared();
    JsRuntime::init_platform(Some(platform.clone()));
    Platform(platform)
}

/// V8's platform, initialised.
pub(crate) struct Platform(v8::SharedRef<v8::Platform>);

/// The isolate and the functions of `boot.js`.
pub(crate) struct Engine {
    /// Never dropped: the process ends with it, and after a stop it must not be entered again, not even to be torn down.
    runtime: ManuallyDrop<JsRuntime>,
    platform: v8::SharedRef<v8::Platform>,
    modules: Rc<Modules>,
    functions: Functions,
}

/// The functions of `boot.js`, by the names that they have there.
struct Functions {
    load: Function,
    dispatch: Function,
    cancelled: Function,
    over: Function,
    answered: Function,
    refused: Function,
    arrived: Function,
    taken: Function,
    fire: Function,
}

type Function = v8::Global<v8::Function>;
type Scope<'a, 's, 'i> = v8::PinScope<'s, 'i>;

impl Engine {
    /// Makes the isolate and starts the watch over it. Must be called inside a tokio runtime, before the sandbox closes.
    ///
    /// # Errors
    /// No thread, timer or memory can be had, or the snapshot is not ours.
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
        memory::limit_heap(&mut runtime, memory::SPARE_HEAP_BYTES, &WATCH);
        watch::start(runtime.v8_isolate().thread_safe_handle())?;
        let (start, functions) = take_functions(&mut runtime)?;
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

    /// Puts the function's limits in force, then loads and evaluates its modules.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub(crate) async fn load(&mut self, bundle: Bundle, load: &Load) -> Result<(), LoadError> {
        self.limit(&load.limits, load.dynamic_code);
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
        let start = WATCH.begin(LOAD_CPU, LOAD_WALL);
        let installed = install(&mut self.runtime, &self.functions.load, &namespace, load);
        if let (_, Some(failure)) = WATCH.end(start) {
            return Err(LoadError::Stopped(failure));
        }
        installed.map_err(LoadError::Function)
    }

    fn limit(&mut self, limits: &Limits, dynamic_code: bool) {
        let bytes = limits.heap_mib as usize * MIB;
        memory::limit_heap(&mut self.runtime, bytes, &WATCH);
        memory::BUFFERS.set_limit(bytes);
        deno_core::scope!(scope, &mut self.runtime);
        scope
            .get_current_context()
            .set_allow_generation_from_strings(dynamic_code);
    }

    /// Tells the function's side what happened and lets it run until it has nothing more to do.
    pub(crate) fn turn(&mut self, event: &Event, budget: Budget) -> Turn {
        if let Event::Arrived {
            piece: Piece::Bytes(bytes),
            ..
        } = event
            && !memory::BUFFERS.has_room(bytes.len())
        {
            WATCH.stop(Failure::ExceededMemory);
            return Turn {
                cpu: Duration::ZERO,
                stopped: Some(Failure::ExceededMemory),
            };
        }
        clock::advance();
        let start = WATCH.begin(budget.cpu, budget.wall);
        {
            deno_core::scope!(scope, &mut self.runtime);
            v8::tc_scope!(let scope, scope);
            self.functions.tell(scope, event);
            // Code of the function is called inside `try`, so this is a mistake of ours; or the turn was stopped.
            if let Some(exception) = scope.exception()
                && !scope.is_execution_terminating()
            {
                let exception = exception.to_rust_string_lossy(scope);
                tracing::error!(exception, ?event, "boot.js threw");
            }
            scope.perform_microtask_checkpoint();
        }
        let (cpu, stopped) = WATCH.end(start);
        Turn { cpu, stopped }
    }

    /// Runs what is due of the platform's own asynchrony: cryptography, dynamic imports, abort timers, V8's tasks, and
    /// promises that were rejected and not handled. Wakes `context` when there is more.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, budget: Budget) -> Turn {
        clock::advance();
        let start = WATCH.begin(budget.cpu, budget.wall);
        for _ in 0..MAX_PLATFORM_TASKS {
            if !v8::Platform::pump_message_loop(&self.platform, self.runtime.v8_isolate(), false) {
                break;
            }
        }
        let polled = self
            .runtime
            .poll_event_loop(context, PollEventLoopOptions::default());
        let (cpu, stopped) = WATCH.end(start);
        if let (std::task::Poll::Ready(Err(error)), None) = (polled, stopped) {
            tracing::warn!(%error, "the event loop reported an error");
        }
        Turn { cpu, stopped }
    }
}

/// CPU time that other threads have taken for the function so far; from now on they may take `grant` more.
pub(crate) fn settle_helpers(grant: Duration) -> Duration {
    let used = watch::helpers_cpu();
    WATCH.grant_helpers(used.saturating_add(grant));
    used
}

/// Polls `future` in turns with the budget for loading.
async fn watched<T>(
    future: impl Future<Output = Result<T, deno_core::error::CoreError>>,
) -> Result<T, LoadError> {
    let mut future = std::pin::pin!(future);
    let mut used = Duration::ZERO;
    std::future::poll_fn(|context| {
        clock::advance();
        let start = WATCH.begin(LOAD_CPU.saturating_sub(used), LOAD_WALL);
        let polled = future.as_mut().poll(context);
        let (cpu, stopped) = WATCH.end(start);
        used += cpu;
        match stopped {
            Some(failure) => std::task::Poll::Ready(Err(LoadError::Stopped(failure))),
            None => polled.map_err(|error| LoadError::Function(error.to_string())),
        }
    })
    .await
}

/// The functions of `boot.js`; the first, which takes their names away from code, is called once.
fn take_functions(
    runtime: &mut JsRuntime,
) -> Result<(Function, Functions), Box<dyn std::error::Error>> {
    let context = runtime.main_context();
    deno_core::scope!(scope, runtime);
    let global = v8::Local::new(scope, context).global(scope);
    let object =
        get(scope, global, "__casemate").and_then(|value| value.try_cast::<v8::Object>().ok());
    let object = object.ok_or("the snapshot has no functions")?;
    let mut take = |name: &str| -> Result<Function, Box<dyn std::error::Error>> {
        let value =
            get(scope, object, name).and_then(|value| value.try_cast::<v8::Function>().ok());
        Ok(v8::Global::new(
            scope,
            value.ok_or_else(|| format!("the snapshot has no function {name}"))?,
        ))
    };
    let functions = Functions {
        load: take("load")?,
        dispatch: take("dispatch")?,
        cancelled: take("cancelled")?,
        over: take("over")?,
        answered: take("answered")?,
        refused: take("refused")?,
        arrived: take("arrived")?,
        taken: take("taken")?,
        fire: take("fire")?,
    };
    Ok((take("start")?, functions))
}

fn get<'s>(
    scope: &mut Scope<'_, 's, '_>,
    object: v8::Local<'s, v8::Object>,
    name: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let key = v8::String::new(scope, name)?;
    object.get(scope, key.into())
}

fn call(
    scope: &mut Scope<'_, '_, '_>,
    function: &Function,
    arguments: &[v8::Local<'_, v8::Value>],
) {
    let this = v8::undefined(scope).into();
    let function = v8::Local::new(scope, function);
    function.call(scope, this, arguments);
}

/// Hands the evaluated module to `boot.js`, with what `env` is made of.
fn install(
    runtime: &mut JsRuntime,
    function: &Function,
    namespace: &v8::Global<v8::Object>,
    load: &Load,
) -> Result<(), String> {
    deno_core::scope!(scope, runtime);
    v8::tc_scope!(let scope, scope);
    let namespace = v8::Local::new(scope, namespace);
    let vars = pairs(
        scope,
        load.vars
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let bindings = load
        .bindings
        .iter()
        .map(|binding| (binding.name.as_str(), binding.origin.as_str()));
    let bindings = pairs(scope, bindings);
    call(
        scope,
        function,
        &[namespace.into(), vars.into(), bindings.into()],
    );
    scope.perform_microtask_checkpoint();
    match scope.exception() {
        Some(exception) => Err(exception.to_rust_string_lossy(scope)),
        None => Ok(()),
    }
}

fn pairs<'s, 'a>(
    scope: &mut Scope<'_, 's, '_>,
    pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> v8::Local<'s, v8::Array> {
    let pairs: Vec<v8::Local<'s, v8::Value>> = pairs
        .map(|(name, value)| {
            let pair = [text(scope, name), text(scope, value)];
            v8::Array::new_with_elements(scope, &pair).into()
        })
        .collect();
    v8::Array::new_with_elements(scope, &pairs)
}

/// A string; one that V8 cannot hold (over half a GiB) is empty.
fn text<'s>(scope: &mut Scope<'_, 's, '_>, text: &str) -> v8::Local<'s, v8::Value> {
    v8::String::new(scope, text)
        .unwrap_or_else(|| v8::String::empty(scope))
        .into()
}

fn one_byte<'s>(scope: &mut Scope<'_, 's, '_>, bytes: &[u8]) -> v8::Local<'s, v8::Value> {
    let made = v8::String::new_from_one_byte(scope, bytes, v8::NewStringType::Normal);
    made.unwrap_or_else(|| v8::String::empty(scope)).into()
}

fn number<'s>(scope: &mut Scope<'_, 's, '_>, number: u32) -> v8::Local<'s, v8::Value> {
    v8::Integer::new_from_unsigned(scope, number).into()
}

fn numbers<'s>(scope: &mut Scope<'_, 's, '_>, values: &[u32]) -> v8::Local<'s, v8::Value> {
    let values: Vec<v8::Local<'s, v8::Value>> =
        values.iter().map(|value| number(scope, *value)).collect();
    v8::Array::new_with_elements(scope, &values).into()
}

/// A new `Uint8Array`. Its memory comes from the counting allocator, which was asked for room before.
fn uint8_array<'s>(scope: &mut Scope<'_, 's, '_>, bytes: &[u8]) -> v8::Local<'s, v8::Value> {
    let buffer = v8::ArrayBuffer::new(scope, bytes.len());
    if let Some(data) = buffer.data() {
        // SAFETY: the buffer was just made with this length, and nobody else knows it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), data.as_ptr().cast(), bytes.len()) };
    }
    match v8::Uint8Array::new(scope, buffer, 0, bytes.len()) {
        Some(array) => array.into(),
        None => v8::undefined(scope).into(),
    }
}

impl Functions {
    fn tell(&self, scope: &mut Scope<'_, '_, '_>, event: &Event) {
        match event {
            Event::Dispatch {
                request,
                method,
                body,
            } => {
                let arguments = [
                    number(scope, *request),
                    text(scope, method),
                    number(scope, *body),
                ];
                call(scope, &self.dispatch, &arguments);
            }
            Event::Cancelled { request } => {
                let arguments = [number(scope, *request)];
                call(scope, &self.cancelled, &arguments);
            }
            Event::Over {
                request,
                timers,
                handles,
            } => {
                let arguments = [
                    number(scope, *request),
                    numbers(scope, timers),
                    numbers(scope, handles),
                ];
                call(scope, &self.over, &arguments);
            }
            Event::Answered {
                request,
                call: handle,
                status,
                headers,
                body,
            } => {
                let arguments = [
                    number(scope, *request),
                    number(scope, *handle),
                    number(scope, u32::from(*status)),
                    one_byte(scope, headers),
                    number(scope, *body),
                ];
                call(scope, &self.answered, &arguments);
            }
            Event::Refused {
                request,
                call: handle,
                code,
                message,
                by_vault,
            } => {
                let arguments = [
                    number(scope, *request),
                    number(scope, *handle),
                    text(scope, code),
                    text(scope, message),
                    v8::Boolean::new(scope, *by_vault).into(),
                ];
                call(scope, &self.refused, &arguments);
            }
            Event::Arrived {
                request,
                body,
                piece,
            } => {
                let piece = match piece {
                    Piece::Bytes(bytes) => uint8_array(scope, bytes),
                    Piece::End => v8::null(scope).into(),
                    Piece::Cut => v8::undefined(scope).into(),
                };
                let arguments = [number(scope, *request), number(scope, *body), piece];
                call(scope, &self.arrived, &arguments);
            }
            Event::Taken {
                request,
                body,
                wanted,
            } => {
                let arguments = [
                    number(scope, *request),
                    number(scope, *body),
                    v8::Boolean::new(scope, *wanted).into(),
                ];
                call(scope, &self.taken, &arguments);
            }
            Event::Fire { request, timer } => {
                let arguments = [number(scope, *request), number(scope, *timer)];
                call(scope, &self.fire, &arguments);
            }
        }
    }
}

/// What the visible clock shows: microseconds since the Unix epoch and since the start.
pub(crate) fn clock() -> (u64, u64) {
    clock::shown()
}
