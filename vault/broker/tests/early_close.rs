//! Upstreams that close a connection while a request is on its way, after an answer or without one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use bytes::Bytes;
use casemate_channel::Opener;
use casemate_trust::release::Release;
use casemate_wire::Fields;
use upstream::raw::{Raw, Then};
use worker::{call, channel, open, serving, serving_with};

/// More than the kernel's buffers of a connection hold, so that writing must wait for the upstream.
const BODY_BYTES: usize = 3 << 20;

/// The upstream's behaviour, by path.
fn script(head: &str) -> (Vec<u8>, Then) {
    match head.split(' ').nth(1).unwrap_or_default() {
        "/v1/large" => (
            b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge"
                .to_vec(),
            Then::Close,
        ),
        _ => (
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec(),
            Then::CloseAtNext,
        ),
    }
}

/// Posts a large body; returns the answer's status and code.
async fn post(channel: &Opener, url: &str) -> (u16, String) {
    let fields = Fields::default()
        .with(":request", "r1")
        .with(":binding", "pay");
    let mut exchange = open(channel, "POST", url, fields, false);
    let piece = Bytes::from(vec![7; 64 * 1024]);
    for _ in 0..BODY_BYTES / piece.len() {
        // The vault takes no more of it once the upstream has answered.
        if exchange.body.send(piece.clone()).await.is_err() {
            break;
        }
    }
    exchange.body.finish();
    let head = tokio::time::timeout(worker::SOON, exchange.response.head()).await;
    let (head, _) = head.unwrap().unwrap();
    let code = head.fields.text(":error").unwrap_or("none");
    (head.status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_delivered_although_the_upstream_closes_before_it_has_read_the_body() {
    let raw = Raw::start(script).await;
    let (mut fleet, release) = serving(&raw.upstream).await;
    let worker = channel(&mut fleet, release).await;
    let url = raw.upstream.url("/v1/large");
    for round in 0..40 {
        assert_eq!(
            post(&worker, &url).await,
            (413, "none".to_owned()),
            "{round}"
        );
    }
    assert_eq!(
        raw.heads().len(),
        40,
        "each on a connection of its own, and none twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_a_connection_that_was_closed_meanwhile_is_repeated_if_that_is_harmless() {
    let raw = Raw::start(script).await;
    let any_method = |release: &mut Release| release.credentials[0].methods.clear();
    let (mut fleet, release) =
        serving_with(&raw.upstream, |fleet| fleet.edit_release = any_method).await;
    let worker = channel(&mut fleet, release).await;
    let url = raw.upstream.url("/v1/second");
    let methods = |heads: &[String]| {
        let method = |head: &String| head.split(' ').next().unwrap_or_default().to_owned();
        heads.iter().map(method).collect::<Vec<_>>()
    };
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let before = raw.heads().len();
        let first = call(&worker, Some("pay"), "GET", &url, "", &[]).await;
        assert_eq!((first.status, first.error()), (200, "none"));
        // The connection is idle in the pool; the upstream closes it when the next request arrives.
        let second = call(&worker, Some("pay"), method, &url, "", &[]).await;
        assert_eq!((second.status, second.error()), (200, "none"), "{method}");
        let heads = raw.heads();
        let sent = methods(&heads[before..]);
        assert!(
            sent.ends_with(&[method.to_owned(), method.to_owned()]),
            "{sent:?}"
        );
        // The repeated request is identical.
        assert_eq!(heads[heads.len() - 1], heads[heads.len() - 2]);
    }
    // A request with side effects, and one with a body, are sent once.
    for (method, body) in [("POST", ""), ("PUT", "body")] {
        let first = call(&worker, Some("pay"), "GET", &url, "", &[]).await;
        assert_eq!(first.status, 200);
        let before = raw.heads().len();
        let second = call(&worker, Some("pay"), method, &url, body, &[]).await;
        assert_eq!(
            (second.status, second.error()),
            (0, "upstream_failed"),
            "{method}"
        );
        assert_eq!(raw.heads().len(), before + 1, "{method}");
    }
}
