//! Bodies of requests: asked for, read late, or not read at all.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use bytes::Bytes;
use casemate_channel::{Incoming, RecvBody};
use harness::{Node, SOON, http2, ok, read_all, read_until, status};
use http::Request;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Length of the body in bytes, and whether its end arrived.
async fn length(mut body: RecvBody) -> (usize, bool) {
    let mut length = 0;
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => length += piece.len(),
            Err(_) => return (length, false),
        }
    }
    (length, true)
}

#[tokio::test]
async fn a_body_is_read_after_the_answer() {
    const LENGTH: usize = 2 << 20;
    let (read, mut was_read) = mpsc::unbounded_channel();
    // Like a function that answers 202 and reads in the background: the reply ends, the body stays.
    let node = Node::with_worker(move |incoming| {
        let read = read.clone();
        async move {
            let Incoming { reply, body, .. } = incoming;
            reply.send(&status(202, &[]), true).finish();
            read.send(length(body).await).unwrap();
        }
    })
    .await;
    let mut caller = node.connect().await;
    for _ in 0..2 {
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {LENGTH}\r\n\r\n");
        caller.write_all(head.as_bytes()).await.unwrap();
        // The answer comes before the body, and the connection is still usable afterwards.
        let answer = read_until(&mut caller, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
        caller.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        let bytes = timeout(SOON, was_read.recv()).await.unwrap().unwrap();
        assert_eq!(bytes, (LENGTH, true));
    }
    let mut sender = http2(node.connect().await).await;
    let (pieces, mut come) = mpsc::channel(1);
    let body = futures_util::stream::poll_fn(move |context| come.poll_recv(context));
    let request = Request::post("http://a.test/")
        .body(StreamBody::new(body))
        .unwrap();
    let answered = timeout(SOON, sender.send_request(request)).await.unwrap();
    let answer = answered.unwrap();
    assert_eq!(answer.status(), 202);
    answer.into_body().collect().await.unwrap();
    for _ in 0..LENGTH / 65_536 {
        let piece = Frame::data(Bytes::from(vec![b'x'; 65_536]));
        let piece = Ok::<_, std::convert::Infallible>(piece);
        timeout(SOON, pieces.send(piece)).await.unwrap().unwrap();
    }
    drop(pieces);
    let bytes = timeout(SOON, was_read.recv()).await.unwrap().unwrap();
    assert_eq!(bytes, (LENGTH, true));
}

#[tokio::test]
async fn a_body_that_nobody_reads_any_more_is_not_waited_for() {
    let node = Node::with_worker(|incoming| async move {
        incoming.reply.send(&status(403, &[]), true).finish();
    })
    .await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2000000\r\n\r\n";
    // The caller sends nothing more, and reads the end of the connection.
    let mut caller = node.connect().await;
    caller.write_all(head.as_bytes()).await.unwrap();
    let answer = read_all(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
}

const EXPECTING: &str =
    "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";

#[tokio::test]
async fn a_caller_gets_100_continue_when_the_function_asks_for_the_body() {
    let (go, mut goes) = mpsc::unbounded_channel::<()>();
    let node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let mut caller = node.connect().await;
    for _ in 0..2 {
        caller.write_all(EXPECTING.as_bytes()).await.unwrap();
        let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
        // Nothing has been sent before: the first bytes would have arrived by the end of another
        // request.
        node.get("nobody.test", "/").await;
        let mut early = [0; 1];
        let read = caller.try_read(&mut early);
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        let go = go.clone();
        let reading = tokio::spawn(async move {
            let length = length(incoming.body).await;
            go.send(()).unwrap();
            let head = ok(&[("x-length", &length.0.to_string())]);
            incoming.reply.send(&head, true).finish();
        });
        read_until(&mut caller, "HTTP/1.1 100 Continue\r\n\r\n").await;
        caller.write_all(b"hello").await.unwrap();
        timeout(SOON, goes.recv()).await.unwrap().unwrap();
        let answer = read_until(&mut caller, "\r\n\r\n").await;
        assert!(answer.contains("x-length: 5\r\n"), "{answer}");
        reading.await.unwrap();
    }
}

#[tokio::test]
async fn a_final_answer_without_the_body_ends_the_connection_and_says_so() {
    let node = Node::with_worker(|incoming| async move {
        let Incoming {
            reply, mut body, ..
        } = incoming;
        reply.send(&status(403, &[]), true).finish();
        // A function that reads in the background is too late: the caller got no `100 Continue`.
        let piece = body.next().await;
        assert!(!matches!(piece, Some(Ok(_))), "{piece:?}");
    })
    .await;
    let refused = EXPECTING.replace("Length: 5", "Length: 99999999");
    for (request, expected) in [(EXPECTING, "HTTP/1.1 403"), (&refused, "HTTP/1.1 413")] {
        let mut caller = node.connect().await;
        caller.write_all(request.as_bytes()).await.unwrap();
        let answer = read_all(&mut caller).await;
        assert!(answer.starts_with(expected), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}
