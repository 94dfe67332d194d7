//! The claims of the control plane in its leases. The newest leases are stored in a file as they
//! were signed: a person who knows a newer manifest than they name can prove with them that the
//! holder of the online key has lied.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use casemate_trust::dsse::Envelope;
use casemate_trust::judge::Judge;
use casemate_trust::lease::{Claims, Lease};
use casemate_trust::statement::Statement as _;
use casemate_vault_store::{Room, Store};
use parking_lot::{Mutex, MutexGuard};

/// The file, in the vault's folder.
const FILE: &str = "leases.json";
/// Readable by the vault's user and root alone, because tenants' ids are confidential.
const MODE: u32 = 0o600;
/// Leases in the file: with the default lease and its renewal at half time, the last two days.
const MAX_LEASES: usize = 4;
/// Largest file that is read, bytes: as many envelopes of the largest size.
const MAX_BYTES: u64 = (MAX_LEASES * casemate_trust::dsse::MAX_ENVELOPE_BYTES) as u64;
/// Time for which a claimed manifest may be on its way before it is asked for, milliseconds.
const GRACE_MS: u64 = 30_000;

/// The stored leases, and what they claim. The vault owns it and adds each lease that it accepts.
pub(super) struct Evidence {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The leases, oldest first.
    leases: Vec<Envelope>,
    claims: Option<Claims>,
    accepted_ms: u64,
    /// Whether missing statements were asked for since the newest lease.
    was_asked: bool,
}

impl Evidence {
    /// Reads the file in the vault's folder. An unreadable file is replaced: it proves something to
    /// people and decides nothing.
    pub(super) fn in_folder(folder: &Path, now_ms: u64) -> Self {
        let path = folder.join(FILE);
        let is_small = fs::metadata(&path).is_ok_and(|found| found.len() <= MAX_BYTES);
        let bytes = is_small.then(|| fs::read(&path).ok()).flatten();
        let read = bytes.and_then(|bytes| serde_json::from_slice::<Vec<Envelope>>(&bytes).ok());
        let leases = read.unwrap_or_else(Vec::new);
        let newest = leases.last().and_then(|lease| Lease::read(lease).ok());
        let state = State {
            leases,
            claims: newest.map(|lease| lease.claims),
            accepted_ms: now_ms,
            was_asked: false,
        };
        Self {
            path,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Stores an accepted lease. It may not use the reserve, because the signer of leases chooses
    /// their size.
    pub(super) fn keep(&self, store: &Store, lease: Envelope, claims: Claims, now_ms: u64) {
        let mut state = self.state();
        state.leases.push(lease);
        let surplus = state.leases.len().saturating_sub(MAX_LEASES);
        state.leases.drain(..surplus);
        (state.claims, state.accepted_ms, state.was_asked) = (Some(claims), now_ms, false);
        let bytes = serde_json::to_vec(&state.leases).expect("text and numbers are JSON");
        if let Err(error) = store.replace(&self.path, MODE, &bytes, Room::Free) {
            let path = self.path.display();
            tracing::warn!(%path, %error, "could not write leases.json; the lease is valid nevertheless");
        }
    }

    /// Number of missing claimed statements, when it is time to ask for them: once for each lease.
    pub(super) fn question(&self, judge: &Judge, now_ms: u64) -> Option<u64> {
        let mut state = self.state();
        if state.was_asked || now_ms.saturating_sub(state.accepted_ms) < GRACE_MS {
            return None;
        }
        state.was_asked = true;
        let lacking = state
            .claims
            .as_ref()
            .map_or(0, |claims| lacking(judge, claims));
        (lacking > 0).then_some(lacking)
    }

    /// For the status page: the claims, and how many of them are not held or are older than what is
    /// held.
    pub(super) fn describe(&self, judge: &Judge) -> serde_json::Value {
        let state = self.state();
        let Some(claims) = &state.claims else {
            return serde_json::Value::Null;
        };
        serde_json::json!({
            "issued": claims.issued, "revocations": claims.revocations, "tenants": claims.tenants_in_all,
            "digest": claims.digest, "lacking": lacking(judge, claims), "outdated": outdated(judge, claims),
        })
    }
}

/// Number of claimed statements that are newer than what is held.
fn lacking(judge: &Judge, claims: &Claims) -> u64 {
    let list = judge.revocations().map_or(0, |list| list.version);
    let tenants = versions(judge, claims).filter(|(claimed, held)| claimed > held);
    tenants.count() as u64 + u64::from(claims.revocations > list)
}

/// Number of claimed statements that are older than what is held: the sign of a restored copy, or
/// of a lie.
pub(super) fn outdated(judge: &Judge, claims: &Claims) -> u64 {
    let list = judge.revocations().map_or(0, |list| list.version);
    let tenants = versions(judge, claims).filter(|(claimed, held)| claimed < held);
    tenants.count() as u64 + u64::from(claims.revocations < list)
}

/// For each claimed tenant, the claimed version of its manifest and the held one, or 0.
fn versions(judge: &Judge, claims: &Claims) -> impl Iterator<Item = (u64, u64)> {
    let held: BTreeMap<_, _> = judge
        .tenants()
        .filter_map(|(id, state)| Some((*id, state.manifest.as_ref()?.manifest.version)))
        .collect();
    claims
        .tenants
        .iter()
        .map(move |(id, claimed)| (*claimed, held.get(id).copied().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::{FleetId, TenantId};
    use casemate_trust::key::SigningKey;
    use casemate_vault_store::KEY_BYTES;
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn missing_claimed_statements_are_requested_once_and_the_leases_are_stored() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Zeroizing::new([7; KEY_BYTES]);
        let (store, _) = Store::open(folder.path(), &storage).unwrap();
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let judge = Judge::new(FleetId([1; 32]), None);
        let evidence = Evidence::in_folder(folder.path(), 0);
        assert_eq!(
            evidence.question(&judge, GRACE_MS),
            None,
            "nothing was claimed"
        );
        for number in 1..=2 * MAX_LEASES as u64 {
            let claims = Claims::new(number, 0, [(TenantId([1; 32]), number)].into());
            let lease = Lease {
                fleet: judge.fleet(),
                node: key.public(),
                nonce: vec![1; 32],
                claims: claims.clone(),
            };
            evidence.keep(&store, lease.sign(&[&key]), claims, 1000);
        }
        assert_eq!(evidence.question(&judge, 1000 + GRACE_MS - 1), None);
        assert_eq!(evidence.question(&judge, 1000 + GRACE_MS), Some(1));
        assert_eq!(evidence.question(&judge, 1000 + GRACE_MS), None, "once");
        let later = Evidence::in_folder(folder.path(), 5);
        assert_eq!(later.state().leases.len(), MAX_LEASES);
        assert_eq!(later.describe(&judge)["lacking"], 1);
        assert_eq!(later.describe(&judge)["issued"], 2 * MAX_LEASES as u64);
        std::fs::write(folder.path().join(FILE), "spoiled").unwrap();
        assert!(
            Evidence::in_folder(folder.path(), 5)
                .describe(&judge)
                .is_null()
        );
    }
}
