//! The `tsconfig.json` of a project: one file for all of its TypeScript, as with `tsc`, and no
//! setting from outside of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oxc_resolver::{
    FileMetadata, FileSystem, FileSystemOs, ResolveError, ResolveOptions, ResolverGeneric,
    TsconfigDiscovery, TsconfigOptions, TsconfigReferences,
};
use parking_lot::Mutex;

use super::walls::Walls;
use crate::error::{Code, Error};

/// Name of the file.
const NAME: &str = "tsconfig.json";

/// The nearest `tsconfig.json`, from the main module's folder up to the folder of the project or of
/// its workspace.
///
/// # Errors
/// The `tsconfig.json`, or a file that it extends or references, cannot be parsed or lies outside
/// of the allowed folders.
pub(super) fn find(
    folder: &Path,
    main: &str,
    walls: &Arc<Walls>,
) -> Result<Option<PathBuf>, Error> {
    let main = folder.join(main);
    let found = main
        .ancestors()
        .skip(1)
        .take_while(|up| up.starts_with(walls.top()))
        .map(|up| up.join(NAME))
        .find(|path| path.is_file());
    if let Some(path) = &found {
        check(path, walls)?;
    }
    Ok(found)
}

/// Reads a `tsconfig.json` as the bundler will read it, and refuses the file if it leads outside of
/// the allowed folders.
fn check(path: &Path, walls: &Arc<Walls>) -> Result<(), Error> {
    let refused = Arc::new(Mutex::new(None));
    let files = Walled {
        walls: Arc::clone(walls),
        refused: Arc::clone(&refused),
        os: FileSystemOs::new(false),
    };
    let config = TsconfigOptions {
        config_file: path.to_owned(),
        references: TsconfigReferences::Auto,
    };
    let options = ResolveOptions {
        tsconfig: Some(TsconfigDiscovery::Manual(config)),
        ..ResolveOptions::default()
    };
    let read = ResolverGeneric::new_with_file_system(files, options).resolve_tsconfig(path);
    let refused = refused.lock().take();
    if let Some(refused) = refused {
        let path: PathBuf = refused;
        return Err(walls.outside(&path));
    }
    read.map(drop).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &ResolveError) -> Error {
    let (at, why) = match error {
        ResolveError::TsconfigNotFound(missing) => (
            path,
            format!(
                "`extends` or `references` names {}, which does not exist",
                missing.display()
            ),
        ),
        ResolveError::TsconfigCircularExtend(_) => (path, "`extends` is circular".to_owned()),
        ResolveError::TsconfigLoadFailed { path, source } => (path.as_path(), source.to_string()),
        other => (path, other.to_string()),
    };
    Error::new(
        Code::Bundle,
        "tsconfig.json cannot be read",
        "correct the named setting and run the command again",
    )
    .at(at.display())
    .lines([why])
}

/// The file system with everything outside of the allowed folders left out.
struct Walled {
    walls: Arc<Walls>,
    /// The first configuration that was refused.
    refused: Arc<Mutex<Option<PathBuf>>>,
    os: FileSystemOs,
}

impl Walled {
    fn may_read(&self, path: &Path) -> io::Result<()> {
        if self.walls.may_configure(path)? {
            return Ok(());
        }
        // Folders above the project may have manifests, which the resolver reads on its way to
        // `node_modules`.
        if !path.ends_with("package.json") {
            let mut refused = self.refused.lock();
            refused.get_or_insert_with(|| path.to_owned());
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

impl FileSystem for Walled {
    fn new(yarn_pnp: bool) -> Self {
        Self {
            walls: Arc::new(Walls::closed()),
            refused: Arc::default(),
            os: FileSystemOs::new(yarn_pnp),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.may_read(path)?;
        fs::read(path)
    }

    fn read_to_string(&self, path: &Path) -> io::Result<String> {
        self.may_read(path)?;
        fs::read_to_string(path)
    }

    fn metadata(&self, path: &Path) -> io::Result<FileMetadata> {
        self.os.metadata(path)
    }

    fn symlink_metadata(&self, path: &Path) -> io::Result<FileMetadata> {
        self.os.symlink_metadata(path)
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, ResolveError> {
        self.os.read_link(path)
    }

    fn canonicalize(&self, path: &Path) -> io::Result<PathBuf> {
        self.os.canonicalize(path)
    }
}
