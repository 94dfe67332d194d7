//! Objects that came before their manifest: kept by tenant, within one bound that the tenants share.

use std::collections::BTreeMap;

use casemate_push::ObjectKind;
use casemate_trust::id::{Digest, TenantId};

/// What all tenants may have here together, bytes: what the control plane may send ahead.
pub(super) const MAX_AHEAD_BYTES: usize = casemate_push::MAX_AHEAD_BYTES;
/// What an object counts for at least, bytes: it bounds how many small ones there are.
pub(super) const MIN_OBJECT_BYTES: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    tenants: BTreeMap<TenantId, Share>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Share {
    objects: BTreeMap<Digest, (ObjectKind, Vec<u8>)>,
    bytes: usize,
}

fn weight(bytes: &[u8]) -> usize {
    bytes.len().max(MIN_OBJECT_BYTES)
}

impl Ahead {
    /// Keeps an object. Over the bound, whoever has the most loses objects, and they are fetched when they are missed: so a
    /// flood for one tenant costs no other.
    pub(super) fn keep(
        &mut self,
        tenant: TenantId,
        digest: Digest,
        kind: ObjectKind,
        bytes: Vec<u8>,
    ) {
        self.take(&tenant, &digest);
        let share = self.tenants.entry(tenant).or_default();
        share.bytes += weight(&bytes);
        self.bytes += weight(&bytes);
        share.objects.insert(digest, (kind, bytes));
        while self.bytes > MAX_AHEAD_BYTES {
            let most = self.tenants.iter().max_by_key(|(_, share)| share.bytes);
            let Some((tenant, digest)) = most
                .and_then(|(tenant, share)| Some((*tenant, *share.objects.last_key_value()?.0)))
            else {
                break;
            };
            self.take(&tenant, &digest);
        }
    }

    /// Gives an object out, if it is here.
    pub(super) fn take(
        &mut self,
        tenant: &TenantId,
        digest: &Digest,
    ) -> Option<(ObjectKind, Vec<u8>)> {
        let share = self.tenants.get_mut(tenant)?;
        let (kind, bytes) = share.objects.remove(digest)?;
        share.bytes -= weight(&bytes);
        self.bytes -= weight(&bytes);
        if share.objects.is_empty() {
            self.tenants.remove(tenant);
        }
        Some((kind, bytes))
    }

    /// Drops what is here of one tenant.
    pub(super) fn forget(&mut self, tenant: &TenantId) {
        if let Some(share) = self.tenants.remove(tenant) {
            self.bytes -= share.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: TenantId = TenantId([1; 32]);
    const TWO: TenantId = TenantId([2; 32]);

    fn digest(number: usize) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    #[test]
    fn a_flood_for_one_tenant_costs_no_other() {
        let mut ahead = Ahead::default();
        let large = vec![0; MAX_AHEAD_BYTES / 64];
        for number in 0..8 {
            ahead.keep(TWO, digest(number), ObjectKind::Release, large.clone());
        }
        for number in 0..200 {
            ahead.keep(ONE, digest(number), ObjectKind::Release, large.clone());
            assert!(ahead.bytes <= MAX_AHEAD_BYTES);
        }
        let left = |ahead: &mut Ahead, tenant| {
            (0..200)
                .filter(|number| ahead.take(&tenant, &digest(*number)).is_some())
                .count()
        };
        assert_eq!((left(&mut ahead, TWO), left(&mut ahead, ONE)), (8, 56));
        assert_eq!(ahead.bytes, 0);
    }

    #[test]
    fn many_small_ones_are_bounded_too() {
        let mut ahead = Ahead::default();
        let most = MAX_AHEAD_BYTES / MIN_OBJECT_BYTES;
        for number in 0..most + 10 {
            ahead.keep(ONE, digest(number), ObjectKind::Secret, Vec::new());
        }
        assert_eq!(ahead.tenants[&ONE].objects.len(), most);
        ahead.keep(TWO, digest(0), ObjectKind::Secret, vec![1]);
        ahead.keep(TWO, digest(0), ObjectKind::Secret, vec![1]);
        ahead.forget(&ONE);
        assert_eq!(
            ahead.bytes, MIN_OBJECT_BYTES,
            "what came twice counts once, and what is forgotten not at all"
        );
    }
}
