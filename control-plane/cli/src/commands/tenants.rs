//! `casemate tenant`.

use std::collections::BTreeSet;

use casemate_api::tenant::TenantSummary;
use casemate_api::token::Scope;
use casemate_trust::dsse::Envelope;
use casemate_trust::host::HostPattern;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::statement::{KeySet, Statement as _, Tenant};
use serde_json::json;

use super::{tokens, write_once};
use crate::args::{Ceilings, TenantAdd, TenantHosts, TenantKey};
use crate::error::{Code, Error};
use crate::keys::{TENANT, TENANT_PUBLIC};
use crate::machine::{DAY, date, now, random};
use crate::output::table;
use crate::session::{Context, Session};

/// `casemate tenant key`
pub(super) fn key(cx: &Context, args: &TenantKey) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let keys = cx.keys();
    let (public, new) = match (keys.tenant_public()?, keys.has(TENANT)) {
        (Some(public), true) => (public, false),
        (_, true) => {
            let public = keys.signing(TENANT, Purpose::Tenant)?.public();
            cx.home.write_json(TENANT_PUBLIC, &public)?;
            (public, false)
        }
        (_, false) => {
            let protection = keys.protection(args.new_key.plain_keys, "tenant key")?;
            let key = SigningKey::generate(&mut random)
                .map_err(|error| Error::internal("no key could be made").source(error))?;
            keys.create(TENANT, Purpose::Tenant, key.expose_secret(), &protection)?;
            cx.home.write_json(TENANT_PUBLIC, &key.public())?;
            (key.public(), true)
        }
    };
    let fingerprint = public.fingerprint();
    let result = json!({ "public_key": public, "fingerprint": fingerprint, "new": new });
    cx.output.result(&result, || {
        format!("public key   {public}\nfingerprint  {fingerprint}")
    })?;
    if new {
        cx.output.hint(&format!(
            "Back up {}: who loses it needs the operator to go on.\n\
             Give the public key to the operator, and the fingerprint by another way: a call, a meeting.",
            cx.home.file(TENANT).display()
        ));
    }
    Ok(())
}

/// `casemate tenant add`
pub(super) async fn add(cx: &Context, args: &TenantAdd) -> Result<(), Error> {
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
            format!("there is a tenant {} already", args.name),
            "`casemate tenant show` shows it, `casemate tenant hosts` changes its hosts, \
             `casemate token create --scope tenant` makes another token",
        ));
    }
    require_free(&listed, &tenant.id, &tenant.hosts)?;
    // An earlier try may have been cut off between remembering and handing in.
    let envelope = match remembered(&session, &args.name) {
        None => tenant.sign(&[&root]),
        Some((earlier, envelope)) if gives_the_same(&earlier, &tenant) => {
            tenant = earlier;
            envelope
        }
        Some((earlier, _)) if args.replace => {
            // The root's next word on the same tenant: whoever has seen the first one takes this in its place.
            tenant = Tenant {
                version: earlier.version + 1,
                current: tenant.current,
                hosts: tenant.hosts,
                ceilings: tenant.ceilings,
                issued,
                expires,
                ..earlier
            };
            tenant.sign(&[&root])
        }
        Some((earlier, _)) => return Err(signed_before(&earlier)),
    };
    session.publish(&envelope).await?;
    let (id, expires) = (tenant.id, tenant.expires);
    let label = format!("tenant {}", args.name);
    let made = tokens::make(&mut session, Scope::Tenant(id), &label, None).await?;
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
        "Give the tenant the login line by a way that you trust, and the token in secret. The token is shown this once.\n\
         The tenant runs: casemate login LOGIN --token-file FILE",
    );
    Ok(())
}

/// A node routes a host to the function that had it first, so two tenants with one host would be a matter of luck.
fn require_free(
    listed: &[TenantSummary],
    tenant: &TenantId,
    hosts: &[HostPattern],
) -> Result<(), Error> {
    let taken = |host: &HostPattern, summary: &TenantSummary| {
        let theirs = summary
            .hosts
            .iter()
            .filter_map(|theirs| theirs.parse().ok());
        let mut theirs = theirs.filter(|theirs: &HostPattern| theirs.overlaps(host));
        let theirs = theirs.next()?;
        Some(format!("host {host}: tenant {} has {theirs}", summary.name))
    };
    let others = listed.iter().filter(|summary| summary.id != *tenant);
    let taken: Vec<_> = others
        .flat_map(|summary| hosts.iter().filter_map(move |host| taken(host, summary)))
        .collect();
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::Exists,
        "another tenant may answer for this host already",
        "name another host, or take it away from that tenant first: `casemate tenant hosts NAME --remove HOST`",
    )
    .lines(taken))
}

/// What this home has signed under a name.
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
}

/// The error for a name under which the root has signed something else, which the control plane does not show.
fn signed_before(earlier: &Tenant) -> Error {
    let keys = earlier.current.keys.iter();
    let keys = keys.map(|key| format!("key {key}, fingerprint {}", key.fingerprint()));
    let hosts = earlier.hosts.iter().map(|host| format!("host {host}"));
    Error::new(
        Code::Exists,
        format!(
            "this home has signed a tenant {} with other keys, hosts or limits, and the control plane does not show it",
            earlier.name
        ),
        "to hand that one in, repeat the command with what is named above; if it was a mistake, `--replace` signs these \
         keys, hosts and limits in its place. If that tenant has been in use, the control plane hides it: find out why first",
    )
    .at(format!("tenant {}", earlier.id))
    .lines(keys.chain(hosts))
}

/// Public keys, and the fingerprints that they must have where such are given.
fn key_set(args: &TenantAdd) -> Result<KeySet, Error> {
    let (mut keys, mut fingerprints) = (Vec::new(), Vec::new());
    for text in &args.keys {
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
            "give the public key too (`--key PUBLIC_KEY --key FINGERPRINT`); if you did, it is not the tenant's: \
             ask for it again by a way that you trust",
        ));
    }
    Ok(KeySet {
        keys,
        threshold: args.threshold,
    })
}

fn ceilings(
    args: &Ceilings,
    default: casemate_trust::statement::Ceilings,
) -> casemate_trust::statement::Ceilings {
    casemate_trust::statement::Ceilings {
        functions: args.max_functions.unwrap_or(default.functions),
        cpu_time_ms: args.max_cpu_time_ms.unwrap_or(default.cpu_time_ms),
        wall_time_ms: args.max_wall_time_ms.unwrap_or(default.wall_time_ms),
        heap_mib: args.max_heap_mib.unwrap_or(default.heap_mib),
        subrequests: args.max_subrequests.unwrap_or(default.subrequests),
        concurrency: args.max_concurrency.unwrap_or(default.concurrency),
        call_time_ms: args.max_call_time_ms.unwrap_or(default.call_time_ms),
    }
}

/// `casemate tenant list`
pub(super) async fn list(cx: &Context) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let tenants = session.list_tenants().await?;
    cx.output.result(&tenants, || {
        let rows: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                vec![
                    tenant.name.to_string(),
                    super::short(&tenant.id),
                    tenant.functions.to_string(),
                    tenant
                        .manifest_version
                        .map_or("-".to_owned(), |version| version.to_string()),
                    date(tenant.expires),
                    tenant.hosts.join(" "),
                ]
            })
            .collect();
        table(
            &["TENANT", "ID", "FUNCTIONS", "MANIFEST", "EXPIRES", "HOSTS"],
            &rows,
        )
    })
}

/// `casemate tenant show`
pub(super) async fn show(cx: &Context, name: &Name) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let id = session.tenant_id(name).await?;
    let (tenant, _) = session.read_tenant(id).await?;
    session.warn_of_expiry(
        "the tenant's statement",
        tenant.expires,
        "`casemate tenant hosts NAME` renews it.",
    );
    cx.output.result(&tenant, || {
        let mut lines = vec![
            format!("tenant     {} (version {})", tenant.name, tenant.version),
            format!("id         {}", tenant.id),
            format!("expires    {}", date(tenant.expires)),
            format!(
                "threshold  {} of {}",
                tenant.current.threshold,
                tenant.current.keys.len()
            ),
        ];
        lines.extend(
            tenant
                .current
                .keys
                .iter()
                .map(|key| format!("key        {key}  {}", key.fingerprint())),
        );
        lines.extend(tenant.hosts.iter().map(|host| format!("host       {host}")));
        let most = &tenant.ceilings;
        lines.push(format!(
            "at most    {} functions, {} ms CPU, {} ms, {} MiB, {} calls of {} ms, {} at a time",
            most.functions,
            most.cpu_time_ms,
            most.wall_time_ms,
            most.heap_mib,
            most.subrequests,
            most.call_time_ms,
            most.concurrency
        ));
        lines.join("\n")
    })
}

/// `casemate tenant hosts`
pub(super) async fn hosts(cx: &Context, args: &TenantHosts) -> Result<(), Error> {
    let root = cx.root_key()?;
    let mut session = Session::open(cx).await?;
    let id = session.tenant_id(&args.name).await?;
    let (mut tenant, _) = session.read_tenant(id).await?;
    if let Some(other) = args.remove.iter().find(|host| !tenant.hosts.contains(host)) {
        return Err(Error::new(
            Code::NotFound,
            format!("the tenant {} does not have the host {other}", args.name),
            "`casemate tenant show` shows those that it has",
        ));
    }
    require_free(&session.list_tenants().await?, &id, &args.add)?;
    tenant.hosts.retain(|host| !args.remove.contains(host));
    for host in &args.add {
        if !tenant.hosts.contains(host) {
            tenant.hosts.push(host.clone());
        }
    }
    tenant.version += 1;
    tenant.issued = session.known.judge().time(now());
    tenant.expires = tenant.issued + u64::from(args.lifetime.expires_days) * DAY;
    if let Some(flaw) = tenant.flaw() {
        return Err(Error::new(
            Code::Usage,
            flaw,
            "correct the options and run the command again",
        ));
    }
    session.publish(&tenant.sign(&[&root])).await?;
    let result = json!({
        "name": tenant.name,
        "version": tenant.version,
        "hosts": tenant.hosts,
        "expires": tenant.expires,
    });
    cx.output.result(&result, || {
        let hosts: Vec<_> = tenant.hosts.iter().map(ToString::to_string).collect();
        format!("tenant {} may answer for {}", tenant.name, hosts.join(", "))
    })
}
