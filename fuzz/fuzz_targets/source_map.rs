//! Source maps of a hostile bundle, as the worker reduces them and the engine's library then reads
//! them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sourcemap::SourceMap;

#[path = "../../node/worker/src/source_map.rs"]
mod source_map;

fuzz_target!(|bytes: &[u8]| {
    let Some(reduced) = source_map::reduced(bytes) else {
        return;
    };
    assert_eq!(source_map::reduced(&reduced).as_ref(), Some(&reduced));
    let Ok(map) = SourceMap::from_slice(&reduced) else {
        return;
    };
    for line in [0, 1, 7, u32::MAX] {
        for column in [0, 1, 80, u32::MAX] {
            if let Some(token) = map.lookup_token(line, column) {
                let _ = (
                    token.get_source(),
                    token.get_src_line(),
                    token.get_src_col(),
                );
            }
        }
    }
});
