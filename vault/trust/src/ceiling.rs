//! Ceilings of a tenant: the most that the operator lets the tenant's functions use and reach.

use std::fmt;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::host::{HostName, HostPattern};

/// Most hosts, ports or private networks of an egress ceiling, each.
pub const MAX_EGRESS_CEILING_ENTRIES: usize = 256;

/// Default ceiling of a call's lifetime, milliseconds. It equals the default ceiling of a request's wall-clock time.
const CALL_TIME_MS: u32 = 300_000;

/// Default ceiling of a tenant's memory on a node, MiB: sixteen workers of the default size that
/// fill their limits, or many more that do not. Statements from before this ceiling have it too.
const MEMORY_MIB: u32 = 4096;

/// Least memory of a tenant on a node, MiB: one worker of the default size, 192 MiB beside 64 of heap.
pub const MIN_MEMORY_MIB: u32 = 256;

/// The ceilings of a tenant's functions, singly and together.
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
    /// Memory of all its workers on a node together, MiB.
    #[serde(default = "default_memory_mib")]
    pub memory_mib: u32,
}

const fn default_call_time_ms() -> u32 {
    CALL_TIME_MS
}

const fn default_memory_mib() -> u32 {
    MEMORY_MIB
}

impl Ceilings {
    pub(crate) fn flaw(&self) -> Option<String> {
        let memory_mib = self.memory_mib;
        (memory_mib < MIN_MEMORY_MIB).then(|| {
            format!("ceilings: expected at least {MIN_MEMORY_MIB} MiB of memory, got {memory_mib}")
        })
    }
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
            memory_mib: MEMORY_MIB,
        }
    }
}

/// The places that a tenant's functions may call at most, whatever their releases declare. The
/// vault checks it at each call; a new release beyond it is refused when it is deployed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressCeiling {
    /// Hosts; an empty list means every host.
    #[serde(default)]
    pub hosts: Vec<HostPattern>,
    /// Ports; an empty list means every port.
    #[serde(default)]
    pub ports: Vec<u16>,
    /// Networks that the tenant's calls may reach although they are not the public internet; an
    /// empty list means none. The node's own `private_addresses` do not apply to a tenant with an
    /// egress ceiling.
    #[serde(default)]
    pub private_networks: Vec<IpNet>,
}

impl EgressCeiling {
    /// Whether calls to this host and port are permitted.
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

impl fmt::Display for EgressCeiling {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>, empty: &str| match items.is_empty() {
            true => empty.to_owned(),
            false => items.join(" "),
        };
        let hosts = self.hosts.iter().map(ToString::to_string).collect();
        let ports = self.ports.iter().map(ToString::to_string).collect();
        let networks = self.private_networks.iter().map(ToString::to_string);
        write!(
            to,
            "hosts {}, ports {}, private networks {}",
            list(hosts, "all"),
            list(ports, "all"),
            list(networks.collect(), "none")
        )
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
    fn ceilings_from_before_the_memory_was_one_have_the_default_and_too_little_is_refused() {
        let mut written = serde_json::to_value(Ceilings::default()).unwrap();
        written.as_object_mut().unwrap().remove("memory_mib");
        let old: Ceilings = serde_json::from_value(written).unwrap();
        assert_eq!(old, Ceilings::default());
        assert_eq!(old.flaw(), None);
        let little = Ceilings {
            memory_mib: MIN_MEMORY_MIB - 1,
            ..old
        };
        assert!(little.flaw().unwrap().contains("at least 256 MiB"));
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
