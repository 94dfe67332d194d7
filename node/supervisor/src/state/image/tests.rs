//! A disk, a control plane and init, each of which may do as it likes.

use super::*;

const OLD: &[u8] =
    br#"{"version":"1.0.0","blessed":true,"takes_images":true,"refused":[],"storage_key":"tpm","new":[1]}"#;

fn image(version: &str, bytes: u64) -> Image {
    Image {
        version: version.parse().unwrap(),
        digest: Digest::of(version.as_bytes()),
        bytes,
    }
}

/// Connected, of version 1.0.0, with this image accepted.
fn fetching(image: Image) -> Fetching {
    let mut fetching = Fetching::new(true);
    fetching.machine(Ok(OLD));
    fetching.connected(true);
    fetching.accepted(image);
    fetching
}

fn looked(fetched: u64, is_whole: bool) -> Done {
    let room = u64::MAX / 2;
    Done::Looked {
        fetched,
        is_whole,
        room,
    }
}

fn written(fetched: u64) -> Done {
    let room = u64::MAX / 2;
    Done::Written { fetched, room }
}

fn ask(image: &Image, offset: u64, bytes: u32) -> Option<Action> {
    Some(Action::Ask {
        digest: image.digest,
        offset,
        bytes,
    })
}

fn state(fetching: &Fetching) -> String {
    fetching.describe()["state"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_comes_in_pieces_one_after_the_other_and_goes_on_where_it_was() {
    let piece = u64::from(MAX_IMAGE_PIECE_BYTES);
    let image = image("1.0.1", 2 * piece + 10);
    let mut fetching = fetching(image);
    let keep = Some(image);
    assert_eq!(fetching.next(0), Some(Action::Disk(Job::Look { keep })));
    assert_eq!(fetching.next(0), None);
    fetching.done(looked(7, false), 0);
    assert_eq!(fetching.next(0), ask(&image, 7, MAX_IMAGE_PIECE_BYTES));
    assert_eq!(fetching.next(0), None);
    // The connection breaks, and another one asks again.
    fetching.connected(false);
    assert_eq!(fetching.next(0), None);
    fetching.connected(true);
    assert_eq!(fetching.next(0), ask(&image, 7, MAX_IMAGE_PIECE_BYTES));
    // A piece of the connection before is not written where it does not belong.
    assert_eq!(fetching.piece(&image.digest, 0, vec![1], 0), None);
    assert_eq!(fetching.next(0), ask(&image, 7, MAX_IMAGE_PIECE_BYTES));
    let bytes = vec![1; MAX_IMAGE_PIECE_BYTES as usize];
    let job = fetching.piece(&image.digest, 7, bytes.clone(), 0);
    let offset = 7;
    let wanted = Job::Write {
        image,
        offset,
        bytes,
    };
    assert_eq!(job, Some(wanted));
    assert_eq!(
        (fetching.next(0), state(&fetching)),
        (None, "fetching".into())
    );
    let fetched = 2 * piece;
    fetching.done(written(fetched), 0);
    assert_eq!(fetching.next(0), ask(&image, 2 * piece, 10));
    // More than there is of it is cut.
    let job = fetching.piece(&image.digest, 2 * piece, vec![1; 11], 0);
    assert!(matches!(job, Some(Job::Write { bytes, .. }) if bytes.len() == 10));
    let fetched = image.bytes;
    fetching.done(written(fetched), 0);
    assert_eq!(state(&fetching), "verifying");
    assert_eq!(fetching.next(0), Some(Action::Disk(Job::Finish { image })));
    fetching.done(Done::Finished { is_right: true }, 0);
    assert_eq!((fetching.next(0), state(&fetching)), (None, "ready".into()));
    assert_eq!(fetching.describe()["fetched_bytes"], image.bytes);
    assert_eq!(fetching.describe_machine()["new"], serde_json::json!([1]));
}

#[test]
fn wrong_bytes_are_fetched_again_after_a_pause_that_grows() {
    let image = image("1.0.1", 10);
    let mut fetching = fetching(image);
    fetching.next(0);
    fetching.done(looked(0, false), 0);
    let (mut now, mut before) = (0, 0);
    for round in 0..12 {
        assert_eq!(fetching.next(now), ask(&image, 0, 10), "{round}");
        fetching.piece(&image.digest, 0, vec![1; 10], now).unwrap();
        fetching.done(written(10), now);
        assert_eq!(
            fetching.next(now),
            Some(Action::Disk(Job::Finish { image }))
        );
        fetching.done(Done::Finished { is_right: false }, now);
        assert!(
            fetching.describe()["error"]
                .as_str()
                .unwrap()
                .contains("digest")
        );
        let start = now;
        while fetching.again_ms > now {
            assert_eq!(fetching.next(now), None);
            now += 1000;
        }
        assert!((before..=RETRY_MAX_MS).contains(&(now - start)), "{round}");
        before = now - start;
    }
    assert_eq!(before, RETRY_MAX_MS);
}

#[test]
fn nothing_is_fetched_that_the_machine_has_has_refused_or_cannot_hold() {
    let piece = image("1.0.1", 10);
    let refused = format!(
        r#"{{"version":"1.0.0","takes_images":true,"refused":[{{"version":"1.0.1","digest":"{}","why":"x"}}]}}"#,
        piece.digest
    );
    let cases = [
        (r#"{"version":"1.0.1"}"#, "installed"),
        (r#"{"version":"1.1.0"}"#, "older"),
        (r#"{"version":"1.0.0"}"#, "not_taken"),
        (refused.as_str(), "refused"),
    ];
    for (machine, wanted) in cases {
        let mut fetching = fetching(piece);
        fetching.machine(Ok(machine.as_bytes()));
        // What was fetched before goes.
        let keep = None;
        assert_eq!(fetching.next(0), Some(Action::Disk(Job::Look { keep })));
        fetching.done(looked(0, false), 0);
        assert_eq!(
            (fetching.next(0), state(&fetching).as_str()),
            (None, wanted)
        );
    }
    let mut fetching = fetching(piece);
    fetching.next(0);
    let room = MARGIN_BYTES + 9;
    let full = || Done::Looked {
        fetched: 0,
        is_whole: false,
        room,
    };
    fetching.done(full(), 0);
    assert_eq!(
        (fetching.next(1), state(&fetching)),
        (None, "no_room".into())
    );
    let later = ROOM_AGAIN_MS + 1;
    let keep = Some(piece);
    assert_eq!(fetching.next(later), Some(Action::Disk(Job::Look { keep })));
    fetching.done(looked(0, false), later);
    assert_eq!(fetching.next(later), ask(&piece, 0, 10));
}

#[test]
fn without_a_word_of_init_nothing_is_done() {
    let mut none = Fetching::new(false);
    none.connected(true);
    none.accepted(image("9.0.0", 10));
    assert_eq!((none.next(0), state(&none)), (None, "not_an_image".into()));
    let mut fetching = fetching(image("9.0.0", 10));
    let bad: [Result<&[u8], String>; 4] = [
        Err("no such file".into()),
        Ok(b"{"),
        Ok(br#"{"version":"1"}"#),
        Ok(br#"{"version":"1.0.0","refused":[{"digest":"x"}]}"#),
    ];
    for read in bad {
        fetching.machine(read);
        let found = (fetching.next(0), state(&fetching));
        assert_eq!(found, (None, "machine_unknown".into()));
        assert!(fetching.describe()["error"].is_string());
    }
    fetching.machine(Ok(OLD));
    assert!(fetching.next(0).is_some());
}

#[test]
fn a_newer_image_takes_the_place_of_one_on_its_way() {
    let (first, second) = (image("1.0.1", 10), image("1.0.2", 20));
    let mut fetching = fetching(first);
    fetching.next(0);
    fetching.done(looked(0, false), 0);
    assert_eq!(fetching.next(0), ask(&first, 0, 10));
    fetching.accepted(second);
    let keep = Some(second);
    assert_eq!(fetching.next(0), Some(Action::Disk(Job::Look { keep })));
    // The piece of the first comes in the middle of that.
    assert_eq!(fetching.piece(&first.digest, 0, vec![1; 10], 0), None);
    fetching.done(looked(0, false), 0);
    assert_eq!(fetching.next(0), ask(&second, 0, 20));
    fetching.unavailable(&second.digest, 0);
    assert_eq!(fetching.next(0), None);
    assert_eq!(fetching.next(RETRY_MIN_MS), ask(&second, 0, 20));
}

#[test]
fn a_disk_that_others_fill_gets_its_room_back() {
    let image = image("1.0.1", 100);
    let mut fetching = fetching(image);
    fetching.next(0);
    fetching.done(looked(0, false), 0);
    fetching.next(0);
    fetching.piece(&image.digest, 0, vec![1; 50], 0).unwrap();
    let (fetched, room) = (50, MARGIN_BYTES - 1);
    fetching.done(Done::Written { fetched, room }, 0);
    assert_eq!(fetching.next(0), None);
    assert!(
        fetching.describe()["error"]
            .as_str()
            .unwrap()
            .contains("fill")
    );
    let keep = Some(image);
    let look = Some(Action::Disk(Job::Look { keep }));
    assert_eq!(fetching.next(RETRY_MIN_MS), look);
}
