//! Scrubs a body on its way to the function. How much is held back, and for how long, depends on
//! the number of bytes and on blank lines alone.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::search::{Found, Matches, Searcher, TooCostly, Work};
use super::{MAX_STEPS_PER_BYTE, SPARE_STEPS};

/// Largest part of a body that is searched at a time, bytes. Pass a larger piece in parts of this
/// size, and yield in between.
pub const MAX_BLOCK_BYTES: usize = 64 * 1024;

/// Scrubs a body that comes in pieces. The delivery of an answer owns it, pushes each piece, and
/// finishes it at the end.
pub struct BodyScrubber {
    searcher: Arc<Searcher>,
    held: BytesMut,
    work: Work,
    /// Complete matches of each value.
    matches: Matches,
}

impl BodyScrubber {
    /// Makes a scrubber for one body. Bodies that are searched for the same values may share a
    /// searcher.
    pub fn new(searcher: impl Into<Arc<Searcher>>) -> Self {
        Self {
            searcher: searcher.into(),
            held: BytesMut::new(),
            work: Work::new(SPARE_STEPS),
            matches: Matches::default(),
        }
    }

    /// The visible text after this piece: everything up to the last blank line, which no spelling
    /// of a value contains; or, once there are twice as many bytes as the longest spelling takes,
    /// everything except that many.
    ///
    /// # Errors
    /// The answer must be refused.
    pub fn push(&mut self, piece: &[u8]) -> Result<Bytes, TooCostly> {
        self.work.steps_left += piece.len() as u64 * MAX_STEPS_PER_BYTE;
        let mut visible = BytesMut::new();
        for block in piece.chunks(MAX_BLOCK_BYTES) {
            let new = self.held.len().saturating_sub(3);
            self.held.extend_from_slice(block);
            if let Some(end) = blank_line(&self.held[new..]) {
                let rest = self.held.split_off(new + end);
                visible.extend_from_slice(&self.scrub()?);
                self.held = rest;
            }
            let reach = self.searcher.reach();
            if self.held.len() >= 2 * reach {
                let mut text = self.scrub()?;
                self.held = text.split_off(text.len().saturating_sub(reach));
                visible.extend_from_slice(&text);
            }
        }
        Ok(visible.freeze())
    }

    /// The rest, when the body has ended.
    ///
    /// # Errors
    /// The answer must be refused.
    pub fn finish(&mut self) -> Result<Bytes, TooCostly> {
        Ok(self.scrub()?.freeze())
    }

    /// The matches of each value since the last call, by its index in the given list; shorter if
    /// the last values have no match.
    pub fn take_matches(&mut self) -> Vec<u32> {
        self.matches.take()
    }

    /// Number of steps left.
    #[cfg(test)]
    pub(super) fn left(&self) -> u64 {
        self.work.steps_left
    }

    /// Sets the initial number of steps.
    #[cfg(test)]
    pub(super) fn allow(&mut self, steps: u64) {
        self.work.steps_left = steps;
    }

    /// Takes the held bytes, with every value in them replaced.
    fn scrub(&mut self) -> Result<BytesMut, TooCostly> {
        let mut text = self.held.split();
        while let Some(found) = self.searcher.locate(&text, &mut self.work)? {
            let Found { from, to, .. } = found;
            let before = &text[..from];
            let marker = self.searcher.marker();
            let goes_on = found.is_continuation && before.ends_with(marker.as_bytes());
            let replacement = if goes_on { "" } else { marker };
            let mut scrubbed = BytesMut::with_capacity(text.len() + marker.len());
            scrubbed.extend_from_slice(before);
            scrubbed.extend_from_slice(replacement.as_bytes());
            scrubbed.extend_from_slice(&text[to..]);
            text = scrubbed;
            if !goes_on {
                self.matches.add(found.value);
            }
        }
        Ok(text)
    }
}

/// The end of the last blank line: two line breaks of one kind, as between server-sent events
/// (HTML, section 9.2.5).
fn blank_line(text: &[u8]) -> Option<usize> {
    let ends_line = |at: usize| {
        let before = &text[..at];
        match text[at] {
            b'\n' => before.ends_with(b"\n") || before.ends_with(b"\r\n\r"),
            _ => before.ends_with(b"\r"),
        }
    };
    let at = memchr::memrchr2_iter(b'\n', b'\r', text).find(|at| ends_line(*at))?;
    Some(at + 1)
}
