//! The control plane's state and every change to it. Changes are made one at a time: a change is
//! judged, written together with its audit record, and only then visible.

mod admission;
mod catalog;
pub(crate) mod collect;
mod freshness;
mod health;
mod held;
mod image;
mod index;
mod joins;
mod key;
mod last;
mod load;
mod log_files;
mod log_readers;
mod log_turns;
mod logs;
mod nodes;
mod objects;
mod presence;
mod rates;
mod readmit;
mod refusals;
mod rows;
mod statement_ids;
mod statements;
mod stopped;
mod storage;
mod survey;
#[cfg(test)]
pub(crate) mod tests;
mod tokens;
mod views;

use std::fmt;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_api::fleet::PublicKeys;
use casemate_api::limits::AUDIT_PAGE_RECORDS;
use casemate_api::token::Scope;
use casemate_control_store::{Change, Compare, Redb, Store as _, StoreError};
use casemate_push::StatementId;
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::{self, Judge};
use casemate_trust::name::Name;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{Mutex, MutexGuard, watch};

use crate::bundles::Bundles;
use crate::fault::Fault;
use crate::images::Images;
use crate::reserve::Reserve;

use catalog::NodeCatalog;
use collect::Due;
use held::Held;
pub(crate) use joins::Joining;
pub use log_files::LogLimits;
pub(crate) use log_readers::Following;
pub(crate) use logs::Logs;
pub(crate) use nodes::Unwelcome;
use presence::Presence;
pub(crate) use presence::Visit;
use rates::Rates;
use refusals::Refusals;
use storage::Ledger;
pub(crate) use survey::{Survey, survey};

/// Longest text of a subject in an audit record, characters.
const MAX_SUBJECT_CHARS: usize = 300;

/// The author of an action.
#[derive(Debug, Clone)]
pub(crate) enum Actor {
    /// The holder of a token.
    Token {
        /// Its id.
        id: String,
        /// Its label.
        label: String,
        /// The token's scope.
        scope: Scope,
    },
    /// A node, or a client that wants to join as one.
    Node(Name),
    /// A client without a token or a known key, by its address if there is one.
    Stranger(Option<IpAddr>),
    /// The program itself.
    Program,
}

impl fmt::Display for Actor {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id, label, .. } => write!(to, "token {id} ({label})"),
            Self::Node(name) => write!(to, "node {name}"),
            Self::Stranger(Some(address)) => write!(to, "stranger at {address}"),
            Self::Stranger(None) => to.write_str("stranger"),
            Self::Program => to.write_str("casemate-control"),
        }
    }
}

/// The folders beside the store.
#[derive(Debug)]
pub(crate) struct Folders {
    pub(crate) bundles: Bundles,
    pub(crate) images: Images,
    pub(crate) logs: Logs,
    pub(crate) reserve: Reserve,
}

/// The control plane's state. One for the program, shared by both listeners, the backup and the
/// removal of what is not listed any more. Reads take the lock of the state; each change goes
/// through `begin`, the commit of its [`Writing`], and then `change`.
#[derive(Debug)]
pub(crate) struct Plane {
    store: Redb,
    bundles: Bundles,
    images: Images,
    reserve: Reserve,
    ledger: Ledger,
    due: Due,
    keys: PublicKeys,
    quic_address: String,
    held: RwLock<Held>,
    writing: Mutex<()>,
    /// Backups take it for reading, removals for writing: a bundle that a backup is about to copy
    /// is not removed.
    keeping: tokio::sync::RwLock<()>,
    /// Incremented with each change that a connection may have to send to its node.
    changes: watch::Sender<u64>,
    logs: Logs,
    presence: Presence,
    refusals: Refusals,
    rates: Rates,
}

impl Plane {
    /// Reads the state from the store.
    pub(crate) async fn open(
        store: Redb,
        folders: Folders,
        keys: PublicKeys,
        quic_address: String,
        tenant_limit_bytes: u64,
    ) -> Result<Self, StoreError> {
        let Folders {
            bundles,
            images,
            logs,
            reserve,
        } = folders;
        let ledger = Ledger::load(&store, &bundles, tenant_limit_bytes).await?;
        let held = Held::load(&store).await?;
        let seen = rows::rows(&store, key::SEEN).await?;
        let presence =
            Presence::new(seen.map(|(_, last): (_, last::Last)| (last.node.clone(), last)));
        Ok(Self {
            store,
            bundles,
            images,
            reserve,
            ledger,
            due: Due::default(),
            keys,
            quic_address,
            held: RwLock::new(held),
            writing: Mutex::new(()),
            keeping: tokio::sync::RwLock::new(()),
            changes: watch::Sender::new(0),
            logs,
            presence,
            refusals: Refusals::default(),
            rates: Rates::default(),
        })
    }

    /// Reserves space on the disk for the operator: every other writer does this first.
    pub(crate) async fn reserve(&self) -> Result<(), Fault> {
        self.reserve.hold().await
    }

    /// Bundles.
    pub(crate) fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// Checks whether the store answers.
    pub(crate) async fn health(&self) -> Result<(), Fault> {
        self.store.get(key::ONLINE).await?;
        Ok(())
    }

    /// A receiver of the change counter.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Calls `look` with the statements that one node may see.
    pub(crate) fn with_catalog<T>(
        &self,
        node: &Name,
        pool: &Name,
        look: impl FnOnce(&dyn casemate_push::Catalog) -> T,
    ) -> T {
        let held = self.held();
        look(&NodeCatalog {
            held: &held,
            node,
            pool,
        })
    }

    /// Records a member's hello.
    pub(crate) fn hello(&self, node: &Name, hello: &casemate_push::Hello) {
        let held = self.held();
        let judge = held.judge.as_ref();
        let is_tenant = |id: &TenantId| judge.is_some_and(|judge| judge.tenant(id).is_some());
        self.presence.hello(node, hello, is_tenant);
    }

    /// Records a node whose protocol versions are all newer or all older than this program's, and
    /// why it is not served.
    pub(crate) fn apart(&self, node: &Name, software: &str, why: &str) {
        self.presence.apart(node, software, why);
    }

    /// Records up to which revision a node was sent everything.
    pub(crate) fn synced(&self, node: &Name, revision: Option<u64>) {
        self.presence.synced(node, revision);
    }

    /// Records that a node has accepted a statement.
    pub(crate) fn acked(&self, node: &Name, id: &casemate_push::StatementId) {
        let held = self.held();
        let sent = held.index.get(id);
        let envelope = sent.and_then(|(_, bytes)| Envelope::parse(bytes).ok());
        let digest = envelope.map(|envelope| envelope.payload_digest());
        drop(held);
        self.presence.acked(node, id, digest);
    }

    /// Records that a node has every bundle that a tenant's manifest wants of it.
    pub(crate) fn stored(&self, node: &Name, tenant: &TenantId, version: u64) {
        self.presence.stored(node, tenant, version);
    }

    /// Records that a node has accepted a manifest and does not store or run what it wants. A node
    /// reports this on each connection; the first report leaves an audit record.
    pub(crate) async fn not_stored(&self, node: &Name, not_stored: casemate_push::NotStored) {
        let casemate_push::NotStored {
            tenant,
            version,
            code,
            message,
        } = not_stored;
        let id = casemate_push::StatementId::Manifest { tenant, version };
        tracing::warn!(%node, what = %id, code, message, "a node does not run a manifest that it has accepted");
        let subject = id.to_string();
        let is_new = self.presence.nacked(node, id, code.clone(), message);
        // The manifest that brought the release that cannot be loaded has left the record.
        if is_new && code != casemate_push::LOAD_FAILED_EARLIER {
            let actor = Actor::Node(node.clone());
            self.refused(&actor, "node.not_stored", subject, &code)
                .await;
        }
    }

    /// Records that a node has refused a statement.
    pub(crate) async fn nacked(
        &self,
        node: &Name,
        id: casemate_push::StatementId,
        code: String,
        message: String,
    ) {
        let actor = Actor::Node(node.clone());
        self.refused(&actor, "node.refused", &id, &code).await;
        self.presence.nacked(node, id, code, message);
    }

    /// Records a node's status.
    pub(crate) fn status(&self, node: &Name, json: &str) {
        self.presence.status(node, json);
    }

    /// One of a tenant's objects.
    pub(crate) async fn object(
        &self,
        tenant: &TenantId,
        digest: &Digest,
    ) -> Result<Option<casemate_push::StoredObject>, Fault> {
        Ok(objects::object(&self.store, tenant, digest).await?)
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.held.write())
    }

    /// Begins a change; only one runs at a time.
    async fn begin(&self) -> Writing<'_> {
        Writing {
            plane: self,
            _guard: self.writing.lock().await,
        }
    }

    /// Wakes all connections.
    fn announce(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Whether the audit chain was unbroken when it was read.
    pub(crate) fn audit_intact(&self) -> bool {
        self.held().audit_intact
    }

    /// Audit records after `since`.
    pub(crate) async fn audit(&self, since: u64) -> Result<AuditPage, Fault> {
        let after = key::audit(since);
        let page = self
            .store
            .range(key::AUDIT, Some(&after), AUDIT_PAGE_RECORDS)
            .await?;
        let records = page
            .iter()
            .filter_map(|entry| serde_json::from_slice(&entry.value).ok())
            .collect();
        let held = self.held();
        Ok(AuditPage {
            records,
            newest: held.audit.as_ref().map_or(0, |record| record.seq),
            verified: held.audit_intact,
        })
    }
}

/// A change in progress; there is no other one.
struct Writing<'a> {
    plane: &'a Plane,
    _guard: MutexGuard<'a, ()>,
}

impl Writing<'_> {
    /// Writes a change with its audit record; returns its revision. If that fails, nothing has
    /// changed, neither on the disk nor in memory. On a full disk the operator's changes use the
    /// reserved space.
    async fn commit(
        &self,
        actor: &Actor,
        action: &str,
        subject: impl fmt::Display,
        mut compare: Vec<Compare>,
        mut changes: Vec<Change>,
    ) -> Result<u64, Fault> {
        let subject: String = subject
            .to_string()
            .chars()
            .filter(|letter| !letter.is_control())
            .take(MAX_SUBJECT_CHARS)
            .collect();
        let before = self.plane.held().audit.clone();
        let record =
            AuditRecord::follow(before.as_ref(), now(), &actor.to_string(), action, &subject);
        let record = record.at_revision(self.plane.store.revision() + 1);
        let at = key::audit(record.seq);
        compare.push(Compare::absent(&at));
        changes.push(Change::put(at, json(&record)));
        let is_operators = matches!(actor, Actor::Token { scope, .. } if *scope == Scope::Operator);
        let store = &self.plane.store;
        let written = match store.commit(compare.clone(), changes.clone()).await {
            Err(StoreError::Full(_)) if is_operators && self.plane.reserve.give().await => {
                store.commit(compare, changes).await
            }
            written => written,
        };
        let revision = written?;
        tracing::info!(actor = record.actor, action, subject, revision, "changed");
        self.plane.change(|held| held.audit = Some(record));
        Ok(revision)
    }

    /// Writes the effects of a decided statement, and only then has the judge apply it; returns its
    /// revision.
    async fn accept(
        &self,
        decided: Decided,
        id: StatementId,
        envelope: &Envelope,
        recorded: Option<(&Actor, &str)>,
    ) -> Result<u64, Fault> {
        let Decided {
            change,
            mut founder,
        } = decided;
        let dropped: Vec<_> = change
            .rows()
            .iter()
            .filter_map(statement_ids::dropped)
            .collect();
        let mut rows = vec![Change::put(key::statement(&id), envelope.to_bytes())];
        rows.extend(dropped.iter().map(|id| Change::delete(key::statement(id))));
        let write = async {
            match recorded {
                Some((actor, action)) => self.commit(actor, action, &id, vec![], rows).await,
                None => Ok(self.plane.store.commit(vec![], rows).await?),
            }
        };
        let (committed, revision) = change.commit_with(write).await?;
        self.plane.change(|held| {
            if let Some(judge) = held.judge.as_mut().or(founder.as_mut()) {
                judge.apply(committed);
            }
            held.judge = held.judge.take().or(founder);
            dropped.iter().for_each(|id| held.index.remove(id));
            held.index.insert(revision, id, envelope.to_bytes());
        });
        self.announce();
        Ok(revision)
    }

    /// Wakes all connections.
    fn announce(&self) {
        self.plane.announce();
    }
}

/// A statement that was decided and is not yet written.
struct Decided {
    change: judge::Change,
    /// The judge that the first root creates.
    founder: Option<Judge>,
}

fn json<T: serde::Serialize>(row: &T) -> Vec<u8> {
    serde_json::to_vec(row).expect("plain data with text as keys is JSON")
}

/// Unix time, seconds.
pub(crate) fn now() -> Seconds {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
