//! Calls under way: how they are shared, how long they last, and what ends them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate_channel::{Exchange, Opener};
use casemate_trust::release::Release;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::Statement as _;
use casemate_wire::Fields;
use casemate_wire::control::vault::{ObjectKind, Verdict};
use fleet::{Fleet, KEY, key};
use upstream::Upstream;
use upstream::raw::{Raw, Then};
use worker::{call, channel, open, serving, serving_with, with_plain_egress};

const SOON: Duration = Duration::from_secs(30);

/// The upstream's behaviour, by path.
fn script(head: &str) -> (Vec<u8>, Then) {
    match head.split(' ').nth(1).unwrap_or_default() {
        "/v1/fine" => (
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec(),
            Then::Close,
        ),
        path if path.ends_with("/body") => {
            let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun";
            (begun.to_vec(), Then::Hold)
        }
        _ => (Vec::new(), Then::Hold),
    }
}

fn begin(channel: &Opener, binding: Option<&str>, url: &str, end: bool) -> Exchange {
    let mut fields = Fields::default().with(":request", "r1");
    if let Some(binding) = binding {
        fields.push(":binding", binding);
    }
    open(channel, "POST", url, fields, end)
}

/// A worker whose function has this release.
async fn calling(upstream: &Upstream, edit: fn(&mut Release)) -> (Fleet, Opener) {
    let (mut fleet, release) = serving_with(upstream, |fleet| fleet.edit_release = edit).await;
    let worker = channel(&mut fleet, release).await;
    (fleet, worker)
}

/// How a call under way ended for the function: its refusal's code, or that its body broke off.
async fn ended(exchange: Exchange) -> String {
    let ending = async {
        let (head, mut body) = exchange.response.head().await.unwrap();
        if let Some(code) = head.fields.text(":error") {
            return code.to_owned();
        }
        while let Some(piece) = body.next().await {
            if piece.is_err() {
                return "broken".to_owned();
            }
        }
        "whole".to_owned()
    };
    tokio::time::timeout(SOON, ending).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_whose_calls_never_end_takes_no_more_than_its_share() {
    const MODEST_CALLS: usize = 40;
    let raw = Raw::start(script).await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    // Room for 32 calls, so that few suffice for the test.
    fleet.limit("ulimit -n 256;");
    fleet.kill_and_restart().await;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let mut greedy = Vec::new();
    for _ in 0..3 {
        greedy.push(channel(&mut fleet, release).await);
    }
    fleet.admit_another_tenant("modest", 11).await;
    let release = fleet.deploy(1).await;
    let modest = channel(&mut fleet, release).await;
    assert_eq!(fleet.vault().upstreams().await["max_calls"], 32);

    let held: Vec<_> = (0..300)
        .map(|n| {
            begin(
                &greedy[n % 3],
                Some("pay"),
                &raw.upstream.url("/v1/hold"),
                true,
            )
        })
        .collect();
    raw.wait_for_open(16).await;
    let url = raw.upstream.url("/v1/fine");
    let mut times = Vec::new();
    for _ in 0..MODEST_CALLS {
        let started = Instant::now();
        let answer = call(&modest, Some("pay"), "POST", &url, "", &[]).await;
        assert_eq!(
            (answer.status, answer.error()),
            (200, "none"),
            "{:?}",
            answer.fields
        );
        times.push(started.elapsed());
    }
    times.sort();
    println!(
        "300 calls that never end, 3 workers: 16 under way of 32; a neighbour's {MODEST_CALLS} calls: \
         0 failed, p50 {:?}, slowest {:?}",
        times[MODEST_CALLS / 2],
        times[MODEST_CALLS - 1]
    );
    fleet.vault().wait_for_calls(16).await;
    drop(held);
    raw.wait_for_open(0).await;
    fleet.vault().wait_for_calls(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_request_has_ended_is_cut_at_once_at_every_stage() {
    let stalled = [("waits for its connection", "/v1/x", false)];
    let serving_tls = [
        ("waits for the answer's head", "/v1/hold", false),
        ("reads the answer's body", "/v1/body", false),
        ("sends a body that nobody reads", "/v1/hold", true),
        ("is answered while it sends", "/v1/body", true),
    ];
    for (handshakes, cases) in [(false, &stalled[..]), (true, &serving_tls)] {
        let raw = Raw::start_with(handshakes, script).await;
        let (mut fleet, release) = serving(&raw.upstream).await;
        let worker = channel(&mut fleet, release).await;
        for (number, (what, path, sends)) in cases.iter().enumerate() {
            let mut exchange = begin(&worker, Some("pay"), &raw.upstream.url(path), !sends);
            raw.wait_for_open(1).await;
            if *sends {
                fill(&mut exchange).await;
            }
            while handshakes && raw.heads().len() <= number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let started = Instant::now();
            drop(exchange);
            raw.wait_for_open(0).await;
            println!(
                "a call that {what}: its connection closed after {:?}",
                started.elapsed()
            );
            fleet.vault().wait_for_calls(0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_has_ended_leaves_nothing_behind_on_a_shared_connection() {
    let upstream = Upstream::start_with(KEY, &["h2"]).await;
    let (mut fleet, release) = serving(&upstream).await;
    let worker = channel(&mut fleet, release).await;
    for sends in [false, true] {
        let mut exchange = begin(&worker, Some("pay"), &upstream.url("/v1/deaf"), !sends);
        if sends {
            fill(&mut exchange).await;
        }
        fleet.vault().wait_for_calls(1).await;
        drop(exchange);
        fleet.vault().wait_for_calls(0).await;
        let url = upstream.url("/v1/x");
        let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
        assert_eq!(
            answer.status,
            200,
            "the connection must stay open: {}",
            answer.error()
        );
    }
}

/// Sends until nothing more is accepted.
async fn fill(exchange: &mut Exchange) {
    let piece = Bytes::from(vec![b'x'; 256 << 10]);
    while let Ok(sent) = tokio::time::timeout(
        Duration::from_millis(300),
        exchange.body.send(piece.clone()),
    )
    .await
    {
        sent.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_under_way_end_when_their_secret_or_release_is_withdrawn() {
    let raw = Raw::start(script).await;
    let (mut fleet, worker) = calling(&raw.upstream, with_plain_egress).await;
    let url = |path: &str| raw.upstream.url(path);

    let head = begin(&worker, Some("pay"), &url("/v1/hold"), true);
    let body = begin(&worker, Some("pay"), &url("/v1/body"), true);
    let plain_head = begin(&worker, None, &url("/plain/hold"), true);
    let plain_body = begin(&worker, None, &url("/plain/body"), true);
    raw.wait_for_open(4).await;
    let mut manifest = fleet.manifest(2);
    manifest.secrets.clear();
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    assert_eq!(ended(head).await, "credential_withdrawn");
    // The answer may be cut before its head has reached the function.
    assert!(["broken", "credential_withdrawn"].contains(&ended(body).await.as_str()));
    raw.wait_for_open(2).await;

    let mut manifest = fleet.manifest(3);
    manifest.secrets.clear();
    manifest.functions.clear();
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    assert_eq!(ended(plain_head).await, "release_withdrawn");
    assert!(["broken", "release_withdrawn"].contains(&ended(plain_body).await.as_str()));
    raw.wait_for_open(0).await;
    fleet.vault().wait_for_calls(0).await;
    assert_eq!(fleet.vault().upstreams().await["pools"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_lasts_no_longer_than_its_release_allows_at_every_stage() {
    let raw = Raw::start(script).await;
    let shortly = |release: &mut Release| {
        with_plain_egress(release);
        release.limits.call_time_ms = 500;
    };
    let (_fleet, worker) = calling(&raw.upstream, shortly).await;
    for (binding, path) in [(Some("pay"), "/v1"), (None, "/plain")] {
        let url = |end: &str| raw.upstream.url(&format!("{path}/{end}"));
        let head = begin(&worker, binding, &url("hold"), true);
        let body = begin(&worker, binding, &url("body"), true);
        assert_eq!(ended(head).await, "upstream_timeout", "{binding:?}");
        // A slow machine may not get as far as the body.
        assert!(["broken", "upstream_timeout"].contains(&ended(body).await.as_str()));
        raw.wait_for_open(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_under_way_end_when_the_manifest_expires() {
    let raw = Raw::start(script).await;
    let (mut fleet, worker) = calling(&raw.upstream, with_plain_egress).await;
    let with = begin(&worker, Some("pay"), &raw.upstream.url("/v1/hold"), true);
    let without = begin(&worker, None, &raw.upstream.url("/plain/hold"), true);
    raw.wait_for_open(2).await;
    // The same release and secret, valid for a moment longer.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let mut manifest = fleet.manifest(2);
    manifest.expires = now.unwrap().as_secs() + 2;
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    assert_eq!(ended(with).await, "credential_expired");
    raw.wait_for_open(1).await;
    // The call without a credential continues.
    fleet.vault().wait_for_calls(1).await;
    assert_eq!(fleet.vault().upstreams().await["with_credential"], 0);
    drop(without);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_credential_end_when_the_root_revokes_the_node() {
    let raw = Raw::start(script).await;
    let (mut fleet, worker) = calling(&raw.upstream, with_plain_egress).await;
    let head = begin(&worker, Some("pay"), &raw.upstream.url("/v1/hold"), true);
    let body = begin(&worker, Some("pay"), &raw.upstream.url("/v1/body"), true);
    let plain = begin(&worker, None, &raw.upstream.url("/plain/hold"), true);
    raw.wait_for_open(3).await;
    let mut list = Revocations {
        fleet: fleet.fleet,
        version: 1,
        nodes: vec![],
        exposed: [].into(),
        issued: 1,
    };
    let (node, _) = fleet.node_keys();
    list.revoke(node, &fleet.pool.name, Some(1));
    let list = list.sign(&[&key(1)]).to_bytes();
    let verdict = fleet.vault().submit(ObjectKind::Revocations, list).await;
    assert_eq!(verdict, Verdict::Accepted);
    assert_eq!(ended(head).await, "node_revoked");
    // The answer may be cut before its head has reached the function.
    assert!(["broken", "node_revoked"].contains(&ended(body).await.as_str()));
    raw.wait_for_open(1).await;
    assert_eq!(fleet.vault().upstreams().await["with_credential"], 0);
    drop(plain);
}
