//! The vault takes the descriptors that it may have, and makes no more calls than they allow.

#![allow(clippy::unwrap_used, reason = "a test that panics says enough")]

mod fleet;
mod upstream;

use casemate_wire::control::vault::{FromVault, ToVault};
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
