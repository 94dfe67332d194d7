//! Why a connection ends.

use casemate_push::{Violation, close};

/// Why the control plane closes a connection.
pub(super) struct Ending {
    pub(super) code: u32,
    pub(super) reason: String,
}

impl Ending {
    pub(super) fn new(code: u32, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { code, reason }
    }
}

impl From<Violation> for Ending {
    fn from(violation: Violation) -> Self {
        Self::new(violation.close_code(), violation.to_string())
    }
}

/// The other end has closed the connection.
pub(super) struct Gone;

/// Why a connection is over.
pub(super) enum Stop {
    Ending(Ending),
    Gone,
}

impl<T: Into<Ending>> From<T> for Stop {
    fn from(ending: T) -> Self {
        Self::Ending(ending.into())
    }
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

pub(super) fn revoked() -> Ending {
    Ending::new(close::REVOKED, "the node was revoked")
}

pub(super) fn duplicate() -> Ending {
    Ending::new(
        close::DUPLICATE,
        "another machine with this node's key is connected: its disk was copied; give one of them \
         a state folder of its own",
    )
}

pub(super) fn evicted() -> Ending {
    Ending::new(
        close::TOO_MANY,
        "newer connections of keys that nobody knows took the slot; try again",
    )
}
