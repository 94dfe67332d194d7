//! Names: one grammar for objects of the fleet, one for properties of a function's `env`.

use std::str::FromStr;

use crate::encoding::parsed_string;

/// Longest name, in bytes: a DNS label (RFC 1035, section 2.3.4), so that a name can become part of a host.
pub const MAX_NAME_BYTES: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is not a DNS label in lower case.
    #[error("expected 1 to 63 of a-z, 0-9 and inner `-`, got {0:?}")]
    Label(String),
    /// The text is not an identifier.
    #[error("expected a letter or `_`, then letters, digits or `_`, 63 at most, got {0:?}")]
    Identifier(String),
}

/// Name of a tenant, function, pool or node: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

/// Name of a secret, a variable or a binding: `[A-Za-z_][A-Za-z0-9_]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identifier(String);

impl Name {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Identifier {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if is_label(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Label(excerpt(text)))
        }
    }
}

impl FromStr for Identifier {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut bytes = text.bytes();
        let starts_well = bytes
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        let goes_on_well = bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let fits = text.len() <= MAX_NAME_BYTES;
        if starts_well && goes_on_well && fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError::Identifier(excerpt(text)))
        }
    }
}

parsed_string!(Name);
parsed_string!(Identifier);

/// One DNS label, lower case, no underscore.
pub(crate) fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The beginning of a refused text, so that a mebibyte of name does not become a mebibyte of log.
pub(crate) fn excerpt(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_names() {
        for good in ["a", "0", "a-b", "shop-2", &"x".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn confusables_traversal_case_and_length_are_refused() {
        let long = "x".repeat(64);
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a.b",
            "..",
            "a/b",
            "a\0",
            "p\u{0430}y",
            "a b",
            "a_b",
            &long,
            &"x".repeat(1 << 20),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{}", excerpt(bad));
        }
    }

    #[test]
    fn a_refusal_is_short_however_long_the_name() {
        assert!(
            "x".repeat(1 << 20)
                .parse::<Name>()
                .unwrap_err()
                .to_string()
                .len()
                < 300
        );
    }

    #[test]
    fn identifiers() {
        for good in ["STRIPE_KEY", "_", "a1"] {
            assert!(good.parse::<Identifier>().is_ok());
        }
        for bad in ["", "1a", "a-b", "a.b", "\u{e9}", &"x".repeat(64)] {
            assert!(bad.parse::<Identifier>().is_err(), "{bad}");
        }
    }
}
