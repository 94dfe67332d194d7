//! Revoked nodes: the root's list, which the holder of the online key cannot withdraw.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::id::FleetId;
use crate::key::PublicKey;
use crate::name::Name;
use crate::payload::{Statement, version_flaw};
use crate::statement::MAX_FLEET_POOLS;

/// Most revoked nodes of a fleet, which is the number of members that it may have. With all of them
/// and every pool the list takes 800 KB in its envelope, which is less than the largest.
pub const MAX_REVOKED_NODES: usize = 10_000;
/// Most pools in the list.
pub const MAX_EXPOSED_POOLS: usize = MAX_FLEET_POOLS;

/// The nodes that are no longer members, and the keys that they know. Signed by the root. Only the
/// newest version counts. The list does not expire, because that would undo the revocations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revocations {
    /// The fleet.
    pub fleet: FleetId,
    /// Version; it only rises.
    pub version: u64,
    /// Keys of the revoked nodes, ascending. A node that joins again makes a new key.
    pub nodes: Vec<PublicKey>,
    /// For each pool, the newest epoch whose key a revoked node has got. Nothing is sealed to this
    /// epoch or an older one any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed: BTreeMap<Name, u64>,
    /// When the list was signed.
    pub issued: Seconds,
}

impl Revocations {
    /// Whether the node with this key is revoked.
    pub fn names(&self, node: &PublicKey) -> bool {
        self.nodes.binary_search(node).is_ok()
    }

    /// Whether a revoked node knows the key of this pool and epoch.
    pub fn exposes(&self, pool: &Name, epoch: u64) -> bool {
        self.exposed
            .get(pool)
            .is_some_and(|exposed| epoch <= *exposed)
    }

    /// Adds a node, and the newest epoch of its pool that it has got, if any.
    pub fn revoke(&mut self, node: PublicKey, pool: &Name, epoch: Option<u64>) {
        if let Err(at) = self.nodes.binary_search(&node) {
            self.nodes.insert(at, node);
        }
        if let Some(epoch) = epoch {
            let exposed = self.exposed.entry(pool.clone()).or_default();
            *exposed = epoch.max(*exposed);
        }
    }
}

impl Statement for Revocations {
    const TYPE: &'static str = "application/vnd.casemate.revocations.v1+json";

    fn flaw(&self) -> Option<String> {
        if self.nodes.len() > MAX_REVOKED_NODES {
            return Some(format!(
                "expected at most {MAX_REVOKED_NODES} revoked nodes, got {}",
                self.nodes.len()
            ));
        }
        if self.exposed.len() > MAX_EXPOSED_POOLS {
            return Some(format!(
                "expected at most {MAX_EXPOSED_POOLS} pools, got {}",
                self.exposed.len()
            ));
        }
        if !self.nodes.is_sorted_by(|one, next| one < next) {
            return Some("expected the keys of the nodes in ascending order, each once".into());
        }
        version_flaw(self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsse::{Envelope, MAX_ENVELOPE_BYTES};
    use crate::key::SigningKey;
    use crate::name::MAX_NAME_BYTES;

    fn key(number: u64) -> PublicKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        PublicKey::from_bytes(bytes)
    }

    fn empty() -> Revocations {
        Revocations {
            fleet: FleetId([1; 32]),
            version: 1,
            nodes: Vec::new(),
            exposed: BTreeMap::new(),
            issued: 1,
        }
    }

    #[test]
    fn the_largest_list_fits_an_envelope() {
        let mut list = empty();
        list.nodes = (0..MAX_REVOKED_NODES as u64).map(key).collect();
        let pool = |number| format!("{number:0>MAX_NAME_BYTES$}");
        list.exposed = (0..MAX_EXPOSED_POOLS)
            .map(|number| (pool(number).parse().unwrap(), u64::MAX))
            .collect();
        assert_eq!(list.flaw(), None);
        let signer = SigningKey::from_seed(&[1; 32]).unwrap();
        let envelope = list.sign(&[&signer]).to_bytes();
        assert!(envelope.len() <= MAX_ENVELOPE_BYTES, "{}", envelope.len());
        let envelope = Envelope::parse(&envelope).unwrap();
        assert_eq!(Revocations::read(&envelope), Ok(list.clone()));
        list.nodes.push(key(u64::MAX));
        assert!(list.flaw().is_some());
    }

    #[test]
    fn a_list_is_in_one_order_and_names_each_node_once() {
        let mut list = empty();
        let pool: Name = "main".parse().unwrap();
        for (node, epoch) in [(2, Some(3)), (1, Some(2)), (2, Some(1)), (3, None)] {
            list.revoke(key(node), &pool, epoch);
        }
        assert_eq!(list.flaw(), None);
        assert_eq!(list.nodes, [key(1), key(2), key(3)]);
        assert!(list.names(&key(3)) && !list.names(&key(4)));
        assert!(list.exposes(&pool, 3) && !list.exposes(&pool, 4));
        assert!(!list.exposes(&"other".parse().unwrap(), 1));
        for nodes in [vec![key(2), key(1)], vec![key(1), key(1)]] {
            list.nodes = nodes;
            assert!(list.flaw().is_some());
        }
    }
}
