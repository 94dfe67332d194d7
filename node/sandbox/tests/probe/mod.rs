//! Finds and runs `examples/probe`.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::PathBuf;
use std::process::Command;

/// Cargo builds examples together with tests, in a folder beside them.
pub(crate) fn path() -> PathBuf {
    let test = std::env::current_exe().expect("our own path");
    let path = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("a target folder")
        .join("examples/probe");
    assert!(
        path.is_file(),
        "{} is missing: `cargo build -p casemate-sandbox --example probe`",
        path.display()
    );
    path
}

/// The output of the program.
#[allow(dead_code)] // Only one of the two tests that share this file runs it directly.
pub(crate) fn run(arguments: &[&str]) -> String {
    let output = Command::new(path())
        .args(arguments)
        .output()
        .expect("the probe runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "probe {arguments:?}: {}\n{errors}",
        output.status
    );
    String::from_utf8(output.stdout).expect("text")
}
