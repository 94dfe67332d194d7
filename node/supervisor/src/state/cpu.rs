//! The outer wall of a worker's CPU time: the worker's own watch is in reach of whoever has taken the worker over.
//!
//! Coarse on purpose: what the watch lets through must never reach it. The wall begins with what
//! loading may use. Each request that the *gateway* gave the worker adds its limit; what is not
//! used is kept up to a bound, and what is used is taken off. A worker that has rested for longer
//! than any of its requests may take has nothing of theirs left.

use casemate_wire::control::Limits;

use super::Millis;

/// For loading, for code that runs outside requests, and for requests that the gateway has not told of yet: the worker's own
/// threads may use about half of it before they stop themselves.
const SPARE_MS: Millis = 20_000;
/// What a request costs the worker beyond the function's own time: parsing, copying, collecting garbage.
const OVERHEAD_MS: Millis = 5;

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CpuWall {
    for_request_ms: Millis,
    wall_time_ms: Millis,
    most_ms: Millis,
    left_ms: Millis,
    requests: u64,
    /// What it had used when we looked last; before that it was a spare.
    used_ms: Option<Millis>,
}

impl CpuWall {
    /// Of a function with these limits.
    pub(super) fn new(limits: &Limits) -> Self {
        let for_request_ms = Millis::from(limits.cpu_time_ms) + OVERHEAD_MS;
        // All of its places may be taken by requests that use their time much later than they came.
        let most_ms = SPARE_MS + Millis::from(limits.concurrency) * for_request_ms;
        Self {
            for_request_ms,
            wall_time_ms: Millis::from(limits.wall_time_ms),
            most_ms,
            left_ms: SPARE_MS,
            requests: 0,
            used_ms: None,
        }
    }

    /// It was given so many requests in all.
    pub(super) fn given(&mut self, requests: u64) {
        let more = requests.saturating_sub(self.requests);
        self.requests = self.requests.max(requests);
        let more_ms = more.saturating_mul(self.for_request_ms);
        self.left_ms = self.left_ms.saturating_add(more_ms).min(self.most_ms);
    }

    /// It has had no request for so long. What its requests left behind, `waitUntil` for example,
    /// ends with their wall-clock time.
    pub(super) fn rested(&mut self, idle_ms: Millis) {
        if idle_ms > self.wall_time_ms {
            self.left_ms = self.left_ms.min(SPARE_MS);
        }
    }

    /// Whether it keeps within, now that it has used so much in all.
    pub(super) fn holds(&mut self, used_ms: Millis) -> bool {
        let before_ms = self.used_ms.replace(used_ms).unwrap_or(used_ms);
        let more_ms = used_ms.saturating_sub(before_ms);
        let holds = more_ms <= self.left_ms;
        self.left_ms = self.left_ms.saturating_sub(more_ms);
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        cpu_time_ms: 50,
        wall_time_ms: 30_000,
        heap_mib: 64,
        subrequests: 50,
        concurrency: 10,
    };

    #[test]
    fn a_worker_that_spins_without_requests_is_found_whatever_it_had_before() {
        let mut wall = CpuWall::new(&LIMITS);
        wall.given(1_000_000);
        let seconds = (0..).take_while(|second| wall.holds(second * 1000)).count() as u64;
        let most = SPARE_MS + 10 * 55;
        assert!(
            seconds * 1000 >= most && seconds * 1000 <= most + 2000,
            "{seconds}"
        );
    }

    #[test]
    fn a_worker_without_requests_has_only_what_loading_may_use() {
        let wide = Limits {
            cpu_time_ms: 60_000,
            concurrency: 128,
            ..LIMITS
        };
        let ends_after = |wall: &mut CpuWall, from: u64| {
            (0..)
                .take_while(|second| wall.holds((from + second) * 1000))
                .count() as u64
        };
        let most = SPARE_MS / 1000 + 2;
        let mut wall = CpuWall::new(&wide);
        let seconds = ends_after(&mut wall, 0);
        assert!(seconds <= most, "before any request: {seconds} s");

        // One request adds its own limit, and rest takes away what was not used.
        let mut wall = CpuWall::new(&wide);
        assert!(wall.holds(0));
        wall.given(1);
        assert!(
            wall.holds(70_000),
            "60 s of the request and 20 s of loading"
        );
        wall.given(100);
        wall.rested(1000);
        assert!(wall.holds(200_000), "waitUntil may still be at work");
        wall.rested(30_001);
        let seconds = ends_after(&mut wall, 200);
        assert!(seconds <= most, "after rest: {seconds} s");
    }

    #[test]
    fn a_busy_worker_within_its_limits_is_never_ended() {
        let mut wall = CpuWall::new(&LIMITS);
        // Two threads busy all the time, with as many requests as that is for.
        for second in 0..100_000 {
            wall.given(second * 40);
            assert!(wall.holds(second * 2000), "after {second} s");
        }
    }

    #[test]
    fn a_count_that_goes_back_gives_nothing() {
        let mut wall = CpuWall::new(&LIMITS);
        let mut used = 0;
        let mut holds = |wall: &mut CpuWall| {
            used += 1000;
            wall.holds(used)
        };
        let ended = (0..1000u64).find(|round| {
            wall.given(round % 2);
            !holds(&mut wall)
        });
        assert!(ended.is_some());
    }
}
