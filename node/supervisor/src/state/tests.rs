//! The state machine alone: by example, and under seeded chance.

use super::*;
use casemate_wire::control::Limits;
use casemate_wire::control::gateway::Perimeter;

pub(super) const BOUNDS: Bounds = Bounds {
    spares: 1,
    max_workers: 6,
    memory_mib: u32::MAX,
    overcommit: 1,
    idle_ms: 1000,
    room: Room {
        all_bytes: 1 << 40,
        tenant_bytes: 1 << 38,
    },
};
const TENANT: Digest = [1; 32];

pub(super) fn function(name: &str, release: u8) -> FunctionPlan {
    FunctionPlan {
        function: name.into(),
        is_fallback: false,
        release: [release; 32],
        bundle: [release; 32],
        bundle_bytes: 1,
        entry: "main.js".into(),
        hosts: vec![format!("{name}.test")],
        lost_hosts: vec![],
        perimeter: Perimeter {
            methods: vec![],
            paths: vec![],
            max_body_bytes: 1,
        },
        limits: Limits {
            cpu_time_ms: 1,
            wall_time_ms: 1,
            heap_mib: 64,
            subrequests: 1,
            concurrency: 2,
        },
        vars: vec![],
        bindings: vec![],
        dynamic_code: false,
    }
}

/// Numbers by chance, below so many, that are the same for the same seed.
pub(super) fn dice(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |sides| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    }
}

/// What a function may fall back to.
pub(super) fn fallback(function: FunctionPlan) -> FunctionPlan {
    FunctionPlan {
        is_fallback: true,
        ..function
    }
}

pub(super) fn plan(version: u64, functions: Vec<FunctionPlan>) -> Input {
    let mut parts = parts(version, functions);
    assert_eq!(parts.len(), 1);
    Input::Plan(Box::new(parts.remove(0)))
}

/// What a tenant runs, in one part.
pub(super) fn plan_of(tenant: Digest, functions: Vec<FunctionPlan>) -> Input {
    plan_with_memory(tenant, u32::MAX, functions)
}

/// The same for a tenant with a ceiling on its memory.
pub(super) fn plan_with_memory(
    tenant: Digest,
    memory_mib: u32,
    functions: Vec<FunctionPlan>,
) -> Input {
    let plan = Plan {
        tenant,
        name: "shop".into(),
        memory_mib,
        manifest_version: 1,
        manifest: [0; 32],
        functions,
    };
    Input::Plan(Box::new(Part::cut(plan).remove(0)))
}

fn parts(version: u64, functions: Vec<FunctionPlan>) -> Vec<Part<Plan>> {
    Part::cut(Plan {
        tenant: TENANT,
        name: "shop".into(),
        memory_mib: u32::MAX,
        manifest_version: version,
        manifest: [0; 32],
        functions,
    })
}

/// Functions that are too large for one message.
fn many(release: u8) -> Vec<FunctionPlan> {
    let large = |n: usize| FunctionPlan {
        vars: vec![("TEXT".into(), "x".repeat(32 * 1024))],
        ..function(&format!("f{n}"), release)
    };
    (0..MAX_FUNCTIONS).map(large).collect()
}

pub(super) fn key(name: &str) -> FunctionKey {
    FunctionKey {
        tenant: TENANT,
        function: name.into(),
    }
}

/// A node on which every release of these tests has loaded before.
pub(super) fn proven(bounds: Bounds) -> Supervision {
    let mut state = Supervision::new(bounds);
    state.loaded_before = (0..=u8::MAX).map(|release| [release; 32]).collect();
    state
}

/// A node with vault and gateway up and one spare, on which every release has loaded before.
pub(super) fn up() -> (Supervision, WorkerId) {
    up_with(proven(BOUNDS))
}

/// The same with this state.
pub(super) fn up_with(mut state: Supervision) -> (Supervision, WorkerId) {
    let effects = state.handle(Input::Tick, 0);
    let spare = started(&effects)[0];
    state.handle(Input::Up(Single::Vault), 0);
    state.handle(Input::Up(Single::Gateway), 0);
    state.handle(Input::Ready { worker: spare }, 0);
    state.handle(Input::Told, 0);
    (state, spare)
}

pub(super) fn started(effects: &[Effect]) -> Vec<WorkerId> {
    effects
        .iter()
        .filter_map(|effect| {
            if let Effect::StartWorker { worker, .. } = effect {
                Some(*worker)
            } else {
                None
            }
        })
        .collect()
}

pub(super) fn served(effects: &[Effect]) -> Vec<(WorkerId, Digest)> {
    effects
        .iter()
        .filter_map(|effect| {
            if let Effect::Serve { worker, plan, .. } = effect {
                Some((*worker, plan.release))
            } else {
                None
            }
        })
        .collect()
}

#[test]
fn a_worker_that_does_not_keep_to_its_cpu_time_is_ended_from_outside() {
    let (mut state, worker) = up();
    state.handle(plan(1, vec![function("a", 1)]), 1);
    state.handle(Input::BundleHere([1; 32]), 2);
    let used = |state: &mut Supervision, used_ms| {
        let effects = state.handle(Input::CpuTime { worker, used_ms }, 3);
        effects.contains(&Effect::Kill { child: worker.0 })
    };
    assert!(
        !used(&mut state, 1_000_000),
        "a spare has run none of anybody's code"
    );
    let need = Input::Need {
        key: key("a"),
        waiting: 1,
    };
    assert_eq!(served(&state.handle(need, 3)), [(worker, [1; 32])]);
    state.handle(Input::Loaded { worker }, 4);
    state.handle(
        Input::Given {
            worker,
            requests: 1,
        },
        5,
    );
    assert!(!used(&mut state, 1_000_000) && !used(&mut state, 1_010_000));
    assert!(used(&mut state, 1_100_000));
    assert!(!used(&mut state, 1_200_000), "once");
    let failure = Failure::WorkerLost;
    let ended = state.handle(
        Input::Ended {
            child: worker.0,
            failure,
        },
        6,
    );
    let told = |effect: &Effect| matches!(effect, Effect::Gateway(ToGateway::Gone { failure, .. }) if *failure == Failure::ExceededCpu);
    assert!(ended.iter().any(told), "{ended:?}");
}

fn routed(effects: &[Effect]) -> Vec<(Digest, Vec<String>)> {
    let route = |effect: &Effect| match effect {
        Effect::Gateway(ToGateway::Route(route)) => Some((route.release, route.hosts.clone())),
        _ => None,
    };
    effects.iter().filter_map(route).collect()
}

#[test]
fn a_function_is_routed_when_its_bundle_is_here_and_served_when_it_is_needed() {
    let (mut state, spare) = up();
    let effects = state.handle(plan(1, vec![function("web", 5)]), 1);
    assert!(effects.contains(&Effect::Fetch {
        bundle: [5; 32],
        bytes: 1
    }));
    assert!(routed(&effects).is_empty());
    assert_eq!(
        routed(&state.handle(Input::BundleHere([5; 32]), 2)),
        [([5; 32], vec!["web.test".to_owned()])]
    );
    let effects = state.handle(
        Input::Need {
            key: key("web"),
            waiting: 1,
        },
        3,
    );
    assert_eq!(served(&effects), [(spare, [5; 32])]);
    assert_eq!(started(&effects).len(), 1, "a new spare takes its place");
    assert!(
        served(&state.handle(
            Input::Need {
                key: key("web"),
                waiting: 2
            },
            4
        ))
        .is_empty(),
        "the one that is coming takes two"
    );
}

#[test]
fn a_spare_is_narrowed_to_its_function_before_it_is_given_to_it() {
    let (mut state, first) = up();
    let mut large = function("large", 6);
    large.limits.heap_mib = 512;
    state.handle(plan(1, vec![function("web", 5), large]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    state.handle(Input::BundleHere([6; 32]), 1);
    let mut need = |name, waiting, spare| {
        if spare != first {
            state.handle(Input::Ready { worker: spare }, 2);
        }
        let key = key(name);
        let effects = state.handle(Input::Need { key, waiting }, 2);
        let limits: Vec<_> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Assign {
                    worker, memory_mib, ..
                } => Some((*worker, memory_mib.get())),
                Effect::Serve { worker, .. } => Some((*worker, 0)),
                _ => None,
            })
            .collect();
        (limits, started(&effects)[0])
    };
    // The first spare is older than any function, and no larger than this one needs.
    let (limits, second) = need("web", 1, first);
    let small = WORKER_OVERHEAD_MIB + 64;
    assert_eq!(limits, [(first, small), (first, 0)]);
    let (limits, third) = need("web", 3, second);
    assert_eq!(limits, [(second, small), (second, 0)]);
    let (limits, _) = need("large", 1, third);
    let large = WORKER_OVERHEAD_MIB + 512;
    assert_eq!(limits, [(third, large), (third, 0)]);
}

#[test]
fn a_new_release_is_made_warm_before_callers_are_led_to_it() {
    let (mut state, first) = up();
    state.handle(plan(1, vec![function("web", 5)]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    let spare = started(&state.handle(
        Input::Need {
            key: key("web"),
            waiting: 1,
        },
        1,
    ))[0];
    state.handle(Input::Loaded { worker: first }, 2);
    state.handle(Input::Ready { worker: spare }, 2);
    let functions = vec![function("web", 6), fallback(function("web", 5))];
    state.handle(plan(2, functions), 3);
    let effects = state.handle(Input::BundleHere([6; 32]), 4);
    assert_eq!(served(&effects), [(spare, [6; 32])]);
    assert!(routed(&effects).is_empty(), "not yet");
    let effects = state.handle(Input::Loaded { worker: spare }, 5);
    assert_eq!(routed(&effects)[0].0, [6; 32]);
    assert!(effects.contains(&Effect::Gateway(ToGateway::Retire { worker: first })));
    let effects = state.handle(Input::Drained { worker: first }, 6);
    assert!(matches!(effects[0], Effect::Stop { worker, .. } if worker == first));
    let effects = state.handle(Input::Tick, 6 + u64::from(STOP_GRACE_MS));
    assert!(
        effects.contains(&Effect::Kill { child: first.0 }),
        "one that does not stop is killed"
    );
}

#[test]
fn a_release_that_does_not_load_is_refused_and_not_hammered() {
    let (mut state, spare) = up();
    state.handle(plan(1, vec![function("web", 5)]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    state.handle(
        Input::Need {
            key: key("web"),
            waiting: 1,
        },
        1,
    );
    let effects = state.handle(
        Input::LoadFailed {
            worker: spare,
            message: "SyntaxError".into(),
        },
        2,
    );
    assert!(
        matches!(&effects[0], Effect::Gateway(ToGateway::Refuse { message, .. }) if message == "SyntaxError")
    );
    state.handle(
        Input::Ended {
            child: spare.0,
            failure: Failure::WorkerLost,
        },
        3,
    );
    let effects = state.handle(
        Input::Need {
            key: key("web"),
            waiting: 1,
        },
        4,
    );
    assert!(
        matches!(
            &effects[0],
            Effect::Gateway(ToGateway::Refuse {
                failure: Failure::LoadFailed,
                ..
            })
        ),
        "{effects:?}"
    );
}

#[test]
fn what_no_manifest_lists_is_routed_to_nobody() {
    let (mut state, _) = up();
    state.handle(plan(1, vec![function("web", 5)]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    let effects = state.handle(plan(2, vec![]), 2);
    assert_eq!(routed(&effects), [([5; 32], vec![])]);
    assert!(effects.contains(&Effect::Keep));
}

#[test]
fn half_a_plan_changes_nothing_and_a_whole_one_everything() {
    let (mut state, _) = up();
    state.handle(plan(1, vec![function("web", 5)]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    let before = state.describe();
    let mut parts = parts(2, many(6));
    assert!(parts.len() > 100, "{}", parts.len());
    let last = parts.pop().unwrap();
    for part in parts.clone() {
        assert_eq!(state.handle(Input::Plan(Box::new(part)), 2), []);
    }
    assert_eq!(state.describe(), before, "the last part has not come");

    let effects = state.handle(Input::Plan(Box::new(last.clone())), 3);
    assert_eq!(routed(&effects), [([5; 32], vec![])], "web is withdrawn");
    assert_eq!(state.functions.len(), MAX_FUNCTIONS);

    // Again, with one part lost: the vault is started again, and what ran runs.
    let before = state.describe();
    parts.remove(7);
    let mut effects = Vec::new();
    for part in parts.into_iter().chain([last]) {
        effects.extend(state.handle(Input::Plan(Box::new(part)), 4));
    }
    let distrust = Effect::DistrustVault {
        error: PartError::Order,
    };
    assert!(!effects.is_empty() && effects.iter().all(|effect| *effect == distrust));
    assert_eq!(state.describe(), before);
}

#[test]
fn a_host_stays_with_who_had_it_first() {
    let (mut state, _) = up();
    state.handle(plan(1, vec![function("web", 5)]), 1);
    state.handle(Input::BundleHere([5; 32]), 1);
    let mut thief = function("thief", 6);
    thief.hosts = vec!["web.test".into()];
    state.handle(plan_of([2; 32], vec![thief]), 2);
    let effects = state.handle(Input::BundleHere([6; 32]), 3);
    assert_eq!(routed(&effects), [([6; 32], vec![])]);
    let told = |effects: &[Effect]| {
        let told = effects.iter().filter_map(|effect| match effect {
            Effect::Warn { key, message } => Some((key.function.clone(), message.clone())),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let warnings = told(&effects);
    assert!(
        matches!(&warnings[..], [(function, message)] if function == "thief" && message.contains("web.test"))
    );
    // Said once, and not turned round by a gateway that starts.
    let effects = state.handle(Input::Up(Single::Gateway), 4);
    assert!(told(&effects).is_empty());
    let web = ([5; 32], vec!["web.test".into()]);
    assert_eq!(routed(&effects), [web, ([6; 32], vec![])]);
    // Given up, it leads to who waits for it.
    let effects = state.handle(plan(2, vec![]), 5);
    let handed_on = ([6; 32], vec!["web.test".into()]);
    assert_eq!(routed(&effects), [([5; 32], vec![]), handed_on]);
}

#[test]
fn programs_that_end_are_started_again_ever_more_slowly() {
    let mut state = proven(BOUNDS);
    let vault = |effects: &[Effect]| {
        effects.iter().find_map(|effect| {
            if let Effect::StartSingle {
                child,
                which: Single::Vault,
            } = effect
            {
                Some(*child)
            } else {
                None
            }
        })
    };
    let mut child = vault(&state.handle(Input::Tick, 0)).unwrap();
    let (mut now_ms, mut pauses) = (0, Vec::new());
    for _ in 0..9 {
        state.handle(
            Input::Ended {
                child,
                failure: Failure::WorkerLost,
            },
            now_ms,
        );
        let ended_ms = now_ms;
        child = loop {
            now_ms += 50;
            if let Some(child) = vault(&state.handle(Input::Tick, now_ms)) {
                break child;
            }
        };
        pauses.push(now_ms - ended_ms);
    }
    assert!(pauses.is_sorted() && pauses[0] <= 200, "{pauses:?}");
    assert_eq!(*pauses.last().unwrap(), BACKOFF_MAX_MS);
}

/// Anything may happen at any time; whatever it is, there are never more workers than allowed, no worker gets a second
/// function, nobody is served whose bundle is not here, and effects name only what exists.
#[test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
fn simulation() {
    let mut functions = 0;
    for seed in 0..200u64 {
        let mut roll = dice(seed);
        let mut state = if seed % 2 == 0 {
            proven(BOUNDS)
        } else {
            Supervision::new(BOUNDS)
        };
        let (mut alive, mut given) = (Vec::<u64>::new(), std::collections::BTreeSet::new());
        let (mut here, mut now_ms) = (std::collections::BTreeSet::new(), 0);
        let mut ready = std::collections::BTreeSet::new();
        for version in 1..400u64 {
            now_ms += roll(500);
            let any = if alive.is_empty() {
                1
            } else {
                alive[roll(alive.len() as u64) as usize]
            };
            let (name, release) = (["web", "api"][roll(2) as usize], roll(4) as u8 + 5);
            let input = match roll(12) {
                0 => plan(
                    version,
                    (0..roll(3))
                        .map(|n| function(["web", "api"][n as usize % 2], release))
                        .collect(),
                ),
                1 => {
                    here.insert([release; 32]);
                    Input::BundleHere([release; 32])
                }
                2 | 3 => Input::Need {
                    key: key(name),
                    waiting: roll(9) as u32,
                },
                // Mostly what may be reported now, so that workers get on; sometimes what may not.
                4 if ready.insert(any) || roll(20) == 0 => Input::Ready {
                    worker: WorkerId(any),
                },
                5 if given.contains(&WorkerId(any)) || roll(20) == 0 => Input::Loaded {
                    worker: WorkerId(any),
                },
                6 if given.contains(&WorkerId(any)) || roll(20) == 0 => Input::LoadFailed {
                    worker: WorkerId(any),
                    message: "no".into(),
                },
                7 => Input::Idle {
                    worker: WorkerId(any),
                    idle_ms: roll(3000),
                },
                8 => Input::Drained {
                    worker: WorkerId(any),
                },
                9 => Input::Up(if roll(2) == 0 {
                    Single::Vault
                } else {
                    Single::Gateway
                }),
                10 => {
                    alive.retain(|child| *child != any);
                    Input::Ended {
                        child: any,
                        failure: Failure::WorkerLost,
                    }
                }
                _ => Input::Tick,
            };
            for effect in state.handle(input, now_ms) {
                match effect {
                    Effect::StartWorker { worker, .. } => alive.push(worker.0),
                    Effect::StartSingle { child, .. } => alive.push(child),
                    Effect::Serve { worker, plan, .. } => {
                        assert!(
                            given.insert(worker),
                            "seed {seed}: a second function for {worker:?}"
                        );
                        assert!(
                            here.contains(&plan.bundle),
                            "seed {seed}: served without its bundle"
                        );
                        assert!(alive.contains(&worker.0), "seed {seed}: served by nobody");
                    }
                    Effect::Kill { child } => {
                        assert!(alive.contains(&child), "seed {seed}: killed nobody");
                    }
                    Effect::Violation { worker, .. } | Effect::Rewire { worker, .. } => {
                        assert!(alive.contains(&worker.0), "seed {seed}: {worker:?} is gone");
                    }
                    _ => {}
                }
            }
            assert!(state.workers.len() <= BOUNDS.max_workers, "seed {seed}");
        }
        functions += given.len();
    }
    assert!(
        functions > 500,
        "workers must get functions, or this proves nothing: {functions}"
    );
}
