//! The codes that a decision about a call names are codes of calls, which the tenants' guide explains.

#![allow(clippy::unwrap_used, reason = "a test that panics says enough")]

use std::path::Path;

use casemate_wire::CallCode;

#[test]
fn every_denial_has_a_code_of_the_guide() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/src/egress.rs");
    let text = std::fs::read_to_string(source).unwrap();
    let (_, codes) = text.split_once("pub const fn code(&self)").unwrap();
    let (codes, _) = codes.split_once("\n    }\n").unwrap();
    let codes: Vec<&str> = codes
        .split("=> \"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(codes.contains(&"egress_denied"), "{codes:?}");
    for code in codes {
        assert!(CallCode::parse(code).is_some(), "CallCode lacks {code}");
    }
}
