//! `casemate secret`: seals and withdraws secrets.

mod put;

use std::collections::BTreeMap;

use casemate_trust::secret::SecretPlace;
use serde_json::json;

use super::confirm::confirm;
use super::finish::finish;
use crate::args::{SecretRemove, Whose};
use crate::endpoint::authorities;
use crate::error::{Code, Error};
use crate::machine::short;
use crate::output::table;
use crate::session::Context;
use crate::tenancy::Tenancy;

pub(super) use put::put;

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
                    .map_or_else(|| "node's".to_owned(), |ca| short(&ca));
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

/// The hosts that the secrets of the newest manifest may go to.
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

/// Warn about secrets that are sealed to a replaced pool key.
pub(super) fn warn_of_old_keys(tenancy: &Tenancy<'_>, places: &[SecretPlace]) {
    for place in places {
        let newest = tenancy.session.known.judge().newest_pool(&place.pool);
        let judge = tenancy.session.known.judge();
        if judge.is_exposed(&place.pool, place.epoch) {
            tenancy.session.cx.output.warn(&format!(
                "{} is sealed to epoch {} of pool {}, whose key a revoked node knows: have the \
                 issuer of the credential replace it, and put the new one",
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
    confirm(args.yes, "withdraw the secret", args.name.as_str())?;
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
