//! Why a call got no answer from its upstream, as the function reads it.

use casemate_channel::{RecvBody, StreamError};
use casemate_wire::ResponseHead;

use crate::engine::Event;
use crate::engine::ops::{Handle, RequestId};

/// The vault said no.
pub(crate) fn refusal(
    request: RequestId,
    call: Handle,
    head: &ResponseHead,
    _: &RecvBody,
) -> Event {
    let code = head
        .fields
        .text(":error")
        .unwrap_or("egress_denied")
        .to_owned();
    let message = head
        .fields
        .text(":message")
        .unwrap_or("the call was refused")
        .to_owned();
    Event::Refused {
        request,
        call,
        code,
        message,
        by_vault: true,
    }
}

/// The call broke off without an answer of the vault.
pub(crate) fn lost(request: RequestId, call: Handle, error: StreamError) -> Event {
    let CallError { code, message } = CallError::lost(error);
    Event::Refused {
        request,
        call,
        code: code.to_owned(),
        message,
        by_vault: false,
    }
}

/// Why a call got no answer, other than by the vault's own word. The function reads code and
/// message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CallError {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl CallError {
    /// The call cannot be made as the function asked for it, or did not come to its end.
    pub(crate) fn new(message: &str) -> Self {
        Self {
            code: "call_failed",
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

    /// A body broke off. `None` for that of a request: its caller is gone, or the gateway.
    pub(crate) fn cut(body: &RecvBody, error: StreamError) -> Option<Self> {
        body.is_of_answer().then(|| match error {
            StreamError::Closed => Self::vault_unavailable("the answer was cut off"),
            _ => Self::new("the vault cut the answer off; the function's log says why"),
        })
    }

    /// The function may try again: the supervisor starts the vault again, and the worker gets a new
    /// channel.
    fn vault_unavailable(consequence: &str) -> Self {
        Self {
            code: "vault_unavailable",
            message: format!("the node's vault ended and is being started again: {consequence}"),
        }
    }
}
