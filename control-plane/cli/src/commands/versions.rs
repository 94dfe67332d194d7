//! `casemate versions`: the releases of each function, and which nodes run them.

use casemate_api::tenant::{NodeProgress, TenantStatus};
use casemate_trust::id::Digest;
use casemate_trust::name::Name;
use serde::Serialize;

use crate::args::Versions;
use crate::error::Error;
use crate::machine::{date, printable, short};
use crate::output::table;
use crate::session::Context;
use crate::tenancy::{Tenancy, not_loaded};

/// One function.
#[derive(Debug, Serialize)]
struct Function {
    name: Name,
    /// The current release, then the earlier ones that a rollback can return to, newest first.
    versions: Vec<Version>,
}

/// One release.
#[derive(Debug, Serialize)]
struct Version {
    release: Digest,
    wanted: bool,
    /// Unix time of the deployment; unknown for releases that were deployed before notes existed.
    deployed: Option<u64>,
    author: Option<String>,
    message: Option<String>,
    /// Nodes that certainly run it.
    nodes: Vec<Name>,
}

/// A node that does not run everything that the newest manifest names: it has not received it yet,
/// or has refused a part.
#[derive(Debug, Serialize)]
struct Behind {
    node: Name,
    connected: bool,
    manifest: Option<u64>,
    /// Code of the newest refusal.
    refused: Option<String>,
}

impl Behind {
    fn describe(&self, newest: Option<u64>) -> String {
        let state = if self.connected { "connected" } else { "away" };
        let held = self
            .manifest
            .map_or("none".to_owned(), |version| version.to_string());
        let what = match &self.refused {
            Some(code) => {
                let code = printable(code);
                format!("and does not run all of it ({code}): `casemate status` has the reason")
            }
            None if self.manifest == newest => "and fetches or loads what that names".to_owned(),
            None => "and runs what that names".to_owned(),
        };
        format!("node {} ({state}) has manifest {held} {what}", self.node)
    }
}

/// `casemate versions`
pub(super) async fn versions(cx: &Context, args: &Versions) -> Result<(), Error> {
    let mut tenancy = Tenancy::open(cx, args.whose.tenant.as_ref()).await?;
    let status = tenancy.status().await?;
    let functions = functions(&tenancy, &status, args.function.as_ref());
    if let Some(name) = args.function.as_ref().filter(|_| functions.is_empty()) {
        return Err(tenancy.no_function(name));
    }
    let behind: Vec<_> = status
        .nodes
        .iter()
        .filter(|node| !runs_newest(node, &status) || node.refused.is_some())
        .map(|node| Behind {
            node: node.node.clone(),
            connected: node.connected,
            manifest: node.manifest_version,
            refused: node.refused.as_ref().map(|refused| refused.code.clone()),
        })
        .collect();
    let result = serde_json::json!({
        "manifest": status.manifest_version,
        "functions": functions,
        "nodes_behind": behind,
    });
    cx.output.result(&result, || {
        if functions.is_empty() {
            return "nothing is deployed yet".to_owned();
        }
        let mut parts = vec![shown(&functions, &status)];
        let newest = status.manifest_version;
        parts.extend(behind.iter().map(|behind| behind.describe(newest)));
        parts.join("\n")
    })
}

/// Whether a node runs the newest manifest with everything in it.
fn runs_newest(node: &NodeProgress, status: &TenantStatus) -> bool {
    let newest = status.manifest_version.zip(status.manifest_digest);
    newest.is_some() && node.manifest_version.zip(node.manifest_digest) == newest && node.is_stored
}

fn functions(tenancy: &Tenancy<'_>, status: &TenantStatus, only: Option<&Name>) -> Vec<Function> {
    let Some(manifest) = tenancy.manifest() else {
        return Vec::new();
    };
    let wanted = manifest
        .functions
        .iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name));
    wanted
        .map(|(name, wanted)| {
            let releases = std::iter::once(&wanted.release).chain(&wanted.fallbacks);
            let version = |release: &Digest| {
                let note = manifest.notes.get(release);
                let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
                let is_wanted = *release == wanted.release;
                let runs = |node: &&NodeProgress| {
                    is_wanted
                        && wanted.pools.contains(&node.pool)
                        && runs_newest(node, status)
                        && not_loaded(node, name).is_none()
                };
                Version {
                    release: *release,
                    wanted: is_wanted,
                    deployed: note.map(|note| note.at),
                    author: note.and_then(|note| text(&note.author)),
                    message: note.and_then(|note| text(&note.message)),
                    nodes: status
                        .nodes
                        .iter()
                        .filter(runs)
                        .map(|node| node.node.clone())
                        .collect(),
                }
            };
            Function {
                name: name.clone(),
                versions: releases.map(version).collect(),
            }
        })
        .collect()
}

fn shown(functions: &[Function], status: &TenantStatus) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<_> = functions
        .iter()
        .flat_map(|function| {
            function.versions.iter().map(move |version| {
                let total = status
                    .functions
                    .get(&function.name)
                    .map_or(0, |function| function.nodes_total);
                let runs = match version.wanted {
                    true => format!("{} of {total}", version.nodes.len()),
                    false => "earlier".to_owned(),
                };
                vec![
                    function.name.to_string(),
                    short(&version.release),
                    runs,
                    or_dash(version.deployed.map(date)),
                    or_dash(version.author.as_deref().map(printable)),
                    or_dash(version.message.as_deref().map(printable)),
                ]
            })
        })
        .collect();
    table(
        &[
            "FUNCTION", "RELEASE", "NODES", "DEPLOYED", "AUTHOR", "MESSAGE",
        ],
        &rows,
    )
}
