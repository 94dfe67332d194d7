//! Lists the crates that are linked into a node's programs, with their licences, so that `casemate`
//! can print them wherever it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs;
use std::path::Path;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde_json::{Value, json};

/// The packages of the programs in an image.
const PROGRAMS: &[&str] = &[
    "casemate-init",
    "casemate-sandbox",
    "casemate-node",
    "casemate-vault",
    "casemate-gateway",
    "casemate-worker",
];
/// Names of licence files, in capitals.
const LICENCE_FILES: &[&str] = &[
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];
/// Longer files are not licences.
const MAX_LICENCE_BYTES: u64 = 128 * 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../..");
    let lock = root.join("Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    println!("cargo::rerun-if-changed=build.rs");
    let target = std::env::var("TARGET")?;
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options([
            "--locked".to_owned(),
            "--filter-platform".to_owned(),
            target,
        ])
        .exec()?;
    let checksums = checksums(&fs::read_to_string(lock)?)?;
    let mut texts: BTreeMap<String, usize> = BTreeMap::new();
    let mut crates = Vec::new();
    for package in linked(&metadata) {
        let folder = package
            .manifest_path
            .parent()
            .ok_or("a manifest has a parent folder")?;
        let licences = if package.source.is_some() {
            licences(folder.as_std_path())?
        } else {
            Vec::new()
        };
        let mut named = Vec::new();
        for (name, text) in licences {
            let next = texts.len();
            let number = *texts.entry(text).or_insert(next);
            named.push(json!([name, number]));
        }
        let version = package.version.to_string();
        crates.push(json!({
            "name": package.name,
            "version": version,
            "licence": package.license.as_ref().map(|licence| licence.replace('/', " OR ")),
            "sha256": checksums.get(&(package.name.to_string(), version)),
            "texts": named,
        }));
    }
    let mut in_order = vec![Value::Null; texts.len()];
    for (text, number) in texts {
        in_order[number] = text.into();
    }
    let all = json!({ "crates": crates, "texts": in_order });
    let out = Path::new(&std::env::var("OUT_DIR")?).join("crates.json");
    Ok(fs::write(out, all.to_string())?)
}

/// The packages that are linked into these programs, by name.
fn linked(metadata: &Metadata) -> Vec<&Package> {
    let is_program = |package: &&Package| PROGRAMS.contains(&package.name.as_str());
    let mut open: Vec<&PackageId> = metadata
        .packages
        .iter()
        .filter(is_program)
        .map(|package| &package.id)
        .collect();
    let mut seen = BTreeSet::new();
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    let nodes: BTreeMap<_, _> = nodes.map(|node| (&node.id, node)).collect();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let needs = nodes.get(id).into_iter().flat_map(|node| &node.deps);
        let is_linked = |dep: &&cargo_metadata::NodeDep| {
            dep.dep_kinds
                .iter()
                .any(|kind| kind.kind == DependencyKind::Normal)
        };
        open.extend(needs.filter(is_linked).map(|dep| &dep.pkg));
    }
    let packages = metadata.packages.iter();
    let mut found: Vec<_> = packages
        .filter(|package| seen.contains(&package.id))
        .collect();
    found.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    found
}

fn licences(folder: &Path) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let upper = name.to_uppercase();
        let is_licence = LICENCE_FILES.iter().any(|start| upper.starts_with(start));
        let file = entry.metadata()?;
        if is_licence && file.is_file() && file.len() <= MAX_LICENCE_BYTES {
            let text = fs::read(entry.path())?;
            found.push((name, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    found.sort();
    Ok(found)
}

/// SHA-256 of each crate's file, as recorded in the lock file.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>, Box<dyn Error>> {
    let lock: toml::Table = toml::from_str(lock)?;
    let packages = lock.get("package").and_then(toml::Value::as_array);
    let text = |package: &toml::Value, name: &str| {
        package
            .get(name)
            .and_then(toml::Value::as_str)
            .map(str::to_owned)
    };
    let found = packages.into_iter().flatten().filter_map(|package| {
        let key = (text(package, "name")?, text(package, "version")?);
        Some((key, text(package, "checksum")?))
    });
    Ok(found.collect())
}
