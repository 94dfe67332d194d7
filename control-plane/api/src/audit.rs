//! Audit records: one for every change and every refused attempt, each with the hash of the record
//! before.

use casemate_trust::Seconds;
use casemate_trust::id::Digest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The `prev` of the first record.
pub const FIRST_PREV: Digest = Digest([0; 32]);

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRecord {
    /// Number of the record: counts from 1 without gaps.
    pub seq: u64,
    /// Unix time.
    pub time: Seconds,
    /// The actor: id and label of a token, or `node NAME`.
    pub actor: String,
    /// The action, such as `manifest.put` or `node.revoke`.
    pub action: String,
    /// The object of the action.
    pub subject: String,
    /// Revision of the state after the change.
    pub revision: u64,
    /// Hash of the record before.
    #[schema(value_type = String)]
    pub prev: Digest,
    /// Hash of this record, including `prev`.
    #[schema(value_type = String)]
    pub hash: Digest,
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The records, oldest first.
    pub records: Vec<AuditRecord>,
    /// Highest existing `seq`.
    pub newest: u64,
    /// Whether the server found its whole chain unbroken when it started.
    pub verified: bool,
}

/// The records to return.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditQuery {
    /// Only records after this `seq`.
    #[serde(default)]
    pub since: u64,
}

/// Where a chain is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken {
    /// The first record that does not match the one before it.
    pub seq: u64,
}

impl AuditRecord {
    /// Makes the record that follows `prev`.
    pub fn follow(
        prev: Option<&Self>,
        time: Seconds,
        actor: &str,
        action: &str,
        subject: &str,
    ) -> Self {
        let mut record = Self {
            seq: prev.map_or(1, |prev| prev.seq + 1),
            time,
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            revision: 0,
            prev: prev.map_or(FIRST_PREV, |prev| prev.hash),
            hash: FIRST_PREV,
        };
        record.hash = record.computed_hash();
        record
    }

    /// The record of a change that makes `revision`.
    #[must_use]
    pub fn at_revision(mut self, revision: u64) -> Self {
        self.revision = revision;
        self.hash = self.computed_hash();
        self
    }

    /// SHA-256 over every field with its length in front, `prev` included.
    pub fn computed_hash(&self) -> Digest {
        let mut bytes = b"casemate audit v1".to_vec();
        let numbers = [self.seq, self.time, self.revision];
        numbers
            .iter()
            .for_each(|number| bytes.extend(number.to_be_bytes()));
        for part in [&self.actor, &self.action, &self.subject] {
            bytes.extend((part.len() as u64).to_be_bytes());
            bytes.extend(part.as_bytes());
        }
        bytes.extend(self.prev.0);
        Digest::of(&bytes)
    }

    /// Checks the chain of `records`, whose first one follows `before`.
    ///
    /// # Errors
    /// The first record that breaks the chain.
    pub fn verify<'a>(
        before: Option<&Self>,
        records: impl IntoIterator<Item = &'a Self>,
    ) -> Result<(), Broken> {
        let (mut seq, mut hash) =
            before.map_or((0, FIRST_PREV), |record| (record.seq, record.hash));
        for record in records {
            let follows = record.seq == seq + 1 && record.prev == hash;
            if !follows || record.hash != record.computed_hash() {
                return Err(Broken { seq: record.seq });
            }
            (seq, hash) = (record.seq, record.hash);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> Vec<AuditRecord> {
        let mut records: Vec<AuditRecord> = Vec::new();
        for seq in 1..=5 {
            let next = AuditRecord::follow(records.last(), seq, "a", "b", "c").at_revision(seq);
            records.push(next);
        }
        records
    }

    #[test]
    fn a_chain_follows() {
        assert_eq!(AuditRecord::verify(None, &chain()), Ok(()));
        let records = chain();
        assert_eq!(
            AuditRecord::verify(Some(&records[1]), &records[2..]),
            Ok(())
        );
    }

    #[test]
    fn a_change_a_gap_and_a_swap_are_found() {
        for at in 0..5 {
            let mut records = chain();
            records[at].subject = "d".into();
            assert_eq!(
                AuditRecord::verify(None, &records),
                Err(Broken { seq: at as u64 + 1 })
            );
        }
        let mut gap = chain();
        gap.remove(2);
        assert_eq!(AuditRecord::verify(None, &gap), Err(Broken { seq: 4 }));
        let mut swapped = chain();
        swapped.swap(1, 2);
        assert!(AuditRecord::verify(None, &swapped).is_err());
    }

    #[test]
    fn text_may_not_move_between_fields() {
        let one = AuditRecord::follow(None, 1, "ab", "c", "d");
        let other = AuditRecord::follow(None, 1, "a", "bc", "d");
        assert_ne!(one.hash, other.hash);
    }
}
