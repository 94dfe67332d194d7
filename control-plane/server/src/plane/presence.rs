//! The connected nodes, and the last report of each node. Kept in memory; written to the store when
//! a node disconnects.

use std::collections::HashMap;

use casemate_api::tenant::Refused;
use casemate_push::{Hello, StatementId, close};
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Name;
use parking_lot::{Mutex, MutexGuard};
use serde_json::Value;
use tokio::sync::watch;

use super::last::Last;
use super::stopped::Stopped;
use super::{now, stopped};

/// Least seconds between two writes of a node's last report: each is a synced write, and a node
/// that reconnects all the time would cause one each time. The price is that a restart within that
/// time forgets the reports since the last write.
const WRITTEN_EVERY_SECS: Seconds = 60;

/// How long two machines with one key are remembered, seconds: during that time the connected one
/// is not replaced by the other.
const DUPLICATE_SECS: Seconds = 10 * 60;

/// Whether an event at `time` is at most minutes old.
fn is_recent(time: Seconds) -> bool {
    now().abs_diff(time) < DUPLICATE_SECS
}

#[derive(Debug)]
struct Live {
    last: Last,
    visit: Option<Open>,
    /// Time of the last write.
    written: Option<Seconds>,
    /// Whether a replaced connection is being watched: at most one at a time.
    is_watched: bool,
    /// When a replaced connection last appeared to be another machine's, before that was certain.
    suspected: Option<Seconds>,
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
    /// Receives a close code when the connection has to end.
    pub(crate) closing: watch::Receiver<Option<u32>>,
}

/// The connections and last words of all nodes, owned by the plane. A connection calls `arrive`,
/// then the methods for what its node says, and `depart`; everybody else calls `look`.
#[derive(Debug)]
pub(crate) struct Presence {
    nodes: Mutex<(HashMap<Name, Live>, u64)>,
}

impl Presence {
    pub(crate) fn new(last: impl Iterator<Item = (Name, Last)>) -> Self {
        let live = |last| Live {
            last,
            visit: None,
            written: None,
            is_watched: false,
            suspected: None,
        };
        let nodes = last.map(|(name, last)| (name, live(last))).collect();
        Self {
            nodes: Mutex::new((nodes, 0)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (HashMap<Name, Live>, u64)> {
        self.nodes.lock()
    }

    /// Calls `look` with a node's last report and the time since when it is connected.
    pub(crate) fn look<T>(&self, node: &Name, look: impl FnOnce(&Last, Option<Seconds>) -> T) -> T {
        match self.lock().0.get(node) {
            Some(live) => look(&live.last, live.visit.as_ref().map(|visit| visit.since)),
            None => look(&Last::new(node.clone()), None),
        }
    }

    /// The credentials of a tenant that a node last listed as stopped.
    pub(super) fn stopped(&self, node: &Name, tenant: &TenantId) -> Vec<Stopped> {
        self.look(node, |last, _| {
            let stopped = last.stopped.iter();
            stopped
                .filter(|stopped| stopped.is_of(tenant))
                .cloned()
                .collect()
        })
    }

    /// Registers a member's connection; its earlier connection, if any, is closed. `None`: another
    /// machine with its key is connected, and keeps its connection.
    pub(crate) fn arrive(&self, node: &Name) -> Option<Visit> {
        let (nodes, numbers) = &mut *self.lock();
        *numbers += 1;
        let (closing, receiver) = watch::channel(None);
        let live = entry(nodes, node);
        let is_duplicate = live.last.duplicate.is_some_and(is_recent);
        if is_duplicate && live.visit.is_some() {
            live.last.duplicate = Some(now());
            return None;
        }
        live.last.last_seen = Some(now());
        let open = Open {
            number: *numbers,
            since: now(),
            closing,
        };
        if let Some(before) = live.visit.replace(open) {
            before.closing.send_replace(Some(close::REPLACED));
        }
        Some(Visit {
            node: node.clone(),
            number: *numbers,
            closing: receiver,
        })
    }

    /// Whether a replaced connection is to be watched for signs of life.
    pub(crate) fn begin_watch(&self, node: &Name) -> bool {
        let mut nodes = self.lock();
        let live = nodes.0.get_mut(node);
        live.is_some_and(|live| !std::mem::replace(&mut live.is_watched, true))
    }

    /// Ends the watch. Returns whether `was_alive` makes it certain that two machines have the
    /// node's key: a program that restarts may overlap with its predecessor once, but not twice
    /// within a few minutes.
    pub(crate) fn end_watch(&self, node: &Name, was_alive: bool) -> bool {
        let mut nodes = self.lock();
        let Some(live) = nodes.0.get_mut(node) else {
            return false;
        };
        live.is_watched = false;
        if !was_alive {
            return false;
        }
        let is_certain = live.suspected.is_some_and(is_recent);
        live.suspected = Some(now());
        if is_certain {
            live.last.duplicate = Some(now());
        }
        is_certain
    }

    /// Registers the end of a connection; returns the report to be written, unless the node is
    /// connected again, was revoked, or was written just now.
    pub(crate) fn depart(&self, visit: &Visit) -> Option<Last> {
        let (nodes, _) = &mut *self.lock();
        let live = nodes.get_mut(&visit.node)?;
        live.visit.take_if(|open| open.number == visit.number)?;
        live.last.last_seen = Some(now());
        let was_written = |at| now().abs_diff(at) < WRITTEN_EVERY_SECS;
        if live.written.is_some_and(was_written) {
            return None;
        }
        live.written = Some(now());
        Some(live.last.shortened())
    }

    /// Closes a revoked node's connection and forgets its report.
    pub(crate) fn revoke(&self, node: &Name) {
        let gone = self.lock().0.remove(node);
        if let Some(open) = gone.and_then(|live| live.visit) {
            open.closing.send_replace(Some(close::REVOKED));
        }
    }

    fn update(&self, node: &Name, update: impl FnOnce(&mut Last)) {
        if let Some(live) = self.lock().0.get_mut(node) {
            live.last.last_seen = Some(now());
            update(&mut live.last);
        }
    }

    pub(crate) fn hello(&self, node: &Name, hello: &Hello, is_tenant: impl Fn(&TenantId) -> bool) {
        self.update(node, |last| {
            last.software = Some(hello.software.clone());
            last.apart = None;
            last.has(&hello.has, is_tenant);
        });
    }

    /// Records a node that has no protocol version in common with this program.
    pub(crate) fn apart(&self, node: &Name, software: &str, why: &str) {
        let (nodes, _) = &mut *self.lock();
        let last = &mut entry(nodes, node).last;
        last.last_seen = Some(now());
        last.software = Some(software.to_owned());
        last.apart = Some(why.to_owned());
    }

    pub(crate) fn synced(&self, node: &Name, revision: Option<u64>) {
        self.update(node, |last| last.synced = revision);
    }

    /// Records that a statement was accepted, with its digest if that is still known.
    pub(crate) fn acked(&self, node: &Name, id: &StatementId, digest: Option<Digest>) {
        self.update(node, |last| last.acknowledge(id, digest));
    }

    pub(crate) fn stored(&self, node: &Name, tenant: &TenantId, version: u64) {
        self.update(node, |last| last.stored(tenant, version));
    }

    /// Records that a node has refused a statement, or does not run what it wants; returns whether
    /// the code is new.
    pub(crate) fn nacked(
        &self,
        node: &Name,
        id: StatementId,
        code: String,
        message: String,
    ) -> bool {
        let what = id.to_string();
        let refused = Refused {
            what,
            code,
            message,
            at: now(),
        };
        let mut is_new = false;
        self.update(node, |last| is_new = last.refuse(id, refused));
        is_new
    }

    pub(crate) fn status(&self, node: &Name, json: &str) {
        // A status that is not a JSON object is not shown.
        let status = serde_json::from_str(json).ok().filter(Value::is_object);
        let status = status.unwrap_or(Value::Null);
        self.update(node, |last| {
            last.stopped = stopped::of_status(&status, now());
            last.clock_ahead_secs = status["time"].as_u64().and_then(|shown| {
                let shown = i64::try_from(shown).ok()?;
                Some(shown - i64::try_from(now()).ok()?)
            });
            last.status = status;
        });
    }
}

fn entry<'a>(nodes: &'a mut HashMap<Name, Live>, node: &Name) -> &'a mut Live {
    nodes.entry(node.clone()).or_insert_with(|| Live {
        last: Last::new(node.clone()),
        visit: None,
        written: None,
        is_watched: false,
        suspected: None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use casemate_push::{Has, LOAD_FAILED_EARLIER, TenantHas, VERSIONS};
    use casemate_trust::id::FleetId;
    use casemate_trust::key::PublicKey;

    use super::*;

    fn node() -> Name {
        "edge-1".parse().unwrap()
    }

    fn hello(tenants: impl IntoIterator<Item = (u8, u64)>, more_tenants: bool) -> Hello {
        let has = |(tenant, version)| {
            let manifest = Some((version, Digest([0; 32])));
            let has = TenantHas {
                version: 1,
                manifest,
                freshness: None,
                is_stored: false,
            };
            (TenantId([tenant; 32]), has)
        };
        Hello {
            protocol: VERSIONS.newest,
            node: node(),
            node_key: PublicKey::from_bytes([1; 32]),
            fleet: FleetId([2; 32]),
            software: String::new(),
            cursor: None,
            has: Has {
                tenants: tenants.into_iter().map(has).collect(),
                more_tenants,
                ..Has::default()
            },
        }
    }

    #[test]
    fn a_hellos_entries_of_tenants_are_kept_until_the_next() {
        let presence = Presence::new(std::iter::empty());
        presence.arrive(&node()).unwrap();
        let kept = |hello: &Hello| -> BTreeSet<(u8, u64)> {
            presence.hello(&node(), hello, |tenant| tenant.0[0] < 4);
            presence.look(&node(), |last, _| {
                let manifests = last.manifests.iter();
                manifests
                    .map(|(tenant, taken)| (tenant.0[0], taken.version))
                    .collect()
            })
        };
        let made_up = hello((0..200).map(|tenant| (tenant, 1)), false);
        assert_eq!(kept(&made_up), [(0, 1), (1, 1), (2, 1), (3, 1)].into());
        assert_eq!(kept(&hello([(1, 2)], true)).len(), 4, "there are more");
        assert_eq!(kept(&hello([(1, 2), (9, 1)], false)), [(1, 2)].into());
    }

    #[test]
    fn a_refusal_for_lack_of_space_ends_when_the_bundle_is_stored() {
        let presence = Presence::new(std::iter::empty());
        presence.arrive(&node()).unwrap();
        presence.hello(&node(), &hello([(1, 2), (3, 2)], false), |_| true);
        let refused = || presence.look(&node(), |last, _| last.refused.len());
        for tenant in [1, 3].map(|tenant| TenantId([tenant; 32])) {
            let id = StatementId::Manifest { tenant, version: 2 };
            let say =
                || presence.nacked(&node(), id.clone(), "bundle_quota".into(), "no room".into());
            assert!(say() && !say(), "new once");
        }
        assert_eq!(refused(), 2);
        presence.stored(&node(), &TenantId([1; 32]), 1);
        assert_eq!(refused(), 2, "another manifest");
        presence.stored(&node(), &TenantId([1; 32]), 2);
        assert_eq!(refused(), 1);
    }

    #[test]
    fn an_unloadable_release_of_an_earlier_manifest_stays_known() {
        let presence = Presence::new(std::iter::empty());
        presence.arrive(&node()).unwrap();
        let tenant = TenantId([1; 32]);
        let id = StatementId::Manifest { tenant, version: 2 };
        presence.acked(&node(), &id, None);
        let code = || LOAD_FAILED_EARLIER.to_owned();
        let say = || presence.nacked(&node(), id.clone(), code(), "`web`".into());
        let refused = || presence.look(&node(), |last, _| last.refused.len());
        say();
        presence.stored(&node(), &tenant, 2);
        assert_eq!(refused(), 1);
        // The node repeats the report: it has loaded the release.
        presence.stored(&node(), &tenant, 2);
        assert_eq!(refused(), 0);
        // Each connection begins with the current reports.
        say();
        let mut said = hello([(1, 2)], false);
        said.has.tenants.get_mut(&tenant).unwrap().is_stored = true;
        presence.hello(&node(), &said, |_| true);
        assert_eq!(refused(), 0);
    }

    #[test]
    fn a_refusal_ends_when_a_hello_names_the_statement() {
        let presence = Presence::new(std::iter::empty());
        presence.arrive(&node());
        let (mine, other) = (TenantId([1; 32]), TenantId([3; 32]));
        let refused = [
            StatementId::Pool {
                name: "main".parse().unwrap(),
                epoch: 2,
            },
            StatementId::Tenant {
                tenant: mine,
                version: 1,
            },
            StatementId::Tenant {
                tenant: other,
                version: 2,
            },
            StatementId::Manifest {
                tenant: mine,
                version: 2,
            },
            StatementId::Revocations { version: 1 },
        ];
        for id in refused {
            presence.nacked(
                &node(),
                id,
                "storage_full".into(),
                "the disk is full".into(),
            );
        }
        let mut said = hello([(1, 2), (3, 2)], false);
        said.has.epochs.insert(2);
        presence.hello(&node(), &said, |_| true);
        let left: Vec<_> = presence.look(&node(), |last, _| {
            last.refused.iter().map(|(id, _)| id.clone()).collect()
        });
        assert_eq!(
            left,
            [
                StatementId::Tenant {
                    tenant: other,
                    version: 2
                },
                StatementId::Revocations { version: 1 }
            ]
        );
    }

    #[test]
    fn reports_of_a_reconnecting_node_are_written_at_intervals() {
        let presence = Presence::new(std::iter::empty());
        let visit = presence.arrive(&node()).unwrap();
        assert!(presence.depart(&visit).is_some());
        for _ in 0..3 {
            let visit = presence.arrive(&node()).unwrap();
            assert!(presence.depart(&visit).is_none());
        }
        let long_ago = now() - WRITTEN_EVERY_SECS;
        presence.lock().0.get_mut(&node()).unwrap().written = Some(long_ago);
        let visit = presence.arrive(&node()).unwrap();
        assert!(presence.depart(&visit).is_some());
    }

    #[test]
    fn two_machines_with_one_key_are_certain_the_second_time_and_the_first_stays() {
        let presence = Presence::new(std::iter::empty());
        let first = presence.arrive(&node()).unwrap();
        let second = presence.arrive(&node()).unwrap();
        assert_eq!(*first.closing.borrow(), Some(close::REPLACED));
        assert!(presence.begin_watch(&node()) && !presence.begin_watch(&node()));
        assert!(!presence.end_watch(&node(), false), "the first was dead");
        assert!(presence.begin_watch(&node()));
        assert!(!presence.end_watch(&node(), true), "once may be chance");
        assert!(presence.arrive(&node()).is_some());
        assert!(presence.begin_watch(&node()) && presence.end_watch(&node(), true));
        assert_eq!(*second.closing.borrow(), Some(close::REPLACED));
        assert!(presence.arrive(&node()).is_none(), "one of them is served");
        let long_ago = now() - DUPLICATE_SECS;
        presence.lock().0.get_mut(&node()).unwrap().last.duplicate = Some(long_ago);
        assert!(presence.arrive(&node()).is_some());
    }
}
