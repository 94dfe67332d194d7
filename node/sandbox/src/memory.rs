//! The memory that the workers of a node may use together: launch limits their cgroup to it, and
//! the supervisor admits workers against it.

use std::fs;
use std::path::{Path, PathBuf};

/// The part of the machine's memory that is reserved for the kernel and the node's own programs:
/// one in this many.
const RESERVE_ONE_IN: u64 = 8;
/// The smallest reserve, MiB: a vault and a gateway under load, and page cache for their files.
const RESERVE_MIN_MIB: u64 = 256;
/// Where hierarchies are mounted by convention.
const MOUNT: &str = "/sys/fs/cgroup";

/// MiB that the workers of this machine may use together; `None` where /proc does not report the
/// machine's memory. A limit on this process's own cgroup, as in a container, counts like the
/// machine's memory. Reads files, so call it before the sandbox closes.
pub fn workers_memory_mib() -> Option<u32> {
    let machine = parse_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limit = cgroup_limit(Path::new(MOUNT), &own).unwrap_or(u64::MAX);
    Some(without_reserve(machine.min(limit >> 20)))
}

/// The part of `mib` MiB of memory that is left for workers: all but the reserve, at least half.
fn without_reserve(mib: u64) -> u32 {
    let reserve = (mib / RESERVE_ONE_IN).max(RESERVE_MIN_MIB).min(mib / 2);
    u32::try_from(mib - reserve).unwrap_or(u32::MAX)
}

/// `MemTotal` of /proc/meminfo, MiB.
fn parse_total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// The lowest memory limit on this process's cgroup and those above it, bytes. `own` is the text of
/// /proc/self/cgroup.
fn cgroup_limit(mount: &Path, own: &str) -> Option<u64> {
    let mut limits = Vec::new();
    for line in own.lines() {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
            continue;
        };
        let (root, file) = match controllers {
            "" => (mount.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => {
                (mount.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let mut folder = PathBuf::from(path.trim_start_matches('/'));
        loop {
            // `max` of version 2 does not parse as a number.
            let text = fs::read_to_string(root.join(&folder).join(file)).unwrap_or_default();
            limits.extend(text.trim().parse::<u64>());
            if !folder.pop() {
                break;
            }
        }
    }
    limits.into_iter().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_all_but_a_reserve() {
        for (machine, workers) in [
            (24_105, 21_092),
            (4096, 3584),
            (1024, 768),
            (400, 200),
            (0, 0),
        ] {
            assert_eq!(without_reserve(machine), workers, "{machine}");
        }
        assert_eq!(without_reserve(u64::MAX), u32::MAX);
    }

    #[test]
    fn the_total_is_read_as_the_kernel_writes_it() {
        let text = "MemTotal:       24684240 kB\nMemFree:        20945096 kB\n";
        assert_eq!(parse_total(text), Some(24_105));
        assert_eq!(parse_total("MemFree: 1 kB\n"), None);
        assert_eq!(parse_total("MemTotal: 1 MB\n"), None);
    }

    #[test]
    fn the_lowest_limit_above_this_process_counts_in_both_versions() {
        let mount = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = mount.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "2147483648\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(cgroup_limit(mount.path(), "0::/a/b\n"), Some(2 << 30));
        assert_eq!(cgroup_limit(mount.path(), "0::/\n"), None);
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/c/memory.limit_in_bytes", "1073741824\n");
        let own = "4:cpu,memory:/c\n0::/a/b\n";
        assert_eq!(cgroup_limit(mount.path(), own), Some(1 << 30));
    }
}
