//! Source maps of the bundle, reduced to what a stack trace needs.
//!
//! A map comes from the tenant. A library inside V8's isolate reads it when an error's stack is
//! first shown, at the cost of the request whose error it is. So its sizes are bounded before, and
//! the text of the sources is removed. `fuzz/fuzz_targets/source_map.rs` compiles this file too, so
//! it uses nothing else of the worker.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

/// Largest map, in bytes. Most of a map is the text of the sources, if the bundler includes that.
const MAX_MAP_BYTES: usize = 8 * 1024 * 1024;
/// Longest list of mappings, in bytes. Decoded, it takes five times as much memory, and up to
/// fifteen times if it is hostile.
const MAX_MAPPINGS_BYTES: usize = 2 * 1024 * 1024;
/// Most source files.
const MAX_SOURCES: usize = 10_000;
/// Most names of the sources' identifiers. They are not shown, but mappings refer to them by index.
const MAX_NAMES: usize = 200_000;

/// The map in its source format (<https://tc39.es/ecma426/>). Maps that consist of sections have no
/// `mappings`.
#[derive(Deserialize)]
struct Written {
    version: u32,
    #[serde(default)]
    sources: Vec<Option<String>>,
    #[serde(default, rename = "sourceRoot")]
    source_root: Option<String>,
    #[serde(default)]
    names: Vec<IgnoredAny>,
    mappings: String,
}

/// The reduced map.
#[derive(Serialize)]
struct Reduced {
    version: u32,
    sources: Vec<Option<String>>,
    #[serde(rename = "sourceRoot", skip_serializing_if = "Option::is_none")]
    source_root: Option<String>,
    names: Vec<&'static str>,
    mappings: String,
}

/// The map without what no stack trace shows; `None` when it is invalid or over a limit, and stacks
/// then name the bundle's own lines.
pub(crate) fn reduced(map: &[u8]) -> Option<Vec<u8>> {
    if map.len() > MAX_MAP_BYTES {
        return None;
    }
    let Written {
        version: version @ 3,
        sources,
        source_root,
        names,
        mappings,
    } = serde_json::from_slice(map).ok()?
    else {
        return None;
    };
    let fits = mappings.len() <= MAX_MAPPINGS_BYTES
        && sources.len() <= MAX_SOURCES
        && names.len() <= MAX_NAMES;
    let reduced = Reduced {
        version,
        sources,
        source_root,
        names: vec![""; names.len()],
        mappings,
    };
    fits.then(|| serde_json::to_vec(&reduced).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reducing_a_map_keeps_what_stacks_need() {
        let map = br#"{"version":3,"file":"main.js","sources":["../src/a.ts",null],"sourceRoot":"x",
            "sourcesContent":["secret text",null],"names":["one","two"],"mappings":"AAAAA,CCA","x_more":[{}]}"#;
        let expected = r#"{"version":3,"sources":["../src/a.ts",null],"sourceRoot":"x","names":["",""],"mappings":"AAAAA,CCA"}"#;
        assert_eq!(reduced(map).as_deref(), Some(expected.as_bytes()));
    }

    #[test]
    fn an_invalid_or_too_large_map_is_rejected() {
        let with = |mappings: &str, sources: &str, names: &str| {
            let map = format!(
                r#"{{"version":3,"sources":[{sources}],"names":[{names}],"mappings":"{mappings}"}}"#
            );
            reduced(map.as_bytes()).is_some()
        };
        assert!(with("AAAA", "\"a\"", "\"b\""));
        let list = |length: usize| vec!["null"; length].join(",");
        assert!(
            with(&"A".repeat(MAX_MAPPINGS_BYTES), "", "")
                && !with(&"A".repeat(MAX_MAPPINGS_BYTES + 1), "", "")
        );
        assert!(with("", &list(MAX_SOURCES), "") && !with("", &list(MAX_SOURCES + 1), ""));
        assert!(with("", "", &list(MAX_NAMES)) && !with("", "", &list(MAX_NAMES + 1)));
        let large = format!(
            r#"{{"version":3,"mappings":"","x":"{}"}}"#,
            "x".repeat(MAX_MAP_BYTES)
        );
        for no_map in [
            "",
            "{}",
            "[]",
            r#"{"version":2,"mappings":""}"#,
            r#"{"version":3,"mappings":1}"#,
            r#"{"version":3,"sections":[]}"#,
            &large,
        ] {
            assert_eq!(reduced(no_map.as_bytes()), None);
        }
    }
}
