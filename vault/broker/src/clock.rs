//! The vault's clocks: Unix time, and the monotonic time since boot.

use std::time::{SystemTime, UNIX_EPOCH};

use casemate_trust::Seconds;
use rustix::time::{ClockId, clock_gettime};

/// Unix time by the machine's clock, which may be wrong; the judge has a floor of its own.
pub(crate) fn unix() -> Seconds {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Milliseconds since boot, suspended time included.
pub(crate) fn boot_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000
        + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The id of this boot; empty where the kernel has none, and then no lease survives a restart.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

/// Unpredictable bytes from the kernel.
pub(crate) fn random(bytes: &mut [u8]) {
    // getrandom(2) blocks until it is seeded and does not fail afterwards; without it the vault
    // must not continue.
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), bytes);
    assert!(filled.is_ok(), "the kernel gives no random bytes");
}
