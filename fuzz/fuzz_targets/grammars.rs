//! Names, hosts and paths: every accepted value has one spelling.
#![no_main]

use casemate_trust::host::{HostName, HostPattern};
use casemate_trust::name::{Identifier, Name};
use casemate_trust::path::{CanonicalPath, Method, PathPattern};
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
    if let Ok(path) = CanonicalPath::new(text) {
        let canonical = path.as_str();
        assert!(canonical.starts_with('/') && !canonical.contains("//"));
        assert!(
            !canonical
                .split('/')
                .any(|segment| segment == ".." || segment == ".")
        );
        assert_eq!(CanonicalPath::new(canonical), Ok(path.clone()));
    }
    let _rest = (
        text.parse::<Name>(),
        text.parse::<Identifier>(),
        text.parse::<Method>(),
        text.parse::<HostPattern>(),
    );
});
