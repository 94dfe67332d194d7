//! Log records of a tenant's functions, one JSON object a line.

use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogRecord {
    /// Counts up per tenant while the server runs; `since` takes it.
    pub seq: u64,
    /// Unix time in milliseconds, by the node's clock.
    pub time_ms: u64,
    /// The node.
    #[schema(value_type = String)]
    pub node: Name,
    /// The function.
    #[schema(value_type = String)]
    pub function: Name,
    /// The request, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
    /// Text.
    pub message: String,
    /// Error class, such as `exceeded_cpu`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What of the log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuery {
    /// Go on with what comes.
    #[serde(default)]
    pub follow: bool,
    /// Only this function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<Name>,
    /// Only records after this `seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
}
