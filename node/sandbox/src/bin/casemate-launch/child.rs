//! The steps between clone(2) and the program: a straight list in the new process, which has one
//! thread, a copy of our memory, and must never return to our code.

#![allow(unsafe_code, reason = "a new process between clone and exec")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{self, Gid, Pid, Resource, Rlimit, Signal, Uid, setrlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::exit;

/// All that the new process needs, made before it exists.
pub(crate) struct Plan<'a> {
    /// Flags of clone(2): its new namespaces.
    pub(crate) namespaces: libc::c_int,
    /// User and group id; `None` keeps ours.
    pub(crate) id: Option<u32>,
    /// The capabilities that the child keeps over the exec, out of those it has.
    pub(crate) capabilities: CapabilitySet,
    /// The value of `oom_score_adj`, which the parent sets.
    pub(crate) oom_score: i32,
    /// Whether it may lock all its memory.
    pub(crate) may_lock_memory: bool,
    /// `RLIMIT_DATA`, bytes.
    pub(crate) data_max: Option<u64>,
    /// Descriptor 0; `None` means /dev/null.
    pub(crate) input: Option<BorrowedFd<'a>>,
    /// /dev/null, for descriptor 1.
    pub(crate) null: BorrowedFd<'a>,
    /// The program to execute; `None` exits with 0, for a trial.
    pub(crate) program: Option<Exec<'a>>,
}

/// A program to execute.
pub(crate) struct Exec<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
}

/// A step that failed in the new process. Its number is sent over the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[rustfmt::skip]
pub(crate) enum Step {
    #[error("wait for its parent")] Wait,
    #[error("start a session")] Session,
    #[error("set its standard descriptors")] Descriptors,
    #[error("make its mounts its own")] Mounts,
    #[error("drop capabilities from the bounding set")] Bounding,
    #[error("leave our groups")] Groups,
    #[error("take its group id")] Group,
    #[error("keep capabilities over the change of user")] KeepCapabilities,
    #[error("take its user id")] User,
    #[error("set its capabilities")] Capabilities,
    #[error("set its ambient capabilities")] Ambient,
    #[error("limit its memory")] Limit,
    #[error("give up new privileges")] NoNewPrivs,
    #[error("die with its parent")] DeathSignal,
    #[error("close other descriptors")] Close,
    #[error("unblock signals")] Signals,
    #[error("execute its program")] Exec,
}

const STEPS: [Step; 17] = [
    Step::Wait,
    Step::Session,
    Step::Descriptors,
    Step::Mounts,
    Step::Bounding,
    Step::Groups,
    Step::Group,
    Step::KeepCapabilities,
    Step::User,
    Step::Capabilities,
    Step::Ambient,
    Step::Limit,
    Step::NoNewPrivs,
    Step::DeathSignal,
    Step::Close,
    Step::Signals,
    Step::Exec,
];

/// Makes the process. It waits for a byte on `line`, then follows the plan. A step that fails is
/// reported over the line; the line closes when the program was executed or the process is gone.
/// `ours` is the line's other end.
pub(crate) fn spawn(plan: &Plan<'_>, line: OwnedFd, ours: &OwnedFd) -> io::Result<Pid> {
    let flags = libc::c_long::from(plan.namespaces | libc::SIGCHLD);
    let nothing: libc::c_long = 0;
    // SAFETY: without CLONE_VM and without a stack this is fork(2) with namespaces: the child
    // continues here on a copy of this stack and memory, so nothing of ours changes. This program
    // has one thread, so no lock (of the allocator, of the log) is held by a thread that the child
    // lacks. The child never returns from the block below.
    match unsafe { libc::syscall(libc::SYS_clone, flags, nothing, nothing, nothing, nothing) } {
        0 => {
            // If a panic unwound from here, our caller's destructors would run a second time, in
            // the child.
            let _no_way_back = NoWayBack;
            forget(ours);
            let (step, errno) = match follow(plan, &line) {
                Ok(never) => match never {},
                Err(failed) => failed,
            };
            let number = STEPS
                .iter()
                .position(|other| *other == step)
                .unwrap_or_default();
            let mut report = (number as u32).to_le_bytes().to_vec();
            report.extend(errno.raw_os_error().to_le_bytes());
            let _ = send(&line, &report, SendFlags::NOSIGNAL);
            leave(exit::UNAVAILABLE.into())
        }
        pid => match i32::try_from(pid).ok().and_then(Pid::from_raw) {
            Some(pid) if pid.as_raw_nonzero().get() > 0 => Ok(pid),
            _ => Err(io::Error::last_os_error()),
        },
    }
}

/// Closes the child's copy of its parent's end: otherwise the line would never close, and a child
/// whose parent died would wait without end.
fn forget(ours: &OwnedFd) {
    // SAFETY: closes a number and touches no memory. The child neither uses its copy of `ours`
    // after this nor drops it, because it never returns from `spawn`.
    unsafe { libc::close(ours.as_raw_fd()) };
}

/// Parses the child's report.
pub(crate) fn decode(report: &[u8]) -> Option<(Step, Errno)> {
    let (step, errno) = report.split_first_chunk::<4>()?;
    let step = STEPS.get(u32::from_le_bytes(*step) as usize)?;
    Some((
        *step,
        Errno::from_raw_os_error(i32::from_le_bytes(errno.try_into().ok()?)),
    ))
}

enum Never {}

#[expect(clippy::too_many_lines, reason = "older than the limit")]
fn follow(plan: &Plan<'_>, line: &OwnedFd) -> Result<Never, (Step, Errno)> {
    // Our parent first puts us into a cgroup and maps our ids. The line closes if the parent dies
    // meanwhile.
    let mut go = [0];
    match recv(line, &mut go, RecvFlags::empty()).map_err(|error| (Step::Wait, error))? {
        (1, _) => {}
        _ => leave(exit::UNAVAILABLE.into()),
    }

    process::setsid().map_err(|error| (Step::Session, error))?;

    rustix::stdio::dup2_stdin(plan.input.unwrap_or(plan.null))
        .map_err(|error| (Step::Descriptors, error))?;
    rustix::stdio::dup2_stdout(plan.null).map_err(|error| (Step::Descriptors, error))?;

    // Mounts of the program must not propagate to the machine.
    if plan.namespaces & libc::CLONE_NEWNS != 0 {
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).map_err(|error| (Step::Mounts, error))?;
    }

    // Done while we have the capability. Without it the program reports that its memory is not
    // locked.
    if plan.may_lock_memory {
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        match setrlimit(Resource::Memlock, unlimited) {
            Ok(()) | Err(Errno::PERM) => {}
            Err(error) => return Err((Step::Limit, error)),
        }
    }

    // Done while we have the capability; without it there is nothing to drop.
    let held = thread::capabilities(None).map_err(|error| (Step::Capabilities, error))?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(plan.capabilities).iter() {
            match thread::remove_capability_from_bounding_set(capability) {
                // This kernel does not know the capability.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err((Step::Bounding, error)),
            }
        }
    }

    if let Some(id) = plan.id {
        // Groups come before the user, because the unprivileged user cannot change them.
        thread::set_thread_groups(&[]).map_err(|error| (Step::Groups, error))?;
        let gid = Gid::from_raw(id);
        thread::set_thread_res_gid(gid, gid, gid).map_err(|error| (Step::Group, error))?;
        thread::set_keep_capabilities(true).map_err(|error| (Step::KeepCapabilities, error))?;
        let uid = Uid::from_raw(id);
        thread::set_thread_res_uid(uid, uid, uid).map_err(|error| (Step::User, error))?;
    }

    let kept = plan.capabilities & held.permitted;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: kept,
    };
    thread::set_capabilities(None, sets).map_err(|error| (Step::Capabilities, error))?;
    thread::clear_ambient_capability_set().map_err(|error| (Step::Ambient, error))?;
    for capability in kept.iter() {
        thread::configure_capability_in_ambient_set(capability, true)
            .map_err(|error| (Step::Ambient, error))?;
    }

    if let Some(bytes) = plan.data_max {
        let limit = Rlimit {
            current: Some(bytes),
            maximum: Some(bytes),
        };
        setrlimit(Resource::Data, limit).map_err(|error| (Step::Limit, error))?;
    }

    thread::set_no_new_privs(true).map_err(|error| (Step::NoNewPrivs, error))?;

    // Comes after the change of user, which resets it. If our parent died before, the line is
    // closed, because no signal would come then.
    process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| (Step::DeathSignal, error))?;
    match recv(line, &mut go, RecvFlags::DONTWAIT) {
        Err(Errno::AGAIN) => {}
        _ => leave(exit::UNAVAILABLE.into()),
    }

    // These are closed by the exec, because the line and the program are among them.
    close_descriptors_from(FIRST_OTHER, libc::CLOSE_RANGE_CLOEXEC)
        .map_err(|error| (Step::Close, errno(&error)))?;

    ordinary_signals().map_err(|error| (Step::Signals, errno(&error)))?;

    match &plan.program {
        Some(program) => Err((Step::Exec, errno(&execute(program)))),
        None => leave(0),
    }
}

/// The first descriptor that is not a standard one.
pub(crate) const FIRST_OTHER: u32 = 3;

/// Closes every descriptor from `first` on; with `CLOSE_RANGE_CLOEXEC`, marks them for closing at
/// the exec.
pub(crate) fn close_descriptors_from(first: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes three numbers and touches no memory. No object of ours uses a descriptor above
    // 2 after this: at our start there is none, and in a child only the exec follows, until which
    // they stay open.
    match unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            libc::c_uint::MAX,
            flags,
        )
    } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unblocks all signals and resets SIGPIPE to the default: both would survive the exec.
fn ordinary_signals() -> io::Result<()> {
    // SAFETY: an all-zero `sigset_t` is the empty set on Linux, and it outlives the call; the
    // previous mask is not requested. SIG_DFL installs no handler, so no code of ours can run in a
    // signal.
    let outcome = unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut())
    };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Executes by descriptor, because the program's user may not be able to reach its path. Returns
/// only on an error.
fn execute(program: &Exec<'_>) -> io::Error {
    let pointers = |strings: &[CString]| {
        let all = strings.iter().map(|string| string.as_ptr());
        all.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let (arguments, environment) = (pointers(program.arguments), pointers(program.environment));
    // SAFETY: both lists end with a null pointer and point at C strings that `program` keeps alive; the path is a C string
    // too. On success this memory is gone; on failure the kernel has only read it.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.file.as_fd().as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::INVAL)
}

/// Ends the child without running the exit handlers that our parent has registered.
fn leave(code: i32) -> ! {
    // SAFETY: _exit(2) has no precondition. Destructors and exit handlers must not run, because
    // they belong to our parent.
    unsafe { libc::_exit(code) }
}

struct NoWayBack;

impl Drop for NoWayBack {
    fn drop(&mut self) {
        leave(exit::SOFTWARE.into());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::process::{WaitOptions, kill_process, waitpid};

    use super::*;

    #[test]
    fn a_child_whose_parent_is_gone_before_it_may_begin_ends() {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let plan = Plan {
            namespaces: 0,
            id: None,
            capabilities: CapabilitySet::empty(),
            oom_score: 0,
            may_lock_memory: false,
            data_max: None,
            input: None,
            null: null.as_fd(),
            program: None,
        };
        let child = spawn(&plan, theirs, &ours).unwrap();
        // This is what happens when we die: nothing was sent. (A test has threads, but the child
        // only waits and ends, without touching their memory.)
        drop(ours);
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Some((_, status)) = waitpid(Some(child), WaitOptions::NOHANG).unwrap() {
                assert_eq!(status.exit_status(), Some(exit::UNAVAILABLE.into()));
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        kill_process(child, Signal::KILL).unwrap();
        panic!("the child waits without end");
    }

    #[test]
    fn each_step_has_a_number_of_its_own_and_nothing_else_has() {
        for (number, step) in STEPS.iter().enumerate() {
            assert_eq!(STEPS.iter().filter(|other| *other == step).count(), 1);
            let report = [(number as u32).to_le_bytes(), 13_i32.to_le_bytes()].concat();
            assert_eq!(decode(&report), Some((*step, Errno::ACCESS)));
        }
        for nonsense in [&[][..], &[0; 7], &[0; 9], &[99, 0, 0, 0, 1, 0, 0, 0]] {
            assert_eq!(decode(nonsense), None);
        }
    }
}
