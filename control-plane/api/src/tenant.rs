//! Tenants: their statements, manifests and the nodes' progress with these.

use std::collections::BTreeMap;

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::{Identifier, Name};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::fleet::Outcome;

/// A tenant in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantSummary {
    /// Id.
    #[schema(value_type = String)]
    pub id: TenantId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Version of its newest statement.
    pub version: u64,
    /// Until when the statement is used.
    pub expires: Seconds,
    /// Hosts that may lead to its functions.
    pub hosts: Vec<String>,
    /// Version of its newest manifest.
    pub manifest_version: Option<u64>,
    /// Until when that manifest's credentials are used.
    pub manifest_expires: Option<Seconds>,
    /// Number of functions in its newest manifest.
    pub functions: usize,
    /// Memory that all its workers on a node may use together, MiB.
    #[serde(default)]
    pub memory_mib: Option<u32>,
}

/// All tenants that the token may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    /// The tenants, by id.
    pub tenants: Vec<TenantSummary>,
}

/// One tenant with its signed statements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantView {
    /// Id.
    #[schema(value_type = String)]
    pub id: TenantId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its statements, oldest first.
    #[schema(value_type = Vec<Object>)]
    pub statements: Vec<Envelope>,
    /// Its newest manifest.
    #[schema(value_type = Option<Object>)]
    pub manifest: Option<Envelope>,
    /// Its newest statement of freshness, if it names that manifest or a newer one.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub freshness: Option<Envelope>,
}

/// Answer to a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ManifestAnswer {
    /// The result.
    pub accepted: Outcome,
    /// Revision of the control plane's state after it.
    pub revision: u64,
}

/// Answer to a statement of freshness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreshnessAnswer {
    /// The result.
    pub accepted: Outcome,
    /// Revision of the control plane's state after it.
    pub revision: u64,
}

/// The nodes' progress with a tenant's newest manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantStatus {
    /// Id.
    #[schema(value_type = String)]
    pub id: TenantId,
    /// Name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Version of the newest manifest.
    pub manifest_version: Option<u64>,
    /// Digest of its payload.
    #[schema(value_type = Option<String>)]
    pub manifest_digest: Option<Digest>,
    /// Until when its credentials are used.
    pub manifest_expires: Option<Seconds>,
    /// Functions by name.
    #[schema(value_type = BTreeMap<String, FunctionStatus>)]
    pub functions: BTreeMap<Name, FunctionStatus>,
    /// Nodes in a pool of the manifest, by name.
    pub nodes: Vec<NodeProgress>,
    /// The tenant's storage.
    pub storage: StorageView,
    /// Credentials that nodes have stopped, by function and secret.
    #[serde(default)]
    pub stopped_credentials: Vec<StoppedCredential>,
}

/// A credential that nodes have stopped for a function, because answers contained the secret three
/// times within an hour (`credential_reflected`). The nodes report it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoppedCredential {
    /// The function.
    #[schema(value_type = String)]
    pub function: Name,
    /// The secret.
    #[schema(value_type = String)]
    pub secret: Identifier,
    /// The nodes, by name.
    #[schema(value_type = Vec<String>)]
    pub nodes: Vec<Name>,
    /// Unix time at which the last of the nodes uses it again.
    pub until: Seconds,
}

/// Storage of a tenant: its bundles, releases and sealed secrets. Uploads beyond the limit are
/// refused with `quota_exceeded`; objects that the newest manifest does not list are removed some
/// time after their upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageView {
    /// Bytes in use, including uploads under way.
    pub used_bytes: u64,
    /// Most bytes.
    pub limit_bytes: u64,
}

/// One function of the newest manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionStatus {
    /// The wanted release.
    #[schema(value_type = String)]
    pub release: Digest,
    /// The pools in which it runs.
    #[schema(value_type = Vec<String>)]
    pub pools: Vec<Name>,
    /// Hosts of its release.
    pub hosts: Vec<String>,
    /// Hosts of its release that belong to another tenant, which the operator admitted first: a
    /// node that knows that tenant leads callers there.
    #[serde(default)]
    pub hosts_of_other_tenants: Vec<String>,
    /// Nodes in its pools that hold the newest manifest, by version and digest.
    pub nodes_current: usize,
    /// All nodes in its pools.
    pub nodes_total: usize,
}

/// A node's progress with one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeProgress {
    /// The node.
    #[schema(value_type = String)]
    pub node: Name,
    /// Its pool.
    #[schema(value_type = String)]
    pub pool: Name,
    /// Whether it is connected now.
    pub connected: bool,
    /// The highest manifest version that it acknowledged.
    pub manifest_version: Option<u64>,
    /// Digest of that manifest's payload, if known: another manifest of the same version may exist.
    #[schema(value_type = Option<String>)]
    pub manifest_digest: Option<Digest>,
    /// Unix time of that acknowledgement.
    pub acknowledged: Option<Seconds>,
    /// Whether the node has every bundle that it needs for the manifest: it runs there, even after
    /// a restart without the control plane.
    #[serde(default)]
    pub is_stored: bool,
    /// Its last refusal since.
    pub refused: Option<Refused>,
}

/// A refusal by a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// The refused statement, such as `manifest 4 of tenant ID`.
    pub what: String,
    /// The node's stable code.
    pub code: String,
    /// Text for people.
    pub message: String,
    /// Unix time of the refusal.
    pub at: Seconds,
}
