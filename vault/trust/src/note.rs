//! Notes on the origin of releases, for people. No decision depends on a note; it is signed with
//! the manifest, so that only the tenant can write one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::Digest;

/// Longest author, bytes.
pub const MAX_AUTHOR_BYTES: usize = 128;
/// Longest message, bytes: the first line of a commit message fits.
pub const MAX_MESSAGE_BYTES: usize = 256;
/// Largest notes of a manifest, bytes of their texts: most of a manifest is for its functions.
pub const MAX_NOTES_BYTES: usize = 256 * 1024;
/// Bytes that a note counts beside its texts: its time and the digest of its release.
const NOTE_BYTES: usize = 128;

/// Who deployed a release, when, and what for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// When the deployment was signed.
    pub at: Seconds,
    /// The author as the signer gave it; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The purpose of the release; empty without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

impl Note {
    /// Makes a note from arbitrary texts: one line each, cut to their lengths.
    pub fn new(at: Seconds, author: &str, message: &str) -> Self {
        Self {
            at,
            author: line(author, MAX_AUTHOR_BYTES),
            message: line(message, MAX_MESSAGE_BYTES),
        }
    }

    /// The bytes that it counts against [`MAX_NOTES_BYTES`].
    pub fn bytes(&self) -> usize {
        NOTE_BYTES + self.author.len() + self.message.len()
    }

    fn flaw(&self) -> Option<String> {
        let texts = [
            ("author", &self.author, MAX_AUTHOR_BYTES),
            ("message", &self.message, MAX_MESSAGE_BYTES),
        ];
        texts.into_iter().find_map(|(what, text, most)| {
            if text.len() > most {
                return Some(format!(
                    "expected at most {most} bytes of {what} in a note, got {}",
                    text.len()
                ));
            }
            let is_line = !text.chars().any(char::is_control);
            (!is_line).then(|| format!("expected one line as the {what} of a note"))
        })
    }
}

/// The first non-blank line of a text, without control characters, cut at `most` bytes.
fn line(text: &str, most: usize) -> String {
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let mut kept = String::new();
    for c in line.unwrap_or("").chars().filter(|c| !c.is_control()) {
        if kept.len() + c.len_utf8() > most {
            break;
        }
        kept.push(c);
    }
    kept
}

/// What is wrong with the notes of a manifest.
pub(crate) fn flaw(notes: &BTreeMap<Digest, Note>) -> Option<String> {
    let bytes: usize = notes.values().map(Note::bytes).sum();
    if bytes > MAX_NOTES_BYTES {
        return Some(format!(
            "expected at most {MAX_NOTES_BYTES} bytes of notes, got {bytes}"
        ));
    }
    notes.values().find_map(Note::flaw)
}

/// Keeps the notes of releases for which `is_listed` holds, and of these the newest that fit.
pub fn trim(notes: &mut BTreeMap<Digest, Note>, is_listed: impl Fn(&Digest) -> bool) {
    notes.retain(|release, _| is_listed(release));
    let mut newest: Vec<_> = notes
        .iter()
        .map(|(release, note)| (note.at, *release, note.bytes()))
        .collect();
    newest.sort_unstable();
    let mut room = MAX_NOTES_BYTES;
    for (_, release, bytes) in newest.into_iter().rev() {
        match room.checked_sub(bytes) {
            Some(rest) => room = rest,
            None => drop(notes.remove(&release)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_one_line_each_of_what_it_was_given() {
        let note = Note::new(
            5,
            " Ada\u{1b}[31m <ada@example.com>\n",
            "\n\nFix the till\n\nLong text",
        );
        assert_eq!(note.author, "Ada[31m <ada@example.com>");
        assert_eq!(note.message, "Fix the till");
        assert_eq!(note.flaw(), None);
        let long = Note::new(5, &"é".repeat(100), &"é".repeat(200));
        assert_eq!((long.author.len(), long.message.len()), (128, 256));
        assert_eq!(long.flaw(), None);
        let mut wrong = note.clone();
        wrong.message = "two\nlines".to_owned();
        assert!(wrong.flaw().is_some());
        wrong.message = "m".repeat(MAX_MESSAGE_BYTES + 1);
        assert!(wrong.flaw().is_some());
    }

    #[test]
    fn of_too_many_notes_the_newest_are_kept() {
        let note = |at: u64| Note::new(at, &"a".repeat(128), &"m".repeat(256));
        let digest = |at: u64| Digest::of(&at.to_be_bytes());
        let mut notes: BTreeMap<_, _> = (0..1000).map(|at| (digest(at), note(at))).collect();
        assert!(flaw(&notes).is_some());
        let unlisted = digest(999);
        trim(&mut notes, |release| *release != unlisted);
        assert_eq!(flaw(&notes), None);
        assert_eq!(notes.len(), MAX_NOTES_BYTES / note(0).bytes());
        let newest = 999 - notes.len() as u64..999;
        assert!(newest.into_iter().all(|at| notes.contains_key(&digest(at))));
    }
}
