//! Bytes of a body on their way to the function.

use bytes::Bytes;

use super::memory::ARRIVING;

/// Pieces that are handed over together. What waits so counts against the function's limit as its own buffers do.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    all: Vec<Bytes>,
    len: usize,
}

impl Pieces {
    /// One more; false when the function may not have so much.
    pub(crate) fn push(&mut self, piece: Bytes) -> bool {
        if !ARRIVING.take(piece.len()) {
            return false;
        }
        self.len += piece.len();
        self.all.push(piece);
        true
    }

    /// Bytes of all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.all.iter().map(|piece| &**piece)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        ARRIVING.give_back(self.len);
    }
}
