//! The gate through which every WebAssembly memory passes: no memory is shared, and none is larger
//! than its function's limit.
//!
//! A shared memory would create a `SharedArrayBuffer`: memory that several agents read at once,
//! hence a clock. V8 has no setting against shared memories, and there are many ways to ask for
//! one: the constructor, a module that declares a memory, an instance of a module that was compiled
//! from a stream or imported. All of these ways end in one function of V8, `WasmMemoryObject::New`.
//! The linker gives its callers the function below instead (`--wrap`, which `build.rs` asks for),
//! so no JavaScript can bypass it. If a later V8 renames its function, the worker does not link.
//! function, the worker does not link.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicI32, Ordering};

use super::memory::SPARE_HEAP_BYTES;

/// Bytes in a page of a WebAssembly memory.
const PAGE_BYTES: usize = 64 * 1024;

/// V8's mark for a memory that was declared without a maximum.
const NO_MAXIMUM: c_int = -1;

/// The most pages that one memory may have or grow to.
static LIMIT_PAGES: AtomicI32 = AtomicI32::new(pages(SPARE_HEAP_BYTES));

/// Sets the largest size of a memory. The limit applies to memories that are made later.
pub(super) fn set_limit(bytes: usize) {
    LIMIT_PAGES.store(pages(bytes), Ordering::Relaxed);
}

const fn pages(bytes: usize) -> c_int {
    // The configuration counts heap limits in MiB as `u32`: a 64-bit machine can count their pages.
    let count = bytes / PAGE_BYTES;
    if count > c_int::MAX as usize {
        c_int::MAX
    } else {
        count as c_int
    }
}

/// The maximum to pass to V8 for a memory; `None` when the memory must not be made.
fn admit(initial: c_int, maximum: c_int, is_shared: bool, limit: c_int) -> Option<c_int> {
    if is_shared || initial > limit {
        return None;
    }
    Some(if maximum == NO_MAXIMUM {
        limit
    } else {
        maximum.min(limit)
    })
}

unsafe extern "C" {
    /// `MaybeDirectHandle<WasmMemoryObject> WasmMemoryObject::New(Isolate*, int initial, int
    /// maximum, SharedFlag, AddressType)`. The result is one pointer, null when there is no memory;
    /// `SharedFlag` is a `bool` and `AddressType` a `uint8_t`.
    #[link_name = "__real__ZN2v88internal16WasmMemoryObject3NewEPNS0_7IsolateEiiNS0_10SharedFlagENS0_4wasm11AddressTypeE"]
    fn new_memory(
        isolate: *mut c_void,
        initial: c_int,
        maximum: c_int,
        is_shared: u8,
        address_type: u8,
    ) -> *mut c_void;
}

/// V8 calls this instead of `WasmMemoryObject::New`. A null result becomes a `RangeError`.
///
/// # Safety
/// The arguments are those of V8's own call.
#[unsafe(export_name = "__wrap__ZN2v88internal16WasmMemoryObject3NewEPNS0_7IsolateEiiNS0_10SharedFlagENS0_4wasm11AddressTypeE")]
unsafe extern "C" fn gated_new_memory(
    isolate: *mut c_void,
    initial: c_int,
    maximum: c_int,
    is_shared: u8,
    address_type: u8,
) -> *mut c_void {
    let limit = LIMIT_PAGES.load(Ordering::Relaxed);
    match admit(initial, maximum, is_shared != 0, limit) {
        // SAFETY: the caller's own arguments, with a maximum that is not below `initial` and not
        // above the caller's.
        Some(maximum) => unsafe { new_memory(isolate, initial, maximum, 0, address_type) },
        None => std::ptr::null_mut(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MIB;
    use super::*;

    #[test]
    fn memories_are_private_and_within_the_limit() {
        assert_eq!(pages(32 * MIB), 512);
        assert_eq!(pages(usize::MAX), c_int::MAX);
        assert_eq!(admit(1, NO_MAXIMUM, false, 512), Some(512));
        assert_eq!(admit(512, 65_536, false, 512), Some(512));
        assert_eq!(admit(0, 7, false, 512), Some(7));
        assert_eq!(admit(513, NO_MAXIMUM, false, 512), None);
        assert_eq!(admit(1, 1, true, 512), None, "shared");
    }
}
