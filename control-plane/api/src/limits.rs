//! Limits that the server enforces and clients know.

pub use casemate_trust::dsse::MAX_ENVELOPE_BYTES;
pub use casemate_trust::freshness::MIN_MAX_AGE_SECS;
pub use casemate_trust::image::MAX_IMAGE_BYTES;
pub use casemate_trust::release::{MAX_BUNDLE_BYTES, MAX_RELEASE_BYTES};
pub use casemate_trust::secret::MAX_SECRET_BYTES;

use casemate_trust::Seconds;

/// Largest JSON body that is not an envelope, bytes: an admission with a grant for each epoch of a
/// pool.
pub const MAX_JSON_BYTES: usize = 256 * 1024;
/// Largest part of an image in one request, bytes: at 50 KB a second it arrives within the time
/// limit of a body.
pub const MAX_IMAGE_PART_BYTES: u64 = 4 * 1024 * 1024;
/// Largest object (a release or a secret), bytes.
pub const MAX_OBJECT_BYTES: usize = if MAX_RELEASE_BYTES > MAX_SECRET_BYTES {
    MAX_RELEASE_BYTES
} else {
    MAX_SECRET_BYTES
};
/// Longest label of a token, characters: it is shown in lists and in the audit log.
pub const MAX_LABEL_CHARS: usize = 100;
/// Most tokens: each request hashes and looks up one, and lists show all.
pub const MAX_TOKENS: usize = 10_000;
/// Most unused join tokens: each join request is checked against those with its name.
pub const MAX_JOIN_TOKENS: usize = 10_000;
/// Most waiting join requests: every holder of a token can make one.
pub const MAX_JOINS: usize = 1000;
/// Most nodes.
pub const MAX_NODES: usize = 10_000;
/// Most grants in one request: the epochs of a pool.
pub const MAX_GRANTS: usize = 16;
/// Seconds between two statements of freshness of a manifest: four of them fit into the shortest
/// age that a manifest may demand, and the writes and pushes for one tenant are bounded.
pub const FRESHNESS_INTERVAL_SECS: Seconds = MIN_MAX_AGE_SECS / 4;
/// Log records of a tenant that are kept in memory: enough for recent events, not an archive.
pub const LOG_RECORDS_PER_TENANT: usize = 10_000;
/// Largest sum of a tenant's log records in memory, bytes.
pub const LOG_BYTES_PER_TENANT: usize = 8 * 1024 * 1024;
/// Audit records in one answer.
pub const AUDIT_PAGE_RECORDS: usize = 1000;
