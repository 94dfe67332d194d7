//! Objects that arrived before their manifest could be accepted: only those that a verified
//! manifest lists, and within a bound. The tenant with the most bytes yields, so that a manifest
//! which can never be completed does not block others.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use casemate_trust::id::{Digest, TenantId};

/// Most bytes that may wait.
const MAX_STAGED_BYTES: usize = 64 * 1024 * 1024;

/// The waiting objects, by tenant; the vault owns it.
#[derive(Debug, Default)]
pub(super) struct Staging {
    tenants: HashMap<TenantId, Waiting>,
}

/// One tenant's waiting manifest.
#[derive(Debug, Default)]
struct Waiting {
    wanted: BTreeSet<Digest>,
    held: BTreeMap<Digest, Vec<u8>>,
    held_bytes: usize,
}

/// Why an object is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStaged {
    /// No manifest waits for it.
    Unlisted,
    /// The tenants that wait for it hold more than any other, and there is no room.
    TooMany,
}

impl Staging {
    /// The tenant's newest manifest still needs these objects.
    pub(super) fn wants(&mut self, tenant: TenantId, missing: &[Digest]) {
        self.tenants.entry(tenant).or_default().wanted = missing.iter().copied().collect();
    }

    /// The tenant's manifest no longer waits.
    pub(super) fn done(&mut self, tenant: &TenantId) {
        self.tenants.remove(tenant);
    }

    /// A waiting object of this tenant's manifest.
    pub(super) fn get(&self, tenant: &TenantId, digest: &Digest) -> Option<&Vec<u8>> {
        self.tenants.get(tenant)?.held.get(digest)
    }

    /// Stores an object for every manifest that waits for it.
    pub(super) fn stage(&mut self, bytes: &[u8]) -> Result<(), NotStaged> {
        let digest = Digest::of(bytes);
        let waits = |waiting: &Waiting| waiting.wanted.contains(&digest);
        let waiting: Vec<TenantId> = self
            .tenants
            .iter()
            .filter(|(_, waiting)| waits(waiting))
            .map(|(tenant, _)| *tenant)
            .collect();
        if waiting.is_empty() {
            return Err(NotStaged::Unlisted);
        }
        let mut kept = false;
        for tenant in waiting {
            if self.make_room(&tenant, bytes.len()) {
                let waiting = self.tenants.entry(tenant).or_default();
                waiting.wanted.remove(&digest);
                waiting.held_bytes += bytes.len();
                waiting.held.insert(digest, bytes.to_vec());
                kept = true;
            }
        }
        kept.then_some(()).ok_or(NotStaged::TooMany)
    }

    /// Makes room for so many more bytes of this tenant: objects of other tenants are dropped as
    /// long as those hold more than this one would. Their manifests ask for them again.
    fn make_room(&mut self, tenant: &TenantId, bytes: usize) -> bool {
        let of_tenant =
            |staging: &Self| staging.tenants.get(tenant).map_or(0, |own| own.held_bytes);
        let total: usize = self
            .tenants
            .values()
            .map(|waiting| waiting.held_bytes)
            .sum();
        if total + bytes <= MAX_STAGED_BYTES {
            return true;
        }
        let own = of_tenant(self) + bytes;
        let most = self
            .tenants
            .iter_mut()
            .filter(|(other, waiting)| *other != tenant && waiting.held_bytes > own)
            .max_by_key(|(_, waiting)| waiting.held_bytes);
        let Some((_, waiting)) = most else {
            return false;
        };
        waiting.wanted.extend(waiting.held.keys());
        waiting.held.clear();
        waiting.held_bytes = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT_BYTES: usize = 1024 * 1024;

    fn object(tenant: u8, number: usize) -> Vec<u8> {
        let mut bytes = vec![tenant; OBJECT_BYTES];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        bytes
    }

    fn staged(staging: &mut Staging, tenant: u8, numbers: std::ops::Range<usize>) -> usize {
        let objects: Vec<_> = numbers.map(|number| object(tenant, number)).collect();
        let digests: Vec<_> = objects.iter().map(|bytes| Digest::of(bytes)).collect();
        staging.wants(TenantId([tenant; 32]), &digests);
        objects
            .iter()
            .take_while(|bytes| staging.stage(bytes).is_ok())
            .count()
    }

    #[test]
    fn a_manifest_that_is_never_finished_keeps_nobody_else_out() {
        let mut staging = Staging::default();
        let room = MAX_STAGED_BYTES / OBJECT_BYTES;
        assert_eq!(staged(&mut staging, 1, 0..room + 5), room);
        assert_eq!(staged(&mut staging, 2, 0..10), 10);
        let (hog, second) = (TenantId([1; 32]), TenantId([2; 32]));
        assert!(staging.get(&second, &Digest::of(&object(2, 9))).is_some());
        assert!(staging.get(&hog, &Digest::of(&object(1, 0))).is_none());
        // A dropped object is wanted again, as far as there is room.
        assert_eq!(staging.stage(&object(1, 0)), Ok(()));
        assert_eq!(staging.stage(&object(2, 9)), Err(NotStaged::Unlisted));
    }

    #[test]
    fn never_more_than_the_bound_is_held() {
        let mut staging = Staging::default();
        for tenant in 0..20 {
            staged(&mut staging, tenant, 0..30);
            let held = staging.tenants.values().map(|waiting| waiting.held_bytes);
            assert!(held.sum::<usize>() <= MAX_STAGED_BYTES);
            let kept = staging
                .tenants
                .values()
                .flat_map(|waiting| waiting.held.values());
            let held = staging.tenants.values().map(|waiting| waiting.held_bytes);
            assert_eq!(kept.map(Vec::len).sum::<usize>(), held.sum::<usize>());
        }
    }

    #[test]
    fn an_object_of_two_manifests_is_kept_for_both_and_a_completed_manifest_takes_no_room() {
        let mut staging = Staging::default();
        let (one, other, bytes) = (TenantId([1; 32]), TenantId([2; 32]), object(1, 1));
        let digest = Digest::of(&bytes);
        staging.wants(one, &[digest]);
        staging.wants(other, &[digest]);
        assert_eq!(staging.stage(&bytes), Ok(()));
        staging.done(&one);
        assert!(staging.get(&one, &digest).is_none());
        assert!(staging.get(&other, &digest).is_some());
    }
}
