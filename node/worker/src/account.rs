//! Accounts of CPU time: what each request has used, and what it has left.

use std::time::{Duration, Instant};

use crate::engine::Budget;
use crate::engine::ops::RequestId;
use crate::state::{Request, State, Worker};

/// CPU time for code outside of requests: timers of the modules, leftovers of ended requests, V8's
/// own tasks. Collecting the garbage of a full heap, once requests stop, takes a tenth of it.
const NOBODY_CPU: Duration = Duration::from_secs(1);

/// The account for code outside of requests. Ended requests leave their unused CPU time to it, so a
/// function can never use more than this, the time for loading, and its limit for each request.
#[derive(Debug)]
pub(crate) struct Nobody {
    left: Duration,
}

impl Default for Nobody {
    fn default() -> Self {
        Self { left: NOBODY_CPU }
    }
}

impl Nobody {
    fn spend(&mut self, cpu: Duration) {
        self.left = self.left.saturating_sub(cpu);
    }

    /// Takes the rest of a request's CPU time. The account is capped at [`NOBODY_CPU`], or a busy
    /// hour would pay for a day without requests.
    pub(crate) fn inherit(&mut self, left: Duration) {
        self.left = self.left.saturating_add(left).min(NOBODY_CPU);
    }
}

impl Worker {
    /// The budget of a turn of `request`, or of the account outside of requests if there is no such
    /// request; `None` when nothing is left.
    pub(crate) fn budget(&self, request: RequestId) -> Option<Budget> {
        let state = self.state.borrow();
        let limits = state.limits;
        let wall = Duration::from_millis(limits.wall_time_ms.into());
        let cpu = state.cpu_left(request);
        let wall = state.requests.get(&request).map_or(wall, |request| {
            wall.saturating_sub(self.now.get().saturating_duration_since(request.began))
        });
        (!cpu.is_zero()).then_some(Budget {
            cpu,
            wall: wall.max(Duration::from_millis(1)),
        })
    }

    /// The budget of the platform's own asynchrony: that of the request with the most left.
    pub(crate) fn shared_budget(&self) -> Budget {
        let state = self.state.borrow();
        let limit = Duration::from_millis(state.limits.cpu_time_ms.into());
        let used = state.requests.values().map(|request| request.cpu).min();
        let cpu = used.map_or(state.nobody.left, |used| limit.saturating_sub(used));
        Budget {
            cpu: cpu.max(Duration::from_millis(1)),
            wall: Duration::from_millis(state.limits.wall_time_ms.into()),
        }
    }

    /// Charges the account of a request, or the account outside of requests.
    pub(crate) fn charge(&self, request: RequestId, cpu: Duration) {
        let mut state = self.state.borrow_mut();
        match state.requests.get_mut(&request) {
            Some(request) => request.cpu += cpu,
            None => state.nobody.spend(cpu),
        }
    }

    /// Charges equal parts to all requests under way; without any, charges the account outside of
    /// requests.
    pub(crate) fn charge_all(&self, cpu: Duration) {
        let mut state = self.state.borrow_mut();
        let parts = u32::try_from(state.requests.len()).unwrap_or(u32::MAX);
        match cpu.checked_div(parts) {
            Some(part) => state
                .requests
                .values_mut()
                .for_each(|request| request.cpu += part),
            None => state.nobody.spend(cpu),
        }
    }

    /// CPU time that is left to a request, or to the account outside of requests.
    pub(crate) fn cpu_left(&self, request: RequestId) -> Duration {
        self.state.borrow().cpu_left(request)
    }

    /// The running request that is furthest over its limit; 0 when the account outside of requests
    /// is used up.
    pub(crate) fn overdrawn(&self) -> Option<RequestId> {
        let state = self.state.borrow();
        let limit = Duration::from_millis(state.limits.cpu_time_ms.into());
        let runs = |request: &Request| !request.answered || request.waiting > 0;
        let over = |request: &Request| runs(request) && request.cpu >= limit;
        let overdrawn = state.requests.iter().filter(|(_, request)| over(request));
        let worst = overdrawn.max_by_key(|(_, request)| request.cpu);
        let nobody = state.nobody.left.is_zero().then_some(0);
        worst.map(|(id, _)| *id).or(nobody)
    }

    /// The request that has used the most CPU time.
    pub(crate) fn busiest(&self) -> Option<RequestId> {
        let state = self.state.borrow();
        state
            .requests
            .iter()
            .max_by_key(|(_, request)| request.cpu)
            .map(|(id, _)| *id)
    }

    /// The time of the next timer, deadline, or due report of outcomes.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let state = self.state.borrow();
        let wall = Duration::from_millis(state.limits.wall_time_ms.into());
        let request = state
            .requests
            .values()
            .map(|request| request.began + wall)
            .min();
        let timer = state.timers.next();
        [request, timer, state.outcomes_due]
            .into_iter()
            .flatten()
            .min()
    }
}

impl State {
    fn cpu_left(&self, request: RequestId) -> Duration {
        let limit = Duration::from_millis(self.limits.cpu_time_ms.into());
        let request = self.requests.get(&request);
        request.map_or(self.nobody.left, |request| {
            limit.saturating_sub(request.cpu)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_outside_of_requests_inherits_their_unused_cpu_time_up_to_its_initial_budget() {
        let ms = Duration::from_millis;
        let mut nobody = Nobody::default();
        nobody.spend(ms(600));
        nobody.inherit(ms(100));
        assert_eq!(nobody.left, ms(500));
        nobody.inherit(ms(60_000));
        assert_eq!(nobody.left, NOBODY_CPU);
        nobody.spend(ms(60_000));
        assert_eq!(nobody.left, Duration::ZERO);
    }
}
