//! `casemate status`.

use std::collections::BTreeSet;

use casemate_api::tenant::TenantStatus;
use casemate_trust::judge::TenantState;
use serde_json::json;

use super::{freshness, secrets, short, stopped};
use crate::args::Whose;
use crate::error::Error;
use crate::machine::{date, printable, printable_lines};
use crate::output::table;
use crate::session::Context;
use crate::tenancy::Tenancy;

const MIB_BYTES: u64 = 1024 * 1024;

/// `casemate status`
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub(super) async fn status(cx: &Context, whose: &Whose) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let status = tenancy.status().await?;
    let places = secrets::places(&tenancy);
    let manifest = tenancy.manifest().cloned();
    let functions: Vec<_> = manifest
        .iter()
        .flat_map(|manifest| &manifest.functions)
        .map(|(name, wanted)| {
            let release = tenancy.release(&wanted.release);
            let hosts = release.map(|release| release.hosts).unwrap_or_default();
            let nodes = status.functions.get(name);
            json!({
                "name": name,
                "release": wanted.release,
                "fallbacks": wanted.fallbacks,
                "pools": wanted.pools,
                "hosts": hosts,
                "hosts_of_other_tenants": nodes.map(|nodes| &nodes.hosts_of_other_tenants),
                "nodes_current": nodes.map_or(0, |nodes| nodes.nodes_current),
                "nodes_total": nodes.map_or(0, |nodes| nodes.nodes_total),
            })
        })
        .collect();
    let manifest_version = manifest.as_ref().map(|manifest| manifest.version);
    let manifest_expires = manifest.as_ref().map(|manifest| manifest.expires);
    let result = json!({
        "tenant": tenancy.tenant.name,
        "id": tenancy.id,
        "tenant_version": tenancy.tenant.version,
        "tenant_expires": tenancy.tenant.expires,
        "hosts": tenancy.tenant.hosts,
        "manifest_version": manifest_version,
        "manifest_expires": manifest_expires,
        "freshness": freshness::describe(&tenancy),
        "functions": functions,
        "secrets": places.iter().map(|place| json!({
            "name": place.name, "version": place.version, "pool": place.pool, "epoch": place.epoch,
        })).collect::<Vec<_>>(),
        "nodes": status.nodes,
        "storage": status.storage,
        "stopped_credentials": status.stopped_credentials,
    });
    cx.output.result(&result, || {
        let tenant = &tenancy.tenant;
        let mut parts = vec![format!(
            "tenant {}, until {}",
            tenant.name,
            date(tenant.expires)
        )];
        match (&manifest, manifest_expires) {
            (Some(manifest), Some(expires)) => {
                parts.push(format!(
                    "manifest {}, until {}",
                    manifest.version,
                    date(expires)
                ));
                parts.push(freshness::tell(&tenancy));
                parts.push(functions_table(&tenancy, &status));
            }
            _ => parts.push("nothing is deployed yet".to_owned()),
        }
        parts.push(format!(
            "storage: {} of {} MiB",
            status.storage.used_bytes.div_ceil(MIB_BYTES),
            status.storage.limit_bytes / MIB_BYTES
        ));
        let nodes: Vec<_> = status
            .nodes
            .iter()
            .map(|node| {
                let refused = node.refused.as_ref();
                vec![
                    node.node.to_string(),
                    node.pool.to_string(),
                    if node.connected { "connected" } else { "away" }.to_owned(),
                    node.manifest_version
                        .map_or("-".to_owned(), |version| version.to_string()),
                    match refused {
                        Some(no) => format!("refused {} ({})", no.what, no.code),
                        None if node.connected
                            && node.manifest_version.is_some()
                            && !node.is_stored =>
                        {
                            "fetching".to_owned()
                        }
                        None => String::new(),
                    },
                ]
            })
            .collect();
        if !nodes.is_empty() {
            parts.push(table(&["NODE", "POOL", "STATE", "MANIFEST", ""], &nodes));
        }
        parts.extend(refusals(&status));
        parts.extend(stopped::describe(&status.stopped_credentials));
        parts.join("\n\n")
    })?;
    warn_of_lost_hosts(&tenancy, &status);
    secrets::warn_of_old_keys(&tenancy, &places);
    Ok(())
}

/// The reasons of the nodes that refused something, each once; `None` if no node refused.
fn refusals(status: &TenantStatus) -> Option<String> {
    let refused = status.nodes.iter().filter_map(|node| node.refused.as_ref());
    let told: BTreeSet<_> = refused
        .map(|refused| {
            format!(
                "{}: {}",
                printable(&refused.code),
                printable_lines(&refused.message)
            )
        })
        .collect();
    (!told.is_empty()).then(|| Vec::from_iter(told).join("\n"))
}

/// Warn about hosts that belong to another tenant, according to the control plane.
pub(super) fn warn_of_lost_hosts(tenancy: &Tenancy<'_>, status: &TenantStatus) {
    for (name, function) in &status.functions {
        for host in &function.hosts_of_other_tenants {
            tenancy.session.cx.output.warn(&format!(
                "{} belongs to another tenant, which the operator admitted first: its callers do not reach {name}. \
                 Ask the operator, or take the host out of casemate.toml",
                printable(host)
            ));
        }
    }
}

fn functions_table(tenancy: &Tenancy<'_>, status: &TenantStatus) -> String {
    let state: Option<&TenantState> = tenancy.session.known.judge().tenant(&tenancy.id);
    let accord = state.and_then(|state| state.manifest.as_ref());
    let mut rows = Vec::new();
    for (name, wanted) in accord.iter().flat_map(|accord| &accord.manifest.functions) {
        let release = accord.and_then(|accord| accord.releases.get(&wanted.release));
        let hosts: Vec<_> = release
            .iter()
            .flat_map(|release| &release.hosts)
            .map(ToString::to_string)
            .collect();
        let nodes = status.functions.get(name);
        rows.push(vec![
            name.to_string(),
            short(&wanted.release),
            nodes.map_or("-".to_owned(), |nodes| {
                format!("{} of {}", nodes.nodes_current, nodes.nodes_total)
            }),
            wanted
                .fallbacks
                .iter()
                .map(short)
                .collect::<Vec<_>>()
                .join(" "),
            hosts.join(" "),
        ]);
    }
    table(&["FUNCTION", "RELEASE", "NODES", "EARLIER", "HOSTS"], &rows)
}
