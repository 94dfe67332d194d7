//! The namespaces that this machine offers for workers.

use rustix::thread::CapabilitySet;

/// The namespaces that separate a worker from the rest, beside what it does to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walls {
    /// All namespaces, owned by a user namespace: the worker can empty its own root, and has no
    /// privileges outside.
    Own,
    /// All but a user namespace, which this kernel refuses; only root can make these.
    WithoutUser,
    /// None: neither user namespaces nor root are available.
    None,
}

/// The variants from the strongest to none, in the order of trial.
pub(crate) const WALLS: [Walls; 3] = [Walls::Own, Walls::WithoutUser, Walls::None];

impl Walls {
    /// Flags for clone(2).
    pub(crate) fn flags(self) -> libc::c_int {
        let common = libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWNS;
        match self {
            Self::Own => common | libc::CLONE_NEWUSER,
            Self::WithoutUser => common,
            Self::None => 0,
        }
    }

    /// Capabilities that the worker needs to empty its root, and drops then. They count within its
    /// own namespaces only.
    pub(crate) fn capabilities(self) -> CapabilitySet {
        match self {
            Self::Own => CapabilitySet::SYS_ADMIN | CapabilitySet::SETPCAP,
            Self::WithoutUser | Self::None => CapabilitySet::empty(),
        }
    }

    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Own => "own user, pid, mount, network, ipc and uts namespaces",
            Self::WithoutUser => {
                "own pid, mount, network, ipc and uts namespaces; no user namespace"
            }
            Self::None => "no namespaces: this kernel gives us none",
        }
    }
}
