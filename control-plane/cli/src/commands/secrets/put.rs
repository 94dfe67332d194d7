//! `casemate secret put`: values are sealed here, to the key of each pool that uses them.

mod dropped;
mod env_file;
mod limits;
mod pools;
mod value;

use std::collections::BTreeMap;
use std::path::Path;

use casemate_trust::name::Identifier;
use casemate_trust::secret::{Secret, SecretLimits, SecretPlace, SecretValue};
use casemate_trust::statement::Pool;
use serde_json::{Value, json};

use crate::args::SecretPut;
use crate::commands::finish::finish;
use crate::commands::usage::value_in_argv;
use crate::endpoint::authorities;
use crate::error::{Code, Error};
use crate::machine::random;
use crate::project::{FILE, Project};
use crate::session::Context;
use crate::tenancy::{Draft, Tenancy};
use dropped::dropped;
use limits::{endpoints, limits, limits_of_slots};
use pools::pools;
use value::{cannot_seal, check_length, value};

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
                "{name} had limits until version {}, and version {} has none of that kind: give {} \
                 if that was not meant",
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
    let next = "add a [[credential]] for each, give the same `--host HOST` for all, or take them \
         out of the file; nothing was sealed";
    Err(Error::new(Code::Input, what, next).at(path.display()))
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
