//! The error body and its stable codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable code: one of [`code`], or the judge's code of a refusal.
    pub code: String,
    /// Text for people: what was expected and what came.
    pub message: String,
    /// Values for programs, such as the current version or the missing digests.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    #[schema(value_type = Object)]
    pub details: serde_json::Value,
}

impl ErrorBody {
    /// An error without details.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self {
            error: ErrorDetail {
                code,
                message,
                details: serde_json::Value::Null,
            },
        }
    }

    /// Adds values for programs.
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.error.details = details;
        self
    }
}

/// Stable codes. A refused statement carries the judge's own
/// (`casemate_trust::judge::Refusal::code`) instead.
pub mod code {
    /// 401: there is no token, or it is unknown or expired.
    pub const UNAUTHENTICATED: &str = "unauthenticated";
    /// 403: the token's scope does not permit this.
    pub const FORBIDDEN: &str = "forbidden";
    /// 404: the object does not exist.
    pub const NOT_FOUND: &str = "not_found";
    /// 405: the path exists, the method does not.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// 400: the request is not valid for the endpoint.
    pub const BAD_REQUEST: &str = "bad_request";
    /// 413: a limit was exceeded; `details.limit_bytes`.
    pub const TOO_LARGE: &str = "too_large";
    /// 408: the body came too slowly.
    pub const TIMEOUT: &str = "timeout";
    /// 413: the tenant's storage is full; `details.used_bytes`, `details.asked_bytes` and
    /// `details.limit_bytes`.
    pub const QUOTA_EXCEEDED: &str = "quota_exceeded";
    /// 422: the bytes do not have the digest in the path; `details.digest`.
    pub const DIGEST_MISMATCH: &str = "digest_mismatch";
    /// 422: the uploaded object is neither a release nor a secret of this tenant.
    pub const OBJECT_MALFORMED: &str = "object_malformed";
    /// 409: another manifest came first; `details.version` and `details.digest` are those of the
    /// current one.
    pub const MANIFEST_CONFLICT: &str = "manifest_conflict";
    /// 422: listed objects were not uploaded; `details.digests`.
    pub const OBJECTS_MISSING: &str = "objects_missing";
    /// 422: bundles of listed releases were not uploaded; `details.digests`.
    pub const BUNDLE_MISSING: &str = "bundle_missing";
    /// 422: the image of the statement was not uploaded, or has another size; `details.digest`.
    pub const IMAGE_MISSING: &str = "image_missing";
    /// 409: no root was uploaded yet.
    pub const NO_FLEET: &str = "no_fleet";
    /// 409: a node of this name or key exists.
    pub const NODE_EXISTS: &str = "node_exists";
    /// 422: the join token was used by another node.
    pub const TOKEN_USED: &str = "token_used";
    /// 422: the join token has expired.
    pub const TOKEN_EXPIRED: &str = "token_expired";
    /// 422: no registered join token signed this request.
    pub const TOKEN_UNKNOWN: &str = "token_unknown";
    /// 422: the grant is for another node, pool, or fleet.
    pub const GRANT_OTHER: &str = "grant_other";
    /// 422: no such pool has been signed.
    pub const POOL_UNKNOWN: &str = "pool_unknown";
    /// 422: the online key names other keys than the control plane holds.
    pub const ONLINE_KEY_OTHER: &str = "online_key_other";
    /// 429: the limit for these objects is reached; `details.limit`.
    pub const TOO_MANY: &str = "too_many";
    /// 422: a statement is dated in the future: the clock of the control plane or of the signer is
    /// wrong.
    pub const FROM_FUTURE: &str = "statement_from_future";
    /// 429: freshness was renewed a moment ago, and that renewal is valid; `details.interval_secs`.
    pub const TOO_SOON: &str = "too_soon";
    /// 409: another request changed the same object at the same time; a retry is safe.
    pub const CONFLICT: &str = "conflict";
    /// 507: the control plane's disk is full; nothing was changed.
    pub const STORAGE_FULL: &str = "storage_full";
    /// 500: the store failed; nothing was acknowledged.
    pub const STORAGE_FAILED: &str = "storage_failed";
    /// 500: a fault of the control plane.
    pub const INTERNAL: &str = "internal";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_left_out_when_there_are_none() {
        let plain =
            serde_json::to_string(&ErrorBody::new(code::NOT_FOUND, "no such node")).unwrap();
        assert_eq!(
            plain,
            r#"{"error":{"code":"not_found","message":"no such node"}}"#
        );
        let read: ErrorBody = serde_json::from_str(&plain).unwrap();
        assert!(read.error.details.is_null());
    }
}
