//! `casemate tenant`.

use std::collections::BTreeSet;

use casemate_api::tenant::{TenantStatus, TenantSummary};
use casemate_api::token::Scope;
use casemate_trust::dsse::Envelope;
use casemate_trust::host::HostPattern;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::Judge;
use casemate_trust::key::PublicKey;
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::statement::{EgressCeiling, KeySet, Statement as _, Tenant};
use serde_json::json;

use super::tenant_keys::is_removed;
use super::{show_key, tokens, write_once};
use crate::args::{
    Ceilings, EgressLimits, Lifetime, TenantAdd, TenantHosts, TenantKey, TenantUpdate,
};
use crate::error::{Code, Error};
use crate::keys::{TENANT, TENANT_PUBLIC};
use crate::machine::{DAY, date, now, printable};
use crate::output::table;
use crate::session::{Context, Session};

/// `casemate tenant key`
pub(super) fn key(cx: &Context, args: &TenantKey) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let (files, plain) = ((TENANT, TENANT_PUBLIC), args.new_key.plain_keys);
    let (_, new) = show_key(cx, files, Purpose::Tenant, plain, "tenant key")?;
    if new {
        cx.output.hint(&format!(
            "Back up {}: without it only the operator can restore your access.\n\
             Give the public key to the operator, and the fingerprint by another way: a call, a meeting.",
            cx.home.file(TENANT).display()
        ));
    }
    Ok(())
}

/// `casemate tenant add`
#[expect(clippy::too_many_lines, reason = "older than the limit")]
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
            "`casemate tenant show` shows it, `casemate tenant hosts` changes its hosts, `casemate tenant update` its \
             ceilings, `casemate token create --scope tenant` makes another token",
        ));
    }
    // An earlier try may have been interrupted after the statement was stored and before it was
    // uploaded.
    let envelope = match remembered(&session, &args.name) {
        None => tenant.sign(&[&root]),
        Some((earlier, envelope)) if gives_the_same(&earlier, &tenant) => {
            tenant = earlier;
            envelope
        }
        Some((earlier, _)) if args.replace => {
            // The statement is the root's next version for the same tenant: it replaces the first
            // one everywhere.
            tenant = Tenant {
                version: earlier.version + 1,
                current: tenant.current,
                hosts: tenant.hosts,
                ceilings: tenant.ceilings,
                egress: tenant.egress,
                issued,
                expires,
                ..earlier
            };
            tenant.sign(&[&root])
        }
        Some((earlier, _)) => return Err(signed_before(&earlier)),
    };
    require_free(session.known.judge(), &listed, &tenant.id, &tenant.hosts)?;
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

/// Refuses hosts that another tenant has. The statements that this home has signed decide first, so
/// that the control plane cannot hide a tenant; its list is used too, for tenants that another home
/// has signed.
fn require_free(
    judge: &Judge,
    listed: &[TenantSummary],
    tenant: &TenantId,
    hosts: &[HostPattern],
) -> Result<(), Error> {
    let mut taken = BTreeSet::new();
    let mut compare = |name: &Name, theirs: &HostPattern, source: &str| {
        for host in hosts.iter().filter(|host| host.overlaps(theirs)) {
            taken.insert(format!(
                "host {host}: tenant {name} has {theirs} ({source})"
            ));
        }
    };
    for (_, state) in judge.tenants().filter(|(id, _)| *id != tenant) {
        for theirs in &state.tenant.hosts {
            compare(&state.tenant.name, theirs, "signed, known to this home");
        }
    }
    let known = |id: &TenantId| judge.tenant(id).is_some();
    let unknown = listed.iter().filter(|other| other.id != *tenant);
    for other in unknown.filter(|other| !known(&other.id)) {
        for theirs in other.hosts.iter().filter_map(|host| host.parse().ok()) {
            compare(&other.name, &theirs, "listed by the control plane");
        }
    }
    if taken.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        Code::Exists,
        "another tenant may answer for this host already",
        "name another host, or remove it from that tenant first: `casemate tenant hosts NAME --remove HOST`",
    )
    .lines(taken))
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
            "this home has signed a tenant {} with other keys, hosts or limits, and the control plane does not show it",
            earlier.name
        ),
        "to hand that one in, repeat the command with what is named above; if it was a mistake, `--replace` signs these \
         keys, hosts and limits in its place. If that tenant has been in use, the control plane hides it: find out why first",
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
        memory_mib: args.max_memory_mib.unwrap_or(default.memory_mib),
    }
}

/// The egress ceiling: each list that is named replaces the earlier one.
fn egress(args: &EgressLimits, before: Option<EgressCeiling>) -> Option<EgressCeiling> {
    let named = !args.egress_hosts.is_empty()
        || !args.egress_ports.is_empty()
        || !args.private_networks.is_empty();
    if !named {
        return before;
    }
    let mut ceiling = before.unwrap_or_default();
    if !args.egress_hosts.is_empty() {
        ceiling.hosts.clone_from(&args.egress_hosts);
    }
    if !args.egress_ports.is_empty() {
        ceiling.ports.clone_from(&args.egress_ports);
    }
    if !args.private_networks.is_empty() {
        ceiling.private_networks.clone_from(&args.private_networks);
    }
    Some(ceiling)
}

/// The egress ceiling in a line, for people.
fn egress_text(egress: Option<&EgressCeiling>) -> String {
    match egress {
        Some(ceiling) => format!("calls      {ceiling}"),
        None => "calls      wherever its functions declare, the node's private addresses included"
            .into(),
    }
}

/// `casemate tenant update`
pub(super) async fn update(cx: &Context, args: &TenantUpdate) -> Result<(), Error> {
    let root = cx.root_key()?;
    let mut session = Session::open(cx).await?;
    let id = session.tenant_id(&args.name).await?;
    let (mut tenant, _) = session.read_tenant(id).await?;
    tenant.ceilings = ceilings(&args.ceilings, tenant.ceilings);
    tenant.egress = match args.no_egress_ceiling {
        true => None,
        false => egress(&args.egress, tenant.egress),
    };
    next_version(&session, &mut tenant, &args.lifetime)?;
    session.publish(&tenant.sign(&[&root])).await?;
    let result = json!({
        "name": tenant.name,
        "version": tenant.version,
        "ceilings": tenant.ceilings,
        "egress": tenant.egress,
        "expires": tenant.expires,
    });
    cx.output.result(&result, || {
        [
            format!("tenant     {} (version {})", tenant.name, tenant.version),
            format!("expires    {}", date(tenant.expires)),
            most(&tenant.ceilings),
            egress_text(tenant.egress.as_ref()),
        ]
        .join("\n")
    })
}

/// The ceilings in a line, for people.
fn most(most: &casemate_trust::statement::Ceilings) -> String {
    format!(
        "at most    {} functions, {} MiB on a node; {} ms CPU, {} ms, {} MiB of heap, {} calls of {} ms, {} at a time",
        most.functions,
        most.memory_mib,
        most.cpu_time_ms,
        most.wall_time_ms,
        most.heap_mib,
        most.subrequests,
        most.call_time_ms,
        most.concurrency
    )
}

/// Makes a changed statement the tenant's next one.
fn next_version(
    session: &Session<'_>,
    tenant: &mut Tenant,
    lifetime: &Lifetime,
) -> Result<(), Error> {
    tenant.version += 1;
    tenant.issued = session.known.judge().time(now());
    tenant.expires = tenant.issued + u64::from(lifetime.expires_days) * DAY;
    tenant.flaw().map_or(Ok(()), |flaw| {
        Err(Error::new(
            Code::Usage,
            flaw,
            "correct the options and run the command again",
        ))
    })
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
                    tenant
                        .memory_mib
                        .map_or("-".to_owned(), |mib| mib.to_string()),
                    date(tenant.expires),
                    tenant.hosts.join(" "),
                ]
            })
            .collect();
        table(
            &[
                "TENANT",
                "ID",
                "FUNCTIONS",
                "MANIFEST",
                "MIB",
                "EXPIRES",
                "HOSTS",
            ],
            &rows,
        )
    })
}

/// `casemate tenant show`
pub(super) async fn show(cx: &Context, name: &Name) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let id = session.tenant_id(name).await?;
    let (tenant, _) = session.read_tenant(id).await?;
    if !cx.is_operator() {
        session.warn_of_expiry(
            "the tenant's statement",
            tenant.expires,
            "Ask the operator to renew it: `casemate tenant update NAME`.",
        );
    }
    cx.output.result(&tenant, || {
        let mut lines = vec![
            format!("tenant     {} (version {})", tenant.name, tenant.version),
            format!("id         {}", tenant.id),
            format!("admitted   {}", tenant.admitted.map_or("before that was signed".to_owned(), date)),
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
        if is_removed(&tenant) {
            lines.push("removed    no host leads to its functions, and nobody can sign for it".to_owned());
        }
        let contested = session.known.judge().contested_hosts(&id);
        lines.extend(contested.into_iter().map(|(host, owner)| {
            format!(
                "contested  {host}: names that the tenant {} has too are that tenant's, which was admitted first",
                owner.tenant.name
            )
        }));
        lines.push(most(&tenant.ceilings));
        lines.push(egress_text(tenant.egress.as_ref()));
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
    let listed = session.list_tenants().await?;
    require_free(session.known.judge(), &listed, &id, &args.add)?;
    warn_of_callers(&mut session, &id, &args.remove).await?;
    tenant.hosts.retain(|host| !args.remove.contains(host));
    for host in &args.add {
        if !tenant.hosts.contains(host) {
            tenant.hosts.push(host.clone());
        }
    }
    next_version(&session, &mut tenant, &args.lifetime)?;
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

/// Names the functions whose callers will get 404.
async fn warn_of_callers(
    session: &mut Session<'_>,
    id: &TenantId,
    removed: &[HostPattern],
) -> Result<(), Error> {
    if removed.is_empty() {
        return Ok(());
    }
    let path = format!("/v1/tenants/{id}/status");
    let status: TenantStatus = session.api.get(&path).await?;
    for (name, function) in &status.functions {
        let hosts = function.hosts.iter().filter(|host| {
            let host = host.parse::<HostPattern>();
            host.is_ok_and(|host| removed.iter().any(|removed| removed.overlaps(&host)))
        });
        for host in hosts {
            session.cx.output.warn(&format!(
                "the function {name} answers for {}: its callers get 404 once the nodes have this, and the tenant's next \
                 deployment of it is refused",
                printable(host)
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::FleetId;
    use casemate_trust::key::SigningKey;
    use casemate_trust::statement::Root;

    use super::*;
    use crate::memory::tests::accept;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn a_host_is_refused_even_if_the_control_plane_hides_its_tenant() {
        let root = Root {
            version: 1,
            keys: vec![key(1).public()],
            threshold: 1,
            issued: 1,
            expires: 9000,
        };
        let root = root.sign(&[&key(1)]);
        let mut judge = Judge::new(FleetId(root.payload_digest().0), None);
        accept(&mut judge, &root);
        let tenant = Tenant::first(
            judge.fleet(),
            "shop".parse().unwrap(),
            KeySet::single(key(2).public()),
            vec!["*.shop.test".parse().unwrap()],
            1,
            9000,
        );
        accept(&mut judge, &tenant.sign(&[&key(1)]));
        let other = TenantId([7; 32]);
        let hosts = |host: &str| [host.parse::<HostPattern>().unwrap()];
        let taken = require_free(&judge, &[], &other, &hosts("a.shop.test")).unwrap_err();
        let text = taken.to_text();
        assert!(text.contains("tenant shop has *.shop.test"), "{text}");
        assert!(require_free(&judge, &[], &tenant.id, &hosts("a.shop.test")).is_ok());
        assert!(require_free(&judge, &[], &other, &hosts("a.b.shop.test")).is_ok());
    }

    #[test]
    fn a_ceiling_that_is_named_replaces_its_own_list_only() {
        let args = |hosts: &[&str], ports: &[u16]| EgressLimits {
            egress_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            egress_ports: ports.to_vec(),
            private_networks: vec![],
        };
        assert_eq!(egress(&args(&[], &[]), None), None);
        let first = egress(&args(&["a.test"], &[443]), None);
        let next = egress(&args(&[], &[8443]), first).unwrap();
        assert_eq!(next.ports, [8443]);
        assert_eq!(next.hosts, ["a.test".parse().unwrap()]);
    }
}
