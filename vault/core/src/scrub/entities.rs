//! Named character references of HTML (HTML, section 13.5), for the characters that a credential
//! may contain: those of ASCII that are not letters or digits, and those of Latin-1.

/// References that are also valid without `;` (HTML, section 13.2.5.73), sorted: name and
/// character.
const BARE: &[(&str, char)] = &[
    ("AElig", '\u{c6}'),
    ("AMP", '&'),
    ("Aacute", '\u{c1}'),
    ("Acirc", '\u{c2}'),
    ("Agrave", '\u{c0}'),
    ("Aring", '\u{c5}'),
    ("Atilde", '\u{c3}'),
    ("Auml", '\u{c4}'),
    ("Ccedil", '\u{c7}'),
    ("ETH", '\u{d0}'),
    ("Eacute", '\u{c9}'),
    ("Ecirc", '\u{ca}'),
    ("Egrave", '\u{c8}'),
    ("Euml", '\u{cb}'),
    ("GT", '>'),
    ("Iacute", '\u{cd}'),
    ("Icirc", '\u{ce}'),
    ("Igrave", '\u{cc}'),
    ("Iuml", '\u{cf}'),
    ("LT", '<'),
    ("Ntilde", '\u{d1}'),
    ("Oacute", '\u{d3}'),
    ("Ocirc", '\u{d4}'),
    ("Ograve", '\u{d2}'),
    ("Oslash", '\u{d8}'),
    ("Otilde", '\u{d5}'),
    ("Ouml", '\u{d6}'),
    ("QUOT", '"'),
    ("THORN", '\u{de}'),
    ("Uacute", '\u{da}'),
    ("Ucirc", '\u{db}'),
    ("Ugrave", '\u{d9}'),
    ("Uuml", '\u{dc}'),
    ("Yacute", '\u{dd}'),
    ("aacute", '\u{e1}'),
    ("acirc", '\u{e2}'),
    ("acute", '\u{b4}'),
    ("aelig", '\u{e6}'),
    ("agrave", '\u{e0}'),
    ("amp", '&'),
    ("aring", '\u{e5}'),
    ("atilde", '\u{e3}'),
    ("auml", '\u{e4}'),
    ("brvbar", '\u{a6}'),
    ("ccedil", '\u{e7}'),
    ("cedil", '\u{b8}'),
    ("cent", '\u{a2}'),
    ("copy", '\u{a9}'),
    ("curren", '\u{a4}'),
    ("deg", '\u{b0}'),
    ("divide", '\u{f7}'),
    ("eacute", '\u{e9}'),
    ("ecirc", '\u{ea}'),
    ("egrave", '\u{e8}'),
    ("eth", '\u{f0}'),
    ("euml", '\u{eb}'),
    ("frac12", '\u{bd}'),
    ("frac14", '\u{bc}'),
    ("frac34", '\u{be}'),
    ("gt", '>'),
    ("iacute", '\u{ed}'),
    ("icirc", '\u{ee}'),
    ("iexcl", '\u{a1}'),
    ("igrave", '\u{ec}'),
    ("iquest", '\u{bf}'),
    ("iuml", '\u{ef}'),
    ("laquo", '\u{ab}'),
    ("lt", '<'),
    ("macr", '\u{af}'),
    ("micro", '\u{b5}'),
    ("middot", '\u{b7}'),
    ("nbsp", '\u{a0}'),
    ("not", '\u{ac}'),
    ("ntilde", '\u{f1}'),
    ("oacute", '\u{f3}'),
    ("ocirc", '\u{f4}'),
    ("ograve", '\u{f2}'),
    ("ordf", '\u{aa}'),
    ("ordm", '\u{ba}'),
    ("oslash", '\u{f8}'),
    ("otilde", '\u{f5}'),
    ("ouml", '\u{f6}'),
    ("para", '\u{b6}'),
    ("plusmn", '\u{b1}'),
    ("pound", '\u{a3}'),
    ("quot", '"'),
    ("raquo", '\u{bb}'),
    ("reg", '\u{ae}'),
    ("sect", '\u{a7}'),
    ("shy", '\u{ad}'),
    ("sup1", '\u{b9}'),
    ("sup2", '\u{b2}'),
    ("sup3", '\u{b3}'),
    ("szlig", '\u{df}'),
    ("thorn", '\u{fe}'),
    ("times", '\u{d7}'),
    ("uacute", '\u{fa}'),
    ("ucirc", '\u{fb}'),
    ("ugrave", '\u{f9}'),
    ("uml", '\u{a8}'),
    ("uuml", '\u{fc}'),
    ("yacute", '\u{fd}'),
    ("yen", '\u{a5}'),
    ("yuml", '\u{ff}'),
];

/// References that are valid with `;` alone, sorted: name and character.
const CLOSED: &[(&str, char)] = &[
    ("DiacriticalGrave", '`'),
    ("Hat", '^'),
    ("NewLine", '\n'),
    ("Tab", '\t'),
    ("UnderBar", '_'),
    ("VerticalLine", '|'),
    ("apos", '\''),
    ("ast", '*'),
    ("bsol", '\\'),
    ("colon", ':'),
    ("comma", ','),
    ("commat", '@'),
    ("dollar", '$'),
    ("equals", '='),
    ("excl", '!'),
    ("grave", '`'),
    ("hyphen", '\u{2010}'),
    ("lbrace", '{'),
    ("lbrack", '['),
    ("lcub", '{'),
    ("lowbar", '_'),
    ("lpar", '('),
    ("lsqb", '['),
    ("midast", '*'),
    ("num", '#'),
    ("percnt", '%'),
    ("period", '.'),
    ("plus", '+'),
    ("quest", '?'),
    ("rbrace", '}'),
    ("rbrack", ']'),
    ("rcub", '}'),
    ("rpar", ')'),
    ("rsqb", ']'),
    ("semi", ';'),
    ("sol", '/'),
    ("verbar", '|'),
    ("vert", '|'),
];

/// Longest name.
const MAX_NAME_BYTES: usize = 16;

/// The character of the reference whose name begins a text, and the length of the reference behind
/// its `&`. The longest name counts.
pub(super) fn named(text: &[u8]) -> Option<(char, usize)> {
    let letters = text.iter().take(MAX_NAME_BYTES);
    let letters = letters.take_while(|byte| byte.is_ascii_alphanumeric());
    let name = &text[..letters.count()];
    let is_closed = text.get(name.len()) == Some(&b';');
    if is_closed && let Some(char) = usual(name) {
        return Some((char, name.len() + 1));
    }
    if is_closed && let Ok(at) = CLOSED.binary_search_by(|(own, _)| own.as_bytes().cmp(name)) {
        return Some((CLOSED[at].1, name.len() + 1));
    }
    let (bare, char) = longest_bare(name)?;
    let closed = is_closed && bare.len() == name.len();
    Some((char, bare.len() + usize::from(closed)))
}

/// The longest name at the beginning of this one, among those that are valid without `;`.
fn longest_bare(name: &[u8]) -> Option<(&'static str, char)> {
    let initial = name.first()?;
    let from = BARE.partition_point(|(own, _)| own.as_bytes()[0] < *initial);
    let own = BARE[from..]
        .iter()
        .take_while(|(own, _)| own.as_bytes()[0] == *initial);
    let matching = own.filter(|(own, _)| name.starts_with(own.as_bytes()));
    matching.max_by_key(|(own, _)| own.len()).copied()
}

/// The most common references are checked first.
fn usual(name: &[u8]) -> Option<char> {
    Some(match name {
        b"amp" => '&',
        b"lt" => '<',
        b"gt" => '>',
        b"quot" => '"',
        b"apos" => '\'',
        b"nbsp" => '\u{a0}',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_a_semicolon() {
        let cases: &[(&str, Option<(char, usize)>)] = &[
            ("amp;", Some(('&', 4))),
            ("ampx", Some(('&', 3))),
            ("lowbar;", Some(('_', 7))),
            ("lowbar", None),
            ("eacute;", Some(('é', 7))),
            ("eacutes", Some(('é', 6))),
            ("DiacriticalGrave;", Some(('`', 17))),
            ("nothing;", Some(('¬', 3))),
            ("thing;", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(named(text.as_bytes()), *expected, "{text}");
        }
        for (name, char) in BARE {
            assert_eq!(named(name.as_bytes()), Some((*char, name.len())));
        }
        for (name, char) in CLOSED {
            let closed = format!("{name};");
            assert_eq!(named(closed.as_bytes()), Some((*char, closed.len())));
        }
    }

    #[test]
    fn the_lists_are_in_order_and_no_name_is_longer_than_the_longest() {
        for list in [BARE, CLOSED] {
            assert!(list.is_sorted_by_key(|(name, _)| *name));
        }
        let lengths = BARE.iter().chain(CLOSED).map(|(name, _)| name.len());
        assert_eq!(lengths.max(), Some(MAX_NAME_BYTES));
    }
}
