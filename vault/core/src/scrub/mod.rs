//! Decides which part of an answer the function may see: nothing that contains a value that was
//! sent, or that the function may send to that host, in any of the usual spellings.
//!
//! A text is searched directly and in *views* of it (`escapes`, `runs`): each view decodes the
//! escapes of one language or one coding, and is searched in the same way once more. `automaton`
//! searches one view. Only a complete match has an effect: the scrubber holds bytes back by their
//! position alone, and its time depends on the text and on the lengths of the values, not on how
//! much of a value the text begins with. A function that sends guesses through an echoing upstream
//! learns that a guess is wrong, but not how close it is. Complete matches are counted;
//! [`crate::reflection`] decides the consequence.
//!
//! A server may write a value in other ways (reverse it, encrypt or compress it, return it in
//! pieces): against these, the declared host, method and path are the defence.

mod automaton;
mod body;
mod entities;
mod escapes;
mod needles;
mod runs;
mod search;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use body::{BodyScrubber, MAX_BLOCK_BYTES};
pub use needles::Watched;
pub use search::{Searcher, TooCostly};

use search::{Matches, Work};

/// The replacement for a value, unless a value is part of it.
pub const SCRUBBED: &str = "[scrubbed]";
/// Bytes that may be searched, in all views together, for each byte of a body. Texts in one
/// encoding take less than 10; more would cost other tenants the vault's time.
const MAX_STEPS_PER_BYTE: u64 = 64;
/// Bytes that may be searched in addition, to locate complete matches.
const SPARE_STEPS: u64 = 16 * 1024 * 1024;
/// Bytes that may be searched for a head: 64 times the largest head of a channel. This takes some
/// milliseconds.
const MAX_HEAD_STEPS: u64 = MAX_STEPS_PER_BYTE * 48 * 1024;

/// Scrubs the fields of one head. All fields share one budget; otherwise many costly fields would
/// multiply it.
pub struct HeadScrubber<'a> {
    searcher: &'a Searcher,
    work: Work,
    matches: Matches,
}

impl<'a> HeadScrubber<'a> {
    /// Makes a scrubber for one head.
    pub fn new(searcher: &'a Searcher) -> Self {
        Self {
            searcher,
            work: Work::new(MAX_HEAD_STEPS),
            matches: Matches::default(),
        }
    }

    /// Whether these bytes contain a value.
    ///
    /// # Errors
    /// The answer must be refused.
    pub fn finds(&mut self, bytes: &[u8]) -> Result<bool, TooCostly> {
        let found = self.searcher.value_in(bytes, &mut self.work)?;
        if let Some(value) = found {
            self.matches.add(value);
        }
        Ok(found.is_some())
    }

    /// The visible value of a header field.
    ///
    /// # Errors
    /// The answer must be refused.
    pub fn scrub(&mut self, value: Bytes) -> Result<Bytes, TooCostly> {
        Ok(if self.finds(&value)? {
            Bytes::from_static(self.searcher.marker().as_bytes())
        } else {
            value
        })
    }

    /// The matches of each value since the last call, by its index in the given list; shorter if
    /// the last values have no match.
    pub fn take_matches(&mut self) -> Vec<u32> {
        self.matches.take()
    }
}
