//! Closing in: what a program does to itself, as straight lists.

use std::fs;
use std::path::Path;

use landlock::Access as _;
use landlock::{
    ABI, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, UnmountFlags};
use rustix::process::{self, DumpableBehavior, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};

use crate::launch::KEPT_VARIABLES;
use crate::layers::{self, report};
use crate::{LayerReport, Profile, SandboxError, isolation, speculation, syscalls};

/// Descriptors of a worker: standard ones, control, two channels, the runtime's, the files that V8 and we hold, and a
/// good reserve. Beyond it the kernel refuses descriptors that somebody floods us with.
const WORKER_DESCRIPTORS_MAX: u64 = 64;

/// Descriptors of anybody else: more than a full vault holds (32 connections that wait in each of 1024 pools, calls, a channel
/// for each of some thousand workers), and few enough that a leak meets it before the machine suffers.
const DESCRIPTORS_MAX: u64 = 64 * 1024;

/// The newest Landlock that we know how to use; older kernels are asked for what they have.
const LANDLOCK_ABI: ABI = ABI::V7;

/// What a program may do below a path after [`close_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read files and list folders.
    Read,
    /// Everything but execute.
    ReadWrite,
}

/// The first half for a worker: to be called first of all in `main`, before V8 and any thread.
///
/// When it returns, the root is empty: what is needed of the file system has to be in memory or open. The environment
/// holds the variables that start with `CASEMATE_LOG`, and no others.
///
/// The reports name every layer but `seccomp`, which [`close`] adds.
///
/// # Errors
/// A step that the kernel offers and refuses us. Layers that it does not offer are reported instead.
pub fn before_engine() -> Result<Vec<LayerReport>, SandboxError> {
    // Landlock and capabilities are a thread's own, so a second thread would stay outside; and clearing the environment
    // is sound only if nobody else reads it.
    let threads = threads()?;
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }

    // While /proc is there and before the variable with the outer namespaces goes.
    let mut reports = layers::status();

    syscalls::clear_environment(|name| name.starts_with(KEPT_VARIABLES));

    thread::set_no_new_privs(true).map_err(SandboxError::NoNewPrivs)?;
    layers::replace(&mut reports, report("no_new_privs", true, "set"));

    // Needs the capability that launch leaves us within our namespaces; never in the namespace of somebody else.
    let own_mounts = reports
        .iter()
        .any(|report| report.layer == "mount" && report.in_force);
    if own_mounts {
        let root = empty_root()?;
        layers::replace(&mut reports, root);
    }

    drop_capabilities()?;
    layers::replace(&mut reports, report("capabilities", true, "none"));

    // After the root: a thread under Landlock mounts nothing.
    layers::replace(&mut reports, restrict(Profile::Worker, &[])?);

    layers::replace(&mut reports, limit_worker()?);

    speculation::mitigate();
    layers::replace(&mut reports, isolation::schedule_apart()?);
    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SandboxError::Dumpable)?;
    refresh(&mut reports, &["speculation", "dumpable"]);

    reports.retain(|report| report.layer != "seccomp");
    Ok(reports)
}

/// The second half for a worker, and the whole for a program that needs no file any more.
///
/// # Errors
/// As [`close_with`].
pub fn close(profile: Profile) -> Result<Vec<LayerReport>, SandboxError> {
    close_with(profile, &[])
}

/// Closes this process in, for good, leaving it the files below `paths`; paths that do not exist are passed over.
///
/// For a worker, the second half after [`before_engine`]: `paths` has no meaning, and the one report is of `seccomp`. For
/// everybody else the reports name every layer. Call it before threads are started: with threads, Landlock and
/// capabilities are reported as not in force, because the other threads do not have them.
///
/// # Errors
/// A step that the kernel offers and refuses us. Layers that it does not offer are reported instead.
pub fn close_with(
    profile: Profile,
    paths: &[(&Path, Access)],
) -> Result<Vec<LayerReport>, SandboxError> {
    if profile == Profile::Worker {
        // It is shared with the whole node: who makes it non-blocking, or fills it, stops everybody's log.
        rustix::stdio::dup2_stderr(rustix::stdio::stdout()).map_err(SandboxError::StandardError)?;

        // All its threads are there now; a new one would need the filter's consent as well.
        limit("processes", Resource::Nproc, 0)?;
        syscalls::install_filter(profile)?;
        return Ok(vec![filtered(profile)]);
    }

    let threads = threads()?;

    thread::set_no_new_privs(true).map_err(SandboxError::NoNewPrivs)?;

    drop_capabilities()?;

    // While /proc is there: Landlock takes it away.
    let mut reports = layers::status();

    layers::replace(&mut reports, restrict(profile, paths)?);

    limit("core files", Resource::Core, 0)?;

    speculation::mitigate();
    if profile == Profile::Vault {
        layers::replace(&mut reports, isolation::schedule_apart()?);
        layers::replace(&mut reports, isolation::lock_memory()?);
    }

    process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(SandboxError::Dumpable)?;
    refresh(&mut reports, &["rlimits", "speculation", "dumpable"]);

    syscalls::install_filter(profile)?;
    layers::replace(&mut reports, filtered(profile));

    if threads > 1 {
        let why = format!("{threads} threads ran when it was applied to one");
        layers::replace(&mut reports, report("landlock", false, &why));
        layers::replace(&mut reports, report("capabilities", false, &why));
    }
    Ok(reports)
}

/// Raises the limit of descriptors as far as its hard limit and reason allow; what is in force then.
///
/// The soft limit is mostly 1024 for the sake of select(2), which nobody here uses. To be called before the walls close:
/// no profile lets a program touch its limits. A worker's are lowered instead, by [`before_engine`].
///
/// # Errors
/// The kernel refuses what is within the hard limit.
pub fn raise_descriptors() -> Result<u64, SandboxError> {
    let held = getrlimit(Resource::Nofile);
    let hard = held.maximum.unwrap_or(u64::MAX);
    let current = held.current.unwrap_or(u64::MAX);
    // An operator who gave more knows why.
    let wanted = current.max(hard.min(DESCRIPTORS_MAX));
    if wanted > current {
        let raised = Rlimit {
            current: Some(wanted),
            ..held
        };
        setrlimit(Resource::Nofile, raised).map_err(|source| SandboxError::Rlimit {
            limit: "open files",
            source,
        })?;
    }
    Ok(wanted)
}

/// Reads these layers again; none of them is read from /proc.
fn refresh(reports: &mut [LayerReport], names: &[&str]) {
    let settled = layers::status().into_iter();
    for report in settled.filter(|report| names.contains(&report.layer.as_str())) {
        layers::replace(reports, report);
    }
}

fn threads() -> Result<usize, SandboxError> {
    let path = "/proc/self/status";
    let unreadable = |source| SandboxError::Proc { path, source };
    let status = fs::read_to_string(path).map_err(unreadable)?;
    let threads = layers::field(&status, "Threads").and_then(|count| count.parse().ok());
    threads.ok_or_else(|| unreadable(std::io::ErrorKind::InvalidData.into()))
}

/// Makes an empty, read-only file system the root of our mount namespace and lets go of everything else.
fn empty_root() -> Result<LayerReport, SandboxError> {
    let held = thread::capabilities(None).map_err(SandboxError::Capabilities)?;
    if !held.effective.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(report(
            "mount",
            false,
            "own namespace, but no user namespace to empty the root in",
        ));
    }

    // One inode, the root's own: not even its owner could make a file. Over /proc, a folder that is certainly there.
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount::mount(
        "none",
        "/proc",
        "tmpfs",
        flags,
        c"size=4k,nr_inodes=1,mode=555",
    )
    .map_err(SandboxError::MountEmptyRoot)?;

    process::chdir("/proc").map_err(SandboxError::EnterEmptyRoot)?;

    // With both arguments the same, the old root comes to lie over the new one.
    process::pivot_root(".", ".").map_err(SandboxError::PivotRoot)?;
    mount::unmount(".", UnmountFlags::DETACH).map_err(SandboxError::UnmountOldRoot)?;

    process::chdir("/").map_err(SandboxError::EnterEmptyRoot)?;
    Ok(report("mount", true, "own namespace with an empty root"))
}

/// None in any set, and none to come back by an exec.
fn drop_capabilities() -> Result<(), SandboxError> {
    match thread::clear_ambient_capability_set() {
        // A kernel before 4.3 has no such set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(SandboxError::AmbientCapabilities(error)),
    }

    // Needs a capability itself, so it comes before the others go; without it, no_new_privs does the same.
    let held = thread::capabilities(None).map_err(SandboxError::Capabilities)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            match thread::remove_capability_from_bounding_set(capability) {
                // Not known to this kernel.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(error) => return Err(SandboxError::BoundingCapabilities(error)),
            }
        }
    }

    let none = CapabilitySet::empty();
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    thread::set_capabilities(None, sets).map_err(SandboxError::Capabilities)
}

/// Landlock: no file but those below `paths`; for who has no business with the network, no TCP; no signal or abstract
/// socket beyond ourselves.
fn restrict(profile: Profile, paths: &[(&Path, Access)]) -> Result<LayerReport, SandboxError> {
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(LANDLOCK_ABI))?;
    if matches!(profile, Profile::Worker | Profile::Gateway) {
        rules = rules.handle_access(AccessNet::from_all(LANDLOCK_ABI))?;
    }
    let mut rules = rules.scope(Scope::from_all(LANDLOCK_ABI))?.create()?;
    for (path, access) in paths.iter().filter(|(path, _)| path.exists()) {
        let unopened = |source| SandboxError::LandlockPath {
            path: path.to_path_buf(),
            source,
        };
        let all = match access {
            Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Access::ReadWrite => AccessFs::from_all(LANDLOCK_ABI) & !AccessFs::Execute,
        };
        let all = if path.is_dir() {
            all
        } else {
            all & AccessFs::from_file(LANDLOCK_ABI)
        };
        rules = rules.add_rule(PathBeneath::new(PathFd::new(path).map_err(unopened)?, all))?;
    }
    let outcome = rules.restrict_self()?;
    let what = match paths.len() {
        0 => "no files".to_owned(),
        count => format!("files below {count} paths"),
    };
    Ok(match (outcome.ruleset, outcome.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            report("landlock", false, "not enabled in this kernel")
        }
        (RulesetStatus::NotEnforced, _) => report("landlock", false, "not in this kernel"),
        (_, LandlockStatus::Available { effective_abi, .. }) => report(
            "landlock",
            true,
            format!("{what}, ABI {}", effective_abi as i32),
        ),
        (_, _) => report("landlock", true, what),
    })
}

/// `RLIMIT_FSIZE` is not among them: zero breaks a log that is a file, and a worker has no other file to write.
fn limit_worker() -> Result<LayerReport, SandboxError> {
    limit("core files", Resource::Core, 0)?;
    limit("open files", Resource::Nofile, WORKER_DESCRIPTORS_MAX)?;
    limit("locked memory", Resource::Memlock, 0)?;
    limit("message queues", Resource::Msgqueue, 0)?;
    limit("real-time priority", Resource::Rtprio, 0)?;
    Ok(report(
        "rlimits",
        true,
        format!("no core files, {WORKER_DESCRIPTORS_MAX} descriptors, no new processes"),
    ))
}

/// Never raises: a lower hard limit stays.
fn limit(name: &'static str, resource: Resource, value: u64) -> Result<(), SandboxError> {
    let value = getrlimit(resource)
        .maximum
        .map_or(value, |maximum| maximum.min(value));
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, limit).map_err(|source| SandboxError::Rlimit {
        limit: name,
        source,
    })
}

fn filtered(profile: Profile) -> LayerReport {
    report(
        "seccomp",
        true,
        format!(
            "{} calls allowed, all others end the process",
            crate::calls(profile).len()
        ),
    )
}
