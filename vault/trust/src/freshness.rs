//! Freshness: for how long a manifest is used without its tenant's word that there is no newer one.
//!
//! Whoever holds the control plane's online key can renew leases and withhold a newer manifest, and
//! with it the withdrawal of a secret. A manifest that demands freshness bounds for how long that
//! works: its credentials are used until `max_age_secs` after the tenant last said that this manifest
//! is the newest. The manifest's own signature says so for the time of its signing; a [`Freshness`]
//! says it again later.

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::{Digest, FleetId, TenantId};
use crate::key::PublicKey;
use crate::statement::{Statement, version_flaw};

/// Shortest age that a manifest may demand, seconds.
pub const MIN_MAX_AGE_SECS: Seconds = 60;
/// Longest age that a manifest may demand, seconds.
pub const MAX_MAX_AGE_SECS: Seconds = 30 * 24 * 60 * 60;
/// By how much a signer's clock may be ahead of the judge's, seconds. A word from further ahead would
/// count for longer than the demand allows, and would keep out every word from a clock that is right.
pub const MAX_SKEW_SECS: Seconds = 5 * 60;

/// What a manifest demands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FreshnessDemand {
    /// For how long the tenant's word counts, seconds.
    pub max_age_secs: Seconds,
    /// A key that may sign a [`Freshness`] of this manifest, and nothing else.
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

/// The tenant's word that a manifest is its newest. Signed by the threshold of the tenant's keys, or by
/// the key that this manifest names for it. How long the word counts, the manifest says.
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
    /// When it was signed.
    pub issued: Seconds,
}

impl Statement for Freshness {
    const TYPE: &'static str = "application/vnd.casemate.freshness.v1+json";

    fn flaw(&self) -> Option<String> {
        version_flaw(self.version)
    }
}
