//! Who has used how much, and what is left to whom.

use std::time::{Duration, Instant};

use crate::engine::Budget;
use crate::engine::ops::RequestId;
use crate::state::Worker;

/// What the watch may need for itself between two settlements.
const WATCH_CPU: Duration = Duration::from_millis(50);

impl Worker {
    /// What a turn of `request` may use; `None` when there is nothing left, or no such request.
    pub(crate) fn budget(&self, request: RequestId) -> Option<Budget> {
        let state = self.state.borrow();
        let limits = state.limits;
        let request = state.requests.get(&request)?;
        let cpu = Duration::from_millis(limits.cpu_time_ms.into()).saturating_sub(request.cpu);
        let wall = Duration::from_millis(limits.wall_time_ms.into());
        let wall = wall.saturating_sub(self.now.get().saturating_duration_since(request.began));
        (!cpu.is_zero()).then_some(Budget {
            cpu,
            wall: wall.max(Duration::from_millis(1)),
        })
    }

    /// What a turn of nobody in particular may use: what the request with the most left has left.
    pub(crate) fn shared_budget(&self) -> Budget {
        let state = self.state.borrow();
        let limit = Duration::from_millis(state.limits.cpu_time_ms.into());
        let least = state
            .requests
            .values()
            .map(|request| request.cpu)
            .min()
            .unwrap_or_default();
        let wall = Duration::from_millis(state.limits.wall_time_ms.into());
        Budget {
            cpu: limit.saturating_sub(least).max(Duration::from_millis(1)),
            wall,
        }
    }

    /// Adds to a request's account.
    pub(crate) fn charge(&self, request: RequestId, cpu: Duration) {
        if let Some(request) = self.state.borrow_mut().requests.get_mut(&request) {
            request.cpu += cpu;
        }
    }

    /// Adds equal parts to the accounts of all requests under way.
    pub(crate) fn charge_all(&self, cpu: Duration) {
        let mut state = self.state.borrow_mut();
        let parts = u32::try_from(state.requests.len()).unwrap_or(u32::MAX);
        if let Some(part) = cpu.checked_div(parts) {
            state
                .requests
                .values_mut()
                .for_each(|request| request.cpu += part);
        }
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

    /// CPU time that the pool's thread may take for all requests together, and the watch for itself.
    pub(crate) fn helper_grant(&self) -> Duration {
        let state = self.state.borrow();
        let requests = u32::try_from(state.requests.len().max(1)).unwrap_or(u32::MAX);
        let limit = Duration::from_millis(state.limits.cpu_time_ms.into());
        limit.saturating_mul(requests).saturating_add(WATCH_CPU)
    }

    /// When the next timer or deadline is.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let state = self.state.borrow();
        let wall = Duration::from_millis(state.limits.wall_time_ms.into());
        let request = state
            .requests
            .values()
            .map(|request| request.began + wall)
            .min();
        let timer = state.due.first().map(|(at, _)| *at);
        [request, timer].into_iter().flatten().min()
    }
}
