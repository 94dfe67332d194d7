//! Host names in statements, rules and routes: lower-case letters, digits and hyphens, A-labels
//! only.

use core::net::IpAddr;
use std::str::FromStr;

use crate::encoding::parsed_string;
use crate::name::{excerpt, is_label};

/// Longest host name in text form, bytes (RFC 1035, section 2.3.4).
pub const MAX_HOST_BYTES: usize = 253;

/// Why a host was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a host name in lower case without port or trailing dot, such as `api.example.com`, got {0:?}"
)]
pub struct HostError(String);

/// A host name such as `api.example.com`, or an IP address in its canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// A host name, or `*.` and a host name, which stands for any name with exactly one more label.
/// Only a `Tenant` statement may contain the latter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern(String);

impl HostName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn label_and_parent(&self) -> (&str, &str) {
        label_and_parent(&self.0)
    }

    /// The address, when the host is one.
    pub fn as_ip(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }
}

impl HostPattern {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first label (`*` for a wildcard), and the rest after its dot, which is empty for a host
    /// without a dot.
    pub(crate) fn label_and_parent(&self) -> (&str, &str) {
        label_and_parent(&self.0)
    }

    /// Whether `host` is this host, or one label below it for a wildcard.
    pub fn covers(&self, host: &HostName) -> bool {
        match self.0.strip_prefix("*.") {
            None => self.0 == host.0,
            Some(parent) => host
                .0
                .split_once('.')
                .is_some_and(|(_, rest)| rest == parent),
        }
    }

    /// Whether some host name is covered by both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let covers =
            |wide: &Self, narrow: &Self| narrow.0.parse().is_ok_and(|name| wide.covers(&name));
        self == other || covers(self, other) || covers(other, self)
    }
}

fn label_and_parent(host: &str) -> (&str, &str) {
    host.split_once('.').unwrap_or((host, ""))
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        // An address is accepted only in its canonical text, so that each address has one spelling.
        let is_address = text
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_string() == text);
        // Browsers treat a host whose last label is a number as IPv4 in an unusual spelling (WHATWG
        // URL, "ends in a number").
        let last_is_number = text
            .rsplit('.')
            .next()
            .is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        let looks_hex = text
            .rsplit('.')
            .next()
            .is_some_and(|label| label.starts_with("0x"));
        let is_name = text.len() <= MAX_HOST_BYTES
            && text.split('.').all(is_label)
            && !last_is_number
            && !looks_hex;
        if is_address || is_name {
            Ok(Self(text.to_owned()))
        } else {
            Err(HostError(excerpt(text)))
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let name = text
            .strip_prefix("*.")
            .unwrap_or(text)
            .parse::<HostName>()?;
        if text.starts_with("*.") && (name.as_ip().is_some() || !name.0.contains('.')) {
            return Err(HostError(excerpt(text)));
        }
        Ok(Self(text.to_owned()))
    }
}

impl From<HostName> for HostPattern {
    fn from(host: HostName) -> Self {
        Self(host.0)
    }
}

parsed_string!(HostName);
parsed_string!(HostPattern);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_spellings_of_a_host_are_refused() {
        let odd = [
            "",
            ".",
            "a..b",
            "a.",
            "A.example",
            "a_b.example",
            "user@host",
            "host:443",
            "a/b",
            "a#b",
            "a%23b",
            "a\\b",
            "b\u{fc}cher.example",
            "0x7f.1",
            "127.1",
            "2130706433",
            "0177.0.0.1",
            "0x7f000001",
            "[::1]",
            "::1%eth0",
            "::ffff:7f00:1",
            "a b",
            "a\r\nb",
            "*.example.com",
            "1.2.3.4.",
            "-a.example",
            "0:0:0:0:0:0:0:1",
        ];
        for host in odd {
            assert!(host.parse::<HostName>().is_err(), "{host}");
        }
        for host in [
            "localhost",
            "api.example.com",
            "xn--bcher-kva.example",
            "127.0.0.1",
            "::1",
            "a.test",
            "1a.example",
        ] {
            assert!(host.parse::<HostName>().is_ok(), "{host}");
        }
    }

    #[test]
    fn patterns_overlap_where_a_host_name_has_two_owners() {
        for (one, other, overlap) in [
            ("a.example.com", "a.example.com", true),
            ("*.example.com", "*.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("*.example.com", "example.com", false),
            ("*.example.com", "*.a.example.com", false),
            ("*.example.com", "b.a.example.com", false),
            ("a.example.com", "b.example.com", false),
        ] {
            let (one, other): (HostPattern, HostPattern) =
                (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(one.overlaps(&other), overlap, "{one:?} {other:?}");
            assert_eq!(other.overlaps(&one), overlap, "{other:?} {one:?}");
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let pattern: HostPattern = "*.apps.example.com".parse().unwrap();
        let covers = |host: &str| pattern.covers(&host.parse().unwrap());
        assert!(covers("a.apps.example.com"));
        assert!(!covers("apps.example.com"));
        assert!(!covers("a.b.apps.example.com"));
        assert!(!covers("xapps.example.com"));
        assert!("*.com".parse::<HostPattern>().is_err());
        assert!("a.*.com".parse::<HostPattern>().is_err());
    }
}
