//! Requests that are meant to be read in two ways: framings, heads, paths, header blocks.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use casemate_channel::Incoming;
use casemate_wire::control::gateway::Perimeter;
use harness::{
    Node, PREFACE, SETTINGS, SOON, describe, echo, frame, perimeter, read_all, route, start, work,
};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

/// As chunks, this is an empty body and a second request; by its length, all of it is a body.
const BODY: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// Valid and invalid lines that name a transfer coding, beside a length.
const TRANSFER: [&str; 58] = [
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:chunked",
    "Transfer-Encoding:  chunked",
    "Transfer-Encoding: chunked ",
    "Transfer-Encoding:\tchunked",
    "Transfer-Encoding: chunked\t",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: CHUNKED",
    "transfer-encoding: chunked",
    "TRANSFER-ENCODING: chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: identity, chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, gzip",
    "Transfer-Encoding: gzip",
    "Transfer-Encoding: deflate, chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunkedx",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding: 'chunked'",
    "Transfer-Encoding: chunked;q=1",
    "Transfer-Encoding: chunked;",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked chunked",
    "Transfer-Encoding: chunk",
    "Transfer-Encoding: cow",
    "Transfer-Encoding:",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding: \x0cchunked",
    "Transfer-Encoding: \0chunked",
    "Transfer-Encoding: chunked\0",
    "Transfer-Encoding: chunked\x7f",
    "Transfer-Encoding: \u{a0}chunked",
    "Transfer-Encoding: chünked",
    "Transfer-Encoding:\r\n chunked",
    "Transfer-Encoding: x\r\n\tchunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding\t: chunked",
    " Transfer-Encoding: chunked",
    "\tTransfer-Encoding: chunked",
    "Transfer-Encoding\0: chunked",
    "\x0bTransfer-Encoding: chunked",
    "Transfer Encoding: chunked",
    "Transfer_Encoding: chunked",
    "Transfer-Encoding\r\n: chunked",
    "X: y\nTransfer-Encoding: chunked",
    "X: y\rTransfer-Encoding: chunked",
    "X: y\r\n\nTransfer-Encoding: chunked",
    "X: y\r\r\nTransfer-Encoding: chunked",
    "Foo\r\nTransfer-Encoding: chunked",
    ": x\r\nTransfer-Encoding: chunked",
];

/// Values of one or several lengths. `N` is the length of the body.
const LENGTHS: [&str; 30] = [
    "Content-Length: +N",
    "Content-Length: -N",
    "Content-Length: N, N",
    "Content-Length: N,0",
    "Content-Length: 0,N",
    "Content-Length: N N",
    "Content-Length: N;",
    "Content-Length: 0xN",
    "Content-Length: N.0",
    "Content-Length: Ne0",
    "Content-Length: \"N\"",
    "Content-Length: N\0",
    "Content-Length: \x0bN",
    "Content-Length: \u{a0}N",
    "Content-Length: N_",
    "Content-Length: 1_N",
    "Content-Length:",
    "Content-Length: 18446744073709551616",
    "Content-Length: 99999999999999999999999",
    "Content-Length: N\r\nContent-Length: 0",
    "Content-Length: 0\r\nContent-Length: N",
    "Content-Length: N\r\nContent-Length: N",
    "Content-Length: N\r\ncontent-length: +N",
    "Content-Length : N",
    "Content-Length\t: N",
    " Content-Length: N",
    "Content-Length:\r\n N",
    "Content-Length: N\r\n 0",
    "X: y\nContent-Length: N",
    "X: y\rContent-Length: N",
];

/// Whole heads without a body.
const HEADS: [&str; 44] = [
    "GET / HTTP/1.1\r\nHost: a.test\n\r\n",
    "GET / HTTP/1.1\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\n\n",
    "GET / HTTP/1.1\nHost: a.test\n\n",
    "\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\r\n\r\n",
    "GET / HTTP/1.1\rHost: a.test\r\n\r\n",
    "GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET /  HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET\t/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
    " GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: a.test\r\n\r\n",
    "GET / x HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET /\0 HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET /\x7f HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET /#x HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET /x?y#z HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.2\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/2.0\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/0.9\r\nHost: a.test\r\n\r\n",
    "GET / http/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1x\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/01.1\r\nHost: a.test\r\n\r\n",
    "GET /\r\nHost: a.test\r\n\r\n",
    "GE(T / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\nhost: b.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test, b.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost:\r\n a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\n folded\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: user@a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test#b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test/b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\\b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test%00\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test:x\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test:0080\r\n\r\n",
    "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET http://user@a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\nX\x01: 1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n",
];

type Seen = Arc<Mutex<Vec<String>>>;

/// A node whose function records the targets that reach it.
async fn remembering() -> (Node, Seen) {
    let seen = Seen::default();
    let remembers = seen.clone();
    let node = Node::with_worker(move |incoming: Incoming| {
        remembers.lock().push(incoming.head.target.clone());
        echo(incoming)
    })
    .await;
    (node, seen)
}

#[tokio::test]
async fn of_190_framings_and_heads_none_smuggles_a_request() {
    let (node, seen) = remembering().await;
    let length = BODY.len().to_string();
    let head = |lines: &str| {
        format!(
            "POST /front HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{lines}\r\n\r\n{BODY}"
        )
    };
    let beside = |line: &&str| {
        [
            head(&format!("Content-Length: {length}\r\n{line}")),
            head(&format!("{line}\r\nContent-Length: {length}")),
        ]
    };
    let framings = TRANSFER.iter().flat_map(beside);
    let lengths = LENGTHS.map(|line| head(&line.replace('N', &length)));
    // Only a line that names another field leaves one reading: all of it is a body.
    let plain = ["Transfer_Encoding: chunked"];
    let may_pass = |request: &str| plain.iter().any(|line| request.contains(line));
    for request in framings.chain(lengths) {
        let answer = node.raw(&request).await;
        assert!(
            answer.matches("HTTP/1.").count() <= 2,
            "{request:?}: {answer}"
        );
        if may_pass(&request) {
            assert!(
                answer.starts_with("HTTP/1.1 200") && answer.ends_with(BODY),
                "{answer}"
            );
        } else {
            assert!(answer.starts_with("HTTP/1.1 400"), "{request:?}: {answer}");
        }
    }
    let passed = seen.lock().drain(..).collect::<Vec<_>>();
    assert!(
        passed.iter().all(|target| target.ends_with("/front")),
        "{passed:?}"
    );
    for request in HEADS {
        let mut stream = node.connect().await;
        let follows = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";
        let _ = stream
            .write_all(format!("{request}{follows}").as_bytes())
            .await;
        let answer = read_all(&mut stream).await;
        // The gateway itself refused the first request, so the connection continues, and the next
        // bytes are a request of their own.
        let first = answer.split("\r\n").next().unwrap().to_owned();
        assert!(
            first.starts_with("HTTP/1.") && first[8..].starts_with(" 400"),
            "{request:?}: {answer}"
        );
        let smuggled = seen.lock().drain(..).count();
        assert_eq!(
            smuggled > 0,
            answer.contains("bad_host"),
            "{request:?}: {answer}"
        );
    }
}

/// Spellings of paths that lead, or seem to lead, out of `/api/`.
const PATHS: [&str; 44] = [
    "/private",
    "/API/x",
    "/Api/x",
    "/api",
    "/apix",
    "//api/x",
    "/./api/x",
    "/x/../api/x",
    "/api/../private",
    "/api/./../private",
    "/api/x/../../private",
    "/api//../private",
    "/api/..",
    "/api/.",
    "/api/%2e%2e/private",
    "/api/%2E%2E/private",
    "/api/.%2e/private",
    "/api/%2e./private",
    "/api/%2e",
    "/api/..%2fprivate",
    "/api/..%2Fprivate",
    "/api/%2e%2e%2fprivate",
    "/api/..%5cprivate",
    "/api/..\\private",
    "/api\\..\\private",
    "/api/%5c..%5cprivate",
    "/api/..;/private",
    "/api/..;x=1/private",
    "/api/.;/../private",
    "/api/%2e%2e;/private",
    "/api/%252e%252e/private",
    "/api/%252e%252e%252fprivate",
    "/api/%25252e%25252e/private",
    "/api/x%2f..%2f..%2fprivate",
    "/%61pi/x",
    "/api%2f..%2fprivate",
    "/api%2fx",
    "/api;/../private",
    "/api/\u{ff0e}\u{ff0e}/private",
    "/api/%c0%ae%c0%ae/private",
    "/api/%uff0e%uff0e/private",
    "/api/..%00/private",
    "/api/..%0d%0a/private",
    "/api/...;/private",
];

/// The path that a program reaches which decodes until nothing changes and then resolves.
fn resolved(path: &str) -> String {
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..5 {
        let (mut out, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let digits = bytes
                .get(at + 1..at + 3)
                .and_then(|digits| std::str::from_utf8(digits).ok());
            let byte = digits
                .filter(|_| bytes[at] == b'%')
                .and_then(|digits| u8::from_str_radix(digits, 16).ok());
            at += if byte.is_some() { 3 } else { 1 };
            out.push(byte.unwrap_or_else(|| bytes[at - 1]));
        }
        bytes = out;
    }
    let text = String::from_utf8_lossy(&bytes).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        match segment.split(';').next().unwrap() {
            ".." => drop(segments.pop()),
            "." => {}
            name => segments.push(name),
        }
    }
    segments.join("/")
}

#[tokio::test]
async fn of_44_paths_none_leads_past_the_rules_for_paths() {
    let mut node = Node::start(start()).await;
    let narrow = Perimeter {
        paths: vec!["/api/*".into()],
        ..perimeter()
    };
    node.say(route("f", &["a.test"], narrow)).await;
    node.settle().await;
    tokio::spawn(work(node.worker("f", 1, 8).await, describe));
    let mut passed = Vec::new();
    for path in PATHS {
        let answer = node.get("a.test", path).await;
        if answer.starts_with("HTTP/1.1 200") {
            assert!(
                resolved(path).starts_with("/api/"),
                "{path} leads to {}",
                resolved(path)
            );
            assert!(
                answer.contains(&format!("GET http://a.test{path}\n")),
                "{path}: {answer}"
            );
            passed.push(path);
        } else {
            let refused = answer.contains("bad_path") || answer.contains("perimeter_path");
            assert!(refused, "{path}: {answer}");
        }
    }
    // This is another spelling of `/api/x`. All others lead elsewhere, or have more than one
    // reading.
    assert_eq!(passed, ["/%61pi/x"]);
    for path in ["/api/", "/api/a%20b", "/api/%E4%B8%AD/..a"] {
        let answer = node.get("a.test", path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_small_header_block_that_grows_large_is_refused() {
    let node = Node::with_worker(describe).await;
    let resident_kib = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap()
            .to_owned();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    assert!(node.get("a.test", "/warm").await.contains("/warm"));
    let before = resident_kib();
    // One field of 3,900 bytes into the dynamic table, then a reference to it 12,000 times: 47 MB.
    let mut block = vec![0x82, 0x86, 0x84, 0x01, 6];
    block.extend_from_slice(b"a.test");
    block.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0xbd, 0x1d]);
    block.extend_from_slice(&[b'a'; 3900]);
    block.extend_from_slice(&[0xbe; 12_000]);
    assert!(block.len() < 16_384);
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = node.connect().await;
        let requests: Vec<u8> = (0..4)
            .flat_map(|n| frame(1, 5, n * 2 + 1, &block))
            .collect();
        let _ = stream
            .write_all(&[PREFACE, SETTINGS, &requests].concat())
            .await;
        streams.push(stream);
    }
    for stream in &mut streams {
        let _ = stream.shutdown().await;
        let answer = timeout(SOON, read_all(stream)).await.unwrap();
        assert!(!answer.contains("GET "), "it must not reach the function");
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more");
    assert!(node.get("a.test", "/next").await.contains("/next"));
}
