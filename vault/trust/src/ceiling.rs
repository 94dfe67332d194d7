//! Ceilings of a tenant: the most that the operator lets the tenant's functions use and reach.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host::{HostName, HostPattern};

/// Most hosts, ports or private networks of an egress ceiling, each.
pub const MAX_EGRESS_CEILING_ENTRIES: usize = 256;

/// Default ceiling of a call's lifetime, milliseconds. It equals the default ceiling of a request's wall-clock time.
const CALL_TIME_MS: u32 = 300_000;

/// The most that a tenant's functions may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    /// Functions.
    pub functions: u32,
    /// CPU time of a request, milliseconds.
    pub cpu_time_ms: u32,
    /// Wall-clock time of a request, milliseconds.
    pub wall_time_ms: u32,
    /// JavaScript heap, MiB.
    pub heap_mib: u32,
    /// Outgoing calls of a request.
    pub subrequests: u32,
    /// Requests in one worker at a time.
    pub concurrency: u32,
    /// Total lifetime of an outgoing call, milliseconds.
    #[serde(default = "default_call_time_ms")]
    pub call_time_ms: u32,
}

const fn default_call_time_ms() -> u32 {
    CALL_TIME_MS
}

impl Default for Ceilings {
    fn default() -> Self {
        Self {
            functions: 100,
            cpu_time_ms: 30_000,
            wall_time_ms: 300_000,
            heap_mib: 256,
            subrequests: 1000,
            concurrency: 256,
            call_time_ms: CALL_TIME_MS,
        }
    }
}

/// Where a tenant's functions may call at most, whatever their releases declare. The vault checks it at each call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressCeiling {
    /// Hosts; empty means every one.
    #[serde(default)]
    pub hosts: Vec<HostPattern>,
    /// Ports; empty means every one.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Networks that the tenant's calls may reach although they are not the public internet; empty means none. The
    /// node's own `private_addresses` do not apply to a tenant that has an egress ceiling.
    #[serde(default)]
    pub private_networks: Vec<IpNet>,
}

impl EgressCeiling {
    /// Whether calls may go to this host and port.
    pub fn allows(&self, host: &HostName, port: u16) -> bool {
        let host_allowed =
            self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.covers(host));
        host_allowed && (self.ports.is_empty() || self.ports.contains(&port))
    }

    pub(crate) fn flaw(&self) -> Option<String> {
        let counts = [
            ("hosts", self.hosts.len()),
            ("ports", self.ports.len()),
            ("private networks", self.private_networks.len()),
        ];
        let most = MAX_EGRESS_CEILING_ENTRIES;
        if let Some((what, count)) = counts.into_iter().find(|(_, count)| *count > most) {
            return Some(format!(
                "egress: expected at most {most} {what}, got {count}"
            ));
        }
        if self.ports.contains(&0) {
            return Some("egress: expected ports from 1 to 65535, got 0".into());
        }
        self.private_networks
            .iter()
            .find(|network| network.trunc() != **network)
            .map(|network| {
                format!(
                    "egress: expected the network {}, got {network}",
                    network.trunc()
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ceiling(text: &str) -> EgressCeiling {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_ceiling_allows_what_it_names() {
        let host = |text: &str| text.parse::<HostName>().unwrap();
        let all = ceiling("{}");
        assert!(all.allows(&host("a.test"), 25));
        let some = ceiling(r#"{"hosts":["a.test","*.b.test"],"ports":[443,8443]}"#);
        assert!(some.allows(&host("a.test"), 443) && some.allows(&host("x.b.test"), 8443));
        for (other, port) in [("b.test", 443), ("a.test", 80), ("x.y.b.test", 443)] {
            assert!(!some.allows(&host(other), port), "{other}:{port}");
        }
    }

    #[test]
    fn flaws_are_named() {
        for (text, flaw) in [
            (r#"{"ports":[0]}"#, "ports from 1 to 65535"),
            (
                r#"{"private_networks":["10.1.2.3/8"]}"#,
                "expected the network 10.0.0.0/8",
            ),
        ] {
            assert!(ceiling(text).flaw().unwrap().contains(flaw), "{text}");
        }
        let many = EgressCeiling {
            ports: vec![443; MAX_EGRESS_CEILING_ENTRIES + 1],
            ..EgressCeiling::default()
        };
        assert!(many.flaw().unwrap().contains("at most 256 ports, got 257"));
        assert_eq!(
            ceiling(r#"{"private_networks":["10.0.0.0/8","fd00::/8"]}"#).flaw(),
            None
        );
        assert!(serde_json::from_str::<EgressCeiling>(r#"{"private_networks":["10/8"]}"#).is_err());
    }
}
