//! Judges the list of revoked nodes: its version only rises, and it outlives everything else.

use super::change::Held;
use super::{Age, Change, Judge, MemoryRow, Refusal, RowKey, Seen, accepted, age};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::key::PublicKey;
use crate::name::Name;
use crate::revocation::Revocations;
use crate::statement::Statement as _;

impl Judge {
    /// The newest list of revoked nodes.
    pub fn revocations(&self) -> Option<&Revocations> {
        self.revocations.as_ref()
    }

    /// Whether the node with this key is revoked.
    pub fn is_revoked(&self, node: &PublicKey) -> bool {
        self.revocations().is_some_and(|list| list.names(node))
    }

    /// Whether a list was accepted before and is no longer held, so that its content is unknown.
    pub fn has_lost_revocations(&self) -> bool {
        self.memory.revocations.is_some() && self.revocations.is_none()
    }

    /// Whether a revoked node knows the key of this pool and epoch.
    pub fn is_exposed(&self, pool: &Name, epoch: u64) -> bool {
        self.revocations()
            .is_some_and(|list| list.exposes(pool, epoch))
    }

    /// Refuses a revoked node, which may get no key and may not be admitted.
    ///
    /// # Errors
    /// [`Refusal::NodeRevoked`].
    pub fn must_not_be_revoked(&self, node: &PublicKey) -> Result<(), Refusal> {
        if self.is_revoked(node) {
            Err(Refusal::NodeRevoked(*node))
        } else {
            Ok(())
        }
    }

    /// Judges a `Revocations`.
    pub(super) fn decide_revocations(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let list = Revocations::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(list.fleet)?;
        let (version, digest) = (list.version, envelope.payload_digest());
        let age = age(
            self.memory.revocations.as_ref(),
            version,
            digest,
            Refusal::RevocationsVersionLower,
            Refusal::RevocationsEqualOther,
        )?;
        if age == Age::Same && self.revocations.is_some() {
            return Ok(self.unchanged());
        }
        let mut memory = Vec::new();
        if age == Age::New {
            if let Some(clock) = clock {
                self.must_be_signed_by_root(envelope, clock)?;
            }
            memory.push(MemoryRow::Revocations(Seen { version, digest }));
            memory.extend(self.floor(list.issued));
        }
        let row = (RowKey::Revocations, envelope);
        Ok(self.put(accepted(age), row, Held::Revocations(list), memory))
    }
}
