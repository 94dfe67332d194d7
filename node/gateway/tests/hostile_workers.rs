//! Workers that break, lie, or are hostile.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::{Acceptor, Incoming};
use casemate_wire::control::gateway::{FromGateway, ToGateway, WorkerFault};
use casemate_wire::control::{Failure, WorkerId};
use harness::{Node, SOON, describe, ok, read_until, status, work};
use rustix::net::{Shutdown, shutdown};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[tokio::test]
async fn a_worker_killed_in_the_middle_is_a_clear_502_and_the_next_request_succeeds() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    // The kernel closes a killed process's descriptors, and no reason comes.
    drop((incoming.body, acceptor));
    std::mem::forget(incoming.reply);
    kill(&node, 1).await;
    let answer = read_until(&mut stream, "}}").await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains(r#""code":"worker_lost""#),
        "{answer}"
    );
    tokio::spawn(work(node.worker("f", 2, 8).await, describe));
    stream.write_all(GET).await.unwrap();
    assert!(
        read_until(&mut stream, ":client")
            .await
            .starts_with("HTTP/1.1 200"),
        "the same connection continues"
    );
    assert_eq!(node.record().await.failure, Some(Failure::WorkerLost));
}

/// Ends a worker whose channel another process still holds open.
async fn kill(node: &Node, worker: u64) {
    node.say(ToGateway::Gone {
        worker: WorkerId(worker),
        failure: Failure::WorkerLost,
    })
    .await;
}

#[tokio::test]
async fn a_channel_that_closes_without_a_reason_is_a_lost_worker_and_no_request_is_sent_twice() {
    let mut node = Node::with_route().await;
    let mut acceptor = node.worker("f", 1, 8).await;
    let mut second = node.worker("f", 2, 8).await;
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    let incoming = tokio::select! {
        incoming = acceptor.accept() => incoming.unwrap(),
        incoming = second.accept() => panic!("the first worker has as few streams: {incoming:?}"),
    };
    drop((incoming, acceptor));
    let answer = read_until(&mut stream, "}}").await;
    assert!(
        answer.starts_with("HTTP/1.1 502") && answer.contains("worker_lost"),
        "{answer}"
    );
    assert!(
        timeout(Duration::from_millis(100), second.accept())
            .await
            .is_err(),
        "the request must not be tried again"
    );
    node.record().await;
}

/// A worker that has begun one request, and three callers: one of the request that it has begun,
/// and two of requests, with and without a body, that it has not begun.
async fn one_begun_and_two_not(node: &mut Node) -> ((Acceptor, OwnedFd), Incoming, [TcpStream; 3]) {
    let (mut acceptor, socket) = node.worker_and_socket("f", 1, 8).await;
    let mut callers = [
        node.connect().await,
        node.connect().await,
        node.connect().await,
    ];
    callers[0].write_all(GET).await.unwrap();
    let begun = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    callers[1].write_all(GET).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 40000\r\n\r\n";
    callers[2].write_all(head.as_bytes()).await.unwrap();
    callers[2].write_all(&[b'x'; 20_000]).await.unwrap();
    let given = FromGateway::Given {
        worker: WorkerId(1),
        requests: 3,
    };
    node.hear(|message| (*message == given).then_some(())).await;
    ((acceptor, socket), begun, callers)
}

/// The next worker answers the two requests that were not begun.
async fn the_next_worker_answers(node: &Node, callers: &mut [TcpStream]) {
    tokio::spawn(work(
        node.worker("f", 2, 8).await,
        |mut incoming| async move {
            let mut length = 0;
            while let Some(piece) = incoming.body.next().await {
                length += piece.unwrap().len();
            }
            let head = ok(&[("x-length", &length.to_string())]);
            incoming.reply.send(&head, true).finish();
        },
    ));
    let answer = read_until(&mut callers[0], "\r\n\r\n").await;
    assert!(answer.contains("x-length: 0\r\n"), "{answer}");
    callers[1].write_all(&[b'x'; 20_000]).await.unwrap();
    let answer = read_until(&mut callers[1], "\r\n\r\n").await;
    assert!(answer.contains("x-length: 40000\r\n"), "{answer}");
}

#[tokio::test]
async fn requests_that_an_ending_worker_has_not_begun_go_to_another() {
    let mut node = Node::with_route().await;
    let ((acceptor, _socket), begun, mut callers) = one_begun_and_two_not(&mut node).await;
    acceptor.go_away();
    begun.reply.reset(Failure::ExceededCpu.to_reset());
    let answer = read_until(&mut callers[0], "}}").await;
    assert!(answer.contains("exceeded_cpu"), "{answer}");
    // The process takes time to end, and its callers' next requests do not wait for that.
    the_next_worker_answers(&node, &mut callers[1..]).await;
    drop(acceptor);
}

#[tokio::test]
async fn requests_that_a_silent_worker_had_not_begun_go_to_another() {
    for is_closed_first in [false, true] {
        let mut node = Node::with_route().await;
        let ((_acceptor, socket), begun, mut callers) = one_begun_and_two_not(&mut node).await;
        let id = begun.id;
        // Otherwise the process hangs while it ends.
        if is_closed_first {
            shutdown(&socket, Shutdown::Both).unwrap();
        }
        let worker = WorkerId(1);
        node.say(ToGateway::Dying { worker, begun: id }).await;
        the_next_worker_answers(&node, &mut callers[1..]).await;
        let failure = Failure::ExceededMemory;
        node.say(ToGateway::Gone { worker, failure }).await;
        let answer = read_until(&mut callers[0], "}}").await;
        assert!(answer.contains("exceeded_memory"), "{answer}");
    }
}

#[tokio::test]
async fn the_reason_of_a_workers_end_is_waited_for() {
    let mut node = Node::with_route().await;
    let (mut acceptor, socket) = node.worker_and_socket("f", 1, 8).await;
    let mut caller = node.connect().await;
    caller.write_all(GET).await.unwrap();
    let _incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
    // Killed for its memory: its descriptors are closed long before the reason is known.
    shutdown(&socket, Shutdown::Both).unwrap();
    let worker = WorkerId(1);
    let unusable = FromGateway::Unusable {
        worker,
        fault: WorkerFault::ChannelClosed,
    };
    node.hear(|message| (*message == unusable).then_some(()))
        .await;
    let failure = Failure::ExceededMemory;
    node.say(ToGateway::Gone { worker, failure }).await;
    let answer = read_until(&mut caller, "}}").await;
    assert!(answer.contains("exceeded_memory"), "{answer}");
}

#[tokio::test]
async fn a_worker_that_closes_its_channel_and_goes_on_is_reported_to_be_ended() {
    let mut node = Node::with_route().await;
    drop(node.worker("f", 1, 8).await);
    let unusable = FromGateway::Unusable {
        worker: WorkerId(1),
        fault: WorkerFault::ChannelClosed,
    };
    node.hear(|message| (*message == unusable).then_some(()))
        .await;
}

#[tokio::test]
async fn the_reason_of_a_workers_end_reaches_its_callers() {
    let cases = [
        (Failure::ExceededCpu, "503"),
        (Failure::ExceededMemory, "503"),
        (Failure::ExceededWall, "504"),
        (Failure::Exception, "500"),
    ];
    let mut node = Node::with_route().await;
    for (id, (failure, code)) in (1..).zip(cases) {
        let mut acceptor = node.worker("f", id, 8).await;
        let mut stream = node.connect().await;
        stream.write_all(GET).await.unwrap();
        let incoming = timeout(SOON, acceptor.accept()).await.unwrap().unwrap();
        node.say(ToGateway::Gone {
            worker: WorkerId(id),
            failure,
        })
        .await;
        let answer = read_until(&mut stream, "}}").await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code}")) && answer.contains(failure.code()),
            "{answer}"
        );
        assert_eq!(node.record().await.failure, Some(failure));
        drop(incoming);
    }
    // The end of one request, reported by the worker itself, does not end any other.
    let mut acceptor = node.worker("f", 9, 8).await;
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    timeout(SOON, acceptor.accept())
        .await
        .unwrap()
        .unwrap()
        .reply
        .reset(Failure::ExceededCpu.to_reset());
    assert!(read_until(&mut stream, "}}").await.contains("exceeded_cpu"));
    tokio::spawn(work(acceptor, describe));
    assert!(node.get("a.test", "/").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_response_that_breaks_off_is_cut_and_cannot_be_taken_for_whole() {
    let node = Node::with_worker(|incoming| async move {
        let length = incoming.head.target.ends_with("/length");
        let mut body = incoming.reply.send(
            &ok(if length {
                &[("content-length", "10")]
            } else {
                &[]
            }),
            false,
        );
        body.send(Bytes::from_static(b"half")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        body.reset(Failure::ExceededCpu.to_reset());
    })
    .await;
    for path in ["/chunked", "/length"] {
        let answer = node.get("a.test", path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            !answer.ends_with("0\r\n\r\n") && answer.contains("half"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_worker_cannot_split_or_confuse_responses() {
    let node = Node::with_worker(|incoming| async move {
        let (_, path) = incoming.head.target.rsplit_once('/').unwrap();
        let head = match path {
            "0" | "99" | "100" | "101" | "600" | "65535" => status(path.parse().unwrap(), &[]),
            "lengths" => ok(&[("content-length", "1"), ("content-length", "2")]),
            "none" | "longer" => ok(&[("content-length", "5")]),
            _ => ok(&[("content-length", "x")]),
        };
        let mut body = incoming.reply.send(&head, path == "none");
        if path != "none" {
            let _ = body
                .send(Bytes::from_static(b"HTTP/1.1 200 OK\r\n\r\n"))
                .await;
        }
        body.finish();
    })
    .await;
    for path in [
        "0", "99", "100", "101", "600", "65535", "lengths", "none", "longer", "x",
    ] {
        let answer = node.get("a.test", &format!("/{path}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 500") && answer.contains("exception"),
            "{path}: {answer}"
        );
    }
    let node = Node::with_worker(|incoming| async move {
        let fields = [
            (":secret", "x\r\ny"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "gzip"),
            ("x-casemate-request", "forged"),
        ];
        incoming.reply.send(&ok(&fields), true).finish();
    })
    .await;
    let answer = node.get("a.test", "/").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        !["secret", "x-hop", "gzip", "forged"]
            .iter()
            .any(|word| answer.contains(word)),
        "{answer}"
    );
}

#[tokio::test]
async fn a_cookie_for_a_parent_domain_is_dropped_and_the_log_told_once_in_a_while() {
    let mut node = Node::with_worker(|incoming| async move {
        let fields = [
            ("set-cookie", "mine=1; Domain=A.test; Secure"),
            ("set-cookie", "session=stolen; domain=.TEST"),
            ("set-cookie", "session=stolen; Domain=b.test"),
            ("set-cookie", "plain=1"),
        ];
        incoming.reply.send(&ok(&fields), true).finish();
    })
    .await;
    for dropped in [2, 0] {
        let answer = node.get("a.test", "/").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(answer.matches("set-cookie: ").count(), 2, "{answer}");
        assert!(!answer.contains("stolen"), "{answer}");
        assert_eq!(node.record().await.wide_cookies, dropped);
    }
    // From now on a cookie for all hosts below `a.test` would reach another tenant.
    let mut neighbour = harness::route("g", &["shop.a.test"], harness::perimeter());
    if let ToGateway::Route(route) = &mut neighbour {
        route.key.tenant = [2; 32];
    }
    node.say(neighbour).await;
    node.settle().await;
    let answer = node.get("a.test", "/").await;
    assert_eq!(answer.matches("set-cookie: ").count(), 1, "{answer}");
    assert!(!answer.contains("mine=1"), "{answer}");
}

#[tokio::test]
async fn a_worker_that_speaks_garbage_is_a_lost_worker() {
    let node = Node::with_route().await;
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let channel = ToGateway::Channel {
        key: harness::key("f"),
        release: harness::RELEASE,
        worker: WorkerId(1),
        concurrency: 9,
        wall_time_ms: harness::WALL_TIME_MS,
    };
    node.control
        .send(&channel, &[std::os::fd::AsFd::as_fd(&theirs)])
        .await
        .unwrap();
    let mut stream = node.connect().await;
    stream.write_all(GET).await.unwrap();
    let mut worker = std::os::unix::net::UnixStream::from(ours);
    worker.set_nonblocking(false).unwrap();
    let garbage = tokio::task::spawn_blocking(move || {
        use std::io::{Read as _, Write as _};
        worker.read_exact(&mut [0; 4]).unwrap();
        worker.write_all(&[0xff; 4096]).unwrap();
        worker
    });
    let _held = timeout(SOON, garbage).await.unwrap().unwrap();
    assert!(
        read_until(&mut stream, "}}")
            .await
            .starts_with("HTTP/1.1 502")
    );
}

/// A busy worker does not read, so requests fill its channel. Neither the worker nor any caller is
/// at fault.
#[tokio::test]
async fn requests_beyond_what_a_busy_workers_channel_carries_wait_for_it() {
    // Some 2.4 MB of heads: twice what the channel buffers.
    const CALLERS: usize = 80;
    let mut start = harness::start();
    start.max_connections = 200;
    let node = Node::with_start(start).await;
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let channel = ToGateway::Channel {
        key: harness::key("f"),
        release: harness::RELEASE,
        worker: WorkerId(1),
        concurrency: 200,
        wall_time_ms: harness::WALL_TIME_MS,
    };
    node.control
        .send(&channel, &[std::os::fd::AsFd::as_fd(&theirs)])
        .await
        .unwrap();
    let padding = "x".repeat(30_000);
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {padding}\r\n\r\n");
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let mut caller = node.connect().await;
        caller.write_all(request.as_bytes()).await.unwrap();
        callers.push(caller);
    }
    // Time for the gateway to take the requests in. Were it too slow, the test would prove less,
    // but not fail.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let acceptor = casemate_channel::acceptor(ours).unwrap();
    tokio::spawn(work(acceptor, |incoming| async move {
        incoming.reply.send(&ok(&[]), true).finish();
    }));
    for mut caller in callers {
        let answer = read_until(&mut caller, "\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
