//! `casemate-launch` with hostile programs in the place of ours: the environment of each, and how
//! they end. As root every program has a user of its own; as nobody only user namespaces separate
//! them.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // The functions beside the tests are tests too.

mod node;
mod probe;

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use casemate_sandbox::cpu_time;
use casemate_sandbox::launch::{Command, End, Event, Program, Refusal};
use node::{
    MEMORY_MIB, Node, PIDS, USERS, User, assign, control, is_root, order, start, told, value,
    with_walls,
};

#[test]
fn as_root_each_program_has_its_own_user_and_no_capability() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut node = Node::start(User::Root);
    let base = node.base;
    let expected = |number: u32| [(base + number).to_string().as_str(); 4].join(" ");
    let own = node.supervisor_facts.clone();
    let (_v, vault) = node.child(1, Program::Vault);
    let (_g, gateway) = node.child(2, Program::Gateway);
    let (_w, worker) = node.child(3, Program::Worker);
    let (_o, other) = node.child(4, Program::Worker);
    for (facts, number) in [
        (&own, 1),
        (&vault, 2),
        (&gateway, 3),
        (&worker, 1000),
        (&other, 1001),
    ] {
        assert_eq!(value(facts, "Uid"), expected(number));
        assert_eq!(value(facts, "Gid"), expected(number));
        assert_eq!(value(facts, "Groups"), "");
    }
    for facts in [&own, &vault] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(value(facts, set), "0000000000000000", "{set}");
        }
    }
    // CAP_NET_BIND_SERVICE, until the gateway's ports are bound.
    assert_eq!(value(&gateway, "CapEff"), "0000000000000400");
    assert_eq!(value(&gateway, "CapBnd"), "0000000000000400");
}

#[test]
fn every_program_starts_with_nothing_of_ours() {
    for user in USERS {
        let mut node = Node::start(user);
        let own = node.supervisor_facts.clone();
        let children = [Program::Vault, Program::Gateway, Program::Worker];
        let all: Vec<_> = children
            .into_iter()
            .zip(1..)
            .map(|(program, id)| node.child(id, program))
            .collect();
        let all = all.iter().map(|(_, facts)| facts).chain([&own]);
        for (facts, number) in all.zip(0..) {
            assert_eq!(
                value(facts, "environment"),
                "CASEMATE_LOG CASEMATE_OUTER_NS",
                "{user:?}"
            );
            // The supervisor has a socket to the test.
            let open = if number == 3 { "0 1 2 3 4" } else { "0 1 2 3" };
            assert_eq!(value(facts, "descriptors"), open, "{user:?} {number}");
            assert_eq!(value(facts, "stdout"), "/dev/null", "{user:?}");
            assert_eq!(value(facts, "NoNewPrivs"), "1", "{user:?}");
            assert_eq!(value(facts, "SigBlk"), "0000000000000000", "{user:?}");
            assert_eq!(value(facts, "session"), "own", "{user:?}");
        }
    }
}

#[test]
fn a_worker_is_alone_in_its_namespaces() {
    for (user, mut node) in with_walls() {
        let own = node.supervisor_facts.clone();
        let (_w, worker) = node.child(1, Program::Worker);
        let (_o, other) = node.child(2, Program::Worker);
        for name in ["ns/user", "ns/pid", "ns/mnt", "ns/net", "ns/ipc", "ns/uts"] {
            let all = [&own, &worker, &other].map(|facts| value(facts, name).to_owned());
            assert_eq!(BTreeSet::from(all).len(), 3, "{user:?} {name}");
        }
        assert!(
            value(&worker, "NSpid").ends_with(" 1"),
            "{user:?}: the first of its processes"
        );
        assert_eq!(value(&worker, "devices"), "lo", "{user:?}");
        assert_eq!(
            value(&worker, "loopback"),
            "NetworkUnreachable",
            "{user:?}: down"
        );
        assert_ne!(value(&own, "loopback"), "NetworkUnreachable", "{user:?}");
    }
}

#[test]
fn a_worker_empties_its_root_and_drops_what_that_took() {
    for (user, mut node) in with_walls() {
        let (worker, _) = node.child(1, Program::Worker);
        order(&worker, "half");
        let facts = told(&worker);
        for path in ["/etc", "/proc", "/usr", "/tmp", "/dev"] {
            assert_eq!(value(&facts, path), "NotFound", "{user:?} {path}");
        }
        assert_eq!(value(&facts, "/.."), "there", "{user:?}");
        assert_eq!(value(&facts, "inodes"), "0", "{user:?}: no room for a file");
        assert_eq!(value(&facts, "read-only"), "true", "{user:?}");
        assert_eq!(value(&facts, "environment"), "CASEMATE_LOG", "{user:?}");
        assert_eq!(value(&facts, "capabilities"), "0", "{user:?}");
        assert_eq!(value(&facts, "bounding"), "0", "{user:?}");
        assert_eq!(value(&facts, "unshare"), "-1", "{user:?}");
        if value(&facts, "landlock").starts_with("true") {
            assert_eq!(
                value(&facts, "list"),
                "Err(PermissionDenied)",
                "{user:?}: Landlock"
            );
        } else {
            println!("skipped as {user:?}: this kernel has no Landlock to forbid listing the root");
        }
    }
}

/// A program that makes the node's standard error non-blocking would lose log lines of other
/// programs, and end those that do not expect it.
#[test]
fn a_worker_cannot_change_what_the_node_logs_to() {
    for user in USERS {
        let mut node = Node::start(user);
        let before = log_flags(node.pid);
        assert_eq!(before & libc::O_NONBLOCK, 0, "{user:?}");
        let (worker, _) = node.child(1, Program::Worker);
        order(&worker, "enter");
        told(&worker);
        order(&worker, "unblock");
        assert_eq!(told(&worker), "changed 0", "{user:?}");
        assert_eq!(log_flags(node.pid), before, "{user:?}");
    }
}

/// The flags of a process's standard error.
fn log_flags(pid: u32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/2")).unwrap();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    i32::from_str_radix(flags.unwrap().trim(), 8).unwrap()
}

#[test]
fn ends_of_children_are_reported_as_they_were() {
    for user in USERS {
        let mut node = Node::start(user);
        let (exits, _) = node.child(1, Program::Worker);
        order(&exits, "exit 7");
        assert_eq!(
            node.event(),
            Event::Exited {
                id: 1,
                end: End::Exit(7)
            },
            "{user:?}"
        );

        let (opens, _) = node.child(2, Program::Worker);
        order(&opens, "enter");
        told(&opens);
        order(&opens, "open");
        assert_eq!(
            node.event(),
            Event::Exited {
                id: 2,
                end: End::Signal(libc::SIGSYS)
            },
            "{user:?}"
        );

        let (spins, _) = node.child(3, Program::Worker);
        order(&spins, "spin");
        node.send(Command::Kill { id: 3 }, None);
        assert_eq!(
            node.event(),
            Event::Exited {
                id: 3,
                end: End::Signal(libc::SIGKILL)
            },
            "{user:?}"
        );

        // A child that has ended, and one that never existed: no event is sent.
        node.send(Command::Kill { id: 3 }, None);
        node.send(Command::Kill { id: u64::MAX }, None);
        node.child(3, Program::Vault);
    }
}

#[test]
fn cpu_time_of_a_worker_is_seen_from_outside_and_its_end_too() {
    for user in USERS {
        let mut node = Node::start(user);
        let (worker, theirs) = control();
        node.send(start(1, Program::Worker), Some(theirs.as_fd()));
        let Event::Started { pid, .. } = node.event() else {
            panic!("{user:?}: not started");
        };
        told(&worker);
        order(&worker, "spin");
        let began = Instant::now();
        while cpu_time(pid).unwrap() < Duration::from_millis(100) {
            assert!(began.elapsed() < node::PATIENCE, "{user:?}: it spins");
            std::thread::sleep(Duration::from_millis(5));
        }
        node.send(Command::Kill { id: 1 }, None);
        assert!(matches!(node.event(), Event::Exited { id: 1, .. }));
    }
    for nobody in [0, u32::MAX, (1 << 22) + 1] {
        cpu_time(nobody).unwrap_err();
    }
}

#[test]
fn a_worker_that_eats_memory_is_ended_and_its_end_says_so() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut node = Node::start(User::Root);
    if !node.has_cgroups() {
        println!("skipped: no cgroups here");
        return;
    }
    let (worker, _) = node.child(1, Program::Worker);
    order(&worker, &format!("eat {}", MEMORY_MIB / 2));
    assert_eq!(told(&worker), format!("ate {}", (MEMORY_MIB / 2) << 20));
    order(&worker, &format!("eat {}", MEMORY_MIB * 4));
    assert_eq!(
        node.event(),
        Event::Exited {
            id: 1,
            end: End::OutOfMemory
        }
    );
    assert_eq!(node.cgroups(), [""; 0], "removed with their worker");
}

#[test]
fn a_memory_limit_is_narrowed_while_the_worker_runs_and_never_widened() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut node = Node::start(User::Root);
    if !node.has_cgroups() {
        println!("skipped: no cgroups here");
        return;
    }
    let limit = |id, memory_mib| assign(id, memory_mib, 1, 1000);
    // Each worker's limit, and the size that then fails; the first worker could use half as much
    // again before, and the second all of its initial limit.
    let cases = [
        (1, vec![MEMORY_MIB / 2], MEMORY_MIB * 3 / 4),
        (2, vec![MEMORY_MIB * 4], MEMORY_MIB * 2),
        (3, vec![MEMORY_MIB / 2, MEMORY_MIB], MEMORY_MIB * 3 / 4),
    ];
    for (id, limits, too_much) in cases {
        let (worker, _) = node.child(id, Program::Worker);
        for memory_mib in limits {
            node.send(limit(id, memory_mib), None);
        }
        // Commands are carried out in order: with the answer to the next command, these are in
        // force.
        drop(node.child(id + 10, Program::Worker));
        let ended = Event::Exited {
            id: id + 10,
            end: End::Exit(0),
        };
        assert_eq!(node.event(), ended);
        order(&worker, &format!("eat {}", MEMORY_MIB / 4));
        assert_eq!(told(&worker), format!("ate {}", (MEMORY_MIB / 4) << 20));
        order(&worker, &format!("eat {too_much}"));
        let end = End::OutOfMemory;
        assert_eq!(node.event(), Event::Exited { id, end });
    }
    // No child has this id: the command is ignored.
    node.send(limit(u64::MAX, 1), None);
    node.child(4, Program::Worker);
}

#[test]
fn where_there_is_no_memory_cgroup_a_limit_changes_nothing() {
    let mut node = Node::start(User::Nobody);
    if node.has_cgroups() {
        println!("skipped: cgroups for everybody here");
        return;
    }
    let (worker, _) = node.child(1, Program::Worker);
    node.send(assign(1, 1, 1, 1), None);
    let _after = node.child(2, Program::Worker);
    order(&worker, &format!("eat {}", MEMORY_MIB / 2));
    assert_eq!(told(&worker), format!("ate {}", (MEMORY_MIB / 2) << 20));
}

#[test]
fn a_worker_that_eats_memory_where_there_is_no_cgroup_is_ended_all_the_same() {
    let mut node = Node::start(User::Nobody);
    let (worker, _) = node.child(1, Program::Worker);
    order(&worker, "eat 2048");
    match node.event() {
        Event::Exited {
            id: 1,
            end: End::Signal(_),
        } if !node.has_cgroups() => {}
        Event::Exited {
            id: 1,
            end: End::OutOfMemory,
        } if node.has_cgroups() => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_worker_that_forks_without_end_comes_to_its_limit_and_its_children_end_with_it() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut node = Node::start(User::Root);
    if !node.has_cgroups() {
        println!("skipped: no cgroups here");
        return;
    }
    let (worker, _) = node.child(1, Program::Worker);
    order(&worker, "fork");
    assert_eq!(told(&worker), format!("forked {}", PIDS - 1));
    node.send(Command::Kill { id: 1 }, None);
    assert_eq!(
        node.event(),
        Event::Exited {
            id: 1,
            end: End::Signal(libc::SIGKILL)
        }
    );
    assert_eq!(node.cgroups(), [""; 0], "an empty cgroup can be removed");
}

#[test]
fn starts_that_are_not_allowed_are_refused_with_a_reason() {
    let mut node = Node::start(USERS[0]);
    let _vault = node.child(1, Program::Vault);
    let _gateway = node.child(2, Program::Gateway);
    let (_worker, _) = node.child(3, Program::Worker);
    let mut refused = |command, id, refusal| {
        let (_ours, theirs) = control();
        node.send(command, Some(theirs.as_fd()));
        assert_eq!(node.event(), Event::Refused { id, refusal });
    };
    refused(start(3, Program::Worker), 3, Refusal::Duplicate);
    refused(start(4, Program::Vault), 4, Refusal::Busy);
    refused(start(5, Program::Gateway), 5, Refusal::Busy);
    let unlimited = |memory_mib, pids| Command::Start {
        id: 6,
        program: Program::Worker,
        memory_mib,
        pids,
    };
    refused(unlimited(0, 1), 6, Refusal::Unlimited);
    refused(unlimited(1, 0), 6, Refusal::Unlimited);
    let file = std::fs::File::open("/dev/null").unwrap();
    node.send(start(7, Program::Worker), Some(file.as_fd()));
    assert_eq!(
        node.event(),
        Event::Refused {
            id: 7,
            refusal: Refusal::NotAControlSocket
        }
    );
    node.child(8, Program::Worker);
}

#[test]
fn a_worker_gets_a_user_that_no_live_one_has() {
    if !is_root() {
        println!("skipped: needs root");
        return;
    }
    let mut node = Node::start(User::Root);
    let uid = |facts: &str| value(facts, "Uid").split(' ').next().unwrap().to_owned();
    let (first, facts) = node.child(1, Program::Worker);
    let first_uid = uid(&facts);
    let (_second, facts) = node.child(2, Program::Worker);
    assert_ne!(uid(&facts), first_uid);
    order(&first, "exit 0");
    assert_eq!(
        node.event(),
        Event::Exited {
            id: 1,
            end: End::Exit(0)
        }
    );
    let (_third, facts) = node.child(3, Program::Worker);
    assert_eq!(uid(&facts), first_uid, "free again");
}
