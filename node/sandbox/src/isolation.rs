//! Two layers that a process requests for itself: a processor core apart from others, and memory
//! that is never swapped out.

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getpid, getrlimit};
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie, create_core_scheduling_cookie};

use crate::layers::report;
use crate::{LayerReport, SandboxError};

/// Requests that no other process runs on the sibling hyperthread of this one: siblings share the
/// caches and buffers through which speculation leaks. Threads that start later inherit it, so call
/// it while the process has one thread.
pub(crate) fn schedule_apart() -> Result<LayerReport, SandboxError> {
    let scope = CoreSchedulingScope::ThreadGroup;
    match create_core_scheduling_cookie(getpid(), scope) {
        Ok(()) => {
            let cookie = core_scheduling_cookie(getpid(), CoreSchedulingScope::Thread);
            Ok(report(
                "core_scheduling",
                cookie.is_ok_and(|cookie| cookie != 0),
                "shares a core with no other process",
            ))
        }
        outcome => describe_refusal(outcome.err().unwrap_or(Errno::INVAL)),
    }
}

fn describe_refusal(errno: Errno) -> Result<LayerReport, SandboxError> {
    let name = "core_scheduling";
    match errno {
        // The kernel sees one thread in each core, so no other process can run beside this one.
        Errno::NODEV => Ok(report(
            name,
            true,
            "not needed: the kernel sees no hyperthreads",
        )),
        // The kernel is older than 5.14, or lacks CONFIG_SCHED_CORE.
        Errno::INVAL => Ok(report(name, false, "not in this kernel")),
        other => Err(SandboxError::CoreScheduling(other)),
    }
}

/// Keeps all memory of this process out of swap, present and future, without making pages present
/// that the process has not touched.
///
/// Only with an unlimited `RLIMIT_MEMLOCK`: with a limit, a later mapping would fail in the middle
/// of a call.
pub(crate) fn lock_memory() -> Result<LayerReport, SandboxError> {
    let name = "memory_lock";
    if let Some(bytes) = getrlimit(Resource::Memlock).current {
        let detail = format!(
            "RLIMIT_MEMLOCK is {} KiB, and has to be unlimited; launch raises it with CAP_SYS_RESOURCE",
            bytes >> 10
        );
        return Ok(report(name, false, detail));
    }
    match mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT) {
        Ok(()) => Ok(report(name, true, "all memory stays out of swap")),
        Err(Errno::INVAL) => Ok(report(
            name,
            false,
            "the kernel is older than 4.4 and cannot lock memory on first use",
        )),
        Err(error) => Err(SandboxError::LockMemory(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_hyperthreads_needs_no_core_scheduling_and_an_old_kernel_lacks_it() {
        assert!(describe_refusal(Errno::NODEV).unwrap().in_force);
        assert!(!describe_refusal(Errno::INVAL).unwrap().in_force);
        describe_refusal(Errno::PERM).unwrap_err();
    }

    #[test]
    fn memory_is_not_locked_behind_a_limit() {
        let Some(bytes) = getrlimit(Resource::Memlock).current else {
            return;
        };
        let report = lock_memory().unwrap();
        assert!(!report.in_force);
        assert!(report.detail.contains(&(bytes >> 10).to_string()));
    }
}
