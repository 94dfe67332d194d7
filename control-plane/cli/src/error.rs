//! The one error type of the program: what was wrong, where, and what to do next.

use std::fmt;

use serde_json::{Value, json};

use crate::machine::{printable, printable_lines};

/// The kind of an error: a stable name for scripts, and the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The arguments contradict each other or make no sense together.
    Usage,
    /// `casemate.toml` has mistakes.
    Project,
    /// A named file does not exist or has the wrong content.
    Input,
    /// The function's source cannot be bundled.
    Bundle,
    /// A secret's value cannot be sealed as it is.
    SecretValue,
    /// No `login` has been made from this home folder.
    NotLoggedIn,
    /// A key that is needed is not in this home folder.
    NoKey,
    /// A key file did not open with the passphrase.
    Passphrase,
    /// An object of that name exists already.
    Exists,
    /// The control plane has no object of that name.
    NotFound,
    /// The control plane did not answer.
    Unreachable,
    /// The server does not hold the key that the fleet's root signed.
    NotTheControlPlane,
    /// The token does not allow this.
    Forbidden,
    /// The control plane refused a request; its own code is in the text.
    Api,
    /// The control plane shows a statement that a node would refuse.
    Refused,
    /// Another client was faster; trying again may work.
    Conflict,
    /// Another `casemate` works with the same home folder.
    Busy,
    /// A manifest is signed and stored, and nodes that are not connected receive it when they are
    /// back.
    NodesAway,
    /// A manifest is signed and stored, and a node refused it.
    NodeRefused,
    /// A manifest is signed and stored, and connected nodes have not accepted it in time.
    NotAcknowledged,
    /// A manifest is signed and stored, and its state at the nodes could not be read.
    WaitBroken,
    /// A release is signed and stored, and a node cannot load it: the earlier release keeps
    /// running.
    LoadFailed,
    /// A newer `casemate` has written the home folder.
    Newer,
    /// A file could not be written.
    CannotCreate,
    /// Reading or writing failed.
    Io,
    /// The reader of standard output closed it: this is not reported.
    Closed,
    /// A fault of this program.
    Internal,
}

impl Code {
    /// All codes, for the table in the tenants' guide.
    pub const ALL: &[Self] = &[
        Self::Usage,
        Self::Project,
        Self::Input,
        Self::Bundle,
        Self::SecretValue,
        Self::NotLoggedIn,
        Self::NoKey,
        Self::Passphrase,
        Self::Exists,
        Self::NotFound,
        Self::Unreachable,
        Self::NotTheControlPlane,
        Self::Forbidden,
        Self::Api,
        Self::Refused,
        Self::Conflict,
        Self::Busy,
        Self::NodesAway,
        Self::NodeRefused,
        Self::NotAcknowledged,
        Self::WaitBroken,
        Self::LoadFailed,
        Self::Newer,
        Self::CannotCreate,
        Self::Io,
        Self::Closed,
        Self::Internal,
    ];

    /// The name of the code in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::Project => "project_invalid",
            Self::Input => "input_missing",
            Self::Bundle => "bundle_failed",
            Self::SecretValue => "secret_value",
            Self::NotLoggedIn => "not_logged_in",
            Self::NoKey => "key_missing",
            Self::Passphrase => "passphrase_wrong",
            Self::Exists => "exists",
            Self::NotFound => "not_found",
            Self::Unreachable => "unreachable",
            Self::NotTheControlPlane => "not_the_control_plane",
            Self::Forbidden => "forbidden",
            Self::Api => "refused_by_api",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Busy => "busy",
            Self::NodesAway => "nodes_away",
            Self::NodeRefused => "refused_by_node",
            Self::NotAcknowledged => "not_acknowledged",
            Self::WaitBroken => "wait_broken",
            Self::LoadFailed => "load_failed",
            Self::Newer => "newer",
            Self::CannotCreate => "cannot_create",
            Self::Io => "io",
            Self::Closed => "closed",
            Self::Internal => "internal",
        }
    }

    /// The exit code, after BSD's `sysexits`; from 80 on a manifest is signed and stored, but does
    /// not run everywhere yet.
    pub fn exit(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Usage | Self::Project => 64,
            Self::Bundle | Self::SecretValue | Self::Newer => 65,
            Self::Input | Self::NotFound => 66,
            Self::Unreachable => 69,
            Self::Internal => 70,
            Self::CannotCreate | Self::Exists => 73,
            Self::Io => 74,
            Self::Conflict | Self::Busy => 75,
            Self::Refused | Self::NotTheControlPlane | Self::Api => 76,
            Self::Forbidden | Self::Passphrase => 77,
            Self::NotLoggedIn | Self::NoKey => 78,
            Self::NodesAway => 80,
            Self::LoadFailed => 81,
            Self::NodeRefused => 82,
            Self::NotAcknowledged => 83,
            Self::WaitBroken => 84,
        }
    }
}

/// An error, written for the person at the keyboard.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Told>);

#[derive(Debug, thiserror::Error)]
#[error("{what}")]
struct Told {
    code: Code,
    what: String,
    place: Option<String>,
    lines: Vec<String>,
    next: String,
    remote: Option<casemate_api::error::ErrorDetail>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error with its cause and the next step; every error has one.
    pub fn new(code: Code, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self(Box::new(Told {
            code,
            what: what.into(),
            place: None,
            lines: Vec::new(),
            next: next.into(),
            remote: None,
            source: None,
        }))
    }

    /// The place of the error: a file, a URL, an object's name.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(place.to_string());
        self
    }

    /// Details, a line each: mistakes with their line numbers, a code frame.
    #[must_use]
    pub fn lines(mut self, lines: impl IntoIterator<Item = String>) -> Self {
        self.0.lines.extend(lines);
        self
    }

    /// The error underneath.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The control plane's own answer.
    #[must_use]
    pub fn remote(mut self, detail: casemate_api::error::ErrorDetail) -> Self {
        self.0.remote = Some(detail);
        self
    }

    /// The control plane's own code, if the error is its answer.
    pub fn remote_code(&self) -> Option<&str> {
        self.0.remote.as_ref().map(|detail| detail.code.as_str())
    }

    /// A fault of this program, such as an own value that cannot be serialised.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(
            Code::Internal,
            what,
            "this is a fault in casemate: please report it with the command that you ran",
        )
    }

    /// The error's code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The cause and the place, in one line.
    pub fn summary(&self) -> String {
        let place = self.0.place.as_ref();
        let mut text = place.map_or_else(
            || self.0.what.clone(),
            |place| format!("{} ({place})", self.0.what),
        );
        let particulars = self.0.lines.iter().cloned().chain(self.causes());
        for line in particulars.filter(|line| !line.is_empty()).take(1) {
            text += &format!(": {line}");
        }
        text
    }

    /// The next step.
    pub fn next_step(&self) -> &str {
        &self.0.next
    }

    /// The error as `--json` prints it.
    pub fn to_json(&self) -> Value {
        json!({ "error": {
            "code": self.0.code.name(),
            "message": self.0.what,
            "where": self.0.place,
            "details": self.0.lines,
            "cause": self.causes(),
            "api_code": self.remote_code(),
            "next": self.0.next,
            "exit": self.0.code.exit(),
        }})
    }

    /// The error for people, without colours: `error: `, then indented details, then the next step.
    /// Parts of the text may come from others, also inside of the error underneath; no part can
    /// leave its line.
    pub fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", printable(&self.0.what));
        if let Some(place) = &self.0.place {
            text += &format!("   in: {}\n", printable(place));
        }
        for line in &self.0.lines {
            let line = printable_lines(line);
            text += &format!("  {line}").trim_end().replace('\n', "\n  ");
            text.push('\n');
        }
        for cause in self.causes() {
            text += &format!("  why: {}\n", printable(&cause));
        }
        text += &format!(" next: {}\n", printable(&self.0.next));
        text
    }

    fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let text = error.to_string();
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            source = error.source();
        }
        causes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A code that [`Code::ALL`] lacks does not compile here; its position in the list is the
    /// number.
    fn place(code: Code) -> usize {
        match code {
            Code::Usage => 0,
            Code::Project => 1,
            Code::Input => 2,
            Code::Bundle => 3,
            Code::SecretValue => 4,
            Code::NotLoggedIn => 5,
            Code::NoKey => 6,
            Code::Passphrase => 7,
            Code::Exists => 8,
            Code::NotFound => 9,
            Code::Unreachable => 10,
            Code::NotTheControlPlane => 11,
            Code::Forbidden => 12,
            Code::Api => 13,
            Code::Refused => 14,
            Code::Conflict => 15,
            Code::Busy => 16,
            Code::NodesAway => 17,
            Code::NodeRefused => 18,
            Code::NotAcknowledged => 19,
            Code::WaitBroken => 20,
            Code::LoadFailed => 21,
            Code::Newer => 22,
            Code::CannotCreate => 23,
            Code::Io => 24,
            Code::Closed => 25,
            Code::Internal => 26,
        }
    }

    #[test]
    fn the_guide_lists_every_exit_code_with_its_names() {
        assert!(
            Code::ALL
                .iter()
                .enumerate()
                .all(|(at, code)| place(*code) == at)
        );
        let guide = include_str!("../../../docs/tenants/README.md");
        let (_, table) = guide
            .split_once("| exit code | names | meaning |\n|---|---|---|\n")
            .unwrap();
        let written: std::collections::BTreeMap<u8, Vec<String>> = table
            .lines()
            .take_while(|line| line.starts_with("| "))
            .map(|line| {
                let mut cells = line.split('|').skip(1).map(str::trim);
                let exit = cells.next().unwrap().parse().unwrap();
                let names = cells
                    .next()
                    .unwrap()
                    .split(", ")
                    .filter(|name| !name.is_empty());
                (
                    exit,
                    names
                        .map(|name| name.trim_matches('`').to_owned())
                        .collect(),
                )
            })
            .collect();
        let mut real: std::collections::BTreeMap<u8, Vec<String>> = [(0, Vec::new())].into();
        for code in Code::ALL.iter().filter(|code| **code != Code::Closed) {
            real.entry(code.exit())
                .or_default()
                .push(code.name().to_owned());
        }
        assert_eq!(written, real);
    }

    #[test]
    fn an_error_shows_cause_place_source_and_next_step() {
        let error = Error::new(
            Code::Io,
            "cannot read the key file",
            "check that the disk is mounted",
        )
        .at("/home/me/.config/casemate/tenant.key")
        .source(std::io::Error::other("input/output error"));
        insta::assert_snapshot!(error.to_text(), @r"
        error: cannot read the key file
           in: /home/me/.config/casemate/tenant.key
          why: input/output error
         next: check that the disk is mounted
        ");
        assert_eq!(error.to_json()["error"]["exit"], 74);
    }
}
