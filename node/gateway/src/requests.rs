//! Requests in flight, divided between tenants. Only atomics are used, so a request takes no lock
//! here.
//!
//! A tenant has at most its share. The last eighth of all slots is a reserve: half for tenants with
//! few requests in flight, half for tenants with none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use casemate_wire::control::gateway::Shares;

/// The reserve for tenants with few requests in flight: one slot in this many.
const RESERVE_PART: u32 = 8;
/// A tenant with fewer requests in flight than this may draw on the first half of the reserve.
const FEW: u32 = 16;

/// All requests in flight.
#[derive(Debug)]
pub struct Requests {
    most: u32,
    per_tenant: u32,
    reserve: u32,
    in_flight: AtomicU32,
}

/// The requests in flight of one tenant.
#[derive(Debug)]
pub struct Tenant {
    all: Arc<Requests>,
    in_flight: AtomicU32,
}

/// One request in flight; ends when it is dropped.
#[derive(Debug)]
pub struct RequestPlace(Arc<Tenant>);

impl Requests {
    /// No request in flight. Each bound is at least one.
    pub fn new(shares: &Shares) -> Arc<Self> {
        let most = shares.requests.max(1);
        Arc::new(Self {
            most,
            per_tenant: shares.requests_per_tenant.clamp(1, most),
            reserve: most / RESERVE_PART,
            in_flight: AtomicU32::new(0),
        })
    }

    /// A tenant without requests.
    pub fn tenant(self: &Arc<Self>) -> Arc<Tenant> {
        Arc::new(Tenant {
            all: self.clone(),
            in_flight: AtomicU32::new(0),
        })
    }
}

impl Tenant {
    /// Begins a request; `None` when the tenant has its share in flight or all slots are taken.
    pub fn begin(self: &Arc<Self>) -> Option<RequestPlace> {
        let mine = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let all = self.all.in_flight.fetch_add(1, Ordering::Relaxed);
        // Dropping it releases both counts, also on the early returns below.
        let place = RequestPlace(self.clone());
        let kept = match mine {
            0 => 0,
            1..FEW => self.all.reserve / 2,
            FEW.. => self.all.reserve,
        };
        let open = self.all.most - kept;
        (mine < self.all.per_tenant && all < open).then_some(place)
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.all.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(most: u32, per_tenant: u32) -> Arc<Requests> {
        Requests::new(&Shares {
            connections_per_network: 1,
            network_prefix_v4: 24,
            network_prefix_v6: 56,
            requests: most,
            requests_per_tenant: per_tenant,
        })
    }

    fn take(tenant: &Arc<Tenant>, count: usize) -> Vec<RequestPlace> {
        std::iter::from_fn(|| tenant.begin()).take(count).collect()
    }

    #[test]
    fn a_greedy_tenant_keeps_to_its_share_and_a_modest_one_is_served() {
        let requests = requests(256, 64);
        let (greedy, modest) = (requests.tenant(), requests.tenant());
        let held = take(&greedy, 1000);
        assert_eq!(held.len(), 64);
        assert_eq!(take(&modest, 10).len(), 10);
        drop(held);
        assert_eq!(requests.in_flight.load(Ordering::Relaxed), 0);
        assert!(greedy.begin().is_some());
    }

    #[test]
    fn many_greedy_tenants_leave_the_reserve_to_modest_ones() {
        let requests = requests(256, 64);
        let greedy: Vec<_> = (0..8).map(|_| requests.tenant()).collect();
        let held: Vec<_> = greedy
            .iter()
            .flat_map(|tenant| take(tenant, 1000))
            .collect();
        // Seven eighths, half of the reserve, and one each for the tenants that came last.
        assert!((240..250).contains(&held.len()), "{}", held.len());
        let modest = requests.tenant();
        assert!(modest.begin().is_some());
    }
}
