//! Limits on memory: V8's heap by its own callback, and array buffers by a count in their
//! allocator.
//!
//! Some memory bypasses both: V8's own growth, and WebAssembly memories, which are limited in size
//! but not in number. It shows in the resident memory of the process, which the watch compares with
//! [`OVERHEAD_BYTES`]. All three are inner limits; the outer one is the process's cgroup or rlimit,
//! which a spare gets before its function is known, for the node's largest function.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use casemate_wire::control::Failure;
use deno_core::{JsRuntime, v8};

use super::last_words;
use super::watch::Watch;

/// Bytes in a MiB.
pub(crate) const MIB: usize = 1024 * 1024;

/// Heap limit of an isolate until its function is known: V8's own default for the smallest
/// machines. The function's limit replaces it, and may be lower or higher.
pub(crate) const SPARE_HEAP_BYTES: usize = 64 * MIB;

/// V8 does not collect the old generation below this size, nor for the sake of buffers below twice
/// this size. By default V8 collects a few MiB above the live size, which the bodies of about a
/// hundred requests reach.
const UNCOLLECTED_MIB: usize = 16;

/// Smallest limit of an isolate's heap, and of its buffers: V8 cannot collect later than halfway to
/// its limit. The worker's total limit leaves room for it.
pub(super) const LEAST_HEAP_BYTES: usize = 2 * UNCOLLECTED_MIB * MIB;

/// Heap that is granted once beyond the limit, so that the running code can be stopped and the
/// process need not end.
const HEADROOM_BYTES: usize = 8 * MIB;

/// Memory that a worker may occupy beyond its function's heap limit: V8's own growth, buffers,
/// WebAssembly memories. The supervisor adds the same amount for the cgroup, so that a function
/// dies on every node at the same limit.
pub(crate) const OVERHEAD_BYTES: usize = casemate_wire::control::WORKER_OVERHEAD_MIB as usize * MIB;

/// Longest content of /proc/self/statm: seven numbers of 20 digits.
const STATM_BYTES: usize = 7 * 21;

/// /proc/self/statm, opened before the root was emptied.
static STATM: OnceLock<File> = OnceLock::new();

/// Flags of V8: it works on the isolate's own thread alone, and collects less often.
pub(super) fn flags() -> String {
    format!("--single-threaded --initial-old-space-size={UNCOLLECTED_MIB}")
}

/// Opens the file that [`occupied`] reads. Call it while files can be opened.
///
/// # Errors
/// There is no /proc.
pub(crate) fn prepare() -> io::Result<()> {
    let statm = File::open("/proc/self/statm")?;
    STATM.get_or_init(|| statm);
    Ok(())
}

/// Private memory of this process in bytes, without the pages of the program's file, which all
/// workers share.
pub(super) fn occupied() -> usize {
    let mut text = [0; STATM_BYTES];
    let read = STATM.get().map(|statm| statm.read_at(&mut text, 0));
    let Some(Ok(length)) = read else {
        // The kernel provides the file as long as the process lives; on a failure the other limits
        // still hold.
        return 0;
    };
    // SAFETY: takes a number; the C library has had the answer since the start.
    let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0);
    own_pages(&text[..length]).saturating_mul(page_bytes)
}

/// Resident pages without shared ones: the second number and the third of statm.
fn own_pages(statm: &[u8]) -> usize {
    let mut numbers = statm
        .split(|byte| *byte == b' ')
        .map(|number| std::str::from_utf8(number).ok()?.parse::<usize>().ok());
    let (resident, shared) = (numbers.nth(1).flatten(), numbers.next().flatten());
    resident.unwrap_or(0).saturating_sub(shared.unwrap_or(0))
}

/// The count of bytes in array buffers, and its limit.
pub(crate) struct Buffers {
    used_bytes: AtomicUsize,
    limit_bytes: AtomicUsize,
    /// The last request was refused. V8 then tries to free memory, and calls the heap's callback
    /// too.
    refused: AtomicBool,
}

/// A process has one isolate, so one count suffices.
pub(crate) static BUFFERS: Buffers = Buffers::new(SPARE_HEAP_BYTES);

/// Bytes that wait to become buffers: their limit equals that of the buffers.
pub(crate) static ARRIVING: Buffers = Buffers::new(SPARE_HEAP_BYTES);

impl Buffers {
    const fn new(limit_bytes: usize) -> Self {
        Self {
            used_bytes: AtomicUsize::new(0),
            limit_bytes: AtomicUsize::new(limit_bytes),
            refused: AtomicBool::new(false),
        }
    }

    pub(crate) fn set_limit(&self, limit_bytes: usize) {
        self.limit_bytes.store(limit_bytes, Ordering::Relaxed);
    }

    /// Whether a buffer of this size would still fit.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.used_bytes.load(Ordering::Relaxed).saturating_add(len)
            <= self.limit_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, len: usize) -> bool {
        let before = self.used_bytes.fetch_add(len, Ordering::Relaxed);
        let fits = before.saturating_add(len) <= self.limit_bytes.load(Ordering::Relaxed);
        if !fits {
            self.give_back(len);
        }
        self.refused.store(!fits, Ordering::Relaxed);
        fits
    }

    pub(super) fn give_back(&self, len: usize) {
        self.used_bytes.fetch_sub(len, Ordering::Relaxed);
    }
}

/// An allocator that refuses memory over the limit; JavaScript sees a `RangeError`.
pub(crate) fn allocator() -> v8::UniqueRef<v8::Allocator> {
    static VTABLE: v8::RustAllocatorVtable<Buffers> = v8::RustAllocatorVtable {
        allocate,
        allocate_uninitialized,
        free,
        drop: keep,
    };
    // SAFETY: the handle is a static, so it outlives the allocator, and the functions below take
    // exactly its type.
    unsafe { v8::new_rust_allocator(&raw const BUFFERS, &VTABLE) }
}

unsafe extern "C" fn allocate(buffers: &Buffers, len: usize) -> *mut c_void {
    if !buffers.take(len) {
        return std::ptr::null_mut();
    }
    // SAFETY: `calloc` takes any size; a size of zero becomes one, so that null means failure.
    let memory = unsafe { libc::calloc(len.max(1), 1) };
    if memory.is_null() {
        buffers.give_back(len);
    }
    memory
}

unsafe extern "C" fn allocate_uninitialized(buffers: &Buffers, len: usize) -> *mut c_void {
    if !buffers.take(len) {
        return std::ptr::null_mut();
    }
    // SAFETY: as for `calloc` above.
    let memory = unsafe { libc::malloc(len.max(1)) };
    if memory.is_null() {
        buffers.give_back(len);
    }
    memory
}

unsafe extern "C" fn free(buffers: &Buffers, memory: *mut c_void, len: usize) {
    buffers.give_back(len);
    // SAFETY: V8 returns exactly the pointer that one of the functions above returned, once.
    unsafe { libc::free(memory) };
}

/// An array buffer's memory that takes these bytes without a copy; `None` over the limit.
pub(super) fn backing_store(bytes: Vec<u8>) -> Option<v8::SharedRef<v8::BackingStore>> {
    if !BUFFERS.take(bytes.capacity()) {
        return None;
    }
    let mut bytes = Box::new(bytes);
    let (data, len) = (bytes.as_mut_ptr(), bytes.len());
    let bytes = Box::into_raw(bytes);
    // SAFETY: the memory has this length and stays in place until `free_bytes` drops its owner,
    // which V8 calls once, when the buffer has no reference any more. This V8 has no sandbox in
    // which the memory would have to lie.
    let store = unsafe {
        v8::ArrayBuffer::new_backing_store_from_ptr(data.cast(), len, free_bytes, bytes.cast())
    };
    Some(store.make_shared())
}

unsafe extern "C" fn free_bytes(_: *mut c_void, _: usize, bytes: *mut c_void) {
    // SAFETY: `bytes` comes from `Box::into_raw` in `backing_store`, and this is called once for
    // it.
    let bytes = unsafe { Box::from_raw(bytes.cast::<Vec<u8>>()) };
    BUFFERS.give_back(bytes.capacity());
}

/// The handle is a static: nothing to drop.
unsafe extern "C" fn keep(_: *const Buffers) {}

/// Enforces the function's limit. At the limit the running code is stopped; beyond the headroom,
/// the process reports the reason and ends.
pub(crate) fn limit_heap(runtime: &mut JsRuntime, limit_bytes: usize, watch: &'static Watch) {
    let isolate = runtime.v8_isolate().thread_safe_handle();
    let mut stopped = false;
    let callback = move |current_bytes: usize, _initial_bytes: usize| {
        if BUFFERS.refused.swap(false, Ordering::Relaxed) {
            // The heap is not full: a buffer was refused, and the function gets an error.
            return current_bytes;
        }
        if current_bytes < limit_bytes {
            return limit_bytes;
        }
        if stopped {
            last_words::speak(Failure::ExceededMemory);
        }
        stopped = true;
        watch.stop(Failure::ExceededMemory);
        isolate.terminate_execution();
        current_bytes + HEADROOM_BYTES
    };
    runtime.add_near_heap_limit_callback(callback.clone());
    if limit_bytes < SPARE_HEAP_BYTES {
        // V8 lowers a limit only while removing a callback.
        runtime.remove_near_heap_limit_callback(limit_bytes);
        runtime.add_near_heap_limit_callback(callback);
    }
}

/// V8 has no memory left for an allocation that cannot fail.
pub(crate) unsafe extern "C" fn out_of_memory(_: *const std::ffi::c_char, _: &v8::OomDetails) {
    last_words::speak(Failure::ExceededMemory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_is_occupied() {
        assert_eq!(own_pages(b"9000 500 200 10 0 300 0\n"), 300);
        assert_eq!(own_pages(b"9000 500"), 500);
        assert_eq!(own_pages(b""), 0);
        prepare().unwrap();
        let before = occupied();
        let touched = vec![1_u8; 64 * MIB];
        assert!(occupied() >= before + 32 * MIB, "{before}");
        drop(std::hint::black_box(touched));
    }

    #[test]
    fn buffers_over_the_limit_are_refused_and_leave_no_trace() {
        let buffers = Buffers::new(1000);
        assert!(buffers.take(600));
        assert!(!buffers.take(401));
        assert!(!buffers.take(usize::MAX), "and the count does not wrap");
        assert!(buffers.has_room(400) && !buffers.has_room(401) && !buffers.has_room(usize::MAX));
        assert!(buffers.take(400));
        buffers.give_back(1000);
        assert!(buffers.has_room(1000));
    }
}
