//! A tenant with secrets of the greatest length.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use std::time::{Duration, Instant};

use casemate_wire::Fields;
use fleet::KEY;
use upstream::raw::{Raw, Then};
use worker::{call, channel, open, serving_with, with_plain_egress};

/// Calls of the greedy tenant at a time.
const CALLS: usize = 40;
/// Memory that they may add to the vault, KiB.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// As many different bytes as most headers carry, in an order that does not repeat.
fn longest() -> Vec<u8> {
    let bytes = (0..64 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    bytes.map(|byte| byte % 94 + 33).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn searching_for_the_longest_secrets_costs_a_neighbour_neither_memory_nor_time() {
    let raw = Raw::start(|head| match head.contains("/v1/fine") {
        true => (
            b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine".to_vec(),
            Then::Close,
        ),
        false => (Vec::new(), Then::Hold),
    })
    .await;
    let (mut fleet, release) = serving_with(&raw.upstream, |fleet| {
        fleet.edit_release = with_plain_egress;
        fleet.value = longest();
    })
    .await;
    let greedy = channel(&mut fleet, release).await;
    fleet.admit_another_tenant("modest", 11).await;
    fleet.value = KEY.as_bytes().to_vec();
    let release = fleet.deploy(1).await;
    let modest = channel(&mut fleet, release).await;
    let fine = raw.upstream.url("/v1/fine");
    call(&modest, Some("pay"), "POST", &fine, "", &[]).await;
    let before = fleet.vault().kib("VmHWM:");

    // Calls without the credential: their answers are searched all the same.
    let held: Vec<_> = (0..CALLS)
        .map(|_| {
            let fields = Fields::default().with(":request", "r1");
            open(&greedy, "POST", &raw.upstream.url("/v1/hold"), fields, true)
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let started = Instant::now();
        let answer = call(&modest, Some("pay"), "POST", &fine, "", &[]).await;
        assert_eq!((answer.status, answer.error()), (200, "none"));
        slowest = slowest.max(started.elapsed());
    }
    let all_open = async {
        while raw.open() < CALLS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let all_open = tokio::time::timeout(Duration::from_secs(300), all_open).await;
    assert!(all_open.is_ok(), "{} calls are open", raw.open());
    let grown = fleet.vault().kib("VmHWM:") - before;
    println!(
        "{CALLS} calls beside a secret of 64 KiB added {grown} KiB; the slowest of a neighbour's \
         20 calls took {slowest:?}"
    );
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB");
    drop(held);
}
