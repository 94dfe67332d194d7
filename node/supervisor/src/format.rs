//! The format of the supervisor's folder: bundles, images, and which releases have loaded.

use std::fs;
use std::io;
use std::path::Path;

use casemate_config::{EXIT_IO, EXIT_NEWER};
use casemate_durable::PRIVATE;
use casemate_trust::format::{Format, MARK, MAX_MARK_BYTES, Marking};

/// What earlier supervisors would misread gets a number of its own, and a fixture.
const FORMAT: Format = Format {
    what: "the supervisor's state",
    newest: 1,
};

/// Refuses the folder of a newer supervisor, with the exit code and why, before anything in it is read or changed; and marks
/// one that has no mark yet.
pub(crate) fn open(state: &Path) -> Result<(), (u8, String)> {
    let path = state.join(MARK);
    let cannot = |what: &str, error: io::Error| {
        let message = format!("cannot {what} {}: {error}", path.display());
        (EXIT_IO, message)
    };
    let mark = match fs::metadata(&path) {
        // What is too long to be read is too long to be a mark.
        Ok(found) if found.len() > MAX_MARK_BYTES as u64 => Some(vec![0; MAX_MARK_BYTES + 1]),
        Ok(_) => Some(fs::read(&path).map_err(|error| cannot("read", error))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(cannot("read", error)),
    };
    let marking = FORMAT.check(mark.as_deref());
    let marking = marking.map_err(|error| {
        (
            EXIT_NEWER,
            format!("cannot open {}: {error}", state.display()),
        )
    })?;
    match marking {
        Marking::Done => Ok(()),
        Marking::Needed => casemate_durable::replace(&path, PRIVATE, &FORMAT.mark())
            .map_err(|error| cannot("write", error)),
        Marking::Wanted => {
            // On a full disk the node starts all the same; the next start tries again.
            if let Err(error) = casemate_durable::replace(&path, PRIVATE, &FORMAT.mark()) {
                let path = path.display();
                tracing::warn!(%path, %error, "could not mark the format of the state folder");
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_marked_and_a_newer_one_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).unwrap();
        open(folder.path()).unwrap();
        let names = || {
            let entries = fs::read_dir(folder.path()).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(), [MARK]);
        let newer = r#"{"format":2,"software":"9.0.0"}"#;
        fs::write(folder.path().join(MARK), newer).unwrap();
        let (code, message) = open(folder.path()).unwrap_err();
        assert_eq!(code, EXIT_NEWER);
        assert!(
            message.contains("format 2, written by casemate 9.0.0"),
            "{message}"
        );
        assert_eq!(fs::read_to_string(folder.path().join(MARK)).unwrap(), newer);
        fs::write(folder.path().join(MARK), [b' '; MAX_MARK_BYTES + 1]).unwrap();
        assert_eq!(open(folder.path()).unwrap_err().0, EXIT_NEWER);
        assert_eq!(names(), [MARK]);
    }
}
