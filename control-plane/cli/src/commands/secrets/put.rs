//! `casemate secret put`: values are sealed here, to the key of each pool that uses them.

mod dropped;
mod env_file;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Read};
use std::path::Path;

use casemate_trust::authority::CaPem;
use casemate_trust::host::HostName;
use casemate_trust::judge::{Judge, Refusal};
use casemate_trust::late::Late;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::{Credential, Scheme, SlotKind as Kind};
use casemate_trust::secret::{
    MAX_VALUE_BYTES, Reflection, Secret, SecretError, SecretLimits, SecretPlace, SecretValue,
};
use casemate_trust::statement::Pool;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use dropped::dropped;

use super::authorities;
use crate::args::{self, SecretPut, SlotKind};
use crate::commands::{deploy::finish, value_in_argv};
use crate::endpoint::Endpoint;
use crate::error::{Code, Error};
use crate::machine::{now, random};
use crate::memory::refused;
use crate::project::{DEFAULT_POOL, FILE, Project, load_ca};
use crate::session::Context;
use crate::tenancy::{Draft, Tenancy};

/// A value with the limits of its use.
struct Sealing {
    value: SecretValue,
    limits: SecretLimits,
    /// The version of the sealed secret.
    version: u64,
    /// Options whose limits the earlier version had, and this one lacks.
    dropped: Vec<&'static str>,
}

/// `casemate secret put`
pub(in crate::commands) async fn put(cx: &Context, args: &SecretPut) -> Result<(), Error> {
    if args.value.is_some() {
        return Err(value_in_argv());
    }
    // A project with mistakes must not decide where a secret may go.
    let project = if args.project.project.join(FILE).exists() {
        Some(cx.project(&args.project.project)?)
    } else {
        None
    };
    let mut secrets = match &args.name {
        Some(name) => one(name, args)?,
        None => many(cx, args, project.as_ref())?,
    };
    for (name, sealing) in &secrets {
        check_length(cx, args, name, &sealing.value)?;
    }
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let pools = pools(&tenancy, args, project.as_ref())?;
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            for (name, sealing) in &mut secrets {
                seal(tenancy, draft, &pools, name, sealing)?;
            }
            Ok(())
        })
        .await?;
    for (name, sealing) in &secrets {
        if !sealing.dropped.is_empty() {
            cx.output.warn(&format!(
                "{name} had limits until version {}, and version {} has none of that kind: give {} if that was not meant",
                sealing.version - 1,
                sealing.version,
                sealing.dropped.join(", ")
            ));
        }
    }
    let names: Vec<_> = pools.iter().map(|pool| pool.name.to_string()).collect();
    let (more, told) = told(&secrets, &names, args.name.is_some());
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

/// The one secret that the command line names.
fn one(name: &Identifier, args: &SecretPut) -> Result<BTreeMap<Identifier, Sealing>, Error> {
    let sealing = Sealing {
        limits: limits(args, endpoints(args)?)?,
        value: value(name, args)?,
        version: 0,
        dropped: Vec::new(),
    };
    Ok([(name.clone(), sealing)].into())
}

/// The secrets of a file, each with the hosts of the command line or of the credentials that use
/// it.
fn many(
    cx: &Context,
    args: &SecretPut,
    project: Option<&Project>,
) -> Result<BTreeMap<Identifier, Sealing>, Error> {
    let path = args.env_file.as_deref().unwrap_or(Path::new("-"));
    let values = env_file::read(path)?;
    let mut secrets = BTreeMap::new();
    let mut homeless = Vec::new();
    for (name, value) in values {
        let name = cx.secret(&name);
        let limits = if args.hosts.is_empty() {
            let slots = project.into_iter().flat_map(Project::credentials);
            let slots: Vec<_> = slots.filter(|slot| slot.secret == name).collect();
            if slots.is_empty() {
                homeless.push(name.to_string());
                continue;
            }
            limits_of_slots(args, &name, &slots)?
        } else {
            limits(args, endpoints(args)?)?
        };
        let sealing = Sealing {
            value,
            limits,
            version: 0,
            dropped: Vec::new(),
        };
        secrets.insert(name, sealing);
    }
    if homeless.is_empty() {
        return Ok(secrets);
    }
    let what = format!(
        "no credential of casemate.toml uses {}, so it is not known where it may go",
        homeless.join(", ")
    );
    let next = "add a [[credential]] for each, give the same `--host HOST` for all, or take them out of the file; nothing \
                was sealed";
    Err(Error::new(Code::Input, what, next).at(path.display()))
}

/// The hosts, the port and the authority of the credentials that use a secret.
fn limits_of_slots(
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

/// Seals one secret to every pool, with a version one higher than the highest that is listed.
fn seal(
    tenancy: &Tenancy<'_>,
    draft: &mut Draft,
    pools: &[Pool],
    name: &Identifier,
    sealing: &mut Sealing,
) -> Result<(), Error> {
    let before = draft
        .secrets
        .get(name)
        .into_iter()
        .flat_map(BTreeMap::values);
    let before = before.filter_map(|digest| tenancy.secret(digest));
    let before = before.max_by_key(|secret| secret.place.version);
    let before = before.map(|secret| secret.place);
    sealing.version = before.as_ref().map_or(0, |place| place.version) + 1;
    let limits = before.map(|place| place.limits);
    sealing.dropped = limits.map_or_else(Vec::new, |limits| dropped(&limits, &sealing.limits));
    let mut listed = BTreeMap::new();
    for pool in pools {
        let place = SecretPlace {
            fleet: pool.fleet,
            tenant: tenancy.id,
            name: name.clone(),
            version: sealing.version,
            pool: pool.name.clone(),
            epoch: pool.epoch,
            limits: sealing.limits.clone(),
        };
        let secret = Secret::seal(place, pool, &sealing.value, &mut random).map_err(cannot_seal)?;
        let bytes = secret.to_bytes();
        let digest = casemate_trust::id::Digest::of(&bytes);
        listed.insert(pool.name.clone(), digest);
        draft.objects.insert(digest, bytes);
    }
    draft.secrets.insert(name.clone(), listed);
    Ok(())
}

/// The sealed secrets, as JSON and for people; a secret that the command line named is not in a
/// list.
fn told(
    secrets: &BTreeMap<Identifier, Sealing>,
    pools: &[String],
    is_alone: bool,
) -> (Value, String) {
    let tell = |(name, sealing): (&Identifier, &Sealing)| {
        format!(
            "{name} version {} is sealed to pool {} and goes to {} only",
            sealing.version,
            pools.join(", "),
            authorities(&sealing.limits).join(", ")
        )
    };
    let told: Vec<_> = secrets.iter().map(tell).collect();
    let describe = |(name, sealing): (&Identifier, &Sealing)| {
        json!({
            "secret": name,
            "version": sealing.version,
            "pools": pools,
            "hosts": authorities(&sealing.limits),
        })
    };
    let mut all: Vec<_> = secrets.iter().map(describe).collect();
    let more = match (is_alone, all.pop()) {
        (true, Some(only)) => only,
        (_, last) => {
            all.extend(last);
            json!({ "secrets": all })
        }
    };
    (more, told.join("\n"))
}

/// Values with fewer bytes than this cause a warning: a function that may call an upstream without
/// limit can guess the value by trial, and short values also occur in answers by chance, where they
/// are replaced.
const SHORT_VALUE_BYTES: usize = 16;
/// Values with fewer bytes than this are refused without `--short`: eight letters and digits cannot
/// be tried out within a day at a hundred thousand calls a second, fewer can.
const LEAST_VALUE_BYTES: usize = 8;

/// Refuses or warns about a value that a function could guess.
fn check_length(
    cx: &Context,
    args: &SecretPut,
    name: &Identifier,
    value: &SecretValue,
) -> Result<(), Error> {
    let length = value.expose_secret().len();
    if length < LEAST_VALUE_BYTES && !args.short {
        return Err(Error::new(
            Code::SecretValue,
            format!(
                "the value of {name} has fewer than {LEAST_VALUE_BYTES} bytes, so a function can guess it"
            ),
            "use a longer key, or seal this one all the same with `--short`",
        ));
    }
    if length < SHORT_VALUE_BYTES {
        cx.output.warn(&format!(
            "{name} has fewer than {SHORT_VALUE_BYTES} bytes: a function can guess it through the host that it goes to, and \
             answers that hold the same bytes by chance are changed"
        ));
    }
    Ok(())
}

/// The limits of a secret: these hosts, and those that the options give.
fn limits(args: &SecretPut, endpoints: Vec<Endpoint>) -> Result<SecretLimits, Error> {
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
fn endpoints(args: &SecretPut) -> Result<Vec<Endpoint>, Error> {
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

/// The value, from a file, standard input or the terminal.
fn value(name: &Identifier, args: &SecretPut) -> Result<SecretValue, Error> {
    let bytes = match &args.from_file {
        Some(path) => {
            let cannot_read = |error| {
                Error::new(
                    Code::Input,
                    "cannot read the secret's file",
                    "check the path and who may read it",
                )
                .at(path.display())
                .source(error)
            };
            read(std::fs::File::open(path).map_err(cannot_read)?).map_err(cannot_read)?
        }
        None if std::io::stdin().is_terminal() => {
            let typed = rpassword::prompt_password(format!("Value of {name} (not shown): "));
            Zeroizing::new(typed.map_err(no_input)?.into_bytes())
        }
        None => read(std::io::stdin().lock()).map_err(no_input)?,
    };
    SecretValue::parse(bytes).map_err(cannot_seal)
}

fn read(from: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // The buffer holds one byte more than a value with its line break may have, so that a longer
    // value is noticed. It never grows, because growing would leave copies of the secret.
    let most = MAX_VALUE_BYTES + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most));
    from.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn no_input(error: std::io::Error) -> Error {
    Error::new(
        Code::Input,
        "the value could not be read",
        "give it on standard input or with `--from-file FILE`",
    )
    .source(error)
}

fn cannot_seal(error: SecretError) -> Error {
    let next = match error {
        SecretError::ValueByte { .. } => {
            "check what was copied: a key is one line. For several values use several secrets"
        }
        SecretError::ValueLength(0) => {
            "give the value on standard input or with `--from-file FILE`"
        }
        SecretError::ValueLength(_) => "a secret is a key or a password, not a document",
        _ => "correct what is named and run the command again",
    };
    Error::new(Code::SecretValue, "this cannot be sealed as a secret", next).source(error)
}

fn kind(slot: SlotKind) -> Kind {
    match slot {
        SlotKind::Header => Kind::Header,
        SlotKind::Bearer => Kind::Bearer,
        SlotKind::Basic => Kind::Basic,
        SlotKind::Query => Kind::Query,
    }
}

/// The pools that the secret is sealed to, each with its newest key, which must not have expired.
fn pools(
    tenancy: &Tenancy<'_>,
    args: &SecretPut,
    project: Option<&Project>,
) -> Result<Vec<Pool>, Error> {
    let judge = tenancy.session.known.judge();
    let mut names: BTreeSet<Name> = args.pools.iter().cloned().collect();
    if names.is_empty() {
        let functions = tenancy
            .manifest()
            .into_iter()
            .flat_map(|manifest| manifest.functions.values());
        names.extend(functions.flat_map(|wanted| wanted.pools.clone()));
        names.extend(
            project
                .into_iter()
                .flat_map(|project| project.pools.clone()),
        );
    }
    if names.is_empty() {
        let mut all = judge.pools().map(|pool| pool.name.clone());
        match (all.next(), all.next()) {
            (Some(only), None) => names.extend([only]),
            _ => names.extend(DEFAULT_POOL.parse::<Name>()),
        }
    }
    names
        .iter()
        .map(|name| sealable(judge, name, now()))
        .collect()
}

/// A pool with its newest key, which has not expired.
fn sealable(judge: &Judge, name: &Name, clock: u64) -> Result<Pool, Error> {
    let pool = judge.newest_pool(name).ok_or_else(|| {
        let known: Vec<_> = judge.pools().map(|pool| pool.name.to_string()).collect();
        let next = format!(
            "say which with `--pool NAME`; there are {}",
            known.join(", ")
        );
        Error::new(Code::NotFound, format!("there is no pool {name}"), next)
    })?;
    let (expires, clock) = (pool.expires, judge.time(clock));
    if expires <= clock {
        let late = Late { expires, clock };
        return Err(refused("pool", Refusal::PoolExpired(late)).at(name));
    }
    if judge.is_exposed(name, pool.epoch) {
        return Err(Error::new(
            Code::Refused,
            format!(
                "a revoked node knows the newest key of pool {name}, epoch {}: nothing is sealed to it",
                pool.epoch
            ),
            format!("ask the operator to run `casemate pool rotate {name}`, then try again"),
        ));
    }
    Ok(pool.clone())
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::FleetId;
    use casemate_trust::key::{SealingKey, SigningKey};
    use casemate_trust::statement::{Root, Statement as _};

    use super::*;
    use crate::memory::tests::accept;

    #[test]
    fn nothing_is_sealed_to_an_expired_key_even_if_an_older_one_holds() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let root = Root {
            version: 1,
            keys: vec![key.public()],
            threshold: 1,
            issued: 1,
            expires: 9000,
        };
        let root = root.sign(&[&key]);
        let mut judge = Judge::new(FleetId(root.payload_digest().0), None);
        accept(&mut judge, &root);
        let mut pool = Pool {
            fleet: judge.fleet(),
            name: "main".parse().unwrap(),
            epoch: 1,
            public_key: SealingKey::of_seed(&[5; 32]).unwrap(),
            issued: 1,
            expires: 9000,
        };
        accept(&mut judge, &pool.sign(&[&key]));
        (pool.epoch, pool.expires) = (2, 5000);
        pool.public_key = SealingKey::of_seed(&[6; 32]).unwrap();
        accept(&mut judge, &pool.sign(&[&key]));
        assert_eq!(sealable(&judge, &pool.name, 4999).unwrap().epoch, 2);
        let error = sealable(&judge, &pool.name, 5000).unwrap_err();
        assert!(
            error.to_text().contains("casemate pool rotate"),
            "{}",
            error.to_text()
        );
        let mut list = casemate_trust::revocation::Revocations {
            fleet: judge.fleet(),
            version: 1,
            nodes: Vec::new(),
            exposed: BTreeMap::new(),
            issued: 1,
        };
        list.revoke(key.public(), &pool.name, Some(1));
        accept(&mut judge, &list.sign(&[&key]));
        assert_eq!(sealable(&judge, &pool.name, 1).unwrap().epoch, 2);
        list.version = 2;
        list.revoke(key.public(), &pool.name, Some(2));
        accept(&mut judge, &list.sign(&[&key]));
        let error = sealable(&judge, &pool.name, 1).unwrap_err();
        assert!(error.to_text().contains("a revoked node knows"));
        let unknown = sealable(&judge, &"eu".parse().unwrap(), 1).unwrap_err();
        assert_eq!(unknown.code(), Code::NotFound);
    }

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

    #[test]
    fn a_value_over_the_limit_is_refused_without_reading_all_of_it() {
        let endless = std::io::repeat(b'x');
        let bytes = read(endless).unwrap();
        assert_eq!(bytes.len(), MAX_VALUE_BYTES + 3);
        let error = SecretValue::parse(bytes).map_err(cannot_seal).unwrap_err();
        assert_eq!(error.code(), Code::SecretValue);
    }

    #[test]
    fn what_cannot_be_sealed_is_not_shown() {
        let bytes = Zeroizing::new(b"hunter2\nhunter3".to_vec());
        let error = SecretValue::parse(bytes).map_err(cannot_seal).unwrap_err();
        let text = error.to_text();
        assert!(
            text.contains("LF at byte 7") && !text.contains("hunter"),
            "{text}"
        );
        assert_eq!(error.code().exit(), 65);
    }
}
