//! Nothing turns a failed derivation, serialisation or read into an empty default.
//!
//! In the folders of [`STRICT`], which handle secrets, statements and stored rows, the methods that
//! hide a failure are forbidden altogether. There, a value that may be absent has an explicit
//! `unwrap_or`, and a call that cannot fail has an `expect` with the reason. Elsewhere the methods
//! are forbidden only directly after a call that can fail.

use std::collections::BTreeMap;

use crate::source::{Rust, Source, Word, rust_sources};
use crate::{beyond, none};

/// Folders in which the methods are forbidden altogether.
const STRICT: &[&str] = &[
    "vault/path/src/",
    "vault/trust/src/",
    "vault/core/src/",
    "vault/store/src/",
    "vault/broker/src/",
    "node/wire/src/",
    "node/channel/src/",
    "control-plane/api/src/",
    "control-plane/push/src/",
    "control-plane/store/src/",
    "images/measured-boot/src/",
];

/// Fallible calls that derive, sign, write or read.
const FALLIBLE: &[&str] = &[
    "expand",
    "extract",
    "fill",
    "from_reader",
    "from_slice",
    "from_str",
    "parse",
    "read",
    "read_to_end",
    "read_to_string",
    "sign",
    "to_allocvec",
    "to_extend",
    "to_pretty_json",
    "to_stdvec",
    "to_string_pretty",
    "to_value",
    "to_vec",
    "to_writer",
    "verify",
];

/// Files that still hide failures, and the number of places.
const EXCEPTIONS: &[(&str, usize)] = &[
    // A completion outside of a project offers nothing.
    ("control-plane/cli/src/complete.rs", 2),
    // Not every kernel has these files; without one there is nothing to list.
    ("images/init/src/disk.rs", 1),
    ("images/init/src/figures.rs", 2),
    ("images/init/src/kernel.rs", 1),
    ("images/init/src/settings.rs", 1),
    ("node/sandbox/src/bin/casemate-launch/cgroup/group.rs", 1),
    ("node/sandbox/src/bin/casemate-launch/cgroup/mod.rs", 1),
    ("node/sandbox/src/layers.rs", 2),
    ("node/sandbox/src/memory.rs", 2),
];

/// The line of each violation in a file.
fn hidden(source: &Source, rust: &Rust) -> Vec<String> {
    let words: Vec<&Word> = rust.words.iter().filter(|word| !word.is_test).collect();
    let is_strict = STRICT.iter().any(|folder| source.path.starts_with(folder));
    let is = |at: usize, text: &str| words.get(at).is_some_and(|word| word.text == text);
    let mut mistakes = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let follows_call = at > 0 && is(at - 1, ".");
        let what = match word.text.as_str() {
            "unwrap_or_default" if follows_call && (is_strict || fails(&words, at - 1)) => {
                "unwrap_or_default hides a failure"
            }
            text if is_strict && text.starts_with("debug_assert") && is(at + 1, "!") => {
                "debug_assert checks nothing in a release"
            }
            "ok" if is_strict && follows_call && is(at + 2, ")") && is(at + 3, ";") => {
                // `let a = b.ok();` does not hide a failure.
                if is_statement(&words, at) {
                    "a result that is dropped with ok()"
                } else {
                    continue;
                }
            }
            "let" if is_strict && is(at + 1, "_") && is(at + 2, "=") => {
                "a result that is dropped with `let _`"
            }
            _ => continue,
        };
        mistakes.push(format!("{}:{}: {what}", source.path, word.line));
    }
    mistakes
}

/// Whether this dot follows a call that can fail.
fn fails(words: &[&Word], dot: usize) -> bool {
    let mut depth = 0_usize;
    for at in (0..dot).rev() {
        match words[at].text.as_str() {
            ")" => depth += 1,
            "(" if depth == 1 => {
                let name = at.checked_sub(1).map(|before| words[before].text.as_str());
                return name.is_some_and(|name| FALLIBLE.contains(&name));
            }
            "(" => depth -= 1,
            // The dot follows something other than a call, such as `?`.
            _ if depth == 0 => return false,
            _ => {}
        }
    }
    false
}

/// Whether the statement around this word neither binds nor returns its value.
fn is_statement(words: &[&Word], at: usize) -> bool {
    let before = words[..at].iter().rev();
    let mut statement = before.take_while(|word| ![";", "{", "}"].contains(&word.text.as_str()));
    !statement.any(|word| ["let", "=", "return"].contains(&word.text.as_str()))
}

#[test]
fn no_failure_becomes_an_empty_default() {
    let mut found = BTreeMap::new();
    for (source, rust, is_test) in rust_sources() {
        if !is_test && !source.path.starts_with("benches/") {
            let mistakes = hidden(&source, &rust);
            if !mistakes.is_empty() {
                found.insert(source.path, mistakes);
            }
        }
    }
    none(&beyond(&found, EXCEPTIONS, "EXCEPTIONS"));
}

#[test]
fn every_way_to_hide_a_failure_is_found_where_secrets_are() {
    for text in [
        "fn f() -> Vec<u8> { serde_json::to_vec(&a).unwrap_or_default() }",
        "fn f() { let filled = okm.fill(&mut key); debug_assert!(filled.is_ok()); }",
        "fn f() { debug_assert_eq!(a, b); }",
        "fn f() { file.sync_all().ok(); }",
        "fn f() { let _ = file.sync_all(); }",
        "fn f() -> &str { text.split('?').next().unwrap_or_default() }",
    ] {
        let source = Source::planted("vault/core/src/keys.rs", text);
        assert_eq!(hidden(&source, &source.rust()).len(), 1, "{text}");
    }
    let fine = "fn f() { let place = store.set_aside(a).ok(); map.get(&a).copied().unwrap_or(0); }
        #[cfg(test)] mod tests { fn f() { let _ = parse(a); } }";
    let source = Source::planted("vault/core/src/keys.rs", fine);
    assert!(hidden(&source, &source.rust()).is_empty());
}

#[test]
fn elsewhere_a_default_directly_behind_a_fallible_call_is_found() {
    for (text, count) in [
        (
            "fn f() { serde_json::to_vec(&g(a)).unwrap_or_default(); }",
            1,
        ),
        (
            "fn f() { std::fs::read_to_string(path)\n.unwrap_or_default(); }",
            1,
        ),
        ("fn f() { text.parse().unwrap_or_default(); }", 1),
        ("fn f() { map.get(parse(a)).unwrap_or_default(); }", 0),
        ("fn f() { home.read_json(NODES)?.unwrap_or_default(); }", 0),
    ] {
        let source = Source::planted("control-plane/cli/src/a.rs", text);
        assert_eq!(hidden(&source, &source.rust()).len(), count, "{text}");
    }
}
