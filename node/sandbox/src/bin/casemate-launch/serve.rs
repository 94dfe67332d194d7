//! The main loop: receives commands, sends events, reaps children. It ends when the supervisor
//! does, and everything ends with it. A supervisor that crashes is started again and adopts its
//! predecessor's children: launch has kept the supervisor's ends of their control sockets, so that
//! the children notice nothing.
//!
//! Listening sockets outlive all of them: launch holds the gateway's, and passes them to each new
//! supervisor.

#![allow(unsafe_code, reason = "a descriptor that the kernel hands over")]

mod restart;
mod signals;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use casemate_sandbox::launch::{
    CHILDREN_MAX, COMMAND_BYTES_MAX, Command, End, Event, NOTE_BYTES, Program, Refusal,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair, sockopt,
};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};

use crate::cgroup::{AssignError, Cgroup};
use crate::sockets::Sockets;
use crate::start::{Launcher, StartError};
use crate::upgrade::Successor;
use crate::{Refused, exit};

use restart::is_crash;
use signals::{Ending, signals};

/// Time from a request to end until launch ends everything itself. The supervisor drains requests
/// meanwhile.
const GRACE: Duration = Duration::from_secs(15);
/// Time from the supervisor closing its socket until launch ends everything: it is about to exit,
/// or broken.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Time for children to end after SIGKILL; one that hangs in the kernel must not delay us.
const BURIAL: Duration = Duration::from_secs(5);
/// Events that may wait for the supervisor. While so many wait, the next start waits too, because it
/// is the only command that an event answers; the other commands are carried out. Exits may be added,
/// one for each child.
const EVENTS_MAX: usize = 1024;

/// How serving ended.
pub(crate) enum Outcome {
    /// Exit with this code.
    Exit(u8),
    /// Execute the program that is in our place now; it gets the sockets.
    Upgrade(Sockets),
}

/// Serves until the end. `sockets` are those that were passed to this process.
pub(crate) fn serve(
    launcher: Launcher,
    sockets: Sockets,
    successor: Successor,
) -> Result<Outcome, Refused> {
    let step = |step, source: io::Error| Refused::Step { step, source };
    let signals = signals().map_err(|error| step("take our signals as a descriptor", error))?;
    // One descriptor for each child, for a successor of the supervisor.
    casemate_sandbox::raise_descriptors()
        .map_err(|error| step("raise the limit of descriptors", io::Error::other(error)))?;
    let (socket, theirs) =
        command_socket().map_err(|error| step("make the command socket", error.into()))?;
    let events: VecDeque<_> = sockets.events().collect();
    let supervisor = launcher
        .start_supervisor(theirs.as_fd(), events.len(), 0)
        .map_err(Refused::Supervisor)?;
    drop(theirs);
    tracing::info!(pid = supervisor.pid.as_raw_nonzero(), "the supervisor runs");
    let mut server = Server {
        launcher,
        socket,
        signals,
        supervisor: Some(supervisor.pid),
        supervisor_cgroup: supervisor.cgroup,
        supervisor_end: None,
        children: BTreeMap::new(),
        free_slots: (0..CHILDREN_MAX as u32).collect(),
        started: 0,
        events,
        delayed: None,
        // A byte more than a command, so that a longer one is noticed.
        command: vec![0; COMMAND_BYTES_MAX + 1],
        listening: true,
        ending: None,
        deadline: None,
        restarts: VecDeque::new(),
        sockets,
        successor,
    };
    let code = server.run();
    Ok(match server.ending {
        Some(Ending::Upgrade) => Outcome::Upgrade(server.sockets),
        Some(Ending::Stop) | None => Outcome::Exit(code),
    })
}

/// Makes our end and the supervisor's.
fn command_socket() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

struct Server {
    launcher: Launcher,
    socket: OwnedFd,
    signals: OwnedFd,
    supervisor: Option<Pid>,
    supervisor_cgroup: Option<Cgroup>,
    supervisor_end: Option<End>,
    children: BTreeMap<u64, Child>,
    /// Free user ids, for workers.
    free_slots: BTreeSet<u32>,
    /// Number of children started so far, which names their cgroups.
    started: u64,
    events: VecDeque<(Event, Option<OwnedFd>)>,
    /// A start, with its descriptors, that waits until the supervisor has read events. No command is
    /// read meanwhile.
    delayed: Option<(Command, Vec<OwnedFd>)>,
    /// The buffer into which commands are read.
    command: Vec<u8>,
    /// Whether the supervisor's socket is still open.
    listening: bool,
    /// The end that was requested.
    ending: Option<Ending>,
    deadline: Option<Instant>,
    /// When the supervisor was restarted recently.
    restarts: VecDeque<Instant>,
    sockets: Sockets,
    successor: Successor,
}

struct Child {
    pid: Pid,
    program: Program,
    /// Memory limit in MiB; 0 means the machine's memory.
    memory_mib: u32,
    slot: Option<u32>,
    cgroup: Option<Cgroup>,
    /// The supervisor's end of the child's control socket.
    control: Option<OwnedFd>,
    note: [u8; NOTE_BYTES],
}

/// A packet from the supervisor.
enum Received {
    /// A command with its descriptors: for a start, the child's end of its control socket and the
    /// supervisor's; for a hold, the socket.
    Command(Command, Vec<OwnedFd>),
    Nothing,
    Closed,
    Malformed,
}

impl Server {
    fn run(&mut self) -> u8 {
        loop {
            self.wait();
            self.take_signals();
            self.reap();
            if (self.supervisor.is_none() && !self.restart_supervisor())
                || self
                    .deadline
                    .is_some_and(|deadline| Instant::now() >= deadline)
            {
                break;
            }
            if self.listening && !self.take_command() {
                break;
            }
            self.tell();
        }
        self.bury();
        self.exit_code()
    }

    /// Carries out the next command, if there is one and it need not wait. Returns false when
    /// everything is to end.
    fn take_command(&mut self) -> bool {
        let received = match self.delayed.take() {
            Some((command, descriptors)) => Received::Command(command, descriptors),
            None => self.receive(),
        };
        match received {
            Received::Command(command @ Command::Start { .. }, descriptors)
                if self.events.len() >= EVENTS_MAX =>
            {
                self.delayed = Some((command, descriptors));
            }
            Received::Command(command, descriptors) => self.obey(command, descriptors),
            Received::Nothing => {}
            Received::Closed => {
                self.listening = false;
                self.end_within(LAST_WORDS);
            }
            Received::Malformed => {
                tracing::error!("the supervisor sent a malformed command; ending all programs");
                return false;
            }
        }
        true
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        if self.delayed.is_some() && self.events.len() < EVENTS_MAX {
            return;
        }
        let mut wanted = PollFlags::empty();
        if self.delayed.is_none() {
            wanted |= PollFlags::IN;
        }
        if !self.events.is_empty() {
            wanted |= PollFlags::OUT;
        }
        let mut all = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if self.listening {
            all.push(PollFd::new(&self.socket, wanted));
        }
        let limit = self
            .deadline
            .map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        if let Err(error) = poll(&mut all, limit.as_ref()) {
            tracing::debug!(%error, "poll");
        }
    }

    fn end_within(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        self.deadline = Some(
            self.deadline
                .map_or(deadline, |earlier| earlier.min(deadline)),
        );
    }

    /// Reaps all children that have ended; as the first process of a container, also orphans.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if self.supervisor == Some(pid) {
                self.supervisor = None;
                self.supervisor_end = Some(end(status, None));
                if let Some(cgroup) = self.supervisor_cgroup.take() {
                    self.launcher.cgroups.remove(cgroup);
                }
                continue;
            }
            let Some(id) = self
                .children
                .iter()
                .find_map(|(id, child)| (child.pid == pid).then_some(*id))
            else {
                continue;
            };
            let Some(child) = self.children.remove(&id) else {
                continue;
            };
            let end = end(status, child.cgroup.as_ref());
            if let Some(cgroup) = child.cgroup {
                self.launcher.cgroups.remove(cgroup);
            }
            self.free_slots.extend(child.slot);
            match end {
                End::Signal(libc::SIGSYS) => {
                    tracing::warn!(id, program = ?child.program, "a program was ended by a system \
                    call outside its policy");
                }
                end => tracing::debug!(id, program = ?child.program, ?end, "exited"),
            }
            self.events.push_back((Event::Exited { id, end }, None));
        }
    }

    fn receive(&mut self) -> Received {
        // One descriptor more than two, so that an excess is noticed.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut self.command)],
            &mut ancillary,
            flags,
        ) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Received::Nothing,
            Err(_) => return Received::Closed,
        };
        let mut descriptors: Vec<OwnedFd> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.bytes == 0 && descriptors.is_empty() {
            return Received::Closed;
        }
        let command = Command::decode(&self.command[..received.bytes]);
        let whole = !received
            .flags
            .intersects(ReturnFlags::CTRUNC | ReturnFlags::TRUNC);
        match command {
            Ok(command) if whole && command.descriptors().contains(&descriptors.len()) => {
                Received::Command(command, descriptors)
            }
            _ => Received::Malformed,
        }
    }

    fn obey(&mut self, command: Command, descriptors: Vec<OwnedFd>) {
        match command {
            Command::Start {
                id,
                program,
                memory_mib,
                pids,
            } => {
                let event = match self.start(id, program, memory_mib, pids, descriptors) {
                    Ok(pid) => Event::Started {
                        id,
                        pid: pid.as_raw_nonzero().get().cast_unsigned(),
                    },
                    Err(refusal) => {
                        tracing::warn!(id, ?program, ?refusal, "a child was not started");
                        Event::Refused { id, refusal }
                    }
                };
                self.events.push_back((event, None));
            }
            Command::Kill { ids } => {
                for child in ids.iter().filter_map(|id| self.children.get(id)) {
                    let _ = kill_process(child.pid, Signal::KILL);
                }
            }
            Command::Assign {
                id,
                memory_mib,
                tenant,
                tenant_memory_mib,
            } => self.assign(id, tenant, memory_mib.get(), tenant_memory_mib.get()),
            Command::Note { id, note } => {
                if let Some(child) = self.children.get_mut(&id) {
                    child.note = note;
                }
            }
            Command::Hold { id } => {
                for socket in descriptors {
                    if let Err(error) = self.sockets.hold(id, socket) {
                        tracing::warn!(id, "a socket of the supervisor is not held: {error}");
                    }
                }
            }
            Command::Release { id } => self.sockets.release(id),
        }
    }

    fn start(
        &mut self,
        id: u64,
        program: Program,
        memory_mib: u32,
        pids: u32,
        ends: Vec<OwnedFd>,
    ) -> Result<Pid, Refusal> {
        let mut ends = ends.into_iter();
        let (Some(input), control) = (ends.next(), ends.next()) else {
            return Err(Refusal::NotAControlSocket);
        };
        if self.children.contains_key(&id) {
            return Err(Refusal::Duplicate);
        }
        let is_worker = program == Program::Worker;
        let single_is_up =
            !is_worker && self.children.values().any(|child| child.program == program);
        if single_is_up || self.children.len() >= CHILDREN_MAX {
            return Err(Refusal::Busy);
        }
        if is_worker && (memory_mib == 0 || pids == 0) {
            return Err(Refusal::Unlimited);
        }
        if sockopt::socket_type(&input) != Ok(SocketType::SEQPACKET) {
            return Err(Refusal::NotAControlSocket);
        }
        let slot = if is_worker {
            Some(self.free_slots.pop_first().ok_or(Refusal::Busy)?)
        } else {
            None
        };
        self.started += 1;
        let made = self.launcher.start_child(
            self.started,
            program,
            slot.unwrap_or(0),
            memory_mib,
            pids,
            input.as_fd(),
        );
        match made {
            Ok(started) => {
                let child = Child {
                    pid: started.pid,
                    program,
                    memory_mib,
                    slot,
                    cgroup: started.cgroup,
                    control,
                    note: [0; NOTE_BYTES],
                };
                self.children.insert(id, child);
                Ok(started.pid)
            }
            Err(error) => {
                self.free_slots.extend(slot);
                Err(refusal(id, &error))
            }
        }
    }

    /// Assigns a worker to a tenant. The worker's own memory limit is lowered and never raised, so
    /// that a taken-over supervisor gains no memory.
    fn assign(&mut self, id: u64, tenant: NonZeroU32, memory_mib: u32, tenant_memory_mib: u32) {
        let Some(child) = self.children.get_mut(&id) else {
            return;
        };
        let in_force_mib = child.memory_mib;
        if child.program != Program::Worker || memory_mib > in_force_mib {
            tracing::warn!(
                id,
                memory_mib,
                in_force_mib,
                "assignment ignored: only a worker has a tenant, and its memory limit is never raised"
            );
            return;
        }
        let Some(cgroup) = &mut child.cgroup else {
            return;
        };
        let pid = child.pid.as_raw_nonzero().get().cast_unsigned();
        let limits = (memory_mib, tenant_memory_mib);
        match self.launcher.cgroups.assign(cgroup, pid, tenant, limits) {
            Ok(()) => child.memory_mib = memory_mib,
            Err(error @ AssignError::OfAnother(_)) => {
                tracing::warn!(id, %tenant, "assignment ignored: {error}");
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(id, %tenant, cause, "{error}; the worker will be ended");
                let _ = kill_process(child.pid, Signal::KILL);
            }
        }
    }

    /// Sends as many events as the supervisor takes at the moment.
    fn tell(&mut self) {
        while let Some((event, descriptor)) = self.events.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let descriptor = descriptor.as_ref().map(AsFd::as_fd);
            let descriptors = descriptor.as_slice();
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            match sendmsg(
                &self.socket,
                &[IoSlice::new(&event.encode())],
                &mut ancillary,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                // A supervisor that is gone shows as the end of its socket or process.
                Ok(_) | Err(_) => drop(self.events.pop_front()),
            }
        }
    }

    /// Ends all remaining children and waits for them.
    fn bury(&mut self) {
        let deadline = Instant::now() + BURIAL;
        let left = |server: &Self| {
            server
                .supervisor
                .into_iter()
                .chain(server.children.values().map(|child| child.pid))
                .collect()
        };
        let all: Vec<Pid> = left(self);
        for pid in &all {
            let _ = kill_process(*pid, Signal::KILL);
        }
        self.deadline = Some(deadline);
        (self.listening, self.delayed) = (false, None);
        while Instant::now() < deadline && (self.supervisor.is_some() || !self.children.is_empty())
        {
            self.wait();
            self.take_signals();
            self.reap();
        }
        self.launcher.cgroups.close();
        if !all.is_empty() {
            tracing::info!(ended = all.len(), "ended the remaining children");
        }
    }

    /// The supervisor's own code, if that asks for an action of the operator; never 0 if no end was
    /// requested.
    fn exit_code(&self) -> u8 {
        match self.supervisor_end {
            // A supervisor that has just been started ends by the signal: it does not handle it yet.
            Some(End::Exit(0) | End::Signal(libc::SIGTERM)) if self.ending.is_some() => 0,
            Some(End::Exit(0)) => exit::TEMPORARY,
            Some(End::Exit(code)) if !is_crash(End::Exit(code)) => {
                u8::try_from(code).unwrap_or(exit::SOFTWARE)
            }
            end => {
                tracing::error!(?end, "the supervisor did not end by itself");
                exit::SOFTWARE
            }
        }
    }
}

fn refusal(id: u64, error: &StartError) -> Refusal {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::error!(id, cause, "{error}");
    Refusal::Failed(error.errno())
}

fn end(status: WaitStatus, cgroup: Option<&Cgroup>) -> End {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(libc::SIGKILL), _) if cgroup.is_some_and(Cgroup::out_of_memory) => End::OutOfMemory,
        (Some(signal), _) => End::Signal(signal),
        (None, code) => End::Exit(code.unwrap_or_default()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    // A millisecond more, so that the deadline has passed when we wake.
    let duration = duration + Duration::from_millis(1);
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}
