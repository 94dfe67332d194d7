//! Canonical paths, and the patterns of rules for paths.
//!
//! A rule for paths works only if it agrees with the program behind it about which path a text
//! names. Some programs decode `%2f`, resolve `..`, merge `//`, cut off what follows `;` or treat
//! `\` as `/`, and some do that twice. A [`CanonicalPath`] is a path that all of them read in the
//! same way. A [`PathPattern`] matches nothing else, so the perimeter of a function and the rules
//! for its outgoing calls cannot differ.
//!
//! Two spellings that are equivalent by RFC 3986 (section 6.2.2) have one canonical form: escapes
//! of unreserved characters are decoded, and the digits of other escapes are upper case. A path
//! with more than one reading is refused.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest path pattern, bytes.
pub const MAX_PATTERN_BYTES: usize = 1024;
/// Characters of a refused text that an error shows.
const EXCERPT_CHARS: usize = 60;

/// A path that programs may read in different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the path has more than one reading: expected `/`, segments other than `.` and `..`, no empty segment but the last, \
     no `;` and `\\`, and no escape of `/`, `\\`, `%`, `;`, a control character or bytes that are no UTF-8"
)]
pub struct AmbiguousPath;

/// The text is not a path pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a canonical path such as `/v1/charges` or a prefix such as `/v1/*`, got {0:?}")]
pub struct PatternError(String);

/// A path without query that every program reads in the same way, in its one canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

/// `/a/b` (exactly that path) or `/a/*` (every path that begins with `/a/`). `/*` is every path.
/// The text is canonical.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPattern(String);

impl<'a> CanonicalPath<'a> {
    /// The canonical form of a path.
    ///
    /// # Errors
    /// The path has more than one reading, or is invalid.
    pub fn new(path: &'a str) -> Result<Self, AmbiguousPath> {
        let rest = path.strip_prefix('/').ok_or(AmbiguousPath)?;
        let canonical = if path.contains('%') {
            Cow::Owned(decode_unreserved(path)?)
        } else if path.bytes().all(|byte| byte == b'/' || is_plain(byte)) {
            Cow::Borrowed(path)
        } else {
            return Err(AmbiguousPath);
        };
        // After decoding, because an encoded dot is a dot.
        let rest = canonical.get(1..).unwrap_or(rest);
        let mut segments = rest.split('/').peekable();
        while let Some(segment) = segments.next() {
            let is_last = segments.peek().is_none();
            if matches!(segment, "." | "..") || segment.is_empty() && !is_last {
                return Err(AmbiguousPath);
            }
        }
        Ok(Self(canonical))
    }

    /// The canonical spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Decodes the escapes of unreserved characters and writes the others with upper-case digits.
fn decode_unreserved(path: &str) -> Result<String, AmbiguousPath> {
    let mut out = String::with_capacity(path.len());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            if *first != b'/' && !is_plain(*first) {
                return Err(AmbiguousPath);
            }
            out.push(char::from(*first));
            decoded.push(*first);
            continue;
        }
        let [high, low, after @ ..] = after else {
            return Err(AmbiguousPath);
        };
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = digit(*high).zip(digit(*low)).ok_or(AmbiguousPath)?;
        rest = after;
        decoded.push((high << 4 | low) as u8);
        match (high << 4 | low) as u8 {
            // A program that decodes it finds another path; a program that decodes twice may find
            // any path.
            b'/' | b'\\' | b'%' | b';' | 0..=0x1f | 0x7f => return Err(AmbiguousPath),
            byte if is_unreserved(byte) => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    // Lax decoders find dots and slashes in invalid UTF-8, such as `%c0%ae`.
    std::str::from_utf8(&decoded).map_err(|_| AmbiguousPath)?;
    Ok(out)
}

/// RFC 3986, section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// Characters of a path segment that stand for themselves (RFC 3986, section 3.3), without the `;`
/// of parameters.
fn is_plain(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,=:@".contains(&byte)
}

impl PathPattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this path matches.
    pub fn matches(&self, path: &CanonicalPath<'_>) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => path.as_str().starts_with(prefix),
            None => self.0 == path.as_str(),
        }
    }

    /// Whether every path that `other` matches also matches this pattern.
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
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let path = text.strip_suffix('*').unwrap_or(text);
        let wildcard_after_slash = path.len() == text.len() || path.ends_with('/');
        let is_canonical = CanonicalPath::new(path).is_ok_and(|it| it.as_str() == path);
        let fits = text.len() <= MAX_PATTERN_BYTES && !path.contains('*');
        if fits && wildcard_after_slash && is_canonical {
            Ok(Self(text.to_owned()))
        } else {
            Err(PatternError(text.chars().take(EXCERPT_CHARS).collect()))
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl Serialize for PathPattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PathPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Paths with the verdict of a rule for `/v1/*`: the table that the perimeter and the rules for
/// outgoing calls must both follow.
pub const TABLE: &[(&str, Verdict)] = &[
    ("/v1/", Verdict::Matches),
    ("/v1/charges", Verdict::Matches),
    ("/v1/a/", Verdict::Matches),
    ("/v1/...", Verdict::Matches),
    ("/v1/..a", Verdict::Matches),
    ("/v1/.well-known", Verdict::Matches),
    ("/v1/%E4%B8%AD", Verdict::Matches),
    ("/v1/%e4%b8%ad", Verdict::Matches),
    ("/v1/a%20b", Verdict::Matches),
    ("/v1/me%40a.test", Verdict::Matches),
    ("/v1/%2B49", Verdict::Matches),
    ("/v1/%78", Verdict::Matches),
    ("/%76%31/x", Verdict::Matches),
    ("/v1/a*b", Verdict::Matches),
    ("/v1", Verdict::Other),
    ("/v10/x", Verdict::Other),
    ("/V1/x", Verdict::Other),
    ("/private", Verdict::Other),
    ("/", Verdict::Other),
    ("/v1/../private", Verdict::Ambiguous),
    ("/v1/..", Verdict::Ambiguous),
    ("/v1/./x", Verdict::Ambiguous),
    ("/v1/%2e%2e/private", Verdict::Ambiguous),
    ("/v1/.%2E/private", Verdict::Ambiguous),
    ("/v1/..%2fprivate", Verdict::Ambiguous),
    ("/v1/..%5cprivate", Verdict::Ambiguous),
    ("/v1/%2e%2e%2fprivate", Verdict::Ambiguous),
    ("/v1/a%2Fb", Verdict::Ambiguous),
    ("/v1/..;/private", Verdict::Ambiguous),
    ("/v1/..;x=1/private", Verdict::Ambiguous),
    ("/v1/a;x", Verdict::Ambiguous),
    ("/v1/a%3Bx", Verdict::Ambiguous),
    ("/v1/%252e%252e/private", Verdict::Ambiguous),
    ("/v1/%25252e%25252e/private", Verdict::Ambiguous),
    ("/v1/100%25", Verdict::Ambiguous),
    ("/v1//x", Verdict::Ambiguous),
    ("//v1/x", Verdict::Ambiguous),
    ("/v1/%c0%ae%c0%ae/private", Verdict::Ambiguous),
    ("/v1/%ff", Verdict::Ambiguous),
    ("/v1/%00", Verdict::Ambiguous),
    ("/v1/%0d%0a", Verdict::Ambiguous),
    ("/v1/%zz", Verdict::Ambiguous),
    ("/v1/%4", Verdict::Ambiguous),
    ("/v1/%", Verdict::Ambiguous),
];

/// A rule's verdict on a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The rule permits the path.
    Matches,
    /// The path does not match.
    Other,
    /// The path has more than one reading.
    Ambiguous,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> PathPattern {
        text.parse().unwrap()
    }

    #[test]
    fn the_table_holds() {
        for (path, expected) in TABLE {
            let verdict = match CanonicalPath::new(path) {
                Err(AmbiguousPath) => Verdict::Ambiguous,
                Ok(path) if pattern("/v1/*").matches(&path) => Verdict::Matches,
                Ok(_) => Verdict::Other,
            };
            assert_eq!(verdict, *expected, "{path}");
        }
    }

    #[test]
    fn an_invalid_path_is_refused() {
        for path in [
            "", "a", "/a?b", "/a#b", "/a b", "/a\0", "/\u{e9}", "/a\\b", "/a|b", "/a[]",
        ] {
            assert_eq!(CanonicalPath::new(path), Err(AmbiguousPath), "{path}");
        }
        for (path, canonical) in [
            ("/", "/"),
            ("/%7Ex/@y", "/~x/@y"),
            ("/file%2etxt", "/file.txt"),
            ("/%c3%a9%2c", "/%C3%A9%2C"),
        ] {
            assert_eq!(CanonicalPath::new(path).unwrap().as_str(), canonical);
        }
    }

    #[test]
    fn patterns_match_and_cover() {
        let path = CanonicalPath::new("/v1/%63harges").unwrap();
        assert!(pattern("/v1/charges").matches(&path));
        assert!(pattern("/*").covers(&pattern("/v1/*")));
        assert!(!pattern("/v1/*").covers(&pattern("/*")));
        assert!(!pattern("/v1/x").covers(&pattern("/v1/*")));
        for bad in [
            "/v1*", "*", "/a/*/b", "/../*", "/%41", "/%c3%a9", "/a*b", "", "/a;b",
        ] {
            assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
        }
    }

    /// A program that decodes so many times, treats backslashes as slashes, removes parameters,
    /// merges slashes and resolves dot segments.
    fn read_laxly(path: &str, decodings: usize) -> String {
        let mut bytes = path.as_bytes().to_vec();
        for _ in 0..decodings {
            let (mut out, mut rest) = (Vec::new(), bytes.as_slice());
            while let [first, after @ ..] = rest {
                let digit = |at: usize| {
                    after
                        .get(at)
                        .and_then(|byte| char::from(*byte).to_digit(16))
                };
                (rest, _) = match (first, digit(0).zip(digit(1))) {
                    (b'%', Some((high, low))) => (&after[2..], out.push((high * 16 + low) as u8)),
                    _ => (after, out.push(*first)),
                };
            }
            bytes = out;
        }
        let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
        let mut segments: Vec<&str> = Vec::new();
        for segment in text.split('/') {
            match segment.split(';').next().unwrap_or(segment) {
                "" | "." => {}
                ".." => drop(segments.pop()),
                other => segments.push(other),
            }
        }
        format!("/{}", segments.join("/"))
    }

    proptest! {
        /// However a program reads paths, a path that matches a prefix stays below the prefix.
        #[test]
        fn no_reading_leads_out_of_a_prefix(
            path in "/v1/(\\.|%2e|%2E|%25|%2f|%5c|;|/|\\\\|a|%61|%3b|%|2e|x){0,8}",
            decodings in 0usize..4,
        ) {
            if let Ok(canonical) = CanonicalPath::new(&path)
                && pattern("/v1/*").matches(&canonical)
            {
                let read = read_laxly(&path, decodings);
                prop_assert!(read == "/v1" || read.starts_with("/v1/"), "{path} is read as {read}");
                // The canonical form is its own canonical form.
                prop_assert_eq!(CanonicalPath::new(canonical.as_str()).unwrap(), canonical.clone());
            }
        }
    }
}
