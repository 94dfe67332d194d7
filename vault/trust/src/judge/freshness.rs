//! Judges statements of freshness, and whether a manifest is fresh.

use super::change::Held;
use super::memory::FreshnessSeen;
use super::{Age, Change, Judge, MemoryRow, Refusal, RowKey, TenantSeen, TenantState, accepted};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::freshness::{Freshness, FreshnessDemand, MAX_SKEW_SECS};
use crate::late::Early;
use crate::statement::Statement as _;

/// Whether a tenant's credentials may be used, by the freshness of its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The manifest demands no freshness.
    Undemanded,
    /// The manifest is fresh until this time.
    Fresh(Seconds),
    /// The manifest is not fresh.
    Stale(Stale),
}

/// Why a manifest is not fresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// Freshness was not renewed in time.
    #[error(
        "freshness was last renewed {age_secs} seconds ago; the manifest allows {allowed_secs}"
    )]
    Expired {
        /// Time since the manifest was signed or its freshness renewed, seconds.
        age_secs: Seconds,
        /// The longest time that the manifest allows, seconds.
        allowed_secs: Seconds,
    },
    /// The tenant has signed a newer manifest.
    #[error("the tenant has signed manifest {newest}, and manifest {held} is held")]
    Superseded {
        /// Version of the manifest that is held.
        held: u64,
        /// Version of the manifest that the tenant's statement names.
        newest: u64,
    },
    /// Manifest and statement are dated in the future: a clock is wrong.
    #[error(
        "manifest and statement of freshness are dated more than {MAX_SKEW_SECS} seconds ahead: a clock is wrong"
    )]
    FromFuture,
}

impl Judge {
    /// Judges a `Freshness`. A statement about a manifest newer than the held one is accepted from
    /// the tenant's keys alone, because the newer manifest, which names its delegated key, is not
    /// held.
    pub(super) fn decide_freshness(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let statement = Freshness::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(statement.fleet)?;
        let id = statement.tenant;
        let (Some(held), Some(memory)) = (self.tenants.get(&id), self.memory.tenants.get(&id))
        else {
            return Err(Refusal::TenantUnknown);
        };
        let digest = envelope.payload_digest();
        let age = match memory.freshness {
            Some(seen) if seen.digest == digest => Age::Same,
            _ => Age::New,
        };
        if age == Age::Same && held.freshness.is_some() {
            return Ok(self.unchanged());
        }
        must_be_of_newest_manifest(&statement, memory)?;
        if age == Age::New {
            must_be_newest(&statement, memory)?;
            if let Some(clock) = clock {
                self.must_be_in_time(&statement, held, clock)?;
                must_be_signed(envelope, &statement, held, memory)?;
            }
        }
        let freshness = Some(FreshnessSeen {
            version: statement.version,
            issued: statement.issued,
            digest,
        });
        let seen = MemoryRow::Tenant(
            id,
            TenantSeen {
                freshness,
                ..*memory
            },
        );
        let row = (RowKey::Freshness(id), envelope);
        Ok(self.put(accepted(age), row, Held::Freshness(statement), vec![seen]))
    }

    fn must_be_in_time(
        &self,
        statement: &Freshness,
        held: &TenantState,
        clock: Seconds,
    ) -> Result<(), Refusal> {
        let (issued, clock) = (statement.issued, self.time(clock));
        if issued > clock.saturating_add(MAX_SKEW_SECS) {
            return Err(Refusal::FreshnessFromFuture(Early { issued, clock }));
        }
        match held.demand_of(statement) {
            Some(demand) => {
                let expires = statement.issued.saturating_add(demand.max_age_secs);
                self.must_be_fresh(expires, clock, Refusal::FreshnessExpired)
            }
            None => Ok(()),
        }
    }
}

/// Refuses a statement that is older than the newest accepted one.
fn must_be_newest(statement: &Freshness, memory: &TenantSeen) -> Result<(), Refusal> {
    match &memory.freshness {
        Some(seen) if statement.version < seen.version => Err(Refusal::FreshnessVersionLower(
            seen.version,
            statement.version,
        )),
        Some(seen) if statement.version == seen.version && statement.issued <= seen.issued => {
            Err(Refusal::FreshnessOlder)
        }
        _ => Ok(()),
    }
}

/// Refuses a statement about an older manifest than the accepted one, or about another of its
/// version.
fn must_be_of_newest_manifest(statement: &Freshness, memory: &TenantSeen) -> Result<(), Refusal> {
    match &memory.manifest {
        Some(manifest) if statement.version < manifest.version => Err(
            Refusal::FreshnessVersionLower(manifest.version, statement.version),
        ),
        Some(manifest)
            if statement.version == manifest.version && statement.manifest != manifest.digest =>
        {
            Err(Refusal::FreshnessManifestOther)
        }
        _ => Ok(()),
    }
}

fn must_be_signed(
    envelope: &Envelope,
    statement: &Freshness,
    held: &TenantState,
    memory: &TenantSeen,
) -> Result<(), Refusal> {
    let demand = held.demand_of(statement);
    let is_of_held = memory
        .manifest
        .is_some_and(|manifest| manifest.version == statement.version);
    if is_of_held && held.manifest.is_some() && demand.is_none() {
        return Err(Refusal::FreshnessUndemanded);
    }
    let current = &held.tenant.current;
    let by_tenant = envelope.verify(&current.keys, current.threshold);
    let delegated = demand.and_then(|demand| demand.key);
    if by_tenant || delegated.is_some_and(|key| envelope.verify(&[key], 1)) {
        Ok(())
    } else {
        Err(Refusal::SignatureThreshold)
    }
}

impl TenantState {
    /// The held manifest's demand, if `statement` is about that manifest.
    fn demand_of(&self, statement: &Freshness) -> Option<&FreshnessDemand> {
        let accord = self.manifest.as_ref()?;
        let demand = accord.manifest.freshness.as_ref()?;
        (accord.digest == statement.manifest).then_some(demand)
    }

    /// Whether the held manifest is fresh at this time.
    pub fn standing(&self, now: Seconds) -> Standing {
        let Some(accord) = &self.manifest else {
            return Standing::Undemanded;
        };
        let Some(demand) = &accord.manifest.freshness else {
            return Standing::Undemanded;
        };
        let (held, statement) = (accord.manifest.version, self.freshness.as_ref());
        if let Some(newest) = statement
            .map(|statement| statement.version)
            .filter(|newest| *newest > held)
        {
            return Standing::Stale(Stale::Superseded { held, newest });
        }
        let renewed = statement.filter(|statement| statement.manifest == accord.digest);
        let dates = [
            Some(accord.manifest.issued),
            renewed.map(|statement| statement.issued),
        ];
        let latest = now.saturating_add(MAX_SKEW_SECS);
        let Some(newest) = dates.into_iter().flatten().filter(|at| *at <= latest).max() else {
            return Standing::Stale(Stale::FromFuture);
        };
        let until = newest.saturating_add(demand.max_age_secs);
        if now < until {
            return Standing::Fresh(until);
        }
        Standing::Stale(Stale::Expired {
            age_secs: now.saturating_sub(newest),
            allowed_secs: demand.max_age_secs,
        })
    }
}
