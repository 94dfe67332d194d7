//! Views of a text in which the escapes of one language are decoded and everything else is
//! unchanged.

use std::ops::ControlFlow;

use memchr::memchr_iter;
use zeroize::Zeroizing;

use super::entities;

/// A language of escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// Two or four bytes a character (UTF-16, UTF-32): the zeros are removed, except single ones,
    /// which are skipped anyway.
    Wide,
    /// `%2F` (RFC 3986, section 2.1) and `%u002F`. The `+` of a form is skipped anyway.
    Percent,
    /// JSON (RFC 8259, section 7), JavaScript, C and Python: `\n`, `\x2F`, `\u002F`, `\u{2F}`,
    /// `\57`, `\\`. The backslash of `\"` and `\/` is skipped anyway.
    Backslash,
    /// HTML and XML: `&amp;`, `&#47;`, `&#x2F;`, also without `;`.
    Html,
    /// Mail (RFC 2045, section 6.7): `=2F`, and `=` at the end of a line.
    QuotedPrintable,
    /// A folded line (RFC 5322, section 2.2.3): its line break and the indentation of the next
    /// line, if the line is text and long enough to have been folded.
    Folded,
}

/// Shorter lines are never folded, bytes.
const MIN_FOLDED_BYTES: usize = 60;

/// A decoded escape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Escape {
    bytes: [u8; 4],
    /// How many of `bytes` are used.
    length: usize,
    /// Bytes of the text that the escape takes.
    used: usize,
    /// Bytes before its first one that it takes too.
    used_before: usize,
}

impl Escape {
    fn nothing(used: usize) -> Self {
        Self {
            bytes: [0; 4],
            length: 0,
            used,
            used_before: 0,
        }
    }

    fn byte(byte: u8, used: usize) -> Self {
        Self {
            bytes: [byte, 0, 0, 0],
            length: 1,
            used,
            used_before: 0,
        }
    }

    fn char(char: char, used: usize) -> Self {
        let mut bytes = [0; 4];
        let length = char.encode_utf8(&mut bytes).len();
        Self {
            bytes,
            length,
            used,
            used_before: 0,
        }
    }
}

impl Language {
    pub(super) const ALL: [Self; 6] = [
        Self::Wide,
        Self::Percent,
        Self::Backslash,
        Self::Html,
        Self::QuotedPrintable,
        Self::Folded,
    ];

    /// Whether the view matters only as the first decoding. It only removes bytes that are skipped
    /// anyway, so it matters only to what is decoded after it.
    pub(super) const fn is_outermost(self) -> bool {
        matches!(self, Self::Wide | Self::Folded)
    }

    const fn intro(self) -> u8 {
        match self {
            Self::Wide => 0,
            Self::Percent => b'%',
            Self::Backslash => b'\\',
            Self::Html => b'&',
            Self::QuotedPrintable => b'=',
            Self::Folded => b'\n',
        }
    }

    /// Decodes the escape that begins here, if there is one.
    fn read(self, text: &[u8], at: usize) -> Option<Escape> {
        let (before, text) = text.split_at(at);
        match self {
            Self::Wide => wide(before, text),
            Self::Percent => percent(text),
            Self::Backslash => backslash(text),
            Self::Html => html(text),
            Self::QuotedPrintable => quoted_printable(text),
            Self::Folded => folded(before, text),
        }
    }

    /// Passes the parts of a text that contain escapes to `search`, decoded and with `context`
    /// bytes on either side. A part without an escape is the same as in the text, which has been
    /// searched.
    pub(super) fn view<B>(
        self,
        text: &[u8],
        context: usize,
        part: &mut Zeroizing<Vec<u8>>,
        search: &mut dyn FnMut(&[u8]) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        part.clear();
        // Bytes behind `read` have not been copied yet.
        let mut read = 0;
        for at in memchr_iter(self.intro(), text) {
            if at < read {
                continue;
            }
            let Some(escape) = self.read(text, at) else {
                continue;
            };
            if !part.is_empty() && at - read > 2 * context {
                part.extend_from_slice(&text[read..read + context]);
                search(part)?;
                part.clear();
            }
            if part.is_empty() {
                // At most the rest of the text, so that the memory is allocated once.
                reserve(part, text.len() - at + context);
                read = read.max(at.saturating_sub(context));
            }
            part.extend_from_slice(&text[read..read.max(at - escape.used_before)]);
            part.extend_from_slice(&escape.bytes[..escape.length]);
            read = at + escape.used;
        }
        if part.is_empty() && read == 0 {
            return ControlFlow::Continue(());
        }
        part.extend_from_slice(&text[read..text.len().min(read + context)]);
        search(part)
    }
}

/// Reserves memory. Decoded bytes may contain the secret, and a growing vector would leave copies
/// behind.
pub(super) fn reserve(part: &mut Zeroizing<Vec<u8>>, bytes: usize) {
    if part.capacity() < part.len() + bytes {
        let mut larger = Zeroizing::new(Vec::with_capacity(part.len() + bytes));
        larger.extend_from_slice(part);
        *part = larger;
    }
}

/// Parses so many hexadecimal digits.
fn digits(text: &[u8], count: usize) -> Option<u32> {
    let digits = text.get(..count)?;
    digits.iter().try_fold(0, |value, byte| {
        Some(value << 4 | char::from(*byte).to_digit(16)?)
    })
}

/// A zero with another one within a character's width.
fn wide(before: &[u8], text: &[u8]) -> Option<Escape> {
    let near = before.iter().rev().take(4).chain(text[1..].iter().take(4));
    near.copied()
        .any(|byte| byte == 0)
        .then(|| Escape::nothing(1))
}

fn percent(text: &[u8]) -> Option<Escape> {
    if let Some(b'u' | b'U') = text.get(1) {
        let char = char::from_u32(digits(&text[2..], 4)?)?;
        return Some(Escape::char(char, 6));
    }
    let value = digits(&text[1..], 2)?;
    Some(Escape::byte(u8::try_from(value).ok()?, 3))
}

fn backslash(text: &[u8]) -> Option<Escape> {
    let byte = match text.get(1)? {
        b'u' | b'U' => return unicode(text),
        b'x' => {
            let value = digits(&text[2..], 2)?;
            return Some(Escape::byte(u8::try_from(value).ok()?, 4));
        }
        b'0'..=b'7' => return Some(octal(text)),
        b'a' => 7,
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'v' => 11,
        b'f' => 12,
        b'r' => b'\r',
        b'e' => 27,
        b'\\' => b'\\',
        _ => return None,
    };
    Some(Escape::byte(byte, 2))
}

/// One to three octal digits, with a value of at most a byte.
fn octal(text: &[u8]) -> Escape {
    let mut value = 0u8;
    let mut used = 1;
    for byte in text[1..].iter().take(3) {
        let next = match byte {
            b'0'..=b'7' => value
                .checked_mul(8)
                .and_then(|value| value.checked_add(byte - b'0')),
            _ => None,
        };
        let Some(next) = next else { break };
        value = next;
        used += 1;
    }
    Escape::byte(value, used)
}

/// `\u0041`, a pair of surrogates, `\u{41}`, and `\U00000041`.
fn unicode(text: &[u8]) -> Option<Escape> {
    if text[1] == b'U' {
        return Some(Escape::char(char::from_u32(digits(&text[2..], 8)?)?, 10));
    }
    if text.get(2) == Some(&b'{') {
        let length = text[3..].iter().take(7).position(|byte| *byte == b'}')?;
        let value = digits(&text[3..], length)?;
        return Some(Escape::char(char::from_u32(value)?, length + 4));
    }
    let first = digits(&text[2..], 4)?;
    if let Some(char) = char::from_u32(first) {
        return Some(Escape::char(char, 6));
    }
    if text.get(6..8)? != b"\\u" {
        return None;
    }
    let second = digits(&text[8..], 4)?;
    let units = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
    let char = char::decode_utf16(units).next()?.ok()?;
    Some(Escape::char(char, 12))
}

fn html(text: &[u8]) -> Option<Escape> {
    let Some(b'#') = text.get(1) else {
        let (char, length) = entities::named(&text[1..])?;
        return Some(Escape::char(char, length + 1));
    };
    let (radix, start) = match text.get(2)? {
        b'x' | b'X' => (16, 3),
        _ => (10, 2),
    };
    let is_digit = |byte: &&u8| char::from(**byte).is_digit(radix);
    let length = text[start..].iter().take(16).take_while(is_digit).count();
    let number = std::str::from_utf8(&text[start..start + length]).ok()?;
    let char = char::from_u32(u32::from_str_radix(number, radix).ok()?)?;
    let end = start + length;
    let closed = usize::from(text.get(end) == Some(&b';'));
    Some(Escape::char(char, end + closed))
}

fn quoted_printable(text: &[u8]) -> Option<Escape> {
    match text.get(1)? {
        b'\n' => Some(Escape::nothing(2)),
        b'\r' if text.get(2) == Some(&b'\n') => Some(Escape::nothing(3)),
        _ => {
            let value = digits(&text[1..], 2)?;
            Some(Escape::byte(u8::try_from(value).ok()?, 3))
        }
    }
}

fn folded(before: &[u8], text: &[u8]) -> Option<Escape> {
    let line = &before[before.len().checked_sub(MIN_FOLDED_BYTES)?..];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line
        .iter()
        .any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return None;
    }
    let is_blank = |byte: &&u8| matches!(byte, b' ' | b'\t');
    let indent = text[1..].iter().take_while(is_blank).count();
    Some(Escape {
        used_before: usize::from(before.ends_with(b"\r")),
        ..Escape::nothing(1 + indent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_escape_is_read_with_its_length() {
        use Language::{Backslash, Html, Percent, QuotedPrintable, Wide};
        type Case = (Language, &'static str, Option<(&'static str, usize)>);
        let cases: &[Case] = &[
            (Wide, "\0a\0", Some(("", 1))),
            (Wide, "\0abcde\0", None),
            (Percent, "%2F/", Some(("/", 3))),
            (Percent, "%2f", Some(("/", 3))),
            (Percent, "%u002f", Some(("/", 6))),
            (Percent, "%zz", None),
            (Percent, "%2", None),
            (Backslash, "\\/", None),
            (Backslash, "\\\\u", Some(("\\", 2))),
            (Backslash, "\\n", Some(("\n", 2))),
            (Backslash, "\\q", None),
            (Backslash, "\\", None),
            (Backslash, "\\x41", Some(("A", 4))),
            (Backslash, "\\1634", Some(("s", 4))),
            (Backslash, "\\08", Some(("\0", 2))),
            (Backslash, "\\u0041b", Some(("A", 6))),
            (Backslash, "\\u{73}", Some(("s", 6))),
            (Backslash, "\\u{1f600}", Some(("😀", 9))),
            (Backslash, "\\u{}", Some(("\0", 4))),
            (Backslash, "\\U00000041", Some(("A", 10))),
            (Backslash, "\\u00e9", Some(("é", 6))),
            (Backslash, "\\ud83d\\ude00", Some(("😀", 12))),
            (Backslash, "\\ud83dxxxxxx", None),
            (Backslash, "\\ud83d", None),
            (Html, "&amp;", Some(("&", 5))),
            (Html, "&#39;", Some(("'", 5))),
            (Html, "&#39x", Some(("'", 4))),
            (Html, "&#x27;", Some(("'", 6))),
            (Html, "&#0000115;", Some(("s", 10))),
            (Html, "&#;", None),
            (Html, "& b", None),
            (QuotedPrintable, "=2F", Some(("/", 3))),
            (QuotedPrintable, "=\r\nx", Some(("", 3))),
            (QuotedPrintable, "=\nx", Some(("", 2))),
            (QuotedPrintable, "=x", None),
        ];
        for (language, text, expected) in cases {
            let escape = language.read(text.as_bytes(), 0);
            let read = escape.map(|escape| {
                let bytes = escape.bytes[..escape.length].to_vec();
                (String::from_utf8(bytes).unwrap(), escape.used)
            });
            let read = read.as_ref().map(|(bytes, used)| (bytes.as_str(), *used));
            assert_eq!(read, *expected, "{language:?} {text}");
        }
    }

    #[test]
    fn a_view_holds_each_escape_with_its_context() {
        let parts = |text: &str, context| {
            let (mut parts, mut part) = (Vec::new(), Zeroizing::new(Vec::new()));
            let flow: ControlFlow<()> =
                Language::Percent.view(text.as_bytes(), context, &mut part, &mut |part| {
                    parts.push(String::from_utf8(part.to_vec()).unwrap());
                    ControlFlow::Continue(())
                });
            assert!(flow.is_continue());
            parts
        };
        assert_eq!(parts("abc % def", 2), Vec::<String>::new());
        assert_eq!(parts("abc%41def%42ghi", 2), ["bcAdefBgh"]);
        assert_eq!(parts("abc%41def12%42ghi", 2), ["bcAde", "12Bgh"]);
        assert_eq!(parts("%41%42", 2), ["AB"]);
    }
}
