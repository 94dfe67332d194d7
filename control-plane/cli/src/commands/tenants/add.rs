//! `casemate tenant add`.

use std::collections::BTreeSet;

use casemate_api::token::Scope;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::{KeySet, Statement as _, Tenant};
use serde_json::json;

use super::free_hosts::require_free;
use super::limits::{ceilings, egress};
use crate::args::TenantAdd;
use crate::commands::tokens;
use crate::commands::write_once::write_once;
use crate::error::{Code, Error};
use crate::machine::{DAY, now};
use crate::session::{Context, Session};

/// `casemate tenant add`
pub(in crate::commands) async fn add(cx: &Context, args: &TenantAdd) -> Result<(), Error> {
    let keys = key_set(args)?;
    let root = cx.root_key()?;
    let mut session = Session::open(cx).await?;
    let issued = session.known.judge().time(now());
    let expires = issued + u64::from(args.lifetime.expires_days) * DAY;
    let hosts = args.hosts.clone();
    let mut tenant = Tenant::first(
        session.fleet(),
        args.name.clone(),
        keys,
        hosts,
        issued,
        expires,
    );
    tenant.ceilings = ceilings(&args.ceilings, tenant.ceilings);
    tenant.egress = egress(&args.egress, None);
    if let Some(flaw) = tenant.flaw() {
        return Err(Error::new(
            Code::Usage,
            flaw,
            "correct the options and run the command again",
        ));
    }
    let listed = session.list_tenants().await?;
    if listed.iter().any(|summary| summary.name == args.name) {
        return Err(Error::new(
            Code::Exists,
            format!("the tenant {} exists already", args.name),
            "`casemate tenant show` shows it, `casemate tenant hosts` changes its hosts, \
             `casemate tenant update` its ceilings, `casemate token create --scope tenant` makes \
             another token",
        ));
    }
    let (tenant, envelope) = signed(&session, args, tenant, &root)?;
    require_free(session.known.judge(), &listed, &tenant.id, &tenant.hosts)?;
    session.publish(&envelope).await?;
    hand_over(&mut session, args, &tenant).await
}

/// The statement to hand in: an earlier try may have been cut off between remembering and handing
/// in.
fn signed(
    session: &Session<'_>,
    args: &TenantAdd,
    asked: Tenant,
    root: &SigningKey,
) -> Result<(Tenant, Envelope), Error> {
    match remembered(session, &args.name) {
        None => {
            let envelope = asked.sign(&[root]);
            Ok((asked, envelope))
        }
        Some((earlier, envelope)) if gives_the_same(&earlier, &asked) => Ok((earlier, envelope)),
        Some((earlier, _)) if args.replace => {
            // The statement is the root's next version for the same tenant: it replaces the first
            // one everywhere.
            let tenant = Tenant {
                version: earlier.version + 1,
                current: asked.current,
                hosts: asked.hosts,
                ceilings: asked.ceilings,
                egress: asked.egress,
                issued: asked.issued,
                expires: asked.expires,
                ..earlier
            };
            let envelope = tenant.sign(&[root]);
            Ok((tenant, envelope))
        }
        Some((earlier, _)) => Err(signed_before(&earlier)),
    }
}

/// Makes the tenant's token and prints what the tenant is to be given.
async fn hand_over(
    session: &mut Session<'_>,
    args: &TenantAdd,
    tenant: &Tenant,
) -> Result<(), Error> {
    let cx = session.cx;
    let (id, expires) = (tenant.id, tenant.expires);
    let label = format!("tenant {}", args.name);
    let made = tokens::make(session, Scope::Tenant(id), &label, None).await?;
    let written = write_once(args.token_out.as_deref(), &made.token)?;
    let token = (!written).then_some(&made.token);
    let login = format!("{}#{}", session.api.address(), session.fleet());
    let result = json!({
        "id": id,
        "name": args.name,
        "token": token,
        "token_id": made.id,
        "login": login,
        "expires": expires,
    });
    cx.output.result(&result, || {
        let shown = token.map_or("(in the file)", String::as_str);
        format!(
            "tenant  {}\nid      {id}\nlogin   {login}\ntoken   {shown}",
            args.name
        )
    })?;
    cx.output.hint(
        "Give the tenant the login line by a way that you trust, and the token in secret. The \
         token is shown this once.\n\
         The tenant runs: casemate login LOGIN --token-file FILE",
    );
    Ok(())
}

/// The statement that this home has signed for a name.
fn remembered(session: &Session<'_>, name: &Name) -> Option<(Tenant, Envelope)> {
    let id = session.known.judge().tenant_named(name)?;
    let mut held = session.known.tenant_statements();
    let (_, envelope) = held.find(|(held, _)| **held == id)?;
    Some((Tenant::read(envelope).ok()?, envelope.clone()))
}

fn gives_the_same(earlier: &Tenant, asked: &Tenant) -> bool {
    earlier.id == asked.id
        && earlier.current == asked.current
        && earlier.hosts == asked.hosts
        && earlier.ceilings == asked.ceilings
        && earlier.egress == asked.egress
}

/// The error for a name for which the root has signed another statement, which the control plane
/// does not list.
fn signed_before(earlier: &Tenant) -> Error {
    let keys = earlier.current.keys.iter();
    let keys = keys.map(|key| format!("key {key}, fingerprint {}", key.fingerprint()));
    let hosts = earlier.hosts.iter().map(|host| format!("host {host}"));
    Error::new(
        Code::Exists,
        format!(
            "this home has signed a tenant {} with other keys, hosts or limits, and the control \
             plane does not show it",
            earlier.name
        ),
        "to hand in the earlier statement, repeat the command with the keys and hosts above; if it \
         was a mistake, `--replace` signs these keys, hosts and limits in its place. If that \
         tenant has been in use, the control plane hides it: find out why first",
    )
    .at(format!("tenant {}", earlier.id))
    .lines(keys.chain(hosts))
}

/// The public keys, checked against the given fingerprints.
fn key_set(args: &TenantAdd) -> Result<KeySet, Error> {
    let (mut keys, mut fingerprints) = (Vec::new(), Vec::new());
    for text in &args.keys {
        // The file `tenant.pub` has quotes around the key.
        let text = text.trim().trim_matches('"');
        match (
            text.parse::<PublicKey>(),
            text.to_ascii_lowercase().parse::<Digest>(),
        ) {
            (Ok(key), _) => keys.push(key),
            (_, Ok(fingerprint)) => fingerprints.push(fingerprint),
            (Err(error), Err(_)) => {
                return Err(Error::new(
                    Code::Usage,
                    "expected a public key or a fingerprint, as `casemate tenant key` prints them",
                    "copy it whole",
                )
                .at(text)
                .source(error));
            }
        }
    }
    let made: BTreeSet<Digest> = keys.iter().map(PublicKey::fingerprint).collect();
    if let Some(other) = fingerprints
        .iter()
        .find(|fingerprint| !made.contains(fingerprint))
    {
        return Err(Error::new(
            Code::Refused,
            format!("no public key that was given has the fingerprint {other}"),
            "give the public key too (`--key PUBLIC_KEY --key FINGERPRINT`); if you did, it is not \
             the tenant's: ask for it again by a way that you trust",
        ));
    }
    Ok(KeySet {
        keys,
        threshold: args.threshold,
    })
}
