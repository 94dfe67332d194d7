//! The budget of records about one function: its requests, and its workers' log lines. For these it
//! backs up the worker's own budget, which a taken-over worker ignores.

use casemate_wire::TokenBucket;

/// Records at once, and a second over a long time: twice the budget of a worker's console lines,
/// because failed requests are recorded too.
const BURST_RECORDS: u64 = 2000;
const RECORDS_PER_SEC: u64 = 400;
/// Bytes of text at once, and a second over a long time; few functions need more than a thousand
/// bytes a record for long.
const BURST_BYTES: u64 = 4 * 1024 * 1024;
const BYTES_PER_SEC: u64 = 512 * 1024;

/// The budgets of records and of bytes.
#[derive(Debug)]
pub struct Budget {
    records: TokenBucket,
    bytes: TokenBucket,
    dropped: u32,
}

impl Budget {
    /// Makes full budgets, at this time of a monotonic clock, milliseconds.
    pub fn new(now_ms: u64) -> Self {
        Self {
            records: TokenBucket::new(BURST_RECORDS, RECORDS_PER_SEC, now_ms),
            bytes: TokenBucket::new(BURST_BYTES, BYTES_PER_SEC, now_ms),
            dropped: 0,
        }
    }

    /// Takes a record of `bytes` bytes out of the budgets; returns how many records were dropped
    /// before it, or `None` when this one is dropped too.
    pub fn spend(&mut self, bytes: usize, now_ms: u64) -> Option<u32> {
        if !(self.records.holds(1, now_ms) && self.bytes.take(bytes as u64, now_ms)) {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        self.records.take(1, now_ms);
        Some(self.take_dropped())
    }

    /// Takes the number of dropped records that were not reported yet.
    pub fn take_dropped(&mut self) -> u32 {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_records_is_dropped_and_counted_then_they_come_back() {
        let mut budget = Budget::new(7);
        let kept = (0..5000).filter(|_| budget.spend(10, 7).is_some()).count();
        assert_eq!(kept, 2000);
        assert_eq!(budget.spend(10, 1007), Some(3000));
        let kept = (0..5000)
            .filter(|_| budget.spend(10, 1007).is_some())
            .count();
        assert_eq!(kept, 399);
    }

    #[test]
    fn a_few_large_records_use_it_up_too_and_leave_room_for_small_ones() {
        let mut budget = Budget::new(0);
        let large = 30 * 1024;
        let kept = (0..500)
            .filter(|_| budget.spend(large, 0).is_some())
            .count();
        assert_eq!(kept, 4 * 1024 / 30);
        assert_eq!(budget.spend(100, 0), Some(500 - kept as u32));
        assert_eq!(budget.spend(large, 0), None);
    }
}
