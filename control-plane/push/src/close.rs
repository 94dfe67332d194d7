//! Application error codes with which the control plane closes a connection; a [`crate::Violation`]
//! has its own above these.

/// The node was revoked or removed.
pub const REVOKED: u32 = 1;
/// The control plane stops; retry soon.
pub const STOPPING: u32 = 2;
/// The join request has waited for its time limit; retry later.
pub const WAITED: u32 = 3;
/// Too many join requests or connections; retry later.
pub const TOO_MANY: u32 = 4;
/// The same key has connected again.
pub const REPLACED: u32 = 5;
/// The join request will not be relayed; the message before contains the reason.
pub const JOIN_REFUSED: u32 = 6;
/// Another machine with the same key is connected; retry later.
pub const DUPLICATE: u32 = 7;
/// The two ends have no common version of the protocol; the reason names their versions. Retry
/// later.
pub const APART: u32 = 8;
