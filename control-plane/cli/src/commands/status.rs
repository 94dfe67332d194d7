//! `casemate status`.

use std::collections::BTreeSet;

use casemate_api::tenant::{NodeProgress, TenantStatus};
use casemate_trust::judge::TenantState;
use casemate_trust::secret::SecretPlace;
use serde_json::{Value, json};

use super::{freshness, secrets, stopped};
use crate::args::Whose;
use crate::error::Error;
use crate::machine::{date, printable, printable_lines, short};
use crate::output::table;
use crate::session::Context;
use crate::tenancy::Tenancy;

const MIB_BYTES: u64 = 1024 * 1024;

/// `casemate status`
pub(super) async fn status(cx: &Context, whose: &Whose) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, whose.tenant.as_ref()).await?;
    tenancy.session.read_pools().await?;
    let status = tenancy.status().await?;
    let places = secrets::places(&tenancy);
    let result = to_json(&tenancy, &status, &places);
    cx.output.result(&result, || to_text(&tenancy, &status))?;
    tenancy.warn_of_lost_hosts(&status);
    secrets::warn_of_old_keys(&tenancy, &places);
    Ok(())
}

fn to_json(tenancy: &Tenancy<'_>, status: &TenantStatus, places: &[SecretPlace]) -> Value {
    let manifest = tenancy.manifest();
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
    json!({
        "tenant": tenancy.tenant.name,
        "id": tenancy.id,
        "tenant_version": tenancy.tenant.version,
        "tenant_expires": tenancy.tenant.expires,
        "hosts": tenancy.tenant.hosts,
        "manifest_version": manifest.map(|manifest| manifest.version),
        "manifest_expires": manifest.map(|manifest| manifest.expires),
        "freshness": freshness::describe(tenancy),
        "functions": functions,
        "secrets": places.iter().map(|place| json!({
            "name": place.name, "version": place.version, "pool": place.pool, "epoch": place.epoch,
        })).collect::<Vec<_>>(),
        "nodes": status.nodes,
        "storage": status.storage,
        "stopped_credentials": status.stopped_credentials,
    })
}

fn to_text(tenancy: &Tenancy<'_>, status: &TenantStatus) -> String {
    let tenant = &tenancy.tenant;
    let mut parts = vec![format!(
        "tenant {}, until {}",
        tenant.name,
        date(tenant.expires)
    )];
    match tenancy.manifest() {
        Some(manifest) => {
            parts.push(format!(
                "manifest {}, until {}",
                manifest.version,
                date(manifest.expires)
            ));
            parts.push(freshness::tell(tenancy));
            parts.push(functions_table(tenancy, status));
        }
        None => parts.push("nothing is deployed yet".to_owned()),
    }
    parts.push(format!(
        "storage: {} of {} MiB",
        status.storage.used_bytes.div_ceil(MIB_BYTES),
        status.storage.limit_bytes / MIB_BYTES
    ));
    let nodes: Vec<_> = status.nodes.iter().map(node_row).collect();
    if !nodes.is_empty() {
        parts.push(table(&["NODE", "POOL", "STATE", "MANIFEST", ""], &nodes));
    }
    parts.extend(refusals(status));
    parts.extend(stopped::describe(&status.stopped_credentials));
    parts.join("\n\n")
}

fn node_row(node: &NodeProgress) -> Vec<String> {
    let version = node.manifest_version;
    let note = match &node.refused {
        Some(refused) => format!("refused {} ({})", refused.what, refused.code),
        None if node.connected && version.is_some() && !node.is_stored => "fetching".to_owned(),
        None => String::new(),
    };
    vec![
        node.node.to_string(),
        node.pool.to_string(),
        if node.connected { "connected" } else { "away" }.to_owned(),
        version.map_or("-".to_owned(), |version| version.to_string()),
        note,
    ]
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
