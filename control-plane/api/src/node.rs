//! Nodes: join requests, admission, and state.

use std::collections::BTreeMap;

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::join::{Grant, TokenRecord};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::tenant::Refused;

/// A join request that waits for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinView {
    /// Digest of the envelope's payload, which identifies the request at admission.
    #[schema(value_type = String)]
    pub request: Digest,
    /// The node's name.
    #[schema(value_type = String)]
    pub node: Name,
    /// The requested pool.
    #[schema(value_type = String)]
    pub pool: Name,
    /// The node's Ed25519 key.
    #[schema(value_type = String)]
    pub node_key: PublicKey,
    /// The request as the node's vault signed it; the operator's machine checks it against its own record of the token.
    #[schema(value_type = Object)]
    pub envelope: Envelope,
    /// Unix time at which it first arrived.
    pub first_seen: Seconds,
}

/// All waiting join requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JoinList {
    /// The requests, oldest first.
    pub joins: Vec<JoinView>,
}

/// Registers the public part of a join token: only requests made with a registered token are
/// relayed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoinToken {
    /// The operator's record of the token.
    #[schema(value_type = Object)]
    pub record: TokenRecord,
}

/// Admits a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// Digest of the join request's payload.
    #[schema(value_type = String)]
    pub request: Digest,
    /// The node's key, as checked on the operator's machine.
    #[schema(value_type = String)]
    pub node_key: PublicKey,
    /// The node's name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its pool.
    #[schema(value_type = String)]
    pub pool: Name,
    /// The pool's keys, sealed to the node.
    #[schema(value_type = Vec<Object>)]
    pub grants: Vec<Grant>,
}

/// Registers again an admitted node that a restored control plane does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Readmission {
    /// The join request, as stored on the operator's machine.
    #[schema(value_type = Object)]
    pub join: Envelope,
    /// The pool's keys, sealed to the node.
    #[schema(value_type = Vec<Object>)]
    pub grants: Vec<Grant>,
}

/// More pool keys for a node, after a rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrants {
    /// The keys, sealed to the node.
    #[schema(value_type = Vec<Object>)]
    pub grants: Vec<Grant>,
}

/// The report of a node that boots images about its machine. Not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineView {
    /// Version of the image that it runs.
    pub version: Option<String>,
    /// Protection of its storage key: `tpm`, `tpm without secure boot`, `recovery` for this boot
    /// alone, or `clear`.
    pub storage_key: Option<String>,
    /// Progress of its next image.
    pub update: Option<String>,
}

/// One condition that a node needs to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CheckView {
    /// `protocol`, `walls`, `vault`, `gateway`, `workers`, `disk`, `lease`, `image`, `certificates`, `refusal`, `clock` or `identity`.
    pub name: String,
    /// Whether the condition is met.
    pub ok: bool,
    /// The facts.
    pub detail: String,
}

/// The health of a node, from its report and from the control plane's observations. The report is
/// not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// The checked conditions.
    pub checks: Vec<CheckView>,
    /// Unix time at which its first certificate expires, if it reports that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<Seconds>,
}

/// A node in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeSummary {
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Pool.
    #[schema(value_type = String)]
    pub pool: Name,
    /// Its Ed25519 key.
    #[schema(value_type = String)]
    pub key: PublicKey,
    /// Unix time at which it was admitted.
    pub admitted: Seconds,
    /// Unix time of the connection, if the node is connected.
    pub connected_since: Option<Seconds>,
    /// Unix time of its last message.
    pub last_seen: Option<Seconds>,
    /// Version of its software.
    pub version: Option<String>,
    /// Revision up to which it has got everything.
    pub synced_revision: Option<u64>,
    /// Its machine, if that boots images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineView>,
    /// Unix time at which two machines with its key were last connected at a time: its disk was
    /// copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_seen: Option<Seconds>,
    /// Its health, once it has reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthView>,
}

/// All nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// The nodes, by name.
    pub nodes: Vec<NodeSummary>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// The summary, as in the list.
    #[serde(flatten)]
    pub summary: NodeSummary,
    /// Its X-Wing key, from the join request: later grants are sealed to it.
    #[schema(value_type = Object)]
    pub join: Envelope,
    /// Epochs of its pool for which a grant is stored.
    pub grants: Vec<u64>,
    /// The node's report: layers in force and more. Not checked.
    #[schema(value_type = Object)]
    pub status: serde_json::Value,
    /// Highest acknowledged manifest version, by tenant.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub manifests: BTreeMap<TenantId, u64>,
    /// Refusals since which it has not accepted a later version.
    pub refused: Vec<Refused>,
}
