//! The extensions of the isolate. Their order is part of the snapshot, so `build.rs` compiles this
//! file too.

use std::sync::Arc;

use deno_core::{Extension, ExtensionFileSource};
use deno_web::{BlobStore, InMemoryBroadcastChannel};

use super::ops::casemate;

/// All extensions in their fixed order. `fetch_scripts` are the scripts of deno_fetch: passed when
/// the snapshot is made, empty afterwards, so that the worker links no network client.
pub(crate) fn all(fetch_scripts: Vec<ExtensionFileSource>) -> Vec<Extension> {
    vec![
        deno_webidl::deno_webidl::init(),
        deno_web::deno_web::init(
            Arc::new(BlobStore::default()),
            None,
            false,
            InMemoryBroadcastChannel::default(),
        ),
        tls_stub(fetch_scripts.is_empty()),
        Extension {
            name: "deno_fetch",
            deps: &["deno_webidl", "deno_web"],
            lazy_loaded_js_files: fetch_scripts.into(),
            ..Default::default()
        },
        deno_crypto::deno_crypto::init(None),
        casemate::init(),
    ]
}

/// An empty replacement for the script of deno_net that deno_fetch's HTTP client loads.
fn tls_stub(in_snapshot: bool) -> Extension {
    const STUB: ExtensionFileSource = ExtensionFileSource::new(
        "ext:deno_net/02_tls.js",
        deno_core::ascii_str!("(function () { return { loadTlsKeyPair() {} }; })();"),
    );
    let lazy_loaded_js_files = if in_snapshot { Vec::new() } else { vec![STUB] };
    Extension {
        name: "deno_net",
        lazy_loaded_js_files: lazy_loaded_js_files.into(),
        ..Default::default()
    }
}
