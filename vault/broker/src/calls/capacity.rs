//! How the descriptors of the process are shared out between calls and idle connections.

use super::upstream::{MAX_IDLE, MAX_POOLS};

/// Calls at a time, when there are descriptors enough.
pub(super) const MAX_CALLS: usize = 700;
/// Descriptors of a call: its connection, and a resolver's socket before that.
const DESCRIPTORS_OF_A_CALL: usize = 2;

// There is always a pool that no call uses.
const _: () = assert!(MAX_POOLS > MAX_CALLS);

/// How the descriptors of the process are shared out: a quarter to calls, half to connections that
/// wait for one, and a quarter to workers' channels and everything else. So a vault that may hold
/// few does less, and fails at nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Calls at a time.
    pub(super) calls: usize,
    /// Connections that wait, in each pool; with none, every call dials.
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
            "the most that is asked for is enough"
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
