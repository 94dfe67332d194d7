//! Which namespaces this machine gives us for workers.

use rustix::thread::CapabilitySet;

/// What stands between a worker and the rest, beside what it does to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walls {
    /// All namespaces, owned by a user namespace: the worker can empty its own root, and has privileges nowhere else.
    Own,
    /// All but a user namespace, which this kernel refuses; only root can make these.
    WithoutUser,
    /// None: neither user namespaces nor root.
    None,
}

/// From the strongest to none, as they are tried.
pub(crate) const WALLS: [Walls; 3] = [Walls::Own, Walls::WithoutUser, Walls::None];

impl Walls {
    /// For clone(2).
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

    /// What the worker needs to empty its root, and to drop this again. They count within its own namespaces only.
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
