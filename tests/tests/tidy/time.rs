//! No test sleeps in order to wait for an event: either time is paused, or the test polls a
//! condition.
//!
//! A sleep within `while` or `loop` belongs to such a poll. Any other sleep hopes that an event has
//! happened meanwhile.

use std::collections::BTreeMap;

use crate::source::{Rust, Source, Word, rust_sources};
use crate::{beyond, none};

/// Tests that sleep, and the number of their sleeps.
const EXCEPTIONS: &[(&str, usize)] = &[
    ("control-plane/server/tests/api.rs", 1),
    ("control-plane/server/tests/nodes.rs", 1),
    ("control-plane/server/tests/program.rs", 1),
    ("control-plane/server/tests/storage.rs", 2),
    ("images/init/src/update/tests.rs", 1),
    ("node/gateway/tests/corpus.rs", 1),
    ("node/gateway/tests/half_close.rs", 1),
    ("node/gateway/tests/harness/mod.rs", 1),
    ("node/gateway/tests/hostile_callers.rs", 2),
    ("node/gateway/tests/hostile_workers.rs", 2),
    ("node/gateway/tests/lifecycle.rs", 1),
    ("node/sandbox/tests/ends.rs", 1),
    ("node/sandbox/tests/sockets.rs", 1),
    ("node/supervisor/src/lock.rs", 1),
    ("node/worker/src/engine/clock.rs", 1),
    ("node/worker/tests/attacker.rs", 1),
    ("node/worker/tests/requests.rs", 2),
    ("tests/tests/image.rs", 1),
    ("tests/tests/main_job.rs", 3),
    ("tests/tests/shares.rs", 1),
    ("vault/broker/tests/wiped.rs", 1),
];

fn sleeps(source: &Source, rust: &Rust, is_test: bool) -> Vec<String> {
    let words = &rust.words;
    let mut mistakes = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let is_call = word.text == "sleep"
            && words.get(at + 1).is_some_and(|next| next.text == "(")
            && !(at > 0 && [".", "fn"].contains(&words[at - 1].text.as_str()));
        let counts = is_call && (is_test || word.is_test);
        if counts && !is_paused(words, at) && !is_step(words, at) {
            let (path, line) = (&source.path, word.line);
            mistakes.push(format!("{path}:{line}: a test that sleeps"));
        }
    }
    mistakes
}

/// Whether the function around this token starts with paused time.
fn is_paused(words: &[Word], at: usize) -> bool {
    let Some(function) = words[..at].iter().rposition(|word| word.text == "fn") else {
        return false;
    };
    let before = words[..function].iter().rev();
    before
        .take_while(|word| !["}", ";"].contains(&word.text.as_str()))
        .any(|word| word.text == "start_paused")
}

/// Whether a `while` or `loop` of the same function surrounds this token.
fn is_step(words: &[Word], at: usize) -> bool {
    let mut depth = 0_usize;
    for before in (0..at).rev() {
        match words[before].text.as_str() {
            "}" => depth += 1,
            "{" if depth > 0 => depth -= 1,
            "{" => match head_of(&words[..before]) {
                Some("fn") => return false,
                Some(_) => return true,
                None => {}
            },
            _ => {}
        }
    }
    false
}

/// The keyword of the block that follows these tokens: `fn`, `loop` or `while`; else `None`.
fn head_of(words: &[Word]) -> Option<&str> {
    let mut brackets = 0_usize;
    for word in words.iter().rev() {
        match word.text.as_str() {
            ")" | "]" => brackets += 1,
            "(" | "[" => brackets = brackets.checked_sub(1)?,
            "{" | "}" | ";" if brackets == 0 => return None,
            head @ ("loop" | "while" | "fn") if brackets == 0 => return Some(head),
            _ => {}
        }
    }
    None
}

#[test]
fn no_test_sleeps() {
    let mut found = BTreeMap::new();
    for (source, rust, is_test) in rust_sources() {
        let mistakes = sleeps(&source, &rust, is_test);
        if !mistakes.is_empty() {
            found.insert(source.path, mistakes);
        }
    }
    none(&beyond(&found, EXCEPTIONS, "EXCEPTIONS"));
}

#[test]
fn a_test_that_sleeps_is_found_and_one_in_paused_time_is_not() {
    let count = |path: &str, text: &str, is_test| {
        let source = Source::planted(path, text);
        sleeps(&source, &source.rust(), is_test).len()
    };
    let text = "#[tokio::test]\nasync fn t() { tokio::time::sleep(SECOND).await; }";
    assert_eq!(count("node/wire/src/a.rs", text, false), 1);
    let text = "fn helper() { std::thread::sleep(SECOND); }";
    assert_eq!(count("node/wire/tests/a.rs", text, true), 1);
    assert_eq!(count("node/wire/src/a.rs", text, false), 0);
    for text in [
        "fn wait() { while !is_so(&[0; 8]) { std::thread::sleep(STEP); } }",
        "fn wait() { loop { if is_so() { return; } match a { _ => { sleep(STEP) } } } }",
    ] {
        assert_eq!(count("tests/src/a.rs", text, true), 0, "{text}");
    }
    let text = "fn t() { while f() { g(); } for a in b { sleep(STEP); } }";
    assert_eq!(count("tests/src/a.rs", text, true), 1);
    let text = "#[tokio::test(start_paused = true)]\nasync fn t() { sleep(SECOND).await; }";
    assert_eq!(count("node/wire/src/a.rs", text, false), 0);
}
