//! What is held in memory: everything but objects, bundles and audit records. The store is the record of truth; this is
//! read from it at the start, and again after a write that failed.

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
use casemate_trust::judge::{FreshnessSeen, ImageSeen, Judge, Memory, Refusal, Seen, TenantSeen};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement, Tenant};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::image::{self, NewestImages};
use super::key;

/// A token of the API as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// What lists show.
    pub(crate) view: TokenView,
    /// SHA-256 of the token.
    pub(crate) hash: Digest,
}

/// A join request that waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinRow {
    /// As the node's vault signed it.
    pub(crate) envelope: Envelope,
    /// Key of the token that it was made with.
    pub(crate) token: PublicKey,
    /// When it first came.
    pub(crate) first_seen: Seconds,
}

/// A node that was admitted.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Name.
    pub(crate) name: Name,
    /// Pool.
    pub(crate) pool: Name,
    /// Ed25519 key.
    pub(crate) key: PublicKey,
    /// When.
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
    pub(super) images: NewestImages,
}

impl Index {
    /// Adds a statement; of online keys, lists of revoked nodes, manifests and a pool's images the older one goes, an
    /// envelope that was signed anew replaces.
    pub(crate) fn insert(&mut self, revision: u64, id: StatementId, bytes: Vec<u8>) {
        if matches!(id, StatementId::Image { .. })
            && let Some((_, image)) = image::read(&bytes)
        {
            for superseded in self.images.take(&id, &image.pools) {
                if let Some((revision, _)) = self.held.remove(&superseded) {
                    self.by_revision.remove(&revision);
                }
            }
        }
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
        for id in replaced {
            if let Some((revision, _)) = self.held.remove(&id) {
                self.by_revision.remove(&revision);
            }
        }
        self.by_revision.insert(revision, id.clone());
        self.held.insert(id, (revision, bytes));
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

/// See the module.
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
    /// Whether the audit chain was found unbroken.
    pub(crate) audit_intact: bool,
    /// A write failed: memory may be ahead of the disk and is read anew before the next one.
    pub(crate) is_stale: bool,
}

impl Held {
    /// Reads everything.
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
            is_stale: false,
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

    /// Has the judge take again what it took before, remembering that it did, so that what has expired since is taken too.
    async fn load_statements(&mut self, store: &Redb) -> Result<(), StoreError> {
        let stored = Statements::read(store).await?;
        let Some(mut judge) = stored
            .memory()
            .map(|memory| Judge::remembering(memory, None))
        else {
            return Ok(());
        };
        let check = |taken: Result<_, Refusal>, entry: &Entry| {
            if let Err(refusal) = taken {
                let (key, code) = (&entry.key, refusal.code());
                tracing::warn!(
                    key,
                    code,
                    "a stored statement is not accepted any more: {refusal}"
                );
            }
        };
        for (index, (entry, envelope, Root { version, .. })) in stored.roots.iter().enumerate() {
            // Only the newest: it is remembered by its digest, and nothing lower is taken.
            if index + 1 == stored.roots.len() {
                check(judge.accept_root(envelope, 0), entry);
            }
            self.index.insert(
                entry.revision,
                StatementId::Root { version: *version },
                entry.value.clone(),
            );
        }
        for (entry, envelope, OnlineKey { version, .. }) in &stored.online {
            check(judge.accept_online_key(envelope, 0), entry);
            self.index.insert(
                entry.revision,
                StatementId::OnlineKey { version: *version },
                entry.value.clone(),
            );
        }
        for (entry, envelope, Revocations { version, .. }) in &stored.revocations {
            check(judge.accept_revocations(envelope, 0), entry);
            self.index.insert(
                entry.revision,
                StatementId::Revocations { version: *version },
                entry.value.clone(),
            );
        }
        for (entry, envelope, pool) in &stored.pools {
            check(judge.accept_pool(envelope, 0), entry);
            let (name, epoch) = (pool.name.clone(), pool.epoch);
            self.index.insert(
                entry.revision,
                StatementId::Pool { name, epoch },
                entry.value.clone(),
            );
        }
        for (entry, envelope, image) in &stored.images {
            check(judge.accept_image(envelope, 0), entry);
            let id = StatementId::Image {
                version: image.version.as_u64(),
                statement: envelope.payload_digest(),
            };
            self.index.insert(entry.revision, id, entry.value.clone());
        }
        for (
            index,
            (
                entry,
                envelope,
                Tenant {
                    id: tenant,
                    version,
                    ..
                },
            ),
        ) in stored.tenants.iter().enumerate()
        {
            let is_newest = stored
                .tenants
                .get(index + 1)
                .is_none_or(|(_, _, next)| next.id != *tenant);
            if is_newest {
                check(judge.accept_tenant(envelope, 0), entry);
            }
            let (tenant, version) = (*tenant, *version);
            self.index.insert(
                entry.revision,
                StatementId::Tenant { tenant, version },
                entry.value.clone(),
            );
        }
        for (entry, envelope, manifest) in &stored.manifests {
            let objects = objects(store, &manifest.tenant, &listed(manifest)).await?;
            let find = |digest: &Digest| objects.get(digest).map(|object| object.bytes.clone());
            check(judge.accept_manifest(envelope, 0, &find), entry);
            let (tenant, version) = (manifest.tenant, manifest.version);
            self.index.insert(
                entry.revision,
                StatementId::Manifest { tenant, version },
                entry.value.clone(),
            );
        }
        for (entry, envelope, statement) in &stored.freshness {
            check(judge.accept_freshness(envelope, 0), entry);
            let id = StatementId::Freshness {
                tenant: statement.tenant,
                version: statement.version,
                issued: statement.issued,
            };
            self.index.insert(entry.revision, id, entry.value.clone());
        }
        self.judge = Some(judge);
        Ok(())
    }

    /// Walks the whole audit chain and keeps its end.
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

/// A stored statement: where it lies, as it was signed, and what it says.
type Stored<T> = (Entry, Envelope, T);

/// Every stored statement, each kind by name and version.
struct Statements {
    roots: Vec<Stored<Root>>,
    online: Vec<Stored<OnlineKey>>,
    revocations: Vec<Stored<Revocations>>,
    pools: Vec<Stored<Pool>>,
    /// In the order in which they came.
    images: Vec<Stored<Image>>,
    tenants: Vec<Stored<Tenant>>,
    manifests: Vec<Stored<Manifest>>,
    freshness: Vec<Stored<Freshness>>,
}

impl Statements {
    async fn read(store: &Redb) -> Result<Self, StoreError> {
        let mut images = statements(store, key::IMAGE).await?;
        images.sort_by_key(|(entry, _, _): &Stored<Image>| entry.revision);
        Ok(Self {
            images,
            roots: statements(store, key::ROOT).await?,
            online: statements(store, key::ONLINE).await?,
            revocations: statements(store, key::REVOCATIONS).await?,
            pools: statements(store, key::POOL).await?,
            tenants: statements(store, key::TENANT).await?,
            manifests: statements(store, key::MANIFEST).await?,
            freshness: statements(store, key::FRESHNESS).await?,
        })
    }

    /// What the judge remembered when it had taken these; `None` before there is a fleet.
    fn memory(&self) -> Option<Memory> {
        let seen = |version: u64, envelope: &Envelope| Seen {
            version,
            digest: envelope.payload_digest(),
        };
        let fleet = FleetId(self.roots.first()?.1.payload_digest().0);
        let issued = self.roots.iter().map(|(_, _, root)| root.issued);
        let issued = issued.chain(self.online.iter().map(|(_, _, online)| online.issued));
        let issued = issued.chain(self.pools.iter().map(|(_, _, pool)| pool.issued));
        let issued = issued.chain(self.revocations.iter().map(|(_, _, list)| list.issued));
        let issued = issued.chain(self.images.iter().map(|(_, _, image)| image.issued));
        let mut memory = Memory {
            fleet,
            root: self
                .roots
                .last()
                .map(|(_, envelope, root)| seen(root.version, envelope)),
            online: self
                .online
                .last()
                .map(|(_, envelope, online)| seen(online.version, envelope)),
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            images: BTreeMap::new(),
            revocations: self
                .revocations
                .last()
                .map(|(_, envelope, list)| seen(list.version, envelope)),
            floor: issued.max().unwrap_or(0),
        };
        for (_, envelope, pool) in &self.pools {
            memory.remember_pool(&pool.name, seen(pool.epoch, envelope));
        }
        for (_, envelope, image) in &self.images {
            let seen = ImageSeen {
                version: image.version,
                digest: image.digest,
                statement: envelope.payload_digest(),
            };
            memory.remember_image(&image.pools, seen);
        }
        for (_, envelope, tenant) in &self.tenants {
            let tenant_seen = TenantSeen {
                tenant: seen(tenant.version, envelope),
                manifest: None,
                freshness: None,
            };
            memory.tenants.insert(tenant.id, tenant_seen);
        }
        for (_, envelope, manifest) in &self.manifests {
            if let Some(tenant) = memory.tenants.get_mut(&manifest.tenant) {
                tenant.manifest = Some(seen(manifest.version, envelope));
            }
        }
        for (_, envelope, statement) in &self.freshness {
            if let Some(tenant) = memory.tenants.get_mut(&statement.tenant) {
                tenant.freshness = Some(FreshnessSeen {
                    version: statement.version,
                    issued: statement.issued,
                    digest: envelope.payload_digest(),
                });
            }
        }
        Some(memory)
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

/// Those of a tenant's objects that are there.
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

/// What a stored object begins with.
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

/// Every statement of a kind. A row that is damaged is passed over, as everywhere. A statement that was signed and accepted and
/// cannot be read is a newer control plane's: a judge that went on without it would remember less than it has accepted.
async fn statements<T: Statement>(
    store: &Redb,
    prefix: &str,
) -> Result<Vec<Stored<T>>, StoreError> {
    let envelopes = rows::<Envelope>(store, prefix).await?;
    let read = |(entry, envelope): (Entry, Envelope)| match T::read(&envelope) {
        Ok(statement) => Ok((entry, envelope, statement)),
        Err(message) => Err(StoreError::Unreadable {
            key: entry.key,
            message,
        }),
    };
    envelopes.map(read).collect()
}
