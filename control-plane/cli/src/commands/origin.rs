//! The note of a release: the author's message, or the last commit of the project's folder.

use std::path::Path;
use std::process::{Command, Stdio};

use casemate_trust::note::Note;

use crate::machine::now;

/// The note of a deployment; `None` if there is none.
pub(super) fn note(folder: &Path, message: Option<&str>) -> Option<Note> {
    if message == Some("") {
        return None;
    }
    let commit = git(
        folder,
        &["log", "-1", "--no-show-signature", "--format=%h %s%n%an"],
    );
    let commit = commit.as_deref().and_then(|text| text.split_once('\n'));
    // A person's name is in git's settings; a CI job has none, so the commit's author is used.
    let author = git(folder, &["config", "user.name"])
        .or_else(|| commit.map(|(_, author)| author.to_owned()))
        .or_else(|| std::env::var("USER").ok());
    let message = message.or(commit.map(|(subject, _)| subject));
    let note = Note::new(
        now(),
        &author.unwrap_or_default(),
        message.unwrap_or_default(),
    );
    Some(note)
}

/// The output of git in a folder, if git is installed and the folder is a repository.
fn git(folder: &Path, words: &[&str]) -> Option<String> {
    let ran = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(words)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(ran.stdout).ok()?;
    (ran.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_replaces_the_last_commit_and_an_empty_one_leaves_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let said = note(dir.path(), Some("the till rounds up\n\nmore"));
        assert_eq!(said.unwrap().message, "the till rounds up");
        assert_eq!(note(dir.path(), Some("")), None);
        assert_eq!(note(dir.path(), None).unwrap().message, "");
        let git = |words: &[&str]| {
            let identity = ["-c", "user.name=Ada", "-c", "user.email=ada@shop.test"];
            let ran = Command::new("git")
                .arg("-C")
                .arg(dir.path())
                .args(identity)
                .args(words)
                .output()
                .unwrap();
            assert!(ran.status.success(), "{ran:?}");
        };
        git(&["init", "--quiet"]);
        git(&[
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            "Sell tea",
            "-m",
            "Long text",
        ]);
        let commit = note(dir.path(), None).unwrap();
        let (hash, subject) = commit.message.split_once(' ').unwrap();
        assert!(subject == "Sell tea" && hash.len() >= 7, "{commit:?}");
        assert!(!commit.author.is_empty());
        assert!(note(dir.path(), Some("other")).unwrap().message == "other");
    }
}
