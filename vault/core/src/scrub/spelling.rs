//! The ways in which a server may write bytes: as they are, or with the escapes of URLs, forms, JSON, JavaScript and HTML.

/// Longest escape that is read: two of `\u` and four digits, for one character.
const MAX_ESCAPE_BYTES: usize = 12;

/// What stands at the beginning of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelled {
    /// These first bytes of `bytes`, written with so many bytes of the text.
    Bytes {
        bytes: [u8; 4],
        length: usize,
        used: usize,
    },
    /// The text ends before that can be told.
    Undecided,
}

impl Spelled {
    fn byte(byte: u8, used: usize) -> Self {
        Self::Bytes {
            bytes: [byte, 0, 0, 0],
            length: 1,
            used,
        }
    }

    fn char(char: char, used: usize) -> Self {
        let mut bytes = [0; 4];
        let length = char.encode_utf8(&mut bytes).len();
        Self::Bytes {
            bytes,
            length,
            used,
        }
    }
}

/// Reads one escape, or one byte that stands for itself. `text` is not empty.
pub(super) fn read(text: &[u8]) -> Spelled {
    let escape = match text[0] {
        b'%' => percent(text),
        b'\\' => backslash(text),
        b'&' => entity(text),
        _ => Escape::None,
    };
    match escape {
        Escape::Is(spelled) => spelled,
        Escape::CutOff => Spelled::Undecided,
        Escape::None => Spelled::byte(text[0], 1),
    }
}

enum Escape {
    Is(Spelled),
    CutOff,
    None,
}

/// So many hexadecimal digits.
fn digits(text: &[u8], count: usize) -> Result<u32, Escape> {
    let mut value = 0;
    for index in 0..count {
        let byte = text.get(index).ok_or(Escape::CutOff)?;
        let digit = char::from(*byte).to_digit(16).ok_or(Escape::None)?;
        value = value << 4 | digit;
    }
    Ok(value)
}

/// RFC 3986, section 2.1.
fn percent(text: &[u8]) -> Escape {
    match digits(&text[1..], 2) {
        Ok(value) => Escape::Is(Spelled::byte(value as u8, 3)),
        Err(escape) => escape,
    }
}

/// RFC 8259, section 7, and what JavaScript has beyond it.
fn backslash(text: &[u8]) -> Escape {
    let Some(second) = text.get(1) else {
        return Escape::CutOff;
    };
    let byte = match second {
        b'u' => return unicode(text).unwrap_or_else(|escape| escape),
        b'x' => {
            return match digits(&text[2..], 2) {
                Ok(value) => Escape::Is(Spelled::byte(value as u8, 4)),
                Err(escape) => escape,
            };
        }
        b'b' => 8,
        b't' => b'\t',
        b'n' => b'\n',
        b'f' => 12,
        b'r' => b'\r',
        b'"' | b'\'' | b'\\' | b'/' | b'`' | b'$' => *second,
        _ => return Escape::None,
    };
    Escape::Is(Spelled::byte(byte, 2))
}

fn unicode(text: &[u8]) -> Result<Escape, Escape> {
    let first = digits(&text[2..], 4)?;
    if !(0xd800..0xdc00).contains(&first) {
        return Ok(
            char::from_u32(first).map_or(Escape::None, |char| Escape::Is(Spelled::char(char, 6)))
        );
    }
    for (index, expected) in [(6, b'\\'), (7, b'u')] {
        if *text.get(index).ok_or(Escape::CutOff)? != expected {
            return Err(Escape::None);
        }
    }
    let second = digits(&text[8..], 4)?;
    let pair = char::decode_utf16([first as u16, second as u16]).next();
    Ok(match pair {
        Some(Ok(char)) => Escape::Is(Spelled::char(char, MAX_ESCAPE_BYTES)),
        _ => Escape::None,
    })
}

/// The character references that servers write (HTML, section 13.2.5.72 and on): numbers, and the names of what must be escaped.
fn entity(text: &[u8]) -> Escape {
    let window = &text[..text.len().min(MAX_ESCAPE_BYTES)];
    let Some(end) = window.iter().position(|byte| *byte == b';') else {
        let may_go_on = window[1..]
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'#');
        return if may_go_on && window.len() < MAX_ESCAPE_BYTES {
            Escape::CutOff
        } else {
            Escape::None
        };
    };
    let char = match &window[1..end] {
        b"amp" => Some('&'),
        b"lt" => Some('<'),
        b"gt" => Some('>'),
        b"quot" => Some('"'),
        b"apos" => Some('\''),
        [b'#', b'x' | b'X', digits @ ..] => number(digits, 16),
        [b'#', digits @ ..] => number(digits, 10),
        _ => None,
    };
    char.map_or(Escape::None, |char| {
        Escape::Is(Spelled::char(char, end + 1))
    })
}

fn number(digits: &[u8], radix: u32) -> Option<char> {
    let text = std::str::from_utf8(digits).ok()?;
    char::from_u32(u32::from_str_radix(text, radix).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_escape_is_read_with_its_length() {
        let cases: &[(&[u8], &[u8], usize)] = &[
            (b"a", b"a", 1),
            (b"%2F/", b"/", 3),
            (b"%2f", b"/", 3),
            (b"%zz", b"%", 1),
            (b"\\/", b"/", 2),
            (b"\\n", b"\n", 2),
            (b"\\q", b"\\", 1),
            (b"\\x41", b"A", 4),
            (b"\\u0041b", b"A", 6),
            (b"\\u00e9", "é".as_bytes(), 6),
            (b"\\ud83d\\ude00", "😀".as_bytes(), 12),
            (b"\\ud83dxxxxxx", b"\\", 1),
            (b"&amp;", b"&", 5),
            (b"&#39;", b"'", 5),
            (b"&#x27;", b"'", 6),
            (b"&nothing;", b"&", 1),
            (b"& b", b"&", 1),
            (b"&aaaaaaaaaaaaaaaaa", b"&", 1),
        ];
        for (text, expected, expected_used) in cases {
            let Spelled::Bytes {
                bytes,
                length,
                used,
            } = read(text)
            else {
                panic!("undecided: {}", text.escape_ascii());
            };
            assert_eq!(
                (&bytes[..length], used),
                (*expected, *expected_used),
                "{}",
                text.escape_ascii()
            );
        }
    }

    #[test]
    fn an_escape_that_is_cut_off_is_undecided() {
        for whole in [&b"%2F"[..], b"\\x41", b"\\ud83d\\ude00", b"&quot;", b"\\n"] {
            for cut in 1..whole.len() {
                assert_eq!(
                    read(&whole[..cut]),
                    Spelled::Undecided,
                    "{}",
                    whole[..cut].escape_ascii()
                );
            }
        }
    }
}
