//! Pauses before a node reconnects: short after a short loss, longer after repeated ones, and
//! random, so that a fleet does not reconnect all at once.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// The least first pause.
const MIN: Duration = Duration::from_millis(100);
/// Pauses double until this one; jitter adds up to as much again.
const MAX: Duration = Duration::from_millis(7500);

const RECONNECT: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(MIN)
    .with_max_delay(MAX)
    .without_max_times()
    .with_jitter();

/// The pauses of one node. The connection's owner replaces them each time that the node was served:
/// the next loss starts with the first pause again.
#[derive(Debug)]
pub struct Pauses(ExponentialBackoff);

impl Default for Pauses {
    fn default() -> Self {
        Self(RECONNECT.build())
    }
}

impl Pauses {
    /// The next pause.
    pub fn take(&mut self) -> Duration {
        // The pauses have no end; if they had, the last would be the longest, and never none.
        self.0.next().unwrap_or(2 * MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_differ() {
        assert_eq!(
            RECONNECT.build().take(1000).count(),
            1000,
            "pauses never end"
        );
        let nodes = (0..100).map(|seed| Pauses(RECONNECT.with_jitter_seed(seed).build()));
        let pauses: Vec<Vec<Duration>> = nodes
            .map(|mut pauses| (0..1000).map(|_| pauses.take()).collect())
            .collect();
        for of_node in &pauses {
            for (number, pause) in of_node.iter().enumerate() {
                let least = (MIN * (1 << number.min(10))).min(MAX);
                assert!((least..=2 * least).contains(pause), "{number}: {pause:?}");
            }
        }
        let first: BTreeSet<Duration> = pauses.iter().map(|pauses| pauses[0]).collect();
        assert!(first.len() > 50, "{first:?}");
    }
}
