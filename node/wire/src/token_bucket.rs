//! Limits how often something may happen. Time comes in as milliseconds of a monotonic clock, so
//! that protocol and state machines stay without a clock.

/// Parts of a token: the bucket counts thousandths.
const PARTS: u64 = 1000;

/// A bucket of tokens: `burst` at once, then `per_sec`. The counter of events owns it, and takes
/// tokens before each event.
#[derive(Debug, Clone, Copy)]
pub struct TokenBucket {
    burst: u64,
    per_sec: u64,
    /// Available tokens in thousandths: a rate of one token a second adds one part each
    /// millisecond.
    left: u64,
    filled_ms: u64,
}

impl TokenBucket {
    /// Makes a full bucket; `now_ms` is the present time.
    pub const fn new(burst: u64, per_sec: u64, now_ms: u64) -> Self {
        Self {
            burst,
            per_sec,
            left: burst.saturating_mul(PARTS),
            filled_ms: now_ms,
        }
    }

    /// Fills the bucket up to this time; returns whether it holds at least `tokens`.
    pub fn holds(&mut self, tokens: u64, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.filled_ms);
        self.filled_ms = self.filled_ms.max(now_ms);
        self.fill(passed.saturating_mul(self.per_sec));
        self.left >= tokens.saturating_mul(PARTS)
    }

    /// Takes `tokens` tokens, or none if the bucket holds fewer; returns whether it took them.
    pub fn take(&mut self, tokens: u64, now_ms: u64) -> bool {
        let holds = self.holds(tokens, now_ms);
        if holds {
            self.left -= tokens.saturating_mul(PARTS);
        }
        holds
    }

    /// Adds tokens that were not earned by the passage of time, up to a full bucket.
    pub fn add(&mut self, tokens: u64) {
        self.fill(tokens.saturating_mul(PARTS));
    }

    fn fill(&mut self, parts: u64) {
        let full = self.burst.saturating_mul(PARTS);
        self.left = self.left.saturating_add(parts).min(full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(bucket: &mut TokenBucket, now_ms: u64) -> usize {
        (0..1000).take_while(|_| bucket.take(1, now_ms)).count()
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(20, 4, 7);
        assert_eq!(taken(&mut bucket, 7), 20);
        for at_ms in 8..257 {
            assert!(!bucket.take(1, at_ms), "{at_ms}");
        }
        assert!(bucket.take(1, 257));
        assert_eq!(taken(&mut bucket, 1257), 4);
        assert_eq!(taken(&mut bucket, u64::MAX), 20);
    }

    #[test]
    fn tokens_are_taken_all_or_none_and_earned() {
        let mut bucket = TokenBucket::new(20, 1, 0);
        assert!(!bucket.take(21, 0) && bucket.take(15, 0) && !bucket.take(6, 0));
        assert!(bucket.holds(5, 0));
        bucket.add(3);
        assert_eq!(taken(&mut bucket, 0), 8);
        bucket.add(u64::MAX);
        assert_eq!(taken(&mut bucket, 0), 20);
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut bucket = TokenBucket::new(1, 1, 5000);
        assert!(bucket.take(1, 5000));
        assert!(!bucket.take(1, 4000) && !bucket.take(1, 5999) && bucket.take(1, 6000));
    }
}
