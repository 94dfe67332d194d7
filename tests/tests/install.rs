//! The files that `make install` installs: systemd accepts the units, and every path in them
//! exists.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::programs::programs_folder;

/// The programs of a serving machine; the command line is installed beside them.
const PROGRAMS: &[&str] = &[
    "casemate",
    "casemate-control",
    "casemate-launch",
    "casemate-node",
    "casemate-vault",
    "casemate-gateway",
    "casemate-worker",
];
const UNITS: &[&str] = &["casemate-control.service", "casemate-node.service"];

/// An installation under `usr` in a folder.
struct Installed {
    root: tempfile::TempDir,
}

impl Installed {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let installed = Self { root };
        installed.make("install-files");
        installed
    }

    fn make(&self, target: &str) {
        let ran = Command::new("make")
            .args(["--silent", target, "PREFIX=/usr"])
            .arg(format!("DESTDIR={}", self.root.path().display()))
            .arg(format!(
                "INSTALL_FROM={}",
                programs_folder().unwrap().display()
            ))
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    fn unit(&self, name: &str) -> String {
        fs::read_to_string(self.at(&format!("/usr/lib/systemd/system/{name}"))).unwrap()
    }

    /// Runs a tool of systemd on the installed files, if this machine has the tool.
    fn tool(&self, program: &str, args: &[&str]) -> Option<Output> {
        let ran = Command::new(program)
            .arg(format!("--root={}", self.root.path().display()))
            .args(args)
            .env("SYSTEMD_LOG_LEVEL", "info")
            .output();
        ran.ok()
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// The absolute paths in a unit or configuration file.
fn paths(text: &str) -> BTreeSet<String> {
    let words = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.split([' ', '=', '"', '\t']));
    let words = words.map(|word| word.trim_start_matches("file:"));
    words
        .filter(|word| word.starts_with('/'))
        .map(ToOwned::to_owned)
        .collect()
}

#[test]
fn every_path_in_the_units_is_installed_or_made() {
    let installed = Installed::new();
    let read = |path: &str| fs::read_to_string(installed.at(path)).unwrap();
    let tmpfiles = read("/usr/lib/tmpfiles.d/casemate.conf");
    let made: BTreeSet<_> = tmpfiles
        .lines()
        .filter_map(|line| line.strip_prefix("d ")?.split(' ').next())
        .map(ToOwned::to_owned)
        .collect();
    let mut named = paths(&read("/usr/lib/sysusers.d/casemate.conf"));
    for unit in UNITS {
        named.extend(paths(&installed.unit(unit)));
    }
    for config in ["control.toml", "node.toml", "vault.toml"] {
        named.extend(paths(&read(&format!("/etc/casemate/{config}"))));
    }
    assert!(named.contains("/usr/bin/casemate-launch"), "{named:?}");
    for path in named {
        let is_there = made.contains(&path) || installed.at(&path).exists();
        assert!(is_there, "{path} is named and not installed");
    }
    for program in PROGRAMS {
        let mode = fs::metadata(installed.at(&format!("/usr/bin/{program}")))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755, "{program}");
    }
    for file in files(installed.root.path()) {
        let text = fs::read(&file).unwrap();
        let is_text = !text.starts_with(b"\x7fELF");
        assert!(
            !is_text || !String::from_utf8_lossy(&text).contains("@PREFIX@"),
            "{}",
            file.display()
        );
    }
}

#[test]
fn the_configurations_that_are_installed_are_understood() {
    let installed = Installed::new();
    for file in ["control.toml", "node.toml", "vault.toml"] {
        let text = fs::read_to_string(installed.at(&format!("/etc/casemate/{file}"))).unwrap();
        let table: toml::Table = text.parse().unwrap();
        assert!(!table.is_empty(), "{file}");
    }
    // The node's user ids are those that launch derives from its default base.
    let users = fs::read_to_string(installed.at("/usr/lib/sysusers.d/casemate.conf")).unwrap();
    let help = Command::new(installed.at("/usr/bin/casemate-launch"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("[default: 700000]"), "{help}");
    for (user, id) in [
        ("supervisor", 700_001),
        ("vault", 700_002),
        ("gateway", 700_003),
    ] {
        assert!(
            users.contains(&format!("u casemate-{user} {id} ")),
            "{users}"
        );
    }
}

#[test]
fn systemd_takes_the_units_the_users_and_the_folders() {
    let installed = Installed::new();
    for unit in UNITS {
        let path = format!("/usr/lib/systemd/system/{unit}");
        // A separate root lacks the units and tools that every system has; only those may be
        // missing.
        let Some(ran) = installed.tool("systemd-analyze", &["verify", "--man=no", &path]) else {
            return;
        };
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        let of_every_system = ["sysinit.target not found", "Command kill is not executable"];
        let of_ours = said.lines().filter(|line| {
            line.contains(unit) && !of_every_system.iter().any(|other| line.contains(other))
        });
        assert_eq!(of_ours.count(), 0, "{unit}: {said}");
        let exposed = ["security", "--offline=true", &path];
        let Some(ran) = installed.tool("systemd-analyze", &exposed) else {
            return;
        };
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let level = said
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .unwrap_or_else(|| panic!("{ran:?}"));
        let level: f32 = level
            .split(':')
            .nth(1)
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap();
        let most = if *unit == "casemate-control.service" {
            2.0
        } else {
            6.0
        };
        assert!(
            level <= most,
            "{unit} is exposed at {level}, {most} at most:\n{said}"
        );
    }
    let users = installed.at("/usr/lib/sysusers.d/casemate.conf");
    let folders = installed.at("/usr/lib/tmpfiles.d/casemate.conf");
    for (tool, args) in [
        ("systemd-sysusers", vec![users.to_str().unwrap()]),
        (
            "systemd-tmpfiles",
            vec!["--create", folders.to_str().unwrap()],
        ),
    ] {
        let Some(ran) = installed.tool(tool, &args) else {
            return;
        };
        assert!(ran.status.success(), "{tool}: {ran:?}");
    }
    let users = fs::read_to_string(installed.at("/etc/passwd")).unwrap();
    assert!(users.contains("casemate-vault:x:700002:700002:"), "{users}");
}

#[test]
fn the_service_manager_keeps_as_many_sockets_as_launch_holds() {
    let unit = Installed::new().unit("casemate-node.service");
    let most = casemate_wire::control::gateway::MAX_SOCKETS;
    for setting in [
        format!("FileDescriptorStoreMax={most}"),
        "NotifyAccess=main".to_owned(),
    ] {
        assert!(unit.lines().any(|line| line == setting), "{setting}");
    }
}

/// Environment variable that marks the process with the unit's privileges.
const INNER: &str = "CASEMATE_TEST_UNDER_UNIT";

/// The capabilities that the unit leaves, with which launch cannot build the sandbox, and the
/// kernel's promise that no program gains any (`no_new_privs`).
#[test]
fn a_node_serves_with_the_capabilities_that_its_unit_leaves() {
    if std::env::var_os(INNER).is_some() {
        return serve_once();
    }
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let installed = Installed::new();
    let unit = installed.unit("casemate-node.service");
    let setting = |key: &str| {
        unit.lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap()
    };
    assert_eq!(setting("NoNewPrivileges="), "yes");
    let kept = setting("CapabilityBoundingSet=").split(' ');
    let kept: Vec<_> = kept
        .map(|name| name.strip_prefix("CAP_").unwrap().to_ascii_lowercase())
        .collect();
    let set = format!("-all,+{}", kept.join(",+"));
    let ran = Command::new("setpriv")
        .args(["--no-new-privs", "--bounding-set", &set])
        .args(["--inh-caps", "-all"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "--nocapture",
            "a_node_serves_with_the_capabilities_that_its_unit_leaves",
        ])
        .env(INNER, "1")
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

fn serve_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let fleet = Fleet::start().unwrap();
    let code = "export default { fetch: () => new Response('served') };";
    let project = fleet.small_project("web", "", code).unwrap();
    fleet.deploy(&project).unwrap();
    let end = Instant::now() + SOON;
    loop {
        let answer = runtime
            .block_on(caller::get(fleet.node.gateway, "web.apps.demo.test", "/"))
            .unwrap();
        if answer.status == 200 {
            return assert_eq!(answer.text(), "served");
        }
        assert!(Instant::now() < end, "{} {}", answer.status, answer.text());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_second_installation_keeps_the_configuration_and_removing_leaves_it() {
    let installed = Installed::new();
    let config = installed.at("/etc/casemate/node.toml");
    fs::write(&config, "# mine\n").unwrap();
    installed.make("install-files");
    assert_eq!(fs::read_to_string(&config).unwrap(), "# mine\n");
    installed.make("uninstall");
    let left: Vec<_> = files(installed.root.path())
        .into_iter()
        .map(|path| path.strip_prefix(installed.root.path()).unwrap().to_owned())
        .collect();
    assert!(
        left.iter().all(|path| path.starts_with("etc/casemate")) && left.len() == 3,
        "{left:?}"
    );
}
