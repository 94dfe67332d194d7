//! The judge: decides what is accepted, given what was accepted before. A pure function of
//! (statement, time, memory).
//!
//! A node's vault, the command line and the control plane apply the same rules with this one type.
//! What the judge *remembers* ([`Memory`]: digests and versions) is small and outlives the loss of
//! what it *holds* (the statements themselves): after such a loss the same statements are accepted
//! again, lower ones never. Nothing here deletes: absence is not a statement.
//!
//! Judging has two phases, with the owner's write between them: [`Judge::decide`], [`Change::commit`], [`Judge::apply`].

mod change;
mod fleet;
mod freshness;
mod hosts;
mod image;
mod memory;
mod refusal;
mod replay;
mod revocation;
mod tenant;
mod tenant_state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::Seconds;
use crate::dsse::Envelope;
use crate::freshness::Freshness;
use crate::id::{Digest, FleetId, TenantId};
use crate::image::Image;
use crate::late::Late;
use crate::name::Name;
use crate::revocation::Revocations;
use crate::statement::{Manifest, OnlineKey, Pool, Root, Statement, Tenant};

use change::Stamp;
pub use change::{Change, Committed, Row, RowKey};
pub use freshness::{Stale, Standing};
use hosts::HostClaims;
pub use memory::{
    FreshnessSeen, ImageSeen, MAX_EPOCHS_REMEMBERED, Memory, MemoryRow, PoolSeen, Seen, TenantSeen,
};
pub use refusal::Refusal;
pub use tenant::{Objects, no_objects};
pub use tenant_state::{Accord, TenantState};

/// Most tenants that are remembered. A hostile control plane would need the root's signature for
/// each, but the memory must be bounded all the same.
pub const MAX_TENANTS: usize = 100_000;
/// Most epochs of a pool that are held: the list of held statements must fit into a node's first
/// message to the control plane. With a new key every week they suffice for nineteen years.
pub const MAX_EPOCHS_HELD: usize = 1000;

/// The meaning of accepting a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The statement is new: the memory has changed and must be written before this is
    /// acknowledged.
    New,
    /// It was held already.
    Held,
    /// The statement was remembered but no longer held, and is held again.
    Again,
}

/// A version in relation to the memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Same,
}

/// The accepted statements of its owner, and the rules for the next ones. The owner calls
/// [`Judge::decide`] and keeps the judge in memory; after a start it comes from [`Judge::replay`].
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Judge {
    stamp: Stamp,
    memory: Memory,
    root: Option<Root>,
    online: Option<OnlineKey>,
    pools: BTreeMap<(Name, u64), Pool>,
    /// Boxed, because the map's half-filled nodes would otherwise take as much memory again.
    tenants: BTreeMap<TenantId, Box<TenantState>>,
    /// The tenants' claims to hosts, by their statements.
    claims: HostClaims,
    images: BTreeMap<Name, Image>,
    revocations: Option<Revocations>,
    /// The pool whose functions and secrets matter here; `None` for owners that hold those of every
    /// pool.
    here: Option<Name>,
}

impl Judge {
    /// A judge that knows only a fleet's fingerprint.
    pub fn new(fleet: FleetId, here: Option<Name>) -> Self {
        Self::remembering(Memory::new(fleet), here)
    }

    /// A judge with an earlier one's memory, which holds no statement yet.
    pub fn remembering(memory: Memory, here: Option<Name>) -> Self {
        Self {
            stamp: Stamp::default(),
            memory,
            root: None,
            online: None,
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            claims: HostClaims::default(),
            images: BTreeMap::new(),
            revocations: None,
            here,
        }
    }

    /// The rollback memory, which must outlive everything else.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.memory.fleet
    }

    /// The newest root.
    pub fn root(&self) -> Option<&Root> {
        self.root.as_ref()
    }

    /// The newest online key.
    pub fn online(&self) -> Option<&OnlineKey> {
        self.online.as_ref()
    }

    /// A pool's statement of this epoch.
    pub fn pool(&self, name: &Name, epoch: u64) -> Option<&Pool> {
        self.pools.get(&(name.clone(), epoch))
    }

    /// A pool's newest statement.
    pub fn newest_pool(&self, name: &Name) -> Option<&Pool> {
        self.pools
            .range((name.clone(), 0)..=(name.clone(), u64::MAX))
            .next_back()
            .map(|(_, pool)| pool)
    }

    /// Epochs of a pool whose statements are held.
    pub fn epochs(&self, name: &Name) -> impl Iterator<Item = u64> {
        self.pools
            .range((name.clone(), 0)..=(name.clone(), u64::MAX))
            .map(|((_, epoch), _)| *epoch)
    }

    /// All pools, each at its newest.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.memory
            .pools
            .keys()
            .filter_map(|name| self.newest_pool(name))
    }

    /// A tenant.
    pub fn tenant(&self, id: &TenantId) -> Option<&TenantState> {
        self.tenants.get(id).map(Box::as_ref)
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, &TenantState)> {
        let tenants = self.tenants.iter();
        tenants.map(|(id, state)| (id, state.as_ref()))
    }

    /// The time by a clock that may be wrong: never before the memory's floor.
    pub fn time(&self, clock: Seconds) -> Seconds {
        clock.max(self.memory.floor)
    }

    /// Judges a statement at the time `clock`, with the objects that a manifest lists from
    /// `objects`. The answer depends on nothing else, and nothing changes.
    ///
    /// # Errors
    /// The refusal, by name. [`Refusal::Missing`] names the objects that a manifest needs first;
    /// the manifest itself has then passed every check.
    pub fn decide(
        &self,
        envelope: &Envelope,
        clock: Seconds,
        objects: Objects<'_>,
    ) -> Result<Change, Refusal> {
        self.judge(envelope, Some(clock), objects)
    }

    /// Judges a statement that arrived at the time `clock`; without `clock`, a stored row that was
    /// judged before it was written, and whose signatures and dates were valid then.
    fn judge(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
        objects: Objects<'_>,
    ) -> Result<Change, Refusal> {
        match envelope.payload_type() {
            Root::TYPE => self.decide_root(envelope),
            OnlineKey::TYPE => self.decide_online_key(envelope, clock),
            Pool::TYPE => self.decide_pool(envelope, clock),
            Revocations::TYPE => self.decide_revocations(envelope, clock),
            Image::TYPE => self.decide_image(envelope, clock),
            Tenant::TYPE => self.decide_tenant(envelope, clock),
            Manifest::TYPE => self.decide_manifest(envelope, clock, objects),
            Freshness::TYPE => self.decide_freshness(envelope, clock),
            other => {
                let other = crate::name::excerpt(other);
                let message = format!("expected a statement of a known type, got {other:?}");
                Err(Refusal::Malformed(message))
            }
        }
    }

    fn must_be_our_fleet(&self, fleet: FleetId) -> Result<(), Refusal> {
        if fleet == self.memory.fleet {
            Ok(())
        } else {
            Err(Refusal::FleetOther)
        }
    }

    /// The row of the memory's time floor after the root has signed a statement at `issued`.
    fn floor(&self, issued: Seconds) -> Option<MemoryRow> {
        (issued > self.memory.floor).then_some(MemoryRow::Floor(issued))
    }

    fn must_be_signed_by_root(&self, envelope: &Envelope, clock: Seconds) -> Result<(), Refusal> {
        let root = self.root.as_ref().ok_or(Refusal::RootUnknown)?;
        if !envelope.verify(&root.keys, root.threshold) {
            return Err(Refusal::SignatureThreshold);
        }
        self.must_be_fresh(root.expires, clock, Refusal::RootExpired)
    }

    fn must_be_fresh(
        &self,
        expires: Seconds,
        clock: Seconds,
        refusal: fn(Late) -> Refusal,
    ) -> Result<(), Refusal> {
        let clock = self.time(clock);
        if clock < expires {
            Ok(())
        } else {
            Err(refusal(Late { expires, clock }))
        }
    }
}

/// Compares with the memory: a lower version is refused, and so is an equal one with another
/// digest.
fn age(
    seen: Option<&Seen>,
    version: u64,
    digest: Digest,
    lower: fn(u64, u64) -> Refusal,
    other: Refusal,
) -> Result<Age, Refusal> {
    match seen {
        Some(seen) if version < seen.version => Err(lower(seen.version, version)),
        Some(seen) if version == seen.version && digest != seen.digest => Err(other),
        Some(seen) if version == seen.version => Ok(Age::Same),
        _ => Ok(Age::New),
    }
}

fn accepted(age: Age) -> Accepted {
    match age {
        Age::New => Accepted::New,
        Age::Same => Accepted::Again,
    }
}
