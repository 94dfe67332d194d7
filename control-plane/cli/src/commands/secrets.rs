//! `casemate secret`: values are sealed here, to the key of each pool that uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal as _, Read};

use casemate_trust::host::HostName;
use casemate_trust::judge::{Judge, Refusal};
use casemate_trust::late::Late;
use casemate_trust::name::Name;
use casemate_trust::release::{Scheme, SlotKind as Kind};
use casemate_trust::secret::{
    MAX_VALUE_BYTES, Reflection, Secret, SecretError, SecretLimits, SecretPlace, SecretValue,
};
use casemate_trust::statement::Pool;
use serde_json::json;
use zeroize::Zeroizing;

use super::{deploy::finish, value_in_argv};
use crate::args::{SecretPut, SecretRemove, SlotKind, Whose};
use crate::endpoint::authority;
use crate::error::{Code, Error};
use crate::machine::{now, random};
use crate::memory::refused;
use crate::output::table;
use crate::project::{DEFAULT_POOL, FILE, Project, load_ca};
use crate::session::Context;
use crate::tenancy::Tenancy;

/// `casemate secret put`
pub(super) async fn put(cx: &Context, args: &SecretPut) -> Result<(), Error> {
    if args.value.is_some() {
        return Err(value_in_argv());
    }
    let limits = limits(args)?;
    let value = value(args)?;
    check_length(cx, args, &value)?;
    // A project with mistakes must not decide where a secret goes.
    let project = if args.project.project.join(FILE).exists() {
        Some(Project::load(&args.project.project)?)
    } else {
        None
    };
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let pools = pools(&tenancy, args, project.as_ref())?;
    let mut sealed_version = 0;
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            let before = draft
                .secrets
                .get(&args.name)
                .into_iter()
                .flat_map(BTreeMap::values);
            let before = before.filter_map(|digest| tenancy.secret(digest));
            sealed_version = before.map(|secret| secret.place.version).max().unwrap_or(0) + 1;
            let mut listed = BTreeMap::new();
            for pool in &pools {
                let place = SecretPlace {
                    fleet: pool.fleet,
                    tenant: tenancy.id,
                    name: args.name.clone(),
                    version: sealed_version,
                    pool: pool.name.clone(),
                    epoch: pool.epoch,
                    limits: limits.clone(),
                };
                let secret = Secret::seal(place, pool, &value, &mut random).map_err(cannot_seal)?;
                let bytes = secret.to_bytes();
                let digest = casemate_trust::id::Digest::of(&bytes);
                listed.insert(pool.name.clone(), digest);
                draft.objects.insert(digest, bytes);
            }
            draft.secrets.insert(args.name.clone(), listed);
            Ok(())
        })
        .await?;
    let names: Vec<_> = pools.iter().map(|pool| pool.name.to_string()).collect();
    let hosts = authorities(&limits);
    let told = format!(
        "{} version {sealed_version} is sealed to pool {} and goes to {} only",
        args.name,
        names.join(", "),
        hosts.join(", ")
    );
    let more =
        json!({ "secret": args.name, "version": sealed_version, "pools": names, "hosts": hosts });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

/// Fewer bytes than this are warned about: a function that may call an upstream as often as it likes can try the
/// secret's values one by one, and shorter ones also occur in answers by chance, where they are replaced.
const SHORT_VALUE_BYTES: usize = 16;
/// Fewer bytes than this are refused without `--short`: eight letters and digits are the least that nobody tries out
/// within a day at a hundred thousand calls a second.
const LEAST_VALUE_BYTES: usize = 8;

/// Refuses or warns about a value that a function could guess.
fn check_length(cx: &Context, args: &SecretPut, value: &SecretValue) -> Result<(), Error> {
    let length = value.expose_secret().len();
    if length < LEAST_VALUE_BYTES && !args.short {
        return Err(Error::new(
            Code::SecretValue,
            format!(
                "the value has fewer than {LEAST_VALUE_BYTES} bytes, so a function can guess it"
            ),
            "use a longer key, or seal this one all the same with `--short`",
        ));
    }
    if length < SHORT_VALUE_BYTES {
        cx.output.warn(&format!(
            "{} has fewer than {SHORT_VALUE_BYTES} bytes: a function can guess it through the host that it goes to, and \
             answers that hold the same bytes by chance are changed",
            args.name
        ));
    }
    Ok(())
}

/// Where the secret may go, from the options.
fn limits(args: &SecretPut) -> Result<SecretLimits, Error> {
    let (hosts, ports) = hosts_and_ports(args)?;
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
            crate::args::Reflection::Refuse => Reflection::Refuse,
            crate::args::Reflection::Scrub => Reflection::Scrub,
        },
        ..SecretLimits::to_hosts(hosts)
    })
}

/// The hosts, and the ports that hold for each of them.
fn hosts_and_ports(args: &SecretPut) -> Result<(Vec<HostName>, Vec<u16>), Error> {
    let mut of_host: BTreeMap<&HostName, BTreeSet<u16>> = BTreeMap::new();
    for endpoint in &args.hosts {
        let ports = of_host.entry(&endpoint.host).or_default();
        match (endpoint.port, args.ports.as_slice()) {
            (Some(_), [_, ..]) => {
                return Err(Error::new(
                    Code::Usage,
                    "the port is given twice: behind the host and with `--port`",
                    "leave one of the two out",
                ));
            }
            (Some(port), []) => ports.extend([port]),
            (None, []) => ports.extend([Scheme::Https.default_port()]),
            (None, named) => ports.extend(named),
        }
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

/// The hosts with their ports, for people.
fn authorities(limits: &SecretLimits) -> Vec<String> {
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

/// The value, from a file, standard input or the terminal.
fn value(args: &SecretPut) -> Result<SecretValue, Error> {
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
            let typed = rpassword::prompt_password(format!("Value of {} (not shown): ", args.name));
            Zeroizing::new(typed.map_err(no_input)?.into_bytes())
        }
        None => read(std::io::stdin().lock()).map_err(no_input)?,
    };
    SecretValue::parse(bytes).map_err(cannot_seal)
}

fn read(from: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // Room for one more than allowed with its line break, so that too much is seen; no growing, which would leave copies.
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

/// The pools that it is sealed to, each with its newest key, which must not have expired.
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

/// `casemate secret list`
pub(super) async fn list(cx: &Context, whose: &Whose) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let places = places(&tenancy);
    cx.output.result(&places, || {
        let rows: Vec<_> = places
            .iter()
            .map(|place| {
                let limits = &place.limits;
                let ca = limits
                    .ca
                    .map_or_else(|| "node's".to_owned(), |ca| super::short(&ca));
                let methods: Vec<_> = limits.methods.iter().map(ToString::to_string).collect();
                let paths: Vec<_> = limits.paths.iter().map(ToString::to_string).collect();
                let slots: Vec<_> = limits.slots.iter().map(|slot| slot.as_str()).collect();
                let or_all = |list: String| {
                    if list.is_empty() {
                        "all".to_owned()
                    } else {
                        list
                    }
                };
                vec![
                    place.name.to_string(),
                    place.version.to_string(),
                    format!("{} ({})", place.pool, place.epoch),
                    authorities(limits).join(" "),
                    or_all(methods.join(" ")),
                    or_all(paths.join(" ")),
                    or_all(slots.join(" ")),
                    or_all(limits.names.join(" ")),
                    ca,
                    limits.reflection.as_str().to_owned(),
                ]
            })
            .collect();
        table(
            &[
                "SECRET",
                "VERSION",
                "POOL (EPOCH)",
                "HOSTS",
                "METHODS",
                "PATHS",
                "SLOTS",
                "NAMES",
                "CA",
                "REFLECTION",
            ],
            &rows,
        )
    })?;
    warn_of_old_keys(&tenancy, &places);
    Ok(())
}

/// Where the secrets of the newest manifest may go.
pub(super) fn places(tenancy: &Tenancy<'_>) -> Vec<SecretPlace> {
    let listed = tenancy
        .manifest()
        .into_iter()
        .flat_map(|manifest| manifest.secrets.values());
    let sealed = listed.flat_map(BTreeMap::values);
    sealed
        .filter_map(|digest| tenancy.secret(digest))
        .map(|secret| secret.place)
        .collect()
}

/// Say what is sealed to a pool key that was replaced.
pub(super) fn warn_of_old_keys(tenancy: &Tenancy<'_>, places: &[SecretPlace]) {
    for place in places {
        let newest = tenancy.session.known.judge().newest_pool(&place.pool);
        let judge = tenancy.session.known.judge();
        if judge.is_exposed(&place.pool, place.epoch) {
            tenancy.session.cx.output.warn(&format!(
                "{} is sealed to epoch {} of pool {}, whose key a revoked node knows: have whoever issued the \
                 credential replace it, and put the new one",
                place.name, place.epoch, place.pool
            ));
            continue;
        }
        if let Some(pool) = newest.filter(|pool| pool.epoch > place.epoch) {
            tenancy.session.cx.output.warn(&format!(
                "{} is sealed to epoch {} of pool {}, whose newest is {}: put it again",
                place.name, place.epoch, place.pool, pool.epoch
            ));
        }
    }
}

/// `casemate secret rm`
pub(super) async fn remove(cx: &Context, args: &SecretRemove) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            if draft.secrets.remove(&args.name).is_none() {
                let known: Vec<_> = draft.secrets.keys().map(ToString::to_string).collect();
                let next = format!(
                    "there are: {}",
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                );
                return Err(Error::new(
                    Code::NotFound,
                    format!("there is no secret {}", args.name),
                    next,
                ));
            }
            for (function, wanted) in &draft.functions {
                let release = tenancy.release(&wanted.release);
                let slots = release.into_iter().flat_map(|release| release.credentials);
                for slot in slots.filter(|slot| slot.secret == args.name) {
                    let text = format!(
                        "{function} uses it as env.{}: its calls will fail from now on",
                        slot.binding
                    );
                    cx.output.warn(&text);
                }
            }
            Ok(())
        })
        .await?;
    let told = format!("{} is withdrawn", args.name);
    let more = json!({ "secret": args.name });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::FleetId;
    use casemate_trust::key::{SealingKey, SigningKey};
    use casemate_trust::statement::{Root, Statement as _};

    use super::*;

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
        judge.accept_root(&root, 1).unwrap();
        let mut pool = Pool {
            fleet: judge.fleet(),
            name: "main".parse().unwrap(),
            epoch: 1,
            public_key: SealingKey::of_seed(&[5; 32]).unwrap(),
            issued: 1,
            expires: 9000,
        };
        judge.accept_pool(&pool.sign(&[&key]), 1).unwrap();
        (pool.epoch, pool.expires) = (2, 5000);
        pool.public_key = SealingKey::of_seed(&[6; 32]).unwrap();
        judge.accept_pool(&pool.sign(&[&key]), 1).unwrap();
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
        judge.accept_revocations(&list.sign(&[&key]), 1).unwrap();
        assert_eq!(sealable(&judge, &pool.name, 1).unwrap().epoch, 2);
        list.version = 2;
        list.revoke(key.public(), &pool.name, Some(2));
        judge.accept_revocations(&list.sign(&[&key]), 1).unwrap();
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
    fn ports_stand_behind_each_host_or_apart_and_are_the_same_for_all() {
        let ports = |words: &[&str]| {
            let limits = limits(&put_args(words)).map_err(|error| error.to_text())?;
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
    fn too_much_is_seen_and_not_read_on() {
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
