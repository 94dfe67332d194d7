//! Every spelling that an ordinary server produces, and every two of them on top of each other.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use data_encoding::BASE32;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};

use super::*;
use crate::slot::QUERY_VALUE;

type Spelling = (&'static str, fn(&[u8]) -> Vec<u8>);

fn each(text: &[u8], spell: impl Fn(u8) -> String) -> Vec<u8> {
    text.iter()
        .flat_map(|byte| spell(*byte).into_bytes())
        .collect()
}

fn joined(text: &[u8], between: &str, spell: impl Fn(u8) -> String) -> Vec<u8> {
    let all: Vec<String> = text.iter().map(|byte| spell(*byte)).collect();
    all.join(between).into_bytes()
}

fn folded(text: &[u8], width: usize, line_break: &[u8]) -> Vec<u8> {
    text.chunks(width).collect::<Vec<_>>().join(line_break)
}

/// Escapes only the characters that must be escaped.
fn some(text: &[u8], special: &[u8], spell: impl Fn(u8) -> String) -> Vec<u8> {
    each(text, |byte| {
        if special.contains(&byte) || !byte.is_ascii() {
            spell(byte)
        } else {
            char::from(byte).to_string()
        }
    })
}

fn xxd(text: &[u8]) -> Vec<u8> {
    let lines = text.chunks(16).enumerate().map(|(number, line)| {
        let words: Vec<String> = line.chunks(2).map(hex::encode).collect();
        let shown = String::from_utf8_lossy(line).replace('\n', ".");
        format!("{:08x}: {:<39}  {shown}\n", number * 16, words.join(" "))
    });
    lines.collect::<String>().into_bytes()
}

fn hexdump(text: &[u8]) -> Vec<u8> {
    let lines = text.chunks(16).enumerate().map(|(number, line)| {
        let half =
            |part: &[u8]| String::from_utf8(joined(part, " ", |b| format!("{b:02x}"))).unwrap();
        let (one, two) = line.split_at(line.len().min(8));
        let shown = String::from_utf8_lossy(line).replace('\n', ".");
        let digits = format!("{}  {}", half(one), half(two));
        format!("{:08x}  {digits:<48}  |{shown}|\n", number * 16)
    });
    lines.collect::<String>().into_bytes()
}

fn html_name(byte: u8) -> String {
    match byte {
        b'_' => "&lowbar;".into(),
        b'.' => "&period;".into(),
        b'/' => "&sol;".into(),
        b'&' => "&amp;".into(),
        b'"' => "&quot;".into(),
        b'=' => "&equals;".into(),
        b'%' => "&percnt;".into(),
        b'+' => "&plus;".into(),
        b':' => "&colon;".into(),
        b'\\' => "&bsol;".into(),
        _ => char::from(byte).to_string(),
    }
}

fn json(text: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::to_vec(text).unwrap(),
        Err(_) => text.to_vec(),
    }
}

/// The name of each spelling, and a function that writes a text in it.
const SPELLINGS: &[Spelling] = &[
    ("clear", <[u8]>::to_vec),
    ("upper case", <[u8]>::to_ascii_uppercase),
    ("lower case", <[u8]>::to_ascii_lowercase),
    ("folded", |text| folded(text, 76, b"\r\n ")),
    ("in groups", |text| folded(text, 4, b" ")),
    ("percent, all", |text| each(text, |b| format!("%{b:02X}"))),
    ("percent, lower case", |text| {
        each(text, |b| format!("%{b:02x}"))
    }),
    ("percent, some", |text| {
        percent_encode(text, NON_ALPHANUMERIC)
            .to_string()
            .into_bytes()
    }),
    ("form", |text| {
        let text = percent_encode(text, NON_ALPHANUMERIC).to_string();
        text.replace("%20", "+").into_bytes()
    }),
    ("JSON", json),
    ("JSON with escaped slashes", |text| {
        let json = json(text);
        let escaped = json.iter().flat_map(|byte| match byte {
            b'/' => &b"\\/"[..],
            other => std::slice::from_ref(other),
        });
        escaped.copied().collect()
    }),
    ("JSON in ASCII", |text| {
        each(text, |b| format!("\\u{b:04x}"))
    }),
    ("JavaScript \\x", |text| {
        each(text, |b| format!("\\x{b:02x}"))
    }),
    ("JavaScript \\u{}", |text| {
        each(text, |b| format!("\\u{{{b:x}}}"))
    }),
    ("Go and HTML in JSON", |text| {
        some(text, b"<>&'\"\\", |b| format!("\\u{b:04x}"))
    }),
    ("octal", |text| each(text, |b| format!("\\{b:03o}"))),
    ("HTML, some", |text| {
        some(text, b"<>&'\"", |b| format!("&#{b};"))
    }),
    ("HTML, names", |text| each(text, html_name)),
    ("HTML, decimal", |text| each(text, |b| format!("&#{b};"))),
    ("HTML, hexadecimal", |text| {
        each(text, |b| format!("&#x{b:x};"))
    }),
    ("HTML without ;", |text| each(text, |b| format!("&#{b:04}"))),
    ("quoted-printable", |text| {
        let lines = text
            .chunks(24)
            .map(|line| some(line, b"=", |b| format!("={b:02X}")));
        lines.collect::<Vec<_>>().join(&b"=\r\n"[..])
    }),
    ("quoted-printable, all", |text| {
        each(text, |b| format!("={b:02X}"))
    }),
    ("hexadecimal", |text| hex::encode(text).into_bytes()),
    ("upper hexadecimal", |text| {
        hex::encode_upper(text).into_bytes()
    }),
    ("hexadecimal with :", |text| {
        joined(text, ":", |b| format!("{b:02x}"))
    }),
    ("hexadecimal with spaces", |text| {
        joined(text, " ", |b| format!("{b:02x}"))
    }),
    ("hexadecimal, C", |text| {
        joined(text, ", ", |b| format!("0x{b:02x}"))
    }),
    ("xxd", xxd),
    ("hexdump", hexdump),
    ("a JSON array", |text| serde_json::to_vec(text).unwrap()),
    ("a JSON array in lines", |text| {
        joined(text, ",\n    ", |b| b.to_string())
    }),
    ("a JSON object of numbered bytes", |text| {
        let bytes = text.iter().enumerate();
        let pairs: Vec<_> = bytes.map(|(at, b)| format!("\"{at}\":{b}")).collect();
        format!("{{{}}}", pairs.join(",")).into_bytes()
    }),
    ("UTF-16, little-endian", |text| {
        text.iter().flat_map(|b| [*b, 0]).collect()
    }),
    ("UTF-16, big-endian", |text| {
        text.iter().flat_map(|b| [0, *b]).collect()
    }),
    ("UTF-32", |text| {
        text.iter().flat_map(|b| [*b, 0, 0, 0]).collect()
    }),
    ("base32", |text| BASE32.encode(text).into_bytes()),
    ("base64", |text| STANDARD.encode(text).into_bytes()),
    ("base64, second alignment", |text| {
        STANDARD.encode([b"a", text].concat()).into_bytes()
    }),
    ("base64, third alignment", |text| {
        STANDARD.encode([b"ab", text].concat()).into_bytes()
    }),
    ("base64 for URLs", |text| {
        URL_SAFE_NO_PAD.encode(text).into_bytes()
    }),
    ("base64 in lines", |text| {
        folded(STANDARD.encode(text).as_bytes(), 64, b"\n")
    }),
    ("base64 in short lines", |text| {
        folded(STANDARD.encode(text).as_bytes(), 16, b"\r\n  ")
    }),
];

/// Secrets of the usual issuers, and some that look like escapes themselves.
const SECRETS: &[&str] = &[
    "sk_live_51H8xKp2eZvKYlo2",
    "correcthorsebattery",
    "sv=2024%2F11&sig=a%2Bb%3D\\u0026\"x",
    "&amp;=3D\\x41%25'quoted'+end/",
];

/// Every pair of spellings, except those that no server produces or that lose the text: a coding
/// whose letters were changed in case or grouped with spaces, and lines that were joined although
/// they were folded.
fn pairs() -> impl Iterator<Item = (&'static Spelling, &'static Spelling)> {
    let is_plain_only = |name: &str| matches!(name, "upper case" | "lower case" | "in groups");
    let is_lines = |name: &str| matches!(name, "xxd" | "hexdump" | "a JSON array in lines");
    let fits = move |inner: &str, outer: &str| {
        !(is_plain_only(outer) && inner != "clear" || outer == "folded" && is_lines(inner))
            && (inner, outer) != ("base64 in short lines", "form")
    };
    SPELLINGS.iter().flat_map(move |inner| {
        let outer = SPELLINGS.iter();
        let outer = outer.filter(move |outer| fits(inner.0, outer.0));
        outer.map(move |outer| (inner, outer))
    })
}

#[test]
fn every_spelling_and_every_two_of_them_are_found() {
    let mut missed = Vec::new();
    let mut count = 0;
    for secret in SECRETS {
        let searcher = searcher(&[secret.as_bytes()]);
        for ((inner, spell), (outer, spell_again)) in pairs() {
            let text = spell_again(&spell(format!("key={secret}!").as_bytes()));
            count += 1;
            if !HeadScrubber::new(&searcher).finds(&text).unwrap() {
                missed.push(format!("{secret}: {outer} of {inner}"));
            }
        }
    }
    assert!(
        missed.is_empty(),
        "{} of {count}: {missed:#?}",
        missed.len()
    );
    assert!(count >= 4 * 200, "{count}");
}

#[test]
fn every_spelling_is_replaced_wholly_at_every_cut() {
    let secret = SECRETS[0];
    for (name, spell) in SPELLINGS {
        let text = spell(format!("ab{secret}").as_bytes());
        let text = [&b"<p>~"[..], &text, b"~</p>"].concat();
        for cut in 0..=text.len() {
            let seen = body(&[&text[..cut], &text[cut..]], secret.as_bytes());
            let shown = String::from_utf8_lossy(&seen);
            assert!(shown.contains(SCRUBBED), "{name} cut at {cut}: {shown}");
            assert!(!finds(secret.as_bytes(), &seen), "{name} cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.chunks(1).collect();
        let seen = body(&bytes, secret.as_bytes());
        assert!(String::from_utf8_lossy(&seen).contains(SCRUBBED), "{name}");
    }
}

#[test]
fn what_was_sent_is_found_under_encodings_of_its_own() {
    let (basic, query) = (
        Slot::Basic {
            username: "user".into(),
        },
        Slot::Query { name: "key".into() },
    );
    let secret = "sk_live_51H8+xKp2/eZvKYlo2";
    let pair = STANDARD.encode(format!("user:{secret}"));
    let parameter = percent_encode(secret.as_bytes(), QUERY_VALUE).to_string();
    for (slot, sent) in [(&basic, pair), (&query, parameter)] {
        let watched = Watched {
            value: secret.as_bytes(),
            slot,
        };
        let searcher = Searcher::new(&[watched]).unwrap();
        // Groups that cut an escape apart are not a spelling.
        let pairs = pairs().filter(|(inner, outer)| ![inner.0, outer.0].contains(&"in groups"));
        for ((inner, spell), (outer, spell_again)) in pairs {
            let text = spell_again(&spell(sent.as_bytes()));
            let found = HeadScrubber::new(&searcher).finds(&text).unwrap();
            assert!(found, "{outer} of {inner} of {sent}");
        }
    }
}

#[test]
fn a_secret_beyond_ascii_is_found_in_every_charset() {
    let secret = "pässwörd_héslo_ñandú";
    let misread: String = secret.bytes().map(char::from).collect();
    let latin_1: Vec<u8> = secret.chars().map(|c| c as u8).collect();
    let units = || secret.encode_utf16();
    let texts = [
        secret.as_bytes().to_vec(),
        latin_1,
        misread.into_bytes(),
        units().flat_map(u16::to_le_bytes).collect(),
        units().flat_map(u16::to_be_bytes).collect(),
    ];
    for text in texts {
        // Spellings that write characters, not bytes, are tested below.
        let of_characters = ["JSON in ASCII", "JavaScript \\u{}", "Go and HTML in JSON"];
        let of_bytes = SPELLINGS
            .iter()
            .filter(|(name, _)| !of_characters.contains(name) && !name.starts_with("HTML"));
        for (name, spell) in of_bytes {
            let text = spell(&text);
            assert!(
                finds(secret.as_bytes(), &text),
                "{name} of {}",
                text.escape_ascii()
            );
        }
    }
    let json = units()
        .map(|unit| format!("\\u{unit:04x}"))
        .collect::<String>();
    let html = secret.replace('ä', "&auml;").replace('ñ', "&ntilde");
    for text in [json, html] {
        assert!(finds(secret.as_bytes(), text.as_bytes()), "{text}");
    }
}
