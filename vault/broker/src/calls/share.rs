//! Divides outgoing calls between tenants: a share for each, a reserve for tenants that have few,
//! and a bound on waiting.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use casemate_trust::id::TenantId;
use casemate_wire::CallCode;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Semaphore, oneshot};

use super::refused::Refused;

/// A tenant makes at most one in so many of all calls.
const SHARE_DIVISOR: usize = 4;
/// Smallest share of a tenant: with few calls in all, a node for one tenant must be useful with few
/// descriptors too.
const MIN_SHARE: usize = 32;
/// One call in so many is reserved for tenants that have fewer than [`RESERVED_FOR_EACH`].
const RESERVE_DIVISOR: usize = 8;
/// Calls of a tenant that may use the reserve.
const RESERVED_FOR_EACH: usize = 4;
/// Most calls of a tenant that may wait: the number of streams of a channel.
const MAX_WAITING: usize = 1024;
/// Bytes of heads of a tenant's waiting calls: as many as a channel's bodies may take.
const MAX_WAITING_BYTES: usize = 4 << 20;
/// How long a call waits: longer than a burst of ordinary calls takes, shorter than callers'
/// patience.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(10);

type Ticket = u64;

/// The result of asking for a call.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Admitted,
    Waits(Ticket),
    Full,
}

#[derive(Debug, Default)]
struct Tenant {
    calls: usize,
    /// Waiting calls in order, with the size of their heads.
    waiting: VecDeque<(Ticket, usize)>,
    waiting_bytes: usize,
}

/// Decides which call is next; a state machine without clock and threads.
#[derive(Debug)]
struct Shares {
    max_calls: usize,
    calls: usize,
    /// Tenants that have calls under way or waiting.
    tenants: HashMap<TenantId, Tenant>,
    next_ticket: Ticket,
}

impl Shares {
    fn new(max_calls: usize) -> Self {
        Self {
            max_calls,
            calls: 0,
            tenants: HashMap::new(),
            next_ticket: 0,
        }
    }

    fn share(&self) -> usize {
        let least = MIN_SHARE.min(self.max_calls / 2).max(1);
        (self.max_calls / SHARE_DIVISOR).max(least)
    }

    /// Whether a tenant that has so many calls may make one more now.
    fn admits(&self, has: usize) -> bool {
        let reserve = self.max_calls / RESERVE_DIVISOR;
        let limit = if has < RESERVED_FOR_EACH {
            self.max_calls
        } else {
            self.max_calls - reserve
        };
        has < self.share() && self.calls < limit
    }

    fn ask(&mut self, tenant: TenantId, head_bytes: usize) -> Asked {
        let has = self.tenants.get(&tenant);
        let (calls, waits) = has.map_or((0, false), |t| (t.calls, !t.waiting.is_empty()));
        let admits = !waits && self.admits(calls);
        let entry = self.tenants.entry(tenant).or_default();
        if admits {
            entry.calls += 1;
            self.calls += 1;
            return Asked::Admitted;
        }
        if entry.waiting.len() >= MAX_WAITING
            || entry.waiting_bytes + head_bytes > MAX_WAITING_BYTES
        {
            return Asked::Full;
        }
        self.next_ticket += 1;
        entry.waiting.push_back((self.next_ticket, head_bytes));
        entry.waiting_bytes += head_bytes;
        Asked::Waits(self.next_ticket)
    }

    /// A call has ended.
    fn release(&mut self, tenant: TenantId) {
        if let Some(entry) = self.tenants.get_mut(&tenant) {
            entry.calls = entry.calls.saturating_sub(1);
            self.calls = self.calls.saturating_sub(1);
        }
        self.forget_if_idle(tenant);
    }

    /// The next waiting call, now counted as admitted: the oldest one of the tenant with the fewest
    /// calls.
    fn next(&mut self) -> Option<Ticket> {
        let (tenant, _) = self
            .tenants
            .iter()
            .filter(|(_, entry)| !entry.waiting.is_empty() && self.admits(entry.calls))
            .min_by_key(|(_, entry)| (entry.calls, entry.waiting.front().map(|first| first.0)))?;
        let tenant = *tenant;
        let entry = self.tenants.get_mut(&tenant)?;
        let (ticket, bytes) = entry.waiting.pop_front()?;
        entry.waiting_bytes -= bytes;
        entry.calls += 1;
        self.calls += 1;
        Some(ticket)
    }

    /// Removes a waiting call; false if it does not wait, because it was admitted.
    fn leave(&mut self, tenant: TenantId, ticket: Ticket) -> bool {
        let Some(entry) = self.tenants.get_mut(&tenant) else {
            return false;
        };
        let Some(at) = entry
            .waiting
            .iter()
            .position(|(waiting, _)| *waiting == ticket)
        else {
            return false;
        };
        if let Some((_, bytes)) = entry.waiting.remove(at) {
            entry.waiting_bytes -= bytes;
        }
        self.forget_if_idle(tenant);
        true
    }

    fn forget_if_idle(&mut self, tenant: TenantId) {
        let is_idle = |entry: &Tenant| entry.calls == 0 && entry.waiting.is_empty();
        if self.tenants.get(&tenant).is_some_and(is_idle) {
            self.tenants.remove(&tenant);
        }
    }
}

#[derive(Debug)]
struct Waiters {
    shares: Shares,
    wake: HashMap<Ticket, oneshot::Sender<()>>,
}

/// Admits calls. Shared by all workers' channels.
#[derive(Debug)]
pub(super) struct Admission {
    waiters: Mutex<Waiters>,
    max_wait: Duration,
    /// One permit for each tenant: see [`Admission::turn`].
    turns: PerTenant,
}

/// A call that was admitted. Dropping it admits the next one.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Arc<Admission>,
    tenant: TenantId,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release(self.tenant);
    }
}

/// A call that waits. Dropping it ends the wait, or returns a permit that was granted meanwhile.
struct Waiting {
    admission: Arc<Admission>,
    tenant: TenantId,
    ticket: Ticket,
    is_over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let waited = {
            let mut waiters = self.admission.waiters();
            waiters.wake.remove(&self.ticket);
            waiters.shares.leave(self.tenant, self.ticket)
        };
        if !waited {
            self.admission.release(self.tenant);
        }
    }
}

impl Admission {
    /// Makes an admission for so many calls in all, each of which waits at most so long.
    pub(super) fn new(max_calls: usize, max_wait: Duration) -> Arc<Self> {
        Arc::new(Self {
            waiters: Mutex::new(Waiters {
                shares: Shares::new(max_calls),
                wake: HashMap::new(),
            }),
            max_wait,
            turns: PerTenant::new(1),
        })
    }

    /// Waits until a tenant may make one more call. `head_bytes` is the memory of the call while it
    /// waits.
    ///
    /// # Errors
    /// `too_many_calls`: too many wait, or none ended in time.
    pub(super) async fn admit(
        self: &Arc<Self>,
        tenant: TenantId,
        head_bytes: usize,
    ) -> Result<Permit, Refused> {
        let permit = || Permit {
            admission: self.clone(),
            tenant,
        };
        let (mut waiting, woken) = {
            let mut waiters = self.waiters();
            match waiters.shares.ask(tenant, head_bytes) {
                Asked::Admitted => return Ok(permit()),
                Asked::Full => return Err(too_many("too many of them wait already")),
                Asked::Waits(ticket) => {
                    let (wake, woken) = oneshot::channel();
                    waiters.wake.insert(ticket, wake);
                    let waiting = Waiting {
                        admission: self.clone(),
                        tenant,
                        ticket,
                        is_over: false,
                    };
                    (waiting, woken)
                }
            }
        };
        match tokio::time::timeout(self.max_wait, woken).await {
            Ok(Ok(())) => {
                waiting.is_over = true;
                Ok(permit())
            }
            _ => Err(too_many("none of them ended in time")),
        }
    }

    /// The tenant's permit to decode and search answers: one call of a tenant does so at a time, so
    /// that a tenant with a hundred such calls gets as much processor time as one with a single
    /// call.
    pub(super) fn turn(&self, tenant: TenantId) -> Arc<Semaphore> {
        self.turns.of(tenant)
    }

    /// For the status page: calls under way, and calls that wait.
    pub(super) fn describe(&self) -> (usize, usize) {
        let waiters = self.waiters();
        (waiters.shares.calls, waiters.wake.len())
    }

    fn release(&self, tenant: TenantId) {
        let mut waiters = self.waiters();
        waiters.shares.release(tenant);
        while let Some(ticket) = waiters.shares.next() {
            // A caller that gives up at this moment finds itself admitted, and releases the permit.
            let _woken = waiters.wake.remove(&ticket).map(|wake| wake.send(()));
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock()
    }
}

/// A permit for each tenant, kept as long as one of its calls uses it.
#[derive(Debug)]
pub(super) struct PerTenant {
    permits: usize,
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

impl PerTenant {
    pub(super) fn new(permits: usize) -> Self {
        Self {
            permits,
            tenants: Mutex::default(),
        }
    }

    pub(super) fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock();
        if let Some(permits) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return permits;
        }
        tenants.retain(|_, permits| permits.strong_count() > 0);
        let permits = Arc::new(Semaphore::new(self.permits));
        tenants.insert(tenant, Arc::downgrade(&permits));
        permits
    }
}

fn too_many(why: &str) -> Refused {
    Refused::new(
        CallCode::TooManyCalls,
        format!("the tenant's calls on this node use up its share, and {why}: try again later"),
    )
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

    use super::*;

    fn tenant(number: u8) -> TenantId {
        TenantId([number; 32])
    }

    #[test]
    fn greedy_tenants_leave_the_reserve_to_those_that_have_few() {
        let mut shares = Shares::new(700);
        for greedy in 0..10 {
            for _ in 0..1000 {
                shares.ask(tenant(greedy), 100);
            }
        }
        assert_eq!(
            shares.calls,
            613 + 6 * RESERVED_FOR_EACH,
            "all but the rest of the reserve"
        );
        for modest in 100..116 {
            assert_eq!(shares.ask(tenant(modest), 100), Asked::Admitted);
            assert_eq!(shares.ask(tenant(modest), 100), Asked::Admitted);
        }
        let most = shares.tenants.values().map(|entry| entry.calls).max();
        assert_eq!(most, Some(175), "a quarter");
    }

    #[test]
    fn a_freed_call_goes_to_the_tenant_with_the_fewest() {
        let mut shares = Shares::new(8);
        for _ in 0..6 {
            shares.ask(tenant(1), 0);
        }
        for _ in 0..6 {
            shares.ask(tenant(2), 0);
        }
        // The share of each is four, and one call is reserved.
        assert_eq!(
            (
                shares.tenants[&tenant(1)].calls,
                shares.tenants[&tenant(2)].calls
            ),
            (4, 4)
        );
        let Asked::Waits(ticket) = shares.ask(tenant(3), 0) else {
            panic!("all are taken");
        };
        shares.release(tenant(1));
        assert_eq!(shares.next(), Some(ticket));
        assert_eq!(shares.next(), None);
        shares.release(tenant(3));
        assert!(!shares.tenants.contains_key(&tenant(3)));
        assert!(shares.next().is_some());
    }

    #[test]
    fn waiting_calls_and_their_heads_are_bounded() {
        let mut shares = Shares::new(4);
        let large = MAX_WAITING_BYTES / 2;
        let asked: Vec<_> = (0..6).map(|_| shares.ask(tenant(1), large)).collect();
        assert_eq!(
            asked
                .iter()
                .filter(|asked| **asked == Asked::Admitted)
                .count(),
            2
        );
        assert_eq!(
            asked.iter().filter(|asked| **asked == Asked::Full).count(),
            2
        );
        let waiting = (0..2 * MAX_WAITING).filter(|_| shares.ask(tenant(2), 0) != Asked::Full);
        assert_eq!(waiting.count(), 2 + MAX_WAITING);
    }

    #[tokio::test]
    async fn a_wait_is_bounded() {
        let admission = Admission::new(2, Duration::from_millis(1));
        let _first = admission.admit(tenant(1), 0).await.unwrap();
        let refused = admission.admit(tenant(1), 0).await.unwrap_err();
        assert_eq!(refused.code, CallCode::TooManyCalls);
        assert_eq!(admission.describe(), (1, 0));
    }

    #[tokio::test]
    async fn a_wait_ends_with_a_permit_and_gives_back_what_it_got() {
        let admission = Admission::new(2, MAX_WAIT * 6);
        let first = admission.admit(tenant(1), 0).await.unwrap();
        let wait = || {
            let admission = admission.clone();
            tokio::spawn(async move { admission.admit(tenant(1), 0).await })
        };
        let (waits, gives_up) = (wait(), wait());
        tokio::task::yield_now().await;
        assert_eq!(admission.describe(), (1, 2));
        gives_up.abort();
        let _aborted = gives_up.await;
        drop(first);
        let second = waits.await.unwrap().unwrap();
        assert_eq!(admission.describe(), (1, 0));
        drop(second);
        assert_eq!(admission.describe(), (0, 0));
    }

    #[test]
    fn seeded_runs_lose_no_call_and_exceed_no_share() {
        for seed in 0..200_u64 {
            let mut dice = ChaCha8Rng::seed_from_u64(seed);
            let mut random = |below: u64| dice.next_u64() % below;
            let max_calls = 1 + random(40) as usize;
            let mut shares = Shares::new(max_calls);
            let (mut running, mut waiting) = (Vec::new(), HashMap::new());
            for _ in 0..500 {
                let who = tenant(random(6) as u8);
                match random(3) {
                    0 => match shares.ask(who, 1) {
                        Asked::Admitted => running.push(who),
                        Asked::Waits(ticket) => {
                            waiting.insert(ticket, who);
                        }
                        Asked::Full => {}
                    },
                    1 if !running.is_empty() => {
                        let at = random(running.len() as u64) as usize;
                        shares.release(running.swap_remove(at));
                        while let Some(ticket) = shares.next() {
                            running.push(waiting.remove(&ticket).unwrap());
                        }
                    }
                    _ => {
                        let ticket = waiting.keys().min().copied();
                        if let Some(ticket) = ticket {
                            let who = waiting.remove(&ticket).unwrap();
                            assert!(shares.leave(who, ticket), "seed {seed}");
                        }
                    }
                }
                assert_eq!(shares.calls, running.len(), "seed {seed}");
                assert!(shares.calls <= max_calls, "seed {seed}");
                let counted: usize = shares.tenants.values().map(|entry| entry.calls).sum();
                assert_eq!(counted, running.len(), "seed {seed}");
                assert!(
                    shares
                        .tenants
                        .values()
                        .all(|entry| entry.calls <= shares.share())
                );
                assert_eq!(
                    shares.next(),
                    None,
                    "a call waits although there is room, seed {seed}"
                );
            }
        }
    }
}
