//! `casemate tenant`.

mod add;
mod free_hosts;
mod limits;

use casemate_api::tenant::TenantStatus;
use casemate_trust::host::HostPattern;
use casemate_trust::id::TenantId;
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::statement::{Statement as _, Tenant};
use serde_json::json;

use super::show_key::show_key;
use super::tenant_keys::is_removed;
use crate::args::{Lifetime, TenantHosts, TenantKey, TenantUpdate};
use crate::error::{Code, Error};
use crate::keys::{TENANT, TENANT_PUBLIC};
use crate::machine::{DAY, date, now, printable, short};
use crate::output::table;
use crate::session::{Context, Session};
use free_hosts::require_free;
use limits::{ceilings, ceilings_text, egress, egress_text};

pub(super) use add::add;

/// `casemate tenant key`
pub(super) fn key(cx: &Context, args: &TenantKey) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let (files, plain) = ((TENANT, TENANT_PUBLIC), args.new_key.plain_keys);
    let (_, new) = show_key(cx, files, Purpose::Tenant, plain, "tenant key")?;
    if new {
        cx.output.hint(&format!(
            "Back up {}: without it only the operator can restore your access.\n\
             Give the public key to the operator, and the fingerprint by a different way, such as \
              a call or a meeting.",
            cx.home.file(TENANT).display()
        ));
    }
    Ok(())
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
            ceilings_text(&tenant.ceilings),
            egress_text(tenant.egress.as_ref()),
        ]
        .join("\n")
    })
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
                    short(&tenant.id),
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
            format!(
                "admitted   {}",
                tenant.admitted.map_or(
                    "unknown: the statement predates this field".to_owned(),
                    date
                )
            ),
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
            lines.push(
                "removed    its functions have no hosts, and no key can sign for it".to_owned(),
            );
        }
        let contested = session.known.judge().contested_hosts(&id);
        lines.extend(contested.into_iter().map(|(host, owner)| {
            format!(
                "contested  {host}: the tenant {} was admitted first and gets the names that both \
                 tenants have",
                owner.tenant.name
            )
        }));
        lines.push(ceilings_text(&tenant.ceilings));
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
            "`casemate tenant show` shows the tenant's hosts",
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
                "the function {name} answers for {}: its callers get 404 once the nodes have this \
                 statement, and the tenant's next deployment of the function is refused",
                printable(host)
            ));
        }
    }
    Ok(())
}
