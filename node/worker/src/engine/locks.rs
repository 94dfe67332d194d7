//! Prepares V8's locks for the sandbox.
//!
//! When two threads first contend for a lock (the main thread, which runs code, and the watch,
//! which stops it), the lock counts the processors and reads their speed, which opens files of
//! /sys, and gives each thread an identity, whose memory it labels by prctl(2). Inside the sandbox
//! each of these would end the process, so it is done before.

use std::ffi::{c_double, c_int, c_void};

unsafe extern "C" {
    /// `int absl::base_internal::NumCPUs()`, part of V8's library.
    #[link_name = "_ZN4absl13base_internal7NumCPUsEv"]
    safe fn num_cpus() -> c_int;

    /// `double absl::base_internal::NominalCPUFrequency()`, part of V8's library.
    #[link_name = "_ZN4absl13base_internal19NominalCPUFrequencyEv"]
    safe fn nominal_cpu_frequency() -> c_double;

    /// `ThreadIdentity* absl::synchronization_internal::CreateThreadIdentity()`, part of V8's
    /// library.
    #[link_name = "_ZN4absl24synchronization_internal20CreateThreadIdentityEv"]
    fn create_thread_identity() -> *mut c_void;
}

/// Prepares the calling thread, which has not used V8 before.
pub(super) fn prepare_thread() {
    num_cpus();
    nominal_cpu_frequency();
    // SAFETY: the thread has never waited for one of these locks, so it has no identity that this
    // one would replace.
    unsafe { create_thread_identity() };
}
