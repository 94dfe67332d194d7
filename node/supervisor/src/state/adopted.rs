//! Children of a supervisor that has crashed: launch hands them to its successor, which goes on with the vault, with the
//! gateway and with each worker that serves a release.
//!
//! Of a worker launch knows the release that it was given; which function that is, the vault's plans say. A worker that no
//! plan names ends, and so does one that had no function yet.

use std::num::NonZeroU32;

use casemate_wire::control::{Digest, FunctionKey, WorkerId};

use super::cpu::CpuWall;
use super::functions::Function;
use super::{Effect, Millis, Single, Stage, Supervision, Worker};

/// Until a worker is ended that no plan has named.
const UNNAMED_MS: Millis = 30_000;
/// Beyond the wall-clock time of its requests, until a worker is ended of which the gateway has not spoken: it never got its
/// channel there.
const UNHEARD_MS: Millis = 30_000;

/// A child that a supervisor before this one has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AdoptedChild {
    pub(crate) child: u64,
    pub(crate) kind: AdoptedKind,
}

/// What an adopted child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdoptedKind {
    Single(Single),
    Worker {
        memory_mib: u32,
        /// Its tenant's number with launch.
        tenant: Option<NonZeroU32>,
        /// What it was given.
        release: Option<Digest>,
    },
}

impl Supervision {
    /// Takes over what runs.
    pub(super) fn adopt(&mut self, children: Vec<AdoptedChild>, now_ms: Millis) {
        for AdoptedChild { child, kind } in children {
            self.next_child = self.next_child.max(child.saturating_add(1));
            match kind {
                AdoptedKind::Single(which) => {
                    let program = self.program(which);
                    // Its channels to workers are as they were.
                    (program.child, program.up, program.started_ms) = (Some(child), true, now_ms);
                }
                AdoptedKind::Worker {
                    memory_mib,
                    tenant,
                    release,
                } => {
                    let stage = release.map_or(Stage::Discarded, Stage::Adopted);
                    if stage == Stage::Discarded {
                        self.effects.push(Effect::Kill { child });
                    }
                    let worker = Worker {
                        stage,
                        since_ms: now_ms,
                        was_ready: true,
                        is_violator: false,
                        was_loaded: false,
                        is_trial: false,
                        is_unheard: true,
                        concurrency: 0,
                        wall_time_ms: 0,
                        fatal: None,
                        deadline_ms: Some(now_ms + UNNAMED_MS),
                        rested_ms: None,
                        idle_since_ms: None,
                        memory_mib,
                        tenant_number: tenant,
                        cpu: None,
                    };
                    self.workers.insert(WorkerId(child), worker);
                }
            }
        }
    }

    /// Adopted workers of the function's releases serve it.
    pub(super) fn recognise(&mut self, key: &FunctionKey, now_ms: Millis) {
        let Some(function) = self.functions.get(key) else {
            return;
        };
        for (id, worker) in &mut self.workers {
            let Stage::Adopted(release) = worker.stage else {
                continue;
            };
            let Some(plan) = Function::releases(function).find(|plan| plan.release == release)
            else {
                continue;
            };
            worker.stage = Stage::Serving(key.clone(), release);
            worker.cpu = Some(CpuWall::new(&plan.limits));
            worker.concurrency = plan.limits.concurrency;
            worker.wall_time_ms = plan.limits.wall_time_ms;
            worker.deadline_ms = worker
                .is_unheard
                .then_some(now_ms + Millis::from(plan.limits.wall_time_ms) + UNHEARD_MS);
            self.effects.push(Effect::Recognised {
                worker: *id,
                key: key.clone(),
            });
        }
    }

    /// All plans are told: what none of them names may not run.
    pub(super) fn end_unrecognised(&mut self) {
        for (id, worker) in &mut self.workers {
            if matches!(worker.stage, Stage::Adopted(_)) && worker.deadline_ms.take().is_some() {
                self.effects.push(Effect::Kill { child: id.0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::Failure;
    use casemate_wire::control::gateway::ToGateway;

    use super::super::Input;
    use super::super::tests::{BOUNDS, function, key, plan, proven, served, started};
    use super::*;

    fn worker(child: u64, release: Option<u8>) -> AdoptedChild {
        let kind = AdoptedKind::Worker {
            memory_mib: 256,
            tenant: release.and_then(|_| NonZeroU32::new(7)),
            release: release.map(|release| [release; 32]),
        };
        AdoptedChild { child, kind }
    }

    fn single(child: u64, which: Single) -> AdoptedChild {
        let kind = AdoptedKind::Single(which);
        AdoptedChild { child, kind }
    }

    /// A successor that has adopted vault, gateway, a worker of release 5, one of release 6 and a spare.
    fn successor() -> (Supervision, Vec<Effect>) {
        let mut state = proven(BOUNDS);
        let children = vec![
            single(1, Single::Vault),
            single(2, Single::Gateway),
            worker(10, Some(5)),
            worker(11, Some(6)),
            worker(12, None),
        ];
        let effects = state.handle(Input::Adopt(children), 0);
        (state, effects)
    }

    fn kills(effects: &[Effect]) -> Vec<u64> {
        let kills = effects.iter().filter_map(|effect| match effect {
            Effect::Kill { child } => Some(*child),
            _ => None,
        });
        kills.collect()
    }

    #[test]
    fn a_successor_goes_on_with_what_serves_and_starts_nothing_twice() {
        let (mut state, mut effects) = successor();
        assert_eq!(kills(&effects), [12], "a spare is replaced");
        let starts = |effects: &[Effect]| {
            let is_start = |one: &&Effect| matches!(one, Effect::StartSingle { .. });
            effects.iter().filter(is_start).count()
        };
        assert_eq!(starts(&effects), 0);
        assert!(
            started(&effects).iter().all(|worker| worker.0 > 12),
            "ids are not given twice"
        );
        // The vault and the gateway say that they are up, which is no news to workers.
        for which in [Single::Vault, Single::Gateway] {
            effects = state.handle(Input::Up(which), 1);
            assert!(
                !effects
                    .iter()
                    .any(|one| matches!(one, Effect::Rewire { .. })),
                "{effects:?}"
            );
        }
        effects = state.handle(plan(1, vec![function("web", 5)]), 2);
        let (first, key) = (WorkerId(10), key("web"));
        let recognised = Effect::Recognised {
            worker: first,
            key: key.clone(),
        };
        assert!(effects.contains(&recognised), "{effects:?}");
        effects = state.handle(Input::BundleHere([5; 32]), 3);
        let routes = effects
            .iter()
            .filter(|one| matches!(one, Effect::Gateway(ToGateway::Route(_))));
        assert_eq!((routes.count(), served(&effects)), (1, vec![]));
        // It counts as the worker that it is.
        effects = state.handle(Input::Need { key, waiting: 1 }, 4);
        assert_eq!(kills(&effects), [0; 0]);
        assert_eq!(
            state
                .tenant_number(&super::super::tests::key("web").tenant)
                .get(),
            7
        );
        // What no plan names ends when all are told; another one stays for as long as the gateway speaks of it.
        effects = state.handle(Input::Told, 5);
        assert_eq!(kills(&effects), [11]);
        state.handle(
            Input::Given {
                worker: first,
                requests: 9,
            },
            6,
        );
        effects = state.handle(Input::Tick, 10 * UNHEARD_MS);
        assert!(!kills(&effects).contains(&10), "{effects:?}");
        let gone = Effect::Gateway(ToGateway::Gone {
            worker: WorkerId(11),
            failure: Failure::WorkerLost,
        });
        let failure = Failure::WorkerLost;
        assert!(
            state
                .handle(Input::Ended { child: 11, failure }, 7)
                .contains(&gone)
        );
    }

    #[test]
    fn a_worker_that_never_got_its_channel_to_the_gateway_ends() {
        let (mut state, _) = successor();
        state.handle(plan(1, vec![function("web", 5), function("api", 6)]), 1);
        state.handle(Input::Told, 1);
        state.handle(
            Input::Idle {
                worker: WorkerId(10),
                idle_ms: 1,
            },
            2,
        );
        let effects = state.handle(Input::Tick, 2 * UNHEARD_MS);
        let killed = kills(&effects);
        assert!(killed.contains(&11) && !killed.contains(&10), "{killed:?}");
    }

    #[test]
    fn the_report_of_a_load_that_came_meanwhile_is_no_violation() {
        let (mut state, _) = successor();
        state.handle(plan(1, vec![function("web", 5)]), 1);
        let first = WorkerId(10);
        let violates = |effects: &[Effect]| {
            effects
                .iter()
                .any(|one| matches!(one, Effect::Violation { .. }))
        };
        assert!(!violates(&state.handle(Input::Loaded { worker: first }, 2)));
        assert!(
            violates(&state.handle(Input::Loaded { worker: first }, 3)),
            "twice is one"
        );
    }
}
