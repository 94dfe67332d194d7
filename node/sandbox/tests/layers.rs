//! The layers that each program reports, compared with what this machine offers and with the
//! kernel's view from outside.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

mod node;
mod probe;

use std::collections::BTreeSet;

use casemate_sandbox::launch::Program;
use node::{Node, USERS, User, order, told, value, with_walls};
use rustix::io::Errno;
use rustix::process::{
    Pid, Resource, SpeculationFeature, SpeculationFeatureState, getpid, getrlimit,
    speculative_feature_state,
};
use rustix::thread::{CapabilitySet, CoreSchedulingScope, core_scheduling_cookie};

#[test]
fn a_worker_reports_every_layer_in_force() {
    for (user, mut node) in with_walls() {
        let (worker, _) = node.child(1, Program::Worker);
        order(&worker, "enter");
        let reports = told(&worker);
        for layer in casemate_sandbox::LAYERS {
            let report = value(&reports, layer);
            let offered = match layer {
                "landlock" => !report.contains("kernel"),
                "cgroup" => node.has_cgroups(),
                "speculation" => is_speculation_controllable(),
                "core_scheduling" => !matches!(own_core_cookie(), Err(Errno::INVAL)),
                // Only the vault has this layer.
                "memory_lock" => false,
                _ => true,
            };
            assert_eq!(
                report.starts_with("true"),
                offered,
                "{user:?} {layer}: {report}"
            );
            if !offered {
                println!("skipped as {user:?}: this machine has no {layer}: {report}");
            }
        }
    }
}

fn own_core_cookie() -> Result<u64, Errno> {
    core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread)
}

#[test]
fn workers_and_the_vault_share_a_core_with_nobody_where_the_kernel_can() {
    if let Err(error) = own_core_cookie() {
        println!("skipped: no core scheduling here: {error}");
        return;
    }
    let mut node = Node::start(USERS[0]);
    let mut cookies = BTreeSet::from([own_core_cookie().unwrap()]);
    for (id, program) in [
        (1, Program::Vault),
        (2, Program::Worker),
        (3, Program::Worker),
    ] {
        let (child, _, pid) = node.child_with_pid(id, program);
        order(&child, "enter");
        told(&child);
        let pid = Pid::from_raw(pid.cast_signed()).unwrap();
        let cookie = core_scheduling_cookie(pid, CoreSchedulingScope::Thread).unwrap();
        assert_ne!(cookie, 0, "{program:?}");
        assert!(
            cookies.insert(cookie),
            "{program:?}: shared with another process"
        );
    }
}

#[test]
fn the_vault_locks_all_its_memory_where_launch_may_let_it() {
    for user in USERS {
        let mut node = Node::start(user);
        let (vault, _, pid) = node.child_with_pid(1, Program::Vault);
        order(&vault, "enter");
        let reports = told(&vault);
        let report = value(&reports, "memory_lock");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let locked = locked.unwrap().trim_end_matches("kB").trim();
        let locked_kib: u64 = locked.parse().unwrap();
        let can_raise = || {
            let held = rustix::thread::capabilities(None).unwrap().effective;
            user == User::Root && held.contains(CapabilitySet::SYS_RESOURCE)
        };
        if getrlimit(Resource::Memlock).maximum.is_none() || can_raise() {
            assert!(report.starts_with("true"), "{user:?}: {report}");
            assert!(locked_kib > 1024, "{user:?}: {locked_kib} KiB");
        } else {
            println!("skipped as {user:?}: RLIMIT_MEMLOCK cannot be raised here");
            assert!(report.starts_with("false"), "{user:?}: {report}");
            assert_eq!(locked_kib, 0, "{user:?}");
        }
    }
}

/// Whether this machine lets a process turn off each kind of speculation to which the machine is
/// vulnerable.
fn is_speculation_controllable() -> bool {
    type State = SpeculationFeatureState;
    let features = [
        (
            "spec_store_bypass",
            SpeculationFeature::SpeculativeStoreBypass,
        ),
        ("spectre_v2", SpeculationFeature::IndirectBranchSpeculation),
    ];
    features.into_iter().all(|(file, feature)| {
        let path = format!("/sys/devices/system/cpu/vulnerabilities/{file}");
        let machine = std::fs::read_to_string(path).unwrap_or_default();
        let process = speculative_feature_state(feature).ok().flatten();
        let off = State::PRCTL | State::DISABLE | State::FORCE_DISABLE | State::DISABLE_NOEXEC;
        let controllable = process.is_some_and(|state| state.is_empty() || state.intersects(off));
        machine.starts_with("Not affected") || controllable && !machine.starts_with("Vulnerable")
    })
}
