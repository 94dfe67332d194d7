//! Listening sockets that `casemate-launch` holds: over the end of supervisors, over its own exec,
//! and over a restart by a service manager. Other descriptors are not held, whoever sends them.

#![allow(unsafe_code, reason = "descriptors by number, between fork and exec")]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

mod node;
mod probe;

use std::io::{ErrorKind, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::Duration;

use casemate_sandbox::launch::{Command, Event, Program, SOCKETS_MAX, listener_address};
use node::{Node, USERS, User, control, is_root, value};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

fn listener() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

/// Waits until all earlier commands are carried out: they are handled in order, and this one is
/// answered.
fn settle(node: &mut Node) {
    drop(node.child(1 << 40, Program::Worker));
    let ended = node.event();
    assert!(matches!(ended, Event::Exited { .. }), "{ended:?}");
}

fn hold(node: &Node, id: u64, socket: impl AsFd) {
    for _ in 0..1000 {
        match node.client.send(&Command::Hold { id }, &[socket.as_fd()]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            sent => return sent.unwrap(),
        }
    }
    panic!("launch takes no command");
}

fn addresses(held: &[(u64, OwnedFd)]) -> Vec<(u64, SocketAddr)> {
    let address = |(id, socket): &(u64, OwnedFd)| (*id, listener_address(socket).unwrap());
    held.iter().map(address).collect()
}

#[test]
fn a_supervisor_that_is_killed_leaves_its_sockets_to_its_successor() {
    for user in USERS {
        let mut node = Node::start(user);
        let ((first, a), (second, b), (third, c)) = (listener(), listener(), listener());
        hold(&node, 3, first);
        hold(&node, 9, second);
        hold(&node, 5, third);
        node.send(Command::Release { id: 9 }, None);
        node.send(Command::Release { id: 77 }, None);
        node.lasting_child(1, Program::Worker);
        TcpStream::connect(b).expect_err("closed");
        // A connection in the socket's queue while no program serves it.
        let _waits = TcpStream::connect(a).unwrap();
        for _ in 0..2 {
            node.kill_supervisor();
            assert_eq!(addresses(&node.held()), [(3, a), (5, c)], "{user:?}");
            assert!(matches!(node.adopted().0, Event::Adopted { id: 1, .. }));
        }
        node.kill_supervisor();
        let socket = node.held().remove(0).1;
        TcpListener::from(socket).accept().unwrap();
    }
}

#[test]
fn other_descriptors_and_too_many_sockets_are_not_held() {
    let mut node = Node::start(USERS[0]);
    let (good, address) = listener();
    let null = std::fs::File::open("/dev/null").unwrap();
    let stream = TcpStream::connect(address).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (seqpacket, _other) = control();
    let unbound = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    );
    let (shut, _) = listener();
    rustix::net::shutdown(&shut, rustix::net::Shutdown::Both).unwrap();
    hold(&node, 1, &null);
    hold(&node, 2, &stream);
    hold(&node, 3, &udp);
    hold(&node, 4, &seqpacket);
    hold(&node, 5, unbound.unwrap());
    hold(&node, 6, &shut);
    hold(&node, 7, &good);
    // A second socket with the same number.
    hold(&node, 7, listener().0);
    settle(&mut node);
    node.kill_supervisor();
    assert_eq!(addresses(&node.held()), [(7, address)]);

    for id in 100..100 + 2 * SOCKETS_MAX as u64 {
        hold(&node, id, &good);
    }
    settle(&mut node);
    node.kill_supervisor();
    let all = addresses(&node.held());
    assert_eq!(all.len(), SOCKETS_MAX);
    // Launch accepts commands as before.
    node.child(2, Program::Worker);
}

#[test]
fn a_hold_with_another_number_of_descriptors_is_no_command() {
    let bytes = Command::Hold { id: 1 }.encode();
    for count in [0, 2] {
        let mut node = Node::start(USERS[0]);
        let (socket, _) = listener();
        node.send_raw(&bytes, &vec![socket.as_fd(); count]);
        assert_eq!(node.exit_code(), Some(70), "{count}");
    }
}

#[test]
fn launch_executes_itself_anew_and_keeps_its_sockets() {
    for user in USERS {
        let mut node = Node::start(user);
        let ((first, a), (second, b)) = (listener(), listener());
        hold(&node, 8, first);
        hold(&node, 4, second);
        let (worker, _) = node.child(1, Program::Worker);
        for time in 1..=3 {
            let before = value(&node.supervisor_facts, "NSpid").to_owned();
            node.signal(libc::SIGUSR2);
            // A second SIGUSR2 and a SIGHUP during the end change nothing.
            node.signal(libc::SIGUSR2);
            node.signal(libc::SIGHUP);
            node.next_supervisor();
            assert!(node::is_closed(&worker), "{user:?}");
            assert_ne!(value(&node.supervisor_facts, "NSpid"), before);
            let held = node.held();
            // The numbers are launch's own now, in the same order.
            assert_eq!(addresses(&held), [(1, a), (2, b)], "{user:?}, {time}");
            TcpStream::connect(a).unwrap();
            // No other descriptor was passed on.
            assert_eq!(value(&node.supervisor_facts, "descriptors"), "0 1 2 3 4");
            let environment = value(&node.supervisor_facts, "environment");
            assert_eq!(environment, "CASEMATE_LOG CASEMATE_OUTER_NS");
            node.child(2, Program::Vault);
        }
        let cgroups = node.groups();
        assert_eq!(cgroups.is_empty(), !node.has_cgroups(), "{cgroups:?}");
        node.signal(libc::SIGTERM);
        // The test's supervisor has handled SIGHUP, or not yet.
        assert!([Some(0), Some(64)].contains(&node.exit_code()), "{user:?}");
        TcpStream::connect(a).expect_err("the sockets end with launch");
        assert_eq!(node.groups(), [""; 0]);
    }
}

#[test]
fn a_stop_during_an_upgrade_is_a_stop() {
    let mut node = Node::start(USERS[0]);
    node.signal(libc::SIGUSR2);
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn an_upgrade_to_programs_that_are_not_there_does_not_begin() {
    let mut programs = PathBuf::new();
    let mut node = Node::start_with(USERS[0], |_, folder| folder.clone_into(&mut programs));
    let (worker, gone) = (programs.join("casemate-worker"), programs.join("gone"));
    std::fs::rename(&worker, &gone).unwrap();
    node.signal(libc::SIGUSR2);
    node.child(1, Program::Worker);
    std::fs::rename(&gone, &worker).unwrap();
    node.signal(libc::SIGUSR2);
    node.next_supervisor();
    // A file that exists and is not a program: the earlier program continues.
    let launch = programs.join("casemate-launch");
    std::fs::rename(&launch, &gone).unwrap();
    std::fs::write(&launch, "no program").unwrap();
    std::fs::set_permissions(&launch, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    node.signal(libc::SIGUSR2);
    node.next_supervisor();
    std::fs::rename(&gone, &launch).unwrap();
    node.signal(libc::SIGUSR2);
    node.next_supervisor();
    node.child(2, Program::Worker);
}

/// A message from launch to the service manager: the text, and the descriptors.
fn notified(manager: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    let mut bytes = [0; 200];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    manager.set_read_timeout(Some(node::PATIENCE)).unwrap();
    let received = recvmsg(
        manager,
        &mut slices,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    let text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
    (text, descriptors)
}

/// Passes descriptors like a service manager: from number 3 on, to the process whose id is in the
/// environment; a shell knows its id before it executes launch.
fn pass(command: &mut std::process::Command, sockets: Vec<OwnedFd>) {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", r#"LISTEN_PID=$$ exec "$0" "$@""#]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell.env("LISTEN_FDS", sockets.len().to_string());
    shell.stderr(std::process::Stdio::piped());
    /// Above all numbers that are passed.
    const AWAY: i32 = 200;
    // SAFETY: the closure runs in the new process between fork and exec. It makes system calls with
    // numbers, and touches no memory of other threads.
    unsafe {
        shell.pre_exec(move || {
            let done = |number: i32| match number {
                -1 => Err(std::io::Error::last_os_error()),
                number => Ok(number),
            };
            let moved = sockets.iter().zip(AWAY..);
            for (socket, away) in moved.clone() {
                done(libc::dup2(socket.as_raw_fd(), away))?;
            }
            for (_, away) in moved {
                done(libc::dup2(away, away - AWAY + 3))?;
            }
            Ok(())
        });
    }
    *command = shell;
}

#[test]
fn a_service_manager_keeps_the_sockets_over_a_restart() {
    let user = if is_root() { User::Root } else { User::Nobody };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut node = Node::start_with(user, |command, _| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let ((first, a), (second, b)) = (listener(), listener());
    hold(&node, 1, first);
    hold(&node, 2, second);
    node.send(Command::Release { id: 2 }, None);
    let name = |address: SocketAddr| format!("127.0.0.1_{}", address.port());
    let mut stored = Vec::new();
    for address in [a, b] {
        let (text, descriptors) = notified(&manager);
        assert_eq!(text, format!("FDSTORE=1\nFDNAME={}", name(address)));
        stored.extend(descriptors);
    }
    let (text, _) = notified(&manager);
    assert_eq!(text, format!("FDSTOREREMOVE=1\nFDNAME={}", name(b)));
    stored.pop();
    node.signal(libc::SIGTERM);
    assert_eq!(node.exit_code(), Some(0));
    drop(node);

    let waits = TcpStream::connect(a).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    stored.push(null.into());
    let mut node = Node::start_with(user, |command, _| {
        command.env("NOTIFY_SOCKET", &path);
        pass(command, stored);
    });
    let held = std::mem::take(&mut node.inherited);
    assert_eq!(addresses(&held), [(1, a)]);
    let socket = held.into_iter().next().unwrap().1;
    let (_, peer) = TcpListener::from(socket).accept().unwrap();
    assert_eq!(peer, waits.local_addr().unwrap());
}
