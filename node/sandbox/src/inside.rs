//! Closing the sandbox: what a program does to itself, as straight lists.

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

/// Descriptors of a worker: standard ones, control, two channels, the runtime's, the files that V8
/// and we hold, and a large reserve. Beyond this the kernel refuses further descriptors, such as
/// those of a flood.
const WORKER_DESCRIPTORS_MAX: u64 = 64;

/// Descriptors of any other program: more than a full vault holds (32 idle connections in each of
/// 1024 pools, calls, a channel for each of some thousand workers), and few enough that a leak
/// fails before the machine suffers.
const DESCRIPTORS_MAX: u64 = 64 * 1024;

/// The newest Landlock version that we use; of older kernels we use what they have.
const LANDLOCK_ABI: ABI = ABI::V7;

/// What a program may do below a path after [`close_with`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read files and list folders.
    Read,
    /// Everything except execute.
    ReadWrite,
}

/// The first half for a worker: call it first of all in `main`, before V8 and any thread.
///
/// When it returns, the root is empty: all files that are needed later must be in memory or open.
/// The environment holds only the variables that start with `CASEMATE_LOG`.
///
/// The reports name every layer but `seccomp`, which [`close`] adds.
///
/// # Errors
/// A step that the kernel offers failed. Layers that the kernel does not offer are reported
/// instead.
pub fn before_engine() -> Result<Vec<LayerReport>, SandboxError> {
    // Landlock and capabilities apply to one thread each, so a second thread would stay outside;
    // and clearing the environment is sound only if no other thread reads it.
    let threads = threads()?;
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }

    // While /proc is there, and before the variable with the outer namespaces is removed.
    let mut reports = layers::status();

    syscalls::clear_environment(|name| name.starts_with(KEPT_VARIABLES));

    thread::set_no_new_privs(true).map_err(SandboxError::NoNewPrivs)?;
    layers::replace(&mut reports, report("no_new_privs", true, "set"));

    // Needs the capability that launch leaves us within our namespaces; never done in a namespace
    // of another process.
    let own_mounts = reports
        .iter()
        .any(|report| report.layer == "mount" && report.in_force);
    if own_mounts {
        let root = empty_root()?;
        layers::replace(&mut reports, root);
    }

    drop_capabilities()?;
    layers::replace(&mut reports, report("capabilities", true, "none"));

    // After the root, because a thread under Landlock cannot mount.
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

/// The second half for a worker, and the whole for a program that needs no files any more.
///
/// # Errors
/// As [`close_with`].
pub fn close(profile: Profile) -> Result<Vec<LayerReport>, SandboxError> {
    close_with(profile, &[])
}

/// Closes this process's sandbox for good, leaving it the files below `paths`; paths that do not
/// exist are skipped.
///
/// For a worker, this is the second half after [`before_engine`]: `paths` has no meaning, and the
/// only report is that of `seccomp`. For every other program the reports name every layer. Call it
/// before threads are started: otherwise Landlock and capabilities are reported as not in force,
/// because the other threads do not have them.
///
/// # Errors
/// A step that the kernel offers failed. Layers that the kernel does not offer are reported
/// instead.
pub fn close_with(
    profile: Profile,
    paths: &[(&Path, Access)],
) -> Result<Vec<LayerReport>, SandboxError> {
    if profile == Profile::Worker {
        // Standard error is shared with the whole node: a program that makes it non-blocking, or
        // fills it, stops all logs.
        rustix::stdio::dup2_stderr(rustix::stdio::stdout()).map_err(SandboxError::StandardError)?;

        // All its threads exist now; a new one would need the filter's permission as well.
        limit("processes", Resource::Nproc, 0)?;
        syscalls::install_filter(profile)?;
        return Ok(vec![filtered(profile)]);
    }

    let threads = threads()?;

    thread::set_no_new_privs(true).map_err(SandboxError::NoNewPrivs)?;

    drop_capabilities()?;

    // While /proc is readable, before Landlock closes it.
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

/// Raises the limit of descriptors up to its hard limit and `DESCRIPTORS_MAX`; returns the limit
/// in force.
///
/// The soft limit is mostly 1024 for the sake of select(2), which no program here uses. Call it
/// before the sandbox closes, because no profile permits changing limits. A worker's limit is
/// lowered by [`before_engine`] instead.
///
/// # Errors
/// The kernel refuses a value within the hard limit.
pub fn raise_descriptors() -> Result<u64, SandboxError> {
    let held = getrlimit(Resource::Nofile);
    let hard = held.maximum.unwrap_or(u64::MAX);
    let current = held.current.unwrap_or(u64::MAX);
    // A higher limit that an operator has set stays.
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

/// Updates the reports of these layers; none of them is read from /proc.
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

/// Makes an empty, read-only file system the root of our mount namespace and detaches everything
/// else.
fn empty_root() -> Result<LayerReport, SandboxError> {
    let held = thread::capabilities(None).map_err(SandboxError::Capabilities)?;
    if !held.effective.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(report(
            "mount",
            false,
            "own namespace, but no user namespace to empty the root in",
        ));
    }

    // A single inode, the root's own, so that no file can be made. Mounted over /proc, a folder
    // that certainly exists.
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

    // With equal arguments, the old root is mounted over the new one.
    process::pivot_root(".", ".").map_err(SandboxError::PivotRoot)?;
    mount::unmount(".", UnmountFlags::DETACH).map_err(SandboxError::UnmountOldRoot)?;

    process::chdir("/").map_err(SandboxError::EnterEmptyRoot)?;
    Ok(report("mount", true, "own namespace with an empty root"))
}

/// Drops the capabilities from every set, so that no exec can restore them.
fn drop_capabilities() -> Result<(), SandboxError> {
    match thread::clear_ambient_capability_set() {
        // A kernel before 4.3 has no such set.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(SandboxError::AmbientCapabilities(error)),
    }

    // Needs a capability itself, so it comes before the others are dropped; without it,
    // no_new_privs has the same effect.
    let held = thread::capabilities(None).map_err(SandboxError::Capabilities)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            match thread::remove_capability_from_bounding_set(capability) {
                // This kernel does not know the capability.
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

/// Landlock: no files except those below `paths`; no TCP for programs that need no network; no
/// signal or abstract socket to other processes.
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

/// `RLIMIT_FSIZE` is not among them: zero would break a log that is a file, and a worker has no
/// other file to write.
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

/// Never raises a limit: a lower hard limit stays.
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
