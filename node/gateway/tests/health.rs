//! Answers to balancers and early callers about the state of a node.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use casemate_wire::control::gateway::{FromGateway, Start, ToGateway};
use harness::{Node, SOON, ok, read_all, read_until, start};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn probe(node: &Node, path: &str) -> String {
    let mut stream = TcpStream::connect(&node.addresses[1]).await.unwrap();
    let request = format!("GET /.well-known/casemate/{path} HTTP/1.1\r\nHost: probe\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

async fn with_health() -> Node {
    Node::with_start(Start {
        health: vec!["127.0.0.1:0".into()],
        ..start()
    })
    .await
}

#[tokio::test]
async fn an_unknown_host_is_answered_404_only_once_all_routes_are_known() {
    let mut node = with_health().await;
    node.stand(false, &[], true).await;
    node.settle().await;
    let answer = node.get("other.test", "/").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("retry-after: 1\r\n") && answer.contains("unavailable"),
        "{answer}"
    );
    assert!(probe(&node, "ready").await.contains("routes_loading"));
    node.stand(true, &["soon.test", "later.test"], true).await;
    node.settle().await;
    for host in ["soon.test", "later.test"] {
        let answer = node.get(host, "/").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("retry-after: 1\r\n"), "{answer}");
    }
    let answer = node.get("other.test", "/").await;
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("no_such_host"),
        "{answer}"
    );
    assert!(probe(&node, "ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn readiness_ends_without_workers_and_with_draining_and_health_does_not() {
    let mut node = with_health().await;
    assert!(probe(&node, "ready").await.starts_with("HTTP/1.1 200"));
    node.stand(true, &[], false).await;
    node.settle().await;
    let answer = probe(&node, "ready").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("no_worker"),
        "{answer}"
    );
    assert!(probe(&node, "health").await.starts_with("HTTP/1.1 200"));
    assert!(probe(&node, "other").await.starts_with("HTTP/1.1 404"));
    node.stand(true, &[], true).await;
    // A request under way keeps the gateway draining.
    let mut acceptor = node.worker("f", 1, 8).await;
    let mut caller = node.connect().await;
    caller
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    node.say(ToGateway::Drain { grace_ms: 600_000 }).await;
    while !probe(&node, "ready").await.contains("draining") {}
    assert!(probe(&node, "health").await.starts_with("HTTP/1.1 200"));
    incoming.reply.send(&ok(&[]), true).finish();
    read_until(&mut caller, "\r\n\r\n").await;
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
}

#[tokio::test]
async fn callers_cannot_send_probes_and_probes_reach_no_function() {
    let node = with_health().await;
    let answer = node.get("127.0.0.1", "/.well-known/casemate/ready").await;
    assert!(
        answer.starts_with("HTTP/1.1 404") && answer.contains("no_such_host"),
        "{answer}"
    );
    let mut probe = TcpStream::connect(&node.addresses[1]).await.unwrap();
    probe
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    assert!(read_all(&mut probe).await.starts_with("HTTP/1.1 404"));
}
