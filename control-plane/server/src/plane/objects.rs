//! Objects of tenants in the store: releases and sealed secrets, and which of them a manifest
//! lists.

use std::collections::BTreeMap;

use casemate_control_store::{Redb, Store as _, StoreError};
use casemate_push::{ObjectKind, StoredObject};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::statement::Manifest;

use super::key;

/// Every digest that a manifest lists, for any pool.
pub(super) fn listed(manifest: &Manifest) -> Vec<Digest> {
    let functions = manifest.functions.values();
    let releases =
        functions.flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
    let mut digests: Vec<_> = releases
        .chain(manifest.secrets.values().flat_map(BTreeMap::values))
        .copied()
        .collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// The existing ones among a tenant's objects.
pub(super) async fn objects(
    store: &Redb,
    tenant: &TenantId,
    digests: &[Digest],
) -> Result<BTreeMap<Digest, StoredObject>, StoreError> {
    let mut found = BTreeMap::new();
    for digest in digests {
        if let Some(object) = object(store, tenant, digest).await? {
            found.insert(*digest, object);
        }
    }
    Ok(found)
}

/// First byte of a stored release.
const RELEASE: u8 = b'r';
const SECRET: u8 = b's';

/// One of a tenant's objects.
pub(super) async fn object(
    store: &Redb,
    tenant: &TenantId,
    digest: &Digest,
) -> Result<Option<StoredObject>, StoreError> {
    let found = store.get(&key::object(tenant, digest)).await?;
    Ok(found.and_then(|entry| {
        let (kind, bytes) = entry.value.split_first()?;
        let kind = match *kind {
            RELEASE => ObjectKind::Release,
            SECRET => ObjectKind::Secret,
            _ => return None,
        };
        let bytes = bytes.to_vec();
        Some(StoredObject { kind, bytes })
    }))
}

/// An object as it is stored.
pub(super) fn stored(object: &StoredObject) -> Vec<u8> {
    let kind = match object.kind {
        ObjectKind::Release => RELEASE,
        ObjectKind::Secret => SECRET,
    };
    [&[kind], object.bytes.as_slice()].concat()
}
