//! Pauses before a node reconnects: short after a short loss, longer after repeated ones, and
//! random, so that a fleet does not reconnect all at once.

use std::time::Duration;

/// First pause.
const MIN: Duration = Duration::from_millis(200);
/// Longest pause.
const MAX: Duration = Duration::from_secs(15);

/// The pauses of one node.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { pause: MIN }
    }
}

impl Backoff {
    /// The node was served: the next loss starts with the first pause again.
    pub fn reset(&mut self) {
        self.pause = MIN;
    }

    /// The next pause: between half of the present one and all of it, by a random byte; then it
    /// doubles.
    pub fn next(&mut self, random: u8) -> Duration {
        let pause = self.pause / 2 + self.pause * u32::from(random) / 510;
        self.pause = (self.pause * 2).min(MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_differ() {
        let mut backoff = Backoff::default();
        let ms = |pause: Duration| pause.as_millis();
        assert_eq!(ms(backoff.next(0)), 100);
        assert_eq!(ms(backoff.next(255)), 400);
        let longest = (0..20).map(|_| backoff.next(255)).max();
        assert_eq!(longest, Some(MAX));
        assert_eq!(backoff.next(0), MAX / 2);
        backoff.reset();
        assert_eq!(ms(backoff.next(255)), 200);
    }
}
