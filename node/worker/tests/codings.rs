//! Content codings: a body and its fields stay consistent, however a function passes them on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::io::Write as _;

use bytes::Bytes;
use casemate_wire::ResponseHead;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use harness::{Answer, Function, function, head, whole};

const TEXT: &str = "the same text again and again ";

/// Makes a call, and passes the answer on as the query says.
const HAND_ON: &str = r#"export default {
    async fetch(request) {
        const { search } = new URL(request.url);
        const headers = { "accept-encoding": request.headers.get("accept-encoding") ?? "" };
        const answer = await fetch("https://api.test/", { headers });
        switch (search) {
            case "?text": return new Response(await answer.text());
            case "?rebuild": return new Response(answer.body, answer);
            case "?fields": return new Response(await answer.arrayBuffer(), { headers: answer.headers });
            case "?clone": return answer.clone();
            default: return answer;
        }
    },
};"#;

fn text() -> Vec<u8> {
    TEXT.repeat(5000).into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// `hello, brotli`, stored: RFC 7932, section 9.
const BROTLI: &[u8] = b"\x0b\x06\x80hello, brotli\x03";

/// Requests `url`, answers the resulting call, and returns the call's and the caller's view.
async fn handed_on(
    worker: &mut Function,
    query: &str,
    (status, fields): (u16, &[(&str, &str)]),
    sent: &[u8],
) -> (String, Answer) {
    let mut asked = head("GET", &format!("https://fn.test/{query}"));
    asked
        .fields
        .push("accept-encoding", "deflate, gzip;q=0.8, br, zstd");
    let exchange = worker.open(asked, true);
    let call = worker.vault.accept().await.unwrap();
    let accepted = call.head.fields.text("accept-encoding").unwrap().to_owned();
    let fields = fields.iter().map(|(name, value)| (*name, value.as_bytes()));
    let reply = ResponseHead {
        status,
        fields: fields.collect(),
    };
    let mut sending = call.reply.send(&reply, false);
    let sent = Bytes::copy_from_slice(sent);
    let sender = tokio::spawn(async move {
        if sending.send(sent).await.is_ok() {
            sending.finish();
        }
    });
    let (ResponseHead { status, fields }, mut body) = exchange.response.head().await.unwrap();
    let body = whole(&mut body).await.unwrap();
    sender.await.unwrap();
    (
        accepted,
        Answer {
            status,
            fields,
            body,
        },
    )
}

#[tokio::test]
async fn what_a_function_hands_on_is_the_text_whatever_its_upstream_did_to_it() {
    let mut worker = function(HAND_ON).await;
    let text = text();
    let cases: [(&str, Vec<u8>, &[u8]); 6] = [
        ("gzip", gzip(&text), &text),
        ("X-GZIP", gzip(&text), &text),
        ("deflate", deflate(&text), &text),
        ("gzip, gzip", gzip(&gzip(&text)), &text),
        ("deflate , gzip", gzip(&deflate(&text)), &text),
        ("br", BROTLI.to_vec(), b"hello, brotli"),
    ];
    for (coding, sent, expected) in &cases {
        let length = sent.len().to_string();
        let fields = [
            ("content-encoding", *coding),
            ("content-length", length.as_str()),
            ("etag", "\"v1\""),
            ("content-digest", "sha-256=:AA==:"),
            ("x-other", "stays"),
        ];
        for query in ["", "?text", "?rebuild", "?fields", "?clone"] {
            let (asked, got) = handed_on(&mut worker, query, (200, &fields), sent).await;
            assert_eq!(asked, "gzip");
            assert!(got.body == *expected, "{coding} {query}: {:?}", got.fields);
            for about_the_encoded in ["content-encoding", "content-digest"] {
                assert_eq!(got.fields.text(about_the_encoded), None, "{coding} {query}");
            }
            let length = got.fields.text("content-length");
            let correct = length.is_none_or(|length| length == expected.len().to_string());
            assert!(correct, "{coding} {query}: {length:?}");
            if query != "?text" {
                assert_eq!(got.fields.text("etag"), Some("W/\"v1\""));
                assert_eq!(got.fields.text("x-other"), Some("stays"));
            }
        }
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_keeps_its_label_and_its_bytes() {
    let mut worker = function(HAND_ON).await;
    let sent = gzip(&text());
    let cases = [
        (200, "zstd"),
        (200, "gzip, zstd"),
        (200, "gzip, gzip, gzip"),
        // A part of an encoded body.
        (206, "gzip"),
    ];
    for (status, coding) in cases {
        for query in ["", "?rebuild"] {
            let fields = [("content-encoding", coding), ("etag", "\"v1\"")];
            let (_, got) = handed_on(&mut worker, query, (status, &fields), &sent).await;
            assert!(got.body == sent, "{coding} {query}");
            assert_eq!(got.status, status);
            assert_eq!(got.fields.text("content-encoding"), Some(coding));
            assert_eq!(got.fields.text("etag"), Some("\"v1\""));
        }
    }
}

#[tokio::test]
async fn only_gzip_and_identity_are_asked_for() {
    let source = r#"export default {
        async fetch(request) {
            const asked = new URL(request.url).searchParams.get("asked");
            await fetch("https://api.test/", asked === null ? {} : { headers: { "Accept-Encoding": asked } });
            return new Response();
        },
    };"#;
    let mut worker = function(source).await;
    for (asked, expected) in [
        ("", None),
        ("?asked=br", Some("identity")),
        ("?asked=br;q=1,%20GZIP;q=0.5", Some("gzip")),
        ("?asked=gzip;q=0,%20br", Some("identity")),
        ("?asked=gzip;%20q=0.000", Some("identity")),
        ("?asked=*", Some("gzip")),
        ("?asked=identity", Some("identity")),
        ("?asked=", Some("identity")),
    ] {
        let exchange = worker.open(head("GET", &format!("https://fn.test/{asked}")), true);
        let call = worker.vault.accept().await.unwrap();
        let values: Vec<_> = call
            .head
            .fields
            .iter()
            .filter(|(name, _)| *name == "accept-encoding")
            .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
            .collect();
        assert_eq!(values, expected.into_iter().collect::<Vec<_>>(), "{asked}");
        harness::answer(call, 204, &[], "").await;
        exchange.response.head().await.unwrap();
    }
}
