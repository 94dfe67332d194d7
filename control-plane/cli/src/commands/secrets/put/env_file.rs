//! Many secrets from one file in the grammar of dotenv: `NAME=value` a line, with quotes and
//! comments. No error shows a value.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use casemate_trust::name::Identifier;
use casemate_trust::secret::SecretValue;
use zeroize::Zeroizing;

use crate::error::{Code, Error};

/// Largest file, bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Most secrets in a file.
const MAX_ENTRIES: usize = 200;
/// Replaces `$` while the file is read a second time; a file that contains it is refused.
const DOLLAR: char = '\u{e000}';

/// The secrets of a file, or of standard input where it is called `-`, in the order of their names.
///
/// # Errors
/// The file cannot be read, or has mistakes: the error lists all of them, with their lines and
/// names.
pub(super) fn read(path: &Path) -> Result<BTreeMap<Identifier, SecretValue>, Error> {
    let text = if path == Path::new("-") {
        text_of(std::io::stdin().lock())
    } else {
        std::fs::File::open(path).and_then(text_of)
    };
    let text = text.map_err(|error| {
        Error::new(
            Code::Input,
            "cannot read the file of secrets",
            "check the path, the file's permissions, and that the file is text of at most 1 MiB",
        )
        .at(path.display())
        .source(error)
    })?;
    parse(&text).map_err(|mistakes| {
        Error::new(
            Code::SecretValue,
            "the file of secrets has mistakes; nothing was sealed",
            "correct the mistakes above and run the command again. A line is NAME=value; put a \
             value with spaces, quotes, `#` or `$` into single quotes",
        )
        .at(path.display())
        .lines(mistakes)
    })
}

fn text_of(from: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::new());
    from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(std::io::Error::other("the file is over 1 MiB"));
    }
    Ok(text)
}

fn parse(text: &str) -> Result<BTreeMap<Identifier, SecretValue>, Vec<String>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains(DOLLAR) {
        return Err(vec![format!(
            "the character U+{:04X} is not allowed",
            u32::from(DOLLAR)
        )]);
    }
    let expanded = entries(text, text).map_err(|mistake| vec![mistake])?;
    // The grammar replaces `$NAME` by variables, also those of the machine. A secret that contains
    // a `$` must not change silently.
    let masked = Zeroizing::new(mask(text));
    let literal = entries(&masked, text).map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    let mut found = BTreeMap::new();
    for ((name, value), (_, literal)) in expanded.iter().zip(&literal) {
        let line = line_of(text, name);
        let mut wrong = |text: String| mistakes.push(format!("line {line}: {text}"));
        let literal = Zeroizing::new(literal.replace(DOLLAR, "$"));
        let Ok(identifier) = name.parse::<Identifier>() else {
            wrong("the text before `=` is not a name of a secret, such as STRIPE_KEY".to_owned());
            continue;
        };
        if **value != *literal {
            wrong(format!(
                "{name}: a `$` in the value would be replaced; put the value into single quotes"
            ));
            continue;
        }
        match SecretValue::parse(Zeroizing::new(value.as_bytes().to_vec())) {
            Ok(value) if !found.contains_key(&identifier) => drop(found.insert(identifier, value)),
            Ok(_) => wrong(format!("{name} is given twice")),
            Err(error) => wrong(format!("{name}: {error}")),
        }
    }
    if expanded.len() > MAX_ENTRIES {
        mistakes.push(format!(
            "expected at most {MAX_ENTRIES} secrets, got {}",
            expanded.len()
        ));
    }
    if expanded.is_empty() {
        mistakes.push("the file contains no NAME=value".to_owned());
    }
    if mistakes.is_empty() {
        Ok(found)
    } else {
        Err(mistakes)
    }
}

/// The names and values of the file. An error names the line of the mistake in `original`; the
/// parser's own message is left out, because it repeats the line and with it the value.
fn entries(text: &str, original: &str) -> Result<Vec<(String, Zeroizing<String>)>, String> {
    let mut found = Vec::new();
    for entry in dotenvy::from_read_iter(text.as_bytes()) {
        match entry {
            Ok((name, value)) => found.push((name, Zeroizing::new(value))),
            Err(dotenvy::Error::LineParse(line, _)) => {
                let line = Zeroizing::new(line);
                let at = place_of(text, line.trim());
                let number = text[..at].matches('\n').count() + 1;
                let last = original.lines().count().max(1);
                return Err(format!(
                    "line {}: it is not NAME=value, or a quote is not closed",
                    number.min(last)
                ));
            }
            Err(_) => return Err("the file cannot be parsed".to_owned()),
        }
    }
    Ok(found)
}

/// The offset of the part of the text that the parser did not understand: a whole line, or a value
/// up to its line's end.
fn place_of(text: &str, part: &str) -> usize {
    let begins = |at: usize, before: &[char]| at == 0 || text[..at].ends_with(before);
    let ends = |at: usize| {
        let rest = text[at..].trim_start_matches([' ', '\t']);
        rest.is_empty() || rest.starts_with(['\n', '\r', '#'])
    };
    let places = || text.match_indices(part).map(|(at, _)| at);
    let lines = places().find(|at| begins(*at, &['\n']) && ends(at + part.len()));
    let values = places().find(|at| begins(*at, &['=', ' ', '\t']) && ends(at + part.len()));
    lines.or(values).or(text.find(part)).unwrap_or(0)
}

/// The text with [`DOLLAR`] for every `$` that no backslash protects.
fn mask(text: &str) -> String {
    let mut masked = String::with_capacity(3 * text.len());
    let mut is_protected = false;
    for c in text.chars() {
        masked.push(if c == '$' && !is_protected { DOLLAR } else { c });
        is_protected = c == '\\' && !is_protected;
    }
    masked
}

/// The number of the line that gives a name its value, from 1.
fn line_of(text: &str, name: &str) -> usize {
    let gives = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix("export ").map_or(line, str::trim_start);
        let rest = line.strip_prefix(name).map(str::trim_start);
        rest.is_some_and(|rest| rest.starts_with('='))
    };
    // If a name occurs twice, the later line is used.
    text.lines()
        .collect::<Vec<_>>()
        .iter()
        .rposition(|line| gives(line))
        .map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Result<Vec<(String, String)>, String> {
        let values = parse(text).map_err(|mistakes| mistakes.join("\n"))?;
        let plain =
            |value: &SecretValue| String::from_utf8_lossy(value.expose_secret()).into_owned();
        Ok(values
            .iter()
            .map(|(name, value)| (name.to_string(), plain(value)))
            .collect())
    }

    #[test]
    fn the_grammar_of_dotenv() {
        let text = "\u{feff}# keys of the shop\nexport ONE=one-value-of-a-key # and why\nTWO='two \
             $HOME # \\ \"'\r\n\
                    THREE=\"three \\\"quoted\\\" \\$five\"\n\n FOUR = four=4=\nFIVE=a#b\n";
        let value = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            shown(text),
            Ok(vec![
                value("FIVE", "a#b"),
                value("FOUR", "four=4="),
                value("ONE", "one-value-of-a-key"),
                value("THREE", "three \"quoted\" $five"),
                value("TWO", "two $HOME # \\ \""),
            ])
        );
    }

    #[test]
    fn mistakes_have_lines_and_names_and_never_values() {
        for (text, told) in [
            ("ONE=hunter2-one\nhunter2\n", "line 2: it is not NAME=value"),
            ("# a\nONE='hunter2\nTWO=b\n", "line 2: it is not NAME=value"),
            ("ONE=hunter2\nhunter2\n", "line 2: it is not NAME=value"),
            (
                "ONE=hunter2-\nTWO=hunter2 two # hunter2\n",
                "line 2: it is not NAME=value",
            ),
            ("ONE=hunter2 two\n", "line 1: it is not NAME=value"),
            (
                "ONE=hunter2$HOME\n",
                "line 1: ONE: a `$` in the value would be replaced",
            ),
            ("ONE=\"hunter2${HOME}\"\n", "line 1: ONE: a `$`"),
            ("ONE=hunter2$\n", "line 1: ONE: a `$`"),
            ("\nONE=hunter2\nONE=hunter2\n", "line 3: ONE is given twice"),
            ("ONE=\"hunter2\\nhunter3\"\n", "line 1: ONE: "),
            ("ONE=\n", "line 1: ONE: "),
            ("hunter.2=a\n", "line 1: the text before `=`"),
            ("# hunter2\n", "no NAME=value"),
            ("", "no NAME=value"),
            ("ONE=hunter2\u{e000}\n", "U+E000"),
        ] {
            let mistakes = shown(text).unwrap_err();
            assert!(mistakes.contains(told), "{text:?}: {mistakes}");
            assert!(!mistakes.contains("hunter"), "{text:?}: {mistakes}");
        }
        let many: String = (0..=MAX_ENTRIES)
            .map(|at| format!("K{at}=value\n"))
            .collect();
        assert!(shown(&many).unwrap_err().contains("at most 200"));
    }

    #[test]
    fn an_endless_file_is_refused_without_reading_all_of_it() {
        assert!(text_of(std::io::repeat(b'x')).is_err());
    }
}
