//! Words that mark unfinished work must not be in the sources.

use crate::none;
use crate::source::{Source, sources};

const LEFT_FOR_LATER: &[&str] = &[
    "TODO",
    "FIXME",
    "XXX",
    "todo!(",
    "unimplemented!(",
    "dbg!(",
    "for now",
    "HACK",
];

fn left_for_later(source: &Source) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let there = LEFT_FOR_LATER.iter().filter(|word| line.contains(*word));
        mistakes.extend(there.map(|word| format!("{}:{}: {word}", source.path, number + 1)));
    }
    mistakes
}

#[test]
fn nothing_is_left_for_later() {
    let endings = [".rs", ".ts", ".js", ".toml", ".json", ".md", ".sh"];
    let sources = sources(&endings).into_iter().filter(|source| {
        source.path != "tests/tests/tidy/words.rs" && !source.path.ends_with("package-lock.json")
    });
    none(
        &sources
            .flat_map(|source| left_for_later(&source))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_word_for_later_is_found_in_a_comment_too() {
    let found = left_for_later(&Source::planted("a.rs", "fn f() {}\n// TODO: g\n"));
    assert_eq!(found, ["a.rs:2: TODO"]);
}
