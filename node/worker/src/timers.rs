//! Timers of the function: which are due, and which survive their request.
//!
//! An interval ends with its request. A timer that fires once stays for a while, because a later
//! request may wait for a promise that only this timer settles. Code that such a timer wakes gets
//! an error as soon as it starts a call or a further timer, because its request has ended; so that
//! code comes to an end by itself.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use hashbrown::HashMap;

use crate::engine::ops::RequestId;

/// Most timers of running requests and of code outside of requests: each holds a closure of the
/// function.
const MAX_TIMERS: usize = 10_000;
/// Most timers of requests that have ended.
const MAX_KEPT: usize = 1000;

/// The timers of a worker, by the numbers that JavaScript gave them.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    timers: HashMap<u32, Timer>,
    due: BTreeSet<(Instant, u32)>,
    /// Timers of requests that have ended.
    kept: usize,
}

#[derive(Debug)]
struct Timer {
    at: Instant,
    owner: RequestId,
    repeats: bool,
    is_kept: bool,
}

impl Timers {
    /// Starts a timer; false when there are too many.
    pub(crate) fn start(
        &mut self,
        timer: u32,
        at: Instant,
        owner: RequestId,
        repeats: bool,
    ) -> bool {
        if self.timers.len() - self.kept >= MAX_TIMERS {
            return false;
        }
        self.stop(timer);
        let started = Timer {
            at,
            owner,
            repeats,
            is_kept: false,
        };
        self.timers.insert(timer, started);
        self.due.insert((at, timer));
        true
    }

    /// Stops a timer; returns its owner.
    pub(crate) fn stop(&mut self, timer: u32) -> Option<RequestId> {
        let Timer {
            at, owner, is_kept, ..
        } = self.timers.remove(&timer)?;
        self.due.remove(&(at, timer));
        self.kept -= usize::from(is_kept);
        Some(owner)
    }

    /// The time of the next timer.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Takes a timer that is due.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(RequestId, u32)> {
        let (at, timer) = self.due.first().copied()?;
        if at > now {
            return None;
        }
        self.stop(timer).map(|owner| (owner, timer))
    }

    /// Whether a request has timers.
    pub(crate) fn has(&self, owner: RequestId) -> bool {
        self.timers.values().any(|timer| timer.owner == owner)
    }

    /// A request has ended. Returns the timers that will never fire: intervals, timers that are due
    /// later than any waiting request could last, and those beyond the limit.
    pub(crate) fn end(&mut self, owner: RequestId, now: Instant, longest: Duration) -> Vec<u32> {
        let mut dropped = Vec::new();
        for (number, timer) in &mut self.timers {
            if timer.owner != owner || timer.is_kept {
                continue;
            }
            if timer.repeats || timer.at > now + longest || self.kept >= MAX_KEPT {
                dropped.push(*number);
            } else {
                timer.is_kept = true;
                self.kept += 1;
            }
        }
        for timer in &dropped {
            self.stop(*timer);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn one_shot_timers_outlive_their_request_and_intervals_do_not() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(31));
        let mut timers = Timers::default();
        assert!(timers.start(1, soon, 7, false) && timers.start(2, soon, 7, true));
        assert!(timers.start(3, late, 7, false) && timers.start(4, soon, 8, true));
        let mut dropped = timers.end(7, now, LONGEST);
        dropped.sort_unstable();
        assert_eq!(dropped, [2, 3]);
        assert_eq!((timers.take_due(now), timers.next()), (None, Some(soon)));
        let due = [timers.take_due(soon), timers.take_due(soon)];
        assert_eq!(due, [Some((7, 1)), Some((8, 4))]);
        assert_eq!(
            (timers.next(), timers.kept, timers.has(7)),
            (None, 0, false)
        );
    }

    #[test]
    fn kept_timers_are_bounded_and_leave_room_for_others() {
        let now = Instant::now();
        let soon = now + Duration::from_secs(1);
        let mut timers = Timers::default();
        for number in 0..MAX_TIMERS as u32 {
            assert!(timers.start(number, soon, 7, false));
        }
        assert!(!timers.start(1 << 20, soon, 8, false));
        let dropped = timers.end(7, now, LONGEST);
        assert_eq!(
            (dropped.len(), timers.kept),
            (MAX_TIMERS - MAX_KEPT, MAX_KEPT)
        );
        for number in 0..MAX_TIMERS as u32 {
            assert!(timers.start((1 << 20) + number, soon, 8, false));
        }
        assert_eq!(timers.timers.len(), MAX_TIMERS + MAX_KEPT);
    }
}
