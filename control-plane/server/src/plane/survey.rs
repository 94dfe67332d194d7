//! Reads a whole store: for a backup while the store is written to, and to check a copy before it
//! is used.

use std::collections::BTreeSet;
use std::io;

use casemate_control_store::{Redb, Sink, StoreError};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::Judge;
use tokio::sync::RwLockReadGuard;

use super::held::Held;
use super::{Actor, Plane};
use crate::fault::Fault;

/// Summary of a store.
#[derive(Debug)]
pub(crate) struct Survey {
    /// Whether its audit chain is unbroken.
    pub(crate) audit_intact: bool,
    /// Bundles that the newest manifests list.
    pub(crate) bundles: BTreeSet<(TenantId, Digest)>,
}

/// Reads a store that no control plane runs on.
pub(crate) async fn survey(store: &Redb) -> Result<Survey, StoreError> {
    let held = Held::load(store).await?;
    let tenants = held.judge.iter().flat_map(Judge::tenants);
    let accords = tenants.filter_map(|(id, state)| Some((*id, state.manifest.as_ref()?)));
    let bundles = accords.flat_map(|(id, accord)| {
        let releases = accord.releases.values();
        releases.map(move |release| (id, release.bundle.digest))
    });
    Ok(Survey {
        bundles: bundles.collect(),
        audit_intact: held.audit_intact,
    })
}

impl Plane {
    /// While this is held, nothing that is stored for a tenant is removed.
    pub(crate) async fn keep_everything(&self) -> RwLockReadGuard<'_, ()> {
        self.keeping.read().await
    }

    /// Sends the whole store to `sink`, as it is at one moment.
    pub(crate) async fn read_all<S: Sink + Send + 'static>(
        &self,
        sink: S,
    ) -> Result<io::Result<S>, StoreError> {
        self.store.read_all(sink).await
    }

    /// Leaves the audit record of a restore.
    pub(crate) async fn restored(&self, subject: &str) -> Result<(), Fault> {
        let writing = self.begin().await;
        let action = "store.restore";
        writing
            .commit(&Actor::Program, action, subject, vec![], vec![])
            .await?;
        Ok(())
    }
}
