//! What commands and events have in common: the layout of a packet.

/// Length of every event and of every command but `Command::Kill`, in bytes.
pub const PACKET_BYTES: usize = 64;

/// Children alive at a time. Launch refuses more, because each costs it an entry in its table and a
/// user id.
pub const CHILDREN_MAX: usize = 4096;

/// Length of a note about a child, in bytes: a release's digest.
pub const NOTE_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"CSMT";
/// Position of a note in a packet.
pub(super) const NOTE: std::ops::Range<usize> = 28..28 + NOTE_BYTES;

/// The bytes are not a packet of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a packet of the launch protocol")]
pub struct Malformed;

/// The fields that packets have in common, before validation.
pub(super) struct Fields {
    pub(super) kind: u8,
    pub(super) which: u8,
    pub(super) id: u64,
    pub(super) first: u32,
    pub(super) second: u32,
    pub(super) third: u32,
    pub(super) note: [u8; NOTE_BYTES],
}

impl Fields {
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; PACKET_BYTES] = bytes.try_into().map_err(|_| Malformed)?;
        if bytes[..4] != MAGIC {
            return Err(Malformed);
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let id = u64::from(word(8)) | u64::from(word(12)) << 32;
        let mut note = [0; NOTE_BYTES];
        note.copy_from_slice(&bytes[NOTE]);
        Ok(Self {
            kind: bytes[4],
            which: bytes[5],
            id,
            first: word(16),
            second: word(20),
            third: word(24),
            note,
        })
    }
}

pub(super) fn packet(kind: u8, which: u8, id: u64, numbers: [u32; 3]) -> [u8; PACKET_BYTES] {
    let mut bytes = [0; PACKET_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = kind;
    bytes[5] = which;
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    for (place, number) in bytes[16..28].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

pub(super) fn noted(mut packet: [u8; PACKET_BYTES], note: [u8; NOTE_BYTES]) -> [u8; PACKET_BYTES] {
    packet[NOTE].copy_from_slice(&note);
    packet
}
