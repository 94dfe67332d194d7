//! Formats of folders in which programs keep their state. A folder's mark, a small file, is read
//! before anything else in the folder, and a format that is newer than the program is refused
//! before anything is changed: otherwise the program would drop what it does not know, and first of
//! all the memory that refuses a rollback.
//!
//! A folder without a mark was written before there were marks, and has format 1. A program raises
//! the mark before it writes data that the earlier format does not have.

use serde::{Deserialize, Serialize};

/// Name of the mark in its folder.
pub const MARK: &str = "format.json";
/// Largest mark, bytes.
pub const MAX_MARK_BYTES: usize = 4096;
/// Version of this program, which its marks name.
const SOFTWARE: &str = env!("CARGO_PKG_VERSION");
/// The format of a folder without a mark.
const FIRST: u32 = 1;
/// Characters of another program's text that are shown.
const MAX_SHOWN_CHARS: usize = 40;

/// The formats of one kind of folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// The folder's content, for messages.
    pub what: &'static str,
    /// The newest format, which this program writes. It reads every format from 1 on.
    pub newest: u32,
}

/// Whether a folder's mark must be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marking {
    /// The mark is the one that this program writes.
    Done,
    /// The folder has this program's format, but no mark: write the mark when there is space.
    Wanted,
    /// The folder has an earlier format: write the mark before anything else.
    Needed,
}

/// Why a folder is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A newer program has written the folder.
    #[error(
        "{what} has format {found}, written by casemate {by}, and this is casemate {}, which reads formats 1 to {newest}: \
         install casemate {by} or newer, or go back to a copy from before the upgrade; nothing was changed",
        SOFTWARE
    )]
    Newer {
        /// See [`Format::what`].
        what: &'static str,
        /// The format in the mark.
        found: u32,
        /// Version of the program that wrote it.
        by: String,
        /// The newest format that this program reads.
        newest: u32,
    },
    /// The mark is malformed.
    #[error(
        "the mark of {what} is damaged ({reason}): restore {MARK} from a copy; nothing was changed"
    )]
    Damaged {
        /// See [`Format::what`].
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The content of a mark. Members that later programs add are ignored.
#[derive(Serialize, Deserialize)]
struct Mark {
    format: u32,
    #[serde(default)]
    software: String,
}

impl Format {
    /// Reads a folder's mark.
    ///
    /// # Errors
    /// The folder must not be opened.
    pub fn check(self, mark: Option<&[u8]>) -> Result<Marking, FormatError> {
        let Some(bytes) = mark else {
            return Ok(match self.newest {
                FIRST => Marking::Wanted,
                _ => Marking::Needed,
            });
        };
        let damaged = |reason: String| FormatError::Damaged {
            what: self.what,
            reason,
        };
        if bytes.len() > MAX_MARK_BYTES {
            let reason = format!("{} bytes, at most {MAX_MARK_BYTES}", bytes.len());
            return Err(damaged(reason));
        }
        let mark: Mark =
            serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        match mark.format {
            0 => Err(damaged("formats begin with 1".into())),
            found if found > self.newest => Err(FormatError::Newer {
                what: self.what,
                found,
                by: shown(&mark.software),
                newest: self.newest,
            }),
            found if found < self.newest => Ok(Marking::Needed),
            _ => Ok(Marking::Done),
        }
    }

    /// The mark that this program writes.
    pub fn mark(self) -> Vec<u8> {
        let mark = Mark {
            format: self.newest,
            software: SOFTWARE.to_owned(),
        };
        let mut text = serde_json::to_vec(&mark).expect("a number and a text are JSON");
        text.push(b'\n');
        text
    }
}

/// Makes a version that another program wrote fit for one line.
fn shown(version: &str) -> String {
    let is_plain = |letter: &char| letter.is_ascii_graphic();
    match version {
        "" => "of a later version".to_owned(),
        version => version
            .chars()
            .filter(is_plain)
            .take(MAX_SHOWN_CHARS)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMAT: Format = Format {
        what: "the state in /var/lib/x",
        newest: 2,
    };

    fn check(mark: &str) -> Result<Marking, FormatError> {
        FORMAT.check(Some(mark.as_bytes()))
    }

    #[test]
    fn older_formats_are_read_and_marked_anew() {
        assert_eq!(FORMAT.check(None), Ok(Marking::Needed), "it is of format 1");
        let first = Format {
            newest: 1,
            ..FORMAT
        };
        assert_eq!(first.check(None), Ok(Marking::Wanted));
        let mark = r#"{"format":1,"software":"0.1.0"}"#;
        assert_eq!(check(mark), Ok(Marking::Needed));
        assert_eq!(first.check(Some(mark.as_bytes())), Ok(Marking::Done));
        assert_eq!(FORMAT.check(Some(&FORMAT.mark())), Ok(Marking::Done));
    }

    #[test]
    fn a_newer_format_is_refused_with_both_versions_and_what_to_do() {
        // A mark with additional members of a later program.
        let newer = check(r#"{"format":3,"software":"0.9.1","since":[1]}"#).unwrap_err();
        let text = newer.to_string();
        for part in [
            "format 3",
            "casemate 0.9.1",
            SOFTWARE,
            "1 to 2",
            "install",
            "go back",
            "nothing was changed",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let nameless = check(r#"{"format":4294967295}"#).unwrap_err();
        assert!(
            nameless.to_string().contains("a later version"),
            "{nameless}"
        );
        let odd = check("{\"format\":3,\"software\":\"\\u001b[31m 1\\n\"}").unwrap_err();
        assert!(!odd.to_string().contains(['\u{1b}', '\n']), "{odd}");
    }

    #[test]
    fn a_malformed_mark_is_refused() {
        let long = format!(
            r#"{{"format":1,"software":"{}"}}"#,
            "x".repeat(MAX_MARK_BYTES)
        );
        for mark in [
            "",
            "1",
            "{}",
            r#"{"format":0}"#,
            r#"{"format":"1"}"#,
            r#"{"format":-1}"#,
            &long,
        ] {
            let error = check(mark).unwrap_err();
            assert!(
                matches!(error, FormatError::Damaged { .. }),
                "{mark}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_mark_does_harm(mark in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _judged = FORMAT.check(Some(&mark));
        }
    }
}
