//! `casemate node list`, `casemate node show`.

use casemate_api::node::{HealthView, JoinList, NodeList, NodeSummary, NodeView};
use owo_colors::OwoColorize as _;

use crate::args::NodeShow;
use crate::error::{Code, Error};
use crate::machine::{DAY, date, now, printable, printable_lines, short};
use crate::output::{outline, table};
use crate::session::{Context, Session, WARN_BEFORE};

/// How many refusals and how many manifests are shown without `--all`.
const SCREEN: usize = 8;

/// `casemate node list`
pub(in crate::commands) async fn list(cx: &Context) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let list: NodeList = session.api.get("/v1/nodes").await?;
    let joins = match session.api.get::<JoinList>("/v1/nodes/joins").await {
        Ok(list) => list.joins,
        // A read-only token may not list join requests.
        Err(error) if error.code() == Code::Forbidden => Vec::new(),
        Err(error) => return Err(error),
    };
    cx.output.result(&list.nodes, || {
        let rows: Vec<_> = list.nodes.iter().map(row).collect();
        table(
            &[
                "NODE",
                "POOL",
                "STATE",
                "HEALTH",
                "VERSION",
                "IMAGE",
                "STORAGE KEY",
                "UPDATE",
                "KEY",
            ],
            &rows,
        )
    })?;
    for join in &joins {
        cx.output.warn(&format!(
            "a machine asks to join pool {} as node {name}: `casemate node admit {name}`",
            join.pool,
            name = join.node
        ));
    }
    for node in &list.nodes {
        if let Some(why) = apart(node) {
            cx.output.warn(&format!(
                "node {} is not served: {}",
                node.name,
                printable(why)
            ));
        }
        if node
            .duplicate_seen
            .is_some_and(|seen| now().saturating_sub(seen) < DAY)
        {
            cx.output.warn(&format!(
                "two machines have the key of node {name}: its disk was copied. Stop one of them, \
                 revoke the node (`casemate node revoke {name}`), and have the other join anew \
                 with an empty state folder",
                name = node.name
            ));
        }
        let expires = node
            .health
            .as_ref()
            .and_then(|health| health.certificate_expires);
        if let Some(expires) = expires {
            session.warn_of_expiry(
                &format!("a certificate of node {}", node.name),
                expires,
                "Renew it on the node.",
            );
        }
    }
    Ok(())
}

/// Why a node is not served: it supports none of the control plane's versions of the push protocol.
fn apart(node: &NodeSummary) -> Option<&str> {
    let checks = node.health.as_ref()?.checks.iter();
    let mut failed = checks.filter(|check| check.name == "protocol" && !check.ok);
    failed.next().map(|check| check.detail.as_str())
}

fn row(node: &NodeSummary) -> Vec<String> {
    let machine = node.machine.clone().unwrap_or_default();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        node.name.to_string(),
        node.pool.to_string(),
        state(node),
        health(node),
        node.version.clone().unwrap_or_default(),
        or_none(machine.version),
        or_none(machine.storage_key),
        or_none(machine.update),
        short(&node.key.fingerprint()),
    ]
}

fn state(node: &NodeSummary) -> String {
    match (node.connected_since, node.last_seen) {
        (Some(since), _) => format!("connected since {}", date(since)),
        (None, Some(seen)) => format!("last seen {}", date(seen)),
        (None, None) => "never seen".to_owned(),
    }
}

/// The node's problems, in a few words.
fn health(node: &NodeSummary) -> String {
    let Some(health) = &node.health else {
        return "-".to_owned();
    };
    let mut wrong = failing(health);
    if health
        .certificate_expires
        .is_some_and(|expires| expires < now() + WARN_BEFORE)
    {
        wrong.push("certificate");
    }
    if node.connected_since.is_none() {
        // The other problems are from its last report, which may be old.
        wrong.insert(0, "away");
    }
    match wrong.is_empty() {
        true => "ok".to_owned(),
        false => wrong.join(" "),
    }
}

fn failing(health: &HealthView) -> Vec<&str> {
    let failing = health.checks.iter().filter(|check| !check.ok);
    failing.map(|check| check.name.as_str()).collect()
}

/// `casemate node show`
pub(in crate::commands) async fn show(cx: &Context, args: &NodeShow) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let path = format!("/v1/nodes/{}", args.name);
    let node: NodeView = session.api.get(&path).await?;
    cx.output.result(&node, || text(&node, args.all))
}

fn text(node: &NodeView, all: bool) -> String {
    let summary = &node.summary;
    let mut lines = vec![
        format!("node       {}", summary.name),
        format!("pool       {} (key epochs {:?})", summary.pool, node.grants),
        format!("key        {}", summary.key.fingerprint()),
        format!("admitted   {}", date(summary.admitted)),
        format!("state      {}", state(summary)),
    ];
    if let Some(version) = &summary.version {
        lines.push(format!("version    {}", printable(version)));
    }
    if let Some(machine) = &summary.machine {
        let text = |text: &Option<String>| printable(text.as_deref().unwrap_or("-"));
        lines.push(format!("image      {}", text(&machine.version)));
        lines.push(format!("disk key   {}", text(&machine.storage_key)));
        lines.push(format!("update     {}", text(&machine.update)));
    }
    if let Some(health) = &summary.health {
        for check in &health.checks {
            let (name, detail) = (printable(&check.name), printable(&check.detail));
            lines.push(match check.ok {
                true => format!("{name:<10} {detail}"),
                false => format!("{name:<10} {}", format!("NOT OK: {detail}").red()),
            });
        }
        if let Some(expires) = health.certificate_expires {
            lines.push(format!("tls until  {}", date(expires)));
        }
    }
    let shown = if all { usize::MAX } else { SCREEN };
    let manifests = node.manifests.iter().take(shown);
    lines.extend(
        manifests
            .map(|(tenant, version)| format!("manifest   {version} of tenant {}", short(tenant))),
    );
    for refused in node.refused.iter().rev().take(shown) {
        lines.push(format!(
            "refused    {} ({}): {}, {}",
            printable(&refused.what),
            printable(&refused.code),
            printable_lines(&refused.message),
            date(refused.at)
        ));
    }
    let more =
        node.manifests.len().saturating_sub(shown) + node.refused.len().saturating_sub(shown);
    if more > 0 {
        lines.push(format!("and {more} more manifests and refusals: `--all`"));
    }
    if all && !node.status.is_null() {
        lines.push("status, as the node itself reports".to_owned());
        lines.extend(outline(&node.status));
    } else if !node.status.is_null() {
        lines.push("`--all` shows the node's whole report".to_owned());
    }
    lines.join("\n")
}
