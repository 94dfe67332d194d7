//! Why a call was refused or failed.

use casemate_wire::CallCode;

/// Why a call got no answer from its upstream. The function sees code and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    pub(crate) code: CallCode,
    pub(crate) message: String,
}

impl Refused {
    pub(crate) fn new(code: CallCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}
