//! The functions of `boot.js`, and the values that they take.

use casemate_wire::control::worker::Load;
use deno_core::{JsRuntime, v8};

use super::{Event, Piece, Pieces, memory};
use crate::call_error::CallError;

/// The functions of `boot.js`, by their names there.
pub(super) struct Functions {
    pub(super) load: Function,
    dispatch: Function,
    cancelled: Function,
    over: Function,
    answered: Function,
    refused: Function,
    arrived: Function,
    taken: Function,
    fire: Function,
    resume: Function,
}

pub(super) type Function = v8::Global<v8::Function>;
type Scope<'a, 's, 'i> = v8::PinScope<'s, 'i>;

/// Takes the functions of `boot.js`; the first one, which hides their names from code, is called
/// once.
pub(super) fn take(
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
        resume: take("resume")?,
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

/// Passes the evaluated module to `boot.js`, with the contents of `env`.
pub(super) fn install(
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

/// A string; empty if V8 cannot hold it (over half a GiB).
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

/// A new `Uint8Array` that takes these bytes. `undefined` when they exceed the function's limit,
/// which the caller has checked before.
fn uint8_array<'s>(scope: &mut Scope<'_, 's, '_>, pieces: &Pieces) -> v8::Local<'s, v8::Value> {
    let array = memory::backing_store(pieces.take()).and_then(|store| {
        let buffer = v8::ArrayBuffer::with_backing_store(scope, &store);
        v8::Uint8Array::new(scope, buffer, 0, pieces.len())
    });
    match array {
        Some(array) => array.into(),
        None => v8::undefined(scope).into(),
    }
}

impl Functions {
    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(super) fn tell(&self, scope: &mut Scope<'_, '_, '_>, event: &Event) {
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
                error: CallError { code, message },
                uncaught,
            } => {
                let arguments = [
                    number(scope, *request),
                    number(scope, *handle),
                    text(scope, code.name()),
                    text(scope, message),
                    number(scope, u32::from(uncaught.to_reset())),
                ];
                call(scope, &self.refused, &arguments);
            }
            Event::Arrived {
                request,
                body,
                piece,
            } => {
                let (request, body) = (number(scope, *request), number(scope, *body));
                let undefined = v8::undefined(scope).into();
                match piece {
                    Piece::Bytes(pieces) => {
                        let piece = uint8_array(scope, pieces);
                        call(scope, &self.arrived, &[request, body, piece]);
                    }
                    Piece::End => {
                        let piece = v8::null(scope).into();
                        call(scope, &self.arrived, &[request, body, piece]);
                    }
                    Piece::Cut(Some(CallError { code, message })) => {
                        let (code, message) = (text(scope, code.name()), text(scope, message));
                        let arguments = [request, body, undefined, code, message];
                        call(scope, &self.arrived, &arguments);
                    }
                    // A piece over the limit is never delivered: the function is ended before.
                    Piece::Cut(None) | Piece::TooMuch => {
                        call(scope, &self.arrived, &[request, body, undefined]);
                    }
                }
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
            Event::Resume { request, ticket } => {
                let arguments = [number(scope, *request), number(scope, *ticket)];
                call(scope, &self.resume, &arguments);
            }
        }
    }
}
