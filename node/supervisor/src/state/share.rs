//! How tenants share the node's places for workers: whoever asks first may have nearly all of them, but not keep them from
//! who comes later.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use casemate_wire::control::gateway::ToGateway;
use casemate_wire::control::{Digest, Failure, FunctionKey, WorkerId};

use super::functions::needed_mib;
use super::turns::Waiting;
use super::{Effect, Millis, Stage, Supervision, Worker};

/// One place in so many is for tenants that have no worker here, so that a first request need not wait until somebody else's
/// worker has finished. A node of fewer places has none to set aside.
pub(super) const RESERVED_ONE_IN: usize = 8;
/// A tenant gives a worker up to another that has so many fewer: it is then left with no fewer than the other gets, and nothing
/// is ever taken back and forth.
const UNFAIR_BY: usize = 2;

impl Supervision {
    /// Whether a spare may become this tenant's now.
    pub(super) fn may_be_given(&self, tenant: &Digest) -> bool {
        let is_free = |worker: &&Worker| matches!(worker.stage, Stage::Starting | Stage::Spare);
        let given = self.workers.len() - self.workers.values().filter(is_free).count();
        given < self.ceiling(self.held().get(tenant).copied().unwrap_or(0))
    }

    /// Sees that each who waits has a place that is free or becomes so: one of whoever has most is asked for when there is
    /// none, and who is owed none is told.
    pub(super) fn share_out(&mut self, now_ms: Millis) {
        if !self.gateway.up {
            return;
        }
        let mut stay: VecDeque<Waiting> = VecDeque::new();
        let (mut promised, mut promised_mib) = (0, BTreeMap::<Digest, u64>::new());
        for waiting in std::mem::take(&mut self.waiting) {
            let (key, is_trial) = (waiting.key.clone(), waiting.is_trial());
            if !self.functions.contains_key(&key) {
                continue;
            }
            let Some(plan) = self.plan_for(&waiting) else {
                stay.push_back(waiting);
                continue;
            };
            let release = plan.release;
            let of_tenant = promised_mib.entry(key.tenant).or_insert(0);
            let wanted_mib = *of_tenant + u64::from(needed_mib(plan));
            if !self.make_room_in_tenant(&waiting, release, wanted_mib, now_ms) {
                if is_trial {
                    stay.push_back(waiting);
                } else if !stay.contains(&waiting) && self.loading(&key, release) == 0 {
                    self.refuse_beyond_ceiling(key);
                }
                continue;
            }
            let held = self.held();
            let before = stay.iter().filter(|other| other.key.tenant == key.tenant);
            let mine = held.get(&key.tenant).copied().unwrap_or(0) + before.count();
            let is_free = held.values().sum::<usize>() + promised < self.ceiling(mine);
            let is_coming = self.leaving() > promised;
            if !is_free && !is_coming {
                let own = || self.one_of_several(&key).filter(|_| is_trial);
                let idle = || self.idle_to_give_up(&key, &held, mine);
                let worker = self.worker_to_give_up(&held, mine);
                if let Some(worker) = worker.or_else(own).or_else(idle) {
                    self.retire(worker, now_ms);
                } else if !is_trial {
                    if !stay.contains(&waiting) && self.loading(&key, release) == 0 {
                        self.refuse_full(key);
                    }
                    continue;
                }
            }
            promised += 1;
            *of_tenant = wanted_mib;
            stay.push_back(waiting);
        }
        self.waiting = stay;
    }

    /// Places that a tenant may fill which has so many workers.
    fn ceiling(&self, mine: usize) -> usize {
        let all = self.places();
        if mine == 0 {
            all
        } else {
            all - all / RESERVED_ONE_IN
        }
    }

    /// Workers that each tenant has and has not been asked to give up.
    fn held(&self) -> BTreeMap<Digest, usize> {
        let mut held = BTreeMap::new();
        for key in self.workers.values().filter_map(|worker| holder(worker)) {
            *held.entry(key.tenant).or_default() += 1;
        }
        held
    }

    fn leaving(&self) -> usize {
        let leaves =
            |worker: &&Worker| matches!(worker.stage, Stage::Retired(..) | Stage::Discarded);
        self.workers.values().filter(leaves).count()
    }

    /// Of the tenant with the most workers, if that is unfair to one with so few: of its largest function, the one that was
    /// last seen to rest, or is oldest.
    fn worker_to_give_up(&self, held: &BTreeMap<Digest, usize>, mine: usize) -> Option<WorkerId> {
        let (tenant, _) = held
            .iter()
            .max_by_key(|(_, count)| **count)
            .filter(|(_, count)| **count >= mine + UNFAIR_BY)?;
        let mut of_function = BTreeMap::<&FunctionKey, usize>::new();
        for key in self.workers.values().filter_map(holder) {
            *of_function.entry(key).or_default() += 1;
        }
        self.workers
            .iter()
            .filter_map(|(id, worker)| Some((id, worker, holder(worker)?)))
            .filter(|(_, _, key)| key.tenant == *tenant)
            .max_by_key(|(_, worker, key)| {
                (of_function[key], worker.rested_ms, Reverse(worker.since_ms))
            })
            .map(|(id, ..)| *id)
    }

    /// The worker that has been idle for longest, of the function's own tenant or of one that has
    /// more workers. So idle functions keep nobody waiting until they leave by themselves, and no
    /// tenant gets at the worker of one that has fewer.
    fn idle_to_give_up(
        &self,
        key: &FunctionKey,
        held: &BTreeMap<Digest, usize>,
        mine: usize,
    ) -> Option<WorkerId> {
        let may_lose = |owner: &FunctionKey| {
            owner != key
                && (owner.tenant == key.tenant
                    || held.get(&owner.tenant).is_some_and(|count| *count > mine))
        };
        self.workers
            .iter()
            .filter(
                |(_, worker)| matches!(&worker.stage, Stage::Serving(owner, _) if may_lose(owner)),
            )
            .filter_map(|(id, worker)| Some((worker.idle_since_ms?, *id)))
            .min()
            .map(|(_, id)| id)
    }

    /// A worker that the function can do without while a new release of it is made warm: otherwise a busy function that
    /// fills its tenant's places would never change.
    fn one_of_several(&self, key: &FunctionKey) -> Option<WorkerId> {
        match self.workers_of(key, None)[..] {
            [oldest, _, ..] => Some(oldest),
            _ => None,
        }
    }

    fn refuse_full(&mut self, key: FunctionKey) {
        self.effects.push(Effect::Gateway(ToGateway::Refuse {
            key,
            failure: Failure::Unavailable,
            message: "this node runs as many workers as it may".into(),
        }));
    }
}

/// Whose worker it is, unless it is nobody's or leaves.
fn holder(worker: &Worker) -> Option<&FunctionKey> {
    match &worker.stage {
        Stage::Loading(key, _) | Stage::Serving(key, _) => Some(key),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::vault::FunctionPlan;

    use super::super::tests::{BOUNDS, fallback, function, plan_of, proven};
    use super::super::{Bounds, Input, Single};
    use super::*;

    /// A node whose programs do at once what they are told, but for workers that are told to finish.
    struct Node {
        state: Supervision,
        now_ms: Millis,
        retired: Vec<WorkerId>,
        refused: Vec<FunctionKey>,
    }

    fn key(tenant: u8) -> FunctionKey {
        FunctionKey {
            tenant: [tenant; 32],
            function: "web".into(),
        }
    }

    /// One caller fills a worker.
    fn narrow(release: u8) -> FunctionPlan {
        let mut function = function("web", release);
        function.limits.concurrency = 1;
        function
    }

    impl Node {
        fn new(max_workers: usize) -> Self {
            let state = proven(Bounds {
                spares: 1,
                max_workers,
                memory_mib: u32::MAX,
                overcommit: 1,
                idle_ms: 100_000,
                ..BOUNDS
            });
            let (retired, refused) = Default::default();
            let mut node = Self {
                state,
                now_ms: 0,
                retired,
                refused,
            };
            node.does(Input::Up(Single::Vault));
            node.does(Input::Up(Single::Gateway));
            (1..=3).for_each(|tenant| node.deploys(tenant, tenant));
            node
        }

        fn deploys(&mut self, tenant: u8, release: u8) {
            // What ran before stays listed.
            let functions = vec![narrow(release), fallback(narrow(tenant))];
            self.does(plan_of([tenant; 32], functions));
            self.does(Input::BundleHere([release; 32]));
        }

        fn does(&mut self, input: Input) {
            self.now_ms += 1;
            let mut inputs = VecDeque::from([input]);
            while let Some(input) = inputs.pop_front() {
                for effect in self.state.handle(input, self.now_ms) {
                    match effect {
                        Effect::StartWorker { worker, .. } => {
                            inputs.push_back(Input::Ready { worker });
                        }
                        Effect::Serve { worker, .. } => inputs.push_back(Input::Loaded { worker }),
                        Effect::Gateway(ToGateway::Retire { worker }) => self.retired.push(worker),
                        Effect::Gateway(ToGateway::Refuse { key, .. }) => self.refused.push(key),
                        _ => {}
                    }
                }
            }
        }

        /// More callers than there can be places for wait, for so many rounds.
        fn calls(&mut self, tenant: u8, rounds: usize) {
            for _ in 0..rounds {
                let key = key(tenant);
                self.does(Input::Need { key, waiting: 1000 });
            }
        }

        /// Workers that were told to finish have done so.
        fn finish(&mut self) -> usize {
            let finished = std::mem::take(&mut self.retired);
            for worker in &finished {
                self.does(Input::Ended {
                    child: worker.0,
                    failure: Failure::WorkerLost,
                });
            }
            finished.len()
        }

        fn held(&self) -> [usize; 3] {
            [1, 2, 3].map(|tenant| *self.state.held().get(&[tenant; 32]).unwrap_or(&0))
        }
    }

    #[test]
    fn who_takes_all_places_leaves_the_reserve_to_a_first_request_of_others() {
        let mut node = Node::new(16);
        node.calls(1, 40);
        assert_eq!(node.held(), [14, 0, 0]);
        assert!(node.refused.contains(&key(1)), "it is told that it has all");
        node.refused.clear();
        let one = |tenant| Input::Need {
            key: key(tenant),
            waiting: 1,
        };
        node.does(one(2));
        node.does(one(3));
        assert_eq!(node.held(), [14, 1, 1], "at once");
        assert_eq!((node.retired.len(), node.refused.len()), (0, 0));
    }

    #[test]
    fn without_a_reserve_one_worker_is_given_up_for_one_that_waits() {
        let mut node = Node::new(4);
        node.calls(1, 10);
        assert_eq!(node.held(), [4, 0, 0]);
        node.refused.clear();
        let wait = Input::Need {
            key: key(2),
            waiting: 1,
        };
        node.does(wait);
        (0..20).for_each(|_| node.does(Input::Tick));
        assert_eq!(node.retired.len(), 1, "however long it takes to finish");
        assert_eq!(node.refused, [], "callers wait");
        node.calls(1, 3);
        assert_eq!(node.finish(), 1);
        assert_eq!(node.held(), [3, 1, 0], "it is not the hog's again");
    }

    #[test]
    fn of_those_who_wait_none_is_forgotten_and_no_more_leave_than_wait() {
        let mut node = Node::new(8);
        node.calls(1, 20);
        for round in 0..30 {
            node.calls(2, 1);
            node.calls(3, 1);
            let waiting = node.state.waiting.len();
            assert!(node.state.leaving() <= waiting, "round {round}");
            if round % 3 == 2 {
                node.finish();
            }
        }
        let held = node.held();
        assert!(held.iter().all(|held| *held >= 2), "{held:?}");
    }

    #[test]
    fn two_who_both_want_all_come_to_equal_shares_and_stay_there() {
        for max_workers in [2, 3, 4, 7, 8, 9, 16, 17] {
            let mut node = Node::new(max_workers);
            node.calls(1, 2 * max_workers);
            let mut given_up = 0;
            for _ in 0..4 * max_workers {
                node.calls(2, 1);
                node.calls(1, 1);
                given_up += node.finish();
            }
            assert!(given_up <= max_workers, "{max_workers}: {given_up}");
            let [one, other, _] = node.held();
            assert!(one.abs_diff(other) <= 1, "{max_workers}: {one} {other}");
            for _ in 0..20 {
                node.calls(2, 1);
                node.calls(1, 1);
                assert_eq!(node.finish(), 0, "{max_workers}: back and forth");
            }
        }
    }

    #[test]
    fn the_only_place_of_a_node_is_not_fought_over() {
        let mut node = Node::new(1);
        node.calls(1, 3);
        node.refused.clear();
        node.calls(2, 3);
        assert_eq!(node.refused, vec![key(2); 3]);
        assert_eq!((node.held(), node.retired.len()), ([1, 0, 0], 0));
    }

    #[test]
    fn the_one_that_rests_is_given_up() {
        let mut node = Node::new(4);
        node.calls(1, 10);
        let third = *node.state.workers.keys().nth(2).unwrap();
        node.does(Input::Idle {
            worker: third,
            idle_ms: 5000,
        });
        node.calls(2, 1);
        assert_eq!(node.retired, [third]);
    }

    /// A function of its own name for one tenant.
    fn named(name: &str, release: u8) -> FunctionPlan {
        let mut function = function(name, release);
        function.limits.concurrency = 1;
        function
    }

    #[test]
    fn nine_idle_functions_do_not_starve_the_tenth() {
        let mut node = Node::new(9);
        node.now_ms = 100_000;
        let names: Vec<String> = (0..10).map(|n| format!("f{n}")).collect();
        let functions = names.iter().zip(10u8..);
        let functions: Vec<_> = functions
            .map(|(name, release)| named(name, release))
            .collect();
        node.does(plan_of([1; 32], functions));
        let need = |name: &str| Input::Need {
            key: FunctionKey {
                tenant: [1; 32],
                function: name.to_owned(),
            },
            waiting: 1,
        };
        for (name, release) in names.iter().zip(10u8..) {
            node.does(Input::BundleHere([release; 32]));
            node.does(need(name));
        }
        // The tenant has all places that it may have; with a worker each, the first eight run.
        let held = node.held()[0];
        assert_eq!(node.refused.len(), 10 - held);
        node.refused.clear();
        let workers: Vec<WorkerId> = node.state.workers.keys().copied().take(held).collect();
        for (worker, idle_ms) in workers.iter().zip([4000, 9000, 5000].into_iter().cycle()) {
            let worker = *worker;
            node.does(Input::Idle { worker, idle_ms });
        }
        // A request since then: this one is not idle any more.
        let (longest, busy) = (workers[4], workers[1]);
        node.does(Input::Given {
            worker: busy,
            requests: 1,
        });
        node.does(need(&names[9]));
        assert_eq!(
            node.retired,
            [longest],
            "the one that has been idle for longest"
        );
        assert_eq!(node.refused, []);
        node.finish();
        let runs = |worker: &Worker| matches!(&worker.stage, Stage::Serving(key, _) if key.function == names[9]);
        assert!(node.state.workers.values().any(runs));
    }

    #[test]
    fn an_idle_worker_does_not_give_way_to_a_tenant_that_has_as_many() {
        let mut node = Node::new(2);
        node.calls(1, 1);
        node.calls(2, 1);
        let workers: Vec<WorkerId> = node.state.workers.keys().copied().collect();
        for worker in workers {
            node.does(Input::Idle {
                worker,
                idle_ms: 5000,
            });
        }
        node.calls(1, 5);
        assert_eq!((node.held(), node.retired.len()), ([1, 1, 0], 0));
        // A tenant that has none gets the place of the one that rests.
        node.calls(3, 1);
        assert_eq!(node.retired.len(), 1);
        node.finish();
        assert_eq!(node.held()[2], 1);
    }

    #[test]
    fn a_busy_function_that_has_all_places_still_changes_its_release() {
        for max_workers in [4, 16] {
            let mut node = Node::new(max_workers);
            node.calls(1, 40);
            node.deploys(1, 9);
            assert_eq!(node.retired.len(), 1, "{max_workers}");
            node.finish();
            let runs = |worker: &Worker| matches!(worker.stage, Stage::Serving(_, release) if release == [9; 32]);
            assert!(node.state.workers.values().any(runs), "{max_workers}");
        }
    }
}
