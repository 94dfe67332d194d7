//! Compares what this home remembers with what the control plane has: after a restore of an older
//! copy, or after a takeover by an attacker, revoked nodes and tokens are valid again and later
//! changes are missing.

use casemate_api::node::NodeList;
use casemate_api::token::{Scope, TokenList, TokenView};
use casemate_trust::name::Name;

use super::{nodes, tokens};
use crate::error::{Code, Error};
use crate::machine::printable;
use crate::session::Session;

/// Nodes and tokens that were revoked once more.
#[derive(Debug, Default)]
pub(super) struct RevokedAgain {
    pub(super) nodes: Vec<Name>,
    pub(super) tokens: Vec<String>,
}

impl RevokedAgain {
    /// The names, as text for people.
    pub(super) fn names(&self) -> Vec<String> {
        let nodes = self.nodes.iter().map(|node| format!("node {node}"));
        let tokens = self.tokens.iter().map(|id| format!("token {id}"));
        nodes.chain(tokens).collect()
    }
}

/// Revokes again the nodes and tokens that the control plane has and this home has revoked.
pub(super) async fn revoke_again(session: &mut Session<'_>) -> Result<RevokedAgain, Error> {
    let mut again = RevokedAgain::default();
    let list: NodeList = session.api.get("/v1/nodes").await?;
    for node in list.nodes {
        if nodes::is_revoked(session, &node.name, &node.key)? {
            delete(session, &format!("/v1/nodes/{}", node.name)).await?;
            again.nodes.push(node.name);
        }
    }
    let revoked = tokens::revoked(session.cx)?;
    if !revoked.is_empty() {
        let list: TokenList = session.api.get("/v1/tokens").await?;
        let ids = list.tokens.into_iter().map(|token| token.id);
        for id in ids.filter(|id| revoked.contains(id)) {
            delete(session, &format!("/v1/tokens/{id}")).await?;
            again.tokens.push(id);
        }
    }
    Ok(again)
}

/// The objects that this home remembers and cannot restore at the control plane: one line for each,
/// with the necessary action.
pub(super) async fn lost(session: &mut Session<'_>) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    let list: NodeList = session.api.get("/v1/nodes").await?;
    for (node, key) in nodes::members(session)? {
        let there = list.nodes.iter().find(|there| there.name == node);
        match there {
            Some(there) if there.key == key => {}
            Some(there) => lines.push(format!(
                "the control plane shows node {node} with the key {}, this home admitted {}: \
                 revoke the node and have it join again",
                there.key.fingerprint(),
                key.fingerprint()
            )),
            None => lines.push(format!(
                "the control plane has lost node {node}: if nobody has revoked it, \
                 `casemate fleet publish --readmit` admits it again; else \
                 `casemate node revoke {node}`"
            )),
        }
    }
    let known: Vec<Name> = nodes::members(session)?
        .into_iter()
        .map(|(node, _)| node)
        .collect();
    for there in list
        .nodes
        .iter()
        .filter(|there| !known.contains(&there.name))
    {
        if !nodes::is_revoked(session, &there.name, &there.key)? {
            lines.push(format!(
                "this home has not admitted node {}: unless another home with the root has, revoke \
                 it",
                there.name
            ));
        }
    }
    let summaries = session.list_tenants().await?;
    let list: TokenList = session.api.get("/v1/tokens").await?;
    for summary in &summaries {
        let has_one = |token: &TokenView| token.scope == Scope::Tenant(summary.id);
        if !list.tokens.iter().any(has_one) {
            let name = printable(summary.name.as_str());
            lines.push(format!(
                "tenant {name} has no API token at the control plane: \
                 `casemate token create --scope tenant --tenant {name} --out FILE`, and give it to \
                 the tenant"
            ));
        }
    }
    let remembered = session.known.judge().memory().tenants.clone();
    for summary in summaries {
        let seen = remembered.get(&summary.id).and_then(|seen| seen.manifest);
        let shown = summary.manifest_version.unwrap_or(0);
        if let Some(seen) = seen.filter(|seen| seen.version > shown) {
            lines.push(format!(
                "the control plane shows manifest {shown} of tenant {}, this home has seen {}: the \
                 tenant's next deployment brings it back, or `casemate renew` at once",
                printable(summary.name.as_str()),
                seen.version
            ));
        }
    }
    Ok(lines)
}

/// Deletes a resource, which may be gone already.
async fn delete(session: &mut Session<'_>, path: &str) -> Result<(), Error> {
    match session.api.delete(path).await {
        Err(error) if error.code() == Code::NotFound => Ok(()),
        deleted => deleted,
    }
}
