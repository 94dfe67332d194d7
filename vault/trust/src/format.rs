//! Formats of folders that programs keep their state in. A folder's mark, a small file, is read before anything else in the
//! folder, and a format that is newer than the program is refused before anything is changed: a program that goes on would
//! drop what it does not know, and the first thing to be lost would be what refuses a rollback.
//!
//! A folder without a mark is of a program from before there were marks, and has format 1. A program raises the mark before it
//! writes what the earlier format does not have.

use serde::{Deserialize, Serialize};

/// Name of the mark in its folder.
pub const MARK: &str = "format.json";
/// Largest mark, bytes.
pub const MAX_MARK_BYTES: usize = 4096;
/// Version of this program, which its marks name.
const SOFTWARE: &str = env!("CARGO_PKG_VERSION");
/// The format of a folder without a mark.
const FIRST: u32 = 1;
/// Longest text of another program that is shown, characters.
const MAX_SHOWN_CHARS: usize = 40;

/// The formats of one kind of folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// What the folder holds, for people.
    pub what: &'static str,
    /// The newest format, which this program writes. It reads every one from 1 on.
    pub newest: u32,
}

/// What a folder's mark needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marking {
    /// Nothing: it says what this program would write.
    Done,
    /// The folder has this program's format, and no mark that says so: it is to be marked when there is room.
    Wanted,
    /// The folder has an earlier format: it must be marked before anything is written into it.
    Needed,
}

/// Why a folder is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A newer program has written it.
    #[error(
        "{what} has format {found}, written by casemate {by}, and this is casemate {}, which reads formats 1 to {newest}: \
         install casemate {by} or newer, or go back to a copy from before the upgrade; nothing was changed",
        SOFTWARE
    )]
    Newer {
        /// See [`Format::what`].
        what: &'static str,
        /// What the mark says.
        found: u32,
        /// Version of the program that wrote it.
        by: String,
        /// The newest that this program reads.
        newest: u32,
    },
    /// The mark is none.
    #[error(
        "the mark of {what} is damaged ({reason}): restore {MARK} from a copy; nothing was changed"
    )]
    Damaged {
        /// See [`Format::what`].
        what: &'static str,
        /// What was found.
        reason: String,
    },
}

/// What a mark says. Members that later programs add are for later programs.
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

    /// This program's mark.
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

/// A version that another program wrote, fit for a line.
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
        // Whatever else a later program writes into its mark.
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
    fn what_is_no_mark_is_refused() {
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
