//! The whole shell: the test plays launch, vault, gateway and workers, over the sockets that they
//! have on a node.

use std::collections::{BTreeMap, VecDeque};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use casemate_channel::Control;
use casemate_channel::control::pair;
use casemate_sandbox::launch::{COMMAND_BYTES_MAX, Command};
use casemate_wire::control::Limits;
use casemate_wire::control::gateway::Perimeter;
use casemate_wire::control::parts::Part;
use casemate_wire::control::vault::{FunctionPlan, Plan};
use casemate_wire::control::worker::ToWorker;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    sockopt,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use super::*;

/// As many as a node may be told to run.
const WORKERS: u64 = 4000;
const VAULT: u64 = 1;
const GATEWAY: u64 = 2;
/// The first worker's id.
const FIRST: u64 = 10;
/// Waiting events beyond which launch reads no command. The present launch reads commands all the
/// same, but launch may be of another version while a node is upgraded.
const EVENTS_MAX: usize = 1024;
/// Of the sockets between launch and the supervisor: room for a few packets, and for the longest.
const SOCKET_BYTES: usize = 2 * COMMAND_BYTES_MAX;
/// For anything to happen at all.
const PATIENCE: Duration = Duration::from_secs(60);
const RELEASE: [u8; 32] = [5; 32];

/// What the test sees of launch's work.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Started(Program),
    /// One command to end so many children.
    Killed(usize),
    /// The last adopted worker has ended, and the supervisor has been sent every event.
    AllGone,
}

/// Plays casemate-launch.
struct Launch {
    socket: OwnedFd,
    watch: UnixStream,
    events: VecDeque<(Event, Option<OwnedFd>)>,
    /// The children that run; those without a task are played by the test.
    children: BTreeMap<u64, Option<AbortHandle>>,
    ended: mpsc::UnboundedSender<(u64, End)>,
    seen: mpsc::UnboundedSender<Seen>,
}

impl Launch {
    fn new(
        socket: OwnedFd,
        ended: mpsc::UnboundedSender<(u64, End)>,
        seen: mpsc::UnboundedSender<Seen>,
    ) -> Self {
        let watch = std::os::unix::net::UnixStream::from(socket.try_clone().unwrap());
        watch.set_nonblocking(true).unwrap();
        Self {
            socket,
            watch: UnixStream::from_std(watch).unwrap(),
            events: VecDeque::new(),
            children: BTreeMap::new(),
            ended,
            seen,
        }
    }

    /// A child of an earlier supervisor; the end of its control socket that is its own.
    fn adopted(&mut self, id: u64, program: Program) -> OwnedFd {
        let (ours, theirs) = pair().unwrap();
        let is_worker = program == Program::Worker;
        let event = Event::Adopted {
            id,
            program,
            pid: 1,
            memory_mib: if is_worker { 128 } else { 0 },
            tenant: std::num::NonZeroU32::new(7).filter(|_| is_worker),
            note: if is_worker { RELEASE } else { [0; NOTE_BYTES] },
        };
        self.events.push_back((event, Some(ours)));
        self.children.insert(id, None);
        theirs
    }

    fn worker(&mut self, id: u64, control: OwnedFd) {
        let task = tokio::spawn(worker(id, control, self.ended.clone()));
        self.children.insert(id, Some(task.abort_handle()));
    }

    async fn run(mut self, mut ended: mpsc::UnboundedReceiver<(u64, End)>) {
        let mut is_told = false;
        loop {
            let reads = self.events.len() < EVENTS_MAX;
            let writes = !self.events.is_empty();
            tokio::select! {
                Some((id, end)) = ended.recv() => self.exited(id, end),
                command = self.watch.async_io(Interest::READABLE, || receive(&self.socket)),
                    if reads =>
                {
                    match command.unwrap() {
                        Some((command, descriptors)) => self.obey(command, descriptors),
                        None => return,
                    }
                }
                sent = self.watch.async_io(Interest::WRITABLE, || {
                    send(&self.socket, &self.events[0])
                }), if writes => {
                    sent.unwrap();
                    self.events.pop_front();
                }
            }
            let left = self.children.range(FIRST..FIRST + WORKERS).next();
            if left.is_none() && self.events.is_empty() && !std::mem::replace(&mut is_told, true) {
                self.seen.send(Seen::AllGone).unwrap();
            }
        }
    }

    fn exited(&mut self, id: u64, end: End) {
        if let Some(task) = self.children.remove(&id) {
            task.inspect(AbortHandle::abort);
            self.events.push_back((Event::Exited { id, end }, None));
        }
    }

    fn obey(&mut self, command: Command, mut descriptors: Vec<OwnedFd>) {
        match command {
            Command::Start { id, program, .. } => {
                self.worker(id, descriptors.remove(0));
                self.events.push_back((Event::Started { id, pid: 1 }, None));
                self.seen.send(Seen::Started(program)).unwrap();
            }
            Command::Kill { ids } => {
                self.seen.send(Seen::Killed(ids.len())).unwrap();
                ids.into_iter()
                    .for_each(|id| self.exited(id, End::Signal(9)));
            }
            _ => {}
        }
    }
}

fn receive(socket: &OwnedFd) -> io::Result<Option<(Command, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; COMMAND_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, into, &mut ancillary, RecvFlags::DONTWAIT)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    let descriptors = descriptors.collect();
    let command = Command::decode(&bytes[..received.bytes]).unwrap();
    Ok(Some((command, descriptors)))
}

fn send(socket: &OwnedFd, (event, descriptor): &(Event, Option<OwnedFd>)) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptor = descriptor.as_ref().map(AsFd::as_fd);
    if descriptor.is_some() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptor.as_slice()));
    }
    let bytes = event.encode();
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)?;
    Ok(())
}

/// A worker that ends when it is told to, or when its socket closes.
async fn worker(id: u64, control: OwnedFd, ended: mpsc::UnboundedSender<(u64, End)>) {
    let control = Control::<FromWorker, ToWorker>::new(control).unwrap();
    while let Ok(Some((message, _))) = control.recv().await {
        if matches!(message, ToWorker::Stop { .. }) {
            break;
        }
    }
    drop(control);
    // Launch may be gone with the test.
    let _sent = ended.send((id, End::Exit(0)));
}

fn function() -> FunctionPlan {
    FunctionPlan {
        function: "web".into(),
        is_fallback: false,
        release: RELEASE,
        bundle: RELEASE,
        bundle_bytes: 1,
        entry: "main.js".into(),
        hosts: vec!["web.test".into()],
        lost_hosts: vec![],
        perimeter: Perimeter {
            methods: vec![],
            paths: vec![],
            max_body_bytes: 1,
        },
        limits: Limits {
            cpu_time_ms: 1,
            wall_time_ms: 60_000,
            heap_mib: 64,
            subrequests: 1,
            concurrency: 2,
        },
        vars: vec![],
        bindings: vec![],
        dynamic_code: false,
    }
}

fn plan(manifest_version: u64, functions: Vec<FunctionPlan>) -> FromVault {
    let plan = Plan {
        tenant: [1; 32],
        name: "shop".into(),
        memory_mib: u32::MAX,
        manifest_version,
        manifest: [0; 32],
        functions,
    };
    FromVault::Plan(Box::new(Part::cut(plan).remove(0)))
}

fn vault_hello() -> FromVault {
    FromVault::Hello(Box::new(VaultHello {
        node: "node-1".into(),
        node_key: [1; 32],
        fleet: [2; 32],
        pool: "pool".into(),
        // Nobody is there.
        control_address: "127.0.0.1:1".into(),
        control_key: [3; 32],
        join_request: None,
        state_key: [7; 32],
        layers: Vec::new(),
    }))
}

/// A node with all the workers that it may have, adopted from a supervisor that crashed.
struct Node {
    vault: Control<FromVault, ToVault>,
    gateway: Control<FromGateway, ToGateway>,
    ended: mpsc::UnboundedSender<(u64, End)>,
    seen: mpsc::UnboundedReceiver<Seen>,
    _state: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        casemate_sandbox::raise_descriptors().unwrap();
        let state = tempfile::tempdir().unwrap();
        let file = state.path().join("node.toml");
        let text = format!("[gateway]\nlisten = [\"[::]:80\"]\n[workers]\nmax = {WORKERS}\n");
        std::fs::write(&file, text).unwrap();
        let config = Config::read(&file, state.path(), None).unwrap();
        let admin = admin::bind(&state.path().join("admin")).unwrap();

        let (type_, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (ours, theirs) = socketpair(AddressFamily::UNIX, type_, flags, None).unwrap();
        for socket in [&ours, &theirs] {
            sockopt::set_socket_send_buffer_size(socket, SOCKET_BYTES).unwrap();
        }
        let ((ended, ends), (sees, seen)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let mut launch = Launch::new(theirs, ended.clone(), sees);
        let vault = launch.adopted(VAULT, Program::Vault);
        let gateway = launch.adopted(GATEWAY, Program::Gateway);
        for id in FIRST..FIRST + WORKERS {
            let control = launch.adopted(id, Program::Worker);
            launch.worker(id, control);
        }
        let inheritance = Inheritance {
            sockets: 0,
            children: u32::try_from(launch.children.len()).unwrap(),
        };
        tokio::spawn(launch.run(ends));
        let client = Client::new(ours).unwrap();
        tokio::spawn(run(config, client, admin, Vec::new(), inheritance));
        Self {
            vault: Control::new(vault).unwrap(),
            gateway: Control::new(gateway).unwrap(),
            ended,
            seen,
            _state: state,
        }
    }

    async fn vault_says(&self, messages: impl IntoIterator<Item = FromVault>) {
        for message in messages {
            self.vault.send(&message, &[]).await.unwrap();
        }
    }

    /// What launch has done until it had done this, which comes last.
    async fn until(&mut self, wanted: Seen) -> Vec<Seen> {
        let mut all = Vec::new();
        while all.last() != Some(&wanted) {
            let seen = tokio::time::timeout(PATIENCE, self.seen.recv()).await;
            all.push(seen.expect("both sides make progress").unwrap());
        }
        all
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_crashes_while_4000_workers_finish_blocks_nobody() {
    let mut node = Node::start();
    let told = [
        vault_hello(),
        plan(1, vec![function()]),
        FromVault::AllPlans,
    ];
    node.vault_says(told).await;
    // No manifest lists the function any more: each worker finishes what it does.
    node.vault_says([plan(2, vec![])]).await;
    let mut retired = 0;
    while retired < WORKERS {
        let message = tokio::time::timeout(PATIENCE, node.gateway.recv()).await;
        let (message, _) = message.unwrap().unwrap().unwrap();
        retired += u64::from(matches!(message, ToGateway::Retire { .. }));
    }
    // Nobody would report that they have finished: all are stopped at once.
    node.gateway = Control::new(pair().unwrap().0).unwrap();
    node.ended.send((GATEWAY, End::Signal(11))).unwrap();
    node.until(Seen::AllGone).await;
    node.until(Seen::Started(Program::Gateway)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_end_together_end_by_one_command() {
    let mut node = Node::start();
    // No plan names what they run.
    node.vault_says([vault_hello(), FromVault::AllPlans]).await;
    let seen = node.until(Seen::AllGone).await;
    assert!(seen.contains(&Seen::Killed(WORKERS as usize)), "{seen:?}");
}
