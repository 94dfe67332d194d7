//! Cgroups of a node: version 2 where it has the controllers, else version 1, else none.
//!
//! ```text
//! launch's own cgroup
//! |- casemate.launch              launch itself                      more weight
//! |- casemate-PID.programs        supervisor, vault, gateway         more weight
//! |  `- casemate-PID-N            one of them
//! `- casemate-PID.tenants         all workers                        memory of the machine but a reserve
//!    |- spares                    workers without a tenant
//!    `- tenant-N                  the workers of one tenant          equal weight, memory limit
//!       `- casemate-PID-N         one worker                         memory limit, process limit
//! ```
//!
//! A worker starts among the spares and moves to its tenant with [`Cgroups::assign`]. Memory that
//! it used as a spare stays charged to `casemate-PID.tenants`; memory that it uses later counts
//! towards its tenant. The supervisor lowers the tenant's limit by that difference.

mod group;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use casemate_sandbox::launch::{CGROUP_PREFIX, Program};

use group::Group;

/// Where hierarchies are mounted by convention.
const MOUNT: &str = "/sys/fs/cgroup";

/// The weight of the node's own programs, and of launch, beside 100 for all workers together: a
/// node whose tenants spin still answers, refuses and withdraws.
const PROGRAMS_WEIGHT: u32 = 400;

/// The weight of each tenant, and of the spares.
const TENANT_WEIGHT: u32 = 100;

/// The cgroup that launch moves itself to. Several launches below one cgroup share it, so none removes it.
const LAUNCH: &str = "casemate.launch";

/// Depth of the cgroups below launch's own, for removing the leftovers of a killed launch.
const DEPTH: u32 = 3;

/// The cgroups of this launch; empty where the machine offers none.
#[derive(Debug)]
pub(crate) struct Cgroups(Option<Tree>);

#[derive(Debug)]
struct Tree {
    programs: Group,
    tenants: Group,
    spares: Group,
    by_tenant: BTreeMap<NonZeroU32, Tenant>,
}

#[derive(Debug)]
struct Tenant {
    group: Group,
    workers: usize,
}

/// A child's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    group: Group,
    pids: u32,
    tenant: Option<NonZeroU32>,
}

/// Why a worker is not assigned to a tenant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AssignError {
    #[error("the worker belongs to tenant {0} already")]
    OfAnother(NonZeroU32),
    #[error("cannot make the worker's cgroup")]
    Make(#[source] io::Error),
    #[error("cannot move the worker to its tenant's cgroup")]
    Move(#[source] io::Error),
}

impl Cgroups {
    /// Finds the controllers that this machine and launch's own cgroup offer, and makes the groups.
    /// `tenants_mib` limits all workers together.
    pub(crate) fn prepare(tenants_mib: Option<u32>) -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let Some(own) = find(Path::new(MOUNT), &text) else {
            return Self(None);
        };
        sweep(&own);
        match Tree::make(&own, std::process::id(), tenants_mib) {
            Ok(tree) => Self(Some(tree)),
            Err(error) => {
                tracing::warn!(%error, "cannot make cgroups; workers are limited without them");
                Self(None)
            }
        }
    }

    pub(crate) fn describe(&self) -> &'static str {
        match &self.0 {
            None => "none",
            Some(tree) => match (tree.programs.version_2, &tree.programs.cpu) {
                (true, Some(_)) => "version 2: cpu, memory, pids",
                (true, None) => "version 2: memory, pids",
                (false, Some(_)) => "version 1: cpu, memory, pids",
                (false, None) => "version 1: memory, pids",
            },
        }
    }

    /// Makes a cgroup for a child with these limits, 0 for none; `None` where there are no cgroups.
    pub(crate) fn make(
        &self,
        number: u64,
        program: Option<Program>,
        memory_mib: u32,
        pids: u32,
    ) -> io::Result<Option<Cgroup>> {
        let Some(tree) = &self.0 else { return Ok(None) };
        let parent = match program {
            Some(Program::Worker) => &tree.spares,
            Some(Program::Vault | Program::Gateway) | None => &tree.programs,
        };
        let group = parent.child(&name(std::process::id(), number));
        let made = limited(&group, memory_mib, pids).map(|()| {
            Some(Cgroup {
                group: group.clone(),
                pids,
                tenant: None,
            })
        });
        if made.is_err() {
            group.remove();
        }
        made
    }

    /// Moves a worker to its tenant's cgroup and lowers its own limit.
    pub(crate) fn assign(
        &mut self,
        cgroup: &mut Cgroup,
        pid: u32,
        tenant: NonZeroU32,
        (memory_mib, tenant_memory_mib): (u32, u32),
    ) -> Result<(), AssignError> {
        let Some(tree) = &mut self.0 else {
            return Ok(());
        };
        match cgroup.tenant {
            Some(other) if other != tenant => return Err(AssignError::OfAnother(other)),
            Some(_) => {
                let of_tenant = &tree.by_tenant[&tenant].group;
                let limited = of_tenant.limit_memory(tenant_memory_mib);
                limited.map_err(AssignError::Make)?;
                return cgroup.limit_memory(memory_mib).map_err(AssignError::Make);
            }
            None => {}
        }
        let of_tenant = tree
            .tenant(tenant, tenant_memory_mib)
            .map_err(AssignError::Make)?;
        let leaf = cgroup.group.memory.file_name().unwrap_or_default();
        let group = of_tenant.child(&leaf.to_string_lossy());
        let moved = limited(&group, memory_mib, cgroup.pids)
            .map_err(AssignError::Make)
            .and_then(|()| group.add(pid).map_err(AssignError::Move));
        if let Err(error) = moved {
            // The removal fails when the process is in one of its folders already: then the caller
            // ends the process, and the sweep of the next launch removes the folder.
            group.remove();
            tree.leave(tenant);
            return Err(error);
        }
        std::mem::replace(&mut cgroup.group, group).remove();
        cgroup.tenant = Some(tenant);
        Ok(())
    }

    /// Removes a child's cgroup, once no process is in it, and its tenant's group with the tenant's
    /// last worker.
    pub(crate) fn remove(&mut self, cgroup: Cgroup) {
        cgroup.group.remove();
        if let (Some(tree), Some(tenant)) = (&mut self.0, cgroup.tenant) {
            tree.leave(tenant);
        }
    }

    /// Removes the groups at launch's end, once no child is left.
    pub(crate) fn close(&mut self) {
        if let Some(tree) = self.0.take() {
            let of_tenants = tree.by_tenant.values().map(|tenant| &tenant.group);
            of_tenants.for_each(Group::remove);
            for group in [&tree.spares, &tree.tenants, &tree.programs] {
                group.remove();
            }
        }
    }
}

impl Tree {
    fn make(own: &Group, pid: u32, tenants_mib: Option<u32>) -> io::Result<Self> {
        let named = |name: &str| own.child(&format!("{CGROUP_PREFIX}{pid}.{name}"));
        let (programs, tenants) = (named("programs"), named("tenants"));
        programs.create_parent()?;
        programs.weigh(PROGRAMS_WEIGHT)?;
        tenants.create_parent()?;
        tenants.weigh(TENANT_WEIGHT)?;
        if let Some(memory_mib) = tenants_mib {
            tenants.limit_memory(memory_mib)?;
        }
        let spares = tenants.child("spares");
        spares.create_parent()?;
        spares.weigh(TENANT_WEIGHT)?;
        Ok(Self {
            programs,
            tenants,
            spares,
            by_tenant: BTreeMap::new(),
        })
    }

    /// The tenant's group, made if it does not exist, with one worker more.
    fn tenant(&mut self, number: NonZeroU32, memory_mib: u32) -> io::Result<Group> {
        if !self.by_tenant.contains_key(&number) {
            let group = self.tenants.child(&format!("tenant-{number}"));
            if let Err(error) = group
                .create_parent()
                .and_then(|()| group.weigh(TENANT_WEIGHT))
            {
                group.remove();
                return Err(error);
            }
            self.by_tenant.insert(number, Tenant { group, workers: 0 });
        }
        let tenant = self
            .by_tenant
            .get_mut(&number)
            .expect("the tenant's group was just made");
        tenant.workers += 1;
        let group = tenant.group.clone();
        if let Err(error) = group.limit_growth(memory_mib) {
            self.leave(number);
            return Err(error);
        }
        Ok(group)
    }

    /// Counts a worker of the tenant out.
    fn leave(&mut self, number: NonZeroU32) {
        if let Some(tenant) = self.by_tenant.get_mut(&number) {
            tenant.workers -= 1;
            if tenant.workers == 0 {
                tenant.group.remove();
                self.by_tenant.remove(&number);
            }
        }
    }
}

impl Cgroup {
    /// Lowers or replaces the memory limit.
    fn limit_memory(&self, memory_mib: u32) -> io::Result<()> {
        self.group.limit_memory(memory_mib)
    }

    /// The tenant to which the worker in this cgroup was assigned.
    pub(crate) fn tenant(&self) -> Option<NonZeroU32> {
        self.tenant
    }

    /// Adds a process.
    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        self.group.add(pid)
    }

    /// Whether the kernel has ended a process of it for want of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        self.group.kills() > 0
    }

    /// Removes the cgroup of a child that was not started.
    pub(crate) fn discard(&self) {
        self.group.remove();
    }
}

fn name(launch: u32, number: u64) -> String {
    format!("{CGROUP_PREFIX}{launch}-{number}")
}

/// Makes a child's cgroup.
fn limited(group: &Group, memory_mib: u32, pids: u32) -> io::Result<()> {
    group.create()?;
    if memory_mib > 0 {
        group.limit_memory(memory_mib)?;
        group.end_as_one();
    }
    if pids > 0 {
        group.limit_pids(pids)?;
    }
    Ok(())
}

/// Launch's own cgroup, ready for others below it, with launch in a leaf of it.
fn find(mount: &Path, text: &str) -> Option<Group> {
    version_2(mount, text).or_else(|| version_1(mount, text))
}

fn version_2(mount: &Path, text: &str) -> Option<Group> {
    let own = place(mount, text, "")?;
    let controllers = fs::read_to_string(own.join("cgroup.controllers")).ok()?;
    let has = |wanted: &str| controllers.split_whitespace().any(|name| name == wanted);
    if !has("memory") || !has("pids") {
        return None;
    }
    let mut group = Group {
        version_2: true,
        memory: own.clone(),
        pids: own.clone(),
        cpu: has("cpu").then(|| own.clone()),
    };
    // A cgroup with processes cannot delegate controllers, unless it is the root: launch moves to a
    // leaf first.
    let leaf = own.join(LAUNCH);
    fs::create_dir_all(&leaf).ok()?;
    fs::write(leaf.join("cgroup.procs"), "0").ok()?;
    if group.hand_on().is_err() {
        // Processes under a real-time policy prevent the delegation of the `cpu` controller.
        group.cpu = None;
        group.hand_on().ok()?;
    }
    weigh_launch(&group);
    Some(group)
}

fn version_1(mount: &Path, text: &str) -> Option<Group> {
    let writable =
        |folder: &PathBuf| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    let of = |controller: &str| place(&mount.join(controller), text, controller).filter(writable);
    let group = Group {
        version_2: false,
        memory: of("memory")?,
        pids: of("pids")?,
        cpu: of("cpu"),
    };
    if let Some(cpu) = &group.cpu {
        let leaf = cpu.join(LAUNCH);
        let moved =
            fs::create_dir_all(&leaf).and_then(|()| fs::write(leaf.join("cgroup.procs"), "0"));
        match moved {
            Ok(()) => weigh_launch(&group),
            Err(error) => tracing::warn!(%error, "cannot give launch a weight of its own"),
        }
    }
    Some(group)
}

fn weigh_launch(own: &Group) {
    if let Err(error) = own.child(LAUNCH).weigh(PROGRAMS_WEIGHT) {
        tracing::warn!(%error, "cannot give launch a weight of its own");
    }
}

/// Removes the leftovers of a killed launch, and of this process before it executed itself again.
fn sweep(own: &Group) {
    for folder in own.folders() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let launch = name.to_str().and_then(|name| {
                let rest = name.strip_prefix(CGROUP_PREFIX)?;
                rest.split(['-', '.']).next()?.parse::<u32>().ok()
            });
            let is_over = |pid: u32| {
                pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()
            };
            if launch.is_some_and(is_over) {
                remove_below(&entry.path(), DEPTH);
            }
        }
    }
}

fn remove_below(folder: &Path, depth: u32) {
    if depth > 0 {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_below(&entry.path(), depth - 1);
            }
        }
    }
    // A folder that still has a process stays, and the next launch tries again.
    let _ = fs::remove_dir(folder);
}

/// Launch's cgroup in the hierarchy of `controller` (none: version 2), from the text of
/// /proc/self/cgroup. In a container the path may be that of the outside; then the root that launch
/// sees is its own.
fn place(mount: &Path, text: &str, controller: &str) -> Option<PathBuf> {
    let path = text
        .lines()
        .find_map(|line| match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            [_, names, path] if names.split(',').any(|name| name == controller) => Some(path),
            _ => None,
        })?;
    // A launch that is started from a leaf of another launch belongs beside it, not below.
    let path = path.trim_start_matches('/');
    let path = path.strip_suffix(LAUNCH).unwrap_or(path);
    let full = mount.join(path);
    [full, mount.to_owned()]
        .into_iter()
        .find(|folder| folder.join("cgroup.procs").exists())
}

#[cfg(test)]
mod tests;
