//! Upstreams with answers that a vault must refuse or filter: bombs, hidden codings, parts, lengths
//! and digests.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use std::io::Write as _;
use std::time::Duration;

use casemate_wire::Fields;
use flate2::{Compression, write::GzEncoder};
use fleet::{Fleet, KEY};
use upstream::Upstream;
use upstream::raw::{Raw, Then};
use worker::{Answer, call, channel, open, serving, with_plain_egress};

/// Memory that decoding bombs may add to the vault, KiB. It was 1,036 MiB for one call before the
/// bounds.
const MAX_GROWTH_KIB: u64 = 48 * 1024;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An HTTP/1.1 answer with this body, which ends with the connection.
fn answer(fields: &str, body: &[u8]) -> (Vec<u8>, Then) {
    let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{fields}\r\n");
    ([head.as_bytes(), body].concat(), Then::Close)
}

/// The upstream's bombs, by path.
fn bomb(head: &str) -> (Vec<u8>, Then) {
    let encoded = |body: &[u8]| answer("content-encoding: gzip\r\n", body);
    let header = gzip(b"")[..10].to_vec();
    match head.split(' ').nth(1).unwrap_or_default() {
        "/v1/ratio" => encoded(&gzip(&vec![0; 256 << 10]).repeat(240)),
        "/v1/members" => encoded(&[&gzip(b"").repeat(2000)[..], &header].concat()),
        "/v1/name" => {
            encoded(&[&[0x1f, 0x8b, 8, 8, 0, 0, 0, 0, 0, 0][..], &[b'n'; 300_000]].concat())
        }
        "/v1/blocks" => encoded(&[&header[..], &[0, 0, 0, 0xff, 0xff].repeat(100_000)].concat()),
        "/v1/garbage" => encoded(&[&gzip(b"fine")[..], &[b'x'; 100_000]].concat()),
        "/v1/brotli" => answer("content-encoding: br\r\n", &[0x11; 834]),
        "/v1/nested" => answer("content-encoding: gzip, gzip\r\n", &gzip(&gzip(b"x"))),
        _ => answer("content-length: 4\r\n", b"fine"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_of_every_kind_take_bounded_memory_and_a_neighbours_calls_go_on() {
    let raw = Raw::start(bomb).await;
    let (mut fleet, release) = serving(&raw.upstream).await;
    let greedy = channel(&mut fleet, release).await;
    fleet.admit_another_tenant("modest", 11).await;
    let release = fleet.deploy(1).await;
    let modest = channel(&mut fleet, release).await;
    let url = |path: &str| raw.upstream.url(path);
    call(&modest, Some("pay"), "POST", &url("/v1/warm"), "", &[]).await;
    let before = fleet.vault().kib("VmHWM:");

    let attack = async {
        let mut ended = Vec::new();
        for path in [
            "/v1/ratio",
            "/v1/members",
            "/v1/name",
            "/v1/blocks",
            "/v1/garbage",
        ] {
            let url = url(path);
            let calls = (0..2).map(|_| call(&greedy, Some("pay"), "POST", &url, "", &[]));
            ended.extend(futures_util::future::join_all(calls).await);
        }
        ended
    };
    let neighbour = async {
        let url = url("/v1/modest");
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let started = std::time::Instant::now();
            let answer = call(&modest, Some("pay"), "POST", &url, "", &[]).await;
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"fine"[..]));
            slowest = slowest.max(started.elapsed());
        }
        slowest
    };
    let (ended, slowest) = tokio::join!(attack, neighbour);
    let grown = fleet.vault().kib("VmHWM:") - before;
    println!(
        "{} bombs added {grown} KiB; the slowest of a neighbour's 50 calls took {slowest:?}",
        ended.len()
    );
    assert!(
        ended.iter().all(|answer| answer.broken),
        "every bomb must be refused"
    );
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB");

    for path in ["/v1/brotli", "/v1/nested"] {
        let answer = call(&greedy, Some("pay"), "POST", &url(path), "", &[]).await;
        assert_eq!(
            (answer.error(), answer.body.len()),
            ("upstream_encoding", 0),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coding_below_the_content_is_refused_with_and_without_a_credential() {
    const CODINGS: [&str; 6] = [
        "Chunked",
        "gzip, chunked",
        "GZIP,chunked",
        "gzip\r\ntransfer-encoding: chunked",
        "chunked\r\ntransfer-encoding: gzip",
        "deflate",
    ];
    let raw = Raw::start(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let number: usize = path.rsplit('/').next().unwrap_or_default().parse().unwrap();
        let body = gzip(KEY.as_bytes());
        let size = format!("{:x}\r\n", body.len());
        let chunked = [size.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        answer(
            &format!("Transfer-Encoding: {}\r\n", CODINGS[number]),
            &chunked,
        )
    })
    .await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    fleet.edit_release = with_plain_egress;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    for (number, coding) in CODINGS.iter().enumerate() {
        for (binding, prefix) in [(Some("pay"), "/v1"), (None, "/plain")] {
            let url = raw.upstream.url(&format!("{prefix}/{number}"));
            let answer = call(&worker, binding, "POST", &url, "", &[]).await;
            let expected = if number == 0 {
                "none"
            } else {
                "upstream_transfer_encoding"
            };
            assert_eq!(answer.error(), expected, "{coding} {binding:?}");
        }
    }
}

fn shown(answer: &Answer) -> Vec<&str> {
    answer.fields.iter().map(|(name, _)| name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_lengths_and_digests_of_a_credentialed_answer_reach_no_function() {
    const FIELDS: &str = "content-type: text/plain\r\netag: \"d41d8\"\r\n\
        last-modified: Mon, 30 Nov 2026 08:00:00 GMT\r\ndigest: sha-256=x\r\n\
        content-digest: sha-256=:x:\r\nrepr-digest: sha-256=:x:\r\ncontent-md5: x\r\n\
        accept-ranges: bytes\r\nx-amz-checksum-sha256: x\r\n";
    let raw = Raw::start(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (status, length) = match path.rsplit('/').next() {
            Some("part") => ("206 Partial Content\r\ncontent-range: bytes 0-3/24", 4),
            Some("unchanged") => ("304 Not Modified", 0),
            _ => ("200 OK", 4),
        };
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{FIELDS}\r\n");
        ([head.as_bytes(), &b"fine"[..length]].concat(), Then::Close)
    })
    .await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    fleet.edit_release = |release| {
        with_plain_egress(release);
        release.credentials[0].methods.clear();
    };
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let asked = [
        ("range", "bytes=0-3"),
        ("if-range", "\"d41d8\""),
        ("if-none-match", "\"d41d8\", \"x\""),
        ("x-kept", "1"),
    ];
    for (method, path) in [
        ("GET", "/v1/whole"),
        ("HEAD", "/v1/whole"),
        ("GET", "/v1/unchanged"),
    ] {
        let answer = call(
            &worker,
            Some("pay"),
            method,
            &raw.upstream.url(path),
            "",
            &asked,
        )
        .await;
        assert!(
            matches!(answer.status, 200 | 304),
            "{method} {path}: {}",
            answer.error()
        );
        assert_eq!(shown(&answer), ["content-type"], "{method} {path}");
    }
    let url = raw.upstream.url("/v1/part");
    let answer = call(&worker, Some("pay"), "GET", &url, "", &asked).await;
    assert_eq!(
        (answer.error(), answer.body.len()),
        ("ranges_undeclared", 0)
    );
    for head in raw.heads() {
        let head = head.to_lowercase();
        assert!(
            !head.contains("range:") && !head.contains("if-none-match:"),
            "{head}"
        );
        assert!(head.contains("x-kept: 1"));
    }
    // A value that was stored through the slot may return on a call without it.
    let url = raw.upstream.url("/plain/part");
    let answer = call(&worker, None, "GET", &url, "", &asked).await;
    assert_eq!(answer.error(), "ranges_undeclared");
    assert!(!raw.heads().last().unwrap().contains("range:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_that_declares_ranges_gets_parts_and_validators_but_no_lengths() {
    let raw = Raw::start(|_| {
        let head = "HTTP/1.1 206 Partial Content\r\ncontent-length: 4\r\netag: \"a\"\r\n\
                    content-range: bytes 0-3/24\r\ndigest: x\r\n\r\nfine";
        (head.into(), Then::Close)
    })
    .await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    fleet.edit_release = |release| release.credentials[0].ranges = true;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let asked = [("range", "bytes=0-3"), ("if-range", "\"a\"")];
    let url = raw.upstream.url("/v1/part");
    let answer = call(&worker, Some("pay"), "POST", &url, "", &asked).await;
    assert_eq!((answer.status, answer.body.as_slice()), (206, &b"fine"[..]));
    assert_eq!(shown(&answer), ["etag", "content-range"]);
    let head = raw.heads().remove(0);
    assert!(
        head.contains("range: bytes=0-3") && head.contains("if-range:"),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_its_function_does_not_read_is_held_back_at_its_upstream() {
    /// The windows of the channel and of HTTP/2, 256 KiB each, plus the buffer of the test's
    /// upstream.
    const MOST_BYTES: usize = 3 << 19;
    let upstream = Upstream::start_with(KEY, &["h2"]).await;
    let (mut fleet, release) = serving(&upstream).await;
    let worker = channel(&mut fleet, release).await;
    let fields = Fields::default().with(":binding", "pay");
    let exchange = open(&worker, "POST", &upstream.url("/v1/endless"), fields, true);
    let (head, _body) = exchange.response.head().await.unwrap();
    assert_eq!(head.status, 200);
    let (mut before, mut now) = (0, upstream.produced());
    while now > before || now == 0 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (before, now) = (now, upstream.produced());
        assert!(now < MOST_BYTES, "the upstream has sent {now} bytes");
    }
    println!("the upstream has sent {now} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_counts_its_hop_and_a_function_cannot_begin_anew() {
    let raw = Raw::start(|_| answer("content-length: 0\r\n", b"")).await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    fleet.edit_release = with_plain_egress;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let cases = [
        (&[(":hops", "0")][..], "casemate; hops=1"),
        (
            &[(":hops", "6"), ("cdn-loop", "casemate; hops=0")],
            "casemate; hops=7",
        ),
        (&[(":hops", "6"), ("cdn_loop", "other")], "casemate; hops=7"),
        (
            &[("connection", "cdn-loop"), (":hops", "3")],
            "casemate; hops=4",
        ),
        (&[(":hops", "many")], "casemate; hops=8"),
        (&[], "casemate; hops=8"),
    ];
    for (fields, expected) in cases {
        for (binding, path) in [(Some("pay"), "/v1/x"), (None, "/plain")] {
            let url = raw.upstream.url(path);
            let answer = call(&worker, binding, "POST", &url, "", fields).await;
            assert_eq!(answer.status, 200, "{fields:?}: {}", answer.error());
            let head = raw.heads().pop().unwrap().to_lowercase();
            let found: Vec<_> = head.lines().filter(|line| line.contains("loop")).collect();
            assert_eq!(found, [format!("cdn-loop: {expected}")], "{fields:?}");
        }
    }
}
