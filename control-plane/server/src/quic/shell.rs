//! The state that the listener's connections share.

use std::sync::Arc;
use std::time::Duration;

use casemate_push::Versions;
use tokio_util::sync::CancellationToken;

use super::seat::Seats;
use crate::keys::Keys;
use crate::plane::Plane;

/// Time limit for the handshake, and again until the node has opened its stream and sent its first
/// message.
pub(super) const FIRST_WORD: Duration = Duration::from_secs(10);

/// The parts of the control plane that a connection uses.
pub(super) struct Shell {
    pub(super) plane: Arc<Plane>,
    pub(super) keys: Arc<Keys>,
    pub(super) versions: Versions,
    pub(super) seats: Seats,
    pub(super) stopping: CancellationToken,
}
