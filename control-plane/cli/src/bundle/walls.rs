//! Which files may become part of a bundle. A dependency writes its imports itself: with `../../../` in front it would take
//! whatever the machine holds, to where the control plane reads it and the function's code has it at run time.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rolldown::plugin::{HookLoadArgs, HookLoadReturn, HookUsage, Plugin, SharedLoadPluginContext};
use rolldown_common::Output;

use crate::error::{Code, Error};

/// See the module. Asked before a module is read, so that not even the frame of a syntax error shows what lies outside.
#[derive(Debug)]
pub(super) struct Walls {
    /// The project, and each `node_modules` that Node.js would look into from there.
    inside: Vec<PathBuf>,
    /// The home folder, with keys and tokens: never, also where it lies in the project.
    home: Option<PathBuf>,
    /// The first file that was refused.
    refused: Mutex<Option<PathBuf>>,
}

impl Walls {
    /// Around a project, whose path has no symbolic links in it.
    pub(super) fn new(folder: &Path, home: &Path) -> Self {
        let packages = folder.ancestors().map(|up| up.join("node_modules"));
        let packages = packages.filter_map(|packages| packages.canonicalize().ok());
        Self {
            inside: packages.chain([folder.to_owned()]).collect(),
            home: home.canonicalize().ok(),
            refused: Mutex::default(),
        }
    }

    /// Around nothing.
    pub(super) fn closed() -> Self {
        Self {
            inside: Vec::new(),
            home: None,
            refused: Mutex::default(),
        }
    }

    /// Whether a file lies inside, wherever links lead to it from.
    pub(super) fn hold(&self, path: &Path) -> std::io::Result<bool> {
        let real = path.canonicalize()?;
        let is_home = self
            .home
            .as_ref()
            .is_some_and(|home| real.starts_with(home));
        Ok(!is_home && self.inside.iter().any(|folder| real.starts_with(folder)))
    }

    /// What the bundler copies it reads without asking: looked at before anything is made of it.
    pub(super) fn check_copied(&self, folder: &Path, outputs: &[Output]) -> Result<(), Error> {
        let assets = outputs.iter().filter_map(|output| match output {
            Output::Asset(asset) if !asset.filename.ends_with(".map") => Some(asset),
            _ => None,
        });
        for name in assets.flat_map(|asset| &asset.original_file_names) {
            let path = folder.join(name);
            if !self.hold(&path).unwrap_or(false) {
                return Err(outside(&path));
            }
        }
        Ok(())
    }

    /// The error for the file that was refused, if that is what stopped the bundler.
    pub(super) fn refusal(&self) -> Option<Error> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.as_deref().map(outside)
    }
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
        // Other ids are modules of the bundler itself. What cannot be found it cannot read either, and says so.
        if !path.is_absolute() || self.hold(path).unwrap_or(true) {
            return Ok(None);
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.get_or_insert_with(|| path.to_owned());
        Err(std::io::Error::other("a file outside of the project").into())
    }
}

pub(super) fn outside(path: &Path) -> Error {
    Error::new(
        Code::Bundle,
        "the function reaches for a file that is not the project's",
        "import only what lies in the project's folder or is installed in a node_modules; if a package did this on its own, \
         find out why before you use it. To use files beside the project, make the folder above both of them the project",
    )
    .at(path.display())
}
