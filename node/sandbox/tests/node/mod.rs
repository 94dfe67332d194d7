//! A node in a temporary folder; the test plays its supervisor.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command as Process};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use casemate_sandbox::launch::{Client, Command, Event, Program};
use parking_lot::RwLock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};

use super::probe;

/// Bound for every wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
const NOBODY: u32 = 65534;

/// Locked for writing while programs are copied, for reading while a process is made.
static FORKS: RwLock<()> = RwLock::new(());

/// The user as whom launch runs. Tests without root run both variants as their own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    Root,
    Nobody,
}

pub(crate) const USERS: [User; 2] = [User::Root, User::Nobody];

pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) supervisor_facts: String,
    /// The sockets that the first supervisor took over.
    pub(crate) inherited: Vec<(u64, OwnedFd)>,
    pub(crate) base: u32,
    launch: Child,
    log: Option<JoinHandle<String>>,
    supervisor: UnixStream,
    listener: UnixListener,
    pub(crate) pid: u32,
    walls: bool,
    cgroups: bool,
    _folder: tempfile::TempDir,
}

/// Memory limit of a child that is started by [`start`].
pub(crate) const MEMORY_MIB: u32 = 64;
/// Process limit of a child that is started by [`start`].
pub(crate) const PIDS: u32 = 16;

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The command that starts a child.
pub(crate) fn start(id: u64, program: Program) -> Command {
    Command::Start {
        id,
        program,
        memory_mib: MEMORY_MIB,
        pids: PIDS,
    }
}

/// The command that ends children.
pub(crate) fn kill<const N: usize>(ids: [u64; N]) -> Command {
    Command::Kill { ids: ids.into() }
}

/// The command that gives a worker to a tenant, with limits of both in MiB.
pub(crate) fn assign(id: u64, memory_mib: u32, tenant: u32, tenant_memory_mib: u32) -> Command {
    let number = |number| NonZeroU32::new(number).unwrap();
    Command::Assign {
        id,
        memory_mib: number(memory_mib),
        tenant: number(tenant),
        tenant_memory_mib: number(tenant_memory_mib),
    }
}

/// A node for each user under whom workers have namespaces; the others are printed as skipped.
pub(crate) fn with_walls() -> impl Iterator<Item = (User, Node)> {
    USERS.into_iter().filter_map(|user| {
        let node = Node::start(user);
        if !node.walls {
            println!("skipped as {user:?}: this kernel forbids user namespaces");
        }
        node.walls.then_some((user, node))
    })
}

impl Node {
    pub(crate) fn start(user: User) -> Self {
        Self::start_with(user, |_, _| {})
    }

    /// Like `start`, with options of launch's process; `prepare` also gets the folder of the
    /// programs.
    #[expect(clippy::too_many_lines, reason = "one story, step by step")]
    pub(crate) fn start_with(user: User, prepare: impl FnOnce(&mut Process, &Path)) -> Self {
        static NODES: AtomicU32 = AtomicU32::new(0);
        let base = 800_000 + 10_000 * NODES.fetch_add(1, Ordering::Relaxed);

        // All users must be able to reach the programs, and none may write their folder.
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        open_to_all(&programs);
        let launch = programs.join("casemate-launch");
        {
            let _no_fork = FORKS.write();
            for name in ["node", "vault", "gateway", "worker"] {
                fs::copy(probe::path(), programs.join(format!("casemate-{name}"))).unwrap();
            }
            fs::copy(env!("CARGO_BIN_EXE_casemate-launch"), &launch).unwrap();
        }
        let (state, socket, config) = (
            folder.path().join("state"),
            folder.path().join("test"),
            folder.path().join("config"),
        );
        fs::create_dir(&state).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        open_to_all(&socket);
        fs::write(&config, socket.to_str().unwrap()).unwrap();
        open_to_all(&config);

        let mut command = Process::new(launch);
        command
            .arg("--node")
            .arg(&config)
            .arg("--vault")
            .arg(&config)
            .arg("--state")
            .arg(&state);
        command.args(["--uid-base", &base.to_string()]);
        command
            .env("CASEMATE_LOG", "debug")
            .env("LD_PRELOAD_NOT", "1")
            .env("SECRET", "1");
        command.stderr(std::process::Stdio::piped());
        prepare(&mut command, &programs);
        if user == User::Nobody && is_root() {
            std::os::unix::fs::chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut launch = spawn(&mut command);
        let pid = launch.id();
        let mut stderr = launch.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = std::io::copy(&mut stderr, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        listener.set_nonblocking(true).unwrap();
        if !readable(&listener) {
            let _ = launch.kill();
            panic!("the supervisor did not start: {}", log.join().unwrap());
        }
        let (supervisor, facts, command_socket) = accept(&listener);
        Self {
            client: Client::new(command_socket).unwrap(),
            supervisor_facts: facts,
            inherited: Vec::new(),
            base,
            walls: true,
            cgroups: false,
            launch,
            log: Some(log),
            supervisor,
            listener,
            pid,
            _folder: folder,
        }
        .look_around()
    }

    /// Starts a worker whose facts show which layers this machine supports, and ends it.
    fn look_around(mut self) -> Self {
        self.inherited = self.held();
        let (worker, facts) = self.child(u64::MAX - 1, Program::Worker);
        self.walls = value(&facts, "ns/user") != value(&self.supervisor_facts, "ns/user");
        self.cgroups = !self.cgroups().is_empty();
        drop(worker);
        self.event();
        self
    }

    /// Starts a child and returns its facts.
    pub(crate) fn child(&mut self, id: u64, program: Program) -> (OwnedFd, String) {
        let (child, facts, _) = self.child_with_pid(id, program);
        (child, facts)
    }

    /// Starts a child and returns its facts, and its process id from launch.
    pub(crate) fn child_with_pid(&mut self, id: u64, program: Program) -> (OwnedFd, String, u32) {
        let (ours, theirs) = control();
        self.send(start(id, program), Some(theirs.as_fd()));
        drop(theirs);
        let pid = match self.event() {
            Event::Started { id: started, pid } if started == id && pid > 0 => pid,
            other => panic!("{program:?}: {other:?}"),
        };
        let facts = told(&ours);
        (ours, facts, pid)
    }

    pub(crate) fn send(&self, command: Command, descriptor: Option<BorrowedFd<'_>>) {
        self.client.send(&command, descriptor.as_slice()).unwrap();
    }

    pub(crate) fn send_raw(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        sendmsg(
            &self.client,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        )
        .unwrap();
    }

    pub(crate) fn event(&mut self) -> Event {
        assert!(readable(&self.client), "no event");
        match self.client.recv().unwrap() {
            Some(event) => event,
            None => panic!(
                "launch is gone: {:?} {}",
                self.launch.wait(),
                self.log.take().unwrap().join().unwrap()
            ),
        }
    }

    pub(crate) fn end_supervisor(&mut self, code: u8) {
        self.supervisor.write_all(&[code]).unwrap();
    }

    /// Kills the supervisor; the test continues as the one that launch starts next.
    pub(crate) fn kill_supervisor(&mut self) {
        let pid = value(&self.supervisor_facts, "NSpid").parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        self.next_supervisor();
    }

    /// Continues as the supervisor that launch starts next.
    pub(crate) fn next_supervisor(&mut self) {
        let (other, _) = control();
        self.client = Client::new(other).unwrap();
        assert!(readable(&self.listener), "no other supervisor was started");
        let (supervisor, facts, command_socket) = accept(&self.listener);
        (self.supervisor, self.supervisor_facts) = (supervisor, facts);
        self.client = Client::new(command_socket).unwrap();
    }

    /// Starts a child whose control socket launch alone keeps for the supervisor's successor.
    pub(crate) fn lasting_child(&mut self, id: u64, program: Program) {
        let (ours, theirs) = control();
        let ends = [theirs.as_fd(), ours.as_fd()];
        self.client.send(&start(id, program), &ends).unwrap();
        let started = self.event();
        assert!(
            matches!(started, Event::Started { id: one, .. } if one == id),
            "{started:?}"
        );
        told(&ours);
    }

    /// The next child that the supervisor adopts, or the next held socket: the event, and the
    /// child's control socket or the socket.
    pub(crate) fn adopted(&mut self) -> (Event, OwnedFd) {
        assert!(readable(&self.client), "no event");
        let (event, descriptor) = self.client.recv_with_descriptor().unwrap().unwrap();
        (event, descriptor.expect("a descriptor"))
    }

    /// The held sockets that are reported to a new supervisor.
    pub(crate) fn held(&mut self) -> Vec<(u64, OwnedFd)> {
        let words: Vec<_> = value(&self.supervisor_facts, "arguments")
            .split(' ')
            .collect();
        let at = words.iter().position(|word| *word == "--held");
        let count: usize = at.map_or(0, |at| words[at + 1].parse().unwrap());
        let next = |_| match self.adopted() {
            (Event::Held { id }, socket) => (id, socket),
            (other, _) => panic!("{other:?}"),
        };
        (0..count).map(next).collect()
    }

    /// Closes the supervisor's command socket.
    pub(crate) fn hang_up(&mut self) {
        let (other, _) = control();
        self.client = Client::new(other).unwrap();
    }

    pub(crate) fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_child(&self.launch);
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The exit code of launch; `None` if a signal ended it.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.launch.try_wait().unwrap() {
                assert!(
                    status.code().is_some() || status.signal() == Some(libc::SIGKILL),
                    "{status}"
                );
                return status.code();
            }
            assert!(Instant::now() < deadline, "launch goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn has_cgroups(&self) -> bool {
        self.cgroups
    }

    /// Cgroups of children that launch has made and not removed, except the supervisor's.
    pub(crate) fn cgroups(&self) -> Vec<String> {
        self.cgroups_named(&format!("casemate-{}-", self.pid))
    }

    /// Groups of cgroups that launch has made and not removed.
    pub(crate) fn groups(&self) -> Vec<String> {
        self.cgroups_named(&format!("casemate-{}.", self.pid))
    }

    fn cgroups_named(&self, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    if name.starts_with(prefix) && name != format!("{prefix}0") {
                        found.push(name);
                    }
                    folders.push(entry.path());
                }
            }
        }
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.launch.kill();
        let _ = self.launch.wait();
        if std::thread::panicking()
            && let Some(Ok(log)) = self.log.take().map(JoinHandle::join)
        {
            println!("{log}");
        }
    }
}

/// Starts a process. While a copy is being written, a new process must not inherit it, or the copy
/// could not be executed.
pub(crate) fn spawn(command: &mut Process) -> Child {
    let _no_copy = FORKS.read();
    command.spawn().unwrap()
}

/// Makes a control socket: our end and a child's.
pub(crate) fn control() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

pub(crate) fn order(child: &OwnedFd, order: &str) {
    send(child, order.as_bytes(), SendFlags::NOSIGNAL).unwrap();
}

/// The next packet from a child.
pub(crate) fn told(child: &OwnedFd) -> String {
    assert!(readable(child), "the child sends nothing");
    let mut bytes = vec![0; 8192];
    let (length, _) = recv(child, &mut bytes[..], RecvFlags::DONTWAIT).unwrap();
    assert_ne!(length, 0, "the child is gone");
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// Whether a child has ended, or ends within a moment.
pub(crate) fn is_closed(child: &OwnedFd) -> bool {
    let mut byte = [0];
    readable(child)
        && matches!(
            recv(child, &mut byte, RecvFlags::DONTWAIT),
            Ok((0, _)) | Err(rustix::io::Errno::CONNRESET)
        )
}

/// The value of a name in `name value` lines.
pub(crate) fn value<'a>(facts: &'a str, name: &str) -> &'a str {
    let line = facts
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| {
        if facts.lines().any(|line| line == name) {
            ""
        } else {
            panic!("no {name} in\n{facts}")
        }
    })
}

fn readable(fd: impl AsFd) -> bool {
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() > 0
}

/// Accepts a new supervisor: its facts and its command socket.
fn accept(listener: &UnixListener) -> (UnixStream, String, OwnedFd) {
    let (supervisor, _) = listener.accept().unwrap();
    supervisor.set_nonblocking(false).unwrap();
    let (facts, command_socket) = receive_descriptor(&supervisor);
    (supervisor, facts, command_socket)
}

fn receive_descriptor(socket: &UnixStream) -> (String, OwnedFd) {
    assert!(readable(socket), "the supervisor sends nothing");
    let mut bytes = vec![0; 8192];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    (
        String::from_utf8(bytes[..received.bytes].to_vec()).unwrap(),
        descriptor.expect("the command socket"),
    )
}

fn open_to_all(path: &std::path::Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
}
