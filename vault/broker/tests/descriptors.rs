//! The vault uses the descriptors that it may have, and makes no more calls than they allow.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use std::time::Duration;

use casemate_channel::opener;
use casemate_wire::control::vault::{FromVault, ToVault};
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{Fields, RequestHead};
use fleet::{Fleet, KEY};
use upstream::Upstream;

async fn max_calls(fleet: &mut Fleet, limits: &str) -> u64 {
    fleet.limit(limits);
    fleet.kill_and_restart().await;
    fleet.vault().send(ToVault::Describe, None).await;
    let description = fleet.vault().wait(|message| match message {
        FromVault::Description { json } => Some(json),
        _ => None,
    });
    let description: serde_json::Value = serde_json::from_str(&description.await).unwrap();
    description["upstreams"]["max_calls"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_is_raised_and_the_hard_one_kept_to() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    assert_eq!(max_calls(&mut fleet, "ulimit -n 256;").await, 32);
    assert_eq!(
        max_calls(&mut fleet, "ulimit -n 800; ulimit -Sn 64;").await,
        100
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_without_calls_take_no_descriptors_from_those_with_calls() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let room = max_calls(&mut fleet, "ulimit -n 256;").await;
    let mut workers = Vec::new();
    for worker in 0..4 * room {
        let (ours, theirs) = casemate_channel::pair().unwrap();
        let channel = ToVault::Channel {
            worker: WorkerId(worker),
            key: FunctionKey {
                tenant: fleet.tenant.id.0,
                function: "web".into(),
            },
            release,
        };
        fleet.vault().send(channel, Some(theirs)).await;
        workers.push(opener(ours).unwrap());
    }
    // In reverse order: the later workers would find no descriptors if the earlier ones had used
    // them up.
    for worker in workers.iter().rev() {
        let head = RequestHead {
            method: "GET".into(),
            target: "https://elsewhere.test/".into(),
            fields: Fields::default(),
        };
        let exchange = worker.open(head, true).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(30), exchange.response.head());
        let (head, _) = answer
            .await
            .expect("a call must find a descriptor")
            .unwrap();
        assert_eq!(head.fields.text(":error"), Some("egress_denied"));
    }
}
