//! The budget of records about one function: its requests, and its workers' log lines. For these it
//! backs up the worker's own budget, which a taken-over worker ignores.

/// Records at once, and a second over a long time: twice the budget of a worker's console lines,
/// because failed requests are recorded too.
const BURST_RECORDS: f64 = 2000.0;
const RECORDS_PER_SEC: f64 = 400.0;
/// Bytes of text at once, and a second over a long time; few functions need more than a thousand
/// bytes a record for long.
const BURST_BYTES: f64 = 4.0 * 1024.0 * 1024.0;
const BYTES_PER_SEC: f64 = 512.0 * 1024.0;

/// Two token buckets, of records and of bytes.
#[derive(Debug)]
pub struct Budget {
    records: f64,
    bytes: f64,
    filled_ms: u64,
    dropped: u32,
}

impl Budget {
    /// Makes full buckets, at this time of a monotonic clock, milliseconds.
    pub fn new(now_ms: u64) -> Self {
        Self {
            records: BURST_RECORDS,
            bytes: BURST_BYTES,
            filled_ms: now_ms,
            dropped: 0,
        }
    }

    /// Takes a record of so many bytes out of the budget; returns how many records were dropped
    /// before it, or `None` when this one is dropped too.
    pub fn spend(&mut self, bytes: usize, now_ms: u64) -> Option<u32> {
        let secs = now_ms.saturating_sub(self.filled_ms) as f64 / 1000.0;
        self.filled_ms = now_ms;
        self.records = secs
            .mul_add(RECORDS_PER_SEC, self.records)
            .min(BURST_RECORDS);
        self.bytes = secs.mul_add(BYTES_PER_SEC, self.bytes).min(BURST_BYTES);
        let bytes = bytes as f64;
        if self.records < 1.0 || self.bytes < bytes {
            self.dropped = self.dropped.saturating_add(1);
            return None;
        }
        (self.records, self.bytes) = (self.records - 1.0, self.bytes - bytes);
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
