//! Hostile callers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::time::Duration;

use bytes::Bytes;
use casemate_channel::Incoming;
use casemate_wire::control::Failure;
use casemate_wire::control::gateway::{FromGateway, Start};
use harness::{
    Node, PREFACE, SETTINGS, SOON, describe, echo, frame, headers, ok, read_all, read_until, start,
    work,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// Short time limits, so that tests need not wait for long.
fn impatient() -> Start {
    Start {
        header_timeout_ms: 1500,
        idle_timeout_ms: 3000,
        ..start()
    }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut() {
    let node = Node::with_start(impatient()).await;
    let mut silent = node.connect().await;
    let mut half_preface = node.connect().await;
    half_preface.write_all(b"PRI * HT").await.unwrap();
    let mut slow = node.connect().await;
    let dripping = tokio::spawn(async move {
        let _ = slow
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nX: ")
            .await;
        for _ in 0..2000 {
            if slow.write_all(b"a").await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    });
    assert!(
        timeout(SOON, dripping).await.unwrap().unwrap(),
        "the gateway does not cut off a head that arrives byte by byte"
    );
    assert_eq!(read_all(&mut silent).await, "");
    read_all(&mut half_preface).await;
}

#[tokio::test]
async fn a_connection_that_rests_is_closed_after_the_idle_time() {
    let node = Node::with_start(impatient()).await;
    tokio::spawn(work(node.worker("f", 1, 8).await, describe));
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_body_that_never_arrives_is_answered_with_408_and_its_request_cancelled() {
    let node = Node::with_start(impatient()).await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let (mut stream, mut incoming) = node.half_a_request(&mut acceptor).await;
    let answer = read_all(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"),
        "{answer}"
    );
    timeout(SOON, incoming.reply.cancelled()).await.unwrap();
}

async fn endless(incoming: Incoming) {
    let mut body = incoming.reply.send(&ok(&[]), false);
    while body
        .send(Bytes::from_static(&[b'x'; 32 * 1024]))
        .await
        .is_ok()
    {}
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_cut_and_its_worker_freed() {
    let node = Node::with_start(impatient()).await;
    tokio::spawn(work(node.worker("f", 1, 1).await, |incoming| async move {
        if incoming.head.target.ends_with("/endless") {
            endless(incoming).await;
        } else {
            describe(incoming).await;
        }
    }));
    let mut slow = node.connect().await;
    slow.write_all(b"GET /endless HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut slow, "\r\n\r\n").await;
    // The worker's only slot is free again.
    let answer = node.get("a.test", "/next").await;
    assert!(answer.contains("/next"), "{answer}");
}

#[tokio::test]
async fn an_http2_stream_that_is_not_read_is_cut_and_its_worker_freed() {
    let node = Node::with_start(impatient()).await;
    tokio::spawn(work(node.worker("f", 1, 1).await, |incoming| async move {
        if incoming.head.target.ends_with("/endless") {
            endless(incoming).await;
        } else {
            describe(incoming).await;
        }
    }));
    read_without_credit(&node, "/endless").await;
    assert!(node.get("a.test", "/next").await.contains("/next"));
}

/// Sends an HTTP/2 request, reads the socket, and pings, but gives no credit.
async fn read_without_credit(node: &Node, path: &str) {
    /// SETTINGS_INITIAL_WINDOW_SIZE.
    const NO_WINDOW: &[u8] = &[0, 4, 0, 0, 0, 0];
    let mut slow = node.connect().await;
    let settings = frame(4, 0, 0, NO_WINDOW);
    slow.write_all(&[PREFACE, &settings, &headers(1, path, true)].concat())
        .await
        .unwrap();
    let (mut reader, mut writer) = slow.into_split();
    tokio::spawn(async move {
        let mut sink = [0; 65536];
        while reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    tokio::spawn(async move {
        while writer.write_all(&frame(6, 0, 0, &[0; 8])).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[tokio::test]
async fn an_http2_caller_that_gives_no_credit_loses_its_place() {
    for path in ["/whole", "/endless"] {
        let node = Node::with_start(Start {
            max_connections: 1,
            ..impatient()
        })
        .await;
        tokio::spawn(work(node.worker("f", 1, 1).await, |incoming| async move {
            if incoming.head.target.ends_with("/endless") {
                endless(incoming).await;
            } else {
                describe(incoming).await;
            }
        }));
        read_without_credit(&node, path).await;
        let next = timeout(SOON, node.get("a.test", "/next")).await;
        assert!(next.is_ok_and(|next| next.contains("/next")), "{path}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let node = Node::with_start(Start {
        max_connections: 3,
        ..start()
    })
    .await;
    let mut acceptor = node.worker("f", 1, 100).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = node.connect().await;
        stream.write_all(GET).await.unwrap();
        held.push((
            stream,
            timeout(SOON, acceptor.accept()).await.unwrap().unwrap(),
        ));
    }
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut stream = node.connect().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    assert!(
        timeout(Duration::from_millis(200), acceptor.accept())
            .await
            .is_err(),
        "only three at a time"
    );
    drop(held);
    tokio::spawn(work(acceptor, describe));
    for mut stream in waiting {
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test]
async fn resting_connections_make_room_for_those_that_wait() {
    let node = Node::with_start(Start {
        max_connections: 1,
        idle_timeout_ms: 600_000,
        ..start()
    })
    .await;
    tokio::spawn(work(node.worker("f", 1, 8).await, describe));
    let mut resting = node.connect().await;
    resting.write_all(GET).await.unwrap();
    read_until(&mut resting, ":client").await;
    assert!(node.get("a.test", "/next").await.contains("/next"));
}

#[tokio::test]
async fn smuggled_requests_are_refused_or_have_one_reading() {
    let node = Node::with_worker(echo).await;
    let refused = [
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test#x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test%23\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\\b.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
        "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET http://user@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\n folded: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nX\x01: a\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1, 1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: +1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0x1\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: gzip\r\n\r\na",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    ];
    for request in refused {
        let mut stream = node.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.") && answer[8..].starts_with(" 400"),
            "{request:?}: {answer}"
        );
    }
    // Both framings: one program's body would be another's request.
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 40",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\nX: y",
    ] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
        let answer = node.raw(format!("POST / HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n\r\n3\r\nabc\r\n0\r\n\r\n{smuggled}")).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.starts_with("HTTP/1.1 400"), "{framing}: {answer}");
    }
    // An invalid chunk ends the request.
    for chunk in [
        "x\r\nabc\r\n",
        "-1\r\nabc\r\n",
        "ffffffffffffffffff\r\n",
        "3\r\nabcdef\r\n",
    ] {
        let answer = node
            .raw(format!(
                "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{}",
                "0\r\n\r\n"
            ))
            .await;
        assert!(!answer.ends_with("0\r\n\r\n"), "{chunk:?}: {answer}");
    }
}

#[tokio::test]
async fn heads_beyond_their_limits_are_refused() {
    let node = Node::with_worker(describe).await;
    let many = "X: 1\r\n".repeat(101);
    assert!(
        node.raw(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{many}\r\n"))
            .await
            .starts_with("HTTP/1.1 431")
    );
    // The gateway closes the connection before it has read the whole head: its own answer may be
    // lost with the connection, but the request must not reach a worker.
    let large = "a".repeat(60 * 1024);
    let answer = node
        .raw(format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nX: {large}\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let path = "a".repeat(20 * 1024);
    let answer = node
        .raw(format!(
            "GET /{path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 431") && answer.contains("head_too_large"),
        "{answer}"
    );
    // Without a limit, the gateway would compare each option with each field of the head.
    let options = "x, ".repeat(10_000);
    let answer = node
        .raw(format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: {options}close\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let name = "a".repeat(300);
    let answer = node
        .raw(format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\n{name}: 1\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

/// Sends frames until the gateway ends the connection, at most `most`; returns the number sent.
async fn flood(
    mut stream: TcpStream,
    most: usize,
    at_once: usize,
    piece: impl Fn(u32) -> Vec<u8>,
) -> usize {
    stream
        .write_all(&[PREFACE, SETTINGS].concat())
        .await
        .unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let ended = tokio::spawn(async move {
        let mut sink = [0; 65536];
        while reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    for n in 0..most {
        if ended.is_finished() || writer.write_all(&piece(n as u32)).await.is_err() {
            return n;
        }
        // Yields to the gateway and the reader.
        if n % at_once == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    most
}

#[tokio::test]
async fn rapid_reset_ends_the_connection_and_hurts_no_neighbour() {
    let node = Node::with_worker(|incoming| async move {
        if incoming.head.target.ends_with("/slow") {
            let mut incoming = incoming;
            incoming.reply.cancelled().await;
        } else {
            describe(incoming).await;
        }
    })
    .await;
    let most = 20_000;
    let sent = flood(node.connect().await, most, 10, |n| {
        let stream = n * 2 + 1;
        [
            headers(stream, "/slow", true),
            frame(3, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat()
    });
    let sent = timeout(Duration::from_secs(60), sent).await.unwrap();
    assert!(sent < most / 2, "{sent} requests were made and reset");
    // The bound holds even when each request is admitted before it is reset.
    let most = 4000;
    let sent = flood(node.connect().await, most, 3, |n| {
        let before = if n == 0 {
            Vec::new()
        } else {
            frame(3, 0, n * 2 - 1, &[0, 0, 0, 8])
        };
        [before, headers(n * 2 + 1, "/slow", true)].concat()
    });
    let sent = timeout(Duration::from_secs(60), sent).await.unwrap();
    assert!(sent < most / 2, "{sent} requests were let in and reset");
    assert!(node.get("a.test", "/next").await.contains("/next"));
}

/// Resident memory of the gateway, KiB.
fn memory_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

#[tokio::test]
async fn bodies_in_the_smallest_pieces_that_nobody_reads_take_bounded_memory() {
    const STREAMS: u32 = 4;
    let node = Node::with_worker(|mut incoming| async move {
        incoming.reply.cancelled().await;
    })
    .await;
    let before = memory_kib(&node);
    // The windows of the connection would admit twice as many.
    let most = 250_000;
    let sent = flood(node.connect().await, most, 200, |n| {
        if n >= STREAMS {
            return frame(0, 0, n % STREAMS * 2 + 1, b"xy");
        }
        let mut post = headers(n * 2 + 1, "/slow", true);
        // Without the end of the stream, and with `POST`.
        (post[4], post[9]) = (4, 0x83);
        post
    });
    let sent = timeout(Duration::from_secs(60), sent).await.unwrap();
    let grown = memory_kib(&node).saturating_sub(before);
    // At least 1000 pieces are admitted: the connection ends because of their number.
    assert!((1000..most).contains(&sent), "{sent} pieces, {grown} KiB");
    assert!(grown < 8 * 1024, "{sent} pieces, {grown} KiB");
}

#[tokio::test]
async fn a_flood_of_continuations_ends_the_connection() {
    let node = Node::with_worker(describe).await;
    let most = 20_000;
    let sent = flood(node.connect().await, most, 10, |n| match n {
        0 => headers(1, "/", false),
        _ => frame(
            9,
            0,
            1,
            &[&[0x00, 1, b'x', 0x7f, 0xe1, 0x01][..], &[b'a'; 352]].concat(),
        ),
    });
    assert!(timeout(Duration::from_secs(60), sent).await.unwrap() < most / 2);
    assert!(node.get("a.test", "/next").await.contains("/next"));
}

#[tokio::test]
async fn floods_of_frames_that_ask_for_nothing_end_the_connection() {
    let node = Node::with_worker(describe).await;
    let floods = [
        ("SETTINGS", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("PING", frame(6, 0, 0, &[0; 8])),
        ("PRIORITY", frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("unknown", frame(0xbe, 0, 0, b"")),
        ("WINDOW_UPDATE", frame(8, 0, 0, &[0, 0, 0, 1])),
    ];
    for (name, bytes) in floods {
        let most = 4000;
        let many = bytes.repeat(20);
        let sent = flood(node.connect().await, most, 5, |_| many.clone());
        let sent = timeout(Duration::from_secs(60), sent).await.unwrap();
        assert!(sent < most / 2, "{name}: {} frames passed", sent * 20);
        assert!(node.get("a.test", "/next").await.contains("/next"));
    }
}

#[tokio::test]
async fn a_path_beyond_ascii_is_a_bad_path_and_the_function_sees_a_serialised_url() {
    let node = Node::with_worker(describe).await;
    for target in ["/ä", "/x?ä", "/\u{200b}"] {
        let answer = node.get("a.test", target).await;
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains(r#""code":"bad_path""#),
            "{target}: {answer}"
        );
    }
    for (host, target, url) in [
        ("a.test", "/a\"b?'", "GET http://a.test/a%22b?%27\n"),
        ("a.test:80", "/{x}|", "GET http://a.test/%7Bx%7D|\n"),
        ("A.TEST.:8080", "/%C3%a4", "GET http://a.test:8080/%C3%a4\n"),
    ] {
        let answer = node.get(host, target).await;
        assert!(answer.contains(url), "{target}: {answer}");
    }
}

#[tokio::test]
async fn the_queue_for_a_function_is_bounded() {
    let mut node = Node::with_start(Start {
        max_connections: 2000,
        ..start()
    })
    .await;
    let mut streams = Vec::new();
    // 128 streams a connection: more than 1024 in all.
    for _ in 0..9 {
        let mut stream = node.connect().await;
        let requests: Vec<u8> = (0..128)
            .flat_map(|n| headers(n * 2 + 1, "/", true))
            .collect();
        stream
            .write_all(&[PREFACE, SETTINGS, &requests].concat())
            .await
            .unwrap();
        streams.push(stream);
    }
    // Further requests are answered at once.
    for _ in 0..(9 * 128 - 1024) {
        let record = node.record().await;
        assert_eq!(
            (record.status, record.failure),
            (503, Some(Failure::Unavailable))
        );
    }
    let most = node.hear(|message| match message {
        FromGateway::Need { waiting, .. } if *waiting > 1000 => Some(*waiting),
        _ => None,
    });
    assert_eq!(most.await, 1024);
    // No caller is forgotten.
    drop(streams);
    tokio::spawn(work(node.worker("f", 1, 64).await, describe));
    node.settle().await;
    assert!(node.get("a.test", "/next").await.contains("/next"));
}
