//! Credentials that nodes have stopped because answers held them, read from the nodes' status.

use std::collections::BTreeMap;

use casemate_api::tenant::StoppedCredential;
use casemate_trust::Seconds;
use casemate_trust::id::TenantId;
use casemate_trust::name::{Identifier, Name};
use casemate_trust::statement::Manifest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::rows::NodeRow;

/// Credentials that are kept of a node: as many as a vault lists.
const MAX_OF_NODE: usize = 100;
/// Credentials in the status of a tenant.
const MAX_OF_TENANT: usize = 256;
/// Longest time for which a vault stops a credential.
const MAX_LEFT_SECS: Seconds = 60 * 60;

/// A stopped credential of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stopped {
    tenant: TenantId,
    function: Name,
    secret: Identifier,
    /// End of the stop, by the control plane's clock.
    until: Seconds,
}

impl Stopped {
    /// Whether the credential is this tenant's.
    pub(super) fn is_of(&self, tenant: &TenantId) -> bool {
        self.tenant == *tenant
    }
}

/// A stopped credential as a vault reports it.
#[derive(Deserialize)]
struct Reported {
    tenant: TenantId,
    function: Name,
    secret: Identifier,
    left_secs: Seconds,
}

/// The stopped credentials of a node's status. Entries that cannot be parsed are left out.
pub(super) fn of_status(status: &Value, now: Seconds) -> Vec<Stopped> {
    let listed = status["vault"]["stopped_credentials"].as_array();
    let listed = listed.into_iter().flatten().take(MAX_OF_NODE);
    let reported = listed.filter_map(|entry| Reported::deserialize(entry).ok());
    let stopped = reported.map(|reported| Stopped {
        tenant: reported.tenant,
        function: reported.function,
        secret: reported.secret,
        until: now + reported.left_secs.min(MAX_LEFT_SECS),
    });
    stopped.collect()
}

/// A tenant's stopped credentials, from the reports of all nodes. A node's report counts for
/// functions and secrets that the newest manifest lists for the node's pool, and for no others.
pub(super) fn of_tenant<'a>(
    nodes: impl Iterator<Item = (&'a NodeRow, Vec<Stopped>)>,
    tenant: &TenantId,
    manifest: &Manifest,
    now: Seconds,
) -> Vec<StoppedCredential> {
    let mut found: BTreeMap<(Name, Identifier), StoppedCredential> = BTreeMap::new();
    for (node, of_node) in nodes {
        let is_here = |stopped: &Stopped| {
            let wanted = manifest.functions.get(&stopped.function);
            let pools = manifest.secrets.get(&stopped.secret);
            stopped.is_of(tenant)
                && stopped.until > now
                && wanted.is_some_and(|wanted| wanted.pools.contains(&node.pool))
                && pools.is_some_and(|pools| pools.contains_key(&node.pool))
        };
        for stopped in of_node.into_iter().filter(is_here) {
            let key = (stopped.function, stopped.secret);
            if found.len() >= MAX_OF_TENANT && !found.contains_key(&key) {
                continue;
            }
            let (function, secret) = key.clone();
            let line = found.entry(key).or_insert(StoppedCredential {
                function,
                secret,
                nodes: Vec::new(),
                until: 0,
            });
            line.until = line.until.max(stopped.until);
            if line.nodes.last() != Some(&node.name) {
                line.nodes.push(node.name.clone());
            }
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_reports_is_parsed_and_bounded() {
        let tenant = TenantId([1; 32]);
        let entry = |secret: &str, left_secs: u64| {
            serde_json::json!({
                "tenant": tenant, "function": "web", "secret": secret, "left_secs": left_secs,
            })
        };
        let of = |list: Value| {
            of_status(
                &serde_json::json!({ "vault": { "stopped_credentials": list } }),
                1000,
            )
        };
        let stopped = of(vec![entry("KEY", 60), entry("FOREVER", u64::MAX)].into());
        let untils: Vec<_> = stopped.iter().map(|stopped| stopped.until).collect();
        assert_eq!(untils, [1060, 1000 + MAX_LEFT_SECS]);
        let odd = [entry("\u{1b}[2J", 60), entry("KEY", 60), "KEY".into()];
        assert_eq!(of(odd.to_vec().into()).len(), 1);
        assert_eq!(of(vec![entry("KEY", 60); 1000].into()).len(), MAX_OF_NODE);
        for odd in [Value::Null, "KEY".into(), 1.into()] {
            assert!(of(odd).is_empty());
        }
    }
}
