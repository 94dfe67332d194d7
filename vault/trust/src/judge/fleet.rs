//! Judges the root's statements about the fleet: the next root, the online key, pools.

use super::change::Held;
use super::{
    Age, Change, Judge, MAX_EPOCHS_HELD, MemoryRow, PoolSeen, Refusal, RowKey, Seen, accepted, age,
};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::statement::{MAX_FLEET_POOLS, OnlineKey, Pool, Root, Statement as _};

impl Judge {
    /// Judges a `Root`, whether or not it has expired: an earlier step of the chain may have (TUF,
    /// section 5.3), or a node that joins late could not follow the chain. Other statements of an
    /// expired root are refused. A stored root is judged like a new one, because its chain ties a
    /// store to the fleet.
    pub(super) fn decide_root(&self, envelope: &Envelope) -> Result<Change, Refusal> {
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
            return Ok(self.unchanged());
        }
        let signed_by_itself = envelope.verify(&root.keys, root.threshold);
        match (&self.memory.root, &self.root) {
            // No root was ever held, so only the first one is accepted: its digest is the fleet's
            // id.
            (None, _) if digest.0 != self.memory.fleet.0 => return Err(Refusal::RootUnknown),
            (None, _) | (Some(_), None) if !signed_by_itself => {
                return Err(Refusal::SignatureThreshold);
            }
            (None, _) => {}
            // The root is remembered, and the digest shows that it is the same.
            (Some(_), None) if age == Age::Same => {}
            // The root is newer than the remembered one, but that one's keys are lost: it must come
            // first.
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
        let version = root.version;
        let mut memory = Vec::new();
        if age == Age::New {
            memory.push(MemoryRow::Root(Seen { version, digest }));
            memory.extend(self.floor(root.issued));
        }
        let row = (RowKey::Root(version), envelope);
        Ok(self.put(accepted(age), row, Held::Root(root), memory))
    }

    /// Judges an `OnlineKey`.
    pub(super) fn decide_online_key(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let online = OnlineKey::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(online.fleet)?;
        let (version, digest) = (online.version, envelope.payload_digest());
        let age = age(
            self.memory.online.as_ref(),
            version,
            digest,
            Refusal::OnlineVersionLower,
            Refusal::OnlineEqualOther,
        )?;
        if age == Age::Same && self.online.is_some() {
            return Ok(self.unchanged());
        }
        let mut memory = Vec::new();
        if age == Age::New {
            if let Some(clock) = clock {
                self.must_be_signed_by_root(envelope, clock)?;
                self.must_be_fresh(online.expires, clock, Refusal::OnlineExpired)?;
            }
            memory.push(MemoryRow::Online(Seen { version, digest }));
            memory.extend(self.floor(online.issued));
        }
        let row = (RowKey::OnlineKey, envelope);
        Ok(self.put(accepted(age), row, Held::OnlineKey(online), memory))
    }

    /// Judges a `Pool`. Older epochs of a pool stay held, because secrets are sealed to them until
    /// they expire.
    pub(super) fn decide_pool(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let pool = Pool::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(pool.fleet)?;
        let (version, digest) = (pool.epoch, envelope.payload_digest());
        if let Some(held) = self.pool(&pool.name, pool.epoch) {
            return if *held == pool {
                Ok(self.unchanged())
            } else {
                Err(Refusal::PoolEqualOther)
            };
        }
        let seen = self.memory.pools.get(&pool.name);
        if seen.is_none() && self.memory.pools.len() >= MAX_FLEET_POOLS {
            return Err(Refusal::TooMany("pools"));
        }
        if self.epochs(&pool.name).count() >= MAX_EPOCHS_HELD {
            return Err(Refusal::TooMany("epochs of a pool"));
        }
        let age = match seen.and_then(|seen| seen.digest(pool.epoch)) {
            Some(seen) if *seen != digest => return Err(Refusal::PoolEqualOther),
            // The statement was checked when it was new, perhaps under a root that was replaced
            // since.
            Some(_) => Age::Same,
            None => Age::New,
        };
        let mut memory = Vec::new();
        if age == Age::New {
            if let Some(clock) = clock {
                self.must_be_signed_by_root(envelope, clock)?;
                self.must_be_fresh(pool.expires, clock, Refusal::PoolExpired)?;
            }
            let seen = PoolSeen::with(seen, Seen { version, digest });
            memory.push(MemoryRow::Pool(pool.name.clone(), seen));
            memory.extend(self.floor(pool.issued));
        }
        let row = (RowKey::Pool(pool.name.clone(), version), envelope);
        Ok(self.put(accepted(age), row, Held::Pool(pool), memory))
    }
}
