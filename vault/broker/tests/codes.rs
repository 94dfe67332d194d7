//! Every code that the vault gives a function is one that the tenants' guide explains.

#![allow(clippy::unwrap_used, reason = "a test that panics says enough")]

use std::collections::BTreeSet;
use std::path::Path;

use casemate_wire::CallCode;

/// What stands before a code in the vault's sources.
const BEFORE: &[&str] = &["Refused::new(", "Some((", "then_some(("];

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_refusal_has_a_code_of_the_guide() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = std::fs::read_to_string(root.join("vault.rs")).unwrap();
    sources(&root.join("calls"), &mut text);
    let mut codes = BTreeSet::new();
    for before in BEFORE {
        for after in text.split(before).skip(1) {
            let literal = after.trim_start().strip_prefix('"');
            let code = literal.and_then(|text| text.split('"').next());
            let is_code = |code: &&str| code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            codes.extend(code.filter(is_code));
        }
    }
    for known in [
        "egress_denied",
        "credential_stale",
        "node_revoked",
        "revocations_missing",
        "upstream_dns",
    ] {
        assert!(codes.contains(known), "{known} is in none of {codes:?}");
    }
    for code in codes {
        assert!(
            CallCode::parse(code).is_some(),
            "casemate_wire::CallCode lacks {code}"
        );
    }
}
