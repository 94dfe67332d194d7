//! Reads when a certificate expires, which TLS libraries do not expose. Pure.

/// DER tags.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The end of a certificate's validity (RFC 5280, section 4.1), seconds since 1970; `None` where it
/// cannot be read.
pub fn not_after(certificate: &[u8]) -> Option<u64> {
    let (certificate, _) = take(certificate, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if let Some((_, after)) = take(rest, VERSION) {
        rest = after;
    }
    // Skips serial number, signature algorithm and issuer.
    for _ in 0..3 {
        rest = take_any(rest)?.2;
    }
    let (validity, _) = take(rest, SEQUENCE)?;
    let (_, _, end) = take_any(validity)?;
    let (tag, text, _) = take_any(end)?;
    time(tag, text)
}

fn take(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = take_any(bytes)?;
    (found == tag).then_some((content, rest))
}

/// Reads a tag and its content; returns these and the rest.
fn take_any(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let [tag, length, rest @ ..] = bytes else {
        return None;
    };
    let (length, rest) = match usize::from(*length) {
        short @ ..0x80 => (short, rest),
        long => {
            let digits = long - 0x80;
            if !(1..=4).contains(&digits) {
                return None;
            }
            let (digits, rest) = rest.split_at_checked(digits)?;
            let length = digits
                .iter()
                .fold(0, |length, digit| length << 8 | usize::from(*digit));
            (length, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |from: usize, count: usize| {
        let digits = digits.get(from..from + count)?;
        let text = std::str::from_utf8(digits).ok()?;
        text.parse::<u64>().ok()
    };
    let (year, at) = match tag {
        UTC_TIME => {
            let year = number(0, 2)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, 2)
        }
        GENERALIZED_TIME => (number(0, 4)?, 4),
        _ => return None,
    };
    let (month, day) = (number(at, 2)?, number(at + 2, 2)?);
    let seconds = number(at + 4, 2)? * 3600 + number(at + 6, 2)? * 60 + number(at + 8, 2)?;
    if digits.len() != at + 10 || !(1..=12).contains(&month) || year < 1970 {
        return None;
    }
    // The year begins in March: February, with its leap day, is then the last month.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (month * 153 + 2) / 5 + day;
    // Days from 1 March of the year 0 to 1 January 1970, plus one, because days of the month count
    // from one.
    Some(days.checked_sub(719_469)? * 86_400 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        let key = rcgen::KeyPair::generate().unwrap();
        for (year, month, day, seconds) in [
            (2027, 1, 31, 1_801_353_600),
            (2028, 2, 29, 1_835_395_200),
            (2049, 12, 31, 2_524_521_600),
            (2050, 1, 1, 2_524_608_000),
            (2400, 3, 1, 13_574_649_600),
        ] {
            let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, month, day);
            let made = params.self_signed(&key).unwrap();
            assert_eq!(not_after(made.der()), Some(seconds), "{year}-{month}-{day}");
            for cut in 0..made.der().len() {
                let _ = not_after(&made.der()[..cut]);
            }
        }
    }

    #[test]
    fn an_invalid_time_is_rejected() {
        let bad = [
            (UTC_TIME, &b"270131000000"[..]),
            (UTC_TIME, b"2701310000Z"),
            (UTC_TIME, b"271331000000Z"),
            (GENERALIZED_TIME, b"+0270131000000Z"),
            (GENERALIZED_TIME, b"20270131000000.5Z"),
            (2, b"270131000000Z"),
        ];
        for (tag, text) in bad {
            assert_eq!(time(tag, text), None, "{text:?}");
        }
        assert_eq!(not_after(b""), None);
        assert_eq!(time(UTC_TIME, b"270131000102Z"), Some(1_801_353_662));
    }
}
