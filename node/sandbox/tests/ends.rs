//! `casemate-launch` and its children: every end is orderly, whichever process ends first.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

mod node;
mod probe;

use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use casemate_sandbox::launch::{Command, Event, NOTE_BYTES, PACKET_BYTES, Program, Refusal};
use node::{MEMORY_MIB, Node, USERS, assign, control, kill, order, start, told};

#[test]
fn a_supervisor_that_sends_garbage_ends_everything() {
    let kill = kill([1]).encode();
    let (_ours, theirs) = control();
    let cases: [(&str, Vec<u8>, usize); 6] = [
        ("garbage", vec![0xff; PACKET_BYTES], 0),
        ("half a packet", kill[..PACKET_BYTES / 2].to_vec(), 0),
        ("a packet and a half", [&kill[..], &kill[..32]].concat(), 0),
        (
            "a start without a descriptor",
            start(9, Program::Worker).encode(),
            0,
        ),
        ("a start with three", start(9, Program::Worker).encode(), 3),
        ("a kill with one", kill.clone(), 1),
    ];
    for (what, bytes, descriptors) in cases {
        let mut node = Node::start(USERS[0]);
        let (worker, _) = node.child(1, Program::Worker);
        node.send_raw(&bytes, &vec![theirs.as_fd(); descriptors]);
        assert_eq!(node.exit_code(), Some(70), "{what}");
        assert!(node::is_closed(&worker), "{what}: the worker ended with it");
    }
}

#[test]
fn a_flood_of_commands_and_a_supervisor_that_reads_nothing_stop_nothing() {
    let mut node = Node::start(USERS[0]);
    let file = std::fs::File::open("/dev/null").unwrap();
    // More refusals than the socket and the queue hold: launch stops reading, and neither grows nor
    // blocks.
    let mut sent = 0;
    while sent < 100_000
        && node
            .client
            .send(&start(sent, Program::Worker), &[file.as_fd()])
            .is_ok()
    {
        sent += 1;
    }
    std::thread::sleep(Duration::from_millis(100));
    let mut got = 0;
    while got < sent {
        assert_eq!(
            node.event(),
            Event::Refused {
                id: got,
                refusal: Refusal::NotAControlSocket
            }
        );
        got += 1;
    }
    node.child(1, Program::Worker);
}

#[test]
fn everything_ends_with_the_supervisor_and_its_code_is_ours() {
    for (code, expected) in [(0, 75), (64, 64), (69, 69)] {
        let mut node = Node::start(USERS[0]);
        let (worker, _) = node.child(1, Program::Worker);
        order(&worker, "spin");
        node.end_supervisor(code);
        assert_eq!(node.exit_code(), Some(expected));
        assert!(node::is_closed(&worker));
        assert_eq!(node.cgroups(), [""; 0]);
        assert_eq!(node.groups(), [""; 0]);
    }
}

#[test]
fn sigterm_goes_to_the_supervisor_and_everything_ends_in_order() {
    for user in USERS {
        let mut node = Node::start(user);
        let (worker, _) = node.child(1, Program::Worker);
        node.signal(libc::SIGTERM);
        assert_eq!(node.exit_code(), Some(0), "{user:?}");
        assert!(node::is_closed(&worker), "{user:?}");
    }
}

#[test]
fn sighup_goes_to_the_supervisor_and_ends_nothing() {
    let mut node = Node::start(USERS[0]);
    node.signal(libc::SIGHUP);
    node.child(1, Program::Worker);
    node.signal(libc::SIGTERM);
    assert_eq!(
        node.exit_code(),
        Some(64),
        "the supervisor got both signals"
    );
}

#[test]
fn a_supervisor_that_closes_its_socket_and_stays_is_ended() {
    let mut node = Node::start(USERS[0]);
    let (worker, _) = node.child(1, Program::Worker);
    node.hang_up();
    assert_eq!(node.exit_code(), Some(70));
    assert!(node::is_closed(&worker));
}

#[test]
fn a_supervisor_that_is_killed_has_a_successor_that_adopts_its_children() {
    for user in USERS {
        let mut node = Node::start(user);
        for (id, program) in [
            (1, Program::Worker),
            (2, Program::Vault),
            (3, Program::Gateway),
        ] {
            node.lasting_child(id, program);
        }
        // A child of which launch has only the child's end of the socket ends with the supervisor.
        let (short, _) = node.child(4, Program::Worker);
        let note = [7; NOTE_BYTES];
        node.send(Command::Note { id: 1, note }, None);
        node.send(assign(1, MEMORY_MIB, 9, MEMORY_MIB), None);
        // Commands are carried out in order.
        drop(node.child(5, Program::Worker));
        node.event();
        for death in 1..=3 {
            node.kill_supervisor();
            let mut adopted = Vec::new();
            for _ in 0..3 {
                let (event, control) = node.adopted();
                let Event::Adopted {
                    id,
                    program,
                    memory_mib,
                    tenant,
                    note,
                    ..
                } = event
                else {
                    panic!("{user:?}, {death}: {event:?}");
                };
                // The child has noticed nothing, and receives messages of the new supervisor.
                order(&control, "eat 0");
                assert_eq!(told(&control), "ate 0", "{user:?}, {death}: {program:?}");
                adopted.push((
                    id,
                    program,
                    memory_mib,
                    tenant.map_or(0, u32::from),
                    note[0],
                ));
            }
            let tenant = if node.has_cgroups() { 9 } else { 0 };
            let expected = [
                (1, Program::Worker, MEMORY_MIB, tenant, 7),
                (2, Program::Vault, MEMORY_MIB, 0, 0),
                (3, Program::Gateway, MEMORY_MIB, 0, 0),
            ];
            assert_eq!(adopted, expected, "{user:?}, {death}");
            if death == 1 {
                assert!(matches!(node.event(), Event::Exited { id: 4, .. }));
                assert!(node::is_closed(&short));
            }
        }
        // The supervisor's own exit ends everything, as before.
        node.end_supervisor(64);
        assert_eq!(node.exit_code(), Some(64));
        assert_eq!(node.groups(), [""; 0]);
    }
}

#[test]
fn a_supervisor_that_crashes_again_and_again_ends_everything() {
    let mut node = Node::start(USERS[0]);
    node.lasting_child(1, Program::Worker);
    for _ in 0..5 {
        node.kill_supervisor();
        node.adopted();
    }
    // The exit code of a program that has panicked.
    node.end_supervisor(101);
    assert_eq!(node.exit_code(), Some(70));
}

#[test]
fn children_do_not_outlive_a_launch_that_is_killed() {
    for user in USERS {
        let mut node = Node::start(user);
        let (worker, _) = node.child(1, Program::Worker);
        let (vault, _) = node.child(2, Program::Vault);
        order(&worker, "spin");
        node.signal(libc::SIGKILL);
        assert_eq!(node.exit_code(), None, "{user:?}: by a signal");
        for child in [&worker, &vault] {
            assert!(node::is_closed(child), "{user:?}");
        }
    }
}

#[test]
fn mistakes_in_the_arguments_end_with_64_and_unstartable_programs_with_69() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config");
    std::fs::write(&config, "").unwrap();
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_casemate-launch"));
        command
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let output = node::spawn(&mut command).wait_with_output().unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (config, state) = (config.to_str().unwrap(), folder.path().join("state"));
    let state = state.to_str().unwrap();
    let usual = ["--node", config, "--vault", config, "--state", state];
    assert_eq!(run(&[]).0, Some(64));
    assert_eq!(
        run(&[&usual[..], &["--uid-base", "0"]].concat()).0,
        Some(64)
    );
    assert_eq!(
        run(&[&usual[..], &["--uid-base", "4294967295"]].concat()).0,
        Some(64)
    );
    assert_eq!(
        run(&["--node", "/nowhere", "--vault", config, "--state", state]).0,
        Some(64)
    );
    let (code, text) = run(&[&usual[..], &["--programs", "/nowhere"]].concat());
    assert_eq!(code, Some(69));
    assert!(text.contains("/nowhere/casemate-node"), "{text}");
    assert_eq!(
        run(&["--node", config, "--vault", config, "--state", "/proc/no"]).0,
        Some(73)
    );
    assert_eq!(run(&["--version"]).0, Some(0));
}
