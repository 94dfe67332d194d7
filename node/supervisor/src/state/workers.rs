//! What becomes of single workers: reports that may come once, new channels after the end of the vault or the
//! gateway, retirement and the end.

use casemate_wire::control::gateway::{ToGateway, WorkerFault};
use casemate_wire::control::worker::Peer;
use casemate_wire::control::{Failure, WorkerId};

use super::turns::Purpose;
use super::{Effect, Millis, STOP_GRACE_MS, Single, Stage, Supervision, Worker, backoff_ms};

/// From a worker's last words to its end, at most.
const FATAL_GRACE_MS: Millis = 5000;

impl Supervision {
    /// A worker says once that its walls are closed: a second time, somebody has taken the worker
    /// over.
    pub(super) fn ready(&mut self, id: WorkerId, now_ms: Millis) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut worker.was_ready, true) {
            return self.violation(id, "`Ready` was sent twice");
        }
        if worker.stage == Stage::Starting {
            (worker.stage, worker.since_ms) = (Stage::Spare, now_ms);
            worker.deadline_ms = None;
            self.spare_failures = 0;
        }
    }

    /// Ends a worker that sent what no worker of ours sends.
    fn violation(&mut self, id: WorkerId, what: &'static str) {
        let worker = self.workers.get_mut(&id);
        let Some(worker) = worker.filter(|worker| !worker.is_violator) else {
            return;
        };
        worker.is_violator = true;
        worker.fatal = Some(Failure::WorkerLost);
        if matches!(worker.stage, Stage::Starting | Stage::Spare) {
            worker.stage = Stage::Discarded;
        }
        self.effects.push(Effect::Violation { worker: id, what });
    }

    /// Whether the report on a load may come now: once, from a worker that was given a function.
    pub(super) fn may_report_load(&mut self, id: WorkerId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else {
            return false;
        };
        let was_given = worker.binding().is_some();
        if was_given && !std::mem::replace(&mut worker.was_loaded, true) {
            return true;
        }
        self.violation(id, "the report on a load was sent twice or without a load");
        false
    }

    /// A worker that gets no more requests, and that was not told to finish, only takes a place: it
    /// ends.
    pub(super) fn unusable(&mut self, id: WorkerId, fault: WorkerFault) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if worker.binding().is_none() {
            return;
        }
        if fault == WorkerFault::NotAnswering {
            worker.fatal.get_or_insert(Failure::ExceededWall);
        }
        self.effects.push(Effect::Kill { child: id.0 });
    }

    /// Whether it is known why a worker is about to end.
    pub(crate) fn is_dying(&self, worker: WorkerId) -> bool {
        self.workers
            .get(&worker)
            .is_some_and(|worker| worker.fatal.is_some())
    }

    /// A worker says why it is about to end. The gateway gives it nothing more from now on, so one that stays all the same
    /// only takes a place.
    pub(super) fn last_words(&mut self, id: WorkerId, failure: Failure, now_ms: Millis) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.fatal = Some(failure);
            let end_ms = now_ms + FATAL_GRACE_MS;
            worker.deadline_ms = Some(worker.deadline_ms.map_or(end_ms, |at| at.min(end_ms)));
        }
    }

    /// Ends a worker. The gateway is told first, or it would give the worker requests until the end is noticed.
    pub(super) fn kill_worker(&mut self, worker: WorkerId) {
        if self.gateway.up
            && self
                .workers
                .get(&worker)
                .is_some_and(|one| one.release().is_some())
        {
            let retire = ToGateway::Retire { worker };
            self.effects.push(Effect::Gateway(retire));
        }
        self.effects.push(Effect::Kill { child: worker.0 });
    }

    /// A vault or gateway that was started again gets a channel to each living worker, bound to the
    /// function and release that the worker was given. So the end of either costs no worker: calls,
    /// or requests, that were under way are lost alone.
    pub(super) fn rewire_all(&mut self, which: Single) {
        let peer = match which {
            Single::Vault => Peer::Vault,
            Single::Gateway => Peer::Gateway,
        };
        for (id, worker) in &self.workers {
            // A retired worker takes no request any more; what it still does may call out.
            let is_of_use = peer == Peer::Vault || worker.release().is_some();
            if let Some((key, release)) = worker.binding().filter(|_| is_of_use) {
                self.effects.push(Effect::Rewire {
                    worker: *id,
                    peer,
                    key: key.clone(),
                    release,
                    concurrency: worker.concurrency,
                    wall_time_ms: worker.wall_time_ms,
                });
            }
        }
    }

    /// The requests that retired workers still had are lost with the gateway: nobody would report
    /// that they have finished.
    pub(super) fn stop_retired(&mut self, now_ms: Millis) {
        let retired: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| matches!(worker.stage, Stage::Retired(..)))
            .map(|(id, _)| *id)
            .collect();
        retired.into_iter().for_each(|id| self.stop(id, now_ms));
    }

    pub(super) fn worker_ended(
        &mut self,
        id: WorkerId,
        worker: Worker,
        failure: Failure,
        now_ms: Millis,
    ) {
        let failure = worker.fatal.unwrap_or(failure);
        match worker.stage {
            Stage::Starting => {
                self.spare_failures += 1;
                self.spare_again_ms = now_ms + backoff_ms(self.spare_failures);
            }
            Stage::Spare | Stage::Discarded => {}
            Stage::Loading(key, release) => {
                let purpose = if worker.is_trial {
                    Purpose::Trial
                } else {
                    Purpose::Callers
                };
                if failure == Failure::WorkerLost && self.gateway.up {
                    // It has begun nothing: its requests go to the worker that replaces it.
                    let dying = ToGateway::Dying {
                        worker: id,
                        begun: 0,
                    };
                    self.effects.push(Effect::Gateway(dying));
                }
                self.gone(id, failure);
                self.died_while_loading(&key, release, failure, purpose, now_ms);
            }
            Stage::Serving(key, release) => {
                self.gone(id, failure);
                let lived_ms = now_ms.saturating_sub(worker.since_ms);
                self.died_while_serving(&key, release, failure, lived_ms, now_ms);
            }
            Stage::Retired(..) | Stage::Adopted(_) => self.gone(id, failure),
        }
    }

    fn gone(&mut self, worker: WorkerId, failure: Failure) {
        self.effects
            .push(Effect::Gateway(ToGateway::Gone { worker, failure }));
        self.effects.push(Effect::VaultGone { worker });
    }

    /// Gives a worker nothing new; it is stopped when the gateway says that it has finished, and killed if that takes long.
    pub(super) fn retire(&mut self, id: WorkerId, now_ms: Millis) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let (Stage::Loading(key, release) | Stage::Serving(key, release)) = &worker.stage else {
            return;
        };
        let wall_ms = self.functions.get(key).map_or(0, |function| {
            Millis::from(function.plan.limits.wall_time_ms)
        });
        worker.stage = Stage::Retired(key.clone(), *release);
        worker.deadline_ms = Some(now_ms + wall_ms + Millis::from(STOP_GRACE_MS));
        if self.gateway.up {
            self.effects
                .push(Effect::Gateway(ToGateway::Retire { worker: id }));
        } else {
            // No gateway has requests in the worker, or could report that they have ended.
            self.stop(id, now_ms);
        }
    }

    pub(super) fn stop(&mut self, id: WorkerId, now_ms: Millis) {
        if let Some(worker) = self
            .workers
            .get_mut(&id)
            .filter(|worker| matches!(worker.stage, Stage::Retired(..)))
        {
            worker.deadline_ms = Some(now_ms + Millis::from(STOP_GRACE_MS));
            self.effects.push(Effect::Stop {
                worker: id,
                grace_ms: STOP_GRACE_MS / 2,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::Digest;

    use super::super::tests::{BOUNDS, function, key, plan, proven, served, started, up};
    use super::super::{BACKOFF_MAX_MS, Bounds, Input, MAX_STARTING, SILENCE_MS};
    use super::*;

    /// A node with a serving worker, and the child ids of its vault and gateway.
    fn serving() -> (Supervision, WorkerId, [u64; 2]) {
        let (mut state, worker) = up();
        state.handle(plan(1, vec![function("web", 5)]), 1);
        state.handle(Input::BundleHere([5; 32]), 1);
        let need = Input::Need {
            key: key("web"),
            waiting: 1,
        };
        assert_eq!(served(&state.handle(need, 1)), [(worker, [5; 32])]);
        state.handle(Input::Loaded { worker }, 2);
        let children = [&state.vault, &state.gateway].map(|program| program.child.unwrap());
        (state, worker, children)
    }

    fn rewired(effects: &[Effect]) -> Vec<(WorkerId, Peer, Digest)> {
        let rewired = effects.iter().filter_map(|effect| match effect {
            Effect::Rewire {
                worker,
                peer,
                release,
                ..
            } => Some((*worker, *peer, *release)),
            _ => None,
        });
        rewired.collect()
    }

    fn ends_a_worker(effect: &Effect) -> bool {
        matches!(
            effect,
            Effect::Kill { .. }
                | Effect::Stop { .. }
                | Effect::Violation { .. }
                | Effect::Gateway(ToGateway::Retire { .. })
        )
    }

    fn ended(child: u64) -> Input {
        Input::Ended {
            child,
            failure: Failure::WorkerLost,
        }
    }

    #[test]
    fn a_vault_that_dies_twenty_times_takes_no_worker_with_it() {
        let (mut state, worker, [mut vault, _]) = serving();
        let spare = *state.workers.keys().max().unwrap();
        state.handle(Input::Ready { worker: spare }, 3);
        let mut now_ms = 10;
        for death in 0..20 {
            let effects = state.handle(ended(vault), now_ms);
            assert!(!effects.iter().any(ends_a_worker), "{death}: {effects:?}");
            now_ms += BACKOFF_MAX_MS;
            let effects = state.handle(Input::Tick, now_ms);
            assert!(!effects.iter().any(ends_a_worker), "{death}: {effects:?}");
            vault = state.vault.child.unwrap();
            let effects = state.handle(Input::Up(Single::Vault), now_ms);
            let wired = [(worker, Peer::Vault, [5; 32])];
            assert_eq!(rewired(&effects), wired, "{death}");
        }
    }

    #[test]
    fn a_function_starts_while_the_vault_is_away_and_a_retired_worker_gets_the_next_vault_too() {
        let (mut state, first, [vault, _]) = serving();
        let spare = *state.workers.keys().max().unwrap();
        state.handle(Input::Ready { worker: spare }, 3);
        state.handle(ended(vault), 4);
        let need = Input::Need {
            key: key("web"),
            waiting: 9,
        };
        assert_eq!(served(&state.handle(need, 5)), [(spare, [5; 32])]);
        // Nothing lists the function any more: both workers finish, and may still call out.
        state.handle(plan(2, vec![]), 6);
        let effects = state.handle(Input::Up(Single::Vault), 7);
        let wired = [first, spare].map(|worker| (worker, Peer::Vault, [5; 32]));
        assert_eq!(rewired(&effects), wired);
    }

    #[test]
    fn a_node_that_drains_serves_until_its_gateway_is_gone_and_ends_its_workers_then() {
        let (mut state, first, [vault, gateway]) = serving();
        let starting = *state.workers.keys().max().unwrap();
        let effects = state.handle(Input::Drain, 3);
        let is_drain = |one: &Effect| matches!(one, Effect::Gateway(ToGateway::Drain { .. }));
        assert!(effects.iter().any(is_drain), "{effects:?}");
        assert!(!effects.iter().any(ends_a_worker), "{effects:?}");
        // A request of the last moment gets a worker.
        state.handle(Input::Ready { worker: starting }, 4);
        let need = Input::Need {
            key: key("web"),
            waiting: 9,
        };
        let effects = state.handle(need, 5);
        assert_eq!(served(&effects), [(starting, [5; 32])]);
        let spare = started(&effects)[0];
        let effects = state.handle(ended(gateway), 6);
        let ends: Vec<_> = effects.iter().filter(|one| ends_a_worker(one)).collect();
        let stop = |worker| Effect::Stop {
            worker,
            grace_ms: STOP_GRACE_MS / 2,
        };
        let kill = Effect::Kill { child: spare.0 };
        assert_eq!(ends, [&kill, &stop(first), &stop(starting)]);
        assert!(state.has_workers());
        // Nothing is started any more, whatever ends.
        let mut later = state.handle(ended(vault), 7);
        for worker in [first, starting, spare] {
            later.extend(state.handle(ended(worker.0), 8));
        }
        later.extend(state.handle(Input::Tick, 10 * BACKOFF_MAX_MS));
        let is_start =
            |one: &Effect| matches!(one, Effect::StartSingle { .. } | Effect::StartWorker { .. });
        assert!(!later.iter().any(is_start), "{later:?}");
        assert!(!state.has_workers());
    }

    #[test]
    fn a_node_that_drains_without_a_gateway_ends_its_workers_at_once() {
        let (mut state, first, [_, gateway]) = serving();
        state.handle(ended(gateway), 3);
        let effects = state.handle(Input::Drain, 3);
        let stops = |one: &&Effect| matches!(one, Effect::Stop { worker, .. } if *worker == first);
        assert_eq!(effects.iter().filter(stops).count(), 1, "{effects:?}");
    }

    #[test]
    fn a_gateway_that_dies_takes_its_requests_alone() {
        let (mut state, first, [_, gateway]) = serving();
        let spare = *state.workers.keys().max().unwrap();
        state.handle(Input::Ready { worker: spare }, 3);
        let need = Input::Need {
            key: key("web"),
            waiting: 9,
        };
        assert_eq!(served(&state.handle(need, 4)), [(spare, [5; 32])]);
        state.retire(first, 5);
        state.effects.clear();
        let effects = state.handle(ended(gateway), 6);
        let stops: Vec<_> = effects.iter().filter(|one| ends_a_worker(one)).collect();
        assert!(
            matches!(stops[..], [Effect::Stop { worker, .. }] if *worker == first),
            "only the one without requests now: {effects:?}"
        );
        let effects = state.handle(Input::Up(Single::Gateway), 1000);
        // The route first: a channel of a release that no route names would wait for one.
        let kinds: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Gateway(ToGateway::Route(_)) => Some("route"),
                Effect::Rewire { .. } => Some("channel"),
                _ => None,
            })
            .collect();
        assert_eq!(kinds, ["route", "channel"]);
        assert_eq!(rewired(&effects), [(spare, Peer::Gateway, [5; 32])]);
        // Retired while no gateway is there, a worker has nothing to finish.
        let gateway = state.gateway.child.unwrap();
        state.handle(ended(gateway), 1001);
        let effects = state.handle(plan(2, vec![]), 1002);
        assert!(
            effects
                .iter()
                .any(|one| matches!(one, Effect::Stop { worker, .. } if *worker == spare)),
            "{effects:?}"
        );
    }

    #[test]
    fn a_worker_that_the_gateway_gave_up_is_ended() {
        for (fault, failure) in [
            (WorkerFault::ChannelClosed, Failure::WorkerLost),
            (WorkerFault::NotAnswering, Failure::ExceededWall),
        ] {
            let (mut state, worker, _) = serving();
            let effects = state.handle(Input::Unusable { worker, fault }, 3);
            assert!(effects.contains(&Effect::Kill { child: worker.0 }));
            let effects = state.handle(ended(worker.0), 4);
            let gone = Effect::Gateway(ToGateway::Gone { worker, failure });
            assert!(effects.contains(&gone), "{effects:?}");
            // A report that comes after the end names nobody.
            let effects = state.handle(Input::Unusable { worker, fault }, 5);
            assert!(!effects.iter().any(ends_a_worker), "{effects:?}");
        }
    }

    #[test]
    fn a_worker_that_stays_after_its_last_words_is_killed_and_gets_no_requests_before() {
        let (mut state, worker, _) = serving();
        let failure = Failure::ExceededCpu;
        assert!(!state.is_dying(worker));
        state.handle(Input::Fatal { worker, failure }, 10);
        assert!(state.is_dying(worker));
        let effects = state.handle(Input::Tick, 9 + FATAL_GRACE_MS);
        assert!(!effects.iter().any(ends_a_worker), "{effects:?}");
        let effects = state.handle(Input::Tick, 10 + FATAL_GRACE_MS);
        let retire = Effect::Gateway(ToGateway::Retire { worker });
        let kill = Effect::Kill { child: worker.0 };
        assert!(effects.starts_with(&[retire, kill]), "{effects:?}");
    }

    #[test]
    fn a_worker_that_reports_twice_what_is_reported_once_is_ended() {
        let violations = |effects: &[Effect]| {
            let is_violation = |one: &&Effect| matches!(one, Effect::Violation { .. });
            effects.iter().filter(is_violation).count()
        };
        // As a spare, which then gets no function; and only once, however often it goes on.
        let (mut state, spare) = up();
        let ready = || Input::Ready { worker: spare };
        assert_eq!(violations(&state.handle(ready(), 1)), 1);
        assert_eq!(violations(&state.handle(ready(), 1)), 0);
        state.handle(plan(1, vec![function("web", 5)]), 1);
        state.handle(Input::BundleHere([5; 32]), 1);
        let need = Input::Need {
            key: key("web"),
            waiting: 1,
        };
        assert_eq!(served(&state.handle(need, 1)), []);
        // With a function.
        let failed = |worker| Input::LoadFailed {
            worker,
            message: "no".into(),
        };
        for again in [
            |worker| Input::Ready { worker },
            |worker| Input::Loaded { worker },
            failed,
        ] {
            let (mut state, worker, _) = serving();
            assert_eq!(violations(&state.handle(again(worker), 3)), 1);
        }
        // A report without a load.
        let (mut state, worker) = up();
        assert_eq!(violations(&state.handle(Input::Loaded { worker }, 1)), 1);
        // A worker that is retired while it loads reports once all the same.
        let (mut state, worker) = up();
        state.handle(plan(1, vec![function("web", 5)]), 1);
        state.handle(Input::BundleHere([5; 32]), 1);
        let need = Input::Need {
            key: key("web"),
            waiting: 1,
        };
        state.handle(need, 1);
        state.handle(plan(2, vec![]), 2);
        assert_eq!(violations(&state.handle(Input::Loaded { worker }, 3)), 0);
    }

    #[test]
    fn a_spare_that_is_ready_waits_for_as_long_as_nobody_needs_it() {
        let (mut state, _) = up();
        for at_ms in (0..=4 * SILENCE_MS).step_by(1000) {
            let effects = state.handle(Input::Tick, at_ms);
            assert!(!effects.iter().any(ends_a_worker), "{at_ms}: {effects:?}");
        }
    }

    #[test]
    fn a_function_whose_workers_end_again_and_again_is_started_ever_more_slowly() {
        let (mut state, _) = up();
        state.handle(plan(1, vec![function("web", 5), function("good", 6)]), 1);
        state.handle(Input::BundleHere([5; 32]), 1);
        state.handle(Input::BundleHere([6; 32]), 1);
        let (mut now_ms, mut starts) = (10, 0);
        let (mut refused, mut good) = (None, 0);
        // A caller sends it a request that ends the worker whenever there is one, for two minutes.
        while now_ms < 120_000 {
            now_ms += 50;
            for name in ["web", "good"] {
                if good > 0 && name == "good" {
                    continue;
                }
                let need = Input::Need {
                    key: key(name),
                    waiting: 1,
                };
                let mut effects = state.handle(need, now_ms);
                let mut at = 0;
                while at < effects.len() {
                    let more = match &effects[at] {
                        Effect::StartWorker { worker, .. } => {
                            state.handle(Input::Ready { worker: *worker }, now_ms)
                        }
                        Effect::Serve { worker, key, .. } => {
                            let (worker, is_web) = (*worker, key.function == "web");
                            let mut more = state.handle(Input::Loaded { worker }, now_ms);
                            if is_web {
                                starts += 1;
                                let failure = Failure::ExceededMemory;
                                more.extend(state.handle(Input::Fatal { worker, failure }, now_ms));
                                more.extend(state.handle(ended(worker.0), now_ms + 1));
                            } else {
                                good += 1;
                            }
                            more
                        }
                        Effect::Gateway(ToGateway::Refuse {
                            failure, message, ..
                        }) => {
                            refused = Some((*failure, message.clone()));
                            Vec::new()
                        }
                        _ => Vec::new(),
                    };
                    effects.extend(more);
                    at += 1;
                }
            }
        }
        let (failure, message) = refused.unwrap();
        assert_eq!(failure, Failure::ExceededMemory, "{message}");
        assert!(message.contains("in a row"), "{message}");
        assert!((10..=25).contains(&starts), "{starts} of 2400");
        assert!(good > 0, "another function of the tenant starts as ever");
        // Another release begins anew.
        state.handle(plan(2, vec![function("web", 7)]), now_ms);
        state.handle(Input::BundleHere([7; 32]), now_ms);
        let need = Input::Need {
            key: key("web"),
            waiting: 9,
        };
        let effects = state.handle(need, now_ms);
        let is_refusal = |one: &Effect| matches!(one, Effect::Gateway(ToGateway::Refuse { .. }));
        assert!(!effects.iter().any(is_refusal), "{effects:?}");
    }

    #[test]
    fn starts_at_a_time_are_bounded() {
        let mut state = proven(Bounds {
            spares: 100,
            max_workers: 200,
            ..BOUNDS
        });
        let first = started(&state.handle(Input::Tick, 0));
        assert_eq!(first.len(), MAX_STARTING);
        let effects = state.handle(Input::Ready { worker: first[0] }, 1);
        assert_eq!(started(&effects).len(), 1);
    }
}
