//! A folder that is there whole or not at all: a new state folder, or a backup.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::files;
use crate::format::BACKUP_LABEL;
use crate::state_folder::KEYS;

/// A folder in the root of many file systems: a file system may be mounted at the place of the
/// state folder.
const LOST_AND_FOUND: &str = "lost+found";

/// A folder that is filled at a hidden path: beside its final place, or inside it if the place is
/// an empty folder. It is removed if this is dropped before [`New::put_in_place`].
pub(crate) struct NewFolder {
    hidden: PathBuf,
    place: PathBuf,
    /// The place exists and is empty: a service manager has made it for a user who may not write
    /// beside it, or a file system is mounted there. It is kept and filled.
    is_inside: bool,
}

impl NewFolder {
    /// Begins a folder that does not exist yet, or is empty.
    pub(crate) fn create(place: &Path) -> Result<Self, Failure> {
        let name = place
            .file_name()
            .ok_or_else(|| Failure::config(format!("{} names no folder", place.display())))?;
        let is_inside = match fs::symlink_metadata(place) {
            Err(_) => false,
            Ok(_) if is_empty(place).unwrap_or(false) => true,
            Ok(_) => {
                let message = format!(
                    "{} exists already and is not empty; nothing was changed",
                    place.display()
                );
                return Err(Failure::cannot_create(message));
            }
        };
        let parent = parent(place);
        fs::create_dir_all(parent).map_err(|error| {
            Failure::cannot_create(format!("cannot create {}: {error}", parent.display()))
        })?;
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".new-{}", std::process::id()));
        let hidden = if is_inside { place } else { parent }.join(hidden);
        // A left-over of a killed program with the same process number.
        fs::remove_dir_all(&hidden).ok();
        files::create_folder(&hidden)?;
        let place = place.to_owned();
        Ok(Self {
            hidden,
            place,
            is_inside,
        })
    }

    /// The path while the folder is filled.
    pub(crate) fn folder(&self) -> &Path {
        &self.hidden
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.hidden.join(name)
    }

    /// Moves the folder to its final place.
    pub(crate) fn put_in_place(self) -> Result<(), Failure> {
        let moved = casemate_durable::sync_folder(&self.hidden)
            .and_then(|()| match self.is_inside {
                true => self.move_up(),
                false => fs::rename(&self.hidden, &self.place),
            })
            .and_then(|()| casemate_durable::sync_folder(parent(&self.place)));
        moved.map_err(|error| {
            Failure::cannot_create(format!("cannot create {}: {error}", self.place.display()))
        })
    }

    /// Moves the content into the place. The file that marks a state folder or a backup comes last:
    /// until then no program accepts the place as such.
    fn move_up(&self) -> io::Result<()> {
        if !is_empty(&self.place)? {
            return Err(io::Error::other("another program has filled it meanwhile"));
        }
        fs::set_permissions(&self.place, Permissions::from_mode(0o700))?;
        let names = fs::read_dir(&self.hidden)?.map(|entry| Ok(entry?.file_name()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort_by_key(|name| name == KEYS || name == BACKUP_LABEL);
        for name in names {
            fs::rename(self.hidden.join(&name), self.place.join(&name))?;
        }
        for entry in fs::read_dir(&self.place)? {
            let entry = entry?;
            if is_left_over(&entry.file_name()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        casemate_durable::sync_folder(&self.place)
    }
}

/// Whether a folder is empty except for what a killed program left while it filled the folder.
fn is_empty(place: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(place)? {
        let name = entry?.file_name();
        if name != LOST_AND_FOUND && !is_left_over(&name) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_left_over(name: &OsStr) -> bool {
    name.to_str()
        .is_some_and(|name| name.starts_with('.') && name.contains(".new-"))
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.hidden).ok();
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
