//! Where a secret may go, of the command line and of the credentials that use it.

use std::collections::{BTreeMap, BTreeSet};

use casemate_trust::authority::CaPem;
use casemate_trust::host::HostName;
use casemate_trust::name::Identifier;
use casemate_trust::release::{Credential, Scheme, SlotKind as Kind};
use casemate_trust::secret::{Reflection, SecretLimits};

use crate::args::{self, SecretPut, SlotKind};
use crate::endpoint::Endpoint;
use crate::error::{Code, Error};
use crate::project::load_ca;

/// The hosts, the port and the authority of the credentials that use a secret.
pub(super) fn limits_of_slots(
    args: &SecretPut,
    name: &Identifier,
    slots: &[&Credential],
) -> Result<SecretLimits, Error> {
    let endpoint = |slot: &&Credential| Endpoint {
        host: slot.host.clone(),
        port: Some(slot.port),
    };
    let mut limits = limits(args, slots.iter().map(endpoint).collect())
        .map_err(|error| error.at(format!("secret {name}")))?;
    let authorities: BTreeSet<_> = slots
        .iter()
        .map(|slot| slot.ca.as_ref().map(CaPem::digest))
        .collect();
    match Vec::from_iter(authorities).as_slice() {
        _ if args.ca.is_some() => {}
        [only] => limits.ca = *only,
        _ => {
            let what =
                format!("the credentials that use {name} name different authorities in `ca`");
            let next = "seal the value under a name of its own for each of them";
            return Err(Error::new(Code::Project, what, next));
        }
    }
    Ok(limits)
}

/// The limits of a secret: these hosts, and those that the options give.
pub(super) fn limits(args: &SecretPut, endpoints: Vec<Endpoint>) -> Result<SecretLimits, Error> {
    let (hosts, ports) = hosts_and_ports(&endpoints)?;
    let ca = args.ca.as_ref().map(|path| {
        let refused = |problem: String| {
            Error::new(
                Code::Input,
                "`--ca` names no certificate authority",
                "name the PEM file that `ca` names in casemate.toml",
            )
            .at(path.display())
            .lines([problem])
        };
        Ok(load_ca(path).map_err(refused)?.digest())
    });
    Ok(SecretLimits {
        ports,
        methods: args.methods.clone(),
        paths: args.paths.clone(),
        slots: args.slots.iter().map(|slot| kind(*slot)).collect(),
        names: args.slot_names.clone(),
        ca: ca.transpose()?,
        reflection: match args.reflection {
            args::Reflection::Refuse => Reflection::Refuse,
            args::Reflection::Scrub => Reflection::Scrub,
        },
        ..SecretLimits::to_hosts(hosts)
    })
}

/// The hosts of the command line, each with its ports.
pub(super) fn endpoints(args: &SecretPut) -> Result<Vec<Endpoint>, Error> {
    let mut endpoints = Vec::new();
    for endpoint in &args.hosts {
        match (endpoint.port, args.ports.as_slice()) {
            (Some(_), [_, ..]) => {
                return Err(Error::new(
                    Code::Usage,
                    "the port is given twice: behind the host and with `--port`",
                    "leave one of the two out",
                ));
            }
            (_, []) => endpoints.push(endpoint.clone()),
            (None, named) => endpoints.extend(named.iter().map(|port| Endpoint {
                host: endpoint.host.clone(),
                port: Some(*port),
            })),
        }
    }
    Ok(endpoints)
}

/// The hosts, and the ports that hold for each of them.
fn hosts_and_ports(endpoints: &[Endpoint]) -> Result<(Vec<HostName>, Vec<u16>), Error> {
    let mut of_host: BTreeMap<&HostName, BTreeSet<u16>> = BTreeMap::new();
    for endpoint in endpoints {
        let port = endpoint.port.unwrap_or(Scheme::Https.default_port());
        of_host.entry(&endpoint.host).or_default().insert(port);
    }
    let hosts = of_host.keys().map(|host| (*host).clone()).collect();
    let mut each = of_host.into_values();
    let ports = each.next().unwrap_or_default();
    if each.any(|other| other != ports) {
        return Err(Error::new(
            Code::Usage,
            "the hosts have different ports, and a secret has the same ports for each of its hosts",
            "name the same ports with each host, or seal the value twice under two names",
        ));
    }
    Ok((hosts, ports.into_iter().collect()))
}

fn kind(slot: SlotKind) -> Kind {
    match slot {
        SlotKind::Header => Kind::Header,
        SlotKind::Bearer => Kind::Bearer,
        SlotKind::Basic => Kind::Basic,
        SlotKind::Query => Kind::Query,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::authorities;

    fn put_args(words: &[&str]) -> SecretPut {
        let typed = ["casemate", "secret", "put", "K"].iter().chain(words);
        match <crate::args::Cli as clap::Parser>::try_parse_from(typed)
            .unwrap()
            .command
        {
            crate::args::Command::Secret(crate::args::Secret::Put(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ports_follow_each_host_or_are_given_apart_and_are_the_same_for_all() {
        let ports = |words: &[&str]| {
            let args = put_args(words);
            let limits = endpoints(&args).and_then(|endpoints| limits(&args, endpoints));
            let limits = limits.map_err(|error| error.to_text())?;
            Ok::<_, String>((authorities(&limits).join(" "), limits.ports))
        };
        let told = |text: &str, ports: &[u16]| Ok((text.to_owned(), ports.to_vec()));
        assert_eq!(ports(&["--host", "a.test"]), told("a.test", &[443]));
        assert_eq!(
            ports(&["--host", "a.test:8443"]),
            told("a.test:8443", &[8443])
        );
        assert_eq!(
            ports(&["--host", "a.test", "--host", "b.test", "--port", "25"]),
            told("a.test:25 b.test:25", &[25])
        );
        assert_eq!(
            ports(&["--host", "a.test", "--host", "a.test:8443"]),
            told("a.test a.test:8443", &[443, 8443])
        );
        let twice = ports(&["--host", "a.test:25", "--port", "26"]).unwrap_err();
        assert!(twice.contains("given twice"), "{twice}");
        let mixed = ports(&["--host", "a.test", "--host", "b.test:8443"]).unwrap_err();
        assert!(mixed.contains("different ports"), "{mixed}");
    }
}
