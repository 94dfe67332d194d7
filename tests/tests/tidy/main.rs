//! Architecture and style rules as tests.
//!
//! Each rule is a function from sources (or from the dependency graph) to a list of mistakes. Two
//! tests belong to each rule: one applies the rule to the repository, the other to a planted
//! violation, which the rule must report.
//!
//! A rule that older code does not meet yet has a list of exceptions. Such a list only shrinks: an
//! entry without a violation is a mistake too.

mod fail_closed;
mod layers;
mod manifests;
mod proofs;
mod purity;
mod size;
mod source;
mod time;
mod unsafe_code;
mod words;

use std::collections::BTreeMap;

/// Fails with one line for each mistake.
#[track_caller]
fn none(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

/// Compares the violations that a rule has found, by file, with the exceptions: a file and its
/// permitted number of violations.
fn beyond(
    found: &BTreeMap<String, Vec<String>>,
    exceptions: &[(&str, usize)],
    list: &str,
) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (path, violations) in found {
        let allowed = exceptions.iter().find(|(file, _)| file == path);
        let allowed = allowed.map_or(0, |(_, count)| *count);
        if violations.len() > allowed {
            mistakes.extend(violations.iter().cloned());
        }
    }
    for (file, count) in exceptions {
        let there = found.get(*file).map_or(0, Vec::len);
        if there < *count {
            mistakes.push(format!(
                "{list} allows {count} in {file}, which has {there}: lower it or remove the entry"
            ));
        }
    }
    mistakes
}

#[test]
fn an_exception_covers_its_number_of_violations_and_must_be_needed() {
    let found = BTreeMap::from([("a.rs".to_owned(), vec!["a.rs:1: bad".to_owned()])]);
    assert!(beyond(&found, &[("a.rs", 1)], "LIST").is_empty());
    assert_eq!(beyond(&found, &[], "LIST"), ["a.rs:1: bad"]);
    let stale = beyond(&found, &[("a.rs", 1), ("b.rs", 1)], "LIST");
    assert!(stale.len() == 1 && stale[0].contains("b.rs"), "{stale:?}");
    let high = beyond(&found, &[("a.rs", 2)], "LIST");
    assert!(
        high.len() == 1 && high[0].contains("which has 1"),
        "{high:?}"
    );
}
