//! Parses a function's URL. Only spellings with one meaning are accepted, and they are sent
//! unchanged, byte for byte.

use casemate_trust::host::HostName;
use casemate_trust::release::Scheme;

/// Longest target, bytes: the limit of common servers.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// An absolute URL with one meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Scheme.
    pub scheme: Scheme,
    /// Host.
    pub host: HostName,
    /// Port; the scheme's default when the URL has none.
    pub port: u16,
    /// Path, beginning with `/`.
    pub path: String,
    /// Query without its `?`.
    pub query: Option<String>,
}

/// Why a URL was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The URL is too long.
    #[error("expected a URL of at most {MAX_TARGET_BYTES} bytes")]
    Length,
    /// The URL begins with neither `https://` nor `http://`.
    #[error("expected a URL that begins with https:// or http://")]
    Scheme,
    /// The host has an unusual spelling, a user or a zone.
    #[error("expected a host in lower case without user, zone or trailing dot")]
    Host,
    /// The port is invalid.
    #[error("expected a port from 1 to 65535 without leading zeros")]
    Port,
    /// The path or query contains a forbidden byte.
    #[error(
        "expected a path and a query of visible ASCII without `#`, `\\`, quotes and angle brackets"
    )]
    Bytes,
}

impl Target {
    /// Parses the URL that a worker requests.
    ///
    /// # Errors
    /// The URL has two readings, or none.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        if url.len() > MAX_TARGET_BYTES {
            return Err(TargetError::Length);
        }
        let (scheme, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (Scheme::Https, rest),
            (_, Some(rest)) => (Scheme::Http, rest),
            _ => return Err(TargetError::Scheme),
        };
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (host, port) = split_authority(authority)?;
        let port = match port {
            None => scheme.default_port(),
            Some(digits)
                if digits.starts_with('0') || !digits.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                return Err(TargetError::Port);
            }
            Some(digits) => digits.parse().map_err(|_| TargetError::Port)?,
        };
        let visible = |byte: u8| byte.is_ascii_graphic() && !br#"#\"<>^`{|}"#.contains(&byte);
        if !rest.bytes().all(visible) {
            return Err(TargetError::Bytes);
        }
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (rest, None),
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self {
            scheme,
            host: host.parse().map_err(|_| TargetError::Host)?,
            port,
            path: path.to_owned(),
            query,
        })
    }

    /// `host` or `host:port`, the value of `Host` and `:authority`.
    pub fn authority(&self) -> String {
        let host = match self.host.as_ip() {
            Some(core::net::IpAddr::V6(address)) => format!("[{address}]"),
            _ => self.host.to_string(),
        };
        if self.port == self.scheme.default_port() {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }

    /// Path and query, as in the request line.
    pub fn path_and_query(&self) -> String {
        match &self.query {
            Some(query) => format!("{}?{query}", self.path),
            None => self.path.clone(),
        }
    }
}

fn split_authority(authority: &str) -> Result<(&str, Option<&str>), TargetError> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(TargetError::Host)?;
        let is_v6 = host.parse::<core::net::Ipv6Addr>().is_ok();
        return match (is_v6, rest.strip_prefix(':')) {
            (true, Some(port)) => Ok((host, Some(port))),
            (true, None) if rest.is_empty() => Ok((host, None)),
            _ => Err(TargetError::Host),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        Some(_) => Err(TargetError::Host),
        None => Ok((authority, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls_with_one_meaning() {
        let target = Target::parse("https://api.test:8443/v1/x?a=b").unwrap();
        assert_eq!(
            (
                target.authority().as_str(),
                target.path_and_query().as_str()
            ),
            ("api.test:8443", "/v1/x?a=b")
        );
        assert_eq!(
            Target::parse("https://api.test").unwrap().path_and_query(),
            "/"
        );
        assert_eq!(
            Target::parse("https://api.test?x")
                .unwrap()
                .path_and_query(),
            "/?x"
        );
        assert_eq!(
            Target::parse("https://api.test:443/").unwrap().authority(),
            "api.test"
        );
        assert_eq!(
            Target::parse("https://[::1]:8/").unwrap().authority(),
            "[::1]:8"
        );
    }

    #[test]
    fn spellings_of_a_host_have_one_reading_or_are_refused() {
        let odd = [
            "https://a.test./",
            "https://A.test/",
            "https://user@a.test/",
            "https://a.test@b.test/",
            "https://a.test%23@b.test/",
            "https://a.test#@b.test/",
            "https://a.test\\@b.test/",
            "https://a.test\\b",
            "https://b\u{fc}cher.test/",
            "https://[fe80::1%25eth0]/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://[::ffff:127.0.0.1",
            "https://[0:0:0:0:0:0:0:1]/",
            "https:///a",
            "https://:443/",
            "https://a.test:/",
            "https://a.test:0/",
            "https://a.test:080/",
            "https://a.test:99999/",
            "https://a.test:+1/",
            "https://a:b:c/",
            "ftp://a.test/",
            "//a.test/",
            "/a",
            "HTTPS://a.test/",
            "https://a.test/\r\nHost: b",
            "https://a.test/a b",
            "https://a.test/\0",
            "https://a.test/#x",
            "https://a.test/\u{e9}",
            "https://a.test\t/",
            "https://a_b.test/",
        ];
        for url in odd {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    proptest! {
        #[test]
        fn what_is_parsed_is_what_is_sent(url in "https://[a-z0-9.:\\[\\]@]{1,20}[/?#\\\\]?[ -~]{0,30}") {
            if let Ok(target) = Target::parse(&url) {
                let sent = format!("https://{}{}", target.authority(), target.path_and_query());
                prop_assert_eq!(Target::parse(&sent), Ok(target));
            }
        }
    }
}
