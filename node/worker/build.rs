//! Makes the start-up snapshot: the web platform and our own scripts, evaluated.

use std::path::PathBuf;

use deno_core::snapshot::{CreateSnapshotOptions, create_snapshot};

/// The modules of the engine that are part of the snapshot.
#[path = "src/engine"]
mod engine {
    #[allow(dead_code, unreachable_pub, missing_docs)]
    pub(crate) mod extensions;
    #[allow(dead_code, unreachable_pub, missing_docs)]
    pub(crate) mod ops;
}

/// V8's function that makes every WebAssembly memory: see `src/engine/wasm_memory.rs`.
const NEW_WASM_MEMORY: &str = "_ZN2v88internal16WasmMemoryObject3New\
    EPNS0_7IsolateEiiNS0_10SharedFlagENS0_4wasm11AddressTypeE";

fn main() {
    println!("cargo:rustc-link-arg-bins=-Wl,--wrap={NEW_WASM_MEMORY}");
    for path in [
        "src/js",
        "src/engine/ops.rs",
        "src/engine/extensions.rs",
        "build.rs",
    ] {
        println!("cargo:rerun-if-changed={path}");
    }
    let fetch_scripts = deno_fetch::deno_fetch::lazy_init()
        .lazy_loaded_js_files
        .into_owned();
    let options = CreateSnapshotOptions {
        cargo_manifest_dir: env!("CARGO_MANIFEST_DIR"),
        startup_snapshot: None,
        skip_op_registration: false,
        extensions: engine::extensions::all(fetch_scripts),
        extension_transpiler: None,
        with_runtime_cb: None,
    };
    let made = create_snapshot(options, None).expect("the scripts in src/js load");
    for path in made.files_loaded_during_snapshot {
        println!("cargo:rerun-if-changed={}", path.display());
    }
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    std::fs::write(folder.join("snapshot.bin"), made.output).expect("OUT_DIR can be written");
}
