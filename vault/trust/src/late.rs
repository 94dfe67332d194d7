//! Expiry, or a date in the future, reported with both times, so that a wrong clock is recognised.

use std::fmt;

use crate::Seconds;

/// Seconds of a day.
const DAY: Seconds = 24 * 60 * 60;
/// The last second of the last year with four digits.
const LAST: Seconds = 253_402_300_799;

/// A statement that had expired when it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// When it expired.
    pub expires: Seconds,
    /// The time by the clock.
    pub clock: Seconds,
}

impl fmt::Display for Late {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expires, clock) = (utc(self.expires), utc(self.clock));
        write!(
            to,
            "it held until {expires}, and the clock here shows {clock}"
        )
    }
}

/// A statement that is dated in the future.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Early {
    /// The date of its signature.
    pub issued: Seconds,
    /// The time by the clock.
    pub clock: Seconds,
}

impl fmt::Display for Early {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (issued, clock) = (utc(self.issued), utc(self.clock));
        write!(to, "it is dated {issued}, and the clock here shows {clock}")
    }
}

/// A time in UTC for people, by the proleptic Gregorian calendar.
pub fn utc(time: Seconds) -> String {
    if time > LAST {
        return "after the year 9999".to_owned();
    }
    let (days, second) = (time / DAY, time % DAY);
    // Years begin in March, so that the leap day is the last day; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second % 3600 / 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_match_the_calendar() {
        for (time, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (68_169_599, "1972-02-28 23:59 UTC"),
            (68_169_600, "1972-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_800_000_000, "2027-01-15 08:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
            (LAST, "9999-12-31 23:59 UTC"),
            (u64::MAX, "after the year 9999"),
        ] {
            assert_eq!(utc(time), text, "{time}");
        }
    }

    #[test]
    fn both_times_are_reported() {
        let (expires, clock) = (1_800_000_000, 1_800_086_400);
        let late = Late { expires, clock }.to_string();
        assert!(late.contains("2027-01-15 08:00 UTC") && late.contains("2027-01-16 08:00 UTC"));
        let early = Early {
            issued: clock,
            clock: expires,
        }
        .to_string();
        assert!(early.contains("dated 2027-01-16 08:00 UTC"), "{early}");
    }
}
