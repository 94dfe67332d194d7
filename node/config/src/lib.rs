//! Configuration files of the node's programs, read whole with all mistakes at once; and their
//! logs.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Largest configuration file, bytes.
pub const MAX_FILE_BYTES: u64 = 256 * 1024;
/// Most mistakes that are shown at once; a file with more is of another kind.
const MAX_MISTAKES: usize = 20;

/// Exit code of a program with a wrong command line or configuration (`EX_USAGE`).
pub const EXIT_USAGE: u8 = 64;
/// Exit code when a newer program has written the state (`EX_DATAERR`).
pub const EXIT_NEWER: u8 = 65;
/// Exit code when a needed resource is unavailable, such as a port (`EX_UNAVAILABLE`).
pub const EXIT_UNAVAILABLE: u8 = 69;
/// Exit code of a fault of the program (`EX_SOFTWARE`).
pub const EXIT_SOFTWARE: u8 = 70;
/// Exit code when a file cannot be read or written (`EX_IOERR`).
pub const EXIT_IO: u8 = 74;
/// Exit code when a later retry may succeed (`EX_TEMPFAIL`).
pub const EXIT_TEMPORARY: u8 = 75;

/// One mistake, with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// The mistake and the remedy.
    pub message: String,
}

/// The mistakes in a file: all that could be found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    /// The file.
    pub file: PathBuf,
    /// Its mistakes, by line.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.mistakes.iter().enumerate() {
            let newline = if number == 0 { "" } else { "\n" };
            match mistake.line {
                0 => write!(to, "{newline}{}: {}", self.file.display(), mistake.message)?,
                line => write!(
                    to,
                    "{newline}{}:{line}: {}",
                    self.file.display(),
                    mistake.message
                )?,
            }
        }
        Ok(())
    }
}

/// The message for a file that could not be read; for a matter of permission, it names the user.
pub fn unreadable(error: &std::io::Error) -> String {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        let user = rustix::process::geteuid().as_raw();
        return format!(
            "cannot be read: {error}; this program runs as user {user}, which must be able to read the file and to reach its folder"
        );
    }
    format!("cannot be read: {error}")
}

/// Reads and parses a file.
///
/// # Errors
/// The file cannot be read, or has mistakes.
pub fn read<T: DeserializeOwned>(file: &Path) -> Result<T, Mistakes> {
    let whole = |message: String| Mistakes {
        file: file.to_owned(),
        mistakes: vec![Mistake { line: 0, message }],
    };
    let length = std::fs::metadata(file)
        .map_err(|error| whole(unreadable(&error)))?
        .len();
    if length > MAX_FILE_BYTES {
        return Err(whole(format!(
            "expected at most {MAX_FILE_BYTES} bytes, got {length}"
        )));
    }
    let text = std::fs::read_to_string(file).map_err(|error| whole(unreadable(&error)))?;
    parse(&text).map_err(|mistakes| Mistakes {
        file: file.to_owned(),
        mistakes,
    })
}

/// Parses TOML into a type that denies unknown fields. A line with a mistake is recorded and
/// removed, and the rest parsed again, so that one run shows all mistakes.
///
/// # Errors
/// The mistakes, in the order in which they were found.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Vec<Mistake>> {
    let mut left = text.to_owned();
    let mut mistakes = Vec::new();
    let syntax = toml::from_str::<toml::Table>(text).is_err();
    while mistakes.len() < MAX_MISTAKES {
        let error = match toml::from_str::<T>(&left) {
            Ok(value) if mistakes.is_empty() => return Ok(value),
            Ok(_) => break,
            Err(error) => error,
        };
        let missing = error.message().starts_with("missing field");
        let at = error.span().map_or(0, |span| span.start);
        let line = if missing {
            0
        } else {
            left[..at.min(left.len())].matches('\n').count() + 1
        };
        // After a removal, a field may be missing that was only wrong.
        if missing && !mistakes.is_empty() {
            break;
        }
        mistakes.push(Mistake {
            line,
            message: error.message().trim().replace('\n', " "),
        });
        if missing || syntax || !take_out(&mut left, at) {
            break;
        }
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    Err(mistakes)
}

/// Blanks the line at this byte; for a table's heading, the whole table.
fn take_out(text: &mut String, at: usize) -> bool {
    let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[at..]
        .find('\n')
        .map_or(text.len(), |newline| at + newline);
    let end = if text[start..line_end].trim_start().starts_with('[') {
        text[line_end..]
            .find("\n[")
            .map_or(text.len(), |next| line_end + next)
    } else {
        line_end
    };
    if text[start..end].trim().is_empty() {
        return false;
    }
    let blank: String = text[start..end]
        .chars()
        .map(|letter| if letter == '\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(start..end, &blank);
    true
}

/// Starts logging to standard error: `CASEMATE_LOG` filters (default `info`), `CASEMATE_LOG_FORMAT=json` for machines.
pub fn start_logs() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("CASEMATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .with_ansi(false)
        // Otherwise a closed standard error would cause a message on standard error, or a panic.
        .log_internal_errors(false);
    // A second start, as in a test, changes nothing.
    let _started = match std::env::var("CASEMATE_LOG_FORMAT").as_deref() {
        Ok("json") => builder.json().try_init(),
        _ => builder.try_init(),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Config {
        port: u16,
        #[serde(default)]
        inner: Inner,
    }

    #[derive(Debug, Default, serde::Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        name: String,
    }

    #[test]
    fn all_mistakes_are_shown_at_once_with_their_lines() {
        let text = "port = 99999\nprot = 1\n\n[inner]\nname = 3\n\n[other]\nx = 1\ny = 2\n";
        let mistakes = parse::<Config>(text).unwrap_err();
        let lines: Vec<_> = mistakes.iter().map(|mistake| mistake.line).collect();
        assert_eq!(lines, [1, 2, 5, 7], "{mistakes:?}");
        assert!(mistakes[1].message.contains("prot") && mistakes[1].message.contains("port"));
    }

    #[test]
    fn what_is_right_parses_and_what_is_missing_is_named() {
        assert_eq!(
            parse::<Config>("port = 1").unwrap(),
            Config {
                port: 1,
                inner: Inner::default()
            }
        );
        assert!(parse::<Config>("").unwrap_err()[0].message.contains("port"));
        assert_eq!(parse::<Config>("port = \n").unwrap_err()[0].line, 1);
    }
}
