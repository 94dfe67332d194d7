//! Judging what the supervisor carries. Accepted means: on the disk, synced.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::join::Grant;
use casemate_trust::judge::{Accepted, Judge, Refusal};
use casemate_trust::name::Name as PoolName;
use casemate_trust::release::MAX_RELEASE_BYTES;
use casemate_trust::secret::MAX_SECRET_BYTES;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement, Tenant};
use casemate_vault_core::keys::PoolKeys;
use casemate_vault_core::opening::open_grant;
use casemate_vault_store::{Kind, Room, StateFile, StoreError, Write};
use casemate_wire::control::vault::{ObjectKind, Verdict};

use super::Vault;
use super::evidence::outdated;
use super::image::IMAGE_RECORD;
use super::open::StoredLease;
use super::staging::{NotStaged, Staging};
use crate::clock;
use crate::control::cut;

/// Name of the record of the newest list of revoked nodes.
const REVOCATIONS_RECORD: &str = "newest";

/// What a judgement meant for the rest of the program.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// Tenants whose plan may be another now.
    pub(crate) tenants: Vec<TenantId>,
    /// The node has become a member.
    pub(crate) joined: bool,
    /// There is a lease now.
    pub(crate) leased: bool,
    /// The machine is to run another image.
    pub(crate) image: bool,
    /// The root has revoked this node.
    pub(crate) revoked: bool,
}

/// Refused, by a stable name.
pub(super) struct No {
    code: String,
    message: String,
}

impl No {
    fn new(code: &str, message: impl ToString) -> Self {
        Self {
            code: code.to_owned(),
            message: message.to_string(),
        }
    }
}

impl From<Refusal> for No {
    fn from(refusal: Refusal) -> Self {
        let cause = std::error::Error::source(&refusal)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self {
            code: refusal.code().to_owned(),
            message: format!("{refusal}{cause}"),
        }
    }
}

impl From<StoreError> for No {
    fn from(error: StoreError) -> Self {
        let code = if matches!(error, StoreError::Full(_)) {
            "storage_full"
        } else {
            "storage_failed"
        };
        let cause = std::error::Error::source(&error)
            .map(|cause| format!(": {cause}"))
            .unwrap_or_default();
        Self {
            code: code.to_owned(),
            message: format!("{error}{cause}"),
        }
    }
}

pub(super) type Judged = Result<Effect, No>;

impl Vault {
    /// Judges one object.
    pub(crate) fn submit(&self, kind: ObjectKind, bytes: &[u8]) -> (Verdict, Effect) {
        let mut staging = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let judged = match kind {
            ObjectKind::Root => self.statement(bytes, Judge::accept_root),
            ObjectKind::OnlineKey => self.statement(bytes, Judge::accept_online_key),
            ObjectKind::Pool => self.statement(bytes, Judge::accept_pool),
            ObjectKind::Tenant => self.statement(bytes, Judge::accept_tenant),
            ObjectKind::Manifest => match self.manifest(&mut staging, bytes) {
                Ok(Ok(effect)) => Ok(effect),
                Ok(Err(missing)) => {
                    return (
                        Verdict::Missing {
                            digests: missing.into_iter().map(|digest| digest.0).collect(),
                        },
                        Effect::default(),
                    );
                }
                Err(no) => Err(no),
            },
            ObjectKind::Release => stage(&mut staging, bytes, MAX_RELEASE_BYTES),
            ObjectKind::Secret => stage(&mut staging, bytes, MAX_SECRET_BYTES),
            ObjectKind::Grant => self.grant(bytes),
            ObjectKind::Lease => self.lease(bytes),
            ObjectKind::Image => self.image_statement(bytes),
            ObjectKind::Revocations => self.revocations(bytes),
            ObjectKind::Freshness => self.freshness(bytes),
        };
        match judged {
            Ok(effect) => (Verdict::Accepted, effect),
            Err(No { code, message }) => {
                // It may quote what came: a name of a megabyte, say.
                let message = cut(message);
                tracing::warn!(?kind, code, message, "statement refused");
                (Verdict::Refused { code, message }, Effect::default())
            }
        }
    }

    /// Statements of the root, and of tenants about themselves.
    fn statement(
        &self,
        bytes: &[u8],
        accept: fn(&mut Judge, &Envelope, u64) -> Result<Accepted, Refusal>,
    ) -> Judged {
        let envelope = parse(bytes)?;
        let mut judge = self.read().judge.clone();
        if accept(&mut judge, &envelope, clock::unix())? == Accepted::Held {
            return Ok(Effect::default());
        }
        let (kind, name, tenant) = place(&envelope)?;
        let place = (kind, name.as_str(), tenant);
        let room = self.room(&judge, &envelope, place, bytes)?;
        self.persist(&judge, &[Write::Put(kind, name, bytes.to_vec())], room)?;
        let tenants = tenant.map(|id| self.replanned(&judge, id));
        self.replace(judge);
        Ok(Effect {
            tenants: tenants.unwrap_or_default(),
            ..Effect::default()
        })
    }

    /// Whose plans change with a tenant's new statement: its own, and then those of tenants that lose hosts to it or get
    /// them back.
    fn replanned(&self, next: &Judge, id: TenantId) -> Vec<TenantId> {
        let state = self.read();
        let before = state.judge.tenant(&id).map(|state| &state.tenant);
        let others = next.affected_by(&id, before);
        std::iter::once(id).chain(others).collect()
    }

    /// The record and the memory first, then the file that init reads; only then it is accepted.
    fn image_statement(&self, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
        let mut judge = self.read().judge.clone();
        if judge.accept_image(&envelope, clock::unix())? == Accepted::Held {
            return Ok(Effect::default());
        }
        let place = (Kind::Image, IMAGE_RECORD, None);
        let room = self.room(&judge, &envelope, place, bytes)?;
        let put = Write::Put(Kind::Image, IMAGE_RECORD.to_owned(), bytes.to_vec());
        self.persist(&judge, &[put], room)?;
        let pool = self.read().identity.pool.clone();
        if let Some(image) = judge.image(&pool) {
            self.image_file.write(&self.store, image)?;
        }
        self.replace(judge);
        Ok(Effect {
            image: true,
            ..Effect::default()
        })
    }

    /// The root's list of revoked nodes. A node that finds itself in it forgets the keys of its pool, on the disk first.
    fn revocations(&self, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
        let mut judge = self.read().judge.clone();
        if judge.accept_revocations(&envelope, clock::unix())? == Accepted::Held {
            return Ok(Effect::default());
        }
        let put = Write::Put(
            Kind::Revocations,
            REVOCATIONS_RECORD.to_owned(),
            bytes.to_vec(),
        );
        let mut writes = vec![put];
        let is_revoked = {
            let state = self.read();
            let is_revoked = judge.is_revoked(&state.identity.keys.identity().public());
            if is_revoked {
                let grants = state.pool_keys.epochs();
                writes.extend(
                    grants.map(|(pool, epoch)| Write::Drop(Kind::Grant, grant_record(pool, epoch))),
                );
            }
            is_revoked
        };
        let place = (Kind::Revocations, REVOCATIONS_RECORD, None);
        let room = self.room(&judge, &envelope, place, bytes)?;
        self.persist(&judge, &writes, room)?;
        self.replace(judge);
        if is_revoked {
            self.write().pool_keys = PoolKeys::default();
            tracing::error!(
                "the root has revoked this node: its pool keys are forgotten, credentials stop for good"
            );
        }
        Ok(Effect {
            revoked: is_revoked,
            ..Effect::default()
        })
    }

    fn manifest(
        &self,
        staging: &mut Staging,
        bytes: &[u8],
    ) -> Result<Result<Effect, Vec<Digest>>, No> {
        let envelope = parse(bytes)?;
        let id = Manifest::read(&envelope)
            .map_err(Refusal::Malformed)?
            .tenant;
        let mut judge = self.read().judge.clone();
        let held = objects(&judge, id);
        let find = |digest: &Digest| {
            let stored = || {
                let stored = self.store.get(Kind::Object, &digest.to_string());
                stored.ok().flatten().map(|bytes| bytes.to_vec())
            };
            staging.get(&id, digest).cloned().or_else(stored)
        };
        match judge.accept_manifest(&envelope, clock::unix(), &find) {
            Ok(Accepted::Held) => return Ok(Ok(Effect::default())),
            Ok(_) => {}
            Err(Refusal::Missing(missing)) => {
                staging.wants(id, &missing);
                return Ok(Err(missing));
            }
            Err(refusal) => return Err(refusal.into()),
        }
        let listed = objects(&judge, id);
        let mut writes = vec![Write::Put(Kind::Manifest, id.to_string(), bytes.to_vec())];
        writes.extend(listed.iter().filter_map(|digest| {
            let bytes = staging.get(&id, digest)?.clone();
            Some(Write::Put(Kind::Object, digest.to_string(), bytes))
        }));
        writes.extend(
            held.difference(&listed)
                .map(|digest| Write::Drop(Kind::Object, digest.to_string())),
        );
        writes.extend(self.superseded_freshness(&judge, id));
        let objects = (&held, &listed);
        let room = self
            .spending
            .of_manifest(&self.store, id, bytes.len(), objects)?;
        self.persist(&judge, &writes, room)?;
        self.replace(judge);
        staging.done(&id);
        Ok(Ok(Effect {
            tenants: vec![id],
            ..Effect::default()
        }))
    }

    fn grant(&self, bytes: &[u8]) -> Judged {
        let grant = Grant::parse(bytes).map_err(|error| No::new(error.code(), error))?;
        let (seed, member) = {
            let state = self.read();
            let pool = state.judge.pool(&grant.pool, grant.epoch);
            let pool = pool.ok_or_else(|| {
                No::new(
                    "pool_unknown",
                    "the root-signed statement of this pool and epoch was not shown yet",
                )
            })?;
            if pool.name != state.identity.pool {
                return Err(No::new(
                    "pool_other",
                    "the grant is for another pool than this node's",
                ));
            }
            state
                .judge
                .must_not_be_revoked(&state.identity.keys.identity().public())?;
            let seed = open_grant(&grant, &state.identity.keys, pool)
                .map_err(|error| No::new(error.code(), error))?;
            (seed, state.identity.to_bytes_as_member())
        };
        let name = grant_record(&grant.pool, grant.epoch);
        let put = Write::Put(Kind::Grant, name, bytes.to_vec());
        self.store
            .commit(&[put], None, Room::Free, &mut clock::random)?;
        if let Some(member) = &member {
            self.store
                .write(StateFile::Identity, member, &mut clock::random)?;
        }
        let mut state = self.write();
        state.pool_keys.insert(grant.pool, grant.epoch, seed);
        state.identity.forget_token();
        Ok(Effect {
            joined: member.is_some(),
            ..Effect::default()
        })
    }

    fn lease(&self, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
        let (stored, claims) = {
            let state = self.read();
            let online = state.judge.online().ok_or_else(|| {
                No::new(
                    "online_unknown",
                    "the root-signed online key was not shown yet",
                )
            })?;
            if state.judge.time(clock::unix()) >= online.expires {
                return Err(No::new("online_expired", "the online key has expired"));
            }
            let node = state.identity.keys.identity().public();
            let mut liveness = self.liveness();
            let claims = liveness
                .answer(&envelope, state.identity.fleet, node, online)
                .map_err(|error| No::new(error.code(), error))?;
            let outdated = outdated(&state.judge, &claims);
            if outdated > 0 {
                tracing::warn!(
                    outdated,
                    "the control plane claims as newest what is older than statements that it has sent: it was restored \
                     from an older copy, or it hides something; the signed claims are kept"
                );
            }
            let stored = StoredLease {
                boot_id: self.boot_id.clone(),
                until_ms: liveness.until_ms().unwrap_or(0),
                begun_ms: liveness.begun_ms(),
            };
            (stored, claims)
        };
        self.evidence
            .keep(&self.store, envelope, claims, clock::boot_ms());
        let bytes = serde_json::to_vec(&stored).expect("text and numbers are JSON");
        self.store
            .write(StateFile::Lease, &bytes, &mut clock::random)?;
        Ok(Effect {
            leased: true,
            ..Effect::default()
        })
    }

    pub(super) fn room(
        &self,
        judge: &Judge,
        envelope: &Envelope,
        place: (Kind, &str, Option<TenantId>),
        bytes: &[u8],
    ) -> Result<Room, StoreError> {
        self.spending
            .of_statement(&self.store, judge, envelope, place, bytes.len())
    }

    /// Records first, memory after: a kill in between leaves a record that is judged anew.
    pub(super) fn persist(
        &self,
        judge: &Judge,
        writes: &[Write],
        room: Room,
    ) -> Result<(), StoreError> {
        let memory = serde_json::to_vec(judge.memory()).expect("maps with text as keys are JSON");
        self.store
            .commit(writes, Some(&memory), room, &mut clock::random)
    }
}

/// Name of a grant's record.
fn grant_record(pool: &PoolName, epoch: u64) -> String {
    format!("{pool}/{epoch:020}")
}

pub(super) fn parse(bytes: &[u8]) -> Result<Envelope, No> {
    Envelope::parse(bytes).map_err(|error| No::new("statement_malformed", error))
}

/// Under which name a statement is kept. Older versions of what only rises are overwritten, but for roots, each of which
/// signs the next.
fn place(envelope: &Envelope) -> Result<(Kind, String, Option<TenantId>), No> {
    let malformed = |message: String| No::from(Refusal::Malformed(message));
    match envelope.payload_type() {
        Root::TYPE => {
            Root::read(envelope).map(|root| (Kind::Root, format!("{:020}", root.version), None))
        }
        OnlineKey::TYPE => {
            OnlineKey::read(envelope).map(|_| (Kind::OnlineKey, "newest".to_owned(), None))
        }
        Pool::TYPE => Pool::read(envelope).map(|pool| {
            (
                Kind::Pool,
                format!("{}/{:020}", pool.name, pool.epoch),
                None,
            )
        }),
        _ => Tenant::read(envelope)
            .map(|tenant| (Kind::Tenant, tenant.id.to_string(), Some(tenant.id))),
    }
    .map_err(malformed)
}

/// Every object that a tenant's manifest lists and that matters here.
fn objects(judge: &Judge, id: TenantId) -> BTreeSet<Digest> {
    let accord = judge.tenant(&id).and_then(|state| state.manifest.as_ref());
    accord
        .map(casemate_trust::judge::Accord::objects)
        .unwrap_or_default()
}

/// Keeps an object that a verified manifest waits for; any other is refused, so that nobody fills our memory.
fn stage(staging: &mut Staging, bytes: &[u8], most: usize) -> Judged {
    if bytes.len() > most {
        return Err(No::new(
            "object_too_large",
            format!("expected at most {most} bytes, got {}", bytes.len()),
        ));
    }
    match staging.stage(bytes) {
        Ok(()) => Ok(Effect::default()),
        Err(NotStaged::Unlisted) => Err(Refusal::ObjectUnlisted.into()),
        Err(NotStaged::TooMany) => Err(No::new(
            "too_many",
            "too many objects wait for their manifests",
        )),
    }
}
