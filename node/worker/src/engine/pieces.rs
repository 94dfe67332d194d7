//! Bytes of a body on their way to the function.

use std::cell::Cell;
use std::fmt;

use super::memory::ARRIVING;

/// Pieces that are delivered as one. They are copied here, so that none keeps a channel's whole
/// read buffer alive, and their memory counts against the function's limit like its own buffers.
#[derive(Default)]
pub(crate) struct Pieces {
    bytes: Cell<Vec<u8>>,
    len: usize,
    /// The counted size: the capacity of `bytes`.
    counted: Cell<usize>,
}

impl Pieces {
    /// Adds a piece; false when it would exceed the function's limit.
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        let bytes = self.bytes.get_mut();
        let (capacity, needed) = (bytes.capacity(), bytes.len() + piece.len());
        if needed > capacity {
            let grown = [needed.max(2 * capacity), needed]
                .into_iter()
                .find(|grown| ARRIVING.take(grown - capacity));
            let Some(grown) = grown else { return false };
            bytes.reserve_exact(grown - bytes.len());
            *self.counted.get_mut() += grown - capacity;
        }
        bytes.extend_from_slice(piece);
        self.len = needed;
        true
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Number of bytes of allocated memory.
    pub(super) fn capacity(&self) -> usize {
        self.counted.get()
    }

    /// Takes the bytes, which are no longer counted here.
    pub(super) fn take(&self) -> Vec<u8> {
        ARRIVING.give_back(self.counted.take());
        self.bytes.take()
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        ARRIVING.give_back(self.counted.get());
    }
}

/// Does not print the bytes, which belong to a caller or an upstream.
impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::SPARE_HEAP_BYTES;
    use super::*;

    #[test]
    fn pieces_count_until_they_are_taken_or_dropped() {
        let mut pieces = Pieces::default();
        assert!(pieces.push(&[1; 100]) && pieces.push(&[2]));
        assert_eq!((pieces.len(), pieces.capacity()), (101, 200));
        assert!(!ARRIVING.has_room(SPARE_HEAP_BYTES - 199));
        assert!(!pieces.push(&vec![0; SPARE_HEAP_BYTES]), "too much");
        assert!(
            pieces.push(&vec![0; SPARE_HEAP_BYTES - 101]),
            "no more than fits"
        );
        let bytes = pieces.take();
        assert_eq!((&bytes[..2], bytes.len()), (&[1, 1][..], SPARE_HEAP_BYTES));
        assert!(ARRIVING.has_room(SPARE_HEAP_BYTES));
        pieces = Pieces::default();
        assert!(pieces.push(&[3; 10]));
        assert!(!ARRIVING.has_room(SPARE_HEAP_BYTES));
        drop(pieces);
        assert!(ARRIVING.has_room(SPARE_HEAP_BYTES));
    }
}
