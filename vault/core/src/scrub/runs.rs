//! Views of text in a coding without escapes: base64, base32, hexadecimal and lists of numbers.
//! Such text is recognised as a run of bytes of the coding's alphabet that is long enough for the
//! shortest needle.

use std::ops::{ControlFlow, Range};

use memchr::memchr_iter;
use zeroize::Zeroizing;

use super::escapes::reserve;

/// Blanks that are examined to decide whether they indent a line.
const MAX_INDENT_BYTES: usize = 64;
/// Bytes in a line of a dump by `xxd`, `hexdump -C` or `od`.
const DUMP_LINE_BYTES: usize = 16;

/// What the views of one text may assume about the needles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needed {
    /// Bytes of the shortest needle.
    pub(super) shortest: usize,
    /// Whether all needles are ASCII. Their encoding is then ASCII too, and most results of a wrong
    /// decoding are not, and need not be searched.
    pub(super) ascii: bool,
}

/// Codings of bytes as text that share an alphabet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// Base64 (RFC 4648, sections 4 and 5) and base32 (section 6, in either case), each at each
    /// alignment.
    Letters,
    /// Two hexadecimal digits a byte, also apart from each other, and `0x73, 0x6b`; and decimal
    /// numbers in a list, such as `[115, 107]`.
    Numbers,
    /// Lines of a hexadecimal dump, with their offsets and their text column.
    Dump,
}

/// Whether a byte belongs to a run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Member {
    No,
    Yes,
    /// A blank belongs to it where it indents a line.
    Indent,
}

type Members = [Member; 256];

const fn members(coding: Coding) -> Members {
    let mut members = [Member::No; 256];
    let mut byte = 0u8;
    loop {
        let own = match coding {
            Coding::Letters => {
                byte.is_ascii_alphanumeric()
                    || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'\\' | b'\r' | b'\n' | 0)
            }
            Coding::Numbers | Coding::Dump => byte.is_ascii_hexdigit() || is_between(byte),
        };
        if own {
            members[byte as usize] = Member::Yes;
        } else if matches!(byte, b' ' | b'\t') {
            members[byte as usize] = Member::Indent;
        }
        if byte == u8::MAX {
            return members;
        }
        byte += 1;
    }
}

/// Whether a byte separates the numbers of a list.
const fn is_between(byte: u8) -> bool {
    matches!(
        byte,
        0 | b'\t'
            | b'\n'
            | b'\r'
            | b' '
            | b'"'
            | b'\''
            | b'('
            | b')'
            | b'+'
            | b','
            | b'-'
            | b':'
            | b';'
            | b'X'
            | b'['
            | b'\\'
            | b']'
            | b'x'
            | b'{'
            | b'}'
    )
}

const LETTERS: Members = members(Coding::Letters);
const NUMBERS: Members = members(Coding::Numbers);

/// Memory for decoded bytes. It is reused, so that it need not be wiped as often.
#[derive(Default)]
pub(super) struct Scratch {
    /// The decoded bytes to search.
    pub(super) part: Zeroizing<Vec<u8>>,
    letters: Zeroizing<Vec<u8>>,
    numbers: Zeroizing<Vec<u16>>,
}

/// Receives decoded parts of a text and searches them.
type Search<'a, B> = &'a mut dyn FnMut(&[u8]) -> ControlFlow<B>;

impl Coding {
    pub(super) const ALL: [Self; 3] = [Self::Letters, Self::Numbers, Self::Dump];

    /// Passes the possible decodings of a text to `search`, part by part.
    pub(super) fn view<B>(
        self,
        text: &[u8],
        needed: Needed,
        scratch: &mut Scratch,
        search: Search<'_, B>,
    ) -> ControlFlow<B> {
        let Scratch {
            part,
            letters,
            numbers,
        } = scratch;
        let shortest = needed.shortest;
        match self {
            Self::Letters => members_in(text, &LETTERS, (shortest * 8).div_ceil(6), |run| {
                collect(run, &VALUES_64, letters);
                if letters.len() < (shortest * 8).div_ceil(6) {
                    return ControlFlow::Continue(());
                }
                Base64::each_alignment(letters, needed, part, search)?;
                // Letters and digits that are not in base32 split a run into several runs of
                // base32.
                members_in(run, &LETTERS_32, (shortest * 8).div_ceil(5), |run| {
                    collect(run, &VALUES_32, letters);
                    Base32::each_alignment(letters, needed, part, search)
                })
            }),
            Self::Numbers => members_in(text, &NUMBERS, 2 * shortest - 1, |run| {
                hex_digits(run, letters);
                if letters.len() < shortest {
                    return ControlFlow::Continue(());
                }
                Base16::each_alignment(letters, needed, part, search)?;
                decimals(run, numbers);
                // In `{"0":115,"1":107}` every second number counts.
                for (skip, step) in [(0, 1), (0, 2), (1, 2)] {
                    let numbers = numbers.get(skip..).unwrap_or(&[]);
                    listed(numbers, step, needed, part, search)?;
                }
                ControlFlow::Continue(())
            }),
            Self::Dump => dump(text, needed, part, search),
        }
    }
}

/// Calls `each` with every run of members in a text that is long enough.
fn members_in<B>(
    text: &[u8],
    members: &Members,
    shortest: usize,
    mut each: impl FnMut(&[u8]) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let is_member = |at: usize| match members[usize::from(text[at])] {
        Member::Yes => true,
        Member::No => false,
        Member::Indent => indents(&text[..at]),
    };
    runs(text.len(), shortest, is_member, |run| each(&text[run]))
}

/// Calls `each` with every run of members among `0..length` that is long enough. Most positions are
/// not examined: one that is not a member rules out all runs that would include it.
fn runs<B>(
    length: usize,
    shortest: usize,
    is_member: impl Fn(usize) -> bool,
    mut each: impl FnMut(Range<usize>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    // Every run that begins before `start` has been seen.
    let mut start = 0;
    while length - start >= shortest {
        let probe = start + shortest - 1;
        if let Some(at) = (start..=probe).rev().find(|at| !is_member(*at)) {
            start = at + 1;
            continue;
        }
        let end = (probe + 1..length).find(|at| !is_member(*at));
        let end = end.unwrap_or(length);
        each(start..end)?;
        start = length.min(end + 1);
    }
    ControlFlow::Continue(())
}

/// Whether a blank behind this text indents a line.
fn indents(before: &[u8]) -> bool {
    let last = before.iter().rev().take(MAX_INDENT_BYTES);
    let mut last = last.skip_while(|byte| matches!(byte, b' ' | b'\t'));
    matches!(last.next(), Some(b'\n' | b'\r'))
}

/// The value of a byte that is not a letter of the coding.
const NO_VALUE: u8 = u8::MAX;

/// The values of the letters of a run, without separators.
fn collect(run: &[u8], values: &[u8; 256], letters: &mut Zeroizing<Vec<u8>>) {
    make_room(letters, run.len());
    let mut count = 0;
    for byte in run {
        let value = values[usize::from(*byte)];
        letters[count] = value;
        count += usize::from(value != NO_VALUE);
    }
    letters.truncate(count);
}

/// Makes room for so many bytes, to be overwritten.
fn make_room(part: &mut Zeroizing<Vec<u8>>, bytes: usize) {
    if part.capacity() < bytes {
        *part = Zeroizing::new(Vec::with_capacity(bytes));
    }
    part.resize(bytes, 0);
}

const fn values(alphabet: &[u8], aliases: &[(u8, u8)]) -> [u8; 256] {
    let mut values = [NO_VALUE; 256];
    let mut at = 0;
    while at < alphabet.len() {
        values[alphabet[at] as usize] = at as u8;
        at += 1;
    }
    let mut at = 0;
    while at < aliases.len() {
        values[aliases[at].0 as usize] = values[aliases[at].1 as usize];
        at += 1;
    }
    values
}

const VALUES_64: [u8; 256] = values(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/",
    &[(b'-', b'+'), (b'_', b'/')],
);

/// Letters count in either case.
const VALUES_32: [u8; 256] = {
    let mut values = values(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", &[]);
    let mut letter = b'a';
    while letter <= b'z' {
        values[letter as usize] = letter - b'a';
        letter += 1;
    }
    values
};

/// What may belong to base32: its letters, and of what belongs to a run of letters all that is
/// between them.
const LETTERS_32: Members = {
    let mut members = [Member::No; 256];
    let mut byte = 0u8;
    loop {
        if VALUES_32[byte as usize] != NO_VALUE || !byte.is_ascii_graphic() {
            members[byte as usize] = Member::Yes;
        }
        if byte == u8::MAX {
            break members;
        }
        byte += 1;
    }
};

const VALUES_16: [u8; 256] = values(
    b"0123456789abcdef",
    &[
        (b'A', b'a'),
        (b'B', b'b'),
        (b'C', b'c'),
        (b'D', b'd'),
        (b'E', b'e'),
        (b'F', b'f'),
    ],
);

/// The nibbles of a run, without separators and without `0x`.
fn hex_digits(run: &[u8], digits: &mut Zeroizing<Vec<u8>>) {
    make_room(digits, run.len());
    let mut count = 0;
    for byte in run {
        let value = VALUES_16[usize::from(*byte)];
        digits[count] = value;
        count += usize::from(value != NO_VALUE);
        if matches!(byte, b'x' | b'X') && count > 0 && digits[count - 1] == 0 {
            count -= 1;
        }
    }
    digits.truncate(count);
}

/// The decimal numbers of a run; 256 stands for a number that does not fit into a byte.
fn decimals(run: &[u8], numbers: &mut Zeroizing<Vec<u16>>) {
    // A number takes a digit and a separator. One more position is overwritten.
    let most = run.len().div_ceil(2) + 1;
    if numbers.capacity() < most {
        *numbers = Zeroizing::new(Vec::with_capacity(most));
    }
    numbers.resize(most, 0);
    let (mut count, mut value, mut is_within) = (0, 0, false);
    for byte in run {
        let digit = byte.wrapping_sub(b'0');
        let is_digit = digit < 10;
        numbers[count] = value;
        count += usize::from(is_within && !is_digit);
        value = if is_digit {
            (value * 10 + u16::from(digit)).min(256)
        } else {
            0
        };
        is_within = is_digit;
    }
    numbers[count] = value;
    numbers.truncate(count + usize::from(is_within));
}

/// A coding in which `LETTERS` letters of `BITS` bits form whole bytes.
struct Base<const LETTERS: usize, const BITS: usize>;

type Base64 = Base<4, 6>;
type Base32 = Base<8, 5>;
type Base16 = Base<2, 4>;

impl<const LETTERS: usize, const BITS: usize> Base<LETTERS, BITS> {
    /// Bytes that the letters of a group form.
    const BYTES: usize = LETTERS * BITS / 8;
    /// The highest bit of each of these bytes.
    const HIGH_BITS: u64 = 0x80_8080_8080 >> (8 * (5 - Self::BYTES));

    /// The bits of a group's letters, concatenated.
    fn bits(group: &[u8; LETTERS]) -> u64 {
        let mut bytes = [0; 8];
        bytes[8 - LETTERS..].copy_from_slice(group);
        let letters = u64::from_be_bytes(bytes);
        // Each step merges neighbours: letters to pairs, pairs to fours, fours to eights.
        let pairs =
            (letters & 0xff00_ff00_ff00_ff00) >> (8 - BITS) | letters & 0x00ff_00ff_00ff_00ff;
        let fours =
            (pairs & 0xffff_0000_ffff_0000) >> (16 - 2 * BITS) | pairs & 0x0000_ffff_0000_ffff;
        (fours & 0xffff_ffff_0000_0000) >> (32 - 4 * BITS) | fours & 0xffff_ffff
    }

    /// Decodes letters: whole groups, and a last one that is cut off.
    fn decode(letters: &[u8], into: &mut Zeroizing<Vec<u8>>) {
        let (groups, rest) = letters.as_chunks::<LETTERS>();
        make_room(into, groups.len() * Self::BYTES + rest.len() * BITS / 8);
        let (whole, cut_off) = into.split_at_mut(groups.len() * Self::BYTES);
        for (group, bytes) in groups.iter().zip(whole.chunks_exact_mut(Self::BYTES)) {
            bytes.copy_from_slice(&Self::bits(group).to_be_bytes()[8 - Self::BYTES..]);
        }
        let mut last = [0; LETTERS];
        last[..rest.len()].copy_from_slice(rest);
        let last = &Self::bits(&last).to_be_bytes()[8 - Self::BYTES..];
        cut_off.copy_from_slice(&last[..cut_off.len()]);
    }

    /// Decodes the letters at each alignment of the first group.
    fn each_alignment<B>(
        letters: &[u8],
        needed: Needed,
        part: &mut Zeroizing<Vec<u8>>,
        search: Search<'_, B>,
    ) -> ControlFlow<B> {
        for skip in 0..LETTERS {
            let letters = letters.get(skip..).unwrap_or(&[]);
            Self::groups(letters, needed, part, search)?;
        }
        ControlFlow::Continue(())
    }

    /// Decodes the letters at one alignment: all of them, or, if the needles are ASCII, the
    /// stretches that are ASCII and long enough, with a group on either side.
    fn groups<B>(
        letters: &[u8],
        needed: Needed,
        part: &mut Zeroizing<Vec<u8>>,
        search: Search<'_, B>,
    ) -> ControlFlow<B> {
        // Whole groups in every stretch of that length, wherever it begins.
        let whole = (needed.shortest + 1).saturating_sub(Self::BYTES) / Self::BYTES;
        if !needed.ascii || whole == 0 {
            Self::decode(letters, part);
            return search(part);
        }
        let (groups, _) = letters.as_chunks::<LETTERS>();
        let is_ascii = |at: usize| Self::bits(&groups[at]) & Self::HIGH_BITS == 0;
        runs(groups.len(), whole, is_ascii, |run| {
            let from = run.start.saturating_sub(1) * LETTERS;
            let to = letters.len().min((run.end + 1) * LETTERS);
            Self::decode(&letters[from..to], part);
            search(part)
        })
    }
}

/// Passes every `step`th number to `search`, in stretches in which each is a byte, or, if the
/// needles are ASCII, each is ASCII.
fn listed<B>(
    numbers: &[u16],
    step: usize,
    needed: Needed,
    part: &mut Zeroizing<Vec<u8>>,
    search: Search<'_, B>,
) -> ControlFlow<B> {
    let most = if needed.ascii { 0x7f } else { 0xff };
    let is_byte = |at: usize| numbers[at * step] <= most;
    let count = numbers.len().div_ceil(step);
    runs(count, needed.shortest, is_byte, |run| {
        make_room(part, run.len());
        for (byte, at) in part.iter_mut().zip(run) {
            // It is at most `most`.
            *byte = numbers[at * step] as u8;
        }
        search(part)
    })
}

/// Decodes the lines of a dump as long as they are consecutive.
fn dump<B>(
    text: &[u8],
    needed: Needed,
    part: &mut Zeroizing<Vec<u8>>,
    search: Search<'_, B>,
) -> ControlFlow<B> {
    part.clear();
    let mut from = 0;
    let ends = memchr_iter(b'\n', text).chain([text.len()]);
    for line in ends.map(|end| &text[std::mem::replace(&mut from, end + 1)..end]) {
        let Some(bytes) = dump_line(line) else {
            if part.len() >= needed.shortest {
                search(part)?;
            }
            part.clear();
            continue;
        };
        let bytes = bytes.take(DUMP_LINE_BYTES);
        reserve(part, DUMP_LINE_BYTES.max(part.len()));
        part.extend(bytes);
    }
    if part.len() >= needed.shortest {
        search(part)?;
    }
    ControlFlow::Continue(())
}

/// The bytes of a line that begins with an offset of 4 to 16 digits.
fn dump_line(line: &[u8]) -> Option<impl Iterator<Item = u8>> {
    // A quote may precede the first line.
    let line = &line[line
        .iter()
        .position(u8::is_ascii_hexdigit)?
        .min(MAX_INDENT_BYTES)..];
    let digits = line.iter().take(17);
    let offset = digits.take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line.get(offset..)?;
    let rest = rest.strip_prefix(b":").unwrap_or(rest);
    // A form encodes a space as `+`.
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'+';
    if !(4..=16).contains(&offset) || !is_blank(rest.first()?) {
        return None;
    }
    let words = rest.split(is_blank).filter(|word| !word.is_empty());
    let is_hex =
        |word: &&[u8]| word.len().is_multiple_of(2) && word.iter().all(u8::is_ascii_hexdigit);
    let pairs = words
        .take_while(is_hex)
        .flat_map(|word| word.chunks_exact(2));
    Some(pairs.filter_map(|pair| {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(coding: Coding, text: &str, shortest: usize) -> Vec<String> {
        let mut parts = Vec::new();
        let needed = Needed {
            shortest,
            ascii: true,
        };
        let flow: ControlFlow<()> = coding.view(
            text.as_bytes(),
            needed,
            &mut Scratch::default(),
            &mut |part| {
                parts.push(String::from_utf8_lossy(part).into_owned());
                ControlFlow::Continue(())
            },
        );
        assert!(flow.is_continue());
        parts
    }

    #[test]
    fn runs_are_found_wherever_they_begin_and_only_when_they_are_long_enough() {
        for before in 0..40 {
            for length in 0..40 {
                let text = format!("{}{}.aaa", ".".repeat(before), "a".repeat(length));
                let mut found = Vec::new();
                let flow: ControlFlow<()> = members_in(text.as_bytes(), &LETTERS, 10, |run| {
                    found.push(run.len());
                    ControlFlow::Continue(())
                });
                assert!(flow.is_continue());
                let expected = if length >= 10 { vec![length] } else { vec![] };
                assert_eq!(found, expected, "{before} {length}");
            }
        }
    }

    #[test]
    fn a_run_goes_on_behind_the_indentation_of_a_line_and_ends_at_a_space() {
        let runs_of = |text: &str| {
            let mut found = Vec::new();
            let flow: ControlFlow<()> = members_in(text.as_bytes(), &LETTERS, 4, |run| {
                found.push(String::from_utf8(run.to_vec()).unwrap());
                ControlFlow::Continue(())
            });
            assert!(flow.is_continue());
            found
        };
        assert_eq!(runs_of("ab\n  cd\n  ef gh"), ["ab\n  cd\n  ef"]);
        assert_eq!(runs_of("ab cd ef gh"), Vec::<String>::new());
    }

    #[test]
    fn each_coding_is_read() {
        use Coding::{Dump, Letters, Numbers};
        let holds = |coding, text: &str| {
            let parts = parts(coding, text, 8);
            assert!(
                parts.iter().any(|part| part.contains("hunter2hunter2")),
                "{coding:?} {text}: {parts:?}"
            );
        };
        holds(Letters, "aHVudGVyMmh1bnRlcjI=");
        holds(Letters, "x aHVudGVyMmh1bnRlcjI x");
        holds(Letters, "xyzaHVudGVy\r\n  Mmh1bnRlcjI");
        holds(Letters, "NB2W45DFOIZGQ5LOORSXEMQ=");
        holds(Letters, "aanb2w45dfoizgq5loorsxemq");
        holds(Numbers, "68756e7465723268756E7465723200");
        holds(Numbers, "a68 75:6e,74-65 72 32 68756E74657232");
        holds(
            Numbers,
            "0x68, 0x75, 0x6e, 0x74, 0x65, 0x72, 0x32, 0x68756E74657232",
        );
        holds(
            Numbers,
            "[104, 117,110,116,101,114,50,104,117,110,116,101,114,50]",
        );
        holds(
            Dump,
            "x\n00000000: 6162 6364 6566 6768 6869 7068 756e 7465  abcdefghhiphunte\n\
             00000010: 7232 6875 6e74 6572 3200                 r2hunter2.\n",
        );
        holds(
            Dump,
            "00000000  61 62 63 64 65 66 67 68  68 69 70 68 75 6e 74 65  |abcdefghhiphunte|\n\
             00000010  72 32 68 75 6e 74 65 72  32                       |r2hunter2|\n",
        );
    }
}
