//! Tenants: their statements, manifests and what the nodes made of them.

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
    /// Until when that is used.
    pub expires: Seconds,
    /// Hosts that its functions may answer for.
    pub hosts: Vec<String>,
    /// Version of its newest manifest.
    pub manifest_version: Option<u64>,
    /// Until when that manifest's credentials are used.
    pub manifest_expires: Option<Seconds>,
    /// Functions in its newest manifest.
    pub functions: usize,
    /// What all its workers on a node together may occupy, MiB.
    #[serde(default)]
    pub memory_mib: Option<u32>,
}

/// All tenants that the token may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    /// By id.
    pub tenants: Vec<TenantSummary>,
}

/// One tenant with what was signed.
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
    /// What became of it.
    pub accepted: Outcome,
    /// Revision of the control plane's state after it.
    pub revision: u64,
}

/// Answer to a statement of freshness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FreshnessAnswer {
    /// What became of it.
    pub accepted: Outcome,
    /// Revision of the control plane's state after it.
    pub revision: u64,
}

/// What the nodes made of a tenant's newest manifest.
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
    /// What is stored for the tenant.
    pub storage: StorageView,
    /// Credentials that nodes have stopped, by function and secret.
    #[serde(default)]
    pub stopped_credentials: Vec<StoppedCredential>,
}

/// A credential that nodes have stopped for a function, because answers held the secret three times
/// within an hour (`credential_reflected`). It is the nodes' word.
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

/// What is stored for a tenant: its bundles, releases and sealed secrets. Uploads that would go
/// over the limit are refused with `quota_exceeded`; what the newest manifest does not list is
/// removed some time after its upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StorageView {
    /// In use, with uploads under way.
    pub used_bytes: u64,
    /// Most that may be.
    pub limit_bytes: u64,
}

/// One function of the newest manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FunctionStatus {
    /// The wanted release.
    #[schema(value_type = String)]
    pub release: Digest,
    /// Where it runs.
    #[schema(value_type = Vec<String>)]
    pub pools: Vec<Name>,
    /// Hosts that its release names.
    pub hosts: Vec<String>,
    /// Those of them that are another tenant's, which the operator admitted first: a node that
    /// knows that tenant leads their callers there.
    #[serde(default)]
    pub hosts_of_other_tenants: Vec<String>,
    /// Nodes that hold the newest manifest, by version and digest, of those in its pools.
    pub nodes_current: usize,
    /// Nodes in its pools.
    pub nodes_total: usize,
}

/// How far a node has come with one tenant.
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
    /// Digest of that manifest's payload, where it is known: another one of the same version is not
    /// the same manifest.
    #[schema(value_type = Option<String>)]
    pub manifest_digest: Option<Digest>,
    /// Unix time of that acknowledgement.
    pub acknowledged: Option<Seconds>,
    /// The node has every bundle that it needs for that: it runs there, and does so after a restart
    /// with nobody there to ask.
    #[serde(default)]
    pub is_stored: bool,
    /// What it refused since.
    pub refused: Option<Refused>,
}

/// A refusal by a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// What was refused, such as `manifest 4 of tenant ID`.
    pub what: String,
    /// The node's stable code.
    pub code: String,
    /// For people.
    pub message: String,
    /// Unix time.
    pub at: Seconds,
}
