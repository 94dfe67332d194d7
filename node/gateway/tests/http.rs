//! Well-behaved callers and workers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use bytes::Bytes;
use casemate_wire::control::gateway::{CertificateFiles, FromGateway, Listener, Perimeter};
use harness::{
    Node, SOON, describe, echo, http2, http2_connector, key, ok, perimeter, read_until, route,
    start, status, work,
};
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt as _, Empty, StreamBody};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

#[tokio::test]
async fn a_request_reaches_the_worker_and_its_answer_the_caller() {
    let mut node = Node::with_worker(describe).await;
    let port = node.addresses[0].rsplit(':').next().unwrap().to_owned();
    let request = format!(
        "POST /x/y%20z?q=1 HTTP/1.1\r\nHost: A.test:{port}\r\nX-One: 1\r\nx-one: 2\r\n\
         Connection: close, X-Hop\r\nX-Hop: 1\r\nContent-Length: 2\r\n\r\nhi"
    );
    let answer = node.raw(request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let record = node.record().await;
    assert!(
        answer.contains(&format!("x-casemate-request: {}\r\n", record.request)),
        "{answer}"
    );
    assert!(answer.contains("content-length: "), "{answer}");
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let expected = format!(
        "POST http://a.test:{port}/x/y%20z?q=1\nx-one=1\nx-one=2\ncontent-length=2\n\
         host=a.test:{port}\n:request={}\n:client=127.0.0.1\n:hops=0\n",
        record.request
    );
    assert_eq!(body, expected);
    assert_eq!(
        (record.key, record.status, record.failure),
        (key("f"), 200, None)
    );
    assert_eq!(
        (record.method.as_str(), record.path.as_str()),
        ("POST", "/x/y%20z")
    );
}

#[tokio::test]
async fn a_request_in_a_loop_is_refused_and_the_worker_receives_its_hop_count() {
    let mut node = Node::with_worker(describe).await;
    let with = |value: &str| {
        format!(
            "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close, cdn-loop\r\nCDN-Loop: {value}\r\n\r\n"
        )
    };
    let answer = node.raw(with("other, casemate; hops=7")).await;
    assert!(answer.contains("\n:hops=7\n"), "{answer}");
    for value in ["casemate; hops=8", "other, casemate; hops=x"] {
        let answer = node.raw(with(value)).await;
        assert!(
            answer.starts_with("HTTP/1.1 508") && answer.contains("loop_detected"),
            "{answer}"
        );
    }
    assert_eq!(node.record().await.status, 200);
    assert_eq!(node.record().await.status, 508);
}

#[tokio::test]
async fn http2_with_bodies_and_trailers_both_ways() {
    let node = Node::with_worker(echo).await;
    let mut sender = http2(node.connect().await).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "1".parse().unwrap());
    let frames = (0..8).map(|n| hyper::body::Frame::data(Bytes::from(vec![n; 200_000])));
    let frames = frames
        .chain([hyper::body::Frame::trailers(trailers.clone())])
        .map(Ok::<_, std::convert::Infallible>);
    let body = StreamBody::new(futures_util::stream::iter(frames.collect::<Vec<_>>()));
    let request = Request::post("http://a.test/").body(body).unwrap();
    let response = timeout(SOON, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (response.status().as_u16(), response.version()),
        (200, Version::HTTP_2)
    );
    let collected = timeout(SOON, response.into_body().collect())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    let bytes = collected.to_bytes();
    assert!(bytes.len() == 1_600_000 && bytes[1_599_999] == 7 && bytes[0] == 0);
}

#[tokio::test]
async fn many_requests_at_a_time_on_http2() {
    let node = Node::with_worker(describe).await;
    let sender = http2(node.connect().await).await;
    let calls = (0..100).map(|n| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let request = Request::get(format!("http://a.test/{n}"))
                .body(Empty::<Bytes>::new())
                .unwrap();
            let response = sender.send_request(request).await.unwrap();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(
                body.starts_with(format!("GET http://a.test/{n}\n").as_bytes()),
                "{body:?}"
            );
        })
    });
    for call in calls.collect::<Vec<_>>() {
        timeout(SOON, call).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn kept_connections_and_chunked_bodies() {
    let node = Node::with_worker(echo).await;
    let mut stream = node.connect().await;
    for n in 0..3 {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab{n}\r\n2\r\n!!\r\n0\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "!!").await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("ab{n}")),
            "{answer}"
        );
        if answer.contains("chunked") && !answer.contains("0\r\n\r\n") {
            read_until(&mut stream, "0\r\n\r\n").await;
        }
    }
}

#[tokio::test]
async fn head_and_no_content_have_no_body() {
    let node = Node::with_worker(|incoming| async move {
        let head = if incoming.head.target.ends_with("/none") {
            status(204, &[("content-length", "3")])
        } else {
            ok(&[("content-length", "3")])
        };
        let mut body = incoming.reply.send(&head, false);
        let _ = body.send(Bytes::from_static(b"abc")).await;
        body.finish();
    })
    .await;
    let answer = node
        .raw("HEAD / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await;
    assert!(
        answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let answer = node.get("a.test", "/none").await;
    assert!(
        answer.starts_with("HTTP/1.1 204")
            && answer.ends_with("\r\n\r\n")
            && !answer.contains("content-length"),
        "{answer}"
    );
    let answer = node.get("a.test", "/").await;
    assert!(
        answer.contains("content-length: 3\r\n") && answer.ends_with("\r\n\r\nabc"),
        "{answer}"
    );
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn certificate(
        &self,
        name: &str,
    ) -> (CertificateFiles, rustls_pki_types::CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let path = |end: &str| {
            self.0
                .path()
                .join(format!("{name}.{end}"))
                .to_string_lossy()
                .into_owned()
        };
        std::fs::write(path("pem"), made.cert.pem()).unwrap();
        std::fs::write(path("key"), made.signing_key.serialize_pem()).unwrap();
        (
            CertificateFiles {
                chain: path("pem"),
                key: path("key"),
            },
            made.cert.der().clone(),
        )
    }
}

#[tokio::test]
async fn tls_chooses_the_certificate_by_name_and_http2_by_alpn() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let ((a, a_der), (b, b_der)) = (folder.certificate("a.test"), folder.certificate("b.test"));
    let listeners = vec![Listener {
        address: "127.0.0.1:0".into(),
        tls: true,
    }];
    let mut node = Node::start(casemate_wire::control::gateway::Start {
        listeners,
        certificates: vec![a, b],
        ..start()
    })
    .await;
    // The certificates are served from memory, without their files.
    drop(folder);
    node.say(route("f", &["a.test", "b.test", "c.test"], perimeter()))
        .await;
    node.settle().await;
    tokio::spawn(work(node.worker("f", 1, 64).await, describe));
    let connect = async |name: &'static str,
                         trusted: &rustls_pki_types::CertificateDer<'static>| {
        let connector = http2_connector(trusted);
        timeout(
            SOON,
            connector.connect(ServerName::try_from(name).unwrap(), node.connect().await),
        )
        .await
        .unwrap()
    };
    for (name, trusted) in [("a.test", &a_der), ("b.test", &b_der)] {
        let stream = connect(name, trusted).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut sender = http2(stream).await;
        let request = Request::get(format!("https://{name}/"))
            .body(Empty::<Bytes>::new())
            .unwrap();
        let body = timeout(SOON, sender.send_request(request))
            .await
            .unwrap()
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        assert!(
            body.starts_with(format!("GET https://{name}/\n").as_bytes()),
            "{body:?}"
        );
    }
    assert!(
        connect("b.test", &a_der).await.is_err(),
        "b.test must not get the certificate of a.test"
    );
    // A connection for one host is not valid for a host with another certificate.
    let mut sender = http2(connect("b.test", &b_der).await.unwrap()).await;
    let request = Request::get("https://a.test/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    assert_eq!(
        timeout(SOON, sender.send_request(request))
            .await
            .unwrap()
            .unwrap()
            .status(),
        421
    );
}

#[tokio::test]
async fn the_perimeter_refuses_before_a_worker_is_woken() {
    let mut node = Node::start(start()).await;
    let narrow = Perimeter {
        methods: vec!["GET".into(), "POST".into()],
        paths: vec!["/api/*".into(), "/".into()],
        max_body_bytes: 10,
    };
    node.say(route("f", &["a.test"], narrow)).await;
    node.settle().await;
    let cases = [
        (
            "DELETE / HTTP/1.1\r\nHost: a.test\r\n",
            405,
            "perimeter_method",
        ),
        (
            "GET /admin HTTP/1.1\r\nHost: a.test\r\n",
            404,
            "perimeter_path",
        ),
        (
            "GET /api/../admin HTTP/1.1\r\nHost: a.test\r\n",
            400,
            "bad_path",
        ),
        (
            "GET /api/%2E%2e/admin HTTP/1.1\r\nHost: a.test\r\n",
            400,
            "bad_path",
        ),
        ("GET / HTTP/1.1\r\nHost: b.test\r\n", 404, "no_such_host"),
        (
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 11\r\n",
            413,
            "body_too_large",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
            501,
            "not_supported",
        ),
    ];
    for (head, code, name) in cases {
        let answer = node.raw(format!("{head}Connection: close\r\n\r\n")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code}")),
            "{head}: {answer}"
        );
        assert!(
            answer.contains(&format!(r#""code":"{name}""#))
                && answer.contains("cache-control: no-store"),
            "{head}: {answer}"
        );
        assert_eq!(
            answer.contains("allow: GET, POST\r\n"),
            code == 405,
            "{answer}"
        );
        if name != "no_such_host" {
            assert_eq!(node.record().await.status, code);
        }
    }
    assert!(
        !node
            .seen
            .iter()
            .any(|message| matches!(message, FromGateway::Need { .. })),
        "{:?}",
        node.seen
    );
    // A streamed body is cut off at the limit, and the worker's request is cancelled.
    let mut acceptor = node.worker("f", 1, 1).await;
    let mut stream = node.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n").await.unwrap();
    let mut incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    assert_eq!(
        timeout(SOON, incoming.body.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap(),
        "12345678"
    );
    stream.write_all(b"3\r\n123\r\n").await.unwrap();
    let answer = read_until(&mut stream, "body_too_large").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    timeout(SOON, incoming.reply.cancelled()).await.unwrap();
}
