//! Removal of bundles and objects that no tenant's manifest lists. Two manifests of a tenant count:
//! the newest accepted one, and the next one, whose uploads arrive before it. Items that are
//! younger than [`GRACE_SECS`] may belong to that next manifest and stay.
//!
//! Each batch is chosen and removed while no manifest can be accepted, and its audit record is
//! written with it, before the first bundle is deleted. A kill in between leaves some unlisted
//! items for the next pass; a listed item is never among those that are removed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use casemate_api::error::code;
use casemate_control_store::{Change, MAX_COMMIT_ITEMS, Store as _};
use casemate_push::{ObjectKind, StatementId};
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::Accord;
use casemate_trust::release::Release;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::held::Held;
use super::objects;
use super::storage::{GRACE_SECS, Item};
use super::{Actor, Plane, key, now};
use crate::fault::Fault;

/// Interval between two passes over all tenants; each manifest also starts a pass over its tenant.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Pause between two batches: other changes go first.
const PAUSE: Duration = Duration::from_millis(50);
/// Items that are removed in one batch: with its audit record it fits a commit, an object with two
/// keys.
const MAX_BATCH: usize = (MAX_COMMIT_ITEMS - 1) / 2;

/// Tenants that are to be checked.
#[derive(Debug, Default)]
pub(crate) struct Due {
    tenants: Mutex<BTreeSet<TenantId>>,
    told: Notify,
}

impl Due {
    pub(crate) fn add(&self, tenants: impl IntoIterator<Item = TenantId>) {
        let due = &mut *self.tenants.lock();
        due.extend(tenants);
        self.told.notify_one();
    }

    fn next(&self) -> Option<TenantId> {
        let due = &mut *self.tenants.lock();
        due.pop_first()
    }
}

/// Removes until `stopping`: at the start, at intervals, and after each manifest.
pub(crate) async fn run(plane: Arc<Plane>, stopping: CancellationToken) {
    let mut everything = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = everything.tick() => plane.due.add(plane.ledger.tenants()),
            () = plane.due.told.notified() => {}
            () = stopping.cancelled() => return,
        }
        while let Some(tenant) = plane.due.next() {
            match plane.collect(&tenant).await {
                Ok(0) => {}
                Ok(_) => {
                    plane.due.add([tenant]);
                    tokio::time::sleep(PAUSE).await;
                }
                Err(fault) => tracing::warn!(
                    %tenant,
                    code = fault.code(),
                    "bundles and objects that no manifest lists could not be removed; the removal is tried again later"
                ),
            }
            if stopping.is_cancelled() {
                return;
            }
        }
    }
}

impl Plane {
    /// The digests that a tenant's newest manifest lists.
    pub(crate) fn listed(&self, tenant: &TenantId) -> BTreeSet<Item> {
        accord(&self.held(), tenant).map(items).unwrap_or_default()
    }

    /// Removes one batch of what a tenant's newest manifest does not list; returns the number of
    /// items.
    async fn collect(&self, tenant: &TenantId) -> Result<usize, Fault> {
        let before = now().saturating_sub(GRACE_SECS);
        let unlisted = |listed: &BTreeSet<Item>| {
            let mut items = self.ledger.older(tenant, before);
            items.retain(|(item, _)| !listed.contains(item));
            items.truncate(MAX_BATCH);
            items
        };
        if unlisted(&self.listed(tenant)).is_empty() {
            return Ok(0);
        }
        // A backup in progress keeps everything; the next pass removes it.
        let Ok(_removing) = self.keeping.try_write() else {
            return Ok(0);
        };
        let writing = self.begin().await;
        let Some(listed) = self.listed_for_certain(tenant).await? else {
            tracing::warn!(%tenant, "the stored manifest differs from the judged one: nothing is removed");
            return Ok(0);
        };
        let batch = unlisted(&listed);
        if batch.is_empty() {
            return Ok(0);
        }
        let (mut bundles, mut objects) = (Vec::new(), Vec::new());
        for (item, _) in &batch {
            match item {
                Item::Bundle(digest) => bundles.push(*digest),
                Item::Object(digest) => objects.push(*digest),
            }
        }
        let bytes: u64 = batch.iter().map(|(_, kept)| kept.bytes).sum();
        let subject = format!(
            "tenant {tenant}: {} bundles and {} objects, {bytes} bytes, that its newest manifest does not list",
            bundles.len(),
            objects.len()
        );
        let keys = objects
            .iter()
            .flat_map(|digest| [key::object(tenant, digest), key::kept(tenant, digest)]);
        let changes = keys.map(Change::delete).collect();
        let action = "storage.remove";
        let written = writing.commit(&Actor::Program, action, &subject, vec![], changes);
        match written.await {
            Ok(_) => {
                for digest in objects {
                    self.ledger.forget(tenant, &Item::Object(digest));
                }
                self.remove_bundles(tenant, &bundles, before).await?;
                Ok(batch.len())
            }
            // Nothing can be written, not even the record; removing bundles frees the space for it.
            Err(full) if full.code() == code::STORAGE_FULL && !bundles.is_empty() => {
                let count = bundles.len();
                tracing::warn!(%tenant, count, "removing bundles without an audit record: the disk is full");
                self.remove_bundles(tenant, &bundles, before).await?;
                Ok(count)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn remove_bundles(
        &self,
        tenant: &TenantId,
        digests: &[Digest],
        before: Seconds,
    ) -> Result<(), Fault> {
        let removal = self.bundles.begin_removal().await;
        for digest in digests {
            let item = Item::Bundle(*digest);
            // An item that was uploaded again meanwhile is new.
            let kept = self.ledger.get(tenant, &item);
            if kept.is_some_and(|kept| kept.since < before) {
                removal.remove(tenant, digest).await?;
                self.ledger.forget(tenant, &item);
            }
        }
        Ok(())
    }

    /// The digests that the newest manifest lists, according to the store and to the judge; `None`
    /// if they disagree, because then nothing may be removed. To be called while no other change is
    /// made.
    async fn listed_for_certain(&self, tenant: &TenantId) -> Result<Option<BTreeSet<Item>>, Fault> {
        let (tenant, version) = (*tenant, 0);
        let at = key::statement(&StatementId::Manifest { tenant, version });
        let stored = self.store.get(&at).await?;
        let stored = stored.map(|entry| {
            Envelope::parse(&entry.value)
                .ok()
                .map(|envelope| envelope.payload_digest())
        });
        let (mut listed, unjudged) = {
            let held = self.held();
            match (stored, accord(&held, &tenant)) {
                (None, None) => return Ok(Some(BTreeSet::new())),
                (Some(Some(stored)), Some(accord)) if stored == accord.digest => {
                    let mut unjudged = objects::listed(&accord.manifest);
                    unjudged.retain(|digest| !accord.releases.contains_key(digest));
                    (items(accord), unjudged)
                }
                _ => return Ok(None),
            }
        };
        // A function that is to run in no pool was not judged, and lists its bundle nevertheless.
        for object in objects::objects(&self.store, &tenant, &unjudged)
            .await?
            .values()
        {
            if object.kind == ObjectKind::Release
                && let Ok(release) = Release::parse(&object.bytes)
            {
                listed.insert(Item::Bundle(release.bundle.digest));
            }
        }
        Ok(Some(listed))
    }
}

fn accord<'a>(held: &'a Held, tenant: &TenantId) -> Option<&'a Accord> {
    held.judge.as_ref()?.tenant(tenant)?.manifest.as_ref()
}

fn items(accord: &Accord) -> BTreeSet<Item> {
    let objects = objects::listed(&accord.manifest)
        .into_iter()
        .map(Item::Object);
    let releases = accord.releases.values();
    let bundles = releases.map(|release| Item::Bundle(release.bundle.digest));
    objects.chain(bundles).collect()
}
