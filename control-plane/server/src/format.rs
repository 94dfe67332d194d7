//! The formats of the state folder and of backups; their format files are read before everything
//! else.

use std::io::ErrorKind;
use std::path::Path;

use casemate_trust::format::{Format, MARK, Marking};

use crate::failure::Failure;
use crate::files;

/// The state folder. A change that earlier control planes would misread gets a number of its own,
/// and a fixture.
const STATE: Format = Format {
    what: "the control plane's state",
    newest: 1,
};
/// The file in a backup's folder that describes the backup.
pub(crate) const BACKUP_LABEL: &str = "backup.json";
/// A backup: the folder's own layout. The state in it has a format file as well.
pub(crate) const BACKUP: Format = Format {
    what: "the backup",
    newest: 1,
};

/// Refuses a state folder, or the state in a backup, that a newer control plane has written.
pub(crate) fn check(folder: &Path) -> Result<Marking, Failure> {
    let path = folder.join(MARK);
    let is_there = match std::fs::metadata(&path) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => {
            let message = format!("cannot read {}: {error}", path.display());
            return Err(Failure::io(message));
        }
    };
    let mark = is_there.then(|| files::read(&path)).transpose()?;
    check_mark(STATE, folder, mark.as_deref())
}

/// Like [`check`], for a format file that was read already.
pub(crate) fn check_mark(
    format: Format,
    folder: &Path,
    mark: Option<&[u8]>,
) -> Result<Marking, Failure> {
    let checked = format.check(mark);
    checked.map_err(|error| Failure::newer(format!("cannot open {}: {error}", folder.display())))
}

/// Marks a state folder, once its store is open and before anything is written into it.
pub(crate) fn mark(folder: &Path, marking: Marking) -> Result<(), Failure> {
    match marking {
        Marking::Done => Ok(()),
        Marking::Needed => files::write_private(&folder.join(MARK), &STATE.mark()),
        Marking::Wanted => {
            // A full disk must not prevent the start; the next start tries again.
            if let Err(failure) = files::write_private(&folder.join(MARK), &STATE.mark()) {
                let message = failure.message;
                tracing::warn!(message, "could not mark the format of the state folder");
            }
            Ok(())
        }
    }
}

/// Copies the format file of a state folder into a copy of the folder.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    let path = from.join(MARK);
    if !path.exists() {
        return Ok(());
    }
    files::write_private(&to.join(MARK), &files::read(&path)?)
}
