//! Architecture rules as tests: what may depend on what, where `unsafe` may stand, which words may not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// May carry a sealed secret, never open one.
const CANNOT_OPEN: &[&str] = &[
    "casemate-worker",
    "casemate-gateway",
    "casemate-node",
    "casemate-wire",
    "casemate-channel",
    "casemate-sandbox",
    "casemate-path",
    "casemate-trust",
    "casemate-api",
    "casemate-push",
    "casemate-control-store",
    "casemate-control",
    "casemate",
];

/// Decide only: no IO, no clock, no randomness.
const PURE: &[(&str, &str)] = &[
    ("casemate-path", "vault/path/src"),
    ("casemate-trust", "vault/trust/src"),
    ("casemate-vault-core", "vault/core/src"),
    ("casemate-wire", "node/wire/src"),
    ("casemate-api", "control-plane/api/src"),
    ("casemate-push", "control-plane/push/src"),
    ("", "node/supervisor/src/state"),
];

/// Crates that a pure crate does not name.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "quinn",
    "rustix",
    "libc",
    "socket2",
    "hyper",
    "hyper-util",
    "rand",
    "getrandom",
    "tempfile",
];

/// Text that a pure source file does not hold.
const IMPURE_TEXT: &[&str] = &[
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "SystemTime",
    "Instant",
    "SystemRandom",
    "thread_rng",
    "OsRng",
    "tokio::",
    "std::env",
    "std::process",
    "std::thread",
];

/// Who may name each heavy or sharp dependency.
const NAMED_BY: &[(&str, &[&str])] = &[
    ("sled", &["casemate-vault-store"]),
    ("redb", &["casemate-control-store"]),
    (
        "quinn",
        &[
            "casemate-node",
            "casemate-control",
            "casemate-control-testing",
        ],
    ),
    ("deno_core", &["casemate-worker"]),
    ("deno_web", &["casemate-worker"]),
    ("deno_crypto", &["casemate-worker"]),
    ("deno_fetch", &["casemate-worker"]),
    ("deno_webidl", &["casemate-worker"]),
    ("v8", &[]),
    ("hpke", &["casemate-trust", "casemate-vault-core"]),
    ("seccompiler", &["casemate-sandbox"]),
    ("landlock", &["casemate-sandbox"]),
    ("rolldown", &["casemate"]),
];

/// Where `unsafe` may stand, relative to the root.
const UNSAFE_FOLDERS: &[&str] = &["node/sandbox/", "node/worker/src/engine/"];

const MAX_FILE_LINES: usize = 600;
const MAX_LINE_COLUMNS: usize = 140;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ lies in the root")
        .to_owned()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .exec()
        .expect("cargo metadata")
}

/// Everything that `package` links, by normal dependencies.
fn reach(metadata: &Metadata, package: &str) -> BTreeSet<String> {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let nodes: BTreeMap<&PackageId, _> =
        resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let start = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == package);
    let start = start.unwrap_or_else(|| panic!("no package {package} in the workspace"));
    let mut seen = BTreeSet::new();
    let mut todo = vec![&start.id];
    while let Some(id) = todo.pop() {
        for dep in &nodes[id].deps {
            let linked = dep
                .dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal);
            if linked && seen.insert(metadata[&dep.pkg].name.to_string()) {
                todo.push(&dep.pkg);
            }
        }
    }
    seen
}

/// Every file of ours with one of these endings.
fn sources(endings: &[&str]) -> Vec<(String, String)> {
    fn walk(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("readable folder").flatten() {
            let (path, name) = (
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            );
            if path.is_dir() {
                if !["target", "node_modules", "corpus", "artifacts"].contains(&name.as_str())
                    && !name.starts_with('.')
                {
                    walk(&path, endings, found);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, endings, &mut found);
    found.sort();
    let relative = |path: &Path| {
        path.strip_prefix(&root)
            .expect("below the root")
            .to_string_lossy()
            .into_owned()
    };
    found
        .iter()
        .filter_map(|path| Some((relative(path), fs::read_to_string(path).ok()?)))
        .collect()
}

fn none(mistakes: Vec<String>) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn only_the_vault_can_open_a_secret() {
    let metadata = metadata();
    let openers = CANNOT_OPEN
        .iter()
        .filter(|package| reach(&metadata, package).contains("casemate-vault-core"));
    none(
        openers
            .map(|package| format!("{package} reaches casemate-vault-core"))
            .collect(),
    );
    assert!(
        reach(&metadata, "casemate-vault").contains("casemate-vault-core"),
        "the vault must, or this proves nothing"
    );
}

#[test]
fn worker_and_gateway_carry_no_trust_code_and_no_network_client() {
    let metadata = metadata();
    let mut mistakes = Vec::new();
    for package in ["casemate-worker", "casemate-gateway"] {
        let reached = reach(&metadata, package);
        for absent in [
            "casemate-trust",
            "quinn",
            "sled",
            "redb",
            "hickory-resolver",
        ] {
            if reached.contains(absent) {
                mistakes.push(format!("{package} reaches {absent}"));
            }
        }
    }
    for absent in [
        "hyper",
        "rustls",
        "quinn",
        "deno_fetch",
        "deno_net",
        "deno_tls",
    ] {
        if reach(&metadata, "casemate-worker").contains(absent) {
            mistakes.push(format!("casemate-worker reaches {absent}"));
        }
    }
    none(mistakes);
}

#[test]
fn deciding_crates_do_nothing() {
    let metadata = metadata();
    let mut mistakes = Vec::new();
    for package in metadata.workspace_packages() {
        if PURE.iter().any(|(name, _)| *name == package.name.as_str()) {
            for dep in package
                .dependencies
                .iter()
                .filter(|dep| dep.kind == DependencyKind::Normal)
            {
                if IMPURE_CRATES.contains(&dep.name.as_str()) {
                    mistakes.push(format!("{} names {}", package.name, dep.name));
                }
            }
        }
    }
    for (path, text) in sources(&[".rs"]) {
        if !PURE.iter().any(|(_, folder)| path.starts_with(folder)) || path.ends_with("tests.rs") {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in code
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for word in IMPURE_TEXT.iter().filter(|word| line.contains(*word)) {
                mistakes.push(format!(
                    "{path}:{}: {word} in a crate that only decides",
                    number + 1
                ));
            }
        }
    }
    none(mistakes);
}

#[test]
fn sharp_dependencies_are_named_by_few() {
    let metadata = metadata();
    let mut mistakes = Vec::new();
    for package in metadata.workspace_packages() {
        for dep in package
            .dependencies
            .iter()
            .filter(|dep| dep.kind == DependencyKind::Normal)
        {
            let Some((_, allowed)) = NAMED_BY.iter().find(|(name, _)| *name == dep.name) else {
                continue;
            };
            if !allowed.contains(&package.name.as_str())
                && package.name.as_str() != "casemate-tests"
            {
                mistakes.push(format!(
                    "{} names {}; only {allowed:?} may",
                    package.name, dep.name
                ));
            }
        }
    }
    none(mistakes);
}

#[test]
fn every_version_stands_in_the_workspace() {
    let mut mistakes = Vec::new();
    for (path, text) in sources(&["Cargo.toml"]) {
        if path == "Cargo.toml" || path.starts_with("fuzz/") {
            continue;
        }
        let manifest: toml::Table = text
            .parse()
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for (name, spec) in table {
                if spec.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    mistakes.push(format!(
                        "{path}: {name} in [{section}] is not `workspace = true`"
                    ));
                }
            }
        }
        if manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            .is_none()
        {
            mistakes.push(format!("{path}: no `[lints] workspace = true`"));
        }
    }
    none(mistakes);
}

#[test]
fn unsafe_stands_in_two_places_only() {
    let mut mistakes = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        let allowed = UNSAFE_FOLDERS.iter().any(|folder| path.starts_with(folder));
        let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
        let exempt = path.starts_with("node/sandbox/")
            || path.starts_with("node/worker/")
            || path.starts_with("fuzz/");
        if is_root && !exempt && !text.contains("#![forbid(unsafe_code)]") {
            mistakes.push(format!(
                "{path}: a crate root without #![forbid(unsafe_code)]"
            ));
        }
        if allowed || path.starts_with("tests/tests/tidy.rs") {
            continue;
        }
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            if line.contains("unsafe ") && !line.contains('"') {
                mistakes.push(format!("{path}:{}: unsafe", number + 1));
            }
        }
    }
    none(mistakes);
}

#[test]
fn no_crate_of_leftovers() {
    let leftovers = [
        "common", "utils", "util", "types", "helpers", "misc", "shared",
    ];
    let names = metadata()
        .workspace_packages()
        .into_iter()
        .map(|package| package.name.to_string())
        .collect::<Vec<_>>();
    let named_so = |name: &&String| {
        leftovers
            .iter()
            .any(|word| name.split('-').any(|part| part == *word))
    };
    none(names.iter().filter(named_so).cloned().collect());
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        "TODO",
        "FIXME",
        "XXX",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "for now",
        "HACK",
    ];
    let mut mistakes = Vec::new();
    for (path, text) in sources(&[".rs", ".ts", ".js", ".toml", ".json", ".md", ".sh"]) {
        if path == "tests/tests/tidy.rs" || path.ends_with("package-lock.json") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(*word)) {
                mistakes.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    none(mistakes);
}

#[test]
fn files_and_lines_stay_readable() {
    let mut mistakes = Vec::new();
    for (path, text) in sources(&[".rs"]) {
        let lines = text.lines().count();
        if lines > MAX_FILE_LINES {
            mistakes.push(format!("{path}: {lines} lines; at most {MAX_FILE_LINES}"));
        }
        for (number, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| line.chars().count() > MAX_LINE_COLUMNS)
        {
            mistakes.push(format!(
                "{path}:{}: {} columns",
                number + 1,
                line.chars().count()
            ));
        }
    }
    none(mistakes);
}

#[test]
fn every_package_is_described_and_licensed() {
    let metadata = metadata();
    let mut mistakes = Vec::new();
    for package in metadata.workspace_packages() {
        if package.license.as_deref() != Some("Apache-2.0")
            || package.rust_version.is_none()
            || package.description.is_none()
        {
            mistakes.push(format!(
                "{}: license, rust-version and description are wanted",
                package.name
            ));
        }
    }
    assert!(root().join("LICENSE").is_file());
    none(mistakes);
}
