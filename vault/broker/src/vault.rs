//! The vault's state: judge, keys, lease and store under one lock, and what changes them.

mod accept;
mod open;
mod staging;

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use casemate_config::{EXIT_IO, EXIT_SOFTWARE, EXIT_TEMPORARY, EXIT_USAGE};
use casemate_trust::join::JoinError;
use casemate_trust::judge::Judge;
use casemate_vault_core::keys::{PoolKeys, StorageKey};
use casemate_vault_core::liveness::Liveness;
use casemate_vault_store::{Store, StoreError};
use casemate_wire::control::LayerReport;
use casemate_wire::control::vault::{Have, HaveTenant, Hello, Plan};

use crate::clock;
use crate::identity::Identity;
use staging::Staging;

/// Why the vault cannot open, or must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// The store.
    #[error("{store}{}", cause(.store))]
    Store {
        /// What.
        #[from]
        store: StoreError,
    },
    /// The storage key.
    #[error("the storage key {path}: {message}")]
    StorageKey {
        /// Where.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The first start, and no token.
    #[error(
        "this node has no identity yet: set `join_token_file` in vault.toml to a file with the token that `casemate node token` printed"
    )]
    TokenNeeded,
    /// The token is unreadable.
    #[error("the join token {path}: {message}")]
    TokenFile {
        /// Where.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// The token is no good.
    #[error("the join token in {path}: {source}; make a new one with `casemate node token`")]
    Token {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: JoinError,
    },
    /// What must never be forgotten cannot be read.
    #[error(
        "the vault's memory of what it accepted cannot be read, and without it an old state could be shown as new: restore {0}, or set \
         `accept_lost_memory = true` in vault.toml for one start (the file is set aside, not deleted)"
    )]
    MemoryLost(String),
    /// Sealed keys make no sense.
    #[error(
        "the node's own keys cannot be used; restore the identity file, or join again with an empty state folder"
    )]
    Keys,
    /// The control socket.
    #[error("the supervisor's socket failed")]
    Control(#[from] casemate_channel::ControlError),
}

/// The innermost reason, for the one line that an operator reads.
fn cause(error: &StoreError) -> String {
    std::error::Error::source(error)
        .map(|source| format!(": {source}"))
        .unwrap_or_default()
}

impl VaultError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::TokenNeeded | Self::TokenFile { .. } | Self::Token { .. } => EXIT_USAGE,
            Self::Store {
                store: StoreError::Locked(_) | StoreError::Full(_),
            } => EXIT_TEMPORARY,
            Self::Store { .. } | Self::StorageKey { .. } | Self::MemoryLost(_) => EXIT_IO,
            Self::Keys | Self::Control(_) => EXIT_SOFTWARE,
        }
    }
}

/// See the module. One change at a time holds `changing`, judges and writes to the disk; only then it takes the lock that
/// calls read under: deciding a call never waits for the disk.
pub(crate) struct Vault {
    state: RwLock<State>,
    changing: Mutex<Staging>,
    liveness: Mutex<Liveness>,
    pub(crate) storage: StorageKey,
    store: Store,
    boot_id: String,
    /// Why everything must be sent again, from opening.
    pub(crate) refill: Option<String>,
}

/// What calls read.
pub(crate) struct State {
    pub(crate) judge: Judge,
    pub(crate) pool_keys: PoolKeys,
    pub(crate) identity: Identity,
}

impl Vault {
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether credentials may be used now.
    pub(crate) fn lease_holds(&self) -> bool {
        self.liveness().holds(clock::boot_ms())
    }

    /// The nonce to have signed, when it is time.
    pub(crate) fn lease_question(&self, connected_anew: bool) -> Option<[u8; 32]> {
        self.read().judge.online()?;
        let mut liveness = self.liveness();
        if connected_anew {
            liveness.ask_again();
        }
        liveness.question(clock::boot_ms(), &mut clock::random)
    }

    /// Signs a TLS handshake with the node's key; the caller has checked that it is one.
    pub(crate) fn sign_handshake(&self, content: &[u8]) -> [u8; 64] {
        self.read().identity.keys.identity().sign(content)
    }

    /// What the supervisor needs to connect.
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

    /// What is held, for the control plane to send the rest.
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
                })
                .collect(),
            grants: state
                .pool_keys
                .epochs()
                .filter(|(pool, _)| **pool == state.identity.pool)
                .map(|(_, epoch)| epoch)
                .collect(),
        }
    }

    /// The plan of every tenant.
    pub(crate) fn plans(&self) -> Vec<Plan> {
        let state = self.read();
        state
            .judge
            .tenants()
            .map(|(_, tenant)| crate::plan::plan(tenant, &state.identity.pool))
            .collect()
    }

    /// For the status page: versions and names, no key.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let state = self.read();
        let until = self.liveness().until_ms();
        let left_secs = until.map(|until| until.saturating_sub(clock::boot_ms()) / 1000);
        let tenants: Vec<_> = state
            .judge
            .tenants()
            .map(|(id, tenant)| {
                let accord = tenant.manifest.as_ref();
                serde_json::json!({
                    "id": id, "name": tenant.tenant.name, "version": tenant.tenant.version, "expires": tenant.tenant.expires,
                    "manifest": accord.map(|accord| accord.manifest.version),
                    "manifest_expires": accord.map(|accord| accord.manifest.expires),
                    "secrets": accord.map_or(0, |accord| accord.secrets.len()),
                })
            })
            .collect();
        serde_json::json!({
            "fleet": state.identity.fleet, "node": state.identity.node, "pool": state.identity.pool,
            "member": !state.pool_keys.is_empty(), "root": state.judge.root().map(|root| root.version),
            "lease_left_secs": left_secs, "tenants": tenants,
        })
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::{Digest, TenantId};
    use casemate_trust::judge::{MAX_TENANTS, Memory, Seen, TenantSeen};
    use casemate_vault_store::MAX_FILE_BYTES;

    #[test]
    fn the_memory_of_as_many_tenants_as_are_ever_remembered_can_be_written() {
        let seen = Seen {
            version: u64::MAX,
            digest: Digest([255; 32]),
        };
        let tenant = TenantSeen {
            tenant: seen,
            manifest: Some(seen),
        };
        let tenants = (0..MAX_TENANTS).map(|number| {
            let mut id = [255; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            (TenantId(id), tenant.clone())
        });
        let memory = Memory {
            tenants: tenants.collect(),
            ..casemate_trust::judge::Judge::new(casemate_trust::id::FleetId([255; 32]), None)
                .memory()
                .clone()
        };
        // As much again is left for everything else.
        assert!(serde_json::to_vec(&memory).unwrap().len() < MAX_FILE_BYTES / 2);
    }
}
