//! Names, hosts, paths: what is accepted has one spelling.
#![no_main]

use casemate_trust::host::{HostName, HostPattern};
use casemate_trust::name::{Identifier, Name};
use casemate_trust::path::{Method, PathPattern, is_canonical_path};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(host) = text.parse::<HostName>() {
        assert_eq!(host.as_str(), text);
        assert_eq!(text, text.to_ascii_lowercase());
        assert!(!text.contains(['@', '/', '%', '#', '\\', '[', ' ']));
    }
    if let Ok(pattern) = text.parse::<PathPattern>() {
        assert!(pattern.covers(&pattern));
    }
    if is_canonical_path(text) {
        assert!(text.starts_with('/') && !text.contains("//") && !text.split('/').any(|segment| segment == ".." || segment == "."));
    }
    let _rest = (text.parse::<Name>(), text.parse::<Identifier>(), text.parse::<Method>(), text.parse::<HostPattern>());
});
