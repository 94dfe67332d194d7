use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::prelude::*;

use super::*;

const SECRET: &str = "sk_live/51+Hé \"x\"&'y";

fn body(pieces: &[&[u8]], secret: &[u8]) -> Vec<u8> {
    let mut scrubber = BodyScrubber::new(Scrubber::new(secret).unwrap());
    let mut seen = Vec::new();
    for piece in pieces {
        seen.extend(scrubber.push(Bytes::copy_from_slice(piece)).unwrap());
    }
    seen.extend(scrubber.finish().unwrap());
    seen
}

fn json_escaped(text: &str) -> String {
    let escape = |char: char| {
        let mut units = [0; 2];
        let units = char.encode_utf16(&mut units);
        units
            .iter()
            .map(|unit| format!("\\u{unit:04x}"))
            .collect::<String>()
    };
    text.chars().map(escape).collect()
}

/// A text as servers echo it, by name.
fn echoes(text: &str) -> Vec<(&'static str, Vec<u8>)> {
    let html = text
        .replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;");
    let quoted = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('/', "\\/");
    let lines = STANDARD.encode(text).into_bytes();
    vec![
        ("clear", text.into()),
        ("base64", STANDARD.encode(text).into()),
        (
            "base64 in JSON",
            STANDARD.encode(text).replace('/', "\\/").into(),
        ),
        (
            "base64 in a URL",
            STANDARD
                .encode(text)
                .replace('/', "%2F")
                .replace('+', "%2B")
                .into(),
        ),
        (
            "base64 in lines",
            lines.chunks(8).collect::<Vec<_>>().join(&b"\r\n"[..]),
        ),
        ("base64url", URL_SAFE.encode(text).into()),
        ("hexadecimal", hex::encode(text).into()),
        ("upper hexadecimal", hex::encode_upper(text).into()),
        (
            "percent",
            percent_encode(text.as_bytes(), NON_ALPHANUMERIC)
                .to_string()
                .into(),
        ),
        (
            "a form",
            percent_encode(text.as_bytes(), NON_ALPHANUMERIC)
                .to_string()
                .replace("%20", "+")
                .into(),
        ),
        ("JSON", quoted.into()),
        ("JSON in ASCII", json_escaped(text).into()),
        ("HTML", html.into()),
    ]
}

#[test]
fn every_echo_is_scrubbed_at_every_cut() {
    for before in ["", "a", "ab", "abc{\"k\":\""] {
        for (name, echo) in echoes(&format!("{before}{SECRET}!tail")) {
            for cut in 0..=echo.len() {
                let seen = body(&[&echo[..cut], &echo[cut..]], SECRET.as_bytes());
                let seen = String::from_utf8_lossy(&seen);
                assert!(seen.contains(SCRUBBED), "{name} cut at {cut}: {seen}");
                assert!(seen.len() < echo.len(), "{name} cut at {cut}: {seen}");
            }
            let bytes: Vec<&[u8]> = echo.chunks(1).collect();
            assert!(
                String::from_utf8_lossy(&body(&bytes, SECRET.as_bytes())).contains(SCRUBBED),
                "{name}"
            );
        }
    }
}

#[test]
fn what_stands_around_a_secret_stays_and_every_echo_goes() {
    let seen = body(
        &[
            b"{\"a\":1,\"k\":\"hunter2hun",
            b"ter2\",\"l\":\"hunter2hunter2\"} hunter",
        ],
        b"hunter2hunter2",
    );
    assert_eq!(
        seen,
        b"{\"a\":1,\"k\":\"[scrubbed]\",\"l\":\"[scrubbed]\"} hunter"
    );
}

#[test]
fn a_body_that_ends_within_the_secret_does_not_show_its_beginning() {
    assert_eq!(
        body(&[b"k=hunter2hunter"], b"hunter2hunter2"),
        b"k=[scrubbed]"
    );
    assert_eq!(body(&[b"k=hunter2"], b"hunter2hunter2"), b"k=hunter2");
}

#[test]
fn a_piece_that_cannot_be_the_secret_is_not_held_back() {
    let mut scrubber = BodyScrubber::new(Scrubber::new(b"hunter2hunter2").unwrap());
    assert_eq!(
        scrubber.push(Bytes::from_static(b"data: {}\n\n")).unwrap(),
        "data: {}\n\n"
    );
    assert_eq!(
        scrubber.push(Bytes::from_static(b"data: hunt")).unwrap(),
        "data: "
    );
    assert_eq!(
        scrubber.push(Bytes::from_static(b"ing\n\n")).unwrap(),
        "hunting\n\n"
    );
}

#[test]
fn other_values_stay() {
    let scrubber = Scrubber::new(b"hunter2hunter2").unwrap();
    for value in [
        "text/html",
        "https://a.test/?q=hunter",
        "aHVudGV",
        "100%",
        "a\\",
        "&",
        "",
    ] {
        assert_eq!(
            scrubber.head().scrub(Bytes::from_static(value.as_bytes())),
            value
        );
    }
    assert_eq!(
        scrubber
            .head()
            .scrub(Bytes::from_static(b"/?k=hunter2hunter2")),
        SCRUBBED
    );
}

#[test]
fn a_secret_that_looks_like_an_escape_is_found() {
    for secret in ["%25%25", "\\\\n\\u0041", "&amp;&amp;", "a+b c", "100%25"] {
        assert_eq!(
            body(&[secret.as_bytes()], secret.as_bytes()),
            SCRUBBED.as_bytes(),
            "{secret}"
        );
    }
    assert!(Scrubber::new(b"abc").is_none());
}

#[test]
fn a_body_of_almost_secrets_is_given_up() {
    let secret = vec![b'a'; 64 * 1024];
    let almost = Bytes::from([&secret[1..], b"b"].concat());
    let mut scrubber = BodyScrubber::new(Scrubber::new(&secret).unwrap());
    assert_eq!(
        (0..64).find_map(|_| scrubber.push(almost.clone()).err()),
        Some(TooCostly)
    );
}

#[test]
fn a_long_secret_in_single_bytes_is_scrubbed_within_the_bound() {
    let secret: Vec<u8> = (0..60_000u32)
        .map(|n| b'!' + (n.wrapping_mul(2_654_435_761) >> 25) as u8 % 90)
        .collect();
    let bytes: Vec<&[u8]> = secret.chunks(1).collect();
    assert_eq!(body(&bytes, &secret), SCRUBBED.as_bytes());
}

#[test]
fn fields_that_are_almost_the_secret_have_one_budget() {
    let almost = "a".repeat(4000);
    let scrubber = Scrubber::new(format!("{almost}b").as_bytes()).unwrap();
    let mut head = scrubber.head();
    assert_eq!(head.scrub(Bytes::from_static(b"clean")), "clean");
    for _ in 0..12 {
        let value = head.scrub(Bytes::from(format!("{almost}c")));
        assert_eq!(value, SCRUBBED);
        assert!(head.steps < 2 * MAX_HEAD_STEPS, "{}", head.steps);
    }
}

proptest! {
    #[test]
    fn every_encoding_is_found_wherever_it_begins(
        secret in proptest::collection::vec(1u8..255, 6..40), before in proptest::collection::vec(any::<u8>(), 0..7),
        after in proptest::collection::vec(any::<u8>(), 0..7),
    ) {
        let scrubber = Scrubber::new(&secret).unwrap();
        let whole = [&before[..], &secret, &after].concat();
        prop_assert!(scrubber.head().finds(&whole));
        prop_assert!(scrubber.head().finds(STANDARD.encode(&whole).as_bytes()));
        prop_assert!(scrubber.head().finds(URL_SAFE.encode(&whole).as_bytes()));
        prop_assert!(scrubber.head().finds(hex::encode(&whole).as_bytes()));
        prop_assert!(scrubber.head().finds(hex::encode_upper(&whole).as_bytes()));
        prop_assert!(scrubber.head().finds(percent_encode(&whole, NON_ALPHANUMERIC).to_string().as_bytes()));
    }

    #[test]
    fn a_body_without_the_secret_is_the_same_however_it_is_cut(
        text in "[ -~]{0,80}", cuts in proptest::collection::vec(0usize..80, 0..5),
    ) {
        let secret = "\u{1}\u{2}\u{3}\u{4}never";
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
        prop_assert_eq!(body(&pieces, secret.as_bytes()), text.as_bytes());
    }
}
