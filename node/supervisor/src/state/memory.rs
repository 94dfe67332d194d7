//! How workers share the machine's memory: the limits of all workers are admitted against a multiple of it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use casemate_wire::control::{Digest, WORKER_OVERHEAD_MIB};

use super::{Stage, Supervision, Worker};

impl Supervision {
    /// Workers that the node may run now: as many as the operator allows, and no more than fit with the limits that they have
    /// into the memory for workers, times the overcommitment. One always fits, so that a node of little memory serves at
    /// all.
    pub(super) fn places(&self) -> usize {
        let given: u64 = self
            .workers
            .values()
            .map(|worker| u64::from(worker.memory_mib))
            .sum();
        let left = self.admitted_mib().saturating_sub(given);
        let of_one = u64::from(WORKER_OVERHEAD_MIB + self.largest_heap_mib());
        let more = usize::try_from(left / of_one).unwrap_or(usize::MAX);
        let fitting = self.workers.len().saturating_add(more).max(1);
        fitting.min(self.bounds.max_workers)
    }

    /// What the limits of all workers may come to.
    pub(super) fn admitted_mib(&self) -> u64 {
        u64::from(self.bounds.memory_mib) * u64::from(self.bounds.overcommit)
    }

    /// Whether a worker with this limit can ever run here.
    pub(super) fn can_fit(&self, memory_mib: u32) -> bool {
        u64::from(memory_mib) <= self.admitted_mib()
    }

    /// The tenant's number with launch: the one that its live workers have, else the lowest that no live worker has. A
    /// number can therefore come to another tenant only when launch has reaped every worker of the earlier one.
    pub(super) fn tenant_number(&self, tenant: &Digest) -> NonZeroU32 {
        let numbered = || {
            let workers = self.workers.values();
            workers.filter_map(|worker| Some((tenant_of(worker)?, worker.tenant_number?)))
        };
        if let Some((_, number)) = numbered().find(|(other, _)| *other == tenant) {
            return number;
        }
        let workers = self.workers.values();
        let taken: BTreeSet<NonZeroU32> =
            workers.filter_map(|worker| worker.tenant_number).collect();
        let free = (1..=u32::MAX)
            .filter_map(NonZeroU32::new)
            .find(|number| !taken.contains(number));
        free.expect("there are fewer workers than numbers")
    }
}

pub(super) fn tenant_of(worker: &Worker) -> Option<&Digest> {
    match &worker.stage {
        Stage::Loading(key, _) | Stage::Serving(key, _) | Stage::Retired(key, _) => {
            Some(&key.tenant)
        }
        Stage::Starting | Stage::Spare | Stage::Discarded | Stage::Adopted(_) => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use casemate_wire::control::{Failure, FunctionKey, WorkerId};

    use super::super::tests::{BOUNDS, function, plan_of, proven};
    use super::super::{Bounds, Effect, Input, Single};
    use super::*;

    /// A worker of a function with 64 MiB of heap.
    pub(in super::super) const WORKER_MIB: u32 = WORKER_OVERHEAD_MIB + 64;

    pub(in super::super) fn key(tenant: u8) -> FunctionKey {
        FunctionKey {
            tenant: [tenant; 32],
            function: "web".into(),
        }
    }

    /// A node whose memory is for so many workers, with a function of each of these tenants. All workers are ready at once.
    pub(in super::super) struct Node {
        pub(in super::super) state: Supervision,
        pub(in super::super) effects: Vec<Effect>,
    }

    impl Node {
        pub(in super::super) fn new(workers: u32, tenants: &[u8]) -> Self {
            let state = proven(Bounds {
                spares: 1,
                max_workers: 100,
                memory_mib: workers / 2 * WORKER_MIB,
                overcommit: 2,
                ..BOUNDS
            });
            let effects = Vec::new();
            let mut node = Self { state, effects };
            node.take(Input::Tick);
            for single in [Single::Vault, Single::Gateway] {
                node.take(Input::Up(single));
            }
            for tenant in tenants {
                node.take(plan_of([*tenant; 32], vec![function("web", *tenant)]));
                node.take(Input::BundleHere([*tenant; 32]));
            }
            node
        }

        pub(in super::super) fn take(&mut self, input: Input) {
            let mut next = vec![input];
            while let Some(input) = next.pop() {
                let effects = self.state.handle(input, 1);
                for effect in &effects {
                    match effect {
                        Effect::StartWorker { worker, .. } => {
                            next.push(Input::Ready { worker: *worker });
                        }
                        Effect::Serve { worker, .. } => {
                            next.push(Input::Loaded { worker: *worker });
                        }
                        _ => {}
                    }
                }
                self.effects.extend(effects);
            }
        }

        pub(in super::super) fn need(&mut self, tenant: u8, waiting: u32) {
            let key = key(tenant);
            self.take(Input::Need { key, waiting });
        }

        pub(in super::super) fn assigned(&self) -> Vec<(WorkerId, u32)> {
            let assigned = self.effects.iter().filter_map(|effect| match effect {
                Effect::Assign { worker, tenant, .. } => Some((*worker, tenant.get())),
                _ => None,
            });
            assigned.collect()
        }
    }

    #[test]
    fn limits_of_all_workers_together_fit_into_the_memory_for_workers() {
        let mut node = Node::new(8, &[1, 2]);
        for _ in 0..20 {
            node.need(1, 1000);
        }
        let limits = node.state.workers.values().map(|worker| worker.memory_mib);
        let limits: u32 = limits.sum();
        assert!(limits <= 8 * WORKER_MIB, "{limits} MiB");
        assert!(limits >= 7 * WORKER_MIB, "{limits} MiB");
        let before = node.assigned().len();
        node.need(2, 1);
        let after = node.assigned();
        assert_eq!(
            after.len(),
            before + 1,
            "the reserve is the modest tenant's"
        );
        assert_eq!(after.last().unwrap().1, 2);
    }

    #[test]
    fn a_node_of_very_little_memory_runs_one_worker() {
        let node = Node::new(0, &[]);
        assert_eq!(node.state.workers.len(), 1);
    }

    #[test]
    fn a_function_that_can_never_fit_is_refused_and_costs_nobody_a_spare() {
        let mut node = Node::new(8, &[1]);
        let mut large = function("web", 9);
        large.limits.heap_mib = 8 * WORKER_MIB;
        node.take(plan_of([9; 32], vec![large]));
        node.take(Input::BundleHere([9; 32]));
        node.effects.clear();
        node.need(9, 1);
        let refused = |effect: &Effect| match effect {
            Effect::Gateway(casemate_wire::control::gateway::ToGateway::Refuse {
                message,
                failure: Failure::Unavailable,
                ..
            }) => message.contains("MiB"),
            _ => false,
        };
        assert!(node.effects.iter().any(refused), "{:?}", node.effects);
        node.need(1, 1);
        assert_eq!(node.assigned().len(), 1);
    }

    #[test]
    fn workers_of_a_tenant_share_its_number_until_the_last_has_ended() {
        let mut node = Node::new(20, &[1, 2, 3]);
        node.need(1, 1);
        node.need(2, 1);
        node.need(1, 1000);
        let assigned = node.assigned();
        let numbers: Vec<u32> = assigned.iter().map(|(_, number)| *number).collect();
        assert_eq!(numbers[..3], [1, 2, 1]);
        node.take(Input::Ended {
            child: assigned[1].0.0,
            failure: Failure::WorkerLost,
        });
        node.need(3, 1);
        assert_eq!(node.assigned().last().unwrap().1, 2, "free again");
    }
}
