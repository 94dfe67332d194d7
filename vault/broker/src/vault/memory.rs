//! The encoding of the rollback memory: frames of rows, each a JSON list.

use casemate_trust::judge::{Memory, MemoryRow};
use casemate_vault_store::StoredMemory;

/// Rows in a frame of the base.
const FRAME_ROWS: usize = 256;

/// Encodes one frame.
pub(super) fn frame(rows: &[MemoryRow]) -> Vec<u8> {
    serde_json::to_vec(rows).expect("names and numbers are JSON")
}

/// Encodes the whole memory, a frame at a time.
pub(super) fn frames(memory: &Memory) -> impl ExactSizeIterator<Item = Vec<u8>> {
    let mut rows = memory.rows();
    let count = memory.rows().count().div_ceil(FRAME_ROWS);
    (0..count).map(move |_| frame(&rows.by_ref().take(FRAME_ROWS).collect::<Vec<_>>()))
}

/// Decodes the stored memory of this or an earlier program; `None` if it is malformed.
pub(super) fn read(stored: &StoredMemory) -> Option<Memory> {
    match stored {
        StoredMemory::Whole(bytes) => serde_json::from_slice(bytes).ok(),
        StoredMemory::Frames(frames) => {
            let mut rows = Vec::new();
            for frame in frames {
                rows.extend(serde_json::from_slice::<Vec<MemoryRow>>(frame).ok()?);
            }
            Memory::from_rows(rows)
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::{Digest, FleetId, TenantId};
    use casemate_trust::judge::{FreshnessSeen, MAX_TENANTS, Seen, TenantSeen};
    use casemate_vault_store::MAX_FILE_BYTES;
    use zeroize::Zeroizing;

    use super::*;

    #[test]
    fn the_memory_of_as_many_tenants_as_are_ever_remembered_can_be_written() {
        let seen = Seen {
            version: u64::MAX,
            digest: Digest([255; 32]),
        };
        let tenant = TenantSeen {
            tenant: seen,
            manifest: Some(seen),
            freshness: Some(FreshnessSeen {
                version: u64::MAX,
                issued: u64::MAX,
                digest: Digest([255; 32]),
            }),
        };
        let mut memory = Memory::new(FleetId([255; 32]));
        for number in 0..MAX_TENANTS {
            let mut id = [255; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            memory.put(MemoryRow::Tenant(TenantId(id), tenant));
        }
        // A log may grow by as much again.
        let bytes: usize = frames(&memory).map(|frame| frame.len() + 64).sum();
        assert!(bytes < MAX_FILE_BYTES / 2, "{bytes}");
    }

    #[test]
    fn what_is_written_is_read_again_and_nothing_else() {
        let mut memory = Memory::new(FleetId([1; 32]));
        for number in 0..3 * FRAME_ROWS {
            let seen = Seen {
                version: number as u64,
                digest: Digest([2; 32]),
            };
            let tenant = TenantSeen {
                tenant: seen,
                manifest: None,
                freshness: None,
            };
            let id = Digest::of(&number.to_be_bytes());
            memory.put(MemoryRow::Tenant(TenantId(id.0), tenant));
        }
        let mut written: Vec<_> = frames(&memory).map(Zeroizing::new).collect();
        assert_eq!(
            read(&StoredMemory::Frames(written.clone())),
            Some(memory.clone())
        );
        let whole = serde_json::to_vec(&memory).unwrap();
        assert_eq!(
            read(&StoredMemory::Whole(Zeroizing::new(whole))),
            Some(memory)
        );
        // Without the fleet's row, or with a malformed one.
        written.remove(0);
        assert_eq!(read(&StoredMemory::Frames(written)), None);
        let other = vec![Zeroizing::new(b"{}".to_vec())];
        assert_eq!(read(&StoredMemory::Frames(other)), None);
    }
}
