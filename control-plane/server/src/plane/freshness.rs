//! Statements of freshness. They are frequent, and most of them only renew the earlier one: each
//! replaces its predecessor in the store, and a renewal in time leaves an audit record once a day.

use casemate_api::error::code;
use casemate_api::fleet::Outcome;
use casemate_api::limits::FRESHNESS_INTERVAL_SECS;
use casemate_api::tenant::FreshnessAnswer;
use casemate_control_store::Store as _;
use casemate_push::StatementId;
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::Freshness;
use casemate_trust::id::TenantId;
use casemate_trust::judge::Refusal;
use casemate_trust::statement::Statement as _;
use serde_json::json;

use super::index::Index;
use super::rates::Kind;
use super::{Actor, Plane};
use crate::fault::Fault;

/// Seconds of the period in which renewals in time leave one audit record: a year of renewals leaves 365.
const RECORD_INTERVAL_SECS: Seconds = 24 * 60 * 60;

impl Plane {
    /// Accepts a tenant's statement of freshness.
    pub(crate) async fn put_freshness(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        bytes: &[u8],
    ) -> Result<FreshnessAnswer, Fault> {
        let malformed = |message| Fault::from(Refusal::Malformed(message));
        let envelope = Envelope::parse(bytes).map_err(|error| malformed(error.to_string()))?;
        let statement = Freshness::read(&envelope).map_err(malformed)?;
        if statement.tenant != *tenant {
            let message = "the statement is another tenant's";
            return Err(Fault::new(403, code::FORBIDDEN, message));
        }
        let id = StatementId::Freshness {
            tenant: *tenant,
            version: statement.version,
            issued: statement.issued,
        };
        self.reserve().await?;
        let writing = self.begin().await;
        let before = self.held_freshness(tenant);
        let decided = self
            .must_not_be_too_soon(before.as_ref(), &statement)
            .and_then(|()| self.decide(&id, &envelope));
        let decided = decided.map_err(|fault| fault.about(&id))?;
        if decided.change.is_empty() {
            return Ok(FreshnessAnswer {
                accepted: Outcome::Held,
                revision: self.store.revision(),
            });
        }
        let is_recorded = before.is_none_or(|before| self.is_news(&before, &statement));
        let recorded = is_recorded.then_some((actor, "freshness.put"));
        let revision = writing.accept(decided, id, &envelope, recorded).await?;
        Ok(FreshnessAnswer {
            accepted: Outcome::New,
            revision,
        })
    }

    /// Limits statements by their arrival and by the distance of their dates, which survives a
    /// restart. A repeated statement does not count.
    fn must_not_be_too_soon(
        &self,
        before: Option<&Freshness>,
        statement: &Freshness,
    ) -> Result<(), Fault> {
        let before = before.filter(|before| before.manifest == statement.manifest);
        let since_secs = before.map(|before| statement.issued.saturating_sub(before.issued));
        if since_secs == Some(0) {
            return Ok(());
        }
        let details = json!({ "interval_secs": FRESHNESS_INTERVAL_SECS });
        let too_soon = |got: String| {
            let message = format!(
                "expected {FRESHNESS_INTERVAL_SECS} seconds between two statements of freshness of a manifest, got {got}"
            );
            Fault::new(429, code::TOO_SOON, message).with(details.clone())
        };
        if let Some(secs) = since_secs.filter(|secs| *secs < FRESHNESS_INTERVAL_SECS) {
            return Err(too_soon(secs.to_string()));
        }
        let taken = self.rates.take(&statement.tenant, Kind::Freshness);
        taken.map_err(|_| too_soon("many at once".to_owned()))
    }

    /// The tenant's statement that the judge holds.
    fn held_freshness(&self, tenant: &TenantId) -> Option<Freshness> {
        let held = self.held();
        held.judge.as_ref()?.tenant(tenant)?.freshness.clone()
    }

    /// Whether a statement is about another manifest, came after its predecessor had expired, or is the first of its day.
    fn is_news(&self, before: &Freshness, statement: &Freshness) -> bool {
        let held = self.held();
        let judge = held.judge.as_ref();
        let accord = judge.and_then(|judge| judge.tenant(&statement.tenant)?.manifest.as_ref());
        let demand = accord.and_then(|accord| accord.manifest.freshness.as_ref());
        let allowed_secs = demand.map_or(0, |demand| demand.max_age_secs);
        let day = |statement: &Freshness| statement.issued / RECORD_INTERVAL_SECS;
        before.manifest != statement.manifest
            || statement.issued.saturating_sub(before.issued) >= allowed_secs
            || day(before) != day(statement)
    }
}

impl Index {
    /// A tenant's newest statement of freshness is the only one that is kept, and only until a
    /// manifest arrives that is newer than the one that it names.
    pub(super) fn drop_freshness(&mut self, newer: &StatementId) {
        let (tenant, below) = match newer {
            StatementId::Freshness { tenant, .. } => (*tenant, u64::MAX),
            StatementId::Manifest { tenant, version } => (*tenant, version.saturating_sub(1)),
            _ => return,
        };
        let bound = |version, issued| StatementId::Freshness {
            tenant,
            version,
            issued,
        };
        let held = self.held.range(bound(0, 0)..=bound(below, u64::MAX));
        let superseded: Vec<_> = held.map(|(id, _)| id.clone()).collect();
        superseded.iter().for_each(|id| self.remove(id));
    }

    /// A tenant's newest statement of freshness.
    pub(crate) fn freshness(&self, tenant: &TenantId) -> Option<&[u8]> {
        let bound = |version, issued| StatementId::Freshness {
            tenant: *tenant,
            version,
            issued,
        };
        let newest = self
            .range(bound(0, 0), bound(u64::MAX, u64::MAX))
            .next_back();
        newest.map(|(_, _, bytes)| bytes)
    }
}
