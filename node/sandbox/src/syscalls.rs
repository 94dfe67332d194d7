//! System calls that no safe crate wraps.

#![allow(unsafe_code, reason = "calls that no safe crate wraps")]

use std::io;
use std::time::Duration;

use crate::Profile;
use crate::SandboxError;
use crate::policy;

/// The kernel's `PID_MAX_LIMIT`: no process has a higher id.
const PID_MAX: u32 = 1 << 22;

/// `CPUCLOCK_SCHED`: the kind of CPU clock that counts nanoseconds, not ticks.
const CPUCLOCK_SCHED: libc::clockid_t = 2;

/// CPU time of a process so far, of all its threads; works for processes of other users and in
/// inner PID namespaces too.
///
/// The outer limit on a worker's CPU time relies on it, because an attacker who has taken over the
/// worker can disable the worker's own watch. It opens no file, so it works inside the sandbox of
/// every profile.
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = match libc::pid_t::try_from(pid) {
        Ok(process) if (1..=PID_MAX).contains(&pid) => process,
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    // Like clock_getcpuclockid(3), which in addition makes a system call that no policy allows.
    let clock = (!pid << 3) | CPUCLOCK_SCHED;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer points to a live value of the right type, which the kernel writes; the
    // clock is a plain number.
    match unsafe { libc::clock_gettime(clock, &raw mut time) } {
        0 => Ok(Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// Installs the profile's filter on every thread of this process, for good.
///
/// The threads need no_new_privs, or the process CAP_SYS_ADMIN; with the former, TSYNC sets it for
/// every thread.
pub(crate) fn install_filter(profile: Profile) -> Result<(), SandboxError> {
    let mut steps = policy::program(profile);
    let len = u16::try_from(steps.len()).expect("a policy has at most 4096 instructions");
    let program = libc::sock_fprog {
        len,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: `program` points at `len` initialised instructions that live until the call returns;
    // the kernel copies and checks them, and writes to none of our memory. Later calls may end this
    // process, which is intended.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    match outcome {
        0 => Ok(()),
        thread if thread > 0 => Err(SandboxError::SeccompThread(thread)),
        _ => Err(SandboxError::Seccomp(io::Error::last_os_error())),
    }
}

/// Removes every variable of the environment for which `keep` is false.
///
/// The caller guarantees that this process has one thread.
pub(crate) fn clear_environment(keep: impl Fn(&str) -> bool) {
    for (name, _) in std::env::vars_os() {
        if !name.to_str().is_some_and(&keep) {
            // SAFETY: `remove_var` is unsound if another thread reads the environment through the C
            // library meanwhile, and there is no other thread. The names come from the environment
            // itself, so none contains a NUL or is empty.
            unsafe { std::env::remove_var(name) };
        }
    }
}
