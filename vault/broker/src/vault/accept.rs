//! Judges the objects that the supervisor submits. Accepted means: on the disk, synced.

use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::Freshness;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::image::Image;
use casemate_trust::join::Grant;
use casemate_trust::judge::{Change, Refusal, Row, RowKey};
use casemate_trust::release::MAX_RELEASE_BYTES;
use casemate_trust::revocation::Revocations;
use casemate_trust::secret::MAX_SECRET_BYTES;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};
use casemate_vault_core::keys::PoolKeys;
use casemate_vault_core::opening::open_grant;
use casemate_vault_store::{Kind, Room, StateFile, StoreError, Write};
use casemate_wire::control::vault::{ObjectKind, Verdict};

use super::Vault;
use super::evidence::outdated;
use super::memory::{frame, frames};
use super::open::StoredLease;
use super::record::{grant_record, record};
use super::staging::{NotStaged, Staging};
use crate::clock;
use crate::text::cut;

/// The effects of a judgement on the rest of the program.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// Tenants whose plan may have changed.
    pub(crate) tenants: Vec<TenantId>,
    /// The node has become a member.
    pub(crate) joined: bool,
    /// A lease was granted.
    pub(crate) leased: bool,
    /// The machine is to run another image.
    pub(crate) image: bool,
    /// The root has revoked this node.
    pub(crate) revoked: bool,
}

/// Why an object is not accepted.
enum Rejection {
    /// The object is refused, with a stable code.
    Refused { code: String, message: String },
    /// The manifest lists objects that are not here yet.
    Missing(Vec<Digest>),
}

impl Rejection {
    fn new(code: &str, message: impl ToString) -> Self {
        Self::Refused {
            code: code.to_owned(),
            message: message.to_string(),
        }
    }

    /// The rejection for an error and its causes.
    fn of(code: &str, error: &dyn std::error::Error) -> Self {
        let cause = error.source();
        let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
        Self::new(code, format!("{error}{cause}"))
    }
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Missing(digests) => Self::Missing(digests),
            refusal => Self::of(refusal.code(), &refusal),
        }
    }
}

impl From<StoreError> for Rejection {
    fn from(error: StoreError) -> Self {
        let code = if matches!(error, StoreError::Full(_)) {
            "storage_full"
        } else {
            "storage_failed"
        };
        Self::of(code, &error)
    }
}

type Judged = Result<Effect, Rejection>;

impl Vault {
    /// Judges one object.
    pub(crate) fn submit(&self, kind: ObjectKind, bytes: &[u8]) -> (Verdict, Effect) {
        let mut staging = self.changing.lock();
        let judged = match kind {
            ObjectKind::Release => stage(&mut staging, bytes, MAX_RELEASE_BYTES),
            ObjectKind::Secret => stage(&mut staging, bytes, MAX_SECRET_BYTES),
            ObjectKind::Grant => self.grant(bytes),
            ObjectKind::Lease => self.lease(bytes),
            ObjectKind::Root => self.statement(&mut staging, Root::TYPE, bytes),
            ObjectKind::OnlineKey => self.statement(&mut staging, OnlineKey::TYPE, bytes),
            ObjectKind::Pool => self.statement(&mut staging, Pool::TYPE, bytes),
            ObjectKind::Tenant => self.statement(&mut staging, Tenant::TYPE, bytes),
            ObjectKind::Manifest => self.statement(&mut staging, Manifest::TYPE, bytes),
            ObjectKind::Image => self.statement(&mut staging, Image::TYPE, bytes),
            ObjectKind::Revocations => self.statement(&mut staging, Revocations::TYPE, bytes),
            ObjectKind::Freshness => self.statement(&mut staging, Freshness::TYPE, bytes),
        };
        match judged {
            Ok(effect) => (Verdict::Accepted, effect),
            Err(Rejection::Missing(digests)) => {
                let digests = digests.into_iter().map(|digest| digest.0).collect();
                (Verdict::Missing { digests }, Effect::default())
            }
            Err(Rejection::Refused { code, message }) => {
                // The message may quote the object, such as a name of a megabyte.
                let message = cut(message);
                tracing::warn!(?kind, code, message, "statement refused");
                (Verdict::Refused { code, message }, Effect::default())
            }
        }
    }

    /// Decides a statement, writes its change, and applies it. Calls can read the state all the
    /// time, except for the moment in which the change is applied.
    fn statement(&self, staging: &mut Staging, kind: &str, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
        if envelope.payload_type() != kind {
            let message = format!(
                "expected {kind}, got {:?}",
                cut(envelope.payload_type().to_owned())
            );
            return Err(Refusal::Malformed(message).into());
        }
        // Only a manifest lists objects; a malformed one is refused by the judge.
        let manifest = Manifest::read(&envelope)
            .ok()
            .map(|manifest| manifest.tenant);
        let find = |digest: &Digest| {
            let staged = staging.get(&manifest?, digest).cloned();
            staged.or_else(|| self.stored_object(digest))
        };
        let decided = self.read().judge.decide(&envelope, clock::unix(), &find);
        if let (Err(Refusal::Missing(missing)), Some(tenant)) = (&decided, manifest) {
            staging.wants(tenant, missing);
        }
        let change = decided?;
        if change.is_empty() {
            return Ok(Effect::default());
        }
        let mut writes = Vec::new();
        for row in change.rows() {
            match row {
                Row::Drop(key) => {
                    let (kind, name) = record(key);
                    writes.push(Write::Drop(kind, name));
                }
                // The store has the object, or other manifests list it too.
                Row::Put(RowKey::Object(digest), _)
                    if manifest.is_none_or(|tenant| staging.get(&tenant, digest).is_none()) => {}
                Row::Put(key, bytes) => {
                    let (kind, name) = record(key);
                    writes.push(Write::Put(kind, name, bytes.clone()));
                }
            }
        }
        let is_revoked = self.forgets_grants(&change, &mut writes);
        let room = self.room(&change, &envelope, bytes.len())?;
        let (committed, effect) = change.commit(|change| {
            self.persist(change, &writes, room)?;
            Ok::<_, StoreError>(Effect {
                tenants: change.affected().to_vec(),
                image: change.image().is_some(),
                revoked: is_revoked,
                ..Effect::default()
            })
        })?;
        {
            let mut state = self.write();
            state.judge.apply(committed);
            if is_revoked {
                state.pool_keys = PoolKeys::default();
            }
        }
        if is_revoked {
            tracing::error!(
                "the root has revoked this node: its pool keys are forgotten, credentials stop for good"
            );
        }
        if let Some(tenant) = manifest {
            staging.done(&tenant);
        }
        self.shorten_memory();
        Ok(effect)
    }

    fn stored_object(&self, digest: &Digest) -> Option<Vec<u8>> {
        let stored = self.store.get(Kind::Object, &digest.to_string());
        stored.ok().flatten().map(|bytes| bytes.to_vec())
    }

    /// If the change puts this node into the list of revoked nodes, removes the pool's keys, first
    /// from the disk.
    fn forgets_grants(&self, change: &Change, writes: &mut Vec<Write>) -> bool {
        let state = self.read();
        let own = state.identity.keys.identity().public();
        let is_revoked = change.revocations().is_some_and(|list| list.names(&own));
        if is_revoked {
            let grants = state.pool_keys.epochs();
            writes.extend(
                grants.map(|(pool, epoch)| Write::Drop(Kind::Grant, grant_record(pool, epoch))),
            );
        }
        is_revoked
    }

    /// Writes records first, then memory: after a kill in between, the next start completes the
    /// memory from the records. An image is accepted only once the file that init reads is written
    /// too.
    fn persist(&self, change: &Change, writes: &[Write], room: Room) -> Result<(), StoreError> {
        let frame = frame(change.memory());
        self.store
            .commit(writes, Some(&frame), room, &mut clock::random)?;
        match change.image() {
            Some(image) => self.image_file.write(&self.store, image),
            None => Ok(()),
        }
    }

    /// Rewrites the memory when the appended frames exceed its base, so that the bytes written over
    /// time stay within a few times its size.
    fn shorten_memory(&self) {
        if !self.store.is_memory_long() {
            return;
        }
        let state = self.read();
        let frames = frames(state.judge.memory());
        if let Err(error) = self.store.write_memory(frames, &mut clock::random) {
            tracing::warn!(
                %error,
                "could not rewrite the rollback memory; it keeps growing, and the next change retries"
            );
        }
    }

    fn room(&self, change: &Change, envelope: &Envelope, bytes: usize) -> Result<Room, StoreError> {
        let state = self.read();
        self.spending
            .of_change(&self.store, &state.judge, change, (envelope, bytes))
    }

    fn grant(&self, bytes: &[u8]) -> Judged {
        let grant = Grant::parse(bytes).map_err(|error| Rejection::new(error.code(), error))?;
        let (seed, member) = {
            let state = self.read();
            let pool = state.judge.pool(&grant.pool, grant.epoch);
            let pool = pool.ok_or_else(|| {
                Rejection::new(
                    "pool_unknown",
                    "the root-signed statement of this pool and epoch has not arrived yet",
                )
            })?;
            if pool.name != state.identity.pool {
                return Err(Rejection::new(
                    "pool_other",
                    "the grant is for another pool than this node's",
                ));
            }
            state
                .judge
                .must_not_be_revoked(&state.identity.keys.identity().public())?;
            let seed = open_grant(&grant, &state.identity.keys, pool)
                .map_err(|error| Rejection::new(error.code(), error))?;
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
                Rejection::new(
                    "online_unknown",
                    "the root-signed online key has not arrived yet",
                )
            })?;
            if state.judge.time(clock::unix()) >= online.expires {
                return Err(Rejection::new(
                    "online_expired",
                    "the online key has expired",
                ));
            }
            let node = state.identity.keys.identity().public();
            let mut liveness = self.liveness();
            let claims = liveness
                .answer(&envelope, state.identity.fleet, node, online)
                .map_err(|error| Rejection::new(error.code(), error))?;
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
}

fn parse(bytes: &[u8]) -> Result<Envelope, Rejection> {
    Envelope::parse(bytes).map_err(|error| Rejection::new("statement_malformed", error))
}

/// Stores an object that a verified manifest waits for; any other is refused, so that no sender can
/// fill our memory.
fn stage(staging: &mut Staging, bytes: &[u8], most: usize) -> Judged {
    if bytes.len() > most {
        return Err(Rejection::new(
            "object_too_large",
            format!("expected at most {most} bytes, got {}", bytes.len()),
        ));
    }
    match staging.stage(bytes) {
        Ok(()) => Ok(Effect::default()),
        Err(NotStaged::Unlisted) => Err(Refusal::ObjectUnlisted.into()),
        Err(NotStaged::TooMany) => Err(Rejection::new(
            "too_many",
            "too many objects wait for their manifests",
        )),
    }
}
