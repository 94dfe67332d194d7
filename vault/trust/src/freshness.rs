//! Freshness: how long a manifest's credentials may be used after its tenant last stated that no
//! newer manifest exists.
//!
//! The holder of the control plane's online key can renew leases and withhold a newer manifest, and
//! with it the withdrawal of a secret. A manifest that demands freshness bounds this: its
//! credentials may be used until `max_age_secs` after the tenant last stated that this manifest is
//! the newest. The manifest's own signature states it for the time of the signing; a [`Freshness`]
//! statement renews it.

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::{Digest, FleetId, TenantId};
use crate::key::PublicKey;
use crate::payload::{Statement, version_flaw};

/// Shortest age that a manifest may demand, seconds.
pub const MIN_MAX_AGE_SECS: Seconds = 60;
/// Longest age that a manifest may demand, seconds.
pub const MAX_MAX_AGE_SECS: Seconds = 30 * 24 * 60 * 60;
/// How far a signer's clock may be ahead of the judge's, seconds. A statement that is dated further
/// ahead would be valid for longer than the demand allows, and would displace every correctly dated
/// statement.
pub const MAX_SKEW_SECS: Seconds = 5 * 60;

/// A manifest's demand for freshness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessDemand {
    /// How long the manifest, or a statement that renews its freshness, is valid after its signing,
    /// seconds.
    pub max_age_secs: Seconds,
    /// A delegated key, which may sign [`Freshness`] statements about this manifest and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PublicKey>,
}

impl FreshnessDemand {
    pub(crate) fn flaw(&self) -> Option<String> {
        (!(MIN_MAX_AGE_SECS..=MAX_MAX_AGE_SECS).contains(&self.max_age_secs)).then(|| {
            format!(
                "expected a freshness of {MIN_MAX_AGE_SECS} to {MAX_MAX_AGE_SECS} seconds, got {}",
                self.max_age_secs
            )
        })
    }
}

/// States that a manifest is its tenant's newest. Signed by the threshold of the tenant's keys, or
/// by the delegated key of that manifest. The manifest determines how long the statement is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Freshness {
    /// The fleet.
    pub fleet: FleetId,
    /// The tenant.
    pub tenant: TenantId,
    /// Version of the manifest.
    pub version: u64,
    /// Digest of the manifest's payload.
    pub manifest: Digest,
    /// When the statement was signed.
    pub issued: Seconds,
}

impl Statement for Freshness {
    const TYPE: &'static str = "application/vnd.casemate.freshness.v1+json";

    fn flaw(&self) -> Option<String> {
        version_flaw(self.version)
    }
}
