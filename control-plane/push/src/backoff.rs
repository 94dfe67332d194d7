//! Pauses before a node reconnects: short after a short loss, longer after repeated ones, and
//! random, so that a fleet does not reconnect all at once.

use std::time::Duration;

use backon::ExponentialBuilder;

/// The least first pause.
const MIN: Duration = Duration::from_millis(100);
/// Pauses double until this one; jitter adds up to as much again.
const MAX: Duration = Duration::from_millis(7500);

/// The pauses of one node. It builds them anew each time that it was served: the next loss starts
/// with the first pause again.
pub const RECONNECT: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(MIN)
    .with_max_delay(MAX)
    .without_max_times()
    .with_jitter();

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use backon::BackoffBuilder as _;

    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_differ() {
        let nodes = (0..100).map(|seed| RECONNECT.with_jitter_seed(seed).build());
        let pauses: Vec<Vec<Duration>> = nodes.map(|pauses| pauses.take(1000).collect()).collect();
        for of_node in &pauses {
            assert_eq!(of_node.len(), 1000, "pauses never end");
            for (number, pause) in of_node.iter().enumerate() {
                let least = (MIN * (1 << number.min(10))).min(MAX);
                assert!((least..=2 * least).contains(pause), "{number}: {pause:?}");
            }
        }
        let first: BTreeSet<Duration> = pauses.iter().map(|pauses| pauses[0]).collect();
        assert!(first.len() > 50, "{first:?}");
    }
}
