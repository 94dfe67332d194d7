//! How the descriptors of the process are shared out between calls and idle connections.

use super::upstream::{MAX_IDLE, MAX_POOLS};

/// Most calls at a time, if there are enough descriptors.
pub(super) const MAX_CALLS: usize = 700;
/// Descriptors of a call: its connection, and before that a resolver's socket.
const DESCRIPTORS_OF_A_CALL: usize = 2;

// There is always a pool that no call uses.
const _: () = assert!(MAX_POOLS > MAX_CALLS);

/// How the descriptors of the process are divided: a quarter for calls, half for idle connections,
/// and a quarter for workers' channels and everything else. So a vault with few descriptors makes
/// fewer calls, and none fails for lack of descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Most calls at a time.
    pub(super) calls: usize,
    /// Most idle connections in each pool; with none, every call dials.
    pub(super) idle: usize,
}

impl Capacity {
    /// What fits into so many descriptors.
    pub(super) fn within(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Self {
            calls: (descriptors / 4 / DESCRIPTORS_OF_A_CALL).clamp(1, MAX_CALLS),
            idle: (descriptors / 2 / MAX_POOLS).min(MAX_IDLE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_waiting_connections_leave_a_quarter_of_the_descriptors_to_the_rest() {
        let all = Capacity {
            calls: MAX_CALLS,
            idle: MAX_IDLE,
        };
        assert_eq!(
            Capacity::within(65_536),
            all,
            "more descriptors than the maximum change nothing"
        );
        assert_eq!(Capacity::within(u64::MAX), all);
        assert_eq!(
            Capacity::within(1024),
            Capacity {
                calls: 128,
                idle: 0
            }
        );
        assert_eq!(Capacity::within(0).calls, 1);
        for limit in 8..100_000 {
            let Capacity { calls, idle } = Capacity::within(limit as u64);
            assert!(calls > 0 && calls * DESCRIPTORS_OF_A_CALL + idle * MAX_POOLS <= limit * 3 / 4);
        }
    }
}
