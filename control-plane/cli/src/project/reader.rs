//! Reading a TOML table by hand, so that all mistakes are found at once, each with its line.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;
use std::str::FromStr;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, map::Map};

/// Largest number of single changes between a wrong key and the right one that is suggested.
const NEAR: usize = 3;

/// The mistakes that were found, with their places.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<(usize, String)>>);

impl Mistakes {
    /// Records a mistake at a place in the text.
    pub(super) fn add(&self, at: Range<usize>, text: impl Into<String>) {
        self.0.borrow_mut().push((at.start, text.into()));
    }

    /// Whether there are no mistakes.
    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// The mistakes in the order of the text, a line each.
    pub(super) fn lines(&self, text: &str) -> Vec<String> {
        let mut found = self.0.borrow().clone();
        found.sort();
        found.dedup();
        found
            .into_iter()
            .map(|(offset, mistake)| {
                let before = text.get(..offset).unwrap_or(text);
                let line = before.matches('\n').count() + 1;
                let start = before.rfind('\n').map_or(0, |at| at + 1);
                let column = before[start..].chars().count() + 1;
                format!("line {line}, column {column}: {mistake}")
            })
            .collect()
    }
}

type Table<'t> = Map<Spanned<std::borrow::Cow<'t, str>>, Spanned<DeValue<'t>>>;

/// One table of the file. The reader asks for each key that it may have; a key that was not asked
/// for is a mistake.
pub(super) struct Section<'t> {
    table: &'t Table<'t>,
    /// The table's place.
    pub(super) at: Range<usize>,
    title: &'static str,
    known: Vec<&'static str>,
    mistakes: &'t Mistakes,
}

impl<'t> Section<'t> {
    /// The whole file.
    pub(super) fn new(file: &'t Spanned<DeTable<'t>>, mistakes: &'t Mistakes) -> Self {
        Self::of("the file", file.get_ref(), 0..0, mistakes)
    }

    fn of(
        title: &'static str,
        table: &'t Table<'t>,
        at: Range<usize>,
        mistakes: &'t Mistakes,
    ) -> Self {
        Self {
            table,
            at,
            title,
            known: Vec::new(),
            mistakes,
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.known.push(key);
        self.entries()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| value)
    }

    /// All keys and values, for tables whose keys the author chooses.
    pub(super) fn entries(
        &self,
    ) -> impl Iterator<
        Item = (
            &'t Spanned<std::borrow::Cow<'t, str>>,
            &'t Spanned<DeValue<'t>>,
        ),
    > + use<'t> {
        self.table.iter()
    }

    /// The place of a key's value; the section itself if the key is absent.
    pub(super) fn place(&self, key: &str) -> Range<usize> {
        self.entries()
            .find(|(name, _)| name.get_ref() == key)
            .map_or(self.at.clone(), |(_, value)| value.span())
    }

    /// Records a mistake in a key's value.
    pub(super) fn wrong(&self, key: &str, text: impl Into<String>) {
        self.mistakes.add(self.place(key), text);
    }

    /// Records a mistake at a place of the file.
    pub(super) fn wrong_at(&self, at: Range<usize>, text: impl Into<String>) {
        self.mistakes.add(at, text);
    }

    /// Records a mistake unless a key is present.
    pub(super) fn must_have(&self, key: &str, like: &str) {
        if !self.entries().any(|(name, _)| name.get_ref() == key) {
            self.mistakes.add(
                self.at.clone(),
                format!(
                    "`{key}` is missing in {}; expected such as `{key} = {like}`",
                    self.title
                ),
            );
        }
    }

    fn expected(&self, key: &str, what: &str, got: &Spanned<DeValue<'_>>) {
        let got = match got.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "a number",
            DeValue::Float(_) => "a number with a point",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.wrong(key, format!("`{key}`: expected {what}, got {got}"));
    }

    /// Reads a string.
    pub(super) fn text(&mut self, key: &'static str) -> Option<String> {
        let value = self.value(key)?;
        if let DeValue::String(text) = value.get_ref() {
            return Some(text.clone().into_owned());
        }
        self.expected(key, "a string in quotes", value);
        None
    }

    /// Reads a string and parses it.
    pub(super) fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<T> {
        let text = self.text(key)?;
        text.parse()
            .map_err(|error: T::Err| self.wrong(key, format!("`{key}`: {error}")))
            .ok()
    }

    /// Reads a list of strings and parses each.
    pub(super) fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str) -> Option<Vec<T>> {
        let value = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.expected(key, "a list such as [\"...\"]", value);
            return None;
        };
        let parse = |item: &Spanned<DeValue<'_>>| {
            let DeValue::String(text) = item.get_ref() else {
                self.mistakes
                    .add(item.span(), format!("`{key}`: expected strings in quotes"));
                return None;
            };
            let parsed = text.parse::<T>();
            parsed
                .map_err(|error| self.mistakes.add(item.span(), format!("`{key}`: {error}")))
                .ok()
        };
        Some(items.iter().filter_map(parse).collect())
    }

    /// Reads a number within limits.
    pub(super) fn number(&mut self, key: &'static str, least: u64, most: u64) -> Option<u64> {
        let value = self.value(key)?;
        let DeValue::Integer(number) = value.get_ref() else {
            self.expected(key, "a whole number", value);
            return None;
        };
        let text = number.as_str().replace(['_', '+'], "");
        let parsed = u64::from_str_radix(&text, number.radix()).ok();
        if parsed.is_none_or(|number| !(least..=most).contains(&number)) {
            self.wrong(
                key,
                format!("`{key}`: expected a number from {least} to {most}, got {number}"),
            );
            return None;
        }
        parsed
    }

    /// Reads true or false.
    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        if let DeValue::Boolean(flag) = value.get_ref() {
            return Some(*flag);
        }
        self.expected(key, "true or false", value);
        None
    }

    /// Whether the value is a table, for keys that may have several types.
    pub(super) fn is_table(&self, key: &str) -> bool {
        self.entries().any(|(name, value)| {
            name.get_ref() == key && matches!(value.get_ref(), DeValue::Table(_))
        })
    }

    /// Reads a table below this one.
    pub(super) fn section(&mut self, key: &'static str) -> Option<Self> {
        let value = self.value(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Self::of(key, table, value.span(), self.mistakes));
        }
        self.expected(key, &format!("a table `[{key}]`"), value);
        None
    }

    /// A value of this section, whose keys the author chooses, as a table of its own.
    pub(super) fn inner(
        &self,
        title: &'static str,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Option<Self> {
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Self::of(title, table, value.span(), self.mistakes));
        }
        self.expected(key, "a table", value);
        None
    }

    /// Reads a list of tables below this one.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let DeValue::Array(items) = value.get_ref() else {
            self.expected(key, &format!("tables that begin with `[[{key}]]`"), value);
            return Vec::new();
        };
        let mut sections = Vec::new();
        for item in items.iter() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Self::of(key, table, item.span(), self.mistakes));
                }
                _ => self.expected(key, &format!("tables that begin with `[[{key}]]`"), item),
            }
        }
        sections
    }

    /// Records every key that was not asked for as a mistake, with the nearest known key.
    pub(super) fn finish(self) {
        for (name, _) in self.entries() {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let nearest = self
                .known
                .iter()
                .map(|known| (distance(key, known), *known))
                .min();
            let advice = match nearest {
                Some((far, known)) if far <= NEAR && far < known.len() => {
                    format!("did you mean `{known}`?")
                }
                _ => format!("known are {}", self.known.join(", ")),
            };
            self.mistakes.add(
                name.span(),
                format!("`{key}` is not a key of {}; {advice}", self.title),
            );
        }
    }
}

/// The number of single-letter changes that turn one word into the other (Levenshtein).
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in two.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(distance("host", "hosts"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }
}
