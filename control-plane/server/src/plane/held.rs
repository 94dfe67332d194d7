//! The state in memory: everything except objects, bundles and audit records. The store is
//! authoritative; the state is read from it at the start, and changes after each write.

use std::collections::{BTreeMap, HashMap};

use casemate_api::audit::AuditRecord;
use casemate_api::token::TokenView;
use casemate_control_store::{Entry, MAX_RANGE, Redb, Store as _, StoreError};
use casemate_push::{ObjectKind, StatementId, StoreId, StoredObject};
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::Freshness;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::image::Image;
use casemate_trust::join::{Grant, TokenRecord};
use casemate_trust::judge::{Judge, Memory, Row, RowKey};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::key;

/// A token of the API as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// The public part of the token.
    pub(crate) view: TokenView,
    /// SHA-256 of the token.
    pub(crate) hash: Digest,
}

/// A waiting join request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinRow {
    /// The request as the node's vault signed it.
    pub(crate) envelope: Envelope,
    /// Key of the token that signed the request.
    pub(crate) token: PublicKey,
    /// Time of its first arrival.
    pub(crate) first_seen: Seconds,
}

/// An admitted node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Name.
    pub(crate) name: Name,
    /// Pool.
    pub(crate) pool: Name,
    /// Ed25519 key.
    pub(crate) key: PublicKey,
    /// Time of the admission.
    pub(crate) admitted: Seconds,
    /// Its join request.
    pub(crate) join: Envelope,
}

/// Statements by revision and by name.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(super) by_revision: BTreeMap<u64, StatementId>,
    pub(super) held: BTreeMap<StatementId, (u64, Vec<u8>)>,
    grants: BTreeMap<Name, BTreeMap<u64, (u64, Vec<u8>)>>,
}

impl Index {
    /// Adds a statement. An older online key, list of revoked nodes or manifest is removed; an
    /// envelope that was signed again replaces the earlier one.
    pub(crate) fn insert(&mut self, revision: u64, id: StatementId, bytes: Vec<u8>) {
        self.drop_freshness(&id);
        let lone = match &id {
            StatementId::OnlineKey { .. } => Some(
                StatementId::OnlineKey { version: 0 }..=StatementId::OnlineKey {
                    version: u64::MAX,
                },
            ),
            StatementId::Revocations { .. } => Some(
                StatementId::Revocations { version: 0 }..=StatementId::Revocations {
                    version: u64::MAX,
                },
            ),
            StatementId::Manifest { tenant, .. } => {
                let of = |version| StatementId::Manifest {
                    tenant: *tenant,
                    version,
                };
                Some(of(0)..=of(u64::MAX))
            }
            _ => None,
        };
        let replaced: Vec<_> = match lone {
            Some(range) => self.held.range(range).map(|(id, _)| id.clone()).collect(),
            None => self
                .held
                .contains_key(&id)
                .then(|| id.clone())
                .into_iter()
                .collect(),
        };
        replaced.iter().for_each(|id| self.remove(id));
        self.by_revision.insert(revision, id.clone());
        self.held.insert(id, (revision, bytes));
    }

    pub(super) fn remove(&mut self, id: &StatementId) {
        if let Some((revision, _)) = self.held.remove(id) {
            self.by_revision.remove(&revision);
        }
    }

    pub(crate) fn insert_grant(&mut self, node: Name, epoch: u64, revision: u64, bytes: Vec<u8>) {
        self.grants
            .entry(node)
            .or_default()
            .insert(epoch, (revision, bytes));
    }

    pub(crate) fn remove_grants(&mut self, node: &Name) {
        self.grants.remove(node);
    }

    pub(crate) fn grants(&self, node: &Name) -> impl Iterator<Item = (u64, u64, &[u8])> {
        let grants = self.grants.get(node).into_iter().flatten();
        grants.map(|(epoch, (revision, bytes))| (*epoch, *revision, bytes.as_slice()))
    }

    pub(crate) fn get(&self, id: &StatementId) -> Option<(u64, &[u8])> {
        self.held
            .get(id)
            .map(|(revision, bytes)| (*revision, bytes.as_slice()))
    }

    /// The statements between two ids, in the order of their kind, name and version.
    pub(crate) fn range(
        &self,
        from: StatementId,
        to: StatementId,
    ) -> impl DoubleEndedIterator<Item = (&StatementId, u64, &[u8])> {
        self.held
            .range(from..=to)
            .map(|(id, (revision, bytes))| (id, *revision, bytes.as_slice()))
    }

    pub(crate) fn after(&self, revision: u64) -> Option<(u64, StatementId)> {
        self.by_revision
            .range(revision + 1..)
            .next()
            .map(|(revision, id)| (*revision, id.clone()))
    }

    /// Revision of the newest statement or grant of a node.
    pub(crate) fn newest(&self, node: &Name) -> u64 {
        let statement = self
            .by_revision
            .last_key_value()
            .map_or(0, |(revision, _)| *revision);
        let grant = self.grants(node).map(|(_, revision, _)| revision).max();
        statement.max(grant.unwrap_or(0))
    }
}

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
    /// Reads the whole state.
    pub(crate) async fn load(store: &Redb) -> Result<Self, StoreError> {
        let mut held = Self {
            store: StoreId(store.id().0),
            judge: None,
            index: Index::default(),
            tokens: HashMap::new(),
            join_tokens: rows(store, key::JOIN_TOKEN)
                .await?
                .map(|(_, record): (_, TokenRecord)| (record.key, record))
                .collect(),
            joins: rows(store, key::JOIN)
                .await?
                .map(|(_, row): (_, JoinRow)| (row.envelope.payload_digest(), row))
                .collect(),
            nodes: rows(store, key::NODE)
                .await?
                .map(|(_, row): (_, NodeRow)| (row.name.clone(), row))
                .collect(),
            audit: None,
            audit_intact: true,
        };
        held.tokens = rows(store, key::TOKEN)
            .await?
            .map(|(_, row): (_, TokenRow)| (row.hash, row.view))
            .collect();
        held.load_statements(store).await?;
        for (entry, grant) in rows::<Grant>(store, key::GRANT).await? {
            let node = entry
                .key
                .split('/')
                .nth(1)
                .and_then(|name| name.parse().ok());
            if let Some(node) = node {
                held.index
                    .insert_grant(node, grant.epoch, entry.revision, entry.value);
            }
        }
        held.load_audit(store).await?;
        Ok(held)
    }

    /// Whether the root has revoked the node with this key.
    pub(crate) fn is_revoked(&self, node: &PublicKey) -> bool {
        self.judge
            .as_ref()
            .is_some_and(|judge| judge.is_revoked(node))
    }

    /// Has the judge accept the stored statements again.
    async fn load_statements(&mut self, store: &Redb) -> Result<(), StoreError> {
        let (mut statements, mut listed_objects) = (Vec::new(), BTreeMap::new());
        for prefix in STATEMENTS {
            let mut found: Vec<_> = rows::<Envelope>(store, prefix).await?.collect();
            // Images are judged in the order of their arrival.
            if prefix == key::IMAGE {
                found.sort_by_key(|(entry, _)| entry.revision);
            }
            for (entry, envelope) in found {
                // The statement was signed and accepted, so a newer control plane has written it: a
                // judge without it would remember less than was accepted.
                let id = statement_id(&envelope).map_err(|message| StoreError::Unreadable {
                    key: entry.key.clone(),
                    message,
                })?;
                if let Ok(manifest) = Manifest::read(&envelope) {
                    let found = objects(store, &manifest.tenant, &listed(&manifest)).await?;
                    listed_objects.extend(found);
                }
                self.index.insert(entry.revision, id, entry.value);
                statements.push((entry.key, envelope));
            }
        }
        // The first root determines the fleet, and roots come first.
        let is_root = |(_, envelope): &&(_, Envelope)| envelope.payload_type() == Root::TYPE;
        let Some((_, root)) = statements.first().filter(is_root) else {
            return Ok(());
        };
        let memory = Memory::new(FleetId(root.payload_digest().0));
        let find = |digest: &Digest| Some(listed_objects.get(digest)?.bytes.clone());
        let (judge, refused) = Judge::replay(memory, None, statements, &find);
        for (key, refusal) in refused {
            let code = refusal.code();
            tracing::warn!(key, code, %refusal, "a stored statement is refused");
        }
        self.judge = Some(judge);
        Ok(())
    }

    /// Checks the whole audit chain and remembers its end.
    async fn load_audit(&mut self, store: &Redb) -> Result<(), StoreError> {
        loop {
            let after = self.audit.as_ref().map(|record| key::audit(record.seq));
            let page = store.range(key::AUDIT, after.as_deref(), MAX_RANGE).await?;
            let records: Vec<AuditRecord> = page.iter().filter_map(parse).collect();
            let chained = AuditRecord::verify(self.audit.as_ref(), &records);
            if let Some(broken) = chained.err().filter(|_| self.audit_intact) {
                tracing::error!(
                    seq = broken.seq,
                    "the audit chain is broken: a record was changed, added or taken out"
                );
                self.audit_intact = false;
            }
            self.audit = records.last().cloned().or(self.audit.take());
            if page.len() < MAX_RANGE {
                return Ok(());
            }
        }
    }
}

/// Key prefixes of the statements, roots first.
const STATEMENTS: [&str; 8] = [
    key::ROOT,
    key::ONLINE,
    key::REVOCATIONS,
    key::POOL,
    key::IMAGE,
    key::TENANT,
    key::MANIFEST,
    key::FRESHNESS,
];

/// The kind, name and version that an envelope claims to have.
pub(super) fn statement_id(envelope: &Envelope) -> Result<StatementId, String> {
    Ok(match envelope.payload_type() {
        Root::TYPE => StatementId::Root {
            version: Root::read(envelope)?.version,
        },
        OnlineKey::TYPE => StatementId::OnlineKey {
            version: OnlineKey::read(envelope)?.version,
        },
        Revocations::TYPE => StatementId::Revocations {
            version: Revocations::read(envelope)?.version,
        },
        Pool::TYPE => {
            let Pool { name, epoch, .. } = Pool::read(envelope)?;
            StatementId::Pool { name, epoch }
        }
        Image::TYPE => StatementId::Image {
            version: Image::read(envelope)?.version.as_u64(),
            statement: envelope.payload_digest(),
        },
        Tenant::TYPE => {
            let Tenant { id, version, .. } = Tenant::read(envelope)?;
            let tenant = id;
            StatementId::Tenant { tenant, version }
        }
        Manifest::TYPE => {
            let Manifest {
                tenant, version, ..
            } = Manifest::read(envelope)?;
            StatementId::Manifest { tenant, version }
        }
        Freshness::TYPE => {
            let statement = Freshness::read(envelope)?;
            StatementId::Freshness {
                tenant: statement.tenant,
                version: statement.version,
                issued: statement.issued,
            }
        }
        _ => {
            let expected = "expected a Root, OnlineKey, Pool, Revocations, Tenant or Image";
            return Err(expected.to_owned());
        }
    })
}

/// The other statement that a change removes from the store. Objects are removed later, with others
/// that nothing lists.
pub(super) fn dropped(row: &Row) -> Option<StatementId> {
    match row {
        Row::Drop(RowKey::Freshness(tenant)) => Some(StatementId::Freshness {
            tenant: *tenant,
            version: 0,
            issued: 0,
        }),
        Row::Drop(RowKey::Image(version, statement)) => Some(StatementId::Image {
            version: version.as_u64(),
            statement: *statement,
        }),
        _ => None,
    }
}

/// Every digest that a manifest lists, for any pool.
pub(crate) fn listed(manifest: &Manifest) -> Vec<Digest> {
    let functions = manifest.functions.values();
    let releases =
        functions.flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
    let mut digests: Vec<_> = releases
        .chain(manifest.secrets.values().flat_map(BTreeMap::values))
        .copied()
        .collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// The existing ones among a tenant's objects.
pub(crate) async fn objects(
    store: &Redb,
    tenant: &TenantId,
    digests: &[Digest],
) -> Result<BTreeMap<Digest, StoredObject>, StoreError> {
    let mut found = BTreeMap::new();
    for digest in digests {
        if let Some(object) = object(store, tenant, digest).await? {
            found.insert(*digest, object);
        }
    }
    Ok(found)
}

/// First byte of a stored release.
const RELEASE: u8 = b'r';
const SECRET: u8 = b's';

/// One of a tenant's objects.
pub(crate) async fn object(
    store: &Redb,
    tenant: &TenantId,
    digest: &Digest,
) -> Result<Option<StoredObject>, StoreError> {
    let found = store.get(&key::object(tenant, digest)).await?;
    Ok(found.and_then(|entry| {
        let (kind, bytes) = entry.value.split_first()?;
        let kind = match *kind {
            RELEASE => ObjectKind::Release,
            SECRET => ObjectKind::Secret,
            _ => return None,
        };
        let bytes = bytes.to_vec();
        Some(StoredObject { kind, bytes })
    }))
}

/// An object as it is stored.
pub(crate) fn stored(object: &StoredObject) -> Vec<u8> {
    let kind = match object.kind {
        ObjectKind::Release => RELEASE,
        ObjectKind::Secret => SECRET,
    };
    [&[kind], object.bytes.as_slice()].concat()
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let parsed = serde_json::from_slice(&entry.value);
    parsed
        .inspect_err(
            |error| tracing::error!(key = entry.key, %error, "a stored record cannot be read"),
        )
        .ok()
}

async fn entries(store: &Redb, prefix: &str) -> Result<Vec<Entry>, StoreError> {
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let after = found.last().map(|entry| entry.key.clone());
        let page = store.range(prefix, after.as_deref(), MAX_RANGE).await?;
        let is_last = page.len() < MAX_RANGE;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
}

pub(crate) async fn rows<T: DeserializeOwned>(
    store: &Redb,
    prefix: &str,
) -> Result<impl Iterator<Item = (Entry, T)> + use<T>, StoreError> {
    let found = entries(store, prefix).await?;
    Ok(found
        .into_iter()
        .filter_map(|entry| parse(&entry).map(|row| (entry, row))))
}
