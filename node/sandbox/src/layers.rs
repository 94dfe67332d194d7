//! The layers in force: read from the kernel, and described in words.

use std::fs;
use std::path::Path;

use rustix::process::{self, DumpableBehavior, Resource};

use crate::launch::{CGROUP_PREFIX, OUTER_NAMESPACES};
use crate::{LayerReport, speculation};

/// Every layer's name, as in `require = [...]`.
pub const LAYERS: [&str; 16] = [
    "user",
    "pid",
    "mount",
    "network",
    "ipc",
    "uts",
    "no_new_privs",
    "capabilities",
    "landlock",
    "rlimits",
    "seccomp",
    "cgroup",
    "speculation",
    "dumpable",
    "core_scheduling",
    "memory_lock",
];

/// Layers that are namespaces, with their names in /proc/self/ns.
const NAMESPACES: [(&str, &str); 6] = [
    ("user", "user"),
    ("pid", "pid"),
    ("mount", "mnt"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
];

/// Layers that the operator requires and that are not in force.
///
/// # Errors
/// A required layer does not exist, so the requirement cannot be checked.
pub fn missing(require: &[String], layers: &[LayerReport]) -> Result<Vec<String>, UnknownLayer> {
    if let Some(unknown) = require.iter().find(|name| !LAYERS.contains(&name.as_str())) {
        return Err(UnknownLayer(unknown.clone()));
    }
    let in_force = |name: &String| {
        layers
            .iter()
            .any(|report| report.layer == *name && report.in_force)
    };
    Ok(require
        .iter()
        .filter(|name| !in_force(name))
        .cloned()
        .collect())
}

/// A name in `require` that is no layer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no layer is called {0:?}; the layers are {list}", list = LAYERS.join(", "))]
pub struct UnknownLayer(pub String);

/// The kernel's answers for this thread at this moment, one report a layer. Needs /proc; a layer
/// that cannot be read counts as not in force.
pub fn status() -> Vec<LayerReport> {
    let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mut reports = NAMESPACES
        .map(|(layer, link)| namespace(layer, link))
        .to_vec();
    reports.extend([
        no_new_privs(&text),
        capabilities(&text),
        report("landlock", false, "not applied yet"),
        rlimits(),
        seccomp(&text),
        cgroup(
            Path::new("/sys/fs/cgroup"),
            &fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        ),
        speculation::status(),
        dumpable(),
        report(
            "core_scheduling",
            false,
            "only the vault and workers ask for it",
        ),
        report("memory_lock", false, "only the vault locks its memory"),
    ]);
    reports
}

pub(crate) fn report(layer: &str, in_force: bool, detail: impl Into<String>) -> LayerReport {
    LayerReport {
        layer: layer.to_owned(),
        in_force,
        detail: detail.into(),
    }
}

/// Replaces the report of the same layer in `reports` by `newer`.
pub(crate) fn replace(reports: &mut [LayerReport], newer: LayerReport) {
    if let Some(older) = reports
        .iter_mut()
        .find(|report| report.layer == newer.layer)
    {
        *older = newer;
    }
}

/// A line of /proc/self/status.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

fn namespace(layer: &str, link: &str) -> LayerReport {
    let Ok(outer) = std::env::var(OUTER_NAMESPACES) else {
        return report(layer, false, "not started by casemate-launch");
    };
    match fs::read_link(Path::new("/proc/self/ns").join(link)) {
        Err(error) => report(
            layer,
            false,
            format!("the kernel has no such namespace: {error}"),
        ),
        Ok(own) => match own.to_str() {
            Some(own) if !outer.split(' ').any(|other| other == own) => {
                report(layer, true, "own namespace")
            }
            _ => report(layer, false, "shared with casemate-launch"),
        },
    }
}

fn no_new_privs(status: &str) -> LayerReport {
    match field(status, "NoNewPrivs") {
        Some("1") => report("no_new_privs", true, "set"),
        _ => report("no_new_privs", false, "not set"),
    }
}

fn capabilities(status: &str) -> LayerReport {
    let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"];
    let held = sets.iter().filter(|set| {
        field(status, set).is_none_or(|bits| !bits.trim_start_matches('0').is_empty())
    });
    match held.copied().collect::<Vec<_>>().join(", ") {
        held if held.is_empty() => report("capabilities", true, "none"),
        held => report("capabilities", false, format!("some in {held}")),
    }
}

fn rlimits() -> LayerReport {
    match process::getrlimit(Resource::Core).maximum {
        Some(0) => report("rlimits", true, "no core files"),
        _ => report("rlimits", false, "core files are possible"),
    }
}

fn seccomp(status: &str) -> LayerReport {
    match field(status, "Seccomp") {
        Some("2") => report("seccomp", true, "a filter"),
        _ => report("seccomp", false, "no filter"),
    }
}

/// `cgroup` is the text of /proc/self/cgroup: `id:controllers:path` lines, with id 0 and no controllers for version 2.
fn cgroup(mount: &Path, cgroup: &str) -> LayerReport {
    let ours = |path: &str| {
        path.rsplit('/')
            .next()
            .is_some_and(|name| name.starts_with(CGROUP_PREFIX))
    };
    let mut limited = Vec::new();
    for line in cgroup.lines() {
        match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            ["0", "", path] if ours(path) => {
                let file = mount.join(path.trim_start_matches('/'));
                let controllers = fs::read_to_string(file.join("cgroup.controllers"));
                let controllers = controllers.unwrap_or_else(|_| "memory pids".to_owned());
                let mut limited: Vec<_> = controllers.split_whitespace().collect();
                limited.retain(|name| ["cpu", "memory", "pids"].contains(name));
                limited.sort_unstable();
                return report("cgroup", true, format!("cgroup v2: {}", limited.join(", ")));
            }
            [_, controllers, path] if ours(path) => limited.push(controllers),
            _ => {}
        }
    }
    limited.sort_unstable();
    if limited.contains(&"memory") {
        report("cgroup", true, format!("cgroup v1: {}", limited.join(", ")))
    } else {
        report("cgroup", false, "no cgroup of its own")
    }
}

fn dumpable() -> LayerReport {
    match process::dumpable_behavior() {
        Ok(DumpableBehavior::NotDumpable) => report(
            "dumpable",
            true,
            "no core dumps, no tracing by the same user",
        ),
        _ => report("dumpable", false, "the same user may trace it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_names_each_layer_once_and_in_order() {
        let names: Vec<_> = status().into_iter().map(|report| report.layer).collect();
        let mut expected = LAYERS.to_vec();
        expected.sort_unstable();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn a_required_layer_that_is_absent_or_not_in_force_is_missing() {
        let layers = [report("seccomp", true, ""), report("landlock", false, "")];
        let require = ["seccomp", "landlock", "cgroup"].map(str::to_owned);
        assert_eq!(missing(&require, &layers).unwrap(), ["landlock", "cgroup"]);
        assert_eq!(missing(&[], &layers).unwrap(), [""; 0]);
    }

    #[test]
    fn an_unknown_requirement_is_an_error_that_lists_the_layers() {
        let error = missing(&["seccomb".to_owned()], &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no layer is called \"seccomb\"; the layers are user, pid, mount, network, ipc, uts, no_new_privs, capabilities, \
             landlock, rlimits, seccomp, cgroup, speculation, dumpable, core_scheduling, memory_lock"
        );
    }

    #[test]
    fn cgroups_of_both_versions_and_of_somebody_else() {
        let mount = tempfile::tempdir().unwrap();
        let v1 = "8:pids:/a/casemate-1-2\n4:memory:/a/casemate-1-2\n0::/\n";
        assert_eq!(
            cgroup(mount.path(), v1),
            report("cgroup", true, "cgroup v1: memory, pids")
        );
        let v2 = "0::/system.slice/casemate-1.tenants/tenant-1/casemate-1-2\n";
        assert_eq!(
            cgroup(mount.path(), v2),
            report("cgroup", true, "cgroup v2: memory, pids")
        );
        let folder = v2.trim().trim_start_matches("0::/");
        fs::create_dir_all(mount.path().join(folder)).unwrap();
        let file = mount.path().join(folder).join("cgroup.controllers");
        fs::write(file, "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(
            cgroup(mount.path(), v2),
            report("cgroup", true, "cgroup v2: cpu, memory, pids")
        );
        for not_ours in [
            "0::/casemate-1-2/other\n",
            "8:pids:/casemate-1-2\n4:memory:/\n",
            "",
            "nonsense",
        ] {
            assert!(!cgroup(mount.path(), not_ours).in_force, "{not_ours}");
        }
    }

    #[test]
    fn a_single_capability_is_noticed_and_so_is_a_missing_line() {
        let none = "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n";
        assert!(capabilities(none).in_force);
        assert!(
            !capabilities(&none.replace("CapPrm:\t0000000000000000", "CapPrm:\t0000000000000400"))
                .in_force
        );
        assert!(!capabilities("").in_force);
    }
}
