//! The driver over real socket pairs, with honest and hostile peers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate_channel::{Acceptor, Opener, RecvBody, StreamError, acceptor, opener, pair};
use casemate_wire::{Channel, Fields, RequestHead, ResponseHead, Side};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

fn request(path: &str) -> RequestHead {
    RequestHead {
        method: "POST".into(),
        target: format!("https://a.test{path}"),
        fields: Fields::default(),
    }
}

fn both() -> (Opener, Acceptor) {
    let (one, other) = pair().unwrap();
    (opener(one).unwrap(), acceptor(other).unwrap())
}

async fn all(mut body: RecvBody) -> Result<Vec<u8>, StreamError> {
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// Sends every body back, each stream in a task of its own.
async fn echo(mut acceptor: Acceptor) {
    while let Some(mut incoming) = acceptor.accept().await {
        tokio::spawn(async move {
            let mut out = incoming.reply.send(
                &ResponseHead {
                    status: 200,
                    fields: Fields::default(),
                },
                false,
            );
            while let Some(Ok(piece)) = incoming.body.next().await {
                if out.send(piece).await.is_err() {
                    return;
                }
            }
            out.finish_with(&Fields::default().with("sum", "1"));
        });
    }
}

#[tokio::test]
async fn many_streams_with_large_bodies_both_ways() {
    let (opener, acceptor) = both();
    tokio::spawn(echo(acceptor));
    let calls = (0..40u8).map(|n| {
        let opener = opener.clone();
        tokio::spawn(async move {
            let mut exchange = opener.open(request("/"), false).unwrap();
            let body = vec![n; 700_000 + n as usize];
            let sent = Bytes::from(body.clone());
            let sender = tokio::spawn(async move {
                exchange.body.send(sent).await.unwrap();
                exchange.body.finish();
            });
            let (head, received) = exchange.response.head().await.unwrap();
            assert_eq!(head.status, 200);
            assert!(all(received).await.unwrap() == body);
            sender.await.unwrap();
        })
    });
    for call in calls.collect::<Vec<_>>() {
        timeout(SOON, call).await.unwrap().unwrap();
    }
    assert_eq!(opener.streams(), 0);
}

#[tokio::test]
async fn dropping_the_response_cancels_at_the_other_end() {
    let (opener, mut acceptor) = both();
    let exchange = opener.open(request("/"), true).unwrap();
    let mut incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    drop(exchange);
    timeout(SOON, incoming.reply.cancelled()).await.unwrap();
}

#[tokio::test]
async fn reset_codes_arrive_and_abandoned_replies_reset() {
    let (opener, mut acceptor) = both();
    let (first, second) = (
        opener.open(request("/1"), true).unwrap(),
        opener.open(request("/2"), true).unwrap(),
    );
    acceptor.accept().await.unwrap().reply.reset(42);
    drop(acceptor.accept().await.unwrap());
    assert_eq!(
        first.response.head().await.unwrap_err(),
        StreamError::Reset(42)
    );
    assert_eq!(
        second.response.head().await.unwrap_err(),
        StreamError::Reset(casemate_wire::RESET_ABANDONED)
    );
}

#[tokio::test]
async fn a_closed_channel_is_an_error_everywhere_and_hangs_nowhere() {
    let (opener, mut acceptor) = both();
    let exchange = opener.open(request("/"), false).unwrap();
    let incoming = acceptor.accept().await.unwrap();
    let mut out = incoming.reply.send(
        &ResponseHead {
            status: 200,
            fields: Fields::default(),
        },
        false,
    );
    out.send(Bytes::from_static(b"half")).await.unwrap();
    let (_, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "half");
    drop((acceptor, out, incoming.body));
    assert!(timeout(SOON, body.next()).await.unwrap().unwrap().is_err());
    timeout(SOON, opener.closed()).await.unwrap();
    assert_eq!(
        opener.open(request("/"), true).unwrap_err(),
        StreamError::Closed
    );
}

#[tokio::test]
async fn garbage_closes_the_channel() {
    let (one, other) = pair().unwrap();
    let mut acceptor = acceptor(one).unwrap();
    let mut hostile = std::os::unix::net::UnixStream::from(other);
    hostile.write_all(&[0xff; 64]).unwrap();
    assert!(timeout(SOON, acceptor.accept()).await.unwrap().is_none());
}

/// The peer sends pings and never reads the answers: the channel is closed before these fill our
/// memory.
#[tokio::test]
async fn an_end_that_never_reads_is_given_up() {
    let (one, other) = pair().unwrap();
    let mut acceptor = acceptor(one).unwrap();
    let hostile = std::os::unix::net::UnixStream::from(other);
    let ping = [&[8, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0][..], &[1; 8]]
        .concat()
        .repeat(1000);
    let flood = tokio::task::spawn_blocking(move || {
        hostile.set_nonblocking(false).unwrap();
        let most = (64 << 20) / ping.len();
        (0..most)
            .take_while(|_| (&hostile).write_all(&ping).is_ok())
            .count()
            * ping.len()
    });
    assert!(timeout(SOON, acceptor.accept()).await.unwrap().is_none());
    assert!(timeout(SOON, flood).await.unwrap().unwrap() < 8 << 20);
}

/// The peer writes frames that need no answer, as fast as it can: the other channels of the thread
/// continue.
#[tokio::test]
async fn a_peer_that_writes_without_pause_starves_no_other_channel() {
    use casemate_wire::frame::{Header, Kind};
    let reset = Header {
        length: 2,
        stream: 1,
        kind: Kind::Reset,
        flags: 0,
    };
    let idle = [&reset.bytes()[..], &1u16.to_le_bytes()]
        .concat()
        .repeat(10_000);
    let (one, other) = pair().unwrap();
    let _flooded = acceptor(one).unwrap();
    let hostile = std::os::unix::net::UnixStream::from(other);
    let mut opening = Channel::new(Side::Opener);
    opening.open(&request("/"), false).unwrap();
    let opened = std::mem::take(opening.output());
    let (began, begun) = tokio::sync::oneshot::channel();
    let done = Arc::new(AtomicBool::new(false));
    let stop = done.clone();
    let flood = tokio::task::spawn_blocking(move || {
        hostile.set_nonblocking(false).unwrap();
        (&hostile).write_all(&opened).unwrap();
        (&hostile).write_all(&idle).unwrap();
        began.send(()).unwrap();
        let end = Instant::now() + SOON;
        while !stop.load(Ordering::Relaxed) && Instant::now() < end {
            (&hostile).write_all(&idle).unwrap();
        }
        stop.load(Ordering::Relaxed)
    });
    begun.await.unwrap();
    let neighbour = tokio::spawn(async {
        let (opener, mut acceptor) = both();
        for _ in 0..20 {
            let exchange = opener.open(request("/"), true).unwrap();
            let incoming = acceptor.accept().await.unwrap();
            let head = ResponseHead {
                status: 200,
                fields: Fields::default(),
            };
            incoming.reply.send(&head, true).finish();
            exchange.response.head().await.unwrap();
        }
    });
    neighbour.await.unwrap();
    done.store(true, Ordering::Relaxed);
    assert!(
        flood.await.unwrap(),
        "the neighbour had to wait for its end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_requests_whose_answers_nobody_reads_do_not_fill_memory() {
    const HEAD_BYTES: usize = 60_000;
    /// Most bytes that the acceptor may take in: its output, one read, and the socket's own
    /// buffers.
    const MOST_BYTES: usize = 16 << 20;
    let (one, other) = pair().unwrap();
    let mut accepts = acceptor(one).unwrap();
    let answers = tokio::spawn(async move {
        let fields = Fields::default().with("x", vec![b'x'; HEAD_BYTES]);
        let head = ResponseHead {
            status: 200,
            fields,
        };
        while let Some(incoming) = accepts.accept().await {
            incoming.reply.send(&head, true).finish();
        }
    });
    let hostile = std::os::unix::net::UnixStream::from(other);
    let sent = tokio::task::spawn_blocking(move || {
        let pause = Duration::from_millis(500);
        hostile.set_nonblocking(false).unwrap();
        hostile.set_write_timeout(Some(pause)).unwrap();
        let mut opening = Channel::new(Side::Opener);
        let head = RequestHead {
            fields: Fields::default().with("x", vec![b'x'; HEAD_BYTES]),
            ..request("/")
        };
        let mut sent = 0;
        while let Ok(id) = opening.open(&head, true) {
            let bytes = std::mem::take(opening.output());
            if (&hostile).write_all(&bytes).is_err() {
                break;
            }
            sent += bytes.len();
            // For this end the stream is over, so it may open more.
            opening.reset(id, 1);
            opening.output().clear();
        }
        sent
    });
    let sent = sent.await.unwrap();
    assert!(sent < MOST_BYTES, "{sent} bytes were taken");
    answers.await.unwrap();
}

#[tokio::test]
async fn control_messages_carry_descriptors_and_large_payloads() {
    use casemate_channel::Control;
    use casemate_wire::control::Message;
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Text(String);
    impl Message for Text {
        const MAX_BYTES: usize = 2_000_000;
    }
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Number(u32);
    impl Message for Number {
        const MAX_BYTES: usize = 5;
    }
    let (one, other) = casemate_channel::control::pair().unwrap();
    let (one, other) = (
        Control::<Text, Number>::new(one).unwrap(),
        Control::<Number, Text>::new(other).unwrap(),
    );
    let (gift, mut kept) = std::os::unix::net::UnixStream::pair().unwrap();
    for text in ["short".to_owned(), "x".repeat(1_000_000)] {
        let text = Text(text);
        one.send(&text, &[gift.as_fd()]).await.unwrap();
        let (received, fds) = other.recv().await.unwrap().unwrap();
        assert!(received.0 == text.0);
        let [fd] = <[OwnedFd; 1]>::try_from(fds).unwrap();
        let mut gift = std::os::unix::net::UnixStream::from(fd);
        gift.write_all(b"!").unwrap();
        std::io::Read::read_exact(&mut kept, &mut [0]).unwrap();
    }
    assert!(other.try_send(&Number(7), &[]).unwrap());
    assert_eq!(one.recv().await.unwrap().unwrap().0, Number(7));
    let long = Text("x".repeat(Text::MAX_BYTES));
    assert!(one.send(&long, &[]).await.is_err());
    drop(one);
    assert!(other.recv().await.unwrap().is_none());
}

#[tokio::test]
async fn control_refuses_a_memfd_that_can_still_change() {
    use rustix::fs::MemfdFlags;
    let fd =
        rustix::fs::memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&fd, b"now this").unwrap();
    assert!(casemate_channel::control::read_sealed_memfd(&fd, 100).is_err());
    let fd = casemate_channel::control::sealed_memfd("closed", b"this").unwrap();
    assert_eq!(
        casemate_channel::control::read_sealed_memfd(&fd, 100).unwrap(),
        b"this"
    );
    assert!(casemate_channel::control::read_sealed_memfd(&fd, 3).is_err());
}

#[tokio::test]
async fn openers_wait_in_their_order_until_the_channel_has_room() {
    let (opener, mut acceptor) = both();
    let mut open = Vec::new();
    while let Ok(exchange) = opener.open(request("/"), true) {
        open.push(exchange);
        // Heads are sent, so that the number of streams is the limit.
        tokio::task::yield_now().await;
    }
    assert_eq!(open.len(), casemate_wire::channel::MAX_STREAMS);
    let mut taken = Vec::new();
    for _ in 0..open.len() {
        taken.push(timeout(SOON, acceptor.accept()).await.unwrap().unwrap());
    }
    let wait = |path: &str| {
        let opening = opener.open_in_turn(request(path), true);
        tokio::spawn(async move { opening.await.map(|exchange| exchange.response) })
    };
    let first = wait("/first");
    tokio::task::yield_now().await;
    let (second, third) = (wait("/second"), wait("/third"));
    tokio::task::yield_now().await;
    assert!(!first.is_finished() && !second.is_finished());
    // The second caller gives up; its place goes to the third.
    second.abort();
    for path in ["/first", "/third"] {
        let head = ResponseHead {
            status: 204,
            fields: Fields::default(),
        };
        taken.pop().unwrap().reply.send(&head, true);
        let next = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
        assert_eq!(next.head.target, request(path).target);
        taken.insert(0, next);
    }
    let (first, third) = (first.await.unwrap(), third.await.unwrap());
    assert!(first.is_ok() && third.is_ok());
    let last = wait("/last");
    tokio::task::yield_now().await;
    drop((acceptor, taken));
    let end = timeout(SOON, last).await.unwrap().unwrap().unwrap_err();
    assert_eq!(end, StreamError::Closed);
}

#[tokio::test]
async fn a_sender_on_a_stream_that_our_side_resets_gets_an_error() {
    let (opener, _acceptor) = both();
    let mut exchange = opener.open(request("/"), false).unwrap();
    let large = vec![1; 2 * casemate_wire::channel::STREAM_WINDOW_BYTES as usize];
    let sending = tokio::spawn(async move { exchange.body.send(large.into()).await });
    tokio::task::yield_now().await;
    drop(exchange.response);
    let sent = timeout(SOON, sending).await.unwrap().unwrap();
    assert!(sent.is_err(), "no reader is left for the rest");
}
