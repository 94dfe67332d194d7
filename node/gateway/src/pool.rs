//! The workers of one function, and the callers that wait for a worker. Pure: time comes in as
//! milliseconds, and grants go out as values.

use std::collections::VecDeque;

use casemate_wire::control::{Digest, WorkerId};

/// Callers that may wait for a worker of one function. A longer queue would outlast its callers'
/// patience.
pub const MAX_WAITING: usize = 1024;
/// Pause between two `Need` messages for one function while callers wait, milliseconds.
pub const NEED_PERIOD_MS: u64 = 500;
/// Pause between two `Idle` messages for one worker, milliseconds.
pub const IDLE_PERIOD_MS: u64 = 3000;

/// A caller that waits for a worker.
pub trait Waiting {
    /// Whether the caller is still there.
    fn is_waiting(&self) -> bool;
}

/// The workers (`W`) of one function and the callers (`T`) that wait for one.
#[derive(Debug)]
pub struct Pool<T, W> {
    release: Option<Digest>,
    seats: Vec<Seat<W>>,
    waiting: VecDeque<T>,
    need_said_ms: Option<u64>,
}

#[derive(Debug)]
struct Seat<W> {
    id: WorkerId,
    release: Digest,
    worker: W,
    concurrency: u32,
    streams: u32,
    /// The worker's release is the wanted one, or was. A worker that is ready before its release is
    /// wanted stays unused until then.
    was_wanted: bool,
    /// Permanently out of rotation: retired by command, or superseded and reported `Drained`.
    retired: bool,
    drained_said: bool,
    idle_since_ms: u64,
    idle_said_ms: u64,
    /// Requests given to the worker so far, and how many of them were reported to the supervisor.
    given: u64,
    given_said: u64,
}

/// Reports to the supervisor about one function that are due.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Number of callers that wait for a worker.
    pub need: Option<u32>,
    /// Workers that have ended their last stream.
    pub drained: Vec<WorkerId>,
    /// Idle workers, and for how many milliseconds each has been idle.
    pub idle: Vec<(WorkerId, u64)>,
    /// Workers with new requests, and the number of requests each has been given in all.
    pub given: Vec<(WorkerId, u64)>,
}

impl<T, W> Default for Pool<T, W> {
    fn default() -> Self {
        Self {
            release: None,
            seats: Vec::new(),
            waiting: VecDeque::new(),
            need_said_ms: None,
        }
    }
}

impl<T: Waiting, W: Clone> Pool<T, W> {
    /// Takes a slot in the worker with the fewest streams among those of the wanted release.
    pub fn acquire(&mut self) -> Option<W> {
        let release = self.release?;
        let free = self.seats.iter_mut().filter(|seat| seat.has_room(release));
        free.min_by_key(|seat| seat.streams).map(Seat::take)
    }

    /// Queues a caller.
    ///
    /// # Errors
    /// [`MAX_WAITING`] callers wait already; the caller is given back.
    pub fn wait(&mut self, waiter: T) -> Result<(), T> {
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.retain(Waiting::is_waiting);
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(waiter);
        }
        self.waiting.push_back(waiter);
        Ok(())
    }

    /// A stream of this worker has ended; the first caller in the queue gets the slot.
    pub fn release(&mut self, id: WorkerId, now_ms: u64) -> Vec<(T, W)> {
        if let Some(seat) = self.seat(id) {
            seat.streams = seat.streams.saturating_sub(1);
            if seat.streams == 0 {
                (seat.idle_since_ms, seat.idle_said_ms) = (now_ms, now_ms);
            }
        }
        self.grant()
    }

    /// Adds a worker that is ready to serve.
    pub fn add(
        &mut self,
        id: WorkerId,
        release: Digest,
        concurrency: u32,
        worker: W,
        now_ms: u64,
    ) -> Vec<(T, W)> {
        self.seats.retain(|seat| seat.id != id);
        self.seats.push(Seat {
            id,
            release,
            worker,
            concurrency: concurrency.max(1),
            streams: 0,
            was_wanted: self.release == Some(release),
            retired: false,
            drained_said: false,
            idle_since_ms: now_ms,
            idle_said_ms: now_ms,
            given: 0,
            given_said: 0,
        });
        self.grant()
    }

    /// Makes this the wanted release; with `None` no request reaches the function.
    pub fn want(&mut self, release: Option<Digest>) -> Vec<(T, W)> {
        self.release = release;
        for seat in &mut self.seats {
            seat.was_wanted |= release == Some(seat.release);
        }
        self.grant()
    }

    /// Takes the worker out of rotation: it gets no new request.
    pub fn retire(&mut self, id: WorkerId) {
        if let Some(seat) = self.seat(id) {
            seat.retired = true;
        }
    }

    /// Removes a worker that has ended.
    pub fn remove(&mut self, id: WorkerId) -> Option<W> {
        let at = self.seats.iter().position(|seat| seat.id == id)?;
        Some(self.seats.remove(at).worker)
    }

    /// Takes all callers out of the queue, for the answer that there will be no worker.
    pub fn dismiss(&mut self) -> Vec<T> {
        self.need_said_ms = None;
        self.waiting.drain(..).collect()
    }

    /// Whether this worker is retired and has no stream left.
    pub fn is_drained(&self, id: WorkerId) -> bool {
        self.seats
            .iter()
            .any(|seat| seat.id == id && seat.streams == 0 && seat.leaves(self.release))
    }

    /// Whether the function has no wanted release, no worker and no caller left.
    pub fn is_over(&self) -> bool {
        self.release.is_none() && self.seats.is_empty() && self.waiting.is_empty()
    }

    /// Takes the reports that are due now.
    pub fn due(&mut self, now_ms: u64) -> Due {
        self.waiting.retain(Waiting::is_waiting);
        let mut due = Due::default();
        if self.waiting.is_empty() {
            self.need_said_ms = None;
        } else if self
            .need_said_ms
            .is_none_or(|said| now_ms.saturating_sub(said) >= NEED_PERIOD_MS)
        {
            self.need_said_ms = Some(now_ms);
            due.need = Some(self.waiting.len() as u32);
        }
        for seat in &mut self.seats {
            if seat.given > seat.given_said {
                seat.given_said = seat.given;
                due.given.push((seat.id, seat.given));
            }
            if seat.streams > 0 {
                continue;
            }
            if seat.leaves(self.release) {
                if !seat.drained_said {
                    (seat.retired, seat.drained_said) = (true, true);
                    due.drained.push(seat.id);
                }
            } else if now_ms.saturating_sub(seat.idle_said_ms) >= IDLE_PERIOD_MS {
                seat.idle_said_ms = now_ms;
                due.idle
                    .push((seat.id, now_ms.saturating_sub(seat.idle_since_ms)));
            }
        }
        due
    }

    fn seat(&mut self, id: WorkerId) -> Option<&mut Seat<W>> {
        self.seats.iter_mut().find(|seat| seat.id == id)
    }

    /// Grants free slots in the order in which callers came.
    fn grant(&mut self) -> Vec<(T, W)> {
        let mut grants = Vec::new();
        while let Some(waiter) = self.waiting.pop_front() {
            if !waiter.is_waiting() {
                continue;
            }
            match self.acquire() {
                Some(worker) => grants.push((waiter, worker)),
                None => {
                    self.waiting.push_front(waiter);
                    break;
                }
            }
        }
        grants
    }
}

impl<W: Clone> Seat<W> {
    fn leaves(&self, wanted: Option<Digest>) -> bool {
        self.retired || self.was_wanted && wanted.is_some_and(|release| release != self.release)
    }

    fn has_room(&self, release: Digest) -> bool {
        !self.retired && self.release == release && self.streams < self.concurrency
    }

    fn take(&mut self) -> W {
        self.streams += 1;
        self.given += 1;
        self.worker.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD: Digest = [1; 32];
    const NEW: Digest = [2; 32];

    #[derive(Debug, PartialEq, Eq)]
    struct Caller(u32, bool);

    impl Waiting for Caller {
        fn is_waiting(&self) -> bool {
            self.1
        }
    }

    fn pool() -> Pool<Caller, u64> {
        let mut pool = Pool::default();
        assert!(pool.want(Some(OLD)).is_empty());
        pool
    }

    #[test]
    fn the_worker_with_the_fewest_streams_up_to_its_concurrency() {
        let mut pool = pool();
        pool.add(WorkerId(1), OLD, 2, 1, 0);
        pool.add(WorkerId(2), OLD, 1, 2, 0);
        assert_eq!(
            [
                pool.acquire(),
                pool.acquire(),
                pool.acquire(),
                pool.acquire()
            ],
            [Some(1), Some(2), Some(1), None]
        );
        assert!(pool.release(WorkerId(2), 5).is_empty());
        assert_eq!(pool.acquire(), Some(2));
    }

    #[test]
    fn the_longest_waiting_caller_gets_the_next_slot_and_one_that_left_gets_none() {
        let mut pool = pool();
        for (n, waits) in [(1, false), (2, true), (3, true)] {
            pool.wait(Caller(n, waits)).unwrap();
        }
        assert_eq!(pool.due(0).need, Some(2));
        assert_eq!(pool.due(NEED_PERIOD_MS - 1).need, None);
        assert_eq!(pool.due(NEED_PERIOD_MS).need, Some(2));
        assert_eq!(
            pool.add(WorkerId(1), OLD, 1, 1, 600),
            [(Caller(2, true), 1)]
        );
        assert_eq!(pool.release(WorkerId(1), 700), [(Caller(3, true), 1)]);
        assert_eq!(pool.due(9000).need, None);
    }

    #[test]
    fn the_queue_is_bounded_and_forgets_callers_that_left() {
        let mut pool = pool();
        for n in 0..MAX_WAITING as u32 {
            pool.wait(Caller(n, n > 0)).unwrap();
        }
        assert_eq!(pool.wait(Caller(8000, true)), Ok(()));
        assert_eq!(pool.wait(Caller(8001, true)), Err(Caller(8001, true)));
        assert_eq!(pool.dismiss().len(), MAX_WAITING);
    }

    #[test]
    fn a_superseded_worker_returns_with_a_rollback_unless_it_was_reported_drained() {
        let mut pool = pool();
        pool.add(WorkerId(1), OLD, 4, 1, 0);
        assert_eq!(pool.acquire(), Some(1));
        pool.want(Some(NEW));
        assert_eq!(pool.acquire(), None);
        assert_eq!(pool.due(1).drained, []);
        pool.want(Some(OLD));
        assert_eq!(pool.acquire(), Some(1));
        pool.want(Some(NEW));
        pool.release(WorkerId(1), 2);
        pool.release(WorkerId(1), 3);
        assert_eq!(pool.due(4).drained, [WorkerId(1)]);
        assert_eq!(pool.due(5).drained, []);
        pool.want(Some(OLD));
        assert_eq!(
            pool.acquire(),
            None,
            "a worker reported as drained gets no request"
        );
        assert_eq!(pool.remove(WorkerId(1)), Some(1));
        assert!(!pool.is_over());
        pool.want(None);
        assert!(pool.is_over());
    }

    #[test]
    fn a_worker_that_is_ready_before_its_release_is_wanted_waits_for_it() {
        let mut pool = pool();
        pool.add(WorkerId(1), OLD, 4, 1, 0);
        pool.add(WorkerId(2), NEW, 4, 2, 0);
        assert_eq!(pool.due(1), Due::default());
        assert!(!pool.is_drained(WorkerId(2)));
        assert_eq!(
            pool.acquire(),
            Some(1),
            "no request before the release is wanted"
        );
        pool.want(Some(NEW));
        assert_eq!(pool.acquire(), Some(2));
        pool.release(WorkerId(1), 2);
        assert_eq!(pool.due(3).drained, [WorkerId(1)]);
    }

    #[test]
    fn idle_workers_are_reported_every_few_seconds_and_only_while_idle() {
        let mut pool = pool();
        pool.add(WorkerId(1), OLD, 4, 1, 1000);
        assert_eq!(pool.due(1001), Due::default());
        assert_eq!(
            pool.due(1000 + IDLE_PERIOD_MS).idle,
            [(WorkerId(1), IDLE_PERIOD_MS)]
        );
        assert_eq!(pool.due(1001 + IDLE_PERIOD_MS).idle, []);
        pool.acquire();
        let due = pool.due(90_000);
        assert_eq!((due.idle, due.given), (vec![], vec![(WorkerId(1), 1)]));
        assert_eq!(
            pool.due(90_000),
            Due::default(),
            "no report without a new request"
        );
        pool.release(WorkerId(1), 90_000);
        assert_eq!(pool.due(90_001).idle, []);
        assert_eq!(
            pool.due(90_000 + IDLE_PERIOD_MS).idle,
            [(WorkerId(1), IDLE_PERIOD_MS)]
        );
        pool.retire(WorkerId(1));
        assert_eq!(
            pool.due(900_000),
            Due {
                drained: vec![WorkerId(1)],
                ..Due::default()
            }
        );
    }

    proptest! {
        /// In any order of events, no worker exceeds its concurrency, no worker of another release
        /// gets a request, and no caller is served twice.
        #[test]
        fn no_worker_ever_gets_more_requests_than_its_concurrency(steps in proptest::collection::vec((0u8..7, 0u64..4), 0..200)) {
            let mut pool: Pool<Caller, u64> = Pool::default();
            let mut held: Vec<u64> = Vec::new();
            let mut wanted = None;
            let mut next = 0;
            for (step, n) in steps {
                let mut grants = Vec::new();
                match step {
                    0 => {
                        let taken = pool.acquire();
                        prop_assert!(taken.is_none() || wanted.is_some());
                        held.extend(taken);
                    }
                    1 => {
                        next += 1;
                        pool.wait(Caller(next, next % 5 != 0)).unwrap();
                    }
                    2 if !held.is_empty() => {
                        let worker = held.remove(n as usize % held.len());
                        grants = pool.release(WorkerId(worker), 0);
                    }
                    3 if !held.contains(&n) => grants = pool.add(WorkerId(n), if n % 2 == 0 { OLD } else { NEW }, 2, n, 0),
                    4 => pool.retire(WorkerId(n)),
                    5 => {
                        pool.remove(WorkerId(n));
                        held.retain(|worker| *worker != n);
                    }
                    _ => {
                        wanted = [None, Some(OLD), Some(NEW), Some(OLD)][n as usize];
                        grants = pool.want(wanted);
                    }
                }
                for (caller, worker) in grants {
                    prop_assert!(caller.is_waiting());
                    let release = if worker % 2 == 0 { OLD } else { NEW };
                    prop_assert_eq!(Some(release), wanted);
                    held.push(worker);
                }
                for n in 0..4 {
                    prop_assert!(held.iter().filter(|worker| **worker == n).count() <= 2);
                }
            }
        }
    }
}
