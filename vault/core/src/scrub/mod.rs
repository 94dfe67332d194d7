//! What of an answer the function may see: nothing that holds a value that was sent, or that the
//! function may send to that host, however servers usually write it.
//!
//! A text is searched as it is and in *views* of it (`escapes`, `runs`): in each view one
//! language of escapes or one coding is decoded, and each view is searched in the same way once
//! more. `automaton` searches one view. Only a complete match has an effect: the scrubber holds
//! bytes back by their position alone, and the time that it takes depends on the text and on the
//! lengths of the values, not on how much of a value the text begins with. A function that sends
//! guesses through an upstream that returns them learns that a guess is wrong, and nothing of how
//! wrong it is. Complete matches are counted; [`crate::reflection`] decides what follows.
//!
//! A server may write a value in other ways (reverse it, encrypt or compress it, hand it out in
//! pieces): the declared host, method and path are the defence.

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

/// What stands where a value stood, unless a value is part of it.
pub const SCRUBBED: &str = "[scrubbed]";
/// Bytes that may be searched, in all views together, for each byte of a body. Texts in one
/// encoding take less than 10; a vault's time is not worth more.
const MAX_STEPS_PER_BYTE: u64 = 64;
/// Bytes that may be searched beyond that, for complete matches to be located.
const SPARE_STEPS: u64 = 16 * 1024 * 1024;
/// Bytes that may be searched for a head: 64 times the largest that a channel carries. Some
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
    /// For one head.
    pub fn new(searcher: &'a Searcher) -> Self {
        Self {
            searcher,
            work: Work::new(MAX_HEAD_STEPS),
            matches: Matches::default(),
        }
    }

    /// Whether these bytes hold a value.
    ///
    /// # Errors
    /// The head must be refused.
    pub fn finds(&mut self, bytes: &[u8]) -> Result<bool, TooCostly> {
        let found = self.searcher.value_in(bytes, &mut self.work)?;
        if let Some(value) = found {
            self.matches.add(value);
        }
        Ok(found.is_some())
    }

    /// The value of a header field that the function may see.
    ///
    /// # Errors
    /// The head must be refused.
    pub fn scrub(&mut self, value: Bytes) -> Result<Bytes, TooCostly> {
        Ok(if self.finds(&value)? {
            Bytes::from_static(self.searcher.marker().as_bytes())
        } else {
            value
        })
    }

    /// How often each value has been found since this was last asked, by its place in the list that
    /// was given; shorter where the last ones have not been found.
    pub fn take_matches(&mut self) -> Vec<u32> {
        self.matches.take()
    }
}
