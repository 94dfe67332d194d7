//! Packages beside the project: those of its npm, pnpm or Yarn workspace that a package manager
//! linked into a `node_modules`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Largest `package.json` that is read for its `workspaces`, bytes.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
/// Most packages that may be linked, counting links between packages.
const MAX_LINKED: usize = 1000;

/// The nearest folder, from `folder` upwards, whose manifest declares a workspace.
pub(super) fn root(folder: &Path) -> Option<PathBuf> {
    let declares = |up: &&Path| {
        up.join("pnpm-workspace.yaml").is_file() || has_workspaces(&up.join("package.json"))
    };
    folder.ancestors().find(declares).map(Path::to_owned)
}

fn has_workspaces(manifest: &Path) -> bool {
    let mut text = Vec::new();
    let Ok(file) = fs::File::open(manifest) else {
        return false;
    };
    let read = file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text);
    // A manifest that npm cannot read declares no workspace.
    read.is_ok()
        && serde_json::from_slice::<serde_json::Value>(&text)
            .is_ok_and(|manifest| manifest.get("workspaces").is_some())
}

/// The real folders of the packages that are linked into `node_modules`, from `folder` up to the
/// workspace's `root`, and of the packages that these link in turn. A link that leads out of the
/// workspace is not followed.
pub(super) fn linked(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open: Vec<PathBuf> = folder
        .ancestors()
        .take_while(|up| up.starts_with(root))
        .map(Path::to_owned)
        .collect();
    while let Some(folder) = open.pop() {
        for package in links(&folder.join("node_modules")) {
            let is_beside = package.starts_with(root) && package != root && !is_installed(&package);
            let is_new = is_beside && found.len() < MAX_LINKED && found.insert(package.clone());
            if is_new {
                open.push(package);
            }
        }
    }
    found.into_iter().collect()
}

/// Whether a folder lies in a `node_modules`, as packages from a registry do.
pub(super) fn is_installed(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str() == "node_modules")
}

/// Targets of the links in a `node_modules` and in its `@scope` folders.
fn links(packages: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for entry in entries(packages) {
        let is_scope = entry.file_name().to_string_lossy().starts_with('@');
        let inner = is_scope.then(|| entries(&entry.path()));
        for entry in inner.into_iter().flatten().chain([entry]) {
            if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
                found.extend(entry.path().canonicalize());
            }
        }
    }
    found.retain(|path| path.is_dir());
    found
}
