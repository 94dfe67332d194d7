//! Stack traces for the tenant: positions in the tenant's own sources, without internal frames.
//!
//! deno_core formats stacks and looks positions up in source maps, which [`super::modules`]
//! provides. Frames of the platform's and our own scripts are removed before.

use deno_core::v8;

/// Prefix of the URLs of the platform's scripts.
const PLATFORM: &str = "ext:";

/// V8 calls this when an error's stack is first read.
pub(super) fn prepare<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    error: v8::Local<'s, v8::Value>,
    callsites: v8::Local<'s, v8::Array>,
) -> v8::Local<'s, v8::Value> {
    let mut shown = Vec::new();
    for index in 0..callsites.length() {
        if let Some(callsite) = callsites.get_index(scope, index)
            && !is_of_platform(scope, callsite)
        {
            shown.push(callsite);
        }
    }
    let shown = v8::Array::new_with_elements(scope, &shown);
    deno_core::error::prepare_stack_trace_callback(scope, error, shown)
}

fn is_of_platform<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    callsite: v8::Local<'s, v8::Value>,
) -> bool {
    let name = call(scope, callsite, "getFileName");
    name.is_some_and(|name| name.to_rust_string_lossy(scope).starts_with(PLATFORM))
}

/// Calls a method of V8's own call site object, which the function's code cannot have changed.
fn call<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    callsite: v8::Local<'s, v8::Value>,
    method: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let callsite = callsite.try_cast::<v8::Object>().ok()?;
    let key = v8::String::new(scope, method)?;
    let method = callsite.get(scope, key.into())?;
    let method = method.try_cast::<v8::Function>().ok()?;
    method.call(scope, callsite.into(), &[])
}
