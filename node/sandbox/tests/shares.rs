//! A greedy tenant and a modest one on one node, and the node's own programs beside both: how
//! memory and processors are divided.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

mod node;
mod probe;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use casemate_sandbox::cpu_time;
use casemate_sandbox::launch::{End, Event, Program};
use node::{MEMORY_MIB, Node, User, assign, is_root, order, told};
use rustix::process::Pid;
use rustix::thread::{CapabilitySet, CpuSet, sched_getaffinity, sched_setaffinity};

/// Memory of a tenant in these tests, MiB: less than the sum of its workers' limits.
const TENANT_MIB: u32 = MEMORY_MIB * 3 / 2;

/// A node with cgroups; `None` where this machine offers none, with the reason on standard output.
fn node() -> Option<Node> {
    if !is_root() {
        println!("skipped: cgroups need root here");
        return None;
    }
    let node = Node::start(User::Root);
    if !node.has_cgroups() {
        println!("skipped: no cgroups here");
        return None;
    }
    Some(node)
}

/// Waits until launch has carried out the earlier commands: the events of a child that is started
/// now come after theirs.
fn settle(node: &mut Node, id: u64) {
    drop(node.child(id, Program::Worker));
    let end = End::Exit(0);
    assert_eq!(node.event(), Event::Exited { id, end });
}

fn eat(worker: &OwnedFd, mib: u32) {
    order(worker, &format!("eat {mib}"));
}

#[test]
fn a_tenant_that_fills_its_memory_loses_workers_and_nobody_else_does() {
    let Some(mut node) = node() else { return };
    let mut greedy = Vec::new();
    for id in 1..=4 {
        let (worker, _) = node.child(id, Program::Worker);
        node.send(assign(id, MEMORY_MIB, 1, TENANT_MIB), None);
        greedy.push(worker);
    }
    let (modest, _) = node.child(5, Program::Worker);
    node.send(assign(5, MEMORY_MIB, 2, TENANT_MIB), None);
    settle(&mut node, 6);
    // Each worker stays below its own limit; together they exceed their tenant's.
    for worker in &greedy {
        order(worker, &format!("hold {}", MEMORY_MIB * 3 / 4));
    }
    for _ in 0..3 {
        match node.event() {
            Event::Exited { id, end } => {
                assert!((1..=4).contains(&id), "{id} is not of the greedy tenant");
                assert_eq!(end, End::OutOfMemory);
            }
            other => panic!("{other:?}"),
        }
    }
    let wanted = MEMORY_MIB / 2;
    eat(&modest, wanted);
    assert_eq!(told(&modest), format!("ate {}", wanted << 20));
}

/// Sends the same command again, with the worker's own limit unchanged.
#[test]
fn a_tenants_limit_changes_under_the_workers_that_it_has() {
    let Some(mut node) = node() else { return };
    let (low, high) = (MEMORY_MIB / 2, MEMORY_MIB);
    let wanted = MEMORY_MIB * 3 / 4;
    let (first, _) = node.child(1, Program::Worker);
    for tenant_mib in [high, low] {
        node.send(assign(1, MEMORY_MIB, 1, tenant_mib), None);
    }
    settle(&mut node, 2);
    order(&first, &format!("hold {wanted}"));
    let end = End::OutOfMemory;
    assert_eq!(node.event(), Event::Exited { id: 1, end }, "lowered");
    let (second, _) = node.child(3, Program::Worker);
    for tenant_mib in [low, high] {
        node.send(assign(3, MEMORY_MIB, 1, tenant_mib), None);
    }
    settle(&mut node, 4);
    eat(&second, wanted);
    assert_eq!(told(&second), format!("ate {}", wanted << 20), "raised");
}

/// The tenant's limit is lowered with each worker by the memory that the worker used as a spare.
#[test]
fn a_tenant_that_uses_what_it_may_gets_another_worker_all_the_same() {
    let Some(mut node) = node() else { return };
    let used = MEMORY_MIB * 3 / 4;
    let (first, _) = node.child(1, Program::Worker);
    node.send(assign(1, MEMORY_MIB, 1, MEMORY_MIB), None);
    settle(&mut node, 2);
    order(&first, &format!("hold {used}"));
    eat(&first, 0);
    assert_eq!(told(&first), "ate 0");
    // The limit is below what the first worker uses, and no memory can be reclaimed from it.
    let (second, _, pid) = node.child_with_pid(3, Program::Worker);
    node.send(assign(3, MEMORY_MIB, 1, used - 1), None);
    let version_1 = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    if version_1.lines().all(|line| line.starts_with("0::")) {
        println!("skipped: version 2 takes any limit, and ends a worker that is above it");
        return;
    }
    settle(&mut node, 4);
    order(&second, "exit 0");
    let end = End::Exit(0);
    assert_eq!(node.event(), Event::Exited { id: 3, end });
    order(&first, "exit 0");
    assert_eq!(node.event(), Event::Exited { id: 1, end });
}

#[test]
fn a_worker_of_one_tenant_does_not_move_to_another() {
    let Some(mut node) = node() else { return };
    let (worker, _, pid) = node.child_with_pid(1, Program::Worker);
    let place = || std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(place().contains(".tenants/spares/"), "{}", place());
    node.send(assign(1, MEMORY_MIB, 7, TENANT_MIB), None);
    node.send(assign(1, MEMORY_MIB, 8, TENANT_MIB), None);
    settle(&mut node, 2);
    assert!(place().contains(".tenants/tenant-7/"), "{}", place());
    assert!(
        !place().contains("spares"),
        "in every hierarchy: {}",
        place()
    );
    order(&worker, "exit 0");
    let end = End::Exit(0);
    assert_eq!(node.event(), Event::Exited { id: 1, end });
    // The tenant's group is removed with its last worker, so that its number can be reused.
    let (_again, _) = node.child(3, Program::Worker);
    node.send(assign(3, MEMORY_MIB, 7, TENANT_MIB), None);
    settle(&mut node, 4);
}

#[test]
fn programs_of_the_node_are_apart_from_workers_and_the_last_to_be_ended() {
    let Some(mut node) = node() else { return };
    let capabilities = rustix::thread::capabilities(None).unwrap().effective;
    let own = if capabilities.contains(CapabilitySet::SYS_RESOURCE) {
        -900
    } else {
        println!("skipped: a negative score, for which this machine gives root no privilege");
        score_of("self")
    };
    let mut children = Vec::new();
    let mut place_and_score = |id, program| {
        let (child, _, pid) = node.child_with_pid(id, program);
        children.push(child);
        let place = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        (place, score_of(&pid.to_string()))
    };
    for (id, program) in [(1, Program::Vault), (2, Program::Gateway)] {
        let (place, score) = place_and_score(id, program);
        assert!(place.contains(".programs/"), "{program:?}: {place}");
        assert_eq!(score, own, "{program:?}");
    }
    let (place, score) = place_and_score(3, Program::Worker);
    assert!(place.contains(".tenants/"), "{place}");
    assert_eq!(score, 500);
    assert_eq!(score_of(&node.pid.to_string()), own);
}

fn score_of(process: &str) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{process}/oom_score_adj"));
    text.unwrap().trim().parse().unwrap()
}

/// Without a group for each tenant, every thread would have the same share: one against eight.
#[test]
fn a_tenant_that_spins_in_many_workers_leaves_a_tenant_with_one_its_share() {
    let Some(mut node) = node() else { return };
    // All processes on one processor, however many this machine has.
    let launch = Pid::from_raw(node.pid.cast_signed());
    let allowed = sched_getaffinity(launch).unwrap();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(first.unwrap());
    sched_setaffinity(launch, &one).unwrap();

    let mut workers = Vec::new();
    for id in 1..=9 {
        let (worker, _, pid) = node.child_with_pid(id, Program::Worker);
        let tenant = if id == 9 { 2 } else { 1 };
        node.send(assign(id, MEMORY_MIB, tenant, TENANT_MIB * 10), None);
        workers.push((worker, pid));
    }
    settle(&mut node, 10);
    if !has_own_processor_share(workers[0].1) {
        println!("skipped: no cgroup for processor time here");
        return;
    }
    for (worker, _) in &workers {
        order(worker, "spin");
    }
    let used = || -> Vec<Duration> {
        let all = workers.iter().map(|(_, pid)| cpu_time(*pid).unwrap());
        all.collect()
    };
    let began = Instant::now();
    let before = used();
    let (greedy, modest) = loop {
        std::thread::sleep(Duration::from_millis(20));
        let since: Vec<Duration> = std::iter::zip(used(), &before)
            .map(|(now, before)| now - *before)
            .collect();
        let (modest, greedy) = since.split_last().unwrap();
        let greedy: Duration = greedy.iter().sum();
        // Many time slices of each process, however loaded this machine is.
        if greedy + *modest > Duration::from_millis(800) {
            break (greedy, *modest);
        }
        assert!(
            began.elapsed() < node::PATIENCE * 3,
            "neither tenant gets processor time"
        );
    };
    println!("greedy {greedy:?}, modest {modest:?}");
    assert!(modest * 3 > greedy, "greedy {greedy:?}, modest {modest:?}");
}

/// Whether the kernel counts a process's processor time with its tenant's.
fn has_own_processor_share(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    text.lines().any(|line| {
        let parts: Vec<&str> = line.splitn(3, ':').collect();
        let [_, controllers, path] = parts[..] else {
            return false;
        };
        let controllers = match controllers {
            "" => {
                let file = format!("/sys/fs/cgroup{path}/cgroup.controllers");
                std::fs::read_to_string(file).unwrap_or_default()
            }
            names => names.replace(',', " "),
        };
        path.contains("tenant-") && controllers.split_whitespace().any(|name| name == "cpu")
    })
}
