//! Callers that end their side of a connection, and callers that leave.
#![allow(clippy::unwrap_used, reason = "a test that panics says enough")]

mod harness;

use std::time::Duration;

use casemate_channel::Incoming;
use harness::{Node, SOON, describe, ok, read_all, read_until, status};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// The answer comes well after the caller has ended its side.
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
        // Refused by its length, and answered by a function that does not read.
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

#[tokio::test]
async fn a_request_that_breaks_off_reaches_no_end() {
    let node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let (mut stream, mut incoming) = node.half_a_request(&mut acceptor).await;
    stream.shutdown().await.unwrap();
    timeout(SOON, incoming.reply.cancelled()).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_has_left_is_found_and_one_that_waits_is_not_hurt() {
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
