//! The host of a request: one reading of `Host`, `:authority` and the absolute form, or none.

use std::borrow::Cow;

/// Longest DNS name, bytes (RFC 1035, section 2.3.4).
const MAX_NAME_BYTES: usize = 253;
/// Longest label, bytes.
const MAX_LABEL_BYTES: usize = 63;

/// The host of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host<'a> {
    /// The name in lower case, without a port or a last dot; an IPv6 address in its brackets.
    pub name: Cow<'a, str>,
    /// The port, as the caller gave it.
    pub port: Option<u16>,
}

/// Why a request has no unambiguous host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The request names no host.
    #[error("expected a Host field, got none")]
    Missing,
    /// The request has several `Host` fields.
    #[error("expected one Host field, got more")]
    Several,
    /// The target names another host.
    #[error("the Host field and the request's target name different hosts")]
    Differs,
    /// The text is not `name` or `name:port`.
    #[error("expected a host name with or without a port")]
    Grammar,
}

impl<'a> Host<'a> {
    /// Parses `name`, `name.` or either with `:port`. User names, percent-encoding, non-ASCII
    /// scripts, zones, and everything else with two readings are refused.
    ///
    /// # Errors
    /// The text is not such a host.
    pub fn parse(authority: &'a str) -> Result<Self, HostError> {
        let (name, port) = split_port(authority)?;
        let port = port.map(parse_port).transpose()?;
        if !is_address_in_brackets(name) {
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.len() > MAX_NAME_BYTES || !name.split('.').all(is_label) {
                return Err(HostError::Grammar);
            }
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        };
        Ok(Self { name, port })
    }

    /// Reads the host of a request: the authority of its target, if it has one (HTTP/2, or the
    /// absolute form), and its `Host` fields. `required`: HTTP/1.1, where the field may not be
    /// missing (RFC 9112, section 3.2).
    ///
    /// # Errors
    /// The request names no host, several, or different ones.
    pub fn of_request(
        target: Option<&'a str>,
        mut fields: impl Iterator<Item = &'a [u8]>,
        required: bool,
    ) -> Result<Self, HostError> {
        let field = fields.next();
        if fields.next().is_some() {
            return Err(HostError::Several);
        }
        let field = field
            .map(|bytes| std::str::from_utf8(bytes).map_err(|_| HostError::Grammar))
            .transpose()?;
        match (target, field) {
            (None, None) => Err(HostError::Missing),
            (Some(_), None) if required => Err(HostError::Missing),
            (Some(one), None) | (None, Some(one)) => Self::parse(one),
            (Some(one), Some(other)) => {
                let (one, other) = (Self::parse(one)?, Self::parse(other)?);
                if one == other {
                    Ok(one)
                } else {
                    Err(HostError::Differs)
                }
            }
        }
    }

    /// Writes `name` or `name:port`, in the form for the worker.
    pub fn write(&self, out: &mut String) {
        use std::fmt::Write as _;
        out.push_str(&self.name);
        if let Some(port) = self.port {
            // Writing to a string does not fail.
            let _ = write!(out, ":{port}");
        }
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), HostError> {
    // An address in brackets contains colons.
    let after_name = match authority.find(']') {
        Some(bracket) => bracket + 1,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (name, rest) = authority
        .split_at_checked(after_name)
        .ok_or(HostError::Grammar)?;
    match rest.strip_prefix(':') {
        Some(port) => Ok((name, Some(port))),
        None if rest.is_empty() => Ok((name, None)),
        None => Err(HostError::Grammar),
    }
}

fn parse_port(text: &str) -> Result<u16, HostError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit())
        && !(text.len() > 1 && text.starts_with('0'));
    if plain {
        text.parse().map_err(|_| HostError::Grammar)
    } else {
        Err(HostError::Grammar)
    }
}

fn is_address_in_brackets(name: &str) -> bool {
    let inside = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    inside.is_some_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Whether a label has only letters, digits and hyphens; underscores are allowed, because some
/// names have them in spite of RFC 1123.
fn is_label(label: &str) -> bool {
    let fits = (1..=MAX_LABEL_BYTES).contains(&label.len());
    fits && label
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Result<(String, Option<u16>), HostError> {
        Host::parse(text).map(|host| (host.name.into_owned(), host.port))
    }

    #[test]
    fn case_last_dot_and_port_do_not_make_another_host() {
        for text in ["a.test", "A.Test", "a.test.", "A.TEST."] {
            assert_eq!(parsed(text), Ok(("a.test".into(), None)), "{text}");
        }
        assert_eq!(parsed("a.test.:8443"), Ok(("a.test".into(), Some(8443))));
        assert_eq!(parsed("[::1]:80"), Ok(("[::1]".into(), Some(80))));
        assert_eq!(parsed("127.0.0.1"), Ok(("127.0.0.1".into(), None)));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let long = format!("{}.test", "a".repeat(64));
        let longer = vec!["abcdefgh"; 30].join(".");
        let texts = [
            "",
            ".",
            "a..b",
            ".a",
            "a.test..",
            "user@a.test",
            "user:pass@a.test",
            "a.test:",
            "a.test:x",
            "a.test:-1",
            "a.test:+80",
            "a.test:080",
            "a.test:65536",
            "a.test:80:80",
            "a.test#",
            "a.test%23",
            "a.test/x",
            "a.test\\x",
            "a b",
            " a.test",
            "a.test ",
            "a.test,b.test",
            "ä.test",
            "[::1",
            "::1",
            "[fe80::1%eth0]",
            "[fe80::1%25eth0]",
            "[::1]x",
            "[::1].",
            "[127.0.0.1]",
            "[]",
            "a\0b",
            "a]b",
            &long,
            &longer,
        ];
        for text in texts {
            assert_eq!(parsed(text), Err(HostError::Grammar), "{text:?}");
        }
    }

    #[test]
    fn two_hosts_no_host_and_another_host_in_the_target_are_refused() {
        let of = |target, fields: &[&'static str], required| {
            Host::of_request(
                target,
                fields.iter().map(|field| field.as_bytes()),
                required,
            )
            .map(|host| host.name.into_owned())
        };
        assert_eq!(of(None, &["a.test"], true), Ok("a.test".into()));
        assert_eq!(of(Some("A.test"), &["a.test"], true), Ok("a.test".into()));
        assert_eq!(of(Some("a.test"), &[], false), Ok("a.test".into()));
        assert_eq!(of(Some("a.test"), &[], true), Err(HostError::Missing));
        assert_eq!(of(None, &[], false), Err(HostError::Missing));
        assert_eq!(
            of(None, &["a.test", "a.test"], true),
            Err(HostError::Several)
        );
        assert_eq!(
            of(Some("b.test"), &["a.test"], true),
            Err(HostError::Differs)
        );
        assert_eq!(
            of(Some("a.test:81"), &["a.test"], true),
            Err(HostError::Differs)
        );
        let host = Host::of_request(None, [&b"a.\xfftest"[..]].into_iter(), true);
        assert_eq!(host, Err(HostError::Grammar));
    }

    proptest! {
        /// A parsed host parses again to itself.
        #[test]
        fn reading_is_stable(text in "[A-Za-z0-9.:@%_\\[\\]/ -]{0,40}|\\PC{0,20}") {
            if let Ok(host) = Host::parse(&text) {
                let mut written = String::new();
                host.write(&mut written);
                let again = Host::parse(&written);
                prop_assert_eq!(again.as_ref(), Ok(&host));
                prop_assert!(!written.bytes().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii_graphic()));
            }
        }
    }
}
