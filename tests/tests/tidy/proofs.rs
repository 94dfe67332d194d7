//! What the threat model names exists: the files of code, and the tests by name.

use std::path::Path;

use crate::none;
use crate::source::{Source, root, sources};

const THREAT_MODEL: &str = "docs/THREAT-MODEL.md";

/// The texts in backticks of a line.
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

/// Whether a text is a path into one of our folders.
fn is_path(text: &str) -> bool {
    let folders = ["control-plane/", "images/", "node/", "tests/", "vault/"];
    folders.iter().any(|folder| text.starts_with(folder)) && !text.contains([' ', '*', '{'])
}

/// Paths that do not exist, and tests (`name` in `folder`) that no file in their folder defines.
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
