//! The objects that manifests list, as far as they matter to one node.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _};

/// Most digests and tenants of remembered listings: of those that were sent, so that the next
/// manifest brings only new objects, and of those that were read, so that a node cannot cause a
/// read of a manifest for each of its requests.
const MAX_REMEMBERED: usize = 64 * 1024;

/// The part of a manifest for one pool.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Revision of the manifest.
    pub(crate) revision: u64,
    pub(crate) digest: Digest,
    pub(crate) objects: BTreeSet<Digest>,
}

impl Listing {
    /// Reads a manifest; `None` if the bytes are not one.
    pub(crate) fn read(revision: u64, bytes: &[u8], pool: &Name) -> Option<Self> {
        let envelope = Envelope::parse(bytes).ok()?;
        let manifest = Manifest::read(&envelope).ok()?;
        let functions = manifest
            .functions
            .values()
            .filter(|wanted| wanted.pools.contains(pool));
        let releases =
            functions.flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
        let secrets = manifest
            .secrets
            .values()
            .filter_map(|sealed| sealed.get(pool));
        Some(Self {
            revision,
            digest: envelope.payload_digest(),
            objects: releases.chain(secrets).copied().collect(),
        })
    }
}

/// Listings by tenant, at most [`MAX_REMEMBERED`] entries; all are dropped when one more does not
/// fit.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    by_tenant: BTreeMap<TenantId, Arc<Listing>>,
    size: usize,
}

impl Listings {
    pub(crate) fn get(&self, tenant: &TenantId) -> Option<&Arc<Listing>> {
        self.by_tenant.get(tenant)
    }

    pub(crate) fn insert(&mut self, tenant: TenantId, listing: Arc<Listing>) {
        let size = |listing: &Listing| listing.objects.len() + 1;
        if let Some(before) = self.by_tenant.remove(&tenant) {
            self.size -= size(&before);
        }
        if self.size + size(&listing) > MAX_REMEMBERED {
            *self = Self::default();
        }
        self.size += size(&listing);
        self.by_tenant.insert(tenant, listing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembered_listings_are_bounded() {
        let mut listings = Listings::default();
        let listing = |size: usize| {
            let digest = |number: usize| Digest::of(&number.to_be_bytes());
            Arc::new(Listing {
                revision: 1,
                digest: Digest([1; 32]),
                objects: (0..size).map(digest).collect(),
            })
        };
        for number in 0..200 {
            listings.insert(TenantId([number; 32]), listing(1000));
            listings.insert(TenantId([number; 32]), listing(2000));
            let held = listings.by_tenant.values();
            let held: usize = held.map(|listing| listing.objects.len() + 1).sum();
            assert!(held == listings.size && held <= MAX_REMEMBERED);
            assert!(listings.get(&TenantId([number; 32])).is_some());
        }
    }
}
