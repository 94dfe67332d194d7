//! Searches for many byte strings at once. The cost depends on the number of bytes and on which of
//! them are skipped, not on the needles' bytes: each byte is one step in a table, there is no
//! prefilter, and matches are looked for only after the last byte.

use zeroize::Zeroizing;

/// Texts from this size on are searched in [`LANES`] parts at a time, bytes. Each step depends on
/// the one before, so several parts in parallel take hardly longer than one.
const MIN_LANES_BYTES: usize = 2048;
/// Parts of a text that are searched in parallel.
const LANES: usize = 8;
/// The class of skipped bytes: in every state they lead to the same state.
const SKIPPED_CLASS: u8 = 0;
/// The class of bytes that occur in no needle.
const OTHER_CLASS: u8 = 1;

/// Whether a byte is skipped, in a needle and in a text. Servers put such bytes between the bytes
/// of a value (line breaks of folded text, the zeros of UTF-16, the quotes and backslashes of JSON
/// at any depth), and `+` stands for a space in a form.
pub(super) const fn is_skipped(byte: u8) -> bool {
    matches!(
        byte,
        0..=b' ' | 0x7f | b'"' | b'\'' | b'+' | b',' | b'-' | b':' | b'\\'
    )
}

/// A complete match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Match {
    /// The index of the needle.
    pub(super) needle: usize,
    /// Start of the match in the text.
    pub(super) from: usize,
    /// End of the match.
    pub(super) to: usize,
}

/// The Aho-Corasick automaton of some needles, as a table. ASCII letters match in any case. A state
/// in which a needle is complete is never left.
pub(super) struct Automaton {
    classes: [u8; 256],
    /// The next state by state and class. A state's number is the start of its row.
    table: Zeroizing<Vec<u32>>,
    /// The number of the first state in which a needle is complete; the state of needle `n` is `n`
    /// rows further.
    first_complete: u32,
    stride: usize,
    /// Number of bytes of each needle that are not skipped.
    lengths: Vec<usize>,
    /// Number of bytes of the longest needle.
    pub(super) longest: usize,
}

impl Automaton {
    /// Makes the automaton for needles that are not empty and contain no skipped byte and no
    /// upper-case letter.
    pub(super) fn new(needles: &[&[u8]]) -> Self {
        let (classes, stride) = classes(needles);
        let most_states = 1 + needles.iter().map(|needle| needle.len()).sum::<usize>();
        let mut trie = Trie::new(stride, most_states);
        let mut complete: Vec<Option<usize>> = vec![None];
        for (number, needle) in needles.iter().enumerate() {
            let last = needle.iter().fold(0, |state, byte| {
                trie.insert(state, classes[usize::from(*byte)], &mut complete)
            });
            complete[last].get_or_insert(number);
        }
        let states = complete.len();
        let order = trie.link(&mut complete);
        let row = |state: usize| u32::try_from(state * stride).expect("the table is bounded");
        let mut table = Zeroizing::new(vec![0; (states + needles.len()) * stride]);
        let number = |state: usize| row(complete[state].map_or(state, |needle| states + needle));
        for state in order {
            let own = &mut table[state * stride..][..stride];
            for (class, next) in own.iter_mut().enumerate() {
                *next = number(trie.next(state, class));
            }
            own[usize::from(SKIPPED_CLASS)] = row(state);
        }
        for needle in 0..needles.len() {
            table[(states + needle) * stride..][..stride].fill(row(states + needle));
        }
        Self {
            classes,
            table,
            first_complete: row(states),
            stride,
            lengths: needles.iter().map(|needle| needle.len()).collect(),
            longest: needles
                .iter()
                .map(|needle| needle.len())
                .fold(0, usize::max),
        }
    }

    fn step(&self, state: u32, byte: u8) -> u32 {
        self.table[state as usize + usize::from(self.classes[usize::from(byte)])]
    }

    fn run(&self, state: u32, text: &[u8]) -> u32 {
        text.iter()
            .fold(state, |state, byte| self.step(state, *byte))
    }

    fn needle(&self, state: u32) -> Option<usize> {
        let rows = state.checked_sub(self.first_complete)?;
        Some(rows as usize / self.stride)
    }

    /// The index of a needle that the text contains. A needle that spans more than `reach` bytes,
    /// because of many skipped bytes in it, may be missed in a long text.
    pub(super) fn find(&self, text: &[u8], reach: usize) -> Option<usize> {
        let part = text.len() / LANES;
        if text.len() < MIN_LANES_BYTES || part < self.longest {
            return self.needle(self.run(0, text));
        }
        let lanes: [&[u8]; LANES] = std::array::from_fn(|lane| &text[lane * part..][..part]);
        let mut states = [0; LANES];
        for at in 0..part {
            for (state, lane) in states.iter_mut().zip(lanes) {
                *state = self.step(*state, lane[at]);
            }
        }
        // The last part is searched to the end, and each other part continues into the next ones,
        // for as many bytes as the longest needle has. Skipped bytes do not count: a server may put
        // any number of them between two bytes.
        let mut ends = states.into_iter().enumerate().map(|(lane, state)| {
            let from = (lane + 1) * part;
            let to = (from + reach).min(text.len());
            let own = (from..to).filter(|at| !is_skipped(text[*at]));
            let end = match lane + 1 {
                LANES => text.len(),
                _ => own.take(self.longest).last().map_or(from, |at| at + 1),
            };
            self.needle(self.run(state, &text[from..end]))
        });
        ends.find_map(|needle| needle)
    }

    /// The first needle that ends in the text, and its position.
    pub(super) fn first(&self, text: &[u8]) -> Option<Match> {
        let mut state = 0;
        let (last, needle) = text.iter().enumerate().find_map(|(at, byte)| {
            state = self.step(state, *byte);
            Some((at, self.needle(state)?))
        })?;
        let own = (0..=last).rev().filter(|at| !is_skipped(text[*at]));
        let from = own.take(self.lengths[needle]).last()?;
        Some(Match {
            needle,
            from,
            to: last + 1,
        })
    }
}

/// The class of each byte, and the number of classes.
fn classes(needles: &[&[u8]]) -> ([u8; 256], usize) {
    let mut classes = [OTHER_CLASS; 256];
    let mut count = OTHER_CLASS + 1;
    for byte in needles.iter().copied().flatten() {
        let class = &mut classes[usize::from(*byte)];
        if *class == OTHER_CLASS {
            *class = count;
            // There are fewer classes than bytes, because some bytes are skipped, so the count
            // cannot overflow.
            count += 1;
        }
    }
    for byte in 0..=u8::MAX {
        if is_skipped(byte) {
            classes[usize::from(byte)] = SKIPPED_CLASS;
        } else if byte.is_ascii_uppercase() {
            classes[usize::from(byte)] = classes[usize::from(byte.to_ascii_lowercase())];
        }
    }
    (classes, usize::from(count))
}

/// The needles as a tree; with its failure links, a complete automaton.
struct Trie {
    next: Zeroizing<Vec<u32>>,
    stride: usize,
}

impl Trie {
    /// Makes a tree with capacity for so many states, because growing would leave copies of the
    /// needles behind.
    fn new(stride: usize, most_states: usize) -> Self {
        let mut next = Zeroizing::new(Vec::with_capacity(most_states * stride));
        next.resize(stride, 0);
        Self { next, stride }
    }

    fn next(&self, state: usize, class: usize) -> usize {
        self.next[state * self.stride + class] as usize
    }

    /// The state after this one and a byte of this class; it is made if it does not exist.
    fn insert(&mut self, state: usize, class: u8, complete: &mut Vec<Option<usize>>) -> usize {
        let at = state * self.stride + usize::from(class);
        if self.next[at] == 0 {
            self.next[at] = u32::try_from(complete.len()).expect("the needles are bounded");
            complete.push(None);
            self.next.resize(complete.len() * self.stride, 0);
        }
        self.next[at] as usize
    }

    /// Completes the tree, level by level: a missing transition is that of the longest suffix that
    /// is in the tree. Returns the states in that order.
    fn link(&mut self, complete: &mut [Option<usize>]) -> Vec<usize> {
        let mut suffixes = vec![0; complete.len()];
        let mut order = vec![0];
        let mut done = 0;
        while let Some(state) = order.get(done).copied() {
            done += 1;
            let suffix = suffixes[state];
            if complete[state].is_none() {
                complete[state] = complete[suffix];
            }
            for class in 0..self.stride {
                let at = state * self.stride + class;
                let of_suffix = if state == 0 {
                    0
                } else {
                    self.next[suffix * self.stride + class]
                };
                if self.next[at] == 0 {
                    self.next[at] = of_suffix;
                } else {
                    let next = self.next[at] as usize;
                    suffixes[next] = of_suffix as usize;
                    order.push(next);
                }
            }
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &[u8]) -> Vec<u8> {
        let kept = text.iter().filter(|byte| !is_skipped(**byte));
        kept.map(u8::to_ascii_lowercase).collect()
    }

    #[test]
    fn a_needle_is_found_in_each_part_and_across_their_edges() {
        let automaton = Automaton::new(&[b"hunter2hunter2"]);
        for at in 0..4096 - 14 {
            let mut text = vec![b'.'; 4096];
            text[at..at + 14].copy_from_slice(b"hunter2HUNTER2");
            assert_eq!(automaton.find(&text, 64), Some(0), "{at}");
            let found = automaton.first(&text);
            assert_eq!(
                found.map(|found| (found.from, found.to)),
                Some((at, at + 14))
            );
            text[at + 7] = b'x';
            assert_eq!(automaton.find(&text, 64), None, "{at}");
        }
    }

    #[test]
    fn a_short_needle_is_found_behind_the_last_part_of_a_text_of_any_length() {
        let automaton = Automaton::new(&[b"abcd"]);
        for length in MIN_LANES_BYTES..MIN_LANES_BYTES + 2 * LANES {
            for at in length - 3 * LANES..length - 3 {
                let mut text = vec![b'.'; length];
                text[at..at + 4].copy_from_slice(b"abcd");
                assert_eq!(automaton.find(&text, 32), Some(0), "{at} of {length}");
            }
        }
    }

    #[test]
    fn skipped_bytes_belong_to_the_match_only_inside_of_it() {
        let automaton = Automaton::new(&[b"abcd"]);
        let found = automaton.first(b"x \"a\r\n b\\\"c\0D\" y").unwrap();
        assert_eq!((found.from, found.to), (3, 13));
    }

    proptest! {
        #[test]
        fn the_automaton_finds_what_a_plain_search_finds(
            needles in proptest::collection::vec("[ab]{1,5}", 1..5),
            text in "[abAB\\-. ]{0,60}",
        ) {
            let bytes: Vec<&[u8]> = needles.iter().map(String::as_bytes).collect();
            let automaton = Automaton::new(&bytes);
            let plain = canonical(text.as_bytes());
            let holds = |needle: &&[u8]| plain.windows(needle.len()).any(|part| part == *needle);
            let expected = bytes.iter().any(holds);
            prop_assert_eq!(automaton.find(text.as_bytes(), 64).is_some(), expected);
            if let Some(found) = automaton.first(text.as_bytes()) {
                let part = canonical(&text.as_bytes()[found.from..found.to]);
                prop_assert_eq!(part, bytes[found.needle]);
            }
        }
    }
}
