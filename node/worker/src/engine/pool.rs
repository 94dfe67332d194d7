//! CPU time of the pool's thread, which does the work of `crypto.subtle`, charged to the requests
//! that submitted it.
//!
//! The pool has one thread and one queue, so its tasks run in the order of submission. Before a
//! request submits work, it submits a mark: a task that reads the thread's CPU time and makes the
//! request the owner of what follows, up to the next mark. The serving loop settles the accounts
//! and ends a request that is over its limit. Native cryptography cannot be stopped, so the watch
//! ends the process if the loop does not get to it in time ([`KILL_GRACE`]).

use std::sync::OnceLock;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};

use super::ops::RequestId;
use super::{LOAD_CPU, watch};

/// CPU time beyond the owner's limit at which the watch ends the process. The serving loop acts
/// earlier, but may have to wait for a processor on a busy machine, or for the end of a turn; turns
/// have limits of their own.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// Request 0: work that was submitted while no request was handled.
const NOBODY: RequestId = 0;

/// The CPU clock of the pool's thread.
static CLOCK: OnceLock<libc::clockid_t> = OnceLock::new();

static ACCOUNTS: Mutex<Option<Accounts>> = Mutex::new(None);

/// Use of the pool's thread by each request since the last settlement.
#[derive(Debug, Default)]
struct Accounts {
    /// The request that pays for CPU time from `since` on.
    owner: RequestId,
    /// The thread's CPU time up to which everything is charged.
    since: Duration,
    /// Requests with work under way or with time to charge, and [`NOBODY`].
    entries: HashMap<RequestId, Entry>,
    /// Work was submitted since the last settlement, or is under way.
    is_active: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    /// Number of tasks that were submitted and have not finished.
    under_way: u32,
    /// CPU time since the last settlement.
    spent: Duration,
    /// CPU time that the request had left at the last settlement.
    left: Duration,
}

impl Accounts {
    /// Charges the time up to `now` to the owner.
    fn advance(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.since);
        self.since = now;
        if !elapsed.is_zero() {
            self.entries.entry(self.owner).or_default().spent += elapsed;
        }
    }

    fn submitted(&mut self, request: RequestId, left: Duration) {
        let entry = self.entries.entry(request).or_insert(Entry {
            left,
            ..Entry::default()
        });
        entry.under_way = entry.under_way.saturating_add(1);
        self.is_active = true;
    }

    fn finished(&mut self, request: RequestId) {
        if let Some(entry) = self.entries.get_mut(&request) {
            entry.under_way = entry.under_way.saturating_sub(1);
        }
    }

    /// Takes the CPU time that was spent since the last settlement.
    fn settle(&mut self, now: Duration) -> Vec<(RequestId, Duration)> {
        self.advance(now);
        let spent = self
            .entries
            .iter_mut()
            .filter(|(_, entry)| !entry.spent.is_zero())
            .map(|(request, entry)| (*request, std::mem::take(&mut entry.spent)))
            .collect();
        self.is_active = self.entries.values().any(|entry| entry.under_way > 0);
        let owner = self.owner;
        self.entries.retain(|request, entry| {
            entry.under_way > 0 || *request == owner || *request == NOBODY
        });
        spent
    }

    /// Sets what each request has left, after a settlement.
    fn renew(&mut self, left: impl Fn(RequestId) -> Duration) {
        self.entries.entry(NOBODY).or_default();
        for (request, entry) in &mut self.entries {
            entry.left = left(*request);
        }
    }

    /// The CPU time by which the owner is over its limit at `now`.
    fn excess(&self, now: Duration) -> Duration {
        let entry = self.entries.get(&self.owner).copied().unwrap_or_default();
        let spent = entry.spent + now.saturating_sub(self.since);
        spent.saturating_sub(entry.left)
    }

    /// The least CPU time after which a request with work under way is over its limit.
    fn least_left(&self) -> Option<Duration> {
        let busy = self.entries.values().filter(|entry| entry.under_way > 0);
        busy.map(|entry| entry.left.saturating_sub(entry.spent))
            .min()
    }
}

/// The accounts.
fn accounts() -> MutexGuard<'static, Option<Accounts>> {
    ACCOUNTS.lock()
}

fn now() -> Option<Duration> {
    CLOCK.get().copied().map(watch::clock)
}

/// Counts the CPU time of the calling thread from now on. Call it once, on the pool's thread.
///
/// # Errors
/// The thread has no clock.
pub(crate) fn adopt_thread() -> std::io::Result<()> {
    let clock = watch::thread_clock()?;
    CLOCK.get_or_init(|| clock);
    let mut new = Accounts {
        since: watch::thread_cpu(),
        ..Accounts::default()
    };
    new.renew(|_| LOAD_CPU);
    *accounts() = Some(new);
    Ok(())
}

/// Charges what `request` submits next to it; `left` is its remaining CPU time. Call it inside the
/// tokio runtime.
pub(crate) fn begin(request: RequestId, left: Duration) {
    if let Some(accounts) = &mut *accounts() {
        accounts.submitted(request, left);
    }
    // The handle is not needed: the queue of the single thread keeps the order.
    drop(tokio::task::spawn_blocking(move || {
        let now = watch::thread_cpu();
        if let Some(accounts) = &mut *accounts() {
            accounts.advance(now);
            accounts.owner = request;
        }
    }));
}

/// A task that `request` submitted has finished.
pub(crate) fn end(request: RequestId) {
    if let Some(accounts) = &mut *accounts() {
        accounts.finished(request);
    }
}

/// Charges the time since the last settlement through `charge`, then asks `left` for each request's
/// remaining time.
pub(crate) fn settle(
    mut charge: impl FnMut(RequestId, Duration),
    left: impl Fn(RequestId) -> Duration,
) {
    let Some(now) = now() else { return };
    let spent = accounts()
        .as_mut()
        .map(|accounts| accounts.settle(now))
        .unwrap_or_default();
    for (request, spent) in spent {
        charge(request, spent);
    }
    if let Some(accounts) = &mut *accounts() {
        accounts.renew(left);
    }
}

/// Whether the accounts have to be settled.
pub(crate) fn is_active() -> bool {
    accounts()
        .as_ref()
        .is_some_and(|accounts| accounts.is_active)
}

/// Whether a request has work under way.
pub(crate) fn is_busy(request: RequestId) -> bool {
    accounts()
        .as_ref()
        .and_then(|accounts| accounts.entries.get(&request))
        .is_some_and(|entry| entry.under_way > 0)
}

/// How long to wait for work of the pool before its account must be settled; `None` while there is
/// no work.
pub(crate) fn settle_within() -> Option<Duration> {
    accounts().as_ref().and_then(Accounts::least_left)
}

/// Whether the owner is so far over its limit that the process must end. The watch calls this, and
/// must not wait for a lock that the main thread holds: it checks again soon.
pub(super) fn must_end() -> bool {
    let Some(now) = now() else { return false };
    let Some(accounts) = ACCOUNTS.try_lock() else {
        return false;
    };
    accounts
        .as_ref()
        .is_some_and(|accounts| accounts.excess(now) > KILL_GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn every_request_pays_for_its_own_work() {
        let mut accounts = Accounts::default();
        accounts.renew(|_| ms(1000));
        accounts.submitted(1, ms(200));
        accounts.submitted(2, ms(100));
        assert_eq!(accounts.least_left(), Some(ms(100)));
        // Marks run on the thread, in order, with work between them.
        accounts.advance(ms(1));
        accounts.owner = 1;
        accounts.advance(ms(151));
        accounts.owner = 2;
        assert_eq!(accounts.excess(ms(251)), ms(0));
        assert_eq!(accounts.excess(ms(260)), ms(9));
        accounts.finished(1);
        let mut spent = accounts.settle(ms(231));
        spent.sort_unstable();
        assert_eq!(spent, [(0, ms(1)), (1, ms(150)), (2, ms(80))]);
        // The first request has nothing under way: its entry is gone. The second has 20 ms left.
        assert!(
            accounts.is_active,
            "work of the second request is under way"
        );
        accounts.renew(|request| if request == 2 { ms(20) } else { ms(999) });
        assert_eq!(accounts.least_left(), Some(ms(20)));
        assert_eq!(accounts.excess(ms(251)), ms(0));
        assert_eq!(accounts.excess(ms(252)), ms(1));
        accounts.finished(2);
        assert_eq!(accounts.least_left(), None, "nothing to wait for");
        assert!(accounts.is_active, "what it took is not settled yet");
        assert_eq!(accounts.settle(ms(231)), []);
        assert!(!accounts.is_active);
    }
}
