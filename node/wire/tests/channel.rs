//! Both ends of a channel against each other, and one end against a hostile peer.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use casemate_wire::channel::{
    CHANNEL_WINDOW_BYTES, EARLY_BYTES, MAX_OUTPUT_BYTES, MAX_STREAMS, STREAM_WINDOW_BYTES,
};
use casemate_wire::frame::{FLAG_ACK, Header, Kind};
use casemate_wire::{
    Channel, Event, Fields, OpenError, RESET_REFUSED, RESET_UNREAD, RequestHead, ResponseHead,
    Side, Violation,
};
use proptest::prelude::*;

fn request() -> RequestHead {
    RequestHead {
        method: "POST".into(),
        target: "https://a.test/".into(),
        fields: Fields::default().with("x", "y"),
    }
}

fn response() -> ResponseHead {
    ResponseHead {
        status: 200,
        fields: Fields::default(),
    }
}

/// Moves `at_most` bytes from one end to the other.
fn carry(from: &mut Channel, to: &mut Channel, at_most: usize) -> usize {
    let length = from.output().len().min(at_most);
    let bytes: Vec<u8> = from.output().drain(..length).collect();
    to.receive(&bytes).unwrap();
    length
}

fn raw(kind: Kind, stream: u32, payload: &[u8]) -> Vec<u8> {
    [
        &Header {
            length: payload.len() as u32,
            stream,
            kind,
            flags: 0,
        }
        .bytes()[..],
        payload,
    ]
    .concat()
}

/// The bytes of a stream opened by an honest end, without its body.
fn opened() -> Vec<u8> {
    let mut opener = Channel::new(Side::Opener);
    opener.open(&request(), false).unwrap();
    std::mem::take(opener.output())
}

#[test]
fn credit_bounds_what_a_sender_can_make_us_hold() {
    let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
    let id = opener.open(&request(), false).unwrap();
    let body = vec![7; 1 << 20];
    let window = STREAM_WINDOW_BYTES as usize;
    assert_eq!(opener.send(id, &body), Some(window));
    carry(&mut opener, &mut acceptor, usize::MAX);
    while let Some(event) = acceptor.event() {
        if let Event::Data { id, bytes } = event {
            acceptor.consumed(id, bytes.len());
        }
    }
    carry(&mut acceptor, &mut opener, usize::MAX);
    assert_eq!(opener.event(), Some(Event::Writable { id }));
    assert_eq!(opener.send(id, &body[window..]), Some(window));
}

#[test]
fn data_over_the_credit_is_a_violation() {
    let mut acceptor = Channel::new(Side::Acceptor);
    acceptor.receive(&opened()).unwrap();
    let piece = raw(Kind::Data, 1, &[0; 32 * 1024]);
    let allowed = STREAM_WINDOW_BYTES as usize / (32 * 1024);
    (0..allowed).for_each(|_| acceptor.receive(&piece).unwrap());
    assert_eq!(acceptor.receive(&piece), Err(Violation::Credit(1)));
}

#[test]
fn windows_over_their_limit_are_a_violation() {
    let mut acceptor = Channel::new(Side::Acceptor);
    assert_eq!(
        acceptor.receive(&raw(Kind::Window, 0, &1u32.to_le_bytes())),
        Err(Violation::Window(0))
    );
    let mut acceptor = Channel::new(Side::Acceptor);
    acceptor.receive(&opened()).unwrap();
    assert_eq!(
        acceptor.receive(&raw(Kind::Window, 1, &u32::MAX.to_le_bytes())),
        Err(Violation::Window(1))
    );
}

#[test]
fn frames_that_cost_little_and_mean_nothing_are_violations() {
    let mut opener = Channel::new(Side::Opener);
    let id = opener.open(&request(), false).unwrap();
    assert_eq!(opener.send(id, &[7; 32 * 1024]), Some(32 * 1024));
    for at in [0, id] {
        assert_eq!(
            opener.receive(&raw(Kind::Window, at, &1u32.to_le_bytes())),
            Err(Violation::Window(at)),
            "an honest end collects before it gives credit back"
        );
    }
    let mut acceptor = Channel::new(Side::Acceptor);
    acceptor.receive(&opened()).unwrap();
    assert!(acceptor.receive(&raw(Kind::Data, 1, b"")).is_err());
    let mut opener = Channel::new(Side::Opener);
    assert!(opener.receive(&raw(Kind::GoAway, 0, b"")).is_err());
    let mut answer = raw(Kind::Ping, 0, &[0; 8]);
    answer[9] = FLAG_ACK;
    let mut asking = Channel::new(Side::Opener);
    asking.ping([0; 8]);
    assert!(asking.receive(&answer).is_ok());
    assert!(
        asking.receive(&answer).is_err(),
        "the channel asked only once"
    );
}

#[test]
fn streams_opened_to_an_end_that_does_not_read_are_bounded() {
    let mut opener = Channel::new(Side::Opener);
    let refused = (0..1_000_000).find_map(|_| match opener.open(&request(), false) {
        Ok(id) => {
            opener.reset(id, 1);
            None
        }
        Err(error) => Some(error),
    });
    assert_eq!(refused, Some(OpenError::Stalled));
    assert!(opener.output().len() < 2 * MAX_OUTPUT_BYTES);
    opener.output().clear();
    assert!(opener.open(&request(), false).is_ok());
}

#[test]
fn unknown_stream_ids_reused_ones_and_frames_out_of_place_are_violations() {
    let refused = |bytes: &[u8]| {
        let mut acceptor = Channel::new(Side::Acceptor);
        acceptor.receive(&opened()).unwrap();
        acceptor.receive(bytes).is_err()
    };
    assert!(refused(&raw(Kind::Data, 9, b"x")));
    assert!(refused(&opened()), "the same id again");
    assert!(refused(&raw(Kind::Ping, 3, &[0; 8])));
    assert!(refused(&raw(Kind::Ping, 0, &[0; 9])));
    assert!(refused(&raw(Kind::Head, 0, &[])));
    assert!(refused(&raw(Kind::Control, 0, b"")));
    assert!(refused(&raw(Kind::Reset, 1, b"abc")));
    assert!(refused(
        &[raw(Kind::End, 1, b""), raw(Kind::Data, 1, b"x")].concat()
    ));
    let mut opener = Channel::new(Side::Opener);
    assert!(
        opener.receive(&opened()).is_err(),
        "an acceptor opens nothing"
    );
}

#[test]
fn a_flood_of_streams_is_a_violation_and_an_honest_end_stops_before() {
    let mut opener = Channel::new(Side::Opener);
    (0..MAX_STREAMS).for_each(|_| assert!(opener.open(&request(), false).is_ok()));
    assert_eq!(
        opener.open(&request(), false),
        Err(OpenError::TooManyStreams)
    );
    let mut acceptor = Channel::new(Side::Acceptor);
    let mut flood = std::mem::take(opener.output());
    let mut extra = opened();
    extra[4..8].copy_from_slice(&(MAX_STREAMS as u32 + 1).to_le_bytes());
    flood.extend(extra);
    assert_eq!(acceptor.receive(&flood), Err(Violation::TooManyStreams));
}

#[test]
fn a_reset_stream_gives_its_credit_back() {
    let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
    for _ in 0..3 * CHANNEL_WINDOW_BYTES / STREAM_WINDOW_BYTES {
        let id = opener.open(&request(), false).unwrap();
        let body = vec![0; STREAM_WINDOW_BYTES as usize];
        let sent = opener.send(id, &body);
        assert_eq!(sent, Some(body.len()), "the channel's credit came back");
        carry(&mut opener, &mut acceptor, usize::MAX);
        acceptor.reset(id, 1);
        carry(&mut acceptor, &mut opener, usize::MAX);
    }
}

#[test]
fn a_discarded_body_does_not_stop_its_sender() {
    let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
    let id = opener.open(&request(), false).unwrap();
    let mut body = &vec![0; 1 << 20][..];
    carry(&mut opener, &mut acceptor, usize::MAX);
    acceptor.discard(id);
    for _ in 0..16 {
        body = &body[opener.send(id, body).unwrap()..];
        carry(&mut opener, &mut acceptor, usize::MAX);
        carry(&mut acceptor, &mut opener, usize::MAX);
    }
    assert!(body.is_empty());
}

#[test]
fn streams_that_an_end_has_not_begun_when_it_goes_away_are_over_at_both_ends() {
    let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
    let ids: Vec<_> = (0..4)
        .map(|_| opener.open(&request(), false).unwrap())
        .collect();
    // The acceptor has received three of the requests, and begun one.
    let length = opener.output().len() / 4 * 3;
    carry(&mut opener, &mut acceptor, length);
    acceptor.respond(ids[0], &response(), false).unwrap();
    acceptor.go_away(ids[0]);
    assert_eq!(acceptor.streams(), 1);
    // Crosses the notice on its way.
    for id in &ids {
        assert_eq!(opener.send(*id, b"body"), Some(4));
        opener.finish(*id, &Fields::default());
    }
    carry(&mut opener, &mut acceptor, usize::MAX);
    carry(&mut acceptor, &mut opener, usize::MAX);
    let events: Vec<_> = std::iter::from_fn(|| opener.event()).collect();
    let reset = |id| Event::Reset {
        id,
        code: RESET_REFUSED,
    };
    assert!(matches!(events[0], Event::Response { id, .. } if id == ids[0]));
    assert_eq!(
        events[1..],
        [Event::GoAway, reset(ids[1]), reset(ids[2]), reset(ids[3])]
    );
    assert_eq!((opener.streams(), acceptor.streams()), (1, 1));
    assert_eq!(opener.open(&request(), true), Err(OpenError::GoingAway));
    // The stream that was begun continues.
    acceptor.finish(ids[0], &Fields::default());
    carry(&mut acceptor, &mut opener, usize::MAX);
    assert_eq!((opener.streams(), acceptor.streams()), (0, 0));
    let requests = std::iter::from_fn(|| acceptor.event());
    let requests = requests.filter(|event| matches!(event, Event::Request { .. }));
    assert_eq!(requests.count(), 3, "the last came after the end");
}

#[test]
fn only_the_beginning_of_a_body_is_sent_before_it_is_asked_for() {
    let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
    let id = opener.open_to_ask(&request()).unwrap();
    let body = vec![1; STREAM_WINDOW_BYTES as usize * 2];
    assert_eq!(opener.is_asked(id), Some(false));
    assert_eq!(opener.send(id, &body), Some(EARLY_BYTES as usize));
    carry(&mut opener, &mut acceptor, usize::MAX);
    acceptor.ask(id);
    acceptor.ask(id);
    carry(&mut acceptor, &mut opener, usize::MAX);
    assert_eq!(opener.event(), Some(Event::Writable { id }));
    assert_eq!(opener.is_asked(id), Some(true));
    let rest = STREAM_WINDOW_BYTES - EARLY_BYTES;
    assert_eq!(opener.send(id, &body), Some(rest as usize));
    carry(&mut opener, &mut acceptor, usize::MAX);
    // An end that sends more before it was asked breaks the protocol.
    let mut acceptor = Channel::new(Side::Acceptor);
    let mut opener = Channel::new(Side::Opener);
    let id = opener.open_to_ask(&request()).unwrap();
    carry(&mut opener, &mut acceptor, usize::MAX);
    let data = vec![0; EARLY_BYTES as usize];
    acceptor.receive(&raw(Kind::Data, id, &data)).unwrap();
    let more = acceptor.receive(&raw(Kind::Data, id, &[0]));
    assert_eq!(more, Err(Violation::Credit(id)));
}

#[test]
fn the_sender_of_a_body_that_nobody_reads_is_stopped_when_the_answer_has_ended() {
    for discards_first in [true, false] {
        let (mut opener, mut acceptor) = (Channel::new(Side::Opener), Channel::new(Side::Acceptor));
        let id = opener.open(&request(), false).unwrap();
        carry(&mut opener, &mut acceptor, usize::MAX);
        acceptor.respond(id, &response(), false).unwrap();
        if discards_first {
            acceptor.discard(id);
            acceptor.finish(id, &Fields::default());
        } else {
            acceptor.finish(id, &Fields::default());
            acceptor.discard(id);
        }
        carry(&mut acceptor, &mut opener, usize::MAX);
        let events: Vec<_> = std::iter::from_fn(|| opener.event()).collect();
        let trailers = Fields::default();
        let code = RESET_UNREAD;
        assert_eq!(
            events[1..],
            [Event::End { id, trailers }, Event::Reset { id, code }]
        );
        assert_eq!((opener.streams(), acceptor.streams()), (0, 0));
    }
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), acceptor: bool) {
        let mut end = Channel::new(if acceptor { Side::Acceptor } else { Side::Opener });
        let _refused = end.receive(&opened());
        let _refused = end.receive(&bytes);
        prop_assert!(end.output().len() <= bytes.len() + 4096);
    }

    #[test]
    fn frames_in_any_order_never_panic(frames in proptest::collection::vec((1u8..9, 0u32..4, 0usize..70), 0..60)) {
        let mut end = Channel::new(Side::Acceptor);
        for (kind, stream, length) in frames {
            let mut bytes = raw(Kind::Data, stream, &vec![1; length]);
            bytes[8] = kind;
            if end.receive(&bytes).is_err() {
                break;
            }
        }
        prop_assert!(end.streams() <= 4);
    }
}
