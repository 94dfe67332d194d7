//! Which files may become part of a bundle. A dependency writes its own imports: with `../../../`
//! in front it could import any file of the machine into the bundle, where the control plane can
//! read it and the function's code has it at run time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rolldown::plugin::{HookLoadArgs, HookLoadReturn, HookUsage, Plugin, SharedLoadPluginContext};
use rolldown_common::Output;

use super::workspace;
use super::{Beside, Sources};
use crate::error::{Code, Error};

/// What a bundle may be made of, decided once from the project's folder and owned by the bundler's
/// plugin. Asked before a module is read, so that not even the frame of a syntax error shows what
/// lies outside.
#[derive(Debug)]
pub(super) struct Walls {
    folder: PathBuf,
    /// The workspace that the project is a part of.
    workspace: Option<PathBuf>,
    /// Each `node_modules` that Node.js would look into from there.
    installed: Vec<PathBuf>,
    /// Folders beside the project: packages of the workspace, and what `casemate.toml` names.
    beside: Vec<PathBuf>,
    /// The home folder, with keys and tokens: never allowed, even where it lies in the project.
    home: Option<PathBuf>,
    /// The first file that was refused.
    refused: Mutex<Option<PathBuf>>,
}

impl Walls {
    /// The walls around a project; the path `folder` must not contain symbolic links.
    pub(super) fn new(folder: &Path, sources: &Sources<'_>) -> Self {
        let installed = folder.ancestors().map(|up| up.join("node_modules"));
        let workspace = workspace::root(folder);
        let linked = workspace
            .iter()
            .flat_map(|root| workspace::linked(root, folder));
        let named = sources.include.iter();
        let beside = linked.chain(named.filter_map(|path| path.canonicalize().ok()));
        Self {
            folder: folder.to_owned(),
            installed: installed
                .filter_map(|packages| packages.canonicalize().ok())
                .collect(),
            beside: beside.collect(),
            home: sources.home.canonicalize().ok(),
            workspace,
            refused: Mutex::default(),
        }
    }

    /// Walls that allow no file.
    pub(super) fn closed() -> Self {
        Self {
            // No path begins with this one.
            folder: PathBuf::from("-"),
            workspace: None,
            installed: Vec::new(),
            beside: Vec::new(),
            home: None,
            refused: Mutex::default(),
        }
    }

    /// The folder up to which manifests and configurations count.
    pub(super) fn top(&self) -> &Path {
        self.workspace.as_deref().unwrap_or(&self.folder)
    }

    /// Whether a file lies inside after its links are resolved.
    fn hold(&self, path: &Path) -> std::io::Result<bool> {
        let real = path.canonicalize()?;
        let mut inside = self
            .installed
            .iter()
            .chain(&self.beside)
            .chain([&self.folder]);
        Ok(!self.is_home(&real) && inside.any(|folder| real.starts_with(folder)))
    }

    /// Whether a file may configure how the project is compiled: a workspace has its shared
    /// configurations anywhere in it.
    pub(super) fn may_configure(&self, path: &Path) -> std::io::Result<bool> {
        let real = path.canonicalize()?;
        let is_shared = real.starts_with(self.top()) && !self.is_home(&real);
        Ok(is_shared || self.hold(&real)?)
    }

    fn is_home(&self, real: &Path) -> bool {
        self.home
            .as_ref()
            .is_some_and(|home| real.starts_with(home))
    }

    /// Checks the files that the bundler copied. It reads these without asking, so they are checked
    /// before the bundle is made.
    pub(super) fn check_copied(&self, outputs: &[Output]) -> Result<(), Error> {
        for path in self.copied(outputs) {
            if !self.hold(&path).unwrap_or(false) {
                return Err(self.outside(&path));
            }
        }
        Ok(())
    }

    fn copied(&self, outputs: &[Output]) -> impl Iterator<Item = PathBuf> {
        let assets = outputs.iter().filter_map(|output| match output {
            Output::Asset(asset) if !asset.filename.ends_with(".map") => Some(asset),
            _ => None,
        });
        assets
            .flat_map(|asset| &asset.original_file_names)
            .map(|name| self.folder.join(name))
    }

    /// The files that were packed from folders beside the project, counted by folder.
    pub(super) fn packed_from_beside(&self, outputs: &[Output]) -> Vec<Beside> {
        let modules = outputs.iter().filter_map(|output| match output {
            Output::Chunk(chunk) => Some(&chunk.module_ids),
            Output::Asset(_) => None,
        });
        let modules = modules.flatten().map(|id| PathBuf::from(id.as_str()));
        let mut files: BTreeMap<String, usize> = BTreeMap::new();
        for path in modules.chain(self.copied(outputs)) {
            let real = path.canonicalize().unwrap_or(path);
            if real.starts_with(&self.folder) || workspace::is_installed(&real) {
                continue;
            }
            let holding = self.beside.iter().filter(|folder| real.starts_with(folder));
            // The innermost folder is the package.
            if let Some(folder) = holding.max_by_key(|folder| folder.as_os_str().len()) {
                *files.entry(relative(&self.folder, folder)).or_default() += 1;
            }
        }
        let beside = files.into_iter();
        beside
            .map(|(folder, files)| Beside { folder, files })
            .collect()
    }

    /// The error for the file that was refused, if that is what stopped the bundler.
    pub(super) fn refusal(&self) -> Option<Error> {
        let refused = self.refused.lock();
        refused.as_deref().map(|path| self.outside(path))
    }

    /// The error for a file that lies outside.
    pub(super) fn outside(&self, path: &Path) -> Error {
        let scope = match &self.workspace {
            Some(root) => format!(
                "the project is part of the workspace {}: its packages may be used that a \
                 node_modules links to",
                root.display()
            ),
            None => "the project is not part of a workspace: no folder above it has a \
                 pnpm-workspace.yaml or a package.json with `workspaces`"
                .to_owned(),
        };
        Error::new(
            Code::Bundle,
            "the function reaches for a file that is not the project's",
            "if a package did this on its own, find out why before you use it. To use a folder \
             beside the project, make it a package of the workspace, name it in package.json and \
             install it, or name it in casemate.toml: include = [\"../shared\"]",
        )
        .at(path.display())
        .lines([scope])
    }
}

/// `to` as it is written in a file of the folder `from`; both are real paths.
fn relative(from: &Path, to: &Path) -> String {
    let shared = from
        .components()
        .zip(to.components())
        .take_while(|(a, b)| a == b)
        .count();
    let up = from.components().skip(shared).map(|_| "..".into());
    let down = to.components().skip(shared);
    let path: PathBuf = up
        .chain(down.map(|part| part.as_os_str().to_owned()))
        .collect::<Vec<std::ffi::OsString>>()
        .iter()
        .collect();
    path.display().to_string()
}

impl Plugin for Walls {
    fn name(&self) -> Cow<'static, str> {
        "casemate:walls".into()
    }

    fn register_hook_usage(&self) -> HookUsage {
        HookUsage::Load
    }

    async fn load(&self, _: SharedLoadPluginContext, args: &HookLoadArgs<'_>) -> HookLoadReturn {
        let path = Path::new(args.id);
        // Other ids are modules of the bundler itself. The bundler cannot read a file that is not
        // found, and reports that itself.
        if !path.is_absolute() || self.hold(path).unwrap_or(true) {
            return Ok(None);
        }
        let mut refused = self.refused.lock();
        refused.get_or_insert_with(|| path.to_owned());
        Err(std::io::Error::other("a file outside of the project").into())
    }
}
