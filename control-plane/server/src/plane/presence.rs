//! Who is connected, and what each node last said. In memory; written down when a node goes.

use std::collections::{BTreeMap, HashMap};

use casemate_api::tenant::Refused;
use casemate_push::{Has, Hello, LOAD_FAILED_EARLIER, StatementId, close};
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Name;
use parking_lot::{Mutex, MutexGuard};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::stopped::Stopped;
use super::{now, stopped};

/// Refusals that are kept of a node: the newest of each thing.
const MAX_REFUSED: usize = 256;
/// Tenants whose acknowledgements are written down when a node goes; the next hello says the rest.
const MAX_WRITTEN_TENANTS: usize = 5000;
/// Seconds between two times that a node's last words are written down: a synced write, which a node that comes and goes all
/// the time would have us make each time. What it costs is that a restart within that time forgets what came in between.
const WRITTEN_EVERY_SECS: Seconds = 60;

/// How long two machines with one key are remembered, seconds: for that long the one that is connected is not replaced by the
/// other.
const DUPLICATE_SECS: Seconds = 10 * 60;

/// A manifest that a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) version: u64,
    /// Of its payload; unknown where a later one had replaced it here before the node answered.
    pub(crate) digest: Option<Digest>,
    /// When it said so.
    pub(crate) at: Seconds,
    /// Every bundle that it wants of the node is there.
    #[serde(default)]
    pub(crate) is_stored: bool,
}

/// What a node last said.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Last {
    pub(crate) node: Name,
    pub(crate) last_seen: Option<Seconds>,
    pub(crate) software: Option<String>,
    pub(crate) synced: Option<u64>,
    /// The newest acknowledged manifest, by tenant.
    pub(crate) manifests: BTreeMap<TenantId, Taken>,
    pub(crate) refused: Vec<(StatementId, Refused)>,
    pub(crate) status: Value,
    /// Credentials that its status listed as stopped.
    #[serde(default)]
    pub(super) stopped: Vec<Stopped>,
    /// When two machines with its key were last seen at a time.
    #[serde(default)]
    pub(crate) duplicate: Option<Seconds>,
    /// How far the node's clock was ahead of ours when it last said what it shows.
    #[serde(default)]
    pub(super) clock_ahead_secs: Option<i64>,
    /// Why it was not served when it last connected: it speaks no version of the protocol that we speak. It comes again within
    /// minutes, so that a restart needs no memory of it.
    #[serde(skip)]
    pub(super) apart: Option<String>,
}

impl Last {
    pub(super) fn new(node: Name) -> Self {
        Self {
            node,
            last_seen: None,
            software: None,
            synced: None,
            manifests: BTreeMap::new(),
            refused: Vec::new(),
            status: Value::Null,
            stopped: Vec::new(),
            duplicate: None,
            clock_ahead_secs: None,
            apart: None,
        }
    }

    fn acknowledge(&mut self, id: &StatementId, digest: Option<Digest>) {
        self.refused
            .retain(|(refused, _)| !refused.is_same_thing(id) || refused.version() > id.version());
        if let StatementId::Manifest { tenant, version } = *id {
            let before = self.manifests.get(&tenant);
            let is_same = |before: &&Taken| {
                let are_known = before.digest.zip(digest);
                before.version == version && are_known.is_none_or(|(before, now)| before == now)
            };
            let taken = Taken {
                version,
                digest,
                at: now(),
                // The same once more brings no new word of its bundles.
                is_stored: before
                    .filter(is_same)
                    .is_some_and(|before| before.is_stored),
            };
            self.manifests.insert(tenant, taken);
        }
    }

    fn stored(&mut self, tenant: &TenantId, version: u64) {
        let taken = self.manifests.get_mut(tenant);
        if let Some(taken) = taken.filter(|taken| taken.version == version) {
            let is_first = !std::mem::replace(&mut taken.is_stored, true);
            // It had taken the manifest before, and had no room for a bundle. What an earlier manifest brought and the node
            // cannot load is said just before; a node that says the same once more has loaded that, or reports it again.
            let tenant = *tenant;
            let stored = StatementId::Manifest { tenant, version };
            let stays = |refused: &Refused| is_first && refused.code == LOAD_FAILED_EARLIER;
            self.refused
                .retain(|(id, refused)| *id != stored || stays(refused));
        }
    }

    /// What the node says that it has, as far as there are such tenants. Where it lists them all, what it does not list goes.
    fn has(&mut self, has: &Has, is_tenant: impl Fn(&TenantId) -> bool) {
        self.refused.retain(|(refused, _)| !is_held(has, refused));
        let mut before = std::mem::take(&mut self.manifests);
        let listed = has
            .tenants
            .iter()
            .filter(|(tenant, _)| is_tenant(tenant))
            .filter_map(|(tenant, has)| Some((*tenant, has.manifest?, has.is_stored)));
        for (tenant, (version, digest), is_stored) in listed {
            match before.remove(&tenant) {
                Some(known) if known.version == version && known.digest == Some(digest) => {
                    self.manifests.insert(tenant, Taken { is_stored, ..known });
                    if is_stored {
                        self.stored(&tenant, version);
                    }
                }
                _ => {
                    self.acknowledge(&StatementId::Manifest { tenant, version }, Some(digest));
                    if is_stored {
                        self.stored(&tenant, version);
                    }
                }
            }
        }
        if has.more_tenants {
            let unlisted = before.into_iter().filter(|(tenant, _)| is_tenant(tenant));
            self.manifests.extend(unlisted);
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

/// Whether a node that once refused this statement has it now, or a later one: it tries again by itself what it could not
/// take. Manifests are looked at with their digests.
fn is_held(has: &Has, refused: &StatementId) -> bool {
    let tenant = |tenant| has.tenants.get(tenant);
    match refused {
        StatementId::Root { version } => has.root >= *version,
        StatementId::OnlineKey { version } => has.online >= *version,
        StatementId::Pool { epoch, .. } => has.epochs.contains(epoch),
        StatementId::Grant { epoch, .. } => has.grants.contains(epoch),
        StatementId::Tenant {
            tenant: id,
            version,
        } => tenant(id).is_some_and(|has| has.version >= *version),
        StatementId::Freshness {
            tenant: id,
            version,
            issued,
        } => tenant(id)
            .and_then(|has| has.freshness)
            .is_some_and(|held| held >= (*version, *issued)),
        StatementId::Image { version, .. } => has.image.is_some_and(|(held, _)| held >= *version),
        StatementId::Revocations { version } => has.revocations >= *version,
        StatementId::Manifest { .. } => false,
    }
}

/// Whether something that was seen at `time` is of the last minutes.
fn is_recent(time: Seconds) -> bool {
    now().abs_diff(time) < DUPLICATE_SECS
}

#[derive(Debug)]
struct Live {
    last: Last,
    visit: Option<Open>,
    /// When its last words were written down.
    written: Option<Seconds>,
    /// Whether a connection that was replaced is being watched: one at a time.
    is_watched: bool,
    /// When a replaced connection last proved to be another machine's, before that was certain.
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

    /// A look at a node's last words and since when it is connected.
    pub(crate) fn look<T>(&self, node: &Name, look: impl FnOnce(&Last, Option<Seconds>) -> T) -> T {
        match self.lock().0.get(node) {
            Some(live) => look(&live.last, live.visit.as_ref().map(|visit| visit.since)),
            None => look(&Last::new(node.clone()), None),
        }
    }

    /// A member has connected; its connection before, if there still is one, is closed. `None`: another machine with its key
    /// is connected, and stays so.
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

    /// Whether a connection that was replaced is to be watched for signs of life.
    pub(crate) fn begin_watch(&self, node: &Name) -> bool {
        let mut nodes = self.lock();
        let live = nodes.0.get_mut(node);
        live.is_some_and(|live| !std::mem::replace(&mut live.is_watched, true))
    }

    /// Its end. Whether `was_alive` makes it certain that two machines have the node's key: a program that starts anew may
    /// overlap with its predecessor once, and does not do so twice within a few minutes.
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

    /// The connection has ended; what is to be written down, unless the node is connected again, was thrown out, or something
    /// was written of it just now.
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

    /// Throws a node out.
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

    /// A node has connected that speaks no version of the protocol that we speak.
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

    /// A statement was accepted; its digest, where it is still known.
    pub(crate) fn acked(&self, node: &Name, id: &StatementId, digest: Option<Digest>) {
        self.update(node, |last| last.acknowledge(id, digest));
    }

    pub(crate) fn stored(&self, node: &Name, tenant: &TenantId, version: u64) {
        self.update(node, |last| last.stored(tenant, version));
    }

    /// A node has refused a statement, or does not run what it wants; whether that code is new.
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
        self.update(node, |last| {
            let is_known = |(other, before): &(StatementId, Refused)| {
                *other == id && before.code == refused.code
            };
            is_new = !last.refused.iter().any(is_known);
            last.refused.retain(|(other, _)| !other.is_same_thing(&id));
            last.refused.push((id, refused));
            let over = last.refused.len().saturating_sub(MAX_REFUSED);
            last.refused.drain(..over);
        });
        is_new
    }

    pub(crate) fn status(&self, node: &Name, json: &str) {
        // What is no JSON object is not shown.
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

    use casemate_push::{TenantHas, VERSIONS};
    use casemate_trust::id::{Digest, FleetId};
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
    fn of_a_hello_what_is_a_tenant_is_kept_until_the_next() {
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
    fn what_a_node_had_no_room_for_is_no_refusal_once_it_is_stored() {
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
    fn what_a_node_cannot_load_since_an_earlier_manifest_is_known_when_the_rest_is_stored() {
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
        // Said once more, it has loaded.
        presence.stored(&node(), &tenant, 2);
        assert_eq!(refused(), 0);
        // A connection begins with what is the case then.
        say();
        let mut said = hello([(1, 2)], false);
        said.has.tenants.get_mut(&tenant).unwrap().is_stored = true;
        presence.hello(&node(), &said, |_| true);
        assert_eq!(refused(), 0);
    }

    #[test]
    fn what_a_node_could_not_take_is_no_refusal_once_its_hello_names_it() {
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
    fn a_node_that_comes_and_goes_is_written_down_now_and_then() {
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
