//! `casemate freshness key`, `require`, `renew`, `show`, `off`.

use std::path::Path;
use std::time::Duration;

use casemate_trust::freshness::FreshnessDemand;
use casemate_trust::judge::Standing;
use casemate_trust::keyfile::Purpose;
use serde::Deserialize;
use serde_json::{Value, json};

use super::finish::finish;
use super::show_key::show_key;
use crate::args::{FreshnessKey, FreshnessOff, FreshnessRenew, FreshnessRequire, Whose, span};
use crate::error::{Code, Error};
use crate::keys::{FRESHNESS, FRESHNESS_PUBLIC};
use crate::machine::date;
use crate::session::Context;
use crate::tenancy::{Renewed, Tenancy, undemanded};

/// Pause before a failed renewal is tried again, seconds.
const RETRY_SECS: u64 = 15;
/// Largest file with the version of a manifest, bytes.
const MAX_NEWEST_BYTES: u64 = 64 * 1024;

/// `casemate freshness key`
pub(super) fn key(cx: &Context, args: &FreshnessKey) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let (files, plain) = ((FRESHNESS, FRESHNESS_PUBLIC), args.new_key.plain_keys);
    let (public, new) = show_key(cx, files, Purpose::Freshness, plain, "freshness key")?;
    if new {
        cx.output.hint(&format!(
            "Let a manifest name it: `casemate freshness require --max-age 1h --key {public}`"
        ));
    }
    Ok(())
}

/// `casemate freshness require`
pub(super) async fn require(cx: &Context, args: &FreshnessRequire) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let tenants_own = &tenancy.tenant.current.keys;
    if args.key.is_some_and(|key| tenants_own.contains(&key)) {
        return Err(Error::new(
            Code::Usage,
            "`--key` is a key that the tenant deploys with, and the job that renews needs no such \
             key",
            "make one that renews and does nothing else, in the job's home: \
             `casemate freshness key`",
        ));
    }
    let mut demanded = None;
    let version = tenancy
        .change(&args.signing, |_, draft| {
            let before = draft.freshness.take().and_then(|demand| demand.key);
            draft.freshness = Some(FreshnessDemand {
                max_age_secs: args.max_age,
                key: args.key.or(before.filter(|_| !args.no_key)),
            });
            demanded = draft.freshness.clone();
            Ok(())
        })
        .await?;
    let told = format!(
        "credentials stop {} after the last deployment or renewal; renew at least every {}",
        span(args.max_age),
        span(args.max_age / 2)
    );
    let more = json!({ "freshness": demanded });
    finish(&mut tenancy, &args.signing, version, more, &told).await
}

/// `casemate freshness off`
pub(super) async fn off(cx: &Context, args: &FreshnessOff) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.signing.whose.tenant.as_ref()).await?;
    let version = tenancy
        .change(&args.signing, |_, draft| {
            draft.freshness.take().map(|_| ()).ok_or_else(undemanded)
        })
        .await?;
    let told = "credentials are used until the manifest expires";
    let more = json!({ "freshness": null });
    finish(&mut tenancy, &args.signing, version, more, told).await
}

/// `casemate freshness show`
pub(super) async fn show(cx: &Context, whose: &Whose) -> Result<(), Error> {
    let tenancy = Tenancy::open(cx, whose.tenant.as_ref()).await?;
    cx.output.result(&describe(&tenancy), || tell(&tenancy))
}

/// The demanded freshness and its state, as JSON; null if none is demanded.
pub(super) fn describe(tenancy: &Tenancy<'_>) -> Value {
    let demand = tenancy
        .manifest()
        .and_then(|manifest| manifest.freshness.as_ref());
    let Some(demand) = demand else {
        return Value::Null;
    };
    let (until, stale) = match tenancy.standing() {
        Standing::Fresh(until) => (Some(until), None),
        Standing::Stale(stale) => (None, Some(stale.to_string())),
        Standing::Undemanded => (None, None),
    };
    json!({
        "max_age_secs": demand.max_age_secs,
        "key": demand.key,
        "fresh_until": until,
        "stale": stale,
    })
}

/// The tenant's freshness as one line of text.
pub(super) fn tell(tenancy: &Tenancy<'_>) -> String {
    let demand = tenancy
        .manifest()
        .and_then(|manifest| manifest.freshness.as_ref());
    let Some(demand) = demand else {
        return "freshness: not demanded".to_owned();
    };
    let max_age = span(demand.max_age_secs);
    let key = demand.key.map_or_else(String::new, |key| {
        format!(
            "; renewed also by the key with the fingerprint {}",
            key.fingerprint()
        )
    });
    match tenancy.standing() {
        Standing::Stale(stale) => format!(
            "freshness: STALE, credentials are not injected: {stale}. Renew it: \
             `casemate freshness renew`{key}"
        ),
        Standing::Fresh(until) => format!("freshness: {max_age}, fresh until {}{key}", date(until)),
        Standing::Undemanded => format!("freshness: {max_age}{key}"),
    }
}

/// `casemate freshness renew`
pub(super) async fn renew(cx: &Context, args: &FreshnessRenew) -> Result<(), Error> {
    let Some(every_secs) = args.every else {
        let renewed = renew_once(cx, args).await?;
        return cx.output.result(&as_json(&renewed), || told(&renewed));
    };
    loop {
        let wait_secs = match renew_once(cx, args).await {
            Ok(renewed) => {
                cx.output.record(&as_json(&renewed), || told(&renewed))?;
                if every_secs >= renewed.max_age_secs {
                    cx.output.warn(&format!(
                        "credentials stop between renewals: `--every` is {}, and the manifest \
                         allows {}; renew at least every {}",
                        span(every_secs),
                        span(renewed.max_age_secs),
                        span(renewed.max_age_secs / 2)
                    ));
                }
                every_secs
            }
            Err(error) if may_pass(&error) => {
                let wait_secs = every_secs.min(RETRY_SECS);
                cx.output.warn(&format!(
                    "freshness was not renewed, next try in {wait_secs} seconds: {}",
                    error.to_text().trim_end()
                ));
                wait_secs
            }
            Err(error) => return Err(error),
        };
        tokio::time::sleep(Duration::from_secs(wait_secs)).await;
    }
}

async fn renew_once(cx: &Context, args: &FreshnessRenew) -> Result<Renewed, Error> {
    let newest = args.newest_from.as_deref().map(read_newest).transpose()?;
    let mut tenancy = Tenancy::open(cx, args.whose.tenant.as_ref()).await?;
    tenancy.renew_freshness(newest, &args.with_keys).await
}

/// Whether the error may disappear with time alone.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Unreachable | Code::Api | Code::Busy | Code::Conflict
    )
}

fn as_json(renewed: &Renewed) -> Value {
    json!({ "manifest": renewed.version, "fresh_until": renewed.until, "renewed": renewed.is_new })
}

fn told(renewed: &Renewed) -> String {
    let (version, until) = (renewed.version, date(renewed.until));
    if renewed.is_new {
        format!("manifest {version} is fresh until {until}")
    } else {
        format!("manifest {version} was renewed a moment ago and is fresh until {until}")
    }
}

/// The fields of the output of `casemate --json deploy` that matter here.
#[derive(Deserialize)]
struct Deployed {
    manifest: u64,
}

/// The version in a file: a number, or the output of a deployment.
fn read_newest(path: &Path) -> Result<u64, Error> {
    let wrong = |what: &str| {
        let next = "have each deployment write it: `casemate --json deploy > FILE`";
        Error::new(Code::Input, what, next).at(path.display())
    };
    let file = std::fs::File::open(path)
        .map_err(|error| wrong("cannot read the version of the newest manifest").source(error))?;
    let mut text = String::new();
    std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_NEWEST_BYTES), &mut text)
        .map_err(|error| wrong("cannot read the version of the newest manifest").source(error))?;
    let number = text.trim().parse().ok();
    let deployed = || serde_json::from_str::<Deployed>(&text).ok();
    number
        .or_else(|| deployed().map(|deployed| deployed.manifest))
        .ok_or_else(|| wrong("expected the version of a manifest, or the JSON of a deployment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_is_a_number_or_the_output_of_a_deployment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("newest");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read_newest(&path)
        };
        assert_eq!(read("7\n").unwrap(), 7);
        assert_eq!(read("{\"function\":\"web\",\"manifest\":8}").unwrap(), 8);
        for wrong in ["", "newest", "{\"manifest\":null}", "-1"] {
            assert_eq!(read(wrong).unwrap_err().code(), Code::Input, "{wrong}");
        }
        assert_eq!(
            read_newest(&dir.path().join("none")).unwrap_err().code(),
            Code::Input
        );
    }
}
