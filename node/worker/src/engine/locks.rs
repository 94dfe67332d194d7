//! V8's locks, prepared for the walls.
//!
//! When two threads want one lock for the first time (here: the main thread, which runs code, and
//! the watch, which stops it), the lock counts the processors and asks for their speed, which opens
//! files of /sys, and gives each thread an identity, whose memory it labels by prctl(2). Behind the
//! walls each of these ends the process. So it is done before.

use std::ffi::{c_double, c_int, c_void};

unsafe extern "C" {
    /// `int absl::base_internal::NumCPUs()`, part of V8's library.
    #[link_name = "_ZN4absl13base_internal7NumCPUsEv"]
    safe fn num_cpus() -> c_int;

    /// `double absl::base_internal::NominalCPUFrequency()`, likewise.
    #[link_name = "_ZN4absl13base_internal19NominalCPUFrequencyEv"]
    safe fn nominal_cpu_frequency() -> c_double;

    /// `ThreadIdentity* absl::synchronization_internal::CreateThreadIdentity()`, likewise.
    #[link_name = "_ZN4absl24synchronization_internal20CreateThreadIdentityEv"]
    fn create_thread_identity() -> *mut c_void;
}

/// Prepares the calling thread, which has not used V8 before.
pub(super) fn prepare_thread() {
    num_cpus();
    nominal_cpu_frequency();
    // SAFETY: the thread has not waited for one of these locks, so it has no identity yet that this
    // one would replace.
    unsafe { create_thread_identity() };
}
