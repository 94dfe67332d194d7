//! The judge: what is accepted, given what was seen before. A function of (statement, time, memory) and nothing else.
//!
//! A node's vault, the command line and the control plane keep the same rules with this one type. What it *remembers*
//! ([`Memory`]: digests and versions) is small and outlives the loss of what it *holds* (the statements themselves): after
//! such a loss the same statements are taken again, lower ones never. Nothing here deletes: absence is not a statement.

mod freshness;
mod hosts;
mod image;
mod refusal;
mod revocation;
mod tenant;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::dsse::Envelope;
use crate::id::{Digest, FleetId, TenantId};
use crate::image::Image;
use crate::late::Late;
use crate::name::Name;
use crate::revocation::Revocations;
use crate::statement::{OnlineKey, Pool, Root, Statement};

pub use freshness::{FreshnessSeen, Stale, Standing};
use hosts::HostClaims;
pub use image::ImageSeen;
pub use refusal::Refusal;
pub use tenant::{Accord, Objects, TenantState};

/// Most tenants that are remembered: ten million from a hostile control plane would still need the root's signature, but
/// a bound is a bound.
pub const MAX_TENANTS: usize = 100_000;
/// Most pools that are remembered.
pub const MAX_POOLS_HELD: usize = 1000;
/// Most epochs of a pool that are held: what a node holds has to fit its first message to the control plane. With a new key
/// every week they last for nineteen years.
pub const MAX_EPOCHS_HELD: usize = 1000;
/// Most epochs of a pool that are remembered, the highest: a key that is replaced each week and holds for 400 days has 58
/// at a time.
pub const MAX_EPOCHS_REMEMBERED: usize = 64;

/// A version and the digest that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Version, or epoch.
    pub version: u64,
    /// Digest of the payload.
    pub digest: Digest,
}

/// The highest of one tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantSeen {
    /// Its `Tenant` statement.
    pub tenant: Seen,
    /// Its manifest.
    pub manifest: Option<Seen>,
    /// Its newest statement of freshness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freshness: Option<FreshnessSeen>,
}

/// The epochs of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSeen {
    /// The newest.
    #[serde(flatten)]
    pub newest: Seen,
    /// Digests of those before it, by epoch. Earlier programs remembered only the newest.
    #[serde(default)]
    pub older: BTreeMap<u64, Digest>,
}

impl PoolSeen {
    fn digest(&self, epoch: u64) -> Option<&Digest> {
        if epoch == self.newest.version {
            Some(&self.newest.digest)
        } else {
            self.older.get(&epoch)
        }
    }
}

/// What must never be forgotten. What a later program remembers besides is refused, not dropped: it would be forgotten with the
/// next write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The fleet: digest of the first root.
    pub fleet: FleetId,
    /// The root.
    pub root: Option<Seen>,
    /// The online key.
    pub online: Option<Seen>,
    /// Pools by name.
    pub pools: BTreeMap<Name, PoolSeen>,
    /// Tenants by id.
    pub tenants: BTreeMap<TenantId, TenantSeen>,
    /// The newest image of each pool. Earlier programs knew of none.
    #[serde(default)]
    pub images: BTreeMap<Name, ImageSeen>,
    /// The list of revoked nodes. Earlier programs knew of none.
    #[serde(default)]
    pub revocations: Option<Seen>,
    /// The latest time at which the root has signed something that was accepted: it is not earlier than that.
    pub floor: Seconds,
}

impl Memory {
    /// Remembers an epoch of a pool, for good: the lowest give way when there are too many.
    pub fn remember_pool(&mut self, name: &Name, epoch: Seen) {
        let Some(pool) = self.pools.get_mut(name) else {
            let older = BTreeMap::new();
            let first = PoolSeen {
                newest: epoch,
                older,
            };
            self.pools.insert(name.clone(), first);
            return;
        };
        let older = if epoch.version > pool.newest.version {
            std::mem::replace(&mut pool.newest, epoch)
        } else {
            epoch
        };
        pool.older.insert(older.version, older.digest);
        while pool.older.len() >= MAX_EPOCHS_REMEMBERED {
            pool.older.pop_first();
        }
    }
}

/// What accepting a statement meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// It is new: memory has changed and must be written before this is acknowledged.
    New,
    /// It was held already.
    Held,
    /// It was remembered, but not held any more, and is held again.
    Again,
}

/// How a version relates to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Age {
    New,
    Same,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Judge {
    memory: Memory,
    root: Option<Root>,
    online: Option<OnlineKey>,
    pools: BTreeMap<(Name, u64), Pool>,
    /// Shared with clones of this judge, each until it changes: the vault judges every statement with a clone, so that one
    /// tenant's statement must not cost a copy of what all tenants have.
    tenants: BTreeMap<TenantId, Arc<TenantState>>,
    /// Who may answer for which host, by the tenants' statements. Shared with clones of this judge until it changes.
    claims: Arc<HostClaims>,
    images: BTreeMap<Name, Image>,
    revocations: Option<Revocations>,
    /// The pool whose functions and secrets matter here; `None` for those who hold every pool's.
    here: Option<Name>,
}

impl Judge {
    /// A judge that knows a fleet's fingerprint and nothing else.
    pub fn new(fleet: FleetId, here: Option<Name>) -> Self {
        let memory = Memory {
            fleet,
            root: None,
            online: None,
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            images: BTreeMap::new(),
            revocations: None,
            floor: 0,
        };
        Self::remembering(memory, here)
    }

    /// A judge with an earlier one's memory, which holds no statement yet.
    pub fn remembering(memory: Memory, here: Option<Name>) -> Self {
        Self {
            memory,
            root: None,
            online: None,
            pools: BTreeMap::new(),
            tenants: BTreeMap::new(),
            claims: Arc::default(),
            images: BTreeMap::new(),
            revocations: None,
            here,
        }
    }

    /// What must outlive everything else.
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
        self.tenants.get(id).map(Arc::as_ref)
    }

    /// All tenants.
    pub fn tenants(&self) -> impl Iterator<Item = (&TenantId, &TenantState)> {
        let tenants = self.tenants.iter();
        tenants.map(|(id, state)| (id, state.as_ref()))
    }

    /// The time, given a clock that may have lost its battery.
    pub fn time(&self, clock: Seconds) -> Seconds {
        clock.max(self.memory.floor)
    }

    /// Judges a `Root`, whether or not it has expired: a step of the chain may have (TUF, section 5.3), or nobody who comes
    /// late could follow it. What else an expired root signs is refused, so the clock is here only for the likeness to the
    /// other kinds.
    ///
    /// # Errors
    /// The refusal, by name; nothing has changed.
    pub fn accept_root(
        &mut self,
        envelope: &Envelope,
        _clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        let root = Root::read(envelope).map_err(Refusal::Malformed)?;
        let digest = envelope.payload_digest();
        let age = age(
            self.memory.root.as_ref(),
            root.version,
            digest,
            Refusal::RootVersionLower,
            Refusal::RootEqualOther,
        )?;
        if age == Age::Same && self.root.is_some() {
            return Ok(Accepted::Held);
        }
        let signed_by_itself = envelope.verify(&root.keys, root.threshold);
        match (&self.memory.root, &self.root) {
            // Nothing was ever held, so only the first one will do: its digest is the fleet.
            (None, _) if digest.0 != self.memory.fleet.0 => return Err(Refusal::RootUnknown),
            (None, _) | (Some(_), None) if !signed_by_itself => {
                return Err(Refusal::SignatureThreshold);
            }
            (None, _) => {}
            // Remembered: the digest says that it is the same.
            (Some(_), None) if age == Age::Same => {}
            // Newer than remembered, but the keys of the remembered one are gone: it must come first.
            (Some(seen), None) => {
                return Err(Refusal::RootVersionGap {
                    held: seen.version,
                    got: root.version,
                });
            }
            (Some(_), Some(held)) => {
                if root.version != held.version + 1 {
                    return Err(Refusal::RootVersionGap {
                        held: held.version,
                        got: root.version,
                    });
                }
                if !signed_by_itself || !envelope.verify(&held.keys, held.threshold) {
                    return Err(Refusal::SignatureThreshold);
                }
            }
        }
        if age == Age::New {
            self.memory.root = Some(Seen {
                version: root.version,
                digest,
            });
            self.memory.floor = self.memory.floor.max(root.issued);
        }
        self.root = Some(root);
        Ok(accepted(age))
    }

    /// Judges an `OnlineKey`.
    ///
    /// # Errors
    /// The refusal, by name; nothing has changed.
    pub fn accept_online_key(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        let online = OnlineKey::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(online.fleet)?;
        let digest = envelope.payload_digest();
        let lower = Refusal::OnlineVersionLower;
        let age = age(
            self.memory.online.as_ref(),
            online.version,
            digest,
            lower,
            Refusal::OnlineEqualOther,
        )?;
        if age == Age::Same && self.online.is_some() {
            return Ok(Accepted::Held);
        }
        if age == Age::New {
            self.must_be_signed_by_root(envelope, clock)?;
            self.must_be_fresh(online.expires, clock, Refusal::OnlineExpired)?;
            self.memory.online = Some(Seen {
                version: online.version,
                digest,
            });
            self.memory.floor = self.memory.floor.max(online.issued);
        }
        self.online = Some(online);
        Ok(accepted(age))
    }

    /// Judges a `Pool`. Older epochs of a pool stay held: secrets are still sealed to them until they expire.
    ///
    /// # Errors
    /// The refusal, by name; nothing has changed.
    pub fn accept_pool(
        &mut self,
        envelope: &Envelope,
        clock: Seconds,
    ) -> Result<Accepted, Refusal> {
        let pool = Pool::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(pool.fleet)?;
        let digest = envelope.payload_digest();
        let key = (pool.name.clone(), pool.epoch);
        if let Some(held) = self.pools.get(&key) {
            return if *held == pool {
                Ok(Accepted::Held)
            } else {
                Err(Refusal::PoolEqualOther)
            };
        }
        let seen = self.memory.pools.get(&pool.name);
        if seen.is_none() && self.memory.pools.len() >= MAX_POOLS_HELD {
            return Err(Refusal::TooMany("pools"));
        }
        if self.epochs(&pool.name).count() >= MAX_EPOCHS_HELD {
            return Err(Refusal::TooMany("epochs of a pool"));
        }
        let age = match seen.and_then(|seen| seen.digest(pool.epoch)) {
            Some(seen) if *seen != digest => return Err(Refusal::PoolEqualOther),
            // It was checked when it was new, perhaps by a root that was replaced since.
            Some(_) => Age::Same,
            None => Age::New,
        };
        if age == Age::New {
            self.must_be_signed_by_root(envelope, clock)?;
            self.must_be_fresh(pool.expires, clock, Refusal::PoolExpired)?;
            let version = pool.epoch;
            self.memory
                .remember_pool(&pool.name, Seen { version, digest });
            self.memory.floor = self.memory.floor.max(pool.issued);
        }
        self.pools.insert(key, pool);
        Ok(accepted(age))
    }

    fn must_be_our_fleet(&self, fleet: FleetId) -> Result<(), Refusal> {
        if fleet == self.memory.fleet {
            Ok(())
        } else {
            Err(Refusal::FleetOther)
        }
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

/// Lower is refused, and so is equal with another digest.
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
