use proptest::prelude::*;

use super::*;
use casemate_trust::release::Slot;

mod attacker;
mod spellings;

fn searcher(secrets: &[&[u8]]) -> Searcher {
    let watched: Vec<Watched<'_>> = secrets
        .iter()
        .map(|value| Watched {
            value,
            slot: &Slot::Bearer,
        })
        .collect();
    Searcher::new(&watched).unwrap()
}

fn body(pieces: &[&[u8]], secret: &[u8]) -> Vec<u8> {
    let mut scrubber = BodyScrubber::new(searcher(&[secret]));
    let mut seen = Vec::new();
    for piece in pieces {
        seen.extend(scrubber.push(piece).unwrap());
    }
    seen.extend(scrubber.finish().unwrap());
    seen
}

fn finds(secret: &[u8], text: &[u8]) -> bool {
    let searcher = searcher(&[secret]);
    HeadScrubber::new(&searcher).finds(text).unwrap()
}

#[test]
fn text_around_a_secret_stays_and_every_echo_is_replaced() {
    let pieces = [
        &b"{\"a\":1,\"k\":\"hunter2hun"[..],
        b"ter2\",\"l\":\"hunter2hunter2\"} hunter",
    ];
    assert_eq!(
        body(&pieces, b"hunter2hunter2"),
        b"{\"a\":1,\"k\":\"[scrubbed]\",\"l\":\"[scrubbed]\"} hunter"
    );
    let encoded = b"?k=%68unter2hunter2&l=aHVudGVyMmh1bnRlcjI=&m=hunter2hunter";
    assert_eq!(
        body(&[encoded], b"hunter2hunter2"),
        b"?k=[scrubbed]&l=[scrubbed]=&m=hunter2hunter"
    );
}

#[test]
fn matches_are_counted_for_each_value() {
    let mut scrubber = BodyScrubber::new(searcher(&[b"hunter2hunter2", b"correcthorse"]));
    scrubber
        .push(b"hunter2hunter2 aHVudGVyMmh1bnRlcjI= CORRECTHORSE")
        .unwrap();
    scrubber.finish().unwrap();
    assert_eq!(scrubber.take_matches(), [2, 1]);
    assert_eq!(scrubber.take_matches(), [0; 0]);
}

#[test]
fn a_body_that_ends_inside_a_spelling_is_delivered_as_it_is() {
    assert_eq!(
        body(&[b"k=hunter2hunter"], b"hunter2hunter2"),
        b"k=hunter2hunter"
    );
}

#[test]
fn a_list_of_letters_is_found_wherever_it_stands_in_a_long_text() {
    let secret = b"sk_live_51H8xKp2eZvKYlo2";
    let searcher = searcher(&[secret]);
    let letters: Vec<String> = secret.iter().map(|byte| char::from(*byte).into()).collect();
    for between in ["\",\n    \"", "\n        "] {
        let spelled = letters.join(between);
        // Its lines are short, so no view includes a part of it.
        let text: Vec<u8> = b"{\"a\": 1.5},\n"
            .iter()
            .copied()
            .cycle()
            .take(2600)
            .collect();
        for at in (0..text.len() - spelled.len()).step_by(10) {
            let mut text = text.clone();
            text[at..at + spelled.len()].copy_from_slice(spelled.as_bytes());
            let found = HeadScrubber::new(&searcher).finds(&text).unwrap();
            assert!(found, "{between:?} at {at}");
        }
    }
}

#[test]
fn a_long_value_goes_as_one_match_however_it_is_cut() {
    let secret: Vec<u8> = (0..3000u32)
        .map(|n| b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)
        .collect();
    let text = [b"k=", &secret[..], b";"].concat();
    for size in [1, 100, 1000, text.len()] {
        let mut scrubber = BodyScrubber::new(searcher(&[&secret]));
        let mut seen = Vec::new();
        for piece in text.chunks(size) {
            seen.extend(scrubber.push(piece).unwrap());
        }
        seen.extend(scrubber.finish().unwrap());
        assert_eq!(seen, b"k=[scrubbed];", "in pieces of {size}");
        assert_eq!(scrubber.take_matches(), [1]);
    }
}

#[test]
fn an_event_goes_on_at_once_when_its_blank_line_has_come() {
    for [event, next] in [
        ["data: hunter2hunte\n\n", "data: h"],
        ["data: hunter2hunte\r\n\r\n", "data: h"],
        ["data: hunter2hunte\r\r", "data: h"],
    ] {
        let mut scrubber = BodyScrubber::new(searcher(&[b"hunter2hunter2"]));
        let (one, two) = event.split_at(event.len() - 1);
        assert_eq!(scrubber.push(one.as_bytes()).unwrap(), "");
        assert_eq!(scrubber.push(two.as_bytes()).unwrap(), event);
        assert_eq!(scrubber.push(next.as_bytes()).unwrap(), "");
        assert_eq!(
            scrubber.push(event.as_bytes()).unwrap(),
            [next, event].concat()
        );
        assert_eq!(scrubber.finish().unwrap(), "");
    }
}

#[test]
fn other_values_stay() {
    for value in [
        "text/html",
        "https://a.test/?q=hunter",
        "aHVudGV",
        "100%",
        "a\\",
        "&",
        "",
    ] {
        assert!(!finds(b"hunter2hunter2", value.as_bytes()), "{value}");
    }
}

#[test]
fn a_secret_that_is_part_of_the_marker_leaves_nothing_in_its_place() {
    for secret in ["scrubbed", "[scrubbed]", "crub"] {
        let text = format!("a={secret};");
        assert!(!finds(
            secret.as_bytes(),
            &body(&[text.as_bytes()], secret.as_bytes())
        ));
    }
    assert_eq!(body(&[b"a=scrubbed;"], b"scrubbed"), b"a=;");
}

#[test]
fn a_secret_that_is_too_short_is_not_searched_for() {
    let short = Watched {
        value: b"abc",
        slot: &Slot::Bearer,
    };
    assert!(Searcher::new(&[short]).is_none());
    assert!(finds(b"abcd", b"xabcdx"));
}

#[test]
fn a_text_of_encodings_on_top_of_each_other_is_given_up() {
    let text = "%2541%2542YQ==&#37;41=41".repeat(4000);
    let mut scrubber = BodyScrubber::new(searcher(&[b"hunter2hunter2"]));
    let bytes = text.len() as u64;
    scrubber.allow(0);
    assert!(scrubber.push(text.as_bytes()).is_ok());
    let steps = MAX_STEPS_PER_BYTE * bytes - scrubber.left();
    assert!(steps > 5 * bytes, "{steps}");
    let searcher = searcher(&[b"hunter2hunter2"]);
    let found = searcher.holds(text.as_bytes(), &mut Work::new(5 * bytes));
    assert_eq!(found, Err(TooCostly));
}

proptest! {
    #[test]
    fn a_body_without_the_secret_is_the_same_however_it_is_cut(
        text in "[ -~\n]{0,3000}", cuts in proptest::collection::vec(0usize..3000, 0..5),
    ) {
        let secret = "\u{1}\u{2}\u{3}\u{4}never";
        let cuts = cuts.into_iter().map(|cut| cut.min(text.len()));
        let mut cuts: Vec<usize> = cuts.chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]);
        let pieces: Vec<&[u8]> = pieces.collect();
        prop_assert_eq!(body(&pieces, secret.as_bytes()), text.as_bytes());
    }

    #[test]
    fn no_text_makes_the_search_fail(
        secret in proptest::collection::vec(1u8.., 4..40),
        text in proptest::collection::vec(any::<u8>(), 0..400),
        spelled in "[%\\\\&=#xu0-9a-fA-F;,\n ]{0,400}",
    ) {
        let searcher = searcher_of_any(&secret);
        for text in [&text[..], spelled.as_bytes()] {
            if let Some(searcher) = &searcher {
                prop_assert!(HeadScrubber::new(searcher).finds(text).is_ok());
            }
        }
    }
}

fn searcher_of_any(secret: &[u8]) -> Option<Searcher> {
    Searcher::new(&[Watched {
        value: secret,
        slot: &Slot::Bearer,
    }])
}
