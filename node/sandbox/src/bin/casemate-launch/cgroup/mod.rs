//! Memory and process limits by cgroup: version 2 where it has the controllers, else version 1, else none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use casemate_sandbox::launch::CGROUP_PREFIX;

/// Where hierarchies are mounted by convention.
const MOUNT: &str = "/sys/fs/cgroup";

/// What this machine and our own place in it offer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// Version 2: a cgroup of ours that hands `memory` and `pids` on.
    V2(PathBuf),
    /// Version 1: our cgroup for `memory` and our cgroup for `pids`.
    V1 { memory: PathBuf, pids: PathBuf },
    /// Neither.
    None,
}

/// A child's cgroup. Removed by [`Cgroup::remove`], once nobody is in it.
#[derive(Debug)]
pub(crate) struct Cgroup {
    version_2: bool,
    /// For `memory` first, for `pids` last.
    folders: Vec<PathBuf>,
    /// The file that counts kills by the kernel for want of memory.
    kills: PathBuf,
}

impl Hierarchy {
    /// Finds and prepares what there is.
    pub(crate) fn find() -> Self {
        let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mount = Path::new(MOUNT);
        let found = Self::version_2(mount, &text)
            .or_else(|| Self::version_1(mount, &text))
            .unwrap_or(Self::None);
        found.sweep();
        found
    }

    fn version_2(mount: &Path, text: &str) -> Option<Self> {
        let own = place(mount, text, "")?;
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).ok()?;
        if !["memory", "pids"]
            .iter()
            .all(|wanted| controllers.split_whitespace().any(|name| name == *wanted))
        {
            return None;
        }
        let hand_on = || fs::write(own.join("cgroup.subtree_control"), "+memory +pids");
        if hand_on().is_err() {
            // A cgroup with processes hands nothing on, unless it is the root: we move to a leaf.
            let leaf = own.join("casemate.launch");
            fs::create_dir_all(&leaf).ok()?;
            fs::write(leaf.join("cgroup.procs"), "0").ok()?;
            hand_on().ok()?;
        }
        Some(Self::V2(own))
    }

    fn version_1(mount: &Path, text: &str) -> Option<Self> {
        let memory = place(&mount.join("memory"), text, "memory")?;
        let pids = place(&mount.join("pids"), text, "pids")?;
        let writable =
            |folder: &Path| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
        (writable(&memory) && writable(&pids)).then_some(Self::V1 { memory, pids })
    }

    /// Removes what a launch that was killed left behind.
    fn sweep(&self) {
        for folder in self.folders() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let launch = name.to_str().and_then(|name| {
                    name.strip_prefix(CGROUP_PREFIX)?
                        .split_once('-')?
                        .0
                        .parse::<u32>()
                        .ok()
                });
                if launch.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    fn folders(&self) -> Vec<&Path> {
        match self {
            Self::V2(own) => vec![own],
            Self::V1 { memory, pids } => vec![memory, pids],
            Self::None => Vec::new(),
        }
    }

    /// A new cgroup with these limits, 0 for none; `None` where there are no cgroups or nothing to limit.
    pub(crate) fn make(
        &self,
        number: u64,
        memory_mib: u32,
        pids: u32,
    ) -> io::Result<Option<Cgroup>> {
        if memory_mib == 0 && pids == 0 {
            return Ok(None);
        }
        let name = format!("{CGROUP_PREFIX}{}-{number}", std::process::id());
        let folders: Vec<_> = self
            .folders()
            .into_iter()
            .map(|folder| folder.join(&name))
            .collect();
        let Some(first) = folders.first() else {
            return Ok(None);
        };
        let version_2 = matches!(self, Self::V2(_));
        let kills = first.join(if version_2 {
            "memory.events"
        } else {
            "memory.oom_control"
        });
        let cgroup = Cgroup {
            version_2,
            folders,
            kills,
        };
        let made = cgroup.limit(memory_mib, pids);
        if made.is_err() {
            cgroup.remove();
        }
        made.map(|()| Some(cgroup))
    }
}

impl Cgroup {
    fn limit(&self, memory_mib: u32, pids: u32) -> io::Result<()> {
        for folder in &self.folders {
            fs::create_dir(folder)?;
        }
        if memory_mib > 0 {
            self.limit_memory(memory_mib)?;
        }
        if let Some(processes) = self.folders.last().filter(|_| pids > 0) {
            fs::write(processes.join("pids.max"), pids.to_string())?;
        }
        Ok(())
    }

    /// Sets the memory limit, or another in its place.
    pub(crate) fn limit_memory(&self, memory_mib: u32) -> io::Result<()> {
        let Some(memory) = self.folders.first() else {
            return Ok(());
        };
        let bytes = (u64::from(memory_mib) << 20).to_string();
        if self.version_2 {
            fs::write(memory.join("memory.max"), &bytes)?;
            // Where the kernel counts swap: none, for a limit that can be swapped out is none.
            let _ = fs::write(memory.join("memory.swap.max"), "0");
            let _ = fs::write(memory.join("memory.oom.group"), "1");
        } else {
            // In this order, for the second is never below the first.
            fs::write(memory.join("memory.limit_in_bytes"), &bytes)?;
            let _ = fs::write(memory.join("memory.memsw.limit_in_bytes"), &bytes);
        }
        Ok(())
    }

    /// Puts a process in.
    pub(crate) fn add(&self, pid: u32) -> io::Result<()> {
        self.folders
            .iter()
            .try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }

    /// Whether the kernel ended a process of it for want of memory.
    pub(crate) fn out_of_memory(&self) -> bool {
        kills(&fs::read_to_string(&self.kills).unwrap_or_default()) > 0
    }

    pub(crate) fn remove(&self) {
        for folder in &self.folders {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "cannot remove a cgroup");
                }
            }
        }
    }
}

/// Our cgroup in the hierarchy of `controller` (none: version 2), from the text of /proc/self/cgroup. In a container the
/// path may be of the outside; then the top that we see is ours.
fn place(mount: &Path, text: &str, controller: &str) -> Option<PathBuf> {
    let path = text
        .lines()
        .find_map(|line| match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            [_, names, path] if names.split(',').any(|name| name == controller) => Some(path),
            _ => None,
        })?;
    let full = mount.join(path.trim_start_matches('/'));
    [full, mount.to_owned()]
        .into_iter()
        .find(|folder| folder.join("cgroup.procs").exists())
}

fn kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(kills("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n"), 2);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(kills(""), 0);
    }

    #[test]
    fn our_place_is_the_path_or_the_top_of_what_we_see() {
        let mount = tempfile::tempdir().unwrap();
        let root = mount.path().to_owned();
        fs::write(root.join("cgroup.procs"), "").unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/cgroup.procs"), "").unwrap();
        let text = "8:pids:/a/b\n4:cpu,memory:/elsewhere\n0::/a/b\n";
        assert_eq!(place(&root, text, "pids"), Some(root.join("a/b")));
        assert_eq!(place(&root, text, "memory"), Some(root.clone()));
        assert_eq!(place(&root, text, ""), Some(root.join("a/b")));
        assert_eq!(place(&root, text, "io"), None);
        assert_eq!(place(&root.join("absent"), text, "pids"), None);
    }

    #[test]
    fn version_2_without_its_controllers_is_not_used() {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.procs"), "").unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "hugetlb\n").unwrap();
        assert_eq!(Hierarchy::version_2(mount.path(), "0::/\n"), None);
        fs::write(mount.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        assert_eq!(
            Hierarchy::version_2(mount.path(), "0::/\n"),
            Some(Hierarchy::V2(mount.path().join("")))
        );
    }

    #[test]
    fn a_memory_limit_is_replaced_by_another_in_both_versions() {
        for (version_2, file) in [(true, "memory.max"), (false, "memory.limit_in_bytes")] {
            let folder = tempfile::tempdir().unwrap();
            let cgroup = Cgroup {
                version_2,
                folders: vec![folder.path().to_owned()],
                kills: PathBuf::new(),
            };
            for memory_mib in [64, 5000, 32] {
                cgroup.limit_memory(memory_mib).unwrap();
                let limit = fs::read_to_string(folder.path().join(file)).unwrap();
                assert_eq!(limit, (u64::from(memory_mib) << 20).to_string());
            }
        }
    }

    #[test]
    fn no_hierarchy_and_no_limit_make_no_cgroup() {
        assert!(Hierarchy::None.make(1, 64, 8).unwrap().is_none());
        assert!(Hierarchy::find().make(1, 0, 0).unwrap().is_none());
    }
}
