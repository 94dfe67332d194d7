//! Errors of outgoing calls, as the function sees them.

use casemate_channel::{RecvBody, StreamError};
use casemate_wire::control::Failure;
use casemate_wire::{CallCode, ResponseHead};

use crate::engine::Event;
use crate::engine::ops::{Handle, RequestId};

/// The vault refused. A code that this worker does not know is reported as a failed call.
pub(crate) fn refusal(request: RequestId, call: Handle, head: &ResponseHead) -> Event {
    let code = head.fields.text(":error").and_then(CallCode::parse);
    let message = head
        .fields
        .text(":message")
        .unwrap_or("the call was refused");
    Event::Refused {
        request,
        call,
        error: CallError {
            code: code.unwrap_or(CallCode::CallFailed),
            message: message.to_owned(),
        },
        uncaught: code.map_or(Failure::Exception, CallCode::failure),
    }
}

/// The call broke off without an answer of the vault.
pub(crate) fn lost(request: RequestId, call: Handle, error: StreamError) -> Event {
    Event::failed(request, call, CallError::lost(error))
}

/// Why a call got no answer. The function sees code and message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CallError {
    pub(crate) code: CallCode,
    pub(crate) message: String,
}

impl CallError {
    /// The call cannot be made as the function asked for it, or broke off.
    pub(crate) fn new(message: &str) -> Self {
        Self {
            code: CallCode::CallFailed,
            message: message.to_owned(),
        }
    }

    /// The stream of a call ended early, or could not be opened.
    pub(crate) fn lost(error: StreamError) -> Self {
        match error {
            StreamError::Closed => {
                Self::vault_unavailable("the call may or may not have reached its upstream")
            }
            error => Self::new(&format!("the call failed: {error}")),
        }
    }

    /// A body broke off. `None` for the body of a request: the caller or the gateway is gone.
    pub(crate) fn cut(body: &RecvBody, error: StreamError) -> Option<Self> {
        body.is_of_answer().then(|| match error {
            StreamError::Closed => Self::vault_unavailable("the answer was cut off"),
            _ => Self::new("the vault cut the answer off; the function's log has the reason"),
        })
    }

    /// A retry may succeed: the supervisor starts the vault again, and the worker gets a new
    /// channel.
    fn vault_unavailable(consequence: &str) -> Self {
        Self {
            code: CallCode::VaultUnavailable,
            message: format!("the node's vault ended and is being started again: {consequence}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scripts that make errors with their own codes.
    const SCRIPTS: &[&str] = &[
        include_str!("js/calls.js"),
        include_str!("js/fetch.js"),
        include_str!("js/timers.js"),
    ];

    #[test]
    fn the_scripts_name_codes_that_the_guide_has() {
        let made = SCRIPTS
            .iter()
            .flat_map(|script| script.split("failure(\"").skip(1));
        let codes: Vec<&str> = made.filter_map(|rest| rest.split('"').next()).collect();
        for code in ["subrequest_limit", "no_request", "request_ended"] {
            assert!(codes.contains(&code), "{code} is in none of {codes:?}");
        }
        for code in codes {
            assert!(
                CallCode::parse(code).is_some(),
                "{code} is not a code of calls"
            );
        }
    }
}
