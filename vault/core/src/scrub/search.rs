//! Searches one text directly, and in every view of every view of it.

use std::ops::ControlFlow;

use super::SCRUBBED;
use super::automaton::{Automaton, Match};
use super::escapes::Language;
use super::needles::{Needle, Watched, needles};
use super::runs::{Coding, Needed, Scratch};

/// Views on top of each other. Case, line breaks, blanks, zeros, quotes and backslashes are skipped
/// by the automaton and do not count as a view.
const MAX_DEPTH: usize = 2;
/// Bytes of a text that a byte of a needle may take with no view, one, and two on top of each
/// other. The longest common cases are zeros of UTF-32 (4), a reference such as `&#0115;` or a
/// number in a list on a line of its own (10), and one of these within the other (40).
const REACH: [usize; MAX_DEPTH + 1] = [4, 12, 40];
/// Additional bytes: line breaks and blanks within a short needle.
const SPARE_REACH: usize = 16;
/// The text has too many views to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the answer is written in so many encodings on top of each other that searching it for the credential takes too long"
)]
pub struct TooCostly;

/// State that the searches of one head or body share.
pub(super) struct Work {
    /// Bytes that may still be searched, in all views together.
    pub(super) steps_left: u64,
    /// Memory for the views of each depth.
    scratch: [Scratch; MAX_DEPTH],
}

impl Work {
    pub(super) fn new(steps: u64) -> Self {
        Self {
            steps_left: steps,
            scratch: Default::default(),
        }
    }
}

/// The position of a value in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The index of the value in the given list.
    pub(super) value: usize,
    /// See [`Needle::is_continuation`].
    pub(super) is_continuation: bool,
}

/// Complete matches of each value, by its index in the given list.
#[derive(Default)]
pub(super) struct Matches(Vec<u32>);

impl Matches {
    pub(super) fn add(&mut self, value: usize) {
        self.0.resize(self.0.len().max(value + 1), 0);
        self.0[value] += 1;
    }

    /// Takes the matches since the last call; shorter if the last values have none.
    pub(super) fn take(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.0)
    }
}

/// Finds the values of one call in every spelling. Calls that search for the same values share it.
pub struct Searcher {
    automaton: Automaton,
    needles: Vec<Needle>,
    needed: Needed,
    /// The replacement for a value: empty if a value is part of [`SCRUBBED`].
    marker: &'static str,
}

/// Why a search ends early.
enum Stop {
    Needle(usize),
    TooCostly,
}

impl Searcher {
    /// Makes a searcher for these values. `None`: all of them are too short to search for.
    pub fn new(watched: &[Watched<'_>]) -> Option<Self> {
        let needles = needles(watched);
        let bytes: Vec<&[u8]> = needles
            .iter()
            .map(|needle| needle.bytes.as_slice())
            .collect();
        let needed = Needed {
            shortest: bytes.iter().map(|bytes| bytes.len()).min()?,
            ascii: bytes.iter().all(|bytes| bytes.is_ascii()),
        };
        let automaton = Automaton::new(&bytes);
        let in_marker = automaton.first(SCRUBBED.as_bytes()).is_some();
        Some(Self {
            automaton,
            marker: if in_marker { "" } else { SCRUBBED },
            needles,
            needed,
        })
    }

    /// The replacement for a value.
    pub(super) fn marker(&self) -> &'static str {
        self.marker
    }

    /// Most bytes of a text that a needle may take under so many views.
    fn reach_under(&self, views: usize) -> usize {
        REACH[views] * self.automaton.longest + SPARE_REACH
    }

    /// Most bytes of a text that a needle may take.
    pub(super) fn reach(&self) -> usize {
        self.reach_under(MAX_DEPTH)
    }

    /// A value that the text contains, by its index in the given list.
    pub(super) fn value_in(
        &self,
        text: &[u8],
        work: &mut Work,
    ) -> Result<Option<usize>, TooCostly> {
        let needle = self.find(text, work)?;
        Ok(needle.map(|needle| self.needles[needle].value))
    }

    /// Whether the text contains a value.
    pub(super) fn holds(&self, text: &[u8], work: &mut Work) -> Result<bool, TooCostly> {
        Ok(self.find(text, work)?.is_some())
    }

    /// A needle that the text contains.
    fn find(&self, text: &[u8], work: &mut Work) -> Result<Option<usize>, TooCostly> {
        match self.views(text, &mut work.scratch, &mut work.steps_left) {
            ControlFlow::Continue(()) => Ok(None),
            ControlFlow::Break(Stop::Needle(needle)) => Ok(Some(needle)),
            ControlFlow::Break(Stop::TooCostly) => Err(TooCostly),
        }
    }

    /// Searches a text, and its views down to the depth for which there is memory.
    fn views(
        &self,
        text: &[u8],
        scratch: &mut [Scratch],
        steps_left: &mut u64,
    ) -> ControlFlow<Stop> {
        let Some(left) = steps_left.checked_sub(text.len() as u64) else {
            return ControlFlow::Break(Stop::TooCostly);
        };
        *steps_left = left;
        if let Some(needle) = self.automaton.find(text, self.reach()) {
            return ControlFlow::Break(Stop::Needle(needle));
        }
        let Some((own, deeper)) = scratch.split_last_mut() else {
            return ControlFlow::Continue(());
        };
        let views = deeper.len() + 1;
        let context = self.reach_under(views - 1);
        let search = &mut |part: &[u8]| self.views(part, deeper, steps_left);
        for language in Language::ALL {
            if views == MAX_DEPTH || !language.is_outermost() {
                language.view(text, context, &mut own.part, search)?;
            }
        }
        for coding in Coding::ALL {
            coding.view(text, self.needed, own, search)?;
        }
        ControlFlow::Continue(())
    }

    /// A value in the text, with its position. The views do not record their origin: a match in one
    /// is located by searching ever shorter parts of the text, which is cheap enough for a complete
    /// match.
    pub(super) fn locate(&self, text: &[u8], work: &mut Work) -> Result<Option<Found>, TooCostly> {
        let Some(needle) = self.find(text, work)? else {
            return Ok(None);
        };
        if let Some(Match { needle, from, to }) = self.automaton.first(text) {
            return Ok(Some(self.found(from, to, needle)));
        }
        // Invariant: the text up to `to` contains a needle.
        let (mut without, mut to) = (0, text.len());
        while to - without > 1 {
            let middle = without.midpoint(to);
            if self.holds(&text[..middle], work)? {
                to = middle;
            } else {
                without = middle;
            }
        }
        // Invariant: the text from `from` to `to` contains a needle.
        let (mut from, mut without) = (0, to);
        let near = to.saturating_sub(self.reach());
        if self.holds(&text[near..to], work)? {
            from = near;
        }
        while without - from > 1 {
            let middle = from.midpoint(without);
            if self.holds(&text[middle..to], work)? {
                from = middle;
            } else {
                without = middle;
            }
        }
        let needle = self.find(&text[from..to], work)?.unwrap_or(needle);
        Ok(Some(self.found(from, to, needle)))
    }

    fn found(&self, from: usize, to: usize, needle: usize) -> Found {
        let Needle {
            value,
            is_continuation,
            ..
        } = self.needles[needle];
        Found {
            from,
            to,
            value,
            is_continuation,
        }
    }
}
