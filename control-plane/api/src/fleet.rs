//! The fleet: its public facts, and the upload of statements.

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::FleetId;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The statements with which a client verifies the fleet from the fingerprint that it got out of
/// band. Nothing in it may be trusted before that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FleetView {
    /// The fleet's id, once a root was uploaded.
    #[schema(value_type = Option<String>)]
    pub fleet: Option<FleetId>,
    /// Every root, oldest first.
    #[schema(value_type = Vec<Object>)]
    pub roots: Vec<Envelope>,
    /// The newest online key.
    #[schema(value_type = Option<Object>)]
    pub online_key: Option<Envelope>,
    /// The newest list of revoked nodes.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub revocations: Option<Envelope>,
    /// `host:port` of the QUIC socket, as nodes reach it.
    pub quic_address: String,
    /// Version of the server's software.
    pub version: String,
}

/// Public halves of the control plane's keys, as `casemate-control init` writes them to
/// `public.json`. The operator takes them to the machine with the root key, which signs them in an
/// `OnlineKey`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKeys {
    /// Key that signs leases.
    pub liveness: PublicKey,
    /// Raw public key of the QUIC socket.
    pub quic: PublicKey,
    /// Key of the API's self-signed certificate.
    pub api: PublicKey,
}

/// The result for a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The statement was stored and is being pushed.
    New,
    /// The statement was stored already.
    Held,
}

/// The answer to a statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatementAnswer {
    /// The result.
    pub accepted: Outcome,
    /// Revision of the control plane's state after it.
    pub revision: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Newest epoch.
    pub epoch: u64,
    /// Until when the newest epoch is used.
    pub expires: Seconds,
    /// Number of nodes in the pool.
    pub nodes: usize,
    /// Its statements, all epochs, oldest first.
    #[schema(value_type = Vec<Object>)]
    pub statements: Vec<Envelope>,
}

/// All pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolList {
    /// The pools, by name.
    pub pools: Vec<PoolView>,
}
