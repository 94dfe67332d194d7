//! The few calls that no safe crate wraps.

use std::io;

use crate::Profile;
use crate::SandboxError;
use crate::policy;

/// Installs the profile's filter on every thread of this process, for good.
///
/// The threads need no_new_privs, or the process CAP_SYS_ADMIN; with the former, TSYNC gives it to every thread.
pub(crate) fn install_filter(profile: Profile) -> Result<(), SandboxError> {
    let mut steps = policy::program(profile);
    let len = u16::try_from(steps.len()).expect("a policy has at most 4096 instructions");
    let program = libc::sock_fprog {
        len,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: `program` points at `len` initialised instructions that live until the call returns; the kernel copies
    // them, checks them, and writes to none of our memory. That later calls of this process may end it is the purpose.
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
/// The caller has made sure that this process has one thread.
pub(crate) fn clear_environment(keep: impl Fn(&str) -> bool) {
    for (name, _) in std::env::vars_os() {
        if !name.to_str().is_some_and(&keep) {
            // SAFETY: the hazard of `remove_var` is another thread that reads the environment through the C library
            // meanwhile, and there is no other thread. The names come from the environment itself, so that none holds
            // a NUL or is empty.
            unsafe { std::env::remove_var(name) };
        }
    }
}
