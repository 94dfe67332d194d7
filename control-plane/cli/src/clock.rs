//! Compares this machine's clock with the control plane's. A wrong clock makes valid statements
//! look expired and dates new ones in the future; the errors that follow name both times.

use casemate_trust::Seconds;

use crate::error::{Code, Error};
use crate::machine::{DAY, date};

/// Largest difference between the two clocks that causes no warning, seconds.
const MAX_SKEW_SECS: u64 = 5 * 60;
/// Largest difference with which statements are signed, seconds. A statement bears this machine's
/// time: a date in the future would make every reader refuse what is signed later with a correct
/// clock.
const MAX_SIGNING_SKEW_SECS: u64 = 60 * 60;

/// The times of both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// This machine's time.
    pub ours: Seconds,
    /// The control plane's time.
    pub theirs: Seconds,
}

impl Clocks {
    /// From the field `date` of an answer (RFC 9110, section 6.6.1); `None` if the field is not a
    /// date.
    pub fn of_answer(field: &str, ours: Seconds) -> Option<Self> {
        let parsed = jiff::fmt::rfc2822::parse(field).ok()?;
        let theirs = Seconds::try_from(parsed.timestamp().as_second()).ok()?;
        Some(Self { ours, theirs })
    }

    /// Both times and their difference, if it is large enough for a warning.
    pub fn differ(&self) -> Option<String> {
        let apart = self.ours.abs_diff(self.theirs);
        if apart <= MAX_SKEW_SECS {
            return None;
        }
        let side = if self.ours > self.theirs {
            "ahead of"
        } else {
            "behind"
        };
        let apart = match apart {
            long if long >= 2 * DAY => format!("{} days", long / DAY),
            long if long >= 2 * 3600 => format!("{} hours", long / 3600),
            short => format!("{} minutes", short / 60),
        };
        Some(format!(
            "the clocks differ: this machine's shows {}, which is {apart} {side} the control \
             plane's, which shows {}",
            date(self.ours),
            date(self.theirs)
        ))
    }

    /// Refuses to sign with a clock that is far off.
    ///
    /// # Errors
    /// The clock is far off.
    pub fn may_sign(&self) -> Result<(), Error> {
        match self.differ() {
            Some(differ) if self.ours.abs_diff(self.theirs) > MAX_SIGNING_SKEW_SECS => {
                Err(Error::new(
                    Code::Refused,
                    "nothing is signed while a clock is wrong: every statement contains the time \
                     of its signature",
                    "set the clock that is wrong, this machine's or the control plane's, and run \
                     the command again",
                )
                .lines([differ]))
            }
            _ => Ok(()),
        }
    }

    /// An error, extended by both times where the clocks may be the cause.
    pub fn explain(clocks: Option<&Self>, error: Error) -> Error {
        match clocks.and_then(Self::differ) {
            Some(differ) if !error.to_text().contains(&differ) => error.lines([differ]),
            _ => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Seconds = 1_800_000_000;

    fn clocks(ahead_secs: i64) -> Clocks {
        let ours = NOW.saturating_add_signed(ahead_secs);
        Clocks::of_answer("Fri, 15 Jan 2027 08:00:00 GMT", ours).unwrap()
    }

    #[test]
    fn minutes_are_tolerated_and_a_difference_of_days_is_shown_and_stops_signing() {
        assert_eq!(clocks(0).theirs, NOW);
        let day = i64::try_from(DAY).unwrap();
        for (ahead_secs, text, signs) in [
            (0, None, true),
            (-300, None, true),
            (300, None, true),
            (30 * 60, Some("30 minutes ahead of"), true),
            (-3 * day, Some("3 days behind"), false),
            (500 * day, Some("500 days ahead of"), false),
        ] {
            let clocks = clocks(ahead_secs);
            let differ = clocks.differ();
            assert_eq!(differ.is_some(), text.is_some(), "{ahead_secs}");
            assert_eq!(clocks.may_sign().is_ok(), signs, "{ahead_secs}");
            let error = Clocks::explain(Some(&clocks), Error::new(Code::Refused, "no", "yes"));
            if let Some(text) = text {
                assert!(error.to_text().contains(text), "{}", error.to_text());
                assert!(error.to_text().contains("2027-01-15 08:00 UTC"));
            }
        }
        assert_eq!(Clocks::of_answer("yesterday", NOW), None);
    }
}
