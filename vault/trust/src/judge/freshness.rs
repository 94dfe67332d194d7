//! Judging the tenants' word on their newest manifest, and whether a manifest is fresh by it.

use serde::{Deserialize, Serialize};

use super::{Accepted, Age, Judge, Refusal, TenantSeen, TenantState, accepted};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::freshness::{Freshness, FreshnessDemand, MAX_SKEW_SECS};
use crate::id::Digest;
use crate::statement::Statement as _;

/// A tenant's newest word on its newest manifest. Words are ordered by the manifest that they name,
/// then by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreshnessSeen {
    /// Version of the manifest.
    pub version: u64,
    /// When it was signed.
    pub issued: Seconds,
    /// Digest of the payload.
    pub digest: Digest,
}

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
    /// The tenant has not spoken for longer than the manifest allows.
    #[error(
        "the tenant last said {age_secs} seconds ago that its manifest is the newest; the manifest allows {allowed_secs} seconds"
    )]
    Silent {
        /// How long ago the tenant last spoke, seconds.
        age_secs: Seconds,
        /// How long ago it may be, seconds.
        allowed_secs: Seconds,
    },
    /// The tenant has signed a newer manifest.
    #[error("the tenant has signed manifest {newest}, and manifest {held} is held")]
    Superseded {
        /// Version of the manifest that is held.
        held: u64,
        /// Version of the manifest that the tenant named.
        newest: u64,
    },
    /// Whatever the tenant has said was signed later than now: a clock is wrong.
    #[error(
        "the tenant's word is dated more than {MAX_SKEW_SECS} seconds from now: a clock is wrong"
    )]
    FromFuture,
}

impl Judge {
    /// Judges a `Freshness`. One of a manifest that is newer than the one that is held is accepted
    /// from the tenant's keys alone: the key for it stands in a manifest that is not here.
    ///
    /// # Errors
    /// The refusal, by name; nothing has changed.
    pub fn accept_freshness(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        let word = Freshness::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(word.fleet)?;
        let id = word.tenant;
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
            return Ok(Accepted::Held);
        }
        if age == Age::New {
            must_be_newest(&word, memory)?;
            self.must_be_in_time(&word, held, clock)?;
            must_be_signed(envelope, &word, held, memory)?;
        }
        let seen = FreshnessSeen {
            version: word.version,
            issued: word.issued,
            digest,
        };
        if let (Some(memory), Some(state)) =
            (self.memory.tenants.get_mut(&id), self.tenants.get_mut(&id))
        {
            memory.freshness = Some(seen);
            state.freshness = Some(word);
        }
        Ok(accepted(age))
    }

    fn must_be_in_time(
        &self,
        word: &Freshness,
        held: &TenantState,
        clock: Seconds,
    ) -> Result<(), Refusal> {
        if word.issued > self.time(clock).saturating_add(MAX_SKEW_SECS) {
            return Err(Refusal::FreshnessFromFuture);
        }
        match held.demand_of(word) {
            Some(demand) => {
                let expires = word.issued.saturating_add(demand.max_age_secs);
                self.must_be_fresh(expires, clock, Refusal::FreshnessExpired)
            }
            None => Ok(()),
        }
    }
}

/// Neither older than what the tenant said before, nor of an older manifest than was accepted.
fn must_be_newest(word: &Freshness, memory: &TenantSeen) -> Result<(), Refusal> {
    let lower = |version| Refusal::FreshnessVersionLower(version, word.version);
    if let Some(seen) = &memory.freshness {
        if word.version < seen.version {
            return Err(lower(seen.version));
        }
        if word.version == seen.version && word.issued <= seen.issued {
            return Err(Refusal::FreshnessOlder);
        }
    }
    match &memory.manifest {
        Some(manifest) if word.version < manifest.version => Err(lower(manifest.version)),
        Some(manifest) if word.version == manifest.version && word.manifest != manifest.digest => {
            Err(Refusal::FreshnessManifestOther)
        }
        _ => Ok(()),
    }
}

fn must_be_signed(
    envelope: &Envelope,
    word: &Freshness,
    held: &TenantState,
    memory: &TenantSeen,
) -> Result<(), Refusal> {
    let demand = held.demand_of(word);
    let is_of_held = memory
        .manifest
        .is_some_and(|manifest| manifest.version == word.version);
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
    /// What the held manifest demands, if `word` is about that manifest.
    fn demand_of(&self, word: &Freshness) -> Option<&FreshnessDemand> {
        let accord = self.manifest.as_ref()?;
        let demand = accord.manifest.freshness.as_ref()?;
        (accord.digest == word.manifest).then_some(demand)
    }

    /// Whether the held manifest is fresh at this time.
    pub fn standing(&self, now: Seconds) -> Standing {
        let Some(accord) = &self.manifest else {
            return Standing::Undemanded;
        };
        let Some(demand) = &accord.manifest.freshness else {
            return Standing::Undemanded;
        };
        let (held, word) = (accord.manifest.version, self.freshness.as_ref());
        if let Some(newest) = word
            .map(|word| word.version)
            .filter(|newest| *newest > held)
        {
            return Standing::Stale(Stale::Superseded { held, newest });
        }
        let repeated = word.filter(|word| word.manifest == accord.digest);
        let said = [
            Some(accord.manifest.issued),
            repeated.map(|word| word.issued),
        ];
        let latest = now.saturating_add(MAX_SKEW_SECS);
        let Some(said) = said.into_iter().flatten().filter(|at| *at <= latest).max() else {
            return Standing::Stale(Stale::FromFuture);
        };
        let until = said.saturating_add(demand.max_age_secs);
        if now < until {
            return Standing::Fresh(until);
        }
        Standing::Stale(Stale::Silent {
            age_secs: now.saturating_sub(said),
            allowed_secs: demand.max_age_secs,
        })
    }
}
