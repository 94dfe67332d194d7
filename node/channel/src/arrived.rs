//! Data that has arrived for one stream and has not been read yet.

use std::collections::VecDeque;
use std::task::Waker;

use bytes::{Bytes, BytesMut};
use casemate_wire::{Fields, ResponseHead};

/// A piece below this is copied together with its neighbours, bytes.
const SMALL_BYTES: usize = 8 * 1024;

/// Bytes that have arrived for one stream and were not read yet. Bounded by the channel's credit.
#[derive(Debug, Default)]
pub(crate) struct Arrived {
    pub(crate) head: Option<(ResponseHead, bool)>,
    data: VecDeque<Bytes>,
    /// Small pieces since the last large one, copied together, because each would otherwise keep a
    /// whole read buffer alive.
    tail: BytesMut,
    pub(crate) end: bool,
    pub(crate) trailers: Option<Fields>,
    pub(crate) reset: Option<u16>,
    pub(crate) reading: Option<Waker>,
    pub(crate) writing: Option<Waker>,
    /// Number of handles that still use it.
    pub(crate) handles: u8,
}

impl Arrived {
    pub(crate) fn put(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL_BYTES {
            self.tail.extend_from_slice(&bytes);
        }
        if bytes.len() >= SMALL_BYTES || self.tail.len() >= SMALL_BYTES {
            if !self.tail.is_empty() {
                self.data.push_back(self.tail.split().freeze());
            }
            if bytes.len() >= SMALL_BYTES {
                self.data.push_back(bytes);
            }
        }
    }

    /// Takes the next piece.
    pub(crate) fn take(&mut self) -> Option<Bytes> {
        let tail = &mut self.tail;
        self.data
            .pop_front()
            .or_else(|| (!tail.is_empty()).then(|| tail.split().freeze()))
    }

    /// Whether everything that arrived was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty()
    }
}
