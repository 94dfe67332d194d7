//! `HOST` or `HOST:PORT`, as `casemate.toml` and the command line name the target of calls.

use std::str::FromStr;

use casemate_trust::host::{HostError, HostName};
use casemate_trust::release::Scheme;
use casemate_trust::secret::SecretLimits;

/// Why a text was refused as a host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The part before the port is not a host name.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The part after the host is not a port.
    #[error("expected a port from 1 to 65535, got {0:?}")]
    Port(String),
}

/// A host and the port that was written behind it: `api.example.com`, `api.example.com:8443`,
/// `[::1]:8443`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The host.
    pub host: HostName,
    /// The port, if one was written.
    pub port: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (host, port) = split(text);
        let host = host.parse::<HostName>()?;
        let port = port.map(|port| {
            let refused = || EndpointError::Port(port.chars().take(16).collect());
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            let number = port.parse().ok().filter(|number| digits && *number > 0);
            number.ok_or_else(refused)
        });
        Ok(Self {
            host,
            port: port.transpose()?,
        })
    }
}

fn split(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            // Other text behind the bracket: no host name looks like this.
            None => (text, None),
        };
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    }
}

/// A host and a port as in a URL's authority; the port only if it is not 443.
pub fn authority(host: &HostName, port: u16) -> String {
    let host = bracketed(host);
    match port {
        443 => host,
        _ => format!("{host}:{port}"),
    }
}

/// A host as it is written before a port.
pub fn bracketed(host: &HostName) -> String {
    match host.as_ip() {
        Some(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_string(),
    }
}

/// The hosts of a secret's limits with their ports, for people.
pub fn authorities(limits: &SecretLimits) -> Vec<String> {
    let standard = [Scheme::Https.default_port()];
    let ports = match limits.ports.as_slice() {
        [] => &standard,
        ports => ports,
    };
    let all = limits
        .hosts
        .iter()
        .flat_map(|host| ports.iter().map(|port| authority(host, *port)));
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_a_port() {
        let parse = |text: &str| {
            let endpoint = text.parse::<Endpoint>().unwrap();
            (endpoint.host.to_string(), endpoint.port)
        };
        assert_eq!(parse("a.test"), ("a.test".into(), None));
        assert_eq!(parse("a.test:8443"), ("a.test".into(), Some(8443)));
        assert_eq!(parse("::1"), ("::1".into(), None));
        assert_eq!(parse("[::1]"), ("::1".into(), None));
        assert_eq!(parse("[::1]:25"), ("::1".into(), Some(25)));
        for bad in [
            "",
            "a.test:",
            "a.test:0",
            "a.test:65536",
            "a.test:+1",
            "a.test:x",
            "A.test",
            "[::1]x",
            "[::1]25",
            "a.test:1:2",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_written_endpoint_can_be_read_again() {
        for text in ["a.test", "a.test:8443", "[::1]", "[::1]:25"] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(
                authority(&endpoint.host, endpoint.port.unwrap_or(443)),
                text
            );
        }
    }
}
