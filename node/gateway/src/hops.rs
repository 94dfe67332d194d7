//! Counts how often a request has passed through Casemate nodes (RFC 8586). Pure.
//!
//! The vault sets `CDN-Loop: casemate; hops=N` on every call that a function makes; functions
//! cannot set it. A call that returns to a function carries the count, and a loop ends after
//! [`MAX_HOPS`].

use http::{HeaderMap, HeaderName};

/// The field of RFC 8586.
const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");
/// Our name in the field.
const OWN_NAME: &[u8] = b"casemate";
/// Hops at which a request is refused: no honest chain of functions is as long.
pub const MAX_HOPS: u8 = 8;

/// The request loops, or our entry in `CDN-Loop` cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loop;

/// The hops of a request; 0 without an entry of ours. Other entries are ignored.
///
/// # Errors
/// [`MAX_HOPS`] or more, or a malformed entry of ours.
pub fn count(fields: &HeaderMap) -> Result<u8, Loop> {
    let mut most = 0;
    for value in fields.get_all(CDN_LOOP) {
        // A comma in another product's quoted text can only make our count too high, never too low.
        for entry in value.as_bytes().split(|byte| *byte == b',') {
            let mut parts = entry.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            if !parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case(OWN_NAME))
            {
                continue;
            }
            let (Some(hops), None) = (parts.next().and_then(hops), parts.next()) else {
                return Err(Loop);
            };
            most = most.max(hops);
        }
    }
    if most < MAX_HOPS { Ok(most) } else { Err(Loop) }
}

/// The digit in `hops=N`. A number of more digits is over the limit and counts as malformed.
fn hops(parameter: &[u8]) -> Option<u8> {
    match parameter.strip_prefix(b"hops=")? {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        _ => None,
    }
}

/// A count of hops is always written as one digit.
const _: () = assert!(MAX_HOPS <= 10);

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn of(values: &[&'static str]) -> Result<u8, Loop> {
        let fields = values
            .iter()
            .map(|value| (CDN_LOOP, HeaderValue::from_static(value)));
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(name, value);
        }
        count(&map)
    }

    #[test]
    fn own_entries_are_found_among_those_of_others() {
        assert_eq!(of(&[]), Ok(0));
        assert_eq!(of(&["other.example; hops=99", "x, y;z=\"a\""]), Ok(0));
        assert_eq!(of(&["casemate; hops=3"]), Ok(3));
        assert_eq!(of(&["other, Casemate;hops=7 , more"]), Ok(7));
        assert_eq!(of(&["casemate; hops=2", "casemate; hops=5"]), Ok(5));
        assert_eq!(of(&["casemate; hops=0"]), Ok(0));
        assert_eq!(of(&["casemate.example; hops=9"]), Ok(0));
    }

    #[test]
    fn too_many_hops_and_malformed_entries_are_a_loop() {
        for value in [
            "casemate; hops=8",
            "casemate; hops=999",
            "other, casemate; hops=8",
            "other; a=\", casemate; hops=9\"",
            "casemate",
            "casemate;",
            "casemate; hops",
            "casemate; hops=",
            "casemate; hops=-1",
            "casemate; hops=+1",
            "casemate; hops=1x",
            "casemate; hops=4294967296",
            "casemate; hops=1; hops=2",
            "casemate; x=1; hops=1",
            "casemate; hops = 1",
            "casemate; hops=\"1\"",
        ] {
            assert_eq!(of(&[value]), Err(Loop), "{value}");
        }
    }
}
