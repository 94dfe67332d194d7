//! One cgroup in every hierarchy that we use, and the files that set its limits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Default of `cpu.weight` in version 2.
const DEFAULT_WEIGHT: u32 = 100;
/// Default of `cpu.shares` in version 1: the same share as [`DEFAULT_WEIGHT`].
const DEFAULT_SHARES: u32 = 1024;

/// Tries to set a limit to the memory in use, which changes meanwhile.
const LOWER_TRIES: u32 = 4;

/// A cgroup: one folder in version 2, a folder for each controller in version 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) version_2: bool,
    pub(super) memory: PathBuf,
    pub(super) pids: PathBuf,
    /// `None` where the `cpu` controller is absent or not delegated: memory and processes are
    /// limited all the same.
    pub(super) cpu: Option<PathBuf>,
}

impl Group {
    /// The cgroup of this name below this one. It may not exist yet.
    pub(super) fn child(&self, name: &str) -> Self {
        Self {
            version_2: self.version_2,
            memory: self.memory.join(name),
            pids: self.pids.join(name),
            cpu: self.cpu.as_ref().map(|cpu| cpu.join(name)),
        }
    }

    /// The folders of the cgroup, each once.
    pub(super) fn folders(&self) -> Vec<&Path> {
        let mut folders: Vec<&Path> = vec![&self.memory, &self.pids];
        folders.extend(self.cpu.as_deref());
        folders.dedup();
        folders
    }

    /// Makes the cgroup; it is an error if it exists already.
    pub(super) fn create(&self) -> io::Result<()> {
        self.folders().into_iter().try_for_each(fs::create_dir)
    }

    /// Makes a cgroup that will hold others.
    pub(super) fn create_parent(&self) -> io::Result<()> {
        self.create()?;
        self.hand_on()
    }

    /// Delegates the controllers to the cgroups below this one; their use counts towards this one's
    /// limits.
    pub(super) fn hand_on(&self) -> io::Result<()> {
        if !self.version_2 {
            // Kernels since 5.11 have no other mode; earlier ones count children separately by
            // default.
            let _ = fs::write(self.memory.join("memory.use_hierarchy"), "1");
            return Ok(());
        }
        let control = self.memory.join("cgroup.subtree_control");
        fs::write(&control, "+memory +pids")?;
        if self.cpu.is_some() {
            fs::write(&control, "+cpu")?;
        }
        Ok(())
    }

    /// Sets or replaces the memory limit.
    pub(super) fn limit_memory(&self, memory_mib: u32) -> io::Result<()> {
        let bytes = (u64::from(memory_mib) << 20).to_string();
        if self.version_2 {
            fs::write(self.memory.join("memory.max"), &bytes)?;
            // Where the kernel counts swap, the swap limit is zero, because swapping would evade
            // the memory limit.
            let _ = fs::write(self.memory.join("memory.swap.max"), "0");
            return Ok(());
        }
        let (memory, with_swap) = (
            self.memory.join("memory.limit_in_bytes"),
            self.memory.join("memory.memsw.limit_in_bytes"),
        );
        // The second value is never below the first. So a lower limit is set in this order, a
        // higher one in reverse.
        if fs::write(&memory, &bytes).is_err() {
            let _ = fs::write(&with_swap, &bytes);
            return fs::write(&memory, &bytes);
        }
        let _ = fs::write(&with_swap, &bytes);
        Ok(())
    }

    /// Sets the memory limit for one process more. Version 1 refuses a limit below the memory in
    /// use: there the limit is set to the use, so that the cgroup cannot grow; where even this
    /// fails, the earlier limit stays. Version 2 accepts any limit and enforces it.
    pub(super) fn limit_growth(&self, memory_mib: u32) -> io::Result<()> {
        let mut limit_mib = memory_mib;
        for _ in 0..LOWER_TRIES {
            match self.limit_memory(limit_mib) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !self.version_2 => {
                    let used_mib = self.used_mib()?;
                    limit_mib = memory_mib.max(used_mib.saturating_add(1));
                }
                other => return other,
            }
        }
        tracing::warn!(
            memory_mib,
            "a cgroup uses more memory than its new limit, and keeps the earlier one until the next change"
        );
        Ok(())
    }

    /// Memory in use, in version 1.
    fn used_mib(&self) -> io::Result<u32> {
        let text = fs::read_to_string(self.memory.join("memory.usage_in_bytes"))?;
        let bytes: u64 = text.trim().parse().map_err(io::Error::other)?;
        Ok(u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX))
    }

    /// Ends all processes of the cgroup together when one of them must end for want of memory.
    pub(super) fn end_as_one(&self) {
        if self.version_2 {
            // A kernel before 4.19 has no such file; a worker is one process anyway.
            let _ = fs::write(self.memory.join("memory.oom.group"), "1");
        }
    }

    /// Limits processes and threads.
    pub(super) fn limit_pids(&self, pids: u32) -> io::Result<()> {
        fs::write(self.pids.join("pids.max"), pids.to_string())
    }

    /// Sets the share of the processors relative to the cgroups beside this one; 100 is the
    /// kernel's default.
    pub(super) fn weigh(&self, weight: u32) -> io::Result<()> {
        match &self.cpu {
            None => Ok(()),
            Some(cpu) if self.version_2 => fs::write(cpu.join("cpu.weight"), weight.to_string()),
            Some(cpu) => {
                let shares = weight * DEFAULT_SHARES / DEFAULT_WEIGHT;
                fs::write(cpu.join("cpu.shares"), shares.to_string())
            }
        }
    }

    /// Adds a process with all its threads.
    pub(super) fn add(&self, pid: u32) -> io::Result<()> {
        self.folders()
            .into_iter()
            .try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }

    /// How many of its processes the kernel has ended for want of memory.
    pub(super) fn kills(&self) -> u64 {
        let file = if self.version_2 {
            "memory.events"
        } else {
            "memory.oom_control"
        };
        kills(&fs::read_to_string(self.memory.join(file)).unwrap_or_default())
    }

    /// Removes the cgroup, which holds no process any more.
    pub(super) fn remove(&self) {
        for folder in self.folders() {
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

fn kills(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(folder: &Path, version_2: bool) -> Group {
        let of = |controller: &str| {
            let folder = folder.join(if version_2 { "" } else { controller });
            fs::create_dir_all(&folder).unwrap();
            folder
        };
        Group {
            version_2,
            memory: of("memory"),
            pids: of("pids"),
            cpu: Some(of("cpu")),
        }
    }

    #[test]
    fn kills_are_counted_in_both_formats() {
        assert_eq!(kills("low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n"), 2);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"), 1);
        assert_eq!(kills(""), 0);
    }

    #[test]
    fn each_limit_goes_to_the_file_of_its_version() {
        let folder = tempfile::tempdir().unwrap();
        for version_2 in [true, false] {
            let parent = group(&folder.path().join(version_2.to_string()), version_2);
            parent.hand_on().unwrap();
            let child = parent.child("child");
            child.create().unwrap();
            assert_eq!(child.folders().len(), if version_2 { 1 } else { 3 });
            child.limit_memory(64).unwrap();
            child.limit_pids(16).unwrap();
            child.weigh(400).unwrap();
            child.add(1234).unwrap();
            let read = |folder: &Path, file: &str| fs::read_to_string(folder.join(file)).unwrap();
            let cpu = child.cpu.as_deref().unwrap();
            if version_2 {
                assert_eq!(read(&parent.memory, "cgroup.subtree_control"), "+cpu");
                assert_eq!(read(&child.memory, "memory.max"), "67108864");
                assert_eq!(read(&child.memory, "memory.swap.max"), "0");
                assert_eq!(read(cpu, "cpu.weight"), "400");
            } else {
                assert_eq!(read(&parent.memory, "memory.use_hierarchy"), "1");
                assert_eq!(read(&child.memory, "memory.limit_in_bytes"), "67108864");
                assert_eq!(read(cpu, "cpu.shares"), "4096");
            }
            assert_eq!(read(&child.pids, "pids.max"), "16");
            for folder in child.folders() {
                assert_eq!(read(folder, "cgroup.procs"), "1234");
            }
        }
    }

    #[test]
    fn a_memory_limit_is_replaced_by_another_in_both_versions() {
        for (version_2, file) in [(true, "memory.max"), (false, "memory.limit_in_bytes")] {
            let folder = tempfile::tempdir().unwrap();
            let group = group(folder.path(), version_2);
            for memory_mib in [64, 5000, 32] {
                group.limit_memory(memory_mib).unwrap();
                let limit = fs::read_to_string(group.memory.join(file)).unwrap();
                assert_eq!(limit, (u64::from(memory_mib) << 20).to_string());
            }
        }
    }
}
