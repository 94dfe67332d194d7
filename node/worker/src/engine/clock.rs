//! The clock that the function sees. It stands still while code runs and advances when the program
//! delivers an event, so that code can time neither itself nor, through a shared cache, its
//! neighbours.
//!
//! V8 gets the time from `gettimeofday` alone: `Date`, `Intl` and `Temporal` all call it. So this
//! program defines `gettimeofday` itself, and the linker prefers that to the C library's. Rust's
//! own clocks use `clock_gettime` and are not affected.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MICROS_PER_SEC: u64 = 1_000_000;

/// Microseconds since the Unix epoch, floored to milliseconds; 0 until [`advance`] was called.
static WALL_US: AtomicU64 = AtomicU64::new(0);
/// Microseconds since the first [`advance`], floored likewise.
static SINCE_START_US: AtomicU64 = AtomicU64::new(0);
static START: OnceLock<Instant> = OnceLock::new();

/// Sets the visible clock to the real one.
pub(crate) fn advance() {
    let since_start = START.get_or_init(Instant::now).elapsed();
    SINCE_START_US.store(micros(since_start), Ordering::Relaxed);
    WALL_US.store(real_us(), Ordering::Relaxed);
}

/// The visible time: microseconds since the Unix epoch and since the start.
pub(crate) fn shown() -> (u64, u64) {
    (
        WALL_US.load(Ordering::Relaxed),
        SINCE_START_US.load(Ordering::Relaxed),
    )
}

fn real_us() -> u64 {
    micros(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO),
    )
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 1000) * 1000
}

/// The C function of this name; see the module's text. The time zone argument is obsolete and
/// ignored, as Linux does.
///
/// # Safety
/// `time` is null or points to a `timeval` that may be written.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn gettimeofday(
    time: *mut libc::timeval,
    _zone: *mut c_void,
) -> c_int {
    let shown = WALL_US.load(Ordering::Relaxed);
    let now_us = if shown == 0 { real_us() } else { shown };
    if !time.is_null() {
        let value = libc::timeval {
            tv_sec: (now_us / MICROS_PER_SEC) as libc::time_t,
            tv_usec: (now_us % MICROS_PER_SEC) as libc::suseconds_t,
        };
        // SAFETY: not null, and the caller guarantees that it points to a `timeval` that may be
        // written.
        unsafe { time.write(value) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_moves_only_when_told() {
        advance();
        let before = shown();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(shown(), before);
        advance();
        assert!(shown().0 >= before.0 + 5_000 && shown().1 >= before.1 + 5_000);
        assert_eq!(shown().0 % 1000, 0, "the resolution is one millisecond");
    }
}
