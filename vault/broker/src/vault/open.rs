//! Opens the vault: storage key, identity, memory, and everything that was accepted before.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::join::{Grant, JoinError, JoinToken, MAX_TOKEN_BYTES};
use casemate_trust::judge::{Judge, Memory, PoolSeen, TenantSeen};
use casemate_trust::late::Late;
use casemate_vault_core::kept::Kept;
use casemate_vault_core::keys::{PoolKeys, STORAGE_KEY_BYTES, StorageKey};
use casemate_vault_core::liveness::Liveness;
use casemate_vault_core::opening::open_grant;
use casemate_vault_store::{
    Kind, SetAside, StateFile, Store, StoreError, must_be_readable, replace_file,
};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::evidence::Evidence;
use super::image::ImageFile;
use super::memory::frames;
use super::room::Spending;
use super::{Reflected, State, Vault};
use crate::clock;
use crate::config::Config;
use crate::error::VaultError;
use crate::identity::Identity;

/// Mode of the storage key's file: only its owner may read it.
const KEY_MODE: u32 = 0o600;

/// Kinds of records that are statements; each kind follows those that it depends on.
const STATEMENTS: [Kind; 8] = [
    Kind::Root,
    Kind::OnlineKey,
    Kind::Revocations,
    Kind::Pool,
    Kind::Image,
    Kind::Tenant,
    Kind::Manifest,
    Kind::Freshness,
];

/// A lease as stored for a restart within one boot.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredLease {
    pub(super) boot_id: String,
    pub(super) until_ms: u64,
    /// When the lease was asked for; records of earlier versions lack it.
    #[serde(default)]
    pub(super) begun_ms: Option<u64>,
}

impl Vault {
    /// Opens the vault: with its own identity, or with a token as a new node.
    pub(crate) fn open(config: &Config) -> Result<Self, VaultError> {
        // Before a storage key is made: files of a newer vault stay unchanged.
        must_be_readable(&config.state)?;
        let storage = storage_key(&config.storage_key_file, &config.state)?;
        let (store, mut aside) = Store::open(&config.state, &storage.vault_key())?;
        let identity = identity(config, &store)?;
        let (memory, lost) = memory(config, &store, identity.join_request().is_none())?;
        let memory = memory.filter(|memory| memory.fleet == identity.fleet);
        let memory = memory.unwrap_or_else(|| Memory::new(identity.fleet));
        let judge = replay(&store, memory, &identity, &mut aside)?;
        // A kill between records and memory leaves the memory behind the replayed records: it is
        // completed before anything is acknowledged.
        store.write_memory(frames(judge.memory()), &mut clock::random)?;
        let mut state = State {
            judge,
            pool_keys: PoolKeys::default(),
            identity,
        };
        open_grants(&store, &mut state, &mut aside)?;
        let image_file = ImageFile::in_folder(&config.state);
        if let Some(image) = state.judge.image(&state.identity.pool) {
            image_file.write(&store, image)?;
        }
        let evidence = Evidence::in_folder(&config.state, clock::boot_ms());
        let boot_id = clock::boot_id();
        let liveness = match lease(&store, &boot_id)? {
            None => Liveness::new(config.lease_ms),
            Some(StoredLease {
                until_ms, begun_ms, ..
            }) => Liveness::resume(config.lease_ms, until_ms, begun_ms, clock::boot_ms()),
        };
        let store = Arc::new(store);
        let reflected = Reflected::open(store.clone(), boot_id.clone(), &mut aside)?;
        let refill = refill(&aside, &state.judge, lost);
        Ok(Self {
            state: RwLock::new(state),
            changing: Mutex::default(),
            liveness: Mutex::new(liveness),
            kept: Kept::new(&mut clock::random),
            reflected: Arc::new(reflected),
            storage,
            store,
            spending: Spending::default(),
            boot_id,
            image_file,
            evidence,
            refill,
        })
    }
}

/// Reads the storage key, or makes one at the first start. A missing key is never replaced if files
/// that were sealed with it exist: the key may come back, from a disk that is not mounted yet or
/// from a copy.
fn storage_key(path: &Path, state: &Path) -> Result<StorageKey, VaultError> {
    let wrong = |message: String| VaultError::StorageKey {
        path: path.display().to_string(),
        message,
    };
    let key = match std::fs::metadata(path) {
        Ok(file) if file.permissions().mode() & 0o077 != 0 => {
            return Err(wrong("others may read it: chmod 600".into()));
        }
        Ok(_) => Zeroizing::new(std::fs::read(path).map_err(|error| wrong(error.to_string()))?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if StateFile::Identity.is_in(state) {
                return Err(VaultError::StorageKeyLost(path.display().to_string()));
            }
            let mut key = Zeroizing::new(vec![0; STORAGE_KEY_BYTES]);
            clock::random(&mut key);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(|error| wrong(error.to_string()))?;
            }
            // Written wholly or not at all: a partial key would lose everything that was sealed
            // with it.
            replace_file(path, KEY_MODE, &key)?;
            key
        }
        Err(error) => return Err(wrong(casemate_config::unreadable(&error))),
    };
    let bytes = <[u8; STORAGE_KEY_BYTES]>::try_from(key.as_slice()).map_err(|_| {
        wrong(format!(
            "expected {STORAGE_KEY_BYTES} bytes, got {}",
            key.len()
        ))
    })?;
    Ok(StorageKey::new(Zeroizing::new(bytes)))
}

/// Reads the token file, if there is one.
fn token(config: &Config) -> Result<Option<JoinToken>, VaultError> {
    let Some(path) = &config.join_token_file else {
        return Ok(None);
    };
    let wrong = |message: String| VaultError::TokenFile {
        path: path.display().to_string(),
        message,
    };
    let text = match std::fs::read(path) {
        Ok(text) if text.len() <= MAX_TOKEN_BYTES + 2 => Zeroizing::new(text),
        Ok(_) => return Err(wrong("too long for a token".into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let text = std::str::from_utf8(&text).map_err(|_| wrong("not text".into()))?;
    text.parse().map(Some).map_err(|source| VaultError::Token {
        path: path.display().to_string(),
        source,
    })
}

fn identity(config: &Config, store: &Store) -> Result<Identity, VaultError> {
    let stored = store.read(StateFile::Identity)?;
    if let Some(bytes) = stored {
        let mut identity = Identity::parse(&bytes)?;
        // An invalid token matters only to a node that needs one.
        if identity.join_request().is_some()
            && let Some(token) = token(config)?
            && identity.renew(&token)?
        {
            store.write(
                StateFile::Identity,
                &identity.to_bytes(),
                &mut clock::random,
            )?;
        }
        return Ok(identity);
    }
    let token = token(config)?.ok_or(VaultError::TokenNeeded)?;
    let (expires, clock) = (token.expires, clock::unix());
    if clock >= expires {
        let path = config
            .join_token_file
            .as_ref()
            .map_or_else(String::new, |path| path.display().to_string());
        return Err(VaultError::Token {
            path,
            source: JoinError::Expired(Late { expires, clock }),
        });
    }
    let identity = Identity::from_token(&token, &mut clock::random)?;
    store.write(
        StateFile::Identity,
        &identity.to_bytes(),
        &mut clock::random,
    )?;
    tracing::info!(node = %identity.node, pool = %identity.pool, "made this node's keys");
    Ok(identity)
}

/// The stored memory, and whether it was lost.
fn memory(
    config: &Config,
    store: &Store,
    is_member: bool,
) -> Result<(Option<Memory>, bool), VaultError> {
    let parsed = match store.read_memory() {
        // A new node has no memory; a member without memory has lost it.
        Ok(None) if !is_member => return Ok((None, false)),
        Ok(None) => None,
        Ok(Some(stored)) => super::memory::read(&stored),
        Err(StoreError::Sealed(_)) => None,
        Err(error) => return Err(error.into()),
    };
    match parsed {
        Some(memory) => Ok((Some(memory), false)),
        None if config.accept_lost_memory => {
            let place = store.set_memory_aside().ok();
            tracing::error!(aside = ?place, "rollback memory could not be read; starting without it because accept_lost_memory is set");
            Ok((None, true))
        }
        None => Err(VaultError::MemoryLost(
            config.state.join("memory").display().to_string(),
        )),
    }
}

/// The judge in its state after the last written change. Dates and signatures were valid when each
/// statement was accepted, and are not checked again.
fn replay(
    store: &Store,
    memory: Memory,
    identity: &Identity,
    aside: &mut SetAside,
) -> Result<Judge, VaultError> {
    let objects: HashMap<String, Zeroizing<Vec<u8>>> =
        store.all(Kind::Object, aside)?.into_iter().collect();
    let find = |digest: &Digest| objects.get(&digest.to_string()).map(|bytes| bytes.to_vec());
    let mut failed = None;
    // One kind at a time, because all rows together may be larger than the judge's state.
    let rows = STATEMENTS.into_iter().flat_map(|kind| {
        let found = store.all(kind, aside);
        let found = found.unwrap_or_else(|error| {
            failed = Some(error);
            Vec::new()
        });
        found.into_iter().filter_map(move |(name, bytes)| {
            let envelope = Envelope::parse(&bytes).ok()?;
            Some(((kind, name), envelope))
        })
    });
    let (judge, refused) = Judge::replay(memory, Some(identity.pool.clone()), rows, &find);
    if let Some(error) = failed {
        return Err(error.into());
    }
    for ((kind, name), refusal) in refused {
        // A replaced root is needed only as the ancestor of the next one.
        if kind != Kind::Root {
            let code = refusal.code();
            tracing::warn!(
                ?kind, name, code, %refusal,
                "stored statement is no longer valid; requesting it again from the control plane"
            );
        }
    }
    Ok(judge)
}

/// Opens the granted keys of the pool, unless this node is revoked.
fn open_grants(store: &Store, state: &mut State, aside: &mut SetAside) -> Result<(), VaultError> {
    if state.is_revoked() {
        tracing::error!("the root has revoked this node: credentials are not used");
        return Ok(());
    }
    for (name, bytes) in store.all(Kind::Grant, aside)? {
        let Ok(grant) = Grant::parse(&bytes) else {
            continue;
        };
        let pool = state.judge.pool(&grant.pool, grant.epoch);
        match pool.map(|pool| open_grant(&grant, &state.identity.keys, pool)) {
            Some(Ok(seed)) => state.pool_keys.insert(grant.pool, grant.epoch, seed),
            _ => tracing::warn!(
                name,
                "a stored grant does not open; the control plane will be asked"
            ),
        }
    }
    Ok(())
}

/// Whether all statements must be sent again, and why.
fn refill(aside: &SetAside, judge: &Judge, lost: bool) -> Option<String> {
    let first = aside.single.first().map(|record| &record.place);
    if let Some(place) = aside.records.as_ref().or(first) {
        return Some(place.display().to_string());
    }
    let memory = judge.memory();
    let no_tenant = |(id, seen): (_, &TenantSeen)| {
        judge
            .tenant(id)
            .is_none_or(|state| seen.manifest.is_some() && state.manifest.is_none())
    };
    let no_pool = |(name, seen): (_, &PoolSeen)| judge.pool(name, seen.newest.version).is_none();
    // sled treats damage to the end of its log as a write that a kill cut short, and reports
    // nothing; the memory reveals it.
    let holes = (memory.root.is_some() && judge.root().is_none())
        || (memory.online.is_some() && judge.online().is_none())
        || (memory.revocations.is_some() && judge.revocations().is_none())
        || memory.pools.iter().any(no_pool)
        || memory.images.keys().any(|pool| judge.image(pool).is_none())
        || memory.tenants.iter().any(no_tenant);
    (lost || holes).then(|| "records are missing that the memory names".to_owned())
}

/// The lease of this boot, if one was granted.
fn lease(store: &Store, boot_id: &str) -> Result<Option<StoredLease>, VaultError> {
    let bytes = match store.read(StateFile::Lease) {
        Ok(bytes) => bytes,
        // Without it the vault asks for a new lease.
        Err(StoreError::Sealed(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let stored = bytes.and_then(|bytes| serde_json::from_slice::<StoredLease>(&bytes).ok());
    Ok(stored.filter(|lease| !boot_id.is_empty() && lease.boot_id == boot_id))
}
