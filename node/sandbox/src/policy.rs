//! The compiled policies of `policies/`, and their lists.

use crate::Profile;

/// A system call that a policy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// Its name in the kernel's table.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: i64,
    /// The verdict of the policy.
    pub verdict: Verdict,
    /// Why the program needs it.
    pub why: &'static str,
}

/// A policy's verdict on a call. Calls that the policy does not name kill the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call is permitted.
    Allowed,
    /// The call is permitted with the listed arguments, and kills the process otherwise.
    AllowedForSomeArguments,
    /// The call fails with ENOSYS.
    NoSuchCall,
}

/// The calls that `profile` names.
pub fn calls(profile: Profile) -> &'static [Call] {
    match profile {
        Profile::Supervisor => include!(concat!(env!("OUT_DIR"), "/supervisor.rs")),
        Profile::Gateway => include!(concat!(env!("OUT_DIR"), "/gateway.rs")),
        Profile::Vault => include!(concat!(env!("OUT_DIR"), "/vault.rs")),
        Profile::Worker => include!(concat!(env!("OUT_DIR"), "/worker.rs")),
    }
}

/// The profile's filter, for seccomp(2).
pub(crate) fn program(profile: Profile) -> Vec<libc::sock_filter> {
    let bytes: &[u8] = match profile {
        Profile::Supervisor => include_bytes!(concat!(env!("OUT_DIR"), "/supervisor.bpf")),
        Profile::Gateway => include_bytes!(concat!(env!("OUT_DIR"), "/gateway.bpf")),
        Profile::Vault => include_bytes!(concat!(env!("OUT_DIR"), "/vault.bpf")),
        Profile::Worker => include_bytes!(concat!(env!("OUT_DIR"), "/worker.bpf")),
    };
    let (steps, rest) = bytes.as_chunks::<8>();
    assert!(
        !steps.is_empty() && rest.is_empty(),
        "the build writes whole instructions"
    );
    let step = |&[code0, code1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| libc::sock_filter {
        code: u16::from_ne_bytes([code0, code1]),
        jt,
        jf,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    steps.iter().map(step).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: [Profile; 4] = [
        Profile::Supervisor,
        Profile::Gateway,
        Profile::Vault,
        Profile::Worker,
    ];

    #[test]
    fn no_call_stands_in_a_policy_twice_and_each_has_a_reason() {
        for profile in ALL {
            let mut numbers = BTreeSet::new();
            for call in calls(profile) {
                assert!(
                    numbers.insert(call.number),
                    "{profile:?} names {} twice",
                    call.name
                );
                assert!(
                    call.why.split_whitespace().count() >= 1,
                    "{profile:?}: {} has no reason",
                    call.name
                );
            }
        }
    }

    /// Calls that no policy may ever permit: ways to gain privilege, to start programs, to reach
    /// into other processes, and large attack surfaces of the kernel.
    #[test]
    fn no_policy_lets_through_what_no_program_of_ours_needs() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_enter,
            libc::SYS_io_uring_register,
            libc::SYS_userfaultfd,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_perf_event_open,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_send_signal,
            libc::SYS_open_by_handle_at,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_setuid,
            libc::SYS_setresuid,
            libc::SYS_capset,
            libc::SYS_seccomp,
            libc::SYS_personality,
        ];
        for profile in ALL {
            for call in calls(profile) {
                assert!(
                    !never.contains(&call.number),
                    "{profile:?} lets {} through",
                    call.name
                );
            }
        }
    }

    #[test]
    fn a_worker_makes_no_descriptor_thread_or_process() {
        let never = [
            libc::SYS_openat,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_memfd_create,
            libc::SYS_tgkill,
            libc::SYS_prctl,
            libc::SYS_epoll_create1,
        ];
        for call in calls(Profile::Worker) {
            assert!(!never.contains(&call.number), "{}", call.name);
        }
    }

    #[test]
    fn threads_and_sockets_are_judged_by_their_arguments() {
        for profile in [Profile::Supervisor, Profile::Gateway, Profile::Vault] {
            for number in [
                libc::SYS_clone,
                libc::SYS_prctl,
                libc::SYS_socket,
                libc::SYS_socketpair,
                libc::SYS_ioctl,
            ] {
                let call = calls(profile).iter().find(|call| call.number == number);
                assert!(
                    call.is_none_or(|call| call.verdict == Verdict::AllowedForSomeArguments),
                    "{profile:?}"
                );
            }
        }
    }

    #[test]
    fn programs_fit_the_kernel() {
        for profile in ALL {
            assert!((1..4096).contains(&program(profile).len()));
        }
    }
}
