//! Pure crates have no effects: no files, sockets, clock, randomness, threads or environment.

use cargo_metadata::{DependencyKind, Metadata};

use crate::layers::metadata;
use crate::none;
use crate::source::{Source, sources};

/// Crates, or modules of a crate, that have to be pure.
const PURE: &[(&str, &str)] = &[
    ("casemate-path", "vault/path/src/"),
    ("casemate-trust", "vault/trust/src/"),
    ("casemate-vault-core", "vault/core/src/"),
    ("casemate-wire", "node/wire/src/"),
    ("casemate-api", "control-plane/api/src/"),
    ("casemate-push", "control-plane/push/src/"),
    ("", "node/supervisor/src/state/"),
];

/// Crates that a pure crate must not name.
const IMPURE_CRATES: &[&str] = &[
    "tokio",
    "quinn",
    "rustix",
    "libc",
    "socket2",
    "hyper",
    "hyper-util",
    "rand",
    "getrandom",
    "tempfile",
];

/// Beginnings of forbidden paths. Addresses without sockets are in `core::net`.
const IMPURE_PATHS: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread",
    "std::os",
    "tokio",
    "rustix",
    "libc",
    "getrandom",
    "rand",
];

/// Names that no path may contain, from whichever crate.
const IMPURE_NAMES: &[&str] = &[
    "Instant",
    "SystemTime",
    "SystemRandom",
    "SecureRandom",
    "OsRng",
    "thread_rng",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
];

/// Exceptions: files with the names that they may use, and the reason.
const EXCEPTIONS: &[(&str, &[&str])] = &[
    // A test in this file writes the golden file of the API on demand.
    ("control-plane/api/src/openapi.rs", &["std::fs", "std::env"]),
];

/// The rule reads every line of a pure file, including its tests.
fn impure(source: &Source) -> Vec<String> {
    let exceptions = EXCEPTIONS.iter().find(|(path, _)| *path == source.path);
    let excepted = exceptions.map_or(&[][..], |(_, paths)| *paths);
    let begins = |path: &str, with: &str| {
        path.strip_prefix(with)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    };
    let mistake = |path: &crate::source::RustPath| {
        let place = IMPURE_PATHS.iter().find(|place| begins(&path.text, place));
        let name = path
            .text
            .split("::")
            .find(|name| IMPURE_NAMES.contains(name));
        let what = place.copied().or(name)?;
        let is_excepted = excepted.contains(&what);
        let (file, line) = (&source.path, path.line);
        (!is_excepted).then(|| format!("{file}:{line}: {what} in code that only decides"))
    };
    source.rust().paths.iter().filter_map(mistake).collect()
}

fn impure_dependencies(metadata: &Metadata) -> Vec<String> {
    let mut mistakes = Vec::new();
    for package in metadata.workspace_packages() {
        let is_pure = PURE.iter().any(|(name, _)| *name == package.name.as_str());
        let named = package.dependencies.iter().filter(|dependency| {
            is_pure
                && dependency.kind == DependencyKind::Normal
                && IMPURE_CRATES.contains(&dependency.name.as_str())
        });
        mistakes.extend(named.map(|named| format!("{} names {}", package.name, named.name)));
    }
    mistakes
}

#[test]
fn deciding_code_does_nothing() {
    let is_pure = |source: &Source| {
        let mut folders = PURE.iter().map(|(_, folder)| folder);
        folders.any(|folder| source.path.starts_with(folder))
    };
    let pure: Vec<_> = sources(&[".rs"]).into_iter().filter(is_pure).collect();
    for (_, folder) in PURE {
        let files = pure.iter().filter(|source| source.path.starts_with(folder));
        assert!(files.count() > 0, "{folder} is gone: mend the list");
    }
    none(&pure.iter().flat_map(impure).collect::<Vec<_>>());
    none(&impure_dependencies(&metadata()));
}

#[test]
fn a_clock_below_the_first_test_is_found() {
    let text = "#[cfg(test)]
        mod tests;

        use std::{fmt, time::Instant};
        fn late() -> Instant { Instant::now() }";
    let found = impure(&Source::planted("vault/trust/src/judge/mod.rs", text));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("vault/trust/src/judge/mod.rs:4: Instant"));
}

#[test]
fn every_way_out_is_found() {
    for text in [
        "fn f() { std::fs::read(\"a\"); }",
        "use std::{net::IpAddr};",
        "use std::net::{TcpStream, UdpSocket};",
        "use std::os::fd::OwnedFd;",
        "async fn f() { tokio::time::sleep(SECOND).await }",
        "use ring::rand::SystemRandom;",
        "macro_rules! now { () => { std::time::SystemTime::now() } }",
    ] {
        let found = impure(&Source::planted("node/wire/src/a.rs", text));
        assert!(!found.is_empty(), "{text}");
    }
    let pure = "/// Not std::fs.
        use core::net::IpAddr;
        use std::{fmt, time::Duration};
        const A: &str = \"tokio\";";
    assert!(impure(&Source::planted("node/wire/src/a.rs", pure)).is_empty());
}
