//! Statements of freshness: stored like every statement, and dropped when a newer manifest is accepted.

use casemate_trust::freshness::Freshness;
use casemate_trust::id::TenantId;
use casemate_trust::judge::{Accepted, Judge, Refusal};
use casemate_trust::statement::Statement as _;
use casemate_vault_store::{Kind, Write};

use super::Vault;
use super::accept::{Effect, Judged, parse};
use crate::clock;

impl Vault {
    /// Judges a statement of freshness. The tenant's plan stays the same. Calls whose credential is stale by the statement are
    /// ended by the loop that looks for expired credentials.
    pub(super) fn freshness(&self, bytes: &[u8]) -> Judged {
        let envelope = parse(bytes)?;
        let id = Freshness::read(&envelope)
            .map_err(Refusal::Malformed)?
            .tenant;
        let mut judge = self.read().judge.clone();
        if judge.accept_freshness(&envelope, clock::unix())? != Accepted::Held {
            let name = id.to_string();
            let place = (Kind::Freshness, name.as_str(), Some(id));
            let room = self.room(&judge, &envelope, place, bytes)?;
            let put = Write::Put(Kind::Freshness, name, bytes.to_vec());
            self.persist(&judge, &[put], room)?;
            self.replace(judge);
        }
        Ok(Effect::default())
    }

    /// Drops the stored statement of the tenant if `next`, which has accepted a newer manifest, does not hold it any more.
    pub(super) fn superseded_freshness(&self, next: &Judge, id: TenantId) -> Option<Write> {
        let is_held = |judge: &Judge| {
            let state = judge.tenant(&id);
            state.is_some_and(|state| state.freshness.is_some())
        };
        let goes = is_held(&self.read().judge) && !is_held(next);
        goes.then(|| Write::Drop(Kind::Freshness, id.to_string()))
    }
}
