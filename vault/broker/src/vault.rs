//! The vault's state: judge, keys, lease and store under one lock, and the functions that change
//! them.

mod accept;
mod evidence;
mod image;
mod memory;
mod open;
mod record;
mod reflected;
mod room;
mod staging;

use std::sync::Arc;

use casemate_trust::Seconds;
use casemate_trust::id::TenantId;
use casemate_trust::judge::{Judge, Standing, TenantState};
use casemate_trust::name::Identifier;
use casemate_trust::secret::Reflection;
use casemate_vault_core::kept::Kept;
use casemate_vault_core::keys::{PoolKeys, StorageKey};
use casemate_vault_core::liveness::Liveness;
use casemate_vault_store::Store;
use casemate_wire::CallCode;
use casemate_wire::control::LayerReport;
use casemate_wire::control::vault::{Have, HaveTenant, Hello, Image, Plan};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::clock;
use crate::error::VaultError;
use crate::identity::Identity;
use evidence::Evidence;
use image::ImageFile;
pub(crate) use reflected::{Owner, Reflected};
use room::Spending;
use staging::Staging;

/// Most tenants in a description; further ones are only counted. A description is for people, and
/// must fit into a message.
const MAX_DESCRIBED_TENANTS: usize = 1000;

/// The vault's whole state. Every change holds `changing`: it is decided, written to the disk, and
/// only then applied, under the lock that calls take to read. Deciding a call never waits for the
/// disk.
pub(crate) struct Vault {
    state: RwLock<State>,
    changing: Mutex<Staging>,
    liveness: Mutex<Liveness>,
    /// Secrets that calls have used.
    pub(crate) kept: Kept,
    /// Matches of credentials in answers.
    pub(crate) reflected: Arc<Reflected>,
    pub(crate) storage: StorageKey,
    store: Arc<Store>,
    /// Use of the store's reserve by each tenant.
    spending: Spending,
    boot_id: String,
    image_file: ImageFile,
    evidence: Evidence,
    /// Why all statements must be sent again; determined at opening.
    pub(crate) refill: Option<String>,
}

/// The state that calls read.
pub(crate) struct State {
    pub(crate) judge: Judge,
    pub(crate) pool_keys: PoolKeys,
    pub(crate) identity: Identity,
}

impl State {
    /// Whether the root has revoked this node.
    pub(crate) fn is_revoked(&self) -> bool {
        self.judge
            .is_revoked(&self.identity.keys.identity().public())
    }

    /// Why this node must not use credentials, by the root's list of revoked nodes: code and text.
    pub(crate) fn is_barred(&self) -> Option<(CallCode, &'static str)> {
        if self.is_revoked() {
            let message = "the fleet's root has revoked this node: it uses no credentials any more";
            return Some((CallCode::NodeRevoked, message));
        }
        self.judge.has_lost_revocations().then_some((
            CallCode::RevocationsMissing,
            "the root's list of revoked nodes was lost with the vault's records; credentials wait until the control \
             plane sends it again",
        ))
    }
}

impl Vault {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock()
    }

    /// Whether credentials may be used now.
    pub(crate) fn lease_holds(&self) -> bool {
        self.liveness().holds(clock::boot_ms())
    }

    /// The nonce for the control plane to sign, when a lease is due.
    pub(crate) fn lease_question(&self, connected_anew: bool) -> Option<[u8; 32]> {
        self.read().judge.online()?;
        let mut liveness = self.liveness();
        if connected_anew {
            liveness.ask_again();
        }
        liveness.question(clock::boot_ms(), &mut clock::random)
    }

    /// Whether the vault must end: a write has failed halfway, and only a new process can determine
    /// what is on the disk.
    pub(crate) fn must_be_whole(&self) -> Result<(), VaultError> {
        if self.store.is_broken() {
            return Err(VaultError::StoreBroken);
        }
        Ok(())
    }

    /// Fills the store's reserve again when there is space on the disk.
    pub(crate) fn fill_reserve(&self) {
        self.store.fill_reserve();
    }

    /// Number of missing statements that the control plane claims, when it is time to ask for them.
    pub(crate) fn lacking(&self) -> Option<u64> {
        self.evidence.question(&self.read().judge, clock::boot_ms())
    }

    /// Signs a TLS handshake with the node's key; the caller has checked that the content is one.
    pub(crate) fn sign_handshake(&self, content: &[u8]) -> [u8; 64] {
        self.read().identity.keys.identity().sign(content)
    }

    /// The facts that the supervisor needs to connect.
    pub(crate) fn hello(&self, layers: Vec<LayerReport>) -> Hello {
        let state = self.read();
        let identity = &state.identity;
        Hello {
            node: identity.node.to_string(),
            node_key: *identity.keys.identity().public().as_bytes(),
            fleet: identity.fleet.0,
            pool: identity.pool.to_string(),
            control_address: identity.control_address.clone(),
            control_key: *state
                .judge
                .online()
                .map_or(identity.control_key, |online| online.quic)
                .as_bytes(),
            join_request: identity.join_request(),
            state_key: *self.storage.state_key(),
            layers,
        }
    }

    /// The list of held statements, from which the control plane derives what to send.
    pub(crate) fn have(&self) -> Have {
        let state = self.read();
        let judge = &state.judge;
        let manifest = |state: &casemate_trust::judge::TenantState| {
            state
                .manifest
                .as_ref()
                .map(|accord| (accord.manifest.version, accord.digest.0))
        };
        Have {
            root: judge.root().map_or(0, |root| root.version),
            online_key: judge.online().map_or(0, |online| online.version),
            epochs: judge.epochs(&state.identity.pool).collect(),
            tenants: judge
                .tenants()
                .map(|(id, state)| HaveTenant {
                    tenant: id.0,
                    tenant_version: state.tenant.version,
                    manifest: manifest(state),
                    freshness: state
                        .freshness
                        .as_ref()
                        .map(|statement| (statement.version, statement.issued)),
                })
                .collect(),
            grants: state
                .pool_keys
                .epochs()
                .filter(|(pool, _)| **pool == state.identity.pool)
                .map(|(_, epoch)| epoch)
                .collect(),
            image: judge
                .memory()
                .images
                .get(&state.identity.pool)
                .filter(|_| judge.image(&state.identity.pool).is_some())
                .map(|seen| (seen.version.as_u64(), seen.statement.0)),
            revocations: judge.revocations().map_or(0, |list| list.version),
        }
    }

    /// The image that this machine is to run.
    pub(crate) fn image(&self) -> Option<Image> {
        let state = self.read();
        let image = state.judge.image(&state.identity.pool)?;
        Some(Image {
            version: image.version.as_u64(),
            digest: image.digest.0,
            bytes: image.bytes,
        })
    }

    /// All tenants. Their plans are made one at a time, because together they may exceed the
    /// memory.
    pub(crate) fn tenants(&self) -> Vec<TenantId> {
        self.read().judge.tenants().map(|(id, _)| *id).collect()
    }

    /// The plan of a tenant.
    pub(crate) fn plan(&self, tenant: &TenantId) -> Option<Plan> {
        let state = self.read();
        crate::plan::plan(&state.judge, tenant, &state.identity.pool)
    }

    /// The reserve on the disk, for the status page.
    fn describe_reserve(&self) -> serde_json::Value {
        let reserve = self.store.fill_reserve();
        serde_json::json!({ "held_bytes": reserve.held, "wanted_bytes": reserve.wanted })
    }

    /// The state for the status page: versions and names, no key.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let state = self.read();
        let until = self.liveness().until_ms();
        let left_secs = until.map(|until| until.saturating_sub(clock::boot_ms()) / 1000);
        let (tenants, now) = (state.judge.tenants(), state.judge.time(clock::unix()));
        let listed: Vec<_> = tenants
            .take(MAX_DESCRIBED_TENANTS)
            .map(|(_, tenant)| describe_tenant(tenant, now))
            .collect();
        let counts = |tenant: &TenantId, secret: &Identifier| {
            let held = state.judge.tenant(tenant);
            let listed = held.and_then(|held| held.secret(secret, &state.identity.pool));
            listed.is_some_and(|secret| secret.place.limits.reflection == Reflection::Refuse)
        };
        serde_json::json!({
            "fleet": state.identity.fleet, "node": state.identity.node, "pool": state.identity.pool,
            "member": !state.pool_keys.is_empty(), "revoked": state.is_revoked(), "root": state.judge.root().map(|root| root.version),
            "image": state.judge.image(&state.identity.pool).map(image::describe),
            "claims": self.evidence.describe(&state.judge), "lease_left_secs": left_secs,
            "stopped_credentials": self.reflected.describe(counts), "reserve": self.describe_reserve(),
            "tenants_held": state.judge.tenants().count(), "tenants": listed,
        })
    }
}

fn describe_tenant(state: &TenantState, now: Seconds) -> serde_json::Value {
    let (tenant, accord) = (&state.tenant, state.manifest.as_ref());
    let freshness = match state.standing(now) {
        Standing::Undemanded => serde_json::Value::Null,
        Standing::Fresh(until) => serde_json::json!({ "until": until }),
        Standing::Stale(stale) => serde_json::json!({ "stale": stale.to_string() }),
    };
    serde_json::json!({
        "id": tenant.id, "name": tenant.name, "version": tenant.version, "expires": tenant.expires,
        "manifest": accord.map(|accord| accord.manifest.version),
        "manifest_expires": accord.map(|accord| accord.manifest.expires),
        "secrets": accord.map_or(0, |accord| accord.secrets.len()),
        "freshness": freshness,
    })
}

#[cfg(test)]
mod tests {
    use casemate_trust::freshness::{FreshnessDemand, MAX_MAX_AGE_SECS};
    use casemate_trust::id::{Digest, FleetId};
    use casemate_trust::judge::Accord;
    use casemate_trust::key::SigningKey;
    use casemate_trust::name::MAX_NAME_BYTES;
    use casemate_trust::statement::{KeySet, MAX_SECRETS, MAX_VERSION, Manifest, Tenant};
    use casemate_wire::control::Message as _;
    use casemate_wire::control::vault::FromVault;

    use super::*;

    #[test]
    fn as_many_tenants_as_are_listed_fit_a_description() {
        let key = SigningKey::from_seed(&[1; 32]).unwrap().public();
        let name = "n".repeat(MAX_NAME_BYTES).parse().unwrap();
        let fleet = FleetId([1; 32]);
        let mut tenant =
            Tenant::first(fleet, name, KeySet::single(key), vec![], u64::MAX, u64::MAX);
        tenant.version = MAX_VERSION;
        let manifest = Manifest {
            fleet,
            tenant: tenant.id,
            tenant_version: MAX_VERSION,
            version: MAX_VERSION,
            functions: [].into(),
            secrets: [].into(),
            freshness: Some(FreshnessDemand {
                max_age_secs: MAX_MAX_AGE_SECS,
                key: Some(key),
            }),
            notes: [].into(),
            issued: 0,
            expires: u64::MAX,
        };
        let accord = Accord {
            manifest,
            digest: Digest([1; 32]),
            releases: [].into(),
            secrets: [].into(),
        };
        let state = TenantState {
            tenant,
            manifest: Some(accord),
            freshness: None,
        };
        let bytes =
            describe_tenant(&state, MAX_VERSION).to_string().len() + MAX_SECRETS.to_string().len();
        // The rest of the description is a dozen short members.
        assert!(bytes > 250 && MAX_DESCRIBED_TENANTS * bytes + 8 * 1024 < FromVault::MAX_BYTES);
    }
}
