//! Trials by example.

use std::convert::Infallible;

use casemate_wire::control::WorkerId;
use casemate_wire::control::gateway::ToGateway;

use super::super::drive::{Host, drive};
use super::super::tests::{
    BOUNDS, fallback, function, key, plan, plan_of, proven, served, started, up_with,
};
use super::super::{Bounds, Input, Single};
use casemate_push::is_not_loaded;

use super::*;

const FIRST: Digest = [1; 32];
const SECOND: Digest = [2; 32];

/// A node whose programs do at once what they are told; a load ends as [`Node::loads`] has it for the release.
struct Node {
    state: Supervision,
    now_ms: Millis,
    loads: fn(Digest) -> Result<(), &'static str>,
    /// Workers with the release that each was given.
    given: Vec<(WorkerId, Digest)>,
    effects: Vec<Effect>,
}

impl Host for Node {
    type Error = Infallible;

    fn state(&mut self) -> &mut Supervision {
        &mut self.state
    }

    fn now_ms(&self) -> Millis {
        self.now_ms
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Option<Input>, Infallible> {
        let follows = match &effect {
            Effect::StartWorker { worker, .. } => Some(Input::Ready { worker: *worker }),
            Effect::Serve { worker, plan, .. } => {
                let (worker, release) = (*worker, plan.release);
                self.given.push((worker, release));
                Some(match (self.loads)(release) {
                    Ok(()) => Input::Loaded { worker },
                    Err(stack) => Input::LoadFailed {
                        worker,
                        message: stack.into(),
                    },
                })
            }
            Effect::Fetch { bundle, .. } => Some(Input::BundleHere(*bundle)),
            _ => None,
        };
        self.effects.push(effect);
        Ok(follows)
    }
}

impl Node {
    fn new(loads: fn(Digest) -> Result<(), &'static str>) -> Self {
        Self::with(Supervision::new(BOUNDS), loads)
    }

    fn with(state: Supervision, loads: fn(Digest) -> Result<(), &'static str>) -> Self {
        let (now_ms, given, effects) = Default::default();
        let mut node = Self {
            state,
            now_ms,
            loads,
            given,
            effects,
        };
        for input in [
            Input::Up(Single::Vault),
            Input::Up(Single::Gateway),
            Input::Told,
        ] {
            node.does(input);
        }
        node
    }

    fn does(&mut self, input: Input) {
        self.now_ms += 1;
        let Ok(()) = drive(self, input);
    }

    /// Deploys a release of a function on top of those before it.
    fn deploys(&mut self, version: u64, releases: &[u8]) {
        let mut functions = vec![function("web", releases[0])];
        functions.extend(
            releases[1..]
                .iter()
                .map(|release| fallback(function("web", *release))),
        );
        self.does(plan(version, functions));
    }

    /// Effects since the last time.
    fn take(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    fn needs(&mut self, waiting: u32) -> Vec<Effect> {
        self.effects.clear();
        self.does(Input::Need {
            key: key("web"),
            waiting,
        });
        self.take()
    }
}

fn stored(effects: &[Effect]) -> Vec<u64> {
    let stored = effects.iter().filter_map(|effect| match effect {
        Effect::Stored { version, .. } => Some(*version),
        _ => None,
    });
    stored.collect()
}

fn not_stored(effects: &[Effect]) -> Vec<(u64, &'static str, String)> {
    let not_stored = effects.iter().filter_map(|effect| match effect {
        Effect::NotStored(said) => Some((said.version, said.code, said.message.clone())),
        _ => None,
    });
    not_stored.collect()
}

fn routed(effects: &[Effect]) -> Vec<Digest> {
    let routed = effects.iter().filter_map(|effect| match effect {
        Effect::Gateway(ToGateway::Route(route)) => Some(route.release),
        _ => None,
    });
    routed.collect()
}

fn refused(effects: &[Effect]) -> usize {
    let is_refusal = |effect: &&Effect| matches!(effect, Effect::Gateway(ToGateway::Refuse { .. }));
    effects.iter().filter(is_refusal).count()
}

fn second_fails(release: Digest) -> Result<(), &'static str> {
    if release == SECOND {
        return Err("Error: no\n    at main.js:3:8");
    }
    Ok(())
}

#[test]
fn a_release_counts_as_running_when_it_has_loaded_and_not_before() {
    let (mut state, spare) = up_with(Supervision::new(BOUNDS));
    state.handle(plan(1, vec![function("web", 1)]), 1);
    let effects = state.handle(Input::BundleHere(FIRST), 1);
    assert_eq!((stored(&effects), routed(&effects)), (vec![], vec![FIRST]));
    assert_eq!(served(&effects), [(spare, FIRST)]);
    assert!(!state.is_stored(&key("web").tenant, 1));
    let effects = state.handle(Input::Loaded { worker: spare }, 2);
    assert_eq!(stored(&effects), [1]);
    assert!(effects.contains(&Effect::Loads { release: FIRST }));
    assert!(state.is_stored(&key("web").tenant, 1));
}

#[test]
fn a_release_that_does_not_load_leaves_the_one_before_it_serving() {
    let mut node = Node::new(second_fails);
    node.deploys(1, &[1]);
    assert_eq!(stored(&node.take()), [1]);
    node.deploys(2, &[2, 1]);
    let effects = node.take();
    let said = not_stored(&effects);
    assert!(
        matches!(&said[..], [(2, LOAD_FAILED, text)] if text.contains("main.js:3:8") && text.contains("`web`")),
        "{said:?}"
    );
    assert_eq!(
        (stored(&effects), routed(&effects)),
        (vec![], vec![]),
        "nobody is led to it"
    );
    assert_eq!(refused(&effects), 0, "callers of the earlier release go on");
    assert!(node.state.needed_bundles().contains(&FIRST));
    // A node that connects anew reports it again, and its callers are served by what ran before.
    assert_eq!(node.state.not_stored().len(), 1);
    let effects = node.needs(9);
    assert_eq!(served(&effects)[0].1, FIRST);
    assert_eq!(refused(&effects), 0);
    // It is tried once. What is deployed next falls back to the one that loads.
    (0..100).for_each(|_| node.does(Input::Tick));
    assert_eq!(
        node.given
            .iter()
            .filter(|(_, release)| *release == SECOND)
            .count(),
        1
    );
    node.effects.clear();
    node.deploys(3, &[3, 2, 1]);
    let effects = node.take();
    assert_eq!(stored(&effects), [3]);
    assert_eq!(routed(&effects), [[3; 32]]);
    assert_eq!(
        (not_stored(&effects), node.state.not_stored().len()),
        (vec![], 0)
    );
}

#[test]
fn a_first_release_that_does_not_load_is_reported_and_its_callers_read_why() {
    let mut node = Node::new(second_fails);
    node.deploys(1, &[2]);
    let effects = node.take();
    assert_eq!((stored(&effects), not_stored(&effects).len()), (vec![], 1));
    assert_eq!(refused(&node.needs(1)), 1);
    // Another function of the tenant is deployed: what failed before is no reason to refuse that.
    let functions = vec![function("api", 5), function("web", 2)];
    node.does(plan(2, functions));
    let effects = node.take();
    let said = not_stored(&effects);
    assert_eq!(stored(&effects), [2]);
    assert!(
        matches!(&said[..], [(2, LOAD_FAILED_EARLIER, text)] if is_not_loaded(LOAD_FAILED_EARLIER, text, "web")),
        "{said:?}"
    );
    let (said, stored) = (
        |effect: &Effect| matches!(effect, Effect::NotStored(_)),
        |effect: &Effect| matches!(effect, Effect::Stored { .. }),
    );
    assert!(
        effects.iter().position(said) < effects.iter().position(stored),
        "who waits for the second word knows the first"
    );
    assert_eq!(
        node.state.not_stored().len(),
        1,
        "a control plane that connects anew reads it too"
    );
}

#[test]
fn a_release_that_did_not_load_is_reported_with_every_manifest_that_wants_it_still() {
    let mut node = Node::new(second_fails);
    node.deploys(1, &[1]);
    node.deploys(2, &[2, 1]);
    node.effects.clear();
    // Deployed once more.
    node.deploys(3, &[2, 1]);
    let said = not_stored(&node.take());
    assert!(
        matches!(&said[..], [(3, LOAD_FAILED_EARLIER, _)]),
        "{said:?}"
    );
    node.deploys(4, &[1, 2]);
    node.effects.clear();
    // Gone back to: it is tried once more, and that is this manifest's failure.
    node.deploys(5, &[2, 1]);
    let effects = node.take();
    let said = not_stored(&effects);
    assert!(matches!(&said[..], [(5, LOAD_FAILED, _)]), "{said:?}");
    assert_eq!(stored(&effects), [0; 0]);
    let tried = node.given.iter().filter(|(_, release)| *release == SECOND);
    assert_eq!(tried.count(), 2);
    assert_eq!(served(&node.needs(9))[0].1, FIRST);
}

#[test]
fn what_loads_after_all_is_said_once_more() {
    let mut state = Supervision::new(BOUNDS);
    let (web, release) = (key("web"), SECOND);
    state.handle(Input::Up(Single::Vault), 1);
    state.handle(plan(1, vec![function("web", 2)]), 1);
    state.handle(Input::BundleHere(SECOND), 1);
    let lost = Failure::WorkerLost;
    state.disprove(&web, release, lost, "lost", 2);
    let effects = state.handle(Input::Tick, 2);
    assert!(matches!(&not_stored(&effects)[..], [(1, LOAD_FAILED, _)]));
    let effects = state.handle(plan(2, vec![function("api", 1), function("web", 2)]), 3);
    assert_eq!(
        not_stored(&effects).len(),
        0,
        "the other function has not loaded yet"
    );
    state.handle(Input::BundleHere(FIRST), 3);
    state.prove(&key("api"), FIRST);
    let effects = state.handle(Input::Tick, 4);
    assert_eq!((stored(&effects), not_stored(&effects).len()), (vec![2], 1));
    state.prove(&web, release);
    let effects = state.handle(Input::Tick, 5);
    assert_eq!((stored(&effects), not_stored(&effects)), (vec![2], vec![]));
}

#[test]
fn what_ran_before_a_restart_is_not_tried_again_and_the_rest_a_few_at_a_time() {
    let mut state = Supervision::new(BOUNDS);
    state.loaded_before = (0..90).map(|release| [release; 32]).collect();
    let (mut state, _) = up_with(state);
    // A hundred functions of ten tenants, of which ten have not loaded here yet.
    let mut effects = Vec::new();
    for tenant in 0..10 {
        let functions = (0..10).map(|n| function(&format!("f{n}"), tenant * 10 + n));
        effects.extend(state.handle(plan_of([tenant + 1; 32], functions.collect()), 1));
        for release in tenant * 10..tenant * 10 + 10 {
            effects.extend(state.handle(Input::BundleHere([release; 32]), 1));
        }
    }
    let spares: Vec<WorkerId> = started(&effects);
    for worker in spares {
        effects.extend(state.handle(Input::Ready { worker }, 2));
    }
    effects.extend(state.handle(Input::Tick, 3));
    let tried = served(&effects);
    assert_eq!(tried.len(), 1, "one of a tenant at a time: {tried:?}");
    assert!(tried[0].1 >= [90; 32]);
    assert_eq!(stored(&effects).len(), 9);
}

#[test]
fn one_tenant_has_one_trial_under_way_and_all_have_two() {
    let mut state = Supervision::new(Bounds {
        spares: 6,
        ..BOUNDS
    });
    state = up_with(state).0;
    let mut effects = Vec::new();
    for tenant in 1..=3 {
        let functions = (0..3).map(|n| function(&format!("f{n}"), tenant * 10 + n));
        effects.extend(state.handle(plan_of([tenant; 32], functions.collect()), 1));
        for release in tenant * 10..tenant * 10 + 3 {
            effects.extend(state.handle(Input::BundleHere([release; 32]), 1));
        }
    }
    for worker in state.workers.keys().copied().collect::<Vec<_>>() {
        effects.extend(state.handle(Input::Ready { worker }, 2));
    }
    let tried: Vec<u8> = served(&effects)
        .iter()
        .map(|(_, release)| release[0])
        .collect();
    assert_eq!(tried, [10, 20]);
    // When one has ended, the next is of the tenant that has had none.
    let (worker, _) = served(&effects)[0];
    let effects = state.handle(Input::Loaded { worker }, 3);
    assert_eq!(served(&effects)[0].1, [30; 32]);
}

#[test]
fn a_node_without_a_place_reports_that_and_tries_as_soon_as_there_is_one() {
    let mut state = Supervision::new(BOUNDS);
    state.bounds.max_workers = 0;
    let mut node = Node::with(state, second_fails);
    node.deploys(1, &[1]);
    for _ in 0..2 * REPORTED_AFTER_MS / 250 {
        node.now_ms += 250;
        node.does(Input::Tick);
    }
    let effects = node.take();
    let said = not_stored(&effects);
    assert!(matches!(&said[..], [(1, NO_PLACE, _)]), "once: {said:?}");
    assert!(
        effects.iter().any(
            |effect| matches!(effect, Effect::Warn { message, .. } if message.contains("place"))
        )
    );
    assert_eq!(node.state.not_stored().len(), 1);
    node.state.bounds.max_workers = 1;
    node.does(Input::Tick);
    assert_eq!(stored(&node.take()), [1]);
    assert_eq!(node.state.not_stored(), []);
}

#[test]
fn a_spare_that_dies_while_it_is_handed_out_is_replaced() {
    let lost = |worker: WorkerId| Input::Ended {
        child: worker.0,
        failure: Failure::WorkerLost,
    };
    // For a caller, of a release that has loaded before, and for a trial.
    for state in [proven(BOUNDS), Supervision::new(BOUNDS)] {
        let (mut state, first) = up_with(state);
        state.handle(plan(1, vec![function("web", 1)]), 1);
        let mut effects = state.handle(Input::BundleHere(FIRST), 1);
        effects.extend(state.handle(
            Input::Need {
                key: key("web"),
                waiting: 1,
            },
            1,
        ));
        assert_eq!(served(&effects), [(first, FIRST)]);
        let mut spare = started(&effects)[0];
        effects = state.handle(Input::Ready { worker: spare }, 2);
        effects.extend(state.handle(lost(first), 3));
        assert_eq!(
            served(&effects),
            [(spare, FIRST)],
            "another spare is taken at once"
        );
        let sent_back = |effect: &&Effect| matches!(effect, Effect::Gateway(ToGateway::Dying { worker, begun: 0 }) if *worker == first);
        let sent_back = effects.iter().filter(sent_back).count();
        assert_eq!(sent_back, 1, "its requests wait for that one");
        assert_eq!((refused(&effects), not_stored(&effects)), (0, vec![]));
        // One that kills each of its workers is found out.
        let mut deaths = 1;
        while refused(&effects) == 0 {
            deaths += 1;
            let next = started(&effects)[0];
            effects = state.handle(Input::Ready { worker: next }, 4);
            effects.extend(state.handle(lost(spare), 4));
            spare = next;
        }
        assert_eq!(deaths, 3);
        let is_lost = |effect: &Effect| {
            matches!(
                effect,
                Effect::Gateway(ToGateway::Refuse {
                    failure: Failure::WorkerLost,
                    ..
                })
            )
        };
        assert!(effects.iter().any(is_lost), "{effects:?}");
    }
}

#[test]
fn a_bundle_that_cannot_be_read_is_fetched_and_the_function_is_not_blamed() {
    let (mut state, worker) = up_with(Supervision::new(BOUNDS));
    state.handle(plan(1, vec![function("web", 1)]), 1);
    let effects = state.handle(Input::BundleHere(FIRST), 1);
    let spare = started(&effects)[0];
    state.handle(Input::Ready { worker: spare }, 2);
    let effects = state.handle(
        Input::BundleLost {
            bundle: FIRST,
            worker,
        },
        3,
    );
    assert_eq!(
        effects,
        [
            Effect::Fetch {
                bundle: FIRST,
                bytes: 1
            },
            Effect::Kill { child: worker.0 }
        ]
    );
    let effects = state.handle(
        Input::Ended {
            child: worker.0,
            failure: Failure::WorkerLost,
        },
        4,
    );
    assert_eq!((refused(&effects), served(&effects)), (0, vec![]));
    assert_eq!(
        served(&state.handle(Input::BundleHere(FIRST), 5)),
        [(spare, FIRST)]
    );
}
