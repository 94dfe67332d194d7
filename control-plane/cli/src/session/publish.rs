//! Publishes statements again: after a restore of the control plane, and after a change of the
//! root.

use casemate_api::tenant::{TenantSummary, TenantView};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::TenantId;
use casemate_trust::key::SigningKey;
use casemate_trust::statement::{Statement as _, Tenant};

use super::Session;
use crate::error::Error;

impl Session<'_> {
    /// Sign with the newest root's key the statements that earlier roots, and since then tenants
    /// themselves, have signed: nodes that start afresh know only the newest root.
    ///
    /// # Errors
    /// The control plane cannot be reached, or shows a statement that a node would refuse.
    pub async fn sign_anew(&mut self, root: &SigningKey) -> Result<(), Error> {
        if self
            .known
            .judge()
            .root()
            .is_some_and(|root| root.version > 1)
        {
            for summary in self.list_tenants().await? {
                self.read_tenant(summary.id).await?;
            }
            self.known.sign_anew(root)?;
        }
        Ok(())
    }

    /// Upload an image's statement that the newest root has signed again.
    ///
    /// # Errors
    /// The control plane refuses.
    pub async fn publish_image(&mut self, envelope: &Envelope) -> Result<(), Error> {
        self.post(envelope).await.map(drop)
    }

    /// Upload the tenant's statements that the control plane lacks; the tenant's own token is
    /// allowed to do so.
    ///
    /// # Errors
    /// The control plane refuses.
    pub async fn publish_tenant(&mut self, id: TenantId, view: &TenantView) -> Result<(), Error> {
        let shown = view
            .statements
            .iter()
            .filter_map(|envelope| Tenant::read(envelope).ok());
        let newest = shown.map(|tenant| tenant.version).max().unwrap_or(0);
        for envelope in self.known.tenant_statements_after(&id, newest) {
            self.post(&envelope).await.map_err(|error| {
                error.lines([
                    "the control plane has lost statements of this tenant and does not accept them \
                     from this home: the operator brings them back with `casemate fleet publish`"
                        .to_owned(),
                ])
            })?;
        }
        Ok(())
    }

    /// Upload tenants whose statements the newest root has signed again, after a change of the
    /// root; returns how many.
    pub(super) async fn publish_anew(&mut self, listed: &[TenantSummary]) -> Result<usize, Error> {
        let mut count = 0;
        for summary in listed {
            let held = self.known.tenant_statements();
            let ours = held
                .filter(|(id, _)| **id == summary.id)
                .map(|(_, envelope)| envelope.clone());
            let Some(ours) = ours.last() else { continue };
            let version = Tenant::read(&ours).map_or(0, |tenant| tenant.version);
            if version < summary.version {
                continue;
            }
            let view: TenantView = self.api.get(&format!("/v1/tenants/{}", summary.id)).await?;
            if !view.statements.contains(&ours) {
                self.post(&ours).await?;
                count += 1;
            }
        }
        Ok(count)
    }
}
