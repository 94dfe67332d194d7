//! Failures while a program closes its sandbox: one variant a step, because the operator needs to
//! know the step.

use rustix::io::Errno;

/// A step of closing the sandbox that failed. The program must not continue.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A file of /proc that describes us.
    #[error("cannot read {path}")]
    Proc {
        /// The path.
        path: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Landlock and the capabilities apply to one thread each.
    #[error("expected to be the only thread, but there are {0}")]
    Threads(usize),
    /// prctl(PR_SET_NO_NEW_PRIVS).
    #[error("cannot give up new privileges")]
    NoNewPrivs(#[source] Errno),
    /// mount(2) of the empty root.
    #[error("cannot mount an empty root")]
    MountEmptyRoot(#[source] Errno),
    /// chdir(2) into the empty root.
    #[error("cannot enter the empty root")]
    EnterEmptyRoot(#[source] Errno),
    /// pivot_root(2).
    #[error("cannot make the empty root the root folder")]
    PivotRoot(#[source] Errno),
    /// umount2(2) of the old root.
    #[error("cannot unmount the old root")]
    UnmountOldRoot(#[source] Errno),
    /// prctl(PR_CAP_AMBIENT).
    #[error("cannot clear the ambient capabilities")]
    AmbientCapabilities(#[source] Errno),
    /// prctl(PR_CAPBSET_DROP).
    #[error("cannot clear the bounding set of capabilities")]
    BoundingCapabilities(#[source] Errno),
    /// capset(2).
    #[error("cannot drop the capabilities")]
    Capabilities(#[source] Errno),
    /// The Landlock calls.
    #[error("cannot restrict files by Landlock")]
    Landlock(#[from] landlock::RulesetError),
    /// A path for Landlock.
    #[error("cannot open {path} for Landlock")]
    LandlockPath {
        /// The path.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: landlock::PathFdError,
    },
    /// setrlimit(2).
    #[error("cannot limit {limit}")]
    Rlimit {
        /// The name of the limit.
        limit: &'static str,
        /// The cause.
        #[source]
        source: Errno,
    },
    /// prctl(PR_SET_DUMPABLE).
    #[error("cannot forbid dumps and tracing")]
    Dumpable(#[source] Errno),
    /// prctl(PR_SCHED_CORE).
    #[error("cannot request a processor core that no other process shares")]
    CoreScheduling(#[source] Errno),
    /// mlockall(2).
    #[error("cannot keep memory out of swap")]
    LockMemory(#[source] Errno),
    /// dup2(2).
    #[error("cannot replace the node's standard error")]
    StandardError(#[source] Errno),
    /// seccomp(2).
    #[error("cannot install the system call filter")]
    Seccomp(#[source] std::io::Error),
    /// seccomp(2) on another thread, which has a filter of its own.
    #[error("cannot install the system call filter on thread {0}")]
    SeccompThread(i64),
}
