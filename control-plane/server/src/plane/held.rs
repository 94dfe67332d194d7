//! The state in memory: everything except objects, bundles and audit records. The store is read
//! from it at the start (`load`), and changes after each write.

use std::collections::{BTreeMap, HashMap};

use casemate_api::audit::AuditRecord;
use casemate_api::token::TokenView;
use casemate_push::StoreId;
use casemate_trust::id::Digest;
use casemate_trust::join::TokenRecord;
use casemate_trust::judge::Judge;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

use super::index::Index;
use super::rows::{JoinRow, NodeRow};

/// The control plane's state, owned by the [`Plane`](super::Plane): it is changed after each write.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) store: StoreId,
    pub(crate) judge: Option<Judge>,
    pub(crate) index: Index,
    pub(crate) tokens: HashMap<Digest, TokenView>,
    pub(crate) join_tokens: BTreeMap<PublicKey, TokenRecord>,
    pub(crate) joins: BTreeMap<Digest, JoinRow>,
    pub(crate) nodes: BTreeMap<Name, NodeRow>,
    pub(crate) audit: Option<AuditRecord>,
    /// Whether the audit chain was unbroken when it was read.
    pub(crate) audit_intact: bool,
}

impl Held {
    /// Whether the root has revoked the node with this key.
    pub(crate) fn is_revoked(&self, node: &PublicKey) -> bool {
        self.judge
            .as_ref()
            .is_some_and(|judge| judge.is_revoked(node))
    }
}
