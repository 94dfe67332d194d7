//! A lint of the workspace denies `unsafe`, and most crates forbid it. This module checks which
//! files lift the lint.

use crate::none;
use crate::source::{Source, sources};

/// Files that may lift the lint: those of the sandbox's crate, and the worker's V8 module.
const MAY_LIFT: &[&str] = &[
    "node/sandbox/src/syscalls.rs",
    "node/sandbox/src/bin/casemate-launch/child.rs",
    "node/sandbox/src/bin/casemate-launch/serve.rs",
    "node/sandbox/src/bin/casemate-launch/upgrade.rs",
    "node/sandbox/examples/probe/calls.rs",
    "node/sandbox/examples/probe/placed.rs",
    "node/sandbox/tests/sockets.rs",
    "node/worker/src/engine/mod.rs",
];

/// Roots of crates that contain `unsafe` and so cannot forbid it. The crate `fuzz` is a workspace
/// of its own, whose targets contain `unsafe` through a macro of libFuzzer.
const CANNOT_FORBID: &[&str] = &["node/sandbox/", "node/worker/", "fuzz/"];

fn lifted(source: &Source) -> Vec<String> {
    let path = &source.path;
    let mut mistakes = Vec::new();
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    let must_forbid = is_root && !CANNOT_FORBID.iter().any(|folder| path.starts_with(folder));
    let words = source.rust().words;
    let level = |level: &str| {
        let place = words
            .windows(2)
            .position(|pair| pair[0].text == level && pair[1].text == "(");
        // Skip to the bracket that closes the attribute.
        let inside = words[place?..].iter().take_while(|word| word.text != "]");
        let lint = inside.into_iter().find(|word| word.text == "unsafe_code")?;
        Some(lint.line)
    };
    if must_forbid && level("forbid").is_none() {
        mistakes.push(format!(
            "{path}: a crate root without #![forbid(unsafe_code)]"
        ));
    }
    let lifting = level("allow")
        .or_else(|| level("expect"))
        .or_else(|| level("warn"));
    if let Some(line) = lifting.filter(|_| !MAY_LIFT.contains(&path.as_str())) {
        mistakes.push(format!("{path}:{line}: lifts the lint against unsafe code"));
    }
    mistakes
}

#[test]
fn unsafe_stands_in_two_places_only() {
    let workspace = sources(&["Cargo.toml"]);
    let workspace = workspace.iter().find(|source| source.path == "Cargo.toml");
    let manifest: toml::Table = workspace.expect("it").text.parse().expect("a manifest");
    let lint = &manifest["workspace"]["lints"]["rust"]["unsafe_code"];
    assert_eq!(lint.as_str(), Some("deny"), "this rule relies on the lint");
    none(
        &sources(&[".rs"])
            .iter()
            .flat_map(lifted)
            .collect::<Vec<_>>(),
    );
}

#[test]
fn a_lifted_lint_and_a_root_without_one_are_found() {
    for text in [
        "#![allow(unsafe_code)]",
        "mod a { #[expect(dead_code, unsafe_code, reason = \"fast\")] fn f() {} }",
    ] {
        assert_eq!(
            lifted(&Source::planted("node/gateway/src/a.rs", text)).len(),
            1,
            "{text}"
        );
    }
    let root = |text| lifted(&Source::planted("node/gateway/src/lib.rs", text)).len();
    assert_eq!(root("fn f() {}"), 1);
    assert_eq!(root("#![forbid(unsafe_code)]"), 0);
    assert!(
        lifted(&Source::planted(
            "node/sandbox/src/syscalls.rs",
            "#![allow(unsafe_code)]"
        ))
        .is_empty()
    );
}
