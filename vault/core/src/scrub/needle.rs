//! One form of a secret, and whether a text holds it.

use zeroize::Zeroizing;

use super::spelling::{Spelled, read};

/// What a form is, beyond its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The bytes themselves. A form may write a space as `+`.
    Clear,
    /// Hexadecimal, in either case.
    Hex,
    /// Base64, which mail and PEM break into lines.
    Base64,
}

/// See the module.
pub(super) struct Needle {
    bytes: Zeroizing<Vec<u8>>,
    form: Form,
}

/// What a text that begins here is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The needle, in so many bytes of the text.
    Here(usize),
    /// Something else.
    Not,
    /// So many bytes of the needle, and then the text ends.
    Begun(usize),
}

impl Needle {
    pub(super) fn new(bytes: Vec<u8>, form: Form) -> Self {
        Self {
            bytes: Zeroizing::new(bytes),
            form,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.form == other.form && self.bytes == other.bytes
    }

    /// The bytes that a text may begin with and be the needle; some of them twice.
    pub(super) fn first_bytes(&self) -> impl Iterator<Item = u8> {
        let own = self.bytes[0];
        let written = match self.form {
            Form::Clear if own == b' ' => [own, b'+'],
            Form::Hex => [own.to_ascii_lowercase(), own.to_ascii_uppercase()],
            Form::Clear | Form::Base64 => [own, own],
        };
        written.into_iter().chain(*b"%\\&")
    }

    fn fits(&self, own: u8, byte: u8) -> bool {
        match self.form {
            Form::Clear => own == byte || (own == b' ' && byte == b'+'),
            Form::Hex => own.eq_ignore_ascii_case(&byte),
            Form::Base64 => own == byte,
        }
    }

    /// Compares with the beginning of a text, as it is and with its escapes read; counts the bytes that it looked at.
    pub(super) fn at(&self, text: &[u8], steps: &mut u64) -> Found {
        let literal = self.literal(text, steps);
        if matches!(literal, Found::Here(_)) {
            return literal;
        }
        match (literal, self.escaped(text, steps)) {
            (Found::Begun(one), Found::Begun(other)) => Found::Begun(one.max(other)),
            (begun @ Found::Begun(_), Found::Not) => begun,
            (_, escaped) => escaped,
        }
    }

    fn literal(&self, text: &[u8], steps: &mut u64) -> Found {
        let same = self.bytes.iter().zip(text);
        let same = same
            .take_while(|(own, byte)| self.fits(**own, **byte))
            .count();
        *steps += same as u64 + 1;
        if same == self.bytes.len() {
            Found::Here(same)
        } else if same == text.len() {
            Found::Begun(same)
        } else {
            Found::Not
        }
    }

    fn escaped(&self, text: &[u8], steps: &mut u64) -> Found {
        let (mut own, mut used) = (0, 0);
        while own < self.bytes.len() {
            *steps += 1;
            if used == text.len() {
                return Found::Begun(own);
            }
            let Spelled::Bytes {
                bytes,
                length,
                used: more,
            } = read(&text[used..])
            else {
                return Found::Begun(own);
            };
            let bytes = &bytes[..length];
            let is_line_break = matches!(bytes, b"\r" | b"\n");
            if !(self.form == Form::Base64 && own > 0 && is_line_break) {
                let fits = self.bytes.len() - own >= length
                    && bytes
                        .iter()
                        .zip(&self.bytes[own..])
                        .all(|(byte, own)| self.fits(*own, *byte));
                if !fits {
                    return Found::Not;
                }
                own += length;
            }
            used += more;
        }
        Found::Here(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_begin_with_what_fits_and_with_escapes_alone() {
        for form in [Form::Clear, Form::Hex, Form::Base64] {
            for own in 0..=u8::MAX {
                let needle = Needle::new(vec![own], form);
                let named: Vec<u8> = needle.first_bytes().collect();
                for byte in 0..=u8::MAX {
                    let may = needle.fits(own, byte) || matches!(byte, b'%' | b'\\' | b'&');
                    assert_eq!(named.contains(&byte), may, "{form:?} {own} {byte}");
                }
            }
        }
    }
}
