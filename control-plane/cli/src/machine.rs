//! The time and random bytes of the machine; and how times, digests and texts of others are shown
//! to people.

use std::time::{SystemTime, UNIX_EPOCH};

use casemate_trust::Seconds;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Seconds of a day.
pub const DAY: Seconds = 24 * 60 * 60;

/// The time, Unix seconds.
pub fn now() -> Seconds {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

/// Unpredictable bytes.
pub fn random(bytes: &mut [u8]) {
    if SystemRandom::new().fill(bytes).is_err() {
        // Without random bytes every key would be weak: the program must not continue.
        std::process::abort();
    }
}

/// A time for people, in UTC.
pub fn date(time: Seconds) -> String {
    let known = i64::try_from(time)
        .ok()
        .and_then(|time| Timestamp::from_second(time).ok());
    known.map_or_else(
        || "never".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

/// A time with milliseconds for people, in UTC.
pub fn date_ms(time_ms: u64) -> String {
    let known = i64::try_from(time_ms)
        .ok()
        .and_then(|time| Timestamp::from_millisecond(time).ok());
    known.map_or_else(
        || "-".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
    )
}

/// The beginning of a digest, for people.
pub fn short(digest: &impl std::fmt::Display) -> String {
    digest.to_string().chars().take(12).collect()
}

/// Whether a character moves a terminal's cursor, begins an escape sequence, or changes the order
/// in which a line is shown.
pub fn moves_a_terminal(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (c.is_control() && c != '\t')
}

/// A foreign text as one line without control characters.
pub fn printable(text: &str) -> String {
    let shown = |c| if moves_a_terminal(c) { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// A foreign text with its line breaks, without other control characters.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// Whether a text consists of name characters only, as error codes and ids of tokens do.
pub fn is_word(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_utc() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(u64::MAX), "never");
        assert_eq!(date_ms(1500), "1970-01-01 00:00:01.500");
    }

    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\tc\n"), "a\u{fffd}[31mb\tc\u{fffd}");
        assert_eq!(printable_lines("a\r\n\u{9b}2J"), "a\u{fffd}\n\u{fffd}2J");
        assert_eq!(printable("edge\u{202e}1-"), "edge\u{fffd}1-");
        assert_eq!(printable("Grüße, 世界 👋"), "Grüße, 世界 👋");
    }
}
