//! How much of each: what the server refuses to go beyond, and what a client need not try.

pub use casemate_trust::dsse::MAX_ENVELOPE_BYTES;
pub use casemate_trust::freshness::MIN_MAX_AGE_SECS;
pub use casemate_trust::image::MAX_IMAGE_BYTES;
pub use casemate_trust::release::{MAX_BUNDLE_BYTES, MAX_RELEASE_BYTES};
pub use casemate_trust::secret::MAX_SECRET_BYTES;

use casemate_trust::Seconds;

/// Largest JSON body that is not an envelope, bytes: an admission with a grant for each epoch of a
/// pool.
pub const MAX_JSON_BYTES: usize = 256 * 1024;
/// Largest part of an image in one request, bytes: at 50 KB a second it comes within the time that
/// a body has.
pub const MAX_IMAGE_PART_BYTES: u64 = 4 * 1024 * 1024;
/// Largest object (a release or a secret), bytes.
pub const MAX_OBJECT_BYTES: usize = if MAX_RELEASE_BYTES > MAX_SECRET_BYTES {
    MAX_RELEASE_BYTES
} else {
    MAX_SECRET_BYTES
};
/// Longest label of a token, characters: it is shown in lists and in the audit log.
pub const MAX_LABEL_CHARS: usize = 100;
/// Most tokens: each request hashes and looks up one, lists show all.
pub const MAX_TOKENS: usize = 10_000;
/// Most join tokens that have not been used up: each join request is checked against those of its
/// name.
pub const MAX_JOIN_TOKENS: usize = 10_000;
/// Most join requests that wait: whoever holds a token makes one.
pub const MAX_JOINS: usize = 1000;
/// Most nodes.
pub const MAX_NODES: usize = 10_000;
/// Most grants in one request: a pool's epochs.
pub const MAX_GRANTS: usize = 16;
/// Seconds between two statements of freshness of a manifest: four of them fit into the shortest
/// age that a manifest may demand, and what is written and pushed for one tenant is bounded.
pub const FRESHNESS_INTERVAL_SECS: Seconds = MIN_MAX_AGE_SECS / 4;
/// Log records that are kept for a tenant, in memory: enough to look back, not an archive.
pub const LOG_RECORDS_PER_TENANT: usize = 10_000;
/// Largest sum of a tenant's kept log records, bytes.
pub const LOG_BYTES_PER_TENANT: usize = 8 * 1024 * 1024;
/// Audit records in one answer.
pub const AUDIT_PAGE_RECORDS: usize = 1000;
