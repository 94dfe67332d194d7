//! Starts programs: what each gets, and our half of making its process.

use std::ffi::{CString, NulError, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use casemate_sandbox::launch::{KEPT_VARIABLES, OUTER_NAMESPACES, Program};
use casemate_sandbox::workers_memory_mib;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::thread::CapabilitySet;

use crate::cgroup::{Cgroup, Cgroups};
use crate::child::{self, Exec, Plan, Step};
use crate::walls::{WALLS, Walls};
use crate::{Refused, uid};

/// Time within which a child must have executed its program. A child does nothing that waits, so
/// this ends one on a stalled machine, before the supervisor gives up on launch.
const START_SECS_MAX: i64 = 10;

/// Where there is no cgroup, a worker's `RLIMIT_DATA` is its memory limit plus this: V8 maps 512
/// MiB writable for code on machines without protection keys, and the limit counts mapped memory,
/// not used memory.
const DATA_RESERVE_MIB: u64 = 1024;

/// `oom_score_adj` of launch, the supervisor, the vault and the gateway, from -1000 (never) to 1000
/// (first): the kernel ends them after every worker and most other programs. The score is not
/// -1000, so that a leak of theirs ends too.
const PROGRAM_OOM_SCORE: i32 = -900;
/// `oom_score_adj` of a worker: as if it used half of the machine's memory in addition.
const WORKER_OOM_SCORE: i32 = 500;

/// The programs that launch starts, in its folder.
pub(crate) const PROGRAMS: [&str; 4] = [
    "casemate-node",
    "casemate-vault",
    "casemate-gateway",
    "casemate-worker",
];

/// Everything that is the same for all children, determined once at our start.
pub(crate) struct Launcher {
    node: Installed,
    vault: Installed,
    gateway: Installed,
    worker: Installed,
    base: Option<u32>,
    walls: Walls,
    pub(crate) cgroups: Cgroups,
    environment: Vec<CString>,
    null: OwnedFd,
}

/// A program's file and its arguments. The file stays open: all children run the program that was
/// there at our start.
struct Installed {
    file: OwnedFd,
    arguments: Vec<CString>,
}

/// A child that was just made.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) pid: Pid,
    pub(crate) cgroup: Option<Cgroup>,
}

/// Why a child was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("cannot make a cgroup")]
    Cgroup(#[source] io::Error),
    #[error("cannot make a socket pair")]
    Line(#[source] Errno),
    #[error("cannot make a process")]
    Clone(#[source] io::Error),
    #[error("cannot put the process into its cgroup")]
    Join(#[source] io::Error),
    #[error("cannot set whether the kernel ends the process first when memory runs out")]
    OomScore(#[source] io::Error),
    #[error("cannot map the process's ids")]
    Map(#[source] io::Error),
    #[error("the process did not wait for us")]
    Gone(#[source] Errno),
    #[error("the process cannot {0}")]
    Step(Step, #[source] Errno),
    #[error("the process took more than {START_SECS_MAX} s")]
    Slow,
}

impl StartError {
    /// The errno for the supervisor.
    pub(crate) fn errno(&self) -> i32 {
        match self {
            Self::Cgroup(error)
            | Self::Clone(error)
            | Self::Join(error)
            | Self::OomScore(error)
            | Self::Map(error) => error.raw_os_error().unwrap_or(0),
            Self::Line(errno) | Self::Gone(errno) | Self::Step(_, errno) => errno.raw_os_error(),
            Self::Slow => Errno::TIMEDOUT.raw_os_error(),
        }
    }
}

impl Launcher {
    pub(crate) fn new(
        programs: &Path,
        (node, machine): (&Path, Option<&Path>),
        vault: &Path,
        state: &Path,
        base: Option<u32>,
    ) -> Result<Self, Refused> {
        let install = |name: &str, config: Option<&Path>, folder: &str| {
            let path = programs.join(name);
            let with_state = config.map(|config| (config, state.join(folder)));
            Installed::open(
                &path,
                name,
                with_state,
                machine.filter(|_| folder == "node"),
            )
            .map_err(|source| Refused::Program { path, source })
        };
        let step = |step, source: io::Error| Refused::Step { step, source };
        let null = openat(
            CWD,
            "/dev/null",
            OFlags::RDWR | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut launcher = Self {
            node: install(PROGRAMS[0], Some(node), "node")?,
            vault: install(PROGRAMS[1], Some(vault), "vault")?,
            gateway: install(PROGRAMS[2], None, "")?,
            worker: install(PROGRAMS[3], None, "")?,
            base,
            walls: Walls::None,
            cgroups: Cgroups::prepare(workers_memory_mib()),
            environment: environment().map_err(|error| step("read our namespaces", error))?,
            null: null.map_err(|error| step("open /dev/null", error.into()))?,
        };
        let works = |walls: &Walls| match launcher.try_out(*walls) {
            Ok(()) => true,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    walls = walls.describe(),
                    cause,
                    "not available here: {error}"
                );
                false
            }
        };
        launcher.walls = WALLS.into_iter().find(works).unwrap_or(Walls::None);
        tracing::info!(
            users = base.is_some(),
            walls = launcher.walls.describe(),
            cgroups = launcher.cgroups.describe(),
            "ready to start programs"
        );
        Ok(launcher)
    }

    /// Starts the supervisor, with its end of the command socket, the number of held sockets, and
    /// the number of children to adopt.
    pub(crate) fn start_supervisor(
        &self,
        socket: BorrowedFd<'_>,
        held: usize,
        adopts: usize,
    ) -> Result<Started, StartError> {
        let mut arguments = self.node.arguments.clone();
        for (option, number) in [(c"--held", held), (c"--adopt", adopts)] {
            if number > 0 {
                let number = CString::new(number.to_string()).expect("digits have no zero byte");
                arguments.extend([option.to_owned(), number]);
            }
        }
        let exec = Exec {
            arguments: &arguments,
            ..self.node.exec(&self.environment)
        };
        let cgroup = self.cgroups.make(0, None, 0, 0);
        let plan = Plan {
            namespaces: 0,
            id: self.id(uid::SUPERVISOR),
            capabilities: CapabilitySet::empty(),
            oom_score: PROGRAM_OOM_SCORE,
            may_lock_memory: false,
            data_max: None,
            input: Some(socket),
            null: self.null.as_fd(),
            program: Some(exec),
        };
        self.start(&plan, cgroup.map_err(StartError::Cgroup)?)
    }

    /// Starts a child at the supervisor's command. `slot` identifies a worker among those alive.
    pub(crate) fn start_child(
        &self,
        number: u64,
        program: Program,
        slot: u32,
        memory_mib: u32,
        pids: u32,
        input: BorrowedFd<'_>,
    ) -> Result<Started, StartError> {
        let cgroup = self
            .cgroups
            .make(number, Some(program), memory_mib, pids)
            .map_err(StartError::Cgroup)?;
        let data_max = (cgroup.is_none() && memory_mib > 0)
            .then(|| (u64::from(memory_mib) + DATA_RESERVE_MIB) << 20);
        let (installed, id, namespaces, capabilities) = match program {
            Program::Vault => (&self.vault, uid::VAULT, 0, CapabilitySet::empty()),
            // For ports below 1024; the gateway drops the capability once they are bound.
            Program::Gateway => (
                &self.gateway,
                uid::GATEWAY,
                0,
                CapabilitySet::NET_BIND_SERVICE,
            ),
            Program::Worker => (
                &self.worker,
                uid::FIRST_WORKER + slot,
                self.walls.flags(),
                self.walls.capabilities(),
            ),
        };
        let plan = Plan {
            namespaces,
            id: self.id(id),
            capabilities,
            oom_score: match program {
                Program::Worker => WORKER_OOM_SCORE,
                Program::Vault | Program::Gateway => PROGRAM_OOM_SCORE,
            },
            may_lock_memory: program == Program::Vault,
            data_max,
            input: Some(input),
            null: self.null.as_fd(),
            program: Some(installed.exec(&self.environment)),
        };
        self.start(&plan, cgroup)
    }

    /// Whether a worker can be made with these namespaces, up to the exec.
    fn try_out(&self, walls: Walls) -> Result<(), StartError> {
        let plan = Plan {
            namespaces: walls.flags(),
            id: self.id(uid::FIRST_WORKER),
            capabilities: walls.capabilities(),
            oom_score: WORKER_OOM_SCORE,
            may_lock_memory: false,
            data_max: None,
            input: None,
            null: self.null.as_fd(),
            program: None,
        };
        let started = self.start(&plan, None)?;
        let status = waitpid(Some(started.pid), WaitOptions::empty()).map_err(StartError::Gone)?;
        match status.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(StartError::Gone(Errno::CHILD)),
        }
    }

    fn id(&self, number: u32) -> Option<u32> {
        self.base.map(|base| base + number)
    }

    /// Makes the process and waits until it has executed its program. On failure nothing of it is
    /// left.
    fn start(&self, plan: &Plan<'_>, cgroup: Option<Cgroup>) -> Result<Started, StartError> {
        let pair = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        let made = pair.map_err(StartError::Line).and_then(|(ours, theirs)| {
            let pid = child::spawn(plan, theirs, &ours).map_err(StartError::Clone)?;
            let outcome = self.see_through(plan, pid, &ours, cgroup.as_ref());
            if outcome.is_err() {
                end(pid);
            }
            outcome.map(|()| pid)
        });
        match made {
            Ok(pid) => Ok(Started { pid, cgroup }),
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    cgroup.discard();
                }
                Err(error)
            }
        }
    }

    fn see_through(
        &self,
        plan: &Plan<'_>,
        pid: Pid,
        line: &OwnedFd,
        cgroup: Option<&Cgroup>,
    ) -> Result<(), StartError> {
        if let Some(cgroup) = cgroup {
            cgroup
                .add(pid.as_raw_nonzero().get().cast_unsigned())
                .map_err(StartError::Join)?;
        }

        // While this process still runs as launch's user.
        set_oom_score(pid, plan.oom_score).map_err(StartError::OomScore)?;

        if plan.namespaces & libc::CLONE_NEWUSER != 0 {
            map_ids(pid, self.base.is_some(), plan.id).map_err(StartError::Map)?;
        }

        send(line, &[1], SendFlags::NOSIGNAL).map_err(StartError::Gone)?;

        let limit = Timespec {
            tv_sec: START_SECS_MAX,
            tv_nsec: 0,
        };
        if poll(&mut [PollFd::new(line, PollFlags::IN)], Some(&limit)).map_err(StartError::Gone)?
            == 0
        {
            return Err(StartError::Slow);
        }
        let mut report = [0; 8];
        let (length, _) = recv(line, &mut report, RecvFlags::empty()).map_err(StartError::Gone)?;
        match child::decode(&report[..length]) {
            Some((step, errno)) => Err(StartError::Step(step, errno)),
            None => Ok(()),
        }
    }
}

impl Installed {
    fn open(
        path: &PathBuf,
        name: &str,
        config: Option<(&Path, PathBuf)>,
        machine: Option<&Path>,
    ) -> io::Result<Self> {
        let file = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let mut words = vec![OsStr::new(name)];
        if let Some((config, state)) = &config {
            words.extend([
                OsStr::new("--config"),
                config.as_os_str(),
                OsStr::new("--state"),
                state.as_os_str(),
            ]);
        }
        if let Some(machine) = machine {
            words.extend([OsStr::new("--machine"), machine.as_os_str()]);
        }
        let arguments: Result<_, NulError> = words
            .into_iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect();
        Ok(Self {
            file,
            arguments: arguments?,
        })
    }

    fn exec<'a>(&'a self, environment: &'a [CString]) -> Exec<'a> {
        Exec {
            file: self.file.as_fd(),
            arguments: &self.arguments,
            environment,
        }
    }
}

/// The variables that configure logging, and one that names our namespaces.
fn environment() -> io::Result<Vec<CString>> {
    let kept = std::env::vars().filter(|(name, _)| name.starts_with(KEPT_VARIABLES));
    let mut all: Vec<String> = kept
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut namespaces = Vec::new();
    for name in ["user", "pid", "mnt", "net", "ipc", "uts"] {
        // A kernel without this kind of namespace has no such link.
        if let Ok(link) = fs::read_link(Path::new("/proc/self/ns").join(name)) {
            namespaces.push(link.to_string_lossy().into_owned());
        }
    }
    if namespaces.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    all.push(format!("{OUTER_NAMESPACES}={}", namespaces.join(" ")));
    let all: Result<_, NulError> = all.into_iter().map(CString::new).collect();
    Ok(all?)
}

/// Maps the one user and group id of a new user namespace: its own, unchanged, or ours.
fn map_ids(pid: Pid, as_root: bool, id: Option<u32>) -> io::Result<()> {
    let folder = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let uid = id.unwrap_or(rustix::process::geteuid().as_raw());
    let gid = id.unwrap_or(rustix::process::getegid().as_raw());
    if !as_root {
        // Without privilege, groups can be mapped only after `setgroups` is denied.
        fs::write(folder.join("setgroups"), "deny")?;
    }
    fs::write(folder.join("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(folder.join("gid_map"), format!("{gid} {gid} 1"))
}

/// Sets `oom_score_adj` of launch itself, before it has a child.
pub(crate) fn protect_launch() {
    match set_oom_score(rustix::process::getpid(), PROGRAM_OOM_SCORE) {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "launch lacks CAP_SYS_RESOURCE: when memory runs out, the kernel ends the node's own programs before other \
             programs of this machine, though after workers"
        ),
        Err(error) => tracing::warn!(%error, "cannot set oom_score_adj of launch"),
    }
}

/// Sets the score and checks that it is in force: without `CAP_SYS_RESOURCE` a process cannot get a
/// score below the one that it inherited.
fn set_oom_score(pid: Pid, score: i32) -> io::Result<bool> {
    let file = format!("/proc/{}/oom_score_adj", pid.as_raw_nonzero());
    match fs::write(file, score.to_string()) {
        Err(error) if score < 0 && error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        outcome => outcome.map(|()| true),
    }
}

/// Ends a child with SIGKILL and waits for it.
fn end(pid: Pid) {
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), WaitOptions::empty());
}
