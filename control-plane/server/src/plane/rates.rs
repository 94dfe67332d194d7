//! Limits how often a tenant uploads statements that cost a synced write and a message to every
//! node. Measured by arrival: the tenant chooses the dates in its statements.

use std::collections::HashMap;
use std::time::Duration;

use casemate_api::limits::FRESHNESS_INTERVAL_SECS;
use casemate_trust::id::TenantId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Statements of a kind that one tenant may upload at once: more than a script deploys in a row.
const BURST: u32 = 120;
/// Time until the tenant may upload another manifest.
const MANIFEST_REFILL: Duration = Duration::from_secs(1);
/// Time until the tenant may upload another statement of freshness.
const FRESHNESS_REFILL: Duration = Duration::from_secs(FRESHNESS_INTERVAL_SECS);

/// Kind of statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Manifest,
    Freshness,
}

/// The buckets of all tenants, owned by the plane; `take` is called before the write that is
/// counted. Two entries for each tenant at most.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: Mutex<HashMap<(TenantId, Kind), Bucket>>,
}

#[derive(Debug)]
struct Bucket {
    left: u32,
    since: Instant,
}

impl Rates {
    /// Counts a statement; returns how long the tenant has to wait if there are too many.
    pub(super) fn take(&self, tenant: &TenantId, kind: Kind) -> Result<(), Duration> {
        let refill = match kind {
            Kind::Manifest => MANIFEST_REFILL,
            Kind::Freshness => FRESHNESS_REFILL,
        };
        let buckets = &mut *self.buckets.lock();
        let now = Instant::now();
        let bucket = buckets.entry((*tenant, kind)).or_insert(Bucket {
            left: BURST,
            since: now,
        });
        let rounds = (now - bucket.since).as_secs() / refill.as_secs();
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        bucket.left = bucket.left.saturating_add(rounds).min(BURST);
        bucket.since += refill * rounds;
        match bucket.left.checked_sub(1) {
            Some(left) => {
                bucket.left = left;
                Ok(())
            }
            None => Err(refill.saturating_sub(now - bucket.since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_kind_comes_in_a_burst_and_then_one_at_a_time() {
        for (kind, refill) in [
            (Kind::Manifest, MANIFEST_REFILL),
            (Kind::Freshness, FRESHNESS_REFILL),
        ] {
            let (rates, tenant) = (Rates::default(), TenantId([1; 32]));
            let taken = |tenant| {
                let tries = (0..1000).filter(|_| rates.take(tenant, kind).is_ok());
                tries.count()
            };
            assert_eq!(taken(&tenant), BURST as usize);
            assert!(rates.take(&tenant, kind).unwrap_err() <= refill);
            tokio::time::advance(3 * refill).await;
            assert_eq!(taken(&tenant), 3);
            assert_eq!(taken(&TenantId([2; 32])), BURST as usize, "its own");
            tokio::time::advance(10_000 * refill).await;
            assert_eq!(taken(&tenant), BURST as usize);
        }
    }
}
