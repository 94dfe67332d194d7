//! Limits on the size of a line, a function and a file.

use std::collections::BTreeMap;

use crate::source::{Source, root, sources};
use crate::{beyond, none};

const MAX_FILE_LINES: usize = 500;
const MAX_LINE_COLUMNS: usize = 100;
const MAX_FUNCTION_LINES: i64 = 70;

/// Most lines of a listed file over the limit.
const MAX_LONG_FILE_LINES: usize = 610;

/// Files over the limit.
const LONG_FILES: &[&str] = &[
    "images/init/src/network/dhcp.rs",
    "images/init/src/node.rs",
    "images/init/src/settings.rs",
    "images/init/src/tpm/mod.rs",
    "images/init/src/update.rs",
    "node/gateway/src/exchange.rs",
    "node/gateway/src/workers.rs",
    "node/gateway/tests/hostile_callers.rs",
    "node/sandbox/src/bin/casemate-launch/serve.rs",
    "node/supervisor/src/config.rs",
    "node/supervisor/src/shell/mod.rs",
    "node/supervisor/src/shell/push.rs",
    "node/supervisor/src/state/bundles.rs",
    "node/supervisor/src/state/functions.rs",
    "node/supervisor/src/state/mod.rs",
    "node/supervisor/src/state/quota.rs",
    "node/supervisor/src/state/tests.rs",
    "node/supervisor/src/state/workers.rs",
    "node/worker/src/state.rs",
    "node/worker/tests/calls.rs",
    "node/worker/tests/requests.rs",
    "vault/broker/tests/takeover.rs",
    "vault/core/src/scrub/runs.rs",
];

/// Functions over the limit: how many times a file lifts clippy's `too_many_lines`.
const LONG_FUNCTIONS: &[(&str, usize)] = &[
    ("images/init/src/network.rs", 1),
    ("images/init/src/storage/tests.rs", 1),
    ("node/gateway/src/run.rs", 1),
    ("node/sandbox/src/bin/casemate-launch/child.rs", 1),
    ("node/sandbox/tests/node/mod.rs", 1),
    ("node/supervisor/src/config.rs", 1),
    ("node/supervisor/src/shell/hear.rs", 2),
    ("node/supervisor/src/shell/mod.rs", 1),
    ("node/supervisor/src/shell/push.rs", 1),
    ("node/supervisor/src/state/functions.rs", 1),
    ("node/supervisor/src/state/mod.rs", 1),
    ("node/supervisor/src/state/tests.rs", 1),
    ("node/worker/src/engine/functions.rs", 1),
    ("node/worker/tests/webassembly.rs", 1),
    ("tests/tests/image_push.rs", 1),
    ("vault/broker/tests/takeover.rs", 1),
    ("vault/trust/src/judge/tests/mod.rs", 1),
];

/// Files with lines over the limit, one path a line.
const LONG_LINES: &str = include_str!("long_lines.txt");

fn long_files(sources: &[Source], exceptions: &[&str]) -> Vec<String> {
    let mut mistakes = Vec::new();
    for Source { path, text } in sources {
        let lines = text.lines().count();
        let is_excepted = exceptions.contains(&path.as_str());
        let most = if is_excepted {
            MAX_LONG_FILE_LINES
        } else {
            MAX_FILE_LINES
        };
        if lines > most {
            mistakes.push(format!("{path}: {lines} lines, at most {most}"));
        }
        if is_excepted && lines <= MAX_FILE_LINES {
            mistakes.push(format!(
                "{path} has {lines} lines: remove it from LONG_FILES"
            ));
        }
    }
    for file in exceptions {
        if !sources.iter().any(|source| source.path == *file) {
            mistakes.push(format!("{file} is gone: remove it from LONG_FILES"));
        }
    }
    mistakes
}

fn long_lines(sources: &[Source], exceptions: &str) -> Vec<String> {
    let mut mistakes = Vec::new();
    let excepted: Vec<&str> = exceptions.lines().collect();
    for Source { path, text } in sources {
        let long = text.lines().enumerate().filter_map(|(number, line)| {
            let columns = line.chars().count();
            (columns > MAX_LINE_COLUMNS)
                .then(|| format!("{path}:{}: {columns} columns", number + 1))
        });
        let mut long = long.peekable();
        if !excepted.contains(&path.as_str()) {
            mistakes.extend(long);
        } else if long.peek().is_none() {
            mistakes.push(format!(
                "{path} has no long line: remove it from long_lines.txt"
            ));
        }
    }
    let is_gone = |file: &&&str| !sources.iter().any(|source| source.path == **file);
    let gone = excepted.iter().filter(is_gone);
    mistakes.extend(gone.map(|file| format!("{file} is gone: remove it from long_lines.txt")));
    mistakes
}

/// The lines of each file that lift the limit on functions.
fn lifted(sources: &[Source]) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for source in sources {
        let words = source.rust().words;
        let lifts = words.iter().filter(|word| word.text == "too_many_lines");
        let places: Vec<_> = lifts
            .map(|word| {
                let (path, line) = (&source.path, word.line);
                format!("{path}:{line}: a function of more than {MAX_FUNCTION_LINES} lines")
            })
            .collect();
        if !places.is_empty() {
            found.insert(source.path.clone(), places);
        }
    }
    found
}

#[test]
fn files_stay_readable() {
    none(&long_files(&sources(&[".rs"]), LONG_FILES));
}

#[test]
fn a_long_file_a_growing_exception_and_a_stale_one_are_found() {
    let lines = |path, lines| Source::planted(path, &"\n".repeat(lines));
    let sources = [
        lines("a.rs", MAX_FILE_LINES + 1),
        lines("b.rs", MAX_LONG_FILE_LINES + 1),
        lines("c.rs", MAX_FILE_LINES),
    ];
    assert_eq!(long_files(&sources, &[]).len(), 2);
    let found = long_files(&sources, &["a.rs", "b.rs"]);
    assert!(
        found.len() == 1 && found[0].starts_with("b.rs"),
        "{found:?}"
    );
    let stale = long_files(&sources[2..], &["c.rs", "d.rs"]);
    assert_eq!(stale.len(), 2, "{stale:?}");
}

#[test]
fn lines_stay_readable() {
    none(&long_lines(&sources(&[".rs"]), LONG_LINES));
}

#[test]
fn a_long_line_and_a_stale_exception_are_found() {
    let line = |columns: usize| "é".repeat(columns);
    let sources = [
        Source::planted("a.rs", &line(MAX_LINE_COLUMNS)),
        Source::planted("b.rs", &format!("\n{}", line(MAX_LINE_COLUMNS + 1))),
    ];
    assert_eq!(long_lines(&sources, ""), ["b.rs:2: 101 columns"]);
    assert!(long_lines(&sources, "b.rs\n").is_empty());
    assert_eq!(long_lines(&sources, "a.rs\nb.rs\nc.rs\n").len(), 2);
}

#[test]
fn functions_stay_readable() {
    let table = |path: &str| {
        let text = std::fs::read_to_string(root().join(path)).expect("a file in the root");
        text.parse::<toml::Table>().expect("TOML")
    };
    let limit = table("clippy.toml")["too-many-lines-threshold"].as_integer();
    assert_eq!(limit, Some(MAX_FUNCTION_LINES));
    let manifest = table("Cargo.toml");
    let lint = &manifest["workspace"]["lints"]["clippy"]["too_many_lines"];
    assert_eq!(
        lint.as_str(),
        Some("warn"),
        "this rule relies on clippy's lint"
    );
    let found = lifted(&sources(&[".rs"]));
    none(&beyond(&found, LONG_FUNCTIONS, "LONG_FUNCTIONS"));
}

#[test]
fn a_function_that_lifts_the_limit_is_found() {
    let text = "#[expect(clippy::too_many_lines, reason = \"long\")]\nfn f() {}\n";
    let found = lifted(&[Source::planted("a.rs", text)]);
    assert_eq!(beyond(&found, &[], "LONG_FUNCTIONS").len(), 1);
}
