//! Application error codes with which the control plane closes a connection; a [`crate::Violation`] has its own above
//! these.

/// The node was thrown out: it is a stranger now.
pub const REVOKED: u32 = 1;
/// The control plane stops; try again soon.
pub const STOPPING: u32 = 2;
/// A stranger has waited long enough; try again later.
pub const WAITED: u32 = 3;
/// Too many strangers or connections; try again later.
pub const TOO_MANY: u32 = 4;
/// The same key has connected again.
pub const REPLACED: u32 = 5;
/// The join request will not be relayed; the message before says why.
pub const JOIN_REFUSED: u32 = 6;
/// Another machine with the same key is connected and stays so; try again later.
pub const DUPLICATE: u32 = 7;
/// The two ends have no version of the protocol in common; the reason says which they speak. Try again later.
pub const APART: u32 = 8;
