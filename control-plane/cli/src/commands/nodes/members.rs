//! Admitted nodes: later pool keys are sealed to the keys in this file, never to
//! keys that the control plane reports.

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::key::{PublicKey, SealingKey};
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::session::Session;

/// The file of the members.
pub(super) const NODES: &str = "nodes.json";

/// An admitted node. The list of them is the home's own record, in `nodes.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Admitted {
    pub(super) node: Name,
    pub(super) pool: Name,
    pub(super) node_key: PublicKey,
    pub(super) sealing_key: SealingKey,
    pub(super) admitted: Seconds,
    pub(super) revoked: bool,
    /// The node's request, which is uploaded again to a control plane that has lost the node. It is
    /// missing for nodes that were admitted before requests were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) join: Option<Envelope>,
}

/// Whether a node that the control plane lists was revoked by this home or by the root.
pub(in crate::commands) fn is_revoked(
    session: &Session<'_>,
    name: &Name,
    key: &PublicKey,
) -> Result<bool, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let is_marked = members
        .iter()
        .any(|member| member.node == *name && member.node_key == *key && member.revoked);
    Ok(is_marked || session.known.judge().is_revoked(key))
}

/// The members that this home has admitted and not revoked, each with its key.
pub(in crate::commands) fn members(session: &Session<'_>) -> Result<Vec<(Name, PublicKey)>, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let current = members.into_iter().filter(|member| !member.revoked);
    Ok(current
        .map(|member| (member.node, member.node_key))
        .collect())
}
