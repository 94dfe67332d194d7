//! No test sleeps to wait for something: time is paused, or the test waits for a condition.

use std::collections::BTreeMap;

use crate::source::{Rust, Source, Word, rust_sources};
use crate::{beyond, none};

/// The files whose sleeps are one step of waiting for a condition, with a bound: the helpers that
/// tests wait with.
const HELPERS: &[&str] = &[];

/// Tests that sleep, and how often.
const EXCEPTIONS: &[(&str, usize)] = &[
    ("control-plane/server/tests/api.rs", 1),
    ("control-plane/server/tests/nodes.rs", 1),
    ("control-plane/server/tests/program.rs", 1),
    ("control-plane/server/tests/storage.rs", 2),
    ("control-plane/server/tests/support/mod.rs", 1),
    ("images/init/src/tpm/tests.rs", 1),
    ("images/init/src/update/tests.rs", 1),
    ("node/gateway/tests/corpus.rs", 1),
    ("node/gateway/tests/half_close.rs", 1),
    ("node/gateway/tests/harness/mod.rs", 1),
    ("node/gateway/tests/hostile_callers.rs", 3),
    ("node/gateway/tests/hostile_workers.rs", 2),
    ("node/gateway/tests/lifecycle.rs", 2),
    ("node/sandbox/src/bin/casemate-launch/child.rs", 1),
    ("node/sandbox/tests/ends.rs", 1),
    ("node/sandbox/tests/launch.rs", 1),
    ("node/sandbox/tests/node/mod.rs", 1),
    ("node/sandbox/tests/shares.rs", 1),
    ("node/supervisor/src/lock.rs", 1),
    ("node/worker/src/engine/clock.rs", 1),
    ("node/worker/tests/attacker.rs", 1),
    ("node/worker/tests/requests.rs", 2),
    ("tests/src/bin/casemate-demo.rs", 2),
    ("tests/src/bin/casemate-measure.rs", 1),
    ("tests/src/machine.rs", 1),
    ("tests/src/programs.rs", 2),
    ("tests/tests/attacker.rs", 1),
    ("tests/tests/freshness.rs", 2),
    ("tests/tests/hostile_function.rs", 1),
    ("tests/tests/image.rs", 2),
    ("tests/tests/image_push.rs", 3),
    ("tests/tests/image_update/mod.rs", 1),
    ("tests/tests/install.rs", 1),
    ("tests/tests/keys.rs", 2),
    ("tests/tests/main_job.rs", 4),
    ("tests/tests/restore.rs", 1),
    ("tests/tests/shares.rs", 3),
    ("tests/tests/survival.rs", 1),
    ("tests/tests/typescript.rs", 1),
    ("vault/broker/tests/calls_under_way.rs", 1),
    ("vault/broker/tests/fleet/mod.rs", 1),
    ("vault/broker/tests/freshness.rs", 1),
    ("vault/broker/tests/hostile_answers.rs", 1),
    ("vault/broker/tests/noise.rs", 1),
    ("vault/broker/tests/upstream/raw.rs", 2),
    ("vault/broker/tests/wiped.rs", 1),
];

fn sleeps(source: &Source, rust: &Rust, is_test: bool) -> Vec<String> {
    let words = &rust.words;
    let mut mistakes = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let is_call = word.text == "sleep"
            && words.get(at + 1).is_some_and(|next| next.text == "(")
            && !(at > 0 && [".", "fn"].contains(&words[at - 1].text.as_str()));
        if is_call && (is_test || word.is_test) && !is_paused(words, at) {
            let (path, line) = (&source.path, word.line);
            mistakes.push(format!("{path}:{line}: a test that sleeps"));
        }
    }
    mistakes
}

/// Whether the function that this word stands in starts with paused time.
fn is_paused(words: &[Word], at: usize) -> bool {
    let Some(function) = words[..at].iter().rposition(|word| word.text == "fn") else {
        return false;
    };
    let before = words[..function].iter().rev();
    before
        .take_while(|word| !["}", ";"].contains(&word.text.as_str()))
        .any(|word| word.text == "start_paused")
}

#[test]
fn no_test_sleeps() {
    let mut found = BTreeMap::new();
    for (source, rust, is_test) in rust_sources() {
        let mistakes = sleeps(&source, &rust, is_test);
        if !mistakes.is_empty() && !HELPERS.contains(&source.path.as_str()) {
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
    let text = "#[tokio::test(start_paused = true)]\nasync fn t() { sleep(SECOND).await; }";
    assert_eq!(count("node/wire/src/a.rs", text, false), 0);
}
