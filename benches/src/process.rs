//! Memory of processes, as the kernel reports it (proc(5)).

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

/// The children of each process.
fn children() -> BTreeMap<u32, Vec<u32>> {
    let mut children = BTreeMap::<u32, Vec<u32>>::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may itself contain any characters.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

/// A figure in KiB from one of the memory files of /proc.
pub(crate) fn kib(text: &str, name: &str) -> Option<u64> {
    let value = |line: &str| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.trim().strip_suffix(" kB")?.parse().ok()
    };
    text.lines().find_map(value)
}

/// PSS in KiB of a process and all its descendants.
pub(crate) fn pss_kib(root: u32) -> Result<u64> {
    let children = children();
    let (mut open, mut total) = (vec![root], 0);
    while let Some(pid) = open.pop() {
        open.extend(children.get(&pid).into_iter().flatten());
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
            // The process has just ended, or has no memory of its own.
            continue;
        };
        total += kib(&text, "Pss").context("smaps_rollup without Pss")?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_found_by_its_whole_name() {
        let text = "Pss_Dirty:   10 kB\nPss:         7 kB\nHugePages_Total:   0\n";
        assert_eq!(kib(text, "Pss"), Some(7));
        assert_eq!(kib(text, "HugePages_Total"), None);
        assert_eq!(kib(text, "Swap"), None);
    }
}
