//! Fair shares between a greedy and a modest side: connections of source networks, and requests of
//! tenants.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "prints what was skipped and measured")]

mod harness;

use std::time::{Duration, Instant};

use casemate_wire::control::gateway::{Route, Shares, Start, ToGateway};
use casemate_wire::control::{FunctionKey, WorkerId};
use harness::{
    Node, PREFACE, RELEASE, SETTINGS, SOON, WALL_TIME_MS, describe, headers, key, perimeter,
    read_all, route, start, work,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const GET: &str = "GET /next HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n";

/// Connects from this loopback address; the machine has all addresses of 127.0.0.0/8.
async fn connect_from(node: &Node, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(format!("{address}:0").parse().unwrap())
        .unwrap();
    let to = node.addresses[0].parse().unwrap();
    timeout(SOON, socket.connect(to)).await.unwrap().unwrap()
}

async fn get_from(node: &Node, address: &str) -> (String, Duration) {
    let started = Instant::now();
    let mut stream = connect_from(node, address).await;
    stream.write_all(GET.as_bytes()).await.unwrap();
    (read_all(&mut stream).await, started.elapsed())
}

/// Whether the process may open `wanted` descriptors; prints why the test is skipped if not.
fn has_descriptors(wanted: u64) -> bool {
    let most = casemate_sandbox::raise_descriptors().unwrap();
    if most < wanted {
        eprintln!("skipped: the test needs {wanted} descriptors, the machine allows {most}");
    }
    most >= wanted
}

/// Time limits so long that no connection is closed within the test.
fn patient(max_connections: u32, connections_per_network: u32) -> Start {
    Start {
        max_connections,
        header_timeout_ms: 600_000,
        idle_timeout_ms: 600_000,
        shares: Shares {
            connections_per_network,
            ..start().shares
        },
        ..start()
    }
}

#[tokio::test]
async fn thousands_of_slow_connections_from_one_network_delay_no_caller_of_another() {
    if !has_descriptors(3500) {
        return;
    }
    // First with a share for each network, then with one network allowed all slots.
    for per_network in [250, 1000] {
        let node = Node::with_start(patient(1000, per_network)).await;
        tokio::spawn(work(node.worker("f", 1, 64).await, describe));
        let mut slow = Vec::new();
        for n in 0..2000 {
            let mut stream = connect_from(&node, &format!("127.0.1.{}", n % 250 + 1)).await;
            // Some connections are silent, some have begun a head.
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a").await;
            }
            slow.push(stream);
        }
        let mut slowest = Duration::ZERO;
        for n in 0..100 {
            let (answer, took) = get_from(&node, &format!("127.0.{}.1", n % 50 + 2)).await;
            assert!(answer.contains("/next"), "{n}: {answer}");
            slowest = slowest.max(took);
        }
        eprintln!("share {per_network}: slowest of 100 callers {slowest:?}");
        // A caller of the crowded network itself is served too.
        assert!(get_from(&node, "127.0.1.251").await.0.contains("/next"));
    }
}

#[tokio::test]
async fn connections_after_their_first_request_hold_no_more_than_their_networks_share() {
    let node = Node::with_start(patient(64, 16)).await;
    tokio::spawn(work(node.worker("f", 1, 64).await, describe));
    let mut held = Vec::new();
    // More than all slots: those beyond the share of the network wait, and delay no other network.
    for _ in 0..80 {
        let mut stream = connect_from(&node, "127.0.1.1").await;
        stream
            .write_all(b"POST /held HTTP/1.1\r\nHost: a.test\r\nContent-Length: 9\r\n\r\n")
            .await
            .unwrap();
        held.push(stream);
    }
    for n in 2..40 {
        assert!(
            get_from(&node, &format!("127.0.{n}.1"))
                .await
                .0
                .contains("/next")
        );
    }
    drop(held);
    assert!(get_from(&node, "127.0.1.1").await.0.contains("/next"));
}

fn of_tenant(tenant: u8, function: &str) -> FunctionKey {
    FunctionKey {
        tenant: [tenant; 32],
        function: function.into(),
    }
}

async fn route_and_worker(node: &Node, tenant: u8, function: &str, host: &str, worker: u64) {
    node.say(ToGateway::Route(Box::new(Route {
        key: of_tenant(tenant, function),
        release: RELEASE,
        hosts: vec![host.into()],
        perimeter: perimeter(),
    })))
    .await;
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let channel = ToGateway::Channel {
        key: of_tenant(tenant, function),
        release: RELEASE,
        worker: WorkerId(worker),
        concurrency: 64,
        wall_time_ms: WALL_TIME_MS,
    };
    let theirs = [std::os::fd::AsFd::as_fd(&theirs)];
    node.control.send(&channel, &theirs).await.unwrap();
    let acceptor = casemate_channel::acceptor(ours).unwrap();
    tokio::spawn(work(acceptor, describe));
}

#[tokio::test]
async fn a_greedy_tenant_has_its_share_of_requests_and_a_modest_one_is_served() {
    let start = Start {
        max_connections: 1000,
        shares: Shares {
            requests: 400,
            requests_per_tenant: 100,
            ..start().shares
        },
        ..start()
    };
    let mut node = Node::start(start).await;
    // The greedy tenant has two functions without workers: requests for them stay in flight.
    node.say(route("f", &["a.test"], perimeter())).await;
    node.say(route("g", &["g.test"], perimeter())).await;
    route_and_worker(&node, 9, "m", "m.test", 77).await;
    node.settle().await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        let mut stream = node.connect().await;
        let requests: Vec<u8> = (0..100)
            .flat_map(|n| headers(n * 2 + 1, "/", true))
            .collect();
        let bytes = [PREFACE, SETTINGS, &requests].concat();
        stream.write_all(&bytes).await.unwrap();
        greedy.push(stream);
    }
    for _ in 0..200 {
        let record = node.record().await;
        assert_eq!((record.key, record.status), (key("f"), 503));
    }
    let answer = node.get("g.test", "/").await;
    assert!(
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("too_many_requests")
            && answer.contains("retry-after: 1\r\n"),
        "one tenant's functions share its slots: {answer}"
    );
    for _ in 0..50 {
        assert!(node.get("m.test", "/next").await.contains("/next"));
    }
    // The slots become free again.
    drop(greedy);
    tokio::spawn(work(node.worker("f", 1, 64).await, describe));
    node.settle().await;
    assert!(node.get("a.test", "/next").await.contains("/next"));
}
