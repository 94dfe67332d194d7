//! Names in documents exist: the files and tests that the threat model names, and the tests that
//! any document names.

use std::collections::BTreeSet;
use std::path::Path;

use crate::none;
use crate::source::{Source, root, sources};

const THREAT_MODEL: &str = "docs/THREAT-MODEL.md";

/// The texts in backticks on a line.
fn quoted(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut parts = line.split('`');
    let before = parts.next().unwrap_or_default();
    let mut before = before;
    std::iter::from_fn(move || {
        let inside = parts.next()?;
        let gap = std::mem::replace(&mut before, parts.next()?);
        Some((gap, inside))
    })
}

/// Whether a text is a path into one of the repository's folders.
fn is_path(text: &str) -> bool {
    let folders = ["control-plane/", "images/", "node/", "tests/", "vault/"];
    folders.iter().any(|folder| text.starts_with(folder)) && !text.contains([' ', '*', '{'])
}

/// Paths that do not exist, and tests (`name` in `folder`) that no file in the folder defines.
fn unbacked(document: &Source, sources: &[Source], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (number, line) in document.text.lines().enumerate() {
        let place = format!("{}:{}", document.path, number + 1);
        let mut name = None;
        for (gap, inside) in quoted(line) {
            if !is_path(inside) {
                name = Some(inside);
                continue;
            }
            if !exists(inside) {
                mistakes.push(format!("{place}: there is no {inside}"));
            }
            let Some(test) = name.take().filter(|_| gap == " in ") else {
                continue;
            };
            let defines = format!("fn {test}(");
            let folder = format!("{inside}/");
            let is_there = |source: &Source| {
                let is_in = source.path == inside || source.path.starts_with(&folder);
                is_in && source.text.contains(&defines)
            };
            if !sources.iter().any(is_there) {
                mistakes.push(format!("{place}: no test {test} in {inside}"));
            }
        }
    }
    mistakes
}

/// Number of words from which on a name counts as a test's.
const LEAST_WORDS: usize = 4;

/// Names with that many words that no source contains, whether of tests or of other items.
fn unknown_names(documents: &[Source], sources: &[Source]) -> Vec<String> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let known: BTreeSet<&str> = sources
        .iter()
        .flat_map(|source| source.text.split(|c| !is_of_name(c)))
        .collect();
    let mut mistakes = Vec::new();
    for Source { path, text } in documents {
        for (number, line) in text.lines().enumerate() {
            let names = quoted(line).map(|(_, inside)| inside).filter(|inside| {
                inside.chars().all(is_of_name) && inside.split('_').count() >= LEAST_WORDS
            });
            let unknown = names.filter(|name| !known.contains(name));
            mistakes.extend(unknown.map(|name| format!("{path}:{}: no {name}", number + 1)));
        }
    }
    mistakes
}

#[test]
fn what_documents_name_exists() {
    // The CHANGELOG's entries name tests that existed when the entry was written.
    let mut documents = sources(&[".md"]);
    documents.retain(|document| document.path != "CHANGELOG.md");
    assert!(documents.len() > 20, "the documents are still found");
    none(&unknown_names(
        &documents,
        &sources(&[".rs", ".js", ".ts", ".toml", "Makefile"]),
    ));
}

#[test]
fn a_name_that_is_gone_is_found() {
    let documents = [Source::planted(
        "a.md",
        "`a_test_that_is_gone` `a_test_that_is_there` `a_b`\n",
    )];
    let sources = [Source::planted("a.rs", "fn a_test_that_is_there() {}\n")];
    let found = unknown_names(&documents, &sources);
    assert_eq!(found, ["a.md:1: no a_test_that_is_gone"]);
}

#[test]
fn what_the_threat_model_names_exists() {
    let root = root();
    let text = std::fs::read_to_string(root.join(THREAT_MODEL)).expect("the threat model");
    let document = Source::planted(THREAT_MODEL, &text);
    assert!(
        text.matches("` in `").count() > 30,
        "the form is still used"
    );
    let exists = |path: &str| root.join(Path::new(path)).exists();
    none(&unbacked(&document, &sources(&[".rs"]), exists));
}

#[test]
fn a_path_and_a_test_that_are_gone_are_found() {
    let line = "| a | `vault/gone.rs` | `there` in `vault/core`; `gone` in `vault/core` |\n";
    let document = Source::planted("a.md", line);
    let sources = [Source::planted("vault/core/src/a.rs", "fn there() {}\n")];
    let found = unbacked(&document, &sources, |path| path == "vault/core");
    let wanted = [
        "a.md:1: there is no vault/gone.rs",
        "a.md:1: no test gone in vault/core",
    ];
    assert_eq!(found, wanted);
    let elsewhere = Source::planted("a.md", "`there` in `vault/broker`\n");
    assert_eq!(unbacked(&elsewhere, &sources, |_| true).len(), 1);
}
