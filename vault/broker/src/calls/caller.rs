//! Whose calls a channel carries.

use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Name;
use casemate_wire::control::FunctionKey;

/// The owner of a channel, decided by the descriptor when the supervisor passed it.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) function: Name,
    pub(crate) release: Digest,
    pub(super) key: FunctionKey,
}
