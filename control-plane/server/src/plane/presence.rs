//! Who is connected, and what each node last said. In memory; written down when a node goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use casemate_api::tenant::Refused;
use casemate_push::{Has, Hello, StatementId, close};
use casemate_trust::Seconds;
use casemate_trust::id::TenantId;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::now;

/// Refusals that are kept of a node: the newest of each thing.
const MAX_REFUSED: usize = 256;
/// Tenants whose acknowledgements are written down when a node goes; the next hello says the rest.
const MAX_WRITTEN_TENANTS: usize = 5000;

/// What a node last said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) node: Name,
    pub(crate) last_seen: Option<Seconds>,
    pub(crate) software: Option<String>,
    pub(crate) synced: Option<u64>,
    /// Highest acknowledged manifest version and when that was, by tenant.
    pub(crate) manifests: BTreeMap<TenantId, (u64, Seconds)>,
    pub(crate) refused: Vec<(StatementId, Refused)>,
    pub(crate) status: Value,
}

impl Last {
    fn new(node: Name) -> Self {
        Self {
            node,
            last_seen: None,
            software: None,
            synced: None,
            manifests: BTreeMap::new(),
            refused: Vec::new(),
            status: Value::Null,
        }
    }

    fn acknowledge(&mut self, id: &StatementId) {
        self.refused
            .retain(|(refused, _)| !refused.is_same_thing(id) || refused.version() > id.version());
        if let StatementId::Manifest { tenant, version } = id {
            self.manifests.insert(*tenant, (*version, now()));
        }
    }

    fn has(&mut self, has: &Has) {
        let manifests = has
            .tenants
            .iter()
            .filter_map(|(tenant, has)| Some((tenant, has.manifest?.0)));
        for (tenant, version) in manifests {
            let known = self
                .manifests
                .get(tenant)
                .is_some_and(|(known, _)| *known == version);
            if !known {
                self.manifests.insert(*tenant, (version, now()));
            }
        }
    }

    /// As it is written down: small enough for one record.
    fn shortened(&self) -> Self {
        let manifests = self.manifests.iter().take(MAX_WRITTEN_TENANTS);
        Self {
            manifests: manifests.map(|(tenant, seen)| (*tenant, *seen)).collect(),
            ..self.clone()
        }
    }
}

#[derive(Debug)]
struct Live {
    last: Last,
    visit: Option<Open>,
}

#[derive(Debug)]
struct Open {
    number: u64,
    since: Seconds,
    closing: watch::Sender<Option<u32>>,
}

/// One connection of a member.
#[derive(Debug)]
pub(crate) struct Visit {
    /// The node.
    pub(crate) node: Name,
    number: u64,
    /// Becomes a close code when the connection has to go.
    pub(crate) closing: watch::Receiver<Option<u32>>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Presence {
    nodes: Mutex<(HashMap<Name, Live>, u64)>,
}

impl Presence {
    pub(crate) fn new(last: impl Iterator<Item = (Name, Last)>) -> Self {
        let live = |last| Live { last, visit: None };
        let nodes = last.map(|(name, last)| (name, live(last))).collect();
        Self {
            nodes: Mutex::new((nodes, 0)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (HashMap<Name, Live>, u64)> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node's last words and since when it is connected.
    pub(crate) fn look(&self, node: &Name) -> (Last, Option<Seconds>) {
        match self.lock().0.get(node) {
            Some(live) => (
                live.last.clone(),
                live.visit.as_ref().map(|visit| visit.since),
            ),
            None => (Last::new(node.clone()), None),
        }
    }

    /// A member has connected; its connection before, if there still is one, is closed.
    pub(crate) fn arrive(&self, node: &Name) -> Visit {
        let (nodes, numbers) = &mut *self.lock();
        *numbers += 1;
        let (closing, receiver) = watch::channel(None);
        let live = nodes.entry(node.clone()).or_insert_with(|| Live {
            last: Last::new(node.clone()),
            visit: None,
        });
        live.last.last_seen = Some(now());
        let open = Open {
            number: *numbers,
            since: now(),
            closing,
        };
        if let Some(before) = live.visit.replace(open) {
            before.closing.send_replace(Some(close::REPLACED));
        }
        Visit {
            node: node.clone(),
            number: *numbers,
            closing: receiver,
        }
    }

    /// The connection has ended; what is to be written down, unless the node is connected again or was thrown out.
    pub(crate) fn depart(&self, visit: &Visit) -> Option<Last> {
        let (nodes, _) = &mut *self.lock();
        let live = nodes.get_mut(&visit.node)?;
        live.visit.take_if(|open| open.number == visit.number)?;
        live.last.last_seen = Some(now());
        Some(live.last.shortened())
    }

    /// Throws a node out.
    pub(crate) fn revoke(&self, node: &Name) {
        let gone = self.lock().0.remove(node);
        if let Some(open) = gone.and_then(|live| live.visit) {
            open.closing.send_replace(Some(close::REVOKED));
        }
    }

    /// Throws out all nodes but these.
    pub(crate) fn keep(&self, is_member: impl Fn(&Name) -> bool) {
        let mut gone: Vec<Name> = self.lock().0.keys().cloned().collect();
        gone.retain(|node| !is_member(node));
        for node in &gone {
            self.revoke(node);
        }
    }

    fn update(&self, node: &Name, update: impl FnOnce(&mut Last)) {
        if let Some(live) = self.lock().0.get_mut(node) {
            live.last.last_seen = Some(now());
            update(&mut live.last);
        }
    }

    pub(crate) fn hello(&self, node: &Name, hello: &Hello) {
        self.update(node, |last| {
            last.software = Some(hello.software.clone());
            last.has(&hello.has);
        });
    }

    pub(crate) fn synced(&self, node: &Name, revision: Option<u64>) {
        self.update(node, |last| last.synced = revision);
    }

    pub(crate) fn acked(&self, node: &Name, id: &StatementId) {
        self.update(node, |last| last.acknowledge(id));
    }

    pub(crate) fn nacked(&self, node: &Name, id: StatementId, code: String, message: String) {
        let what = id.to_string();
        let refused = Refused {
            what,
            code,
            message,
            at: now(),
        };
        self.update(node, |last| {
            last.refused.retain(|(other, _)| !other.is_same_thing(&id));
            last.refused.push((id, refused));
            let over = last.refused.len().saturating_sub(MAX_REFUSED);
            last.refused.drain(..over);
        });
    }

    pub(crate) fn status(&self, node: &Name, json: &str) {
        // What is no JSON object is not shown.
        let status = serde_json::from_str(json).ok().filter(Value::is_object);
        self.update(node, |last| last.status = status.unwrap_or(Value::Null));
    }
}
