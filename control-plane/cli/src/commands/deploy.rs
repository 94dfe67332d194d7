//! `casemate deploy`, `rollback`, `renew`, `prune`, `remove`: each signs the next manifest.

use casemate_trust::id::Digest;
use casemate_trust::release::{MAX_RELEASE_BYTES, Release};
use serde_json::json;

use super::confirm::confirm;
use super::finish::{finish, finish_when};
use super::origin;
use crate::args::{Deploy, Prune, Remove, Renew, Rollback};
use crate::bundle::{Bundle, bundle};
use crate::error::{Code, Error};
use crate::machine::{date, now, short};
use crate::project::Project;
use crate::session::{Connection, Context};
use crate::slot::put_command;
use crate::tenancy::{
    Draft, Reach, Tenancy, Until, broken, egress_not_given, hosts_not_given, limits_not_given,
};

/// `casemate deploy`
pub(super) async fn deploy(cx: &Context, args: &Deploy) -> Result<(), Error> {
    let project = cx.project(&args.project.project)?;
    let bundle = pack(cx, &project).await?;
    // A dry run works before the first login, with less to check.
    if args.dry_run && Connection::load(&cx.home).is_err() {
        return dry(cx, &project, &bundle, false);
    }
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let release = project.release(tenancy.session.fleet(), tenancy.id, &bundle);
    check(&tenancy, &project, &release)?;
    let bytes = release_bytes(&release)?;
    let name = Digest::of(&bytes);
    let put = |draft: &mut Draft| {
        draft.run(project.name(), name, &project.pools);
        draft.objects.insert(name, bytes.clone());
    };
    if args.dry_run {
        tenancy.rehearse(put)?;
        return dry(cx, &project, &bundle, true);
    }
    let note = origin::note(&project.folder, args.message.as_deref());
    let progress = cx.output.progress("signing and uploading");
    let version = tenancy
        .change(&args.signing, |_, draft| {
            draft.notes.extend(note.clone().map(|note| (name, note)));
            put(draft);
            let digest = Digest(bundle.digest);
            draft.bundles.insert(digest, bundle.bytes.clone().into());
            Ok(())
        })
        .await?;
    drop(progress);
    cx.output.done(&format!(
        "manifest {version} is signed and stored, release {}",
        short(&name)
    ));
    let until = Until::Runs(project.name());
    let reach = tenancy.wait(&args.signing, until).await?;
    if reach.is_some() {
        let status = tenancy.status().await;
        let status = status.map_err(|error| broken(version, &error))?;
        tenancy.warn_of_lost_hosts(&status);
    }
    tell(cx, &project, &bundle, (name, version), reach)
}

/// Bundles the project and says what went into the bundle.
async fn pack(cx: &Context, project: &Project) -> Result<Bundle, Error> {
    let progress = cx.output.progress(format!("bundling {}", project.main));
    let bundle = bundle(project.sources(cx.home.path())).await?;
    drop(progress);
    tell_beside(cx, &bundle);
    for warning in &bundle.warnings {
        cx.output.warn(warning);
    }
    let kib = bundle.bytes.len().div_ceil(1024);
    cx.output.done(&format!(
        "bundled {} module{}, {kib} KiB, digest {}",
        bundle.modules,
        if bundle.modules == 1 { "" } else { "s" },
        short(&Digest(bundle.digest))
    ));
    Ok(bundle)
}

/// The release as it is signed, if it is not too large.
fn release_bytes(release: &Release) -> Result<Vec<u8>, Error> {
    let bytes = release.to_bytes();
    if bytes.len() <= MAX_RELEASE_BYTES {
        return Ok(bytes);
    }
    let what = format!(
        "the release has {} bytes; at most {MAX_RELEASE_BYTES} are allowed",
        bytes.len()
    );
    let next = "declare fewer rules, variables or certificates in casemate.toml";
    Err(Error::new(Code::Project, what, next))
}

/// Prints what was deployed and where it runs; without `reach` the nodes were not waited for.
fn tell(
    cx: &Context,
    project: &Project,
    bundle: &Bundle,
    (release, version): (Digest, u64),
    reach: Option<Reach>,
) -> Result<(), Error> {
    let is_followed = reach.is_some();
    let reach = reach.unwrap_or_default();
    let Reach { current, total, .. } = reach;
    let result = json!({
        "function": project.name(),
        "environment": project.environment.as_ref().map(|environment| &environment.name),
        "release": release,
        "bundle": Digest(bundle.digest),
        "beside": bundle.beside,
        "manifest": version,
        "hosts": project.hosts(),
        "nodes": { "current": current, "total": total, "away": reach.away },
    });
    cx.output.result(&result, || {
        let hosts: Vec<_> = project.hosts().iter().map(ToString::to_string).collect();
        let runs = match total {
            _ if !is_followed => "is on its way to the nodes".to_owned(),
            0 => "waits for the first node".to_owned(),
            _ => format!("runs on {current} of {total} nodes"),
        };
        format!("{} {runs}: {}", project.name(), hosts.join(", "))
    })?;
    reach.must_be_everywhere(version)
}

/// Prints every folder beside the project from which files were packed.
fn tell_beside(cx: &Context, bundle: &Bundle) {
    for beside in &bundle.beside {
        let plural = if beside.files == 1 { "" } else { "s" };
        cx.output.done(&format!(
            "packed {} file{plural} from {}, beside the project",
            beside.files, beside.folder
        ));
    }
}

fn dry(cx: &Context, project: &Project, bundle: &Bundle, checked: bool) -> Result<(), Error> {
    let digest = Digest(bundle.digest);
    let result = json!({
        "function": project.name(),
        "bundle": digest,
        "bytes": bundle.bytes.len(),
        "modules": bundle.modules,
        "beside": bundle.beside,
        "checked_against_tenant": checked,
        "dry_run": true,
    });
    cx.output.result(&result, || {
        format!(
            "{} could be deployed; nothing was signed or uploaded",
            project.name()
        )
    })?;
    if !checked {
        cx.output
            .hint("Hosts, pools and secrets were not checked: this home is not logged in.");
    }
    Ok(())
}

/// Checks that are possible before anything is signed.
fn check(tenancy: &Tenancy<'_>, project: &Project, release: &Release) -> Result<(), Error> {
    let tenant = &tenancy.tenant;
    if let Some(error) = hosts_not_given(tenant, release) {
        return Err(error);
    }
    if let Some(ceiling) = &tenant.egress
        && let Some(error) = egress_not_given(tenant, ceiling, release)
    {
        return Err(error);
    }
    if let Some(error) = limits_not_given(tenant, release) {
        return Err(error);
    }
    let functions = tenancy.manifest().map(|manifest| &manifest.functions);
    let others = functions.into_iter().flat_map(|functions| functions.keys());
    let count = 1 + others.filter(|name| **name != release.function).count();
    if count > tenant.ceilings.functions as usize {
        return Err(Error::new(
            Code::Project,
            format!(
                "{} would be function {count}; the tenant's ceiling is {}",
                release.function, tenant.ceilings.functions
            ),
            "remove functions that are no longer needed with `casemate remove FUNCTION`, or ask \
             the operator for more",
        ));
    }
    let judge = tenancy.session.known.judge();
    let output = tenancy.session.cx.output;
    for name in &project.pools {
        let Some(pool) = judge.newest_pool(name) else {
            let known: Vec<_> = judge.pools().map(|pool| pool.name.to_string()).collect();
            return Err(Error::new(
                Code::Project,
                format!("there is no pool {name}"),
                format!(
                    "correct `pools` in casemate.toml; there are {}",
                    known.join(", ")
                ),
            ));
        };
        let what = format!("the key of pool {name}");
        tenancy.session.warn_of_expiry(
            &what,
            pool.expires,
            "Ask the operator to run `casemate pool rotate`.",
        );
    }
    let secrets = tenancy
        .manifest()
        .map(|manifest| manifest.secrets.clone())
        .unwrap_or_default();
    for slot in project.credentials() {
        let sealed = secrets.get(&slot.secret);
        for pool in &project.pools {
            if !sealed.is_some_and(|sealed| sealed.contains_key(pool)) {
                output.warn(&format!(
                    "the secret {} is not sealed to pool {pool}: env.{} will fail there until you \
                     run `{}`",
                    slot.secret,
                    slot.binding,
                    put_command(slot)
                ));
            }
        }
    }
    Ok(())
}

/// `casemate rollback`
pub(super) async fn rollback(cx: &Context, args: &Rollback) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let mut target = None;
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            let wanted = draft
                .functions
                .get(&args.function)
                .ok_or_else(|| tenancy.no_function(&args.function))?;
            let release = choose(&wanted.fallbacks, args)?;
            target = Some(release);
            let pools = wanted.pools.clone();
            draft.run(&args.function, release, &pools);
            Ok(())
        })
        .await?;
    let release = target.map(|target| target.to_string()).unwrap_or_default();
    let told = format!("{} goes back to release {}", args.function, short(&release));
    let more = json!({ "function": args.function, "release": release });
    let until = Until::Runs(&args.function);
    finish_when(until, &mut tenancy, &args.signing, version, more, &told).await
}

/// The release to go back to.
fn choose(fallbacks: &[Digest], args: &Rollback) -> Result<Digest, Error> {
    let Some(prefix) = &args.to else {
        return fallbacks.first().copied().ok_or_else(|| {
            Error::new(
                Code::NotFound,
                format!("{} has no earlier release to go back to", args.function),
                "deploy the wanted sources instead",
            )
        });
    };
    let matching: Vec<_> = fallbacks
        .iter()
        .filter(|digest| digest.to_string().starts_with(&prefix.to_ascii_lowercase()))
        .collect();
    match matching.as_slice() {
        [only] => Ok(**only),
        found => {
            let what = if found.is_empty() {
                "no"
            } else {
                "more than one"
            };
            Err(Error::new(
                Code::NotFound,
                format!(
                    "{what} earlier release of {} begins with this text",
                    args.function
                ),
                "name one of the releases above with `--to`",
            )
            .lines(fallbacks.iter().map(|digest| format!("release {digest}"))))
        }
    }
}

/// `casemate renew`
pub(super) async fn renew(cx: &Context, args: &Renew) -> Result<(), Error> {
    let tenant = args.signing.whose.tenant.as_ref();
    let mut tenancy = Tenancy::open_over(cx, tenant, args.from_memory).await?;
    if args.from_memory {
        tenancy.sign_over_nodes().await?;
    }
    if tenancy.manifest().is_none() {
        return Err(Error::new(
            Code::NotFound,
            "there is no manifest to renew",
            "`casemate deploy` signs the first one",
        ));
    }
    let version = tenancy.change(&args.signing, |_, _| Ok(())).await?;
    let expires = tenancy
        .manifest()
        .map_or_else(now, |manifest| manifest.expires);
    let told = format!("the manifest holds until {}", date(expires));
    let more = json!({ "expires": expires });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

/// `casemate prune`
pub(super) async fn prune(cx: &Context, args: &Prune) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let mut forgotten = Vec::new();
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            let wanted = draft
                .functions
                .get_mut(&args.function)
                .ok_or_else(|| tenancy.no_function(&args.function))?;
            forgotten = wanted
                .fallbacks
                .split_off(args.keep.min(wanted.fallbacks.len()));
            if forgotten.is_empty() {
                let what = format!(
                    "{} has no more than {} earlier releases",
                    args.function, args.keep
                );
                let next = "name another function, or keep fewer with `--keep N`";
                return Err(Error::new(Code::NotFound, what, next));
            }
            Ok(())
        })
        .await?;
    let told = format!(
        "{} earlier releases of {} are forgotten; the control plane removes their bundles",
        forgotten.len(),
        args.function
    );
    let more = json!({ "function": args.function, "forgotten": forgotten });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

/// `casemate remove`
pub(super) async fn remove(cx: &Context, args: &Remove) -> Result<(), Error> {
    confirm(args.yes, "withdraw the function", args.function.as_str())?;
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let version = tenancy
        .change(&args.signing, |tenancy, draft| {
            let removed = draft.functions.remove(&args.function);
            removed
                .map(|_| ())
                .ok_or_else(|| tenancy.no_function(&args.function))
        })
        .await?;
    let told = format!("{} is withdrawn", args.function);
    let more = json!({ "function": args.function });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Cli, Command};
    use clap::FromArgMatches as _;

    fn rollback_to(prefix: Option<&str>) -> Rollback {
        let mut words = vec!["casemate", "rollback", "web"];
        if let Some(prefix) = prefix {
            words.extend(["--to", prefix]);
        }
        let matches = args::command().get_matches_from(words);
        match Cli::from_arg_matches(&matches).unwrap().command {
            Command::Rollback(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_release_is_named_by_the_beginning_of_its_digest() {
        let fallbacks = [Digest([0xab; 32]), Digest([0xac; 32])];
        assert_eq!(
            choose(&fallbacks, &rollback_to(None)).unwrap(),
            fallbacks[0]
        );
        assert_eq!(
            choose(&fallbacks, &rollback_to(Some("ACac"))).unwrap(),
            fallbacks[1]
        );
        let error = choose(&fallbacks, &rollback_to(Some("a"))).unwrap_err();
        assert!(error.to_text().contains(&fallbacks[1].to_string()));
        assert_eq!(
            choose(&[], &rollback_to(None)).unwrap_err().code(),
            Code::NotFound
        );
    }
}
