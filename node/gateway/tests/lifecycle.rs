//! Messages from the supervisor, and reports to it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::os::fd::AsFd as _;
use std::time::Duration;

use bytes::Bytes;
use casemate_wire::control::gateway::{CertificateFiles, FromGateway, Listener, ToGateway};
use casemate_wire::control::{Failure, WorkerId};
use harness::{
    Node, RELEASE, SOON, describe, http2, key, ok, perimeter, read_all, read_until, route, spawn,
    start, work,
};
use http::Request;
use http_body_util::Full;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

#[tokio::test]
async fn a_caller_without_a_worker_waits_until_there_is_one() {
    let mut node = Node::with_route().await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET /cold HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let need = |message: &FromGateway| match message {
        FromGateway::Need { key, waiting } => Some((key.clone(), *waiting)),
        _ => None,
    };
    assert_eq!(node.hear(need).await, (key("f"), 1));
    assert_eq!(
        node.hear(need).await,
        (key("f"), 1),
        "said again while it waits"
    );
    tokio::spawn(work(node.worker("f", 1, 1).await, describe));
    assert!(
        read_all(&mut stream)
            .await
            .contains("GET http://a.test/cold\n")
    );
}

#[tokio::test]
async fn a_caller_is_told_when_no_worker_can_be_had() {
    let mut node = Node::with_route().await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    node.hear(|message| matches!(message, FromGateway::Need { .. }).then_some(()))
        .await;
    node.say(ToGateway::Refuse {
        key: key("f"),
        failure: Failure::LoadFailed,
        message: "Error: a value that callers must not see".into(),
    })
    .await;
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(
        answer.contains(r#""code":"load_failed""#) && !answer.contains("must not see"),
        "{answer}"
    );
    let record = node.record().await;
    assert_eq!(
        (record.failure, record.status),
        (Some(Failure::LoadFailed), 500)
    );
}

#[tokio::test]
async fn a_retired_worker_finishes_and_another_release_takes_over() {
    let mut node = Node::with_route().await;
    let mut old = node.worker("f", 1, 64).await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let incoming = timeout(SOON, old.accept()).await.unwrap().unwrap();
    node.say(ToGateway::Retire {
        worker: WorkerId(1),
    })
    .await;
    node.settle().await;
    tokio::spawn(work(node.worker("f", 2, 64).await, describe));
    assert!(node.get("a.test", "/new").await.contains("/new"));
    assert!(!node.seen.contains(&FromGateway::Drained {
        worker: WorkerId(1)
    }));
    incoming.reply.send(&ok(&[]), true).finish();
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    node.hear(|message| {
        (*message
            == FromGateway::Drained {
                worker: WorkerId(1),
            })
        .then_some(())
    })
    .await;
    // A release that is no longer wanted drains without a command.
    let next = ToGateway::Route(Box::new(casemate_wire::control::gateway::Route {
        key: key("f"),
        release: [8; 32],
        hosts: vec!["a.test".into()],
        perimeter: perimeter(),
    }));
    assert_ne!(RELEASE, [8; 32]);
    node.say(next).await;
    node.hear(|message| {
        (*message
            == FromGateway::Drained {
                worker: WorkerId(2),
            })
        .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_function_that_is_taken_away_answers_no_more() {
    let mut node = Node::with_worker(describe).await;
    assert!(node.get("a.test", "/").await.starts_with("HTTP/1.1 200"));
    node.say(route("g", &["a.test"], perimeter())).await;
    node.say(route("f", &[], perimeter())).await;
    tokio::spawn(work(node.worker("g", 2, 64).await, describe));
    node.settle().await;
    node.record().await;
    assert!(node.get("a.test", "/").await.starts_with("HTTP/1.1 200"));
    assert_eq!(
        node.record().await.key,
        key("g"),
        "the newest claim of a host wins"
    );
    node.say(route("g", &[], perimeter())).await;
    node.say(ToGateway::Retire {
        worker: WorkerId(2),
    })
    .await;
    node.hear(|message| {
        (*message
            == FromGateway::Drained {
                worker: WorkerId(2),
            })
        .then_some(())
    })
    .await;
    assert!(node.get("a.test", "/").await.contains("no_such_host"));
}

#[tokio::test]
async fn idle_workers_are_reported() {
    let mut node = Node::with_worker(describe).await;
    let idle_ms = node.hear(|message| match message {
        FromGateway::Idle {
            worker: WorkerId(1),
            idle_ms,
        } => Some(*idle_ms),
        _ => None,
    });
    assert!(idle_ms.await >= 1000);
}

#[tokio::test]
async fn draining_finishes_what_is_under_way() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 64).await;
    let mut idle = node.connect().await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    let mut second = http2(node.connect().await).await;
    let request = Request::get("http://a.test/")
        .body(Full::<Bytes>::default())
        .unwrap();
    let second = tokio::spawn(async move { second.send_request(request).await.unwrap().status() });
    let other = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    node.say(ToGateway::Drain { grace_ms: 15_000 }).await;
    assert_eq!(
        read_all(&mut idle).await,
        "",
        "a connection that rests is closed"
    );
    let mut body = incoming.reply.send(&ok(&[]), false);
    body.send(Bytes::from_static(b"late")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    body.finish();
    other.reply.send(&ok(&[]), true).finish();
    let answer = read_all(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("late"),
        "{answer}"
    );
    assert_eq!(timeout(SOON, second).await.unwrap().unwrap(), 200);
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
    assert_eq!(
        node.records.len(),
        2,
        "access records come before `Stopped`"
    );
    assert!(node.exit().await.success());
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// The last line of an answer of [`describe`].
const END: &str = ":hops=0\n";

async fn say_drain(node: &mut Node) {
    node.say(ToGateway::Drain { grace_ms: 15_000 }).await;
    // Messages are carried out in order.
    node.settle().await;
}

#[tokio::test]
async fn a_gateway_that_drains_answers_what_comes_on_kept_and_on_new_connections() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 64).await;
    let (mut kept, mut fresh) = (node.connect().await, node.connect().await);
    // One request is under way all the time.
    let mut held = node.connect().await;
    held.write_all(GET).await.unwrap();
    let held_request = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    tokio::spawn(work(acceptor, describe));
    kept.write_all(GET).await.unwrap();
    let first = read_until(&mut kept, END).await;
    assert!(!first.contains("connection: close"), "{first}");
    let (half, rest) = GET.split_at(10);
    for stream in [&mut kept, &mut fresh] {
        stream.write_all(half).await.unwrap();
    }
    // The gateway has seen the message: answers on another connection come later.
    assert!(node.get("a.test", "/").await.starts_with("HTTP/1.1 200"));
    say_drain(&mut node).await;
    let mut late = node.connect().await;
    late.write_all(half).await.unwrap();
    // A connection that has had an answer, one that has not, and a new one.
    for stream in [&mut kept, &mut fresh, &mut late] {
        stream.write_all(rest).await.unwrap();
        let answer = read_all(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    held_request.reply.send(&ok(&[]), true).finish();
    let answer = read_all(&mut held).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
    assert!(node.exit().await.success());
}

#[tokio::test]
async fn a_caller_that_comes_while_there_is_no_gateway_is_answered_by_the_next_one() {
    let mut node = Node::with_worker(describe).await;
    let (address, sockets) = (node.addresses[0].clone(), std::mem::take(&mut node.sockets));
    node.say(ToGateway::Drain { grace_ms: 15_000 }).await;
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
    assert!(node.exit().await.success());
    let mut stream = TcpStream::connect(&address).await.unwrap();
    stream.write_all(GET).await.unwrap();

    // The next gateway knows no route at first, and refuses no caller for that.
    let mut start = start();
    start.load_wait_ms = 600_000;
    let mut node = Node::start_unloaded(start, &sockets).await;
    assert_eq!(node.addresses, [address]);
    node.settle().await;
    node.say(route("f", &["a.test"], perimeter())).await;
    node.stand(true, &[], true).await;
    tokio::spawn(work(node.worker("f", 2, 64).await, describe));
    let answer = read_until(&mut stream, "http://a.test/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_gateway_whose_routes_never_come_says_so_after_a_while() {
    let mut start = start();
    start.load_wait_ms = 100;
    let node = Node::start_unloaded(start, &[]).await;
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    let answer = read_until(&mut stream, "not loaded its routes yet").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after"), "{answer}");
}

#[tokio::test]
async fn sigterm_drains_too() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 64).await;
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    let pid = rustix::process::Pid::from_child(&node.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    incoming.reply.send(&ok(&[]), true).finish();
    assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 200"));
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
    assert!(node.exit().await.success());
}

#[tokio::test]
async fn a_supervisor_that_resumes_gets_the_sockets_again() {
    let mut node = Node::with_route().await;
    node.say(ToGateway::Resume).await;
    node.hear(|message| (*message == FromGateway::Socket { place: 0 }).then_some(()))
        .await;
    node.hear(|message| matches!(message, FromGateway::Ready { .. }).then_some(()))
        .await;
}

#[tokio::test]
async fn draining_ends_with_the_grace_time() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 64).await;
    let mut stream = node.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        .await
        .unwrap();
    let _held = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    node.say(ToGateway::Drain { grace_ms: 100 }).await;
    node.hear(|message| (*message == FromGateway::Stopped).then_some(()))
        .await;
    assert!(node.exit().await.success());
    assert_eq!(read_all(&mut stream).await, "");
}

#[tokio::test]
async fn a_failed_start_is_reported_and_has_its_exit_code() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let listener = |address: &str, tls| {
        vec![Listener {
            address: address.to_owned(),
            tls,
        }]
    };
    let missing = CertificateFiles {
        chain: "/nowhere.pem".into(),
        key: "/nowhere.key".into(),
    };
    let mut cases = vec![
        (start(), taken.clone(), 69),
        (start(), "nonsense".to_owned(), 64),
        (start(), "/nowhere.pem".to_owned(), 64),
        (start(), "certificate".to_owned(), 64),
    ];
    cases[0].0.listeners = listener(&taken, false);
    cases[1].0.listeners = listener("nonsense", false);
    cases[2].0.certificates = vec![missing];
    cases[3].0.listeners = listener("127.0.0.1:0", true);
    for (start, says, code) in cases {
        let (mut child, control, _) = spawn(start).await;
        let FromGateway::Failed { message } = timeout(SOON, control.recv())
            .await
            .unwrap()
            .unwrap()
            .unwrap()
            .0
        else {
            panic!("{says}")
        };
        assert!(message.contains(&says), "{message}");
        assert_eq!(child.wait().unwrap().code(), Some(code), "{message}");
    }
}

#[tokio::test]
async fn invalid_control_packets_are_skipped_and_callers_are_served() {
    let node = Node::with_route().await;
    for bytes in [&b"garbage"[..], &[0; 100_000]] {
        rustix::net::send(&node.socket, bytes, rustix::net::SendFlags::empty()).unwrap();
    }
    tokio::spawn(work(node.worker("f", 1, 1).await, describe));
    assert!(node.get("a.test", "/x").await.contains("/x"));
}

#[tokio::test]
async fn without_a_supervisor_it_ends() {
    let mut node = Node::with_route().await;
    node.socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (unused, _other) = casemate_channel::control::pair().unwrap();
    drop(std::mem::replace(
        &mut node.control,
        casemate_channel::Control::new(unused).unwrap(),
    ));
    assert_eq!(node.exit().await.code(), Some(1));
}
