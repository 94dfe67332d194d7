//! Callers that end their side of a connection, and callers that leave.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::time::Duration;

use casemate_channel::Incoming;
use harness::{Node, PREFACE, SETTINGS, SOON, describe, frame, ok, read_all, read_until, status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Answers well after the caller has ended its side.
async fn slowly(incoming: Incoming) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    describe(incoming).await;
}

#[tokio::test]
async fn a_caller_that_ends_its_side_after_a_whole_request_gets_its_answer() {
    let node = Node::with_worker(slowly).await;
    let requests = [
        ("GET /one HTTP/1.1\r\nHost: a.test\r\n\r\n", 1),
        ("GET /old HTTP/1.0\r\nHost: a.test\r\n\r\n", 1),
        (
            "POST /body HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\nab",
            1,
        ),
        (
            "POST /chunks HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            1,
        ),
        (
            "GET /one HTTP/1.1\r\nHost: a.test\r\n\r\nGET /two HTTP/1.1\r\nHost: a.test\r\n\r\n",
            2,
        ),
    ];
    for (request, answers) in requests {
        let mut stream = node.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = read_all(&mut stream).await;
        assert_eq!(answer.matches(" 200 OK\r\n").count(), answers, "{answer}");
    }
}

#[tokio::test]
async fn an_answer_is_not_lost_with_a_body_that_nobody_reads() {
    let node = Node::with_worker(|incoming| async move {
        let head = status(403, &[("x-early", "1")]);
        incoming.reply.send(&head, true).finish();
    })
    .await;
    let body = vec![b'x'; 40 << 20];
    let cases = [
        // One request is refused by its length, the other is answered by a function that does not
        // read.
        (body.len(), "HTTP/1.1 413"),
        (7 << 20, "HTTP/1.1 403"),
    ];
    for (length, expected) in cases {
        let mut stream = node.connect().await;
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // A caller that sends all before it reads.
        stream.write_all(&body[..length]).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await;
        assert!(answer.starts_with(expected), "{length}: {answer}");
    }
}

/// The next frame: kind, flags, stream, payload.
async fn next_frame(stream: &mut TcpStream) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    let read = timeout(SOON, stream.read_exact(&mut head)).await;
    read.expect("a frame in time").unwrap();
    let [l0, l1, l2, kind, flags, id @ ..] = head;
    let mut payload = vec![0; u32::from_be_bytes([0, l0, l1, l2]) as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (kind, flags, u32::from_be_bytes(id), payload)
}

#[tokio::test]
async fn an_http2_caller_gets_its_whole_answer_and_then_a_reset_without_an_error() {
    let node = Node::with_worker(|incoming| async move {
        let head = status(403, &[("content-length", "2")]);
        let mut body = incoming.reply.send(&head, false);
        let _ = body.send("no".into()).await;
        body.finish();
    })
    .await;
    let mut stream = node.connect().await;
    stream
        .write_all(&[PREFACE, SETTINGS].concat())
        .await
        .unwrap();
    let piece = |id| frame(0, 0, id, &[b'x'; 16 * 1024]);
    // More streams than a connection may have at a time, or may see reset for faults of its own.
    for id in (1..300).step_by(2) {
        let mut block = vec![0x83, 0x86, 0x01, 6];
        block.extend_from_slice(b"a.test\x04\x01/");
        let request = [frame(1, 4, id, &block), piece(id)].concat();
        stream.write_all(&request).await.unwrap();
        let (mut body, mut has_ended) = (Vec::new(), false);
        loop {
            let (kind, flags, of, payload) = next_frame(&mut stream).await;
            assert_ne!(kind, 7, "the connection must continue: {payload:?}");
            if of != id {
                continue;
            }
            if kind == 0 {
                body.extend_from_slice(&payload);
            }
            has_ended |= flags & 1 != 0;
            if kind == 3 {
                assert_eq!(
                    payload,
                    0u32.to_be_bytes(),
                    "NO_ERROR (RFC 9113, section 8.1)"
                );
                break;
            }
        }
        assert!(has_ended && body == b"no", "{id}: {body:?}");
        // Sent before the caller has seen the reset.
        stream.write_all(&piece(id)).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_is_cut_off_has_no_end_for_the_worker() {
    let node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let (mut stream, mut incoming) = node.half_a_request(&mut acceptor).await;
    stream.shutdown().await.unwrap();
    timeout(SOON, incoming.reply.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_has_left_is_detected_and_one_that_waits_is_served() {
    let node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let (mut waits, mut leaves) = (node.connect().await, node.connect().await);
    waits.write_all(request).await.unwrap();
    waits.shutdown().await.unwrap();
    let slow = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    leaves.write_all(request).await.unwrap();
    let mut left = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    drop(leaves);
    // The caller's kernel answers a probe with a reset, and the request is cancelled.
    timeout(SOON, left.reply.cancelled()).await.unwrap();
    read_until(&mut waits, "HTTP/1.1 100 Continue\r\n\r\n").await;
    slow.reply.send(&ok(&[("x-late", "1")]), true).finish();
    let answer = read_all(&mut waits).await;
    assert!(
        answer.contains("HTTP/1.1 200 OK\r\n") && answer.contains("x-late"),
        "{answer}"
    );
}
