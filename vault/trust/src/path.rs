//! Methods and path patterns of egress rules and perimeters.

use std::str::FromStr;

use crate::encoding::parsed_string;
use crate::name::excerpt;

/// Longest path pattern, bytes.
pub const MAX_PATTERN_BYTES: usize = 1024;
/// Longest method, bytes.
pub const MAX_METHOD_BYTES: usize = 24;

/// Why a method or a path pattern was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not a method.
    #[error("expected an HTTP method in upper case such as `GET`, got {0:?}")]
    Method(String),
    /// Not a canonical path or prefix.
    #[error(
        "expected a canonical path such as `/v1/charges` or a prefix such as `/v1/*`, got {0:?}"
    )]
    Pattern(String),
}

/// An HTTP method (RFC 9110, section 9.1), upper case. `CONNECT` and `TRACE` are none of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(String);

/// `/a/b` (exactly that path) or `/a/*` (every path that begins with `/a/`). `/*` is every path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPattern(String);

impl Method {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Method {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let is_token = (1..=MAX_METHOD_BYTES).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if is_token && !matches!(text, "CONNECT" | "TRACE") {
            Ok(Self(text.to_owned()))
        } else {
            Err(PathError::Method(excerpt(text)))
        }
    }
}

impl PathPattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this canonical path (no query) matches.
    pub fn matches(&self, path: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => self.0 == path,
        }
    }

    /// Whether everything that `other` matches is matched by this.
    pub fn covers(&self, other: &Self) -> bool {
        match (self.0.strip_suffix('*'), other.0.strip_suffix('*')) {
            (Some(prefix), Some(narrower)) => narrower.starts_with(prefix),
            (Some(prefix), None) => other.0.starts_with(prefix),
            (None, Some(_)) => false,
            (None, None) => self.0 == other.0,
        }
    }
}

impl FromStr for PathPattern {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let path = text.strip_suffix('*').unwrap_or(text);
        let wildcard_after_slash = path.len() == text.len() || path.ends_with('/');
        if text.len() <= MAX_PATTERN_BYTES && wildcard_after_slash && is_canonical_path(path) {
            Ok(Self(text.to_owned()))
        } else {
            Err(PathError::Pattern(excerpt(text)))
        }
    }
}

parsed_string!(Method);
parsed_string!(PathPattern);

/// A path that no server reads in two ways: it begins with `/`, has no empty, `.` or `..` segment but a last empty
/// one, no `;`, `\`, `*`, `?`, `#`, and no percent-encoding but of bytes that need it, in upper-case hex (RFC 3986,
/// sections 2.1, 2.3 and 6.2.2). Encoded `/`, `\`, `.` and controls are refused.
pub fn is_canonical_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else {
        return false;
    };
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        let empty_inside = segment.is_empty() && !is_last;
        if empty_inside
            || segment == "."
            || segment == ".."
            || !is_canonical_segment(segment.as_bytes())
        {
            return false;
        }
    }
    true
}

fn is_canonical_segment(mut segment: &[u8]) -> bool {
    while let Some((&byte, rest)) = segment.split_first() {
        match byte {
            b'%' => {
                let [high, low, after @ ..] = rest else {
                    return false;
                };
                let (Some(high), Some(low)) = (upper_hex(*high), upper_hex(*low)) else {
                    return false;
                };
                let encoded = high << 4 | low;
                let never = matches!(encoded, b'/' | b'\\' | b'.' | b'%' | b';' | 0..=0x1f | 0x7f);
                if never || is_plain(encoded) {
                    return false;
                }
                segment = after;
            }
            _ if is_plain(byte) => segment = rest,
            _ => return false,
        }
    }
    true
}

/// Characters of a path segment that stand for themselves: unreserved, and the sub-delimiters that no server treats
/// as path parameters.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_servers_read_in_two_ways_are_refused() {
        let bad = [
            "",
            "a",
            "/a/../b",
            "/a/./b",
            "//",
            "/a//b",
            "/%2e%2e/b",
            "/%2E%2E",
            "/a%2fb",
            "/a%2Fb",
            "/a%5Cb",
            "/a\\b",
            "/a;x",
            "/a?b",
            "/a#b",
            "/%41",
            "/%c3%a9",
            "/%",
            "/%4",
            "/%zz",
            "/a b",
            "/a\0",
            "/%00",
            "/%0D%0A",
            "/\u{e9}",
            "/%25",
            "/a*b",
        ];
        for path in bad {
            assert!(!is_canonical_path(path), "{path}");
        }
        for path in [
            "/",
            "/a",
            "/a/",
            "/v1/charges",
            "/%C3%A9",
            "/a%20b",
            "/~x/@y",
            "/..a",
            "/a..b",
            "/...",
        ] {
            assert!(is_canonical_path(path), "{path}");
        }
    }

    #[test]
    fn patterns_match_and_cover() {
        let pattern = |text: &str| text.parse::<PathPattern>().unwrap();
        assert!(pattern("/v1/*").matches("/v1/charges"));
        assert!(!pattern("/v1/*").matches("/v1"));
        assert!(!pattern("/v1/*").matches("/v10/x"));
        assert!(pattern("/*").covers(&pattern("/v1/*")));
        assert!(!pattern("/v1/*").covers(&pattern("/*")));
        assert!(!pattern("/v1/x").covers(&pattern("/v1/*")));
        for bad in ["/v1*", "*", "/a/*/b", "/../*"] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }
}
