//! Judging what the supervisor carries. Accepted means: on the disk, synced.

use std::collections::BTreeSet;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::join::Grant;
use casemate_trust::judge::{Accepted, Judge, Refusal};
use casemate_trust::release::MAX_RELEASE_BYTES;
use casemate_trust::secret::MAX_SECRET_BYTES;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement, Tenant};
use casemate_vault_core::opening::open_grant;
use casemate_vault_store::{Kind, StateFile, StoreError, Write};
use casemate_wire::control::vault::{ObjectKind, Verdict};

use super::open::StoredLease;
use super::{State, Vault};
use crate::clock;
use crate::control::cut;

/// Most bytes of objects that wait for their manifest.
const MAX_STAGED_BYTES: usize = 64 * 1024 * 1024;

/// What a judgement meant for the rest of the program.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// Tenants whose plan may be another now.
    pub(crate) tenants: Vec<TenantId>,
    /// The node has become a member.
    pub(crate) joined: bool,
    /// There is a lease now.
    pub(crate) leased: bool,
}

/// Refused, by a stable name.
struct No {
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

type Judged = Result<Effect, No>;

impl Vault {
    /// Judges one object.
    pub(crate) fn submit(&self, kind: ObjectKind, bytes: &[u8]) -> (Verdict, Effect) {
        let mut state = self.write();
        let judged = match kind {
            ObjectKind::Root => self.statement(&mut state, bytes, Judge::accept_root),
            ObjectKind::OnlineKey => self.statement(&mut state, bytes, Judge::accept_online_key),
            ObjectKind::Pool => self.statement(&mut state, bytes, Judge::accept_pool),
            ObjectKind::Tenant => self.statement(&mut state, bytes, Judge::accept_tenant),
            ObjectKind::Manifest => match self.manifest(&mut state, bytes) {
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
            ObjectKind::Release => stage(&mut state, bytes, MAX_RELEASE_BYTES),
            ObjectKind::Secret => stage(&mut state, bytes, MAX_SECRET_BYTES),
            ObjectKind::Grant => self.grant(&mut state, bytes),
            ObjectKind::Lease => self.lease(&state, bytes),
        };
        match judged {
            Ok(effect) => (Verdict::Accepted, effect),
            Err(No { code, message }) => {
                // It may quote what came: a name of a megabyte, say.
                let message = cut(message);
                tracing::warn!(?kind, code, message, "refused");
                (Verdict::Refused { code, message }, Effect::default())
            }
        }
    }

    /// Statements of the root, and of tenants about themselves.
    fn statement(
        &self,
        state: &mut State,
        bytes: &[u8],
        accept: fn(&mut Judge, &Envelope, u64) -> Result<Accepted, Refusal>,
    ) -> Judged {
        let envelope = parse(bytes)?;
        let mut judge = state.judge.clone();
        if accept(&mut judge, &envelope, clock::unix())? == Accepted::Held {
            return Ok(Effect::default());
        }
        let (kind, name, tenant) = place(&envelope)?;
        self.persist(&judge, &[Write::Put(kind, name, bytes.to_vec())])?;
        state.judge = judge;
        Ok(Effect {
            tenants: tenant.into_iter().collect(),
            ..Effect::default()
        })
    }

    fn manifest(&self, state: &mut State, bytes: &[u8]) -> Result<Result<Effect, Vec<Digest>>, No> {
        let envelope = parse(bytes)?;
        let mut judge = state.judge.clone();
        let staged = &state.staged;
        let find = |digest: &Digest| {
            let stored = || {
                self.store
                    .get(Kind::Object, &digest.to_string())
                    .ok()
                    .flatten()
                    .map(|bytes| bytes.to_vec())
            };
            staged.get(digest).cloned().or_else(stored)
        };
        let id = Manifest::read(&envelope)
            .map_err(Refusal::Malformed)?
            .tenant;
        match judge.accept_manifest(&envelope, clock::unix(), &find) {
            Ok(Accepted::Held) => return Ok(Ok(Effect::default())),
            Ok(_) => {}
            Err(Refusal::Missing(missing)) => {
                state.wanted.insert(id, missing.iter().copied().collect());
                return Ok(Err(missing));
            }
            Err(refusal) => return Err(refusal.into()),
        }
        let (listed, dropped) = (objects(&judge, id), objects(&state.judge, id));
        let mut writes = vec![Write::Put(Kind::Manifest, id.to_string(), bytes.to_vec())];
        writes.extend(listed.iter().filter_map(|digest| {
            Some(Write::Put(
                Kind::Object,
                digest.to_string(),
                staged.get(digest)?.clone(),
            ))
        }));
        writes.extend(
            dropped
                .difference(&listed)
                .map(|digest| Write::Drop(Kind::Object, digest.to_string())),
        );
        self.persist(&judge, &writes)?;
        state.judge = judge;
        state.wanted.remove(&id);
        let wanted: BTreeSet<Digest> = state.wanted.values().flatten().copied().collect();
        state.staged.retain(|digest, _| wanted.contains(digest));
        Ok(Ok(Effect {
            tenants: vec![id],
            ..Effect::default()
        }))
    }

    fn grant(&self, state: &mut State, bytes: &[u8]) -> Judged {
        let grant = Grant::parse(bytes).map_err(|error| No::new(error.code(), error))?;
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
        let seed = open_grant(&grant, &state.identity.keys, pool)
            .map_err(|error| No::new(error.code(), error))?;
        let name = format!("{}/{:020}", grant.pool, grant.epoch);
        self.store.commit(
            &[Write::Put(Kind::Grant, name, bytes.to_vec())],
            &mut clock::random,
        )?;
        state.pool_keys.insert(grant.pool, grant.epoch, seed);
        let joined = state.identity.forget_token();
        if joined {
            self.store.write(
                StateFile::Identity,
                &state.identity.to_bytes(),
                &mut clock::random,
            )?;
        }
        Ok(Effect {
            joined,
            ..Effect::default()
        })
    }

    fn lease(&self, state: &State, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
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
        liveness
            .answer(&envelope, state.identity.fleet, node, online)
            .map_err(|error| No::new(error.code(), error))?;
        let stored = StoredLease {
            boot_id: self.boot_id.clone(),
            until_ms: liveness.until_ms().unwrap_or(0),
        };
        let bytes = serde_json::to_vec(&stored).unwrap_or_default();
        self.store
            .write(StateFile::Lease, &bytes, &mut clock::random)?;
        Ok(Effect {
            leased: true,
            ..Effect::default()
        })
    }

    /// Records first, memory after: a kill in between leaves a record that is judged anew.
    fn persist(&self, judge: &Judge, writes: &[Write]) -> Result<(), StoreError> {
        self.store.commit(writes, &mut clock::random)?;
        let memory = serde_json::to_vec(judge.memory()).unwrap_or_default();
        self.store
            .write(StateFile::Memory, &memory, &mut clock::random)
    }
}

fn parse(bytes: &[u8]) -> Result<Envelope, No> {
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
fn stage(state: &mut State, bytes: &[u8], most: usize) -> Judged {
    if bytes.len() > most {
        return Err(No::new(
            "object_too_large",
            format!("expected at most {most} bytes, got {}", bytes.len()),
        ));
    }
    let digest = Digest::of(bytes);
    if !state.wanted.values().any(|wanted| wanted.contains(&digest)) {
        return Err(Refusal::ObjectUnlisted.into());
    }
    let held: usize = state.staged.values().map(Vec::len).sum();
    if held + bytes.len() > MAX_STAGED_BYTES {
        return Err(No::new(
            "too_many",
            "too many objects wait for their manifests",
        ));
    }
    state.staged.insert(digest, bytes.to_vec());
    Ok(Effect::default())
}
