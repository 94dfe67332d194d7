//! Manifests: versions and lints in one place, a description and a license everywhere.

use toml::{Table, Value};

use crate::layers::metadata;
use crate::none;
use crate::source::{Source, root, sources};

fn scattered(source: &Source) -> Vec<String> {
    let path = &source.path;
    let manifest: Table = match source.text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![format!("{path}: {error}")],
    };
    let mut mistakes = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let table = manifest.get(section).and_then(Value::as_table);
        for (name, spec) in table.into_iter().flatten() {
            if spec.get("workspace").and_then(Value::as_bool) != Some(true) {
                mistakes.push(format!(
                    "{path}: {name} in [{section}] is not `workspace = true`"
                ));
            }
        }
    }
    let lints = manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"));
    if lints.and_then(Value::as_bool) != Some(true) {
        mistakes.push(format!("{path}: no `[lints] workspace = true`"));
    }
    mistakes
}

#[test]
fn versions_and_lints_stand_in_the_workspace() {
    let manifests = sources(&["Cargo.toml"]);
    // `fuzz` is a workspace of its own.
    let members = manifests
        .iter()
        .filter(|source| source.path != "Cargo.toml" && !source.path.starts_with("fuzz/"));
    none(&members.flat_map(scattered).collect::<Vec<_>>());
}

#[test]
fn a_version_of_its_own_and_missing_lints_are_found() {
    let text = "[dependencies]
        hyper = \"1\"
        bytes.workspace = true
        [build-dependencies]
        cc = { path = \"x\" }";
    let found = scattered(&Source::planted("node/wire/Cargo.toml", text));
    assert_eq!(found.len(), 3, "{found:?}");
    let text = "[dependencies]\nbytes.workspace = true\n[lints]\nworkspace = true\n";
    assert!(scattered(&Source::planted("node/wire/Cargo.toml", text)).is_empty());
}

#[test]
fn every_package_is_described_and_licensed() {
    let metadata = metadata();
    let packages = metadata.workspace_packages().into_iter();
    let lacking = packages.filter(|package| {
        package.license.as_deref() != Some("Apache-2.0")
            || package.rust_version.is_none()
            || package.description.is_none()
    });
    let mistakes: Vec<_> = lacking
        .map(|package| {
            let name = &package.name;
            format!("{name}: license, rust-version or description is missing")
        })
        .collect();
    none(&mistakes);
    assert!(root().join("LICENSE").is_file());
}
