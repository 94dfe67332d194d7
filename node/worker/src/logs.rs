//! The budget of console lines: a function that logs faster loses lines, and its log shows how
//! many.

use std::time::Instant;

use casemate_wire::TokenBucket;
use casemate_wire::control::worker::{FromWorker, Log, LogLevel};

use crate::state::State;

/// Longest line, in bytes; the rest is cut.
const MAX_LINE_BYTES: usize = 16 * 1024;
/// Most lines at once.
const BURST_LINES: u64 = 1000;
/// Lines a second over a long time.
const LINES_PER_SEC: u64 = 200;
/// The end of a line that was cut.
const CUT: &str = "... (cut)";

/// The budget of lines.
#[derive(Debug)]
pub(crate) struct Logs {
    lines: TokenBucket,
    started: Instant,
    dropped: u32,
}

impl Logs {
    /// Makes a full budget.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            lines: TokenBucket::new(BURST_LINES, LINES_PER_SEC, 0),
            started: now,
            dropped: 0,
        }
    }

    /// The line to send, or `None` when the budget is used up.
    pub(crate) fn line(
        &mut self,
        now: Instant,
        request: Option<String>,
        level: u8,
        message: &str,
    ) -> Option<Log> {
        let since_start = now.saturating_duration_since(self.started);
        let now_ms = u64::try_from(since_start.as_millis()).unwrap_or(u64::MAX);
        if !self.lines.take(1, now_ms) {
            self.lost();
            return None;
        }
        let level = match level {
            0 => LogLevel::Debug,
            1 => LogLevel::Info,
            2 => LogLevel::Warn,
            _ => LogLevel::Error,
        };
        Some(Log {
            request,
            level,
            message: cut(message),
            dropped: std::mem::take(&mut self.dropped),
        })
    }

    /// A line could not be sent.
    pub(crate) fn lost(&mut self) {
        self.dropped = self.dropped.saturating_add(1);
    }
}

impl State {
    /// Sends a line of the log, as far as budget and queue allow.
    pub(crate) fn say(&mut self, request: Option<String>, level: u8, message: &str) {
        let line = self.logs.line(Instant::now(), request, level, message);
        if let Some(line) = line
            && self.outbox.try_send(FromWorker::Log(line)).is_err()
        {
            self.logs.lost();
        }
    }
}

/// At most [`MAX_LINE_BYTES`] of `text`, cut between characters.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= MAX_LINE_BYTES {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(MAX_LINE_BYTES - CUT.len());
    format!("{}{CUT}", &text[..end])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_dropped_and_counted_then_lines_come_back() {
        let start = Instant::now();
        let mut logs = Logs::new(start);
        let sent = (0..5000)
            .filter(|_| logs.line(start, None, 1, "x").is_some())
            .count();
        assert_eq!(sent, 1000);
        let later = start + Duration::from_secs(1);
        let line = logs.line(later, Some("r".into()), 3, "y").unwrap();
        assert_eq!((line.dropped, line.level), (4000, LogLevel::Error));
        assert_eq!(logs.line(later, None, 1, "z").unwrap().dropped, 0);
        let more = (0..5000)
            .filter(|_| logs.line(later, None, 1, "x").is_some())
            .count();
        assert_eq!(more, 198);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let line = cut(&"ä".repeat(20_000));
        assert!(line.len() <= MAX_LINE_BYTES && line.ends_with(CUT));
        assert_eq!(cut("short"), "short");
    }
}
