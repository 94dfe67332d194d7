//! Another program fills the disk to its last byte: the vault accepts withdrawals and the root's
//! statements, and nothing that grows, even when it is killed in between.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "prints what was measured or skipped")]

#[path = "../../store/tests/disk/mod.rs"]
mod disk;
mod fleet;
mod upstream;
mod worker;

use std::path::Path;
use std::time::Duration;

use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{KeySet, Statement as _};
use casemate_wire::control::vault::{ObjectKind, Verdict};
use disk::{empty, fill, on_a_disk};
use fleet::{Fleet, KEY, key};
use upstream::Upstream;
use worker::{call, channel, serving};

/// Large enough for the whole reserve.
const DISK_MIB: u32 = 48;

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(work);
}

/// The outcome of a call with the credential.
async fn called(fleet: &mut Fleet, upstream: &Upstream, release: [u8; 32]) -> String {
    let worker = channel(fleet, release).await;
    let url = upstream.url("/v1/charges");
    let answer = call(&worker, Some("pay"), "POST", &url, "{}", &[]).await;
    answer.error().to_owned()
}

fn code(verdict: Verdict) -> String {
    match verdict {
        Verdict::Refused { code, .. } => code,
        verdict => format!("{verdict:?}"),
    }
}

async fn reserve(fleet: &mut Fleet) -> (u64, u64) {
    let reserve = &fleet.describe().await["reserve"];
    let bytes = |name: &str| reserve[name].as_u64().unwrap();
    (bytes("held_bytes"), bytes("wanted_bytes"))
}

/// Submits a manifest that wants another release and the secret, and these objects.
async fn grow(fleet: &mut Fleet, version: u64) -> String {
    fleet.edit_release = |release| release.owner = "x".repeat(100);
    let manifest = fleet.manifest(version);
    let release = fleet.release().to_bytes();
    if let Verdict::Missing { .. } = fleet.submit_manifest(&manifest).await {
        let secret = fleet.secret().to_bytes();
        // An object that is held already is refused.
        fleet.vault().submit(ObjectKind::Secret, secret).await;
        fleet.vault().submit(ObjectKind::Release, release).await;
    }
    let code = code(fleet.submit_manifest(&manifest).await);
    fleet.edit_release = |_| {};
    code
}

async fn a_withdrawn_secret(disk: &Path) {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    assert_eq!(called(&mut fleet, &upstream, release).await, "none");
    let (held, wanted) = reserve(&mut fleet).await;
    assert_eq!(held, wanted);
    fill(disk);
    // A tenant that wants more is refused however often it tries, and the reserve stays whole.
    for version in 100..150 {
        assert_eq!(grow(&mut fleet, version).await, "storage_full");
    }
    assert_eq!(reserve(&mut fleet).await, (wanted, wanted));
    let mut manifest = fleet.manifest(200);
    manifest.secrets.clear();
    let verdict = fleet.submit_manifest(&manifest).await;
    assert_eq!(code(verdict), "Accepted");
    assert_ne!(called(&mut fleet, &upstream, release).await, "none");
    fill(disk);
    fleet.kill_and_restart().await;
    let have = fleet.vault().have().await;
    assert_eq!(have.tenants[0].manifest.unwrap().0, 200);
    assert_ne!(called(&mut fleet, &upstream, release).await, "none");
    // The earlier manifest is not accepted again either.
    let earlier = fleet.manifest(199);
    assert_eq!(
        code(fleet.submit_manifest(&earlier).await),
        "manifest_version_lower"
    );
    // With free space the reserve is whole again, and growth is accepted.
    empty(disk);
    while reserve(&mut fleet).await != (wanted, wanted) {}
    assert_eq!(grow(&mut fleet, 201).await, "Accepted");
}

#[test]
fn a_secret_is_withdrawn_on_a_full_disk_and_stays_so() {
    on_a_disk(
        "a_secret_is_withdrawn_on_a_full_disk_and_stays_so",
        DISK_MIB,
        |disk| {
            block_on(a_withdrawn_secret(disk));
        },
    );
}

/// A tenant that changes its manifest again and again without growth, and another one that
/// withdraws once.
async fn a_greedy_and_a_modest_tenant(disk: &Path) {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, _) = serving(&upstream).await;
    let renewals = (100..660).map(|version| fleet.manifest(version).sign(&[&key(10)]).to_bytes());
    let renewals: Vec<_> = renewals.collect();
    fleet.admit_another_tenant("bank", 11).await;
    let release = fleet.deploy(1).await;
    fill(disk);
    let mut accepted = 0;
    for renewal in renewals {
        let verdict = fleet.vault().submit(ObjectKind::Manifest, renewal).await;
        fill(disk);
        match code(verdict).as_str() {
            "Accepted" => accepted += 1,
            code => assert_eq!(code, "storage_full"),
        }
    }
    let (held, wanted) = reserve(&mut fleet).await;
    println!("{accepted} of 560 renewals accepted; {held} of {wanted} bytes are left");
    assert!((100..540).contains(&accepted), "{accepted}");
    let mut manifest = fleet.manifest(2);
    manifest.secrets.clear();
    assert_eq!(code(fleet.submit_manifest(&manifest).await), "Accepted");
    assert_ne!(called(&mut fleet, &upstream, release).await, "none");
}

#[test]
fn a_tenant_that_changes_without_end_does_not_spend_the_reserve() {
    let name = "a_tenant_that_changes_without_end_does_not_spend_the_reserve";
    on_a_disk(name, DISK_MIB, |disk| {
        block_on(a_greedy_and_a_modest_tenant(disk));
    });
}

async fn a_revoked_node(disk: &Path) {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    fill(disk);
    // The tenant's own statements may not grow either; the root's may.
    let mut tenant = fleet.tenant.clone();
    tenant.version = 2;
    tenant.current = KeySet {
        keys: (10..20).map(|seed| key(seed).public()).collect(),
        threshold: 1,
    };
    let by_itself = tenant.sign(&[&key(10)]).to_bytes();
    let verdict = fleet.vault().submit(ObjectKind::Tenant, by_itself).await;
    assert_eq!(code(verdict), "storage_full");
    let by_root = tenant.sign(&[&key(1)]).to_bytes();
    let verdict = fleet.vault().submit(ObjectKind::Tenant, by_root).await;
    assert_eq!(code(verdict), "Accepted");
    // The lease still holds.
    assert_eq!(called(&mut fleet, &upstream, release).await, "none");
    let mut list = Revocations {
        fleet: fleet.fleet,
        version: 1,
        nodes: vec![],
        exposed: [].into(),
        issued: 1,
    };
    list.revoke(fleet.node_keys().0, &fleet.pool.name, Some(1));
    let list = list.sign(&[&key(1)]).to_bytes();
    // A carrier cannot pad a statement to use up the reserve.
    let padded = [&list[..], &[b' '; 100_000]].concat();
    let verdict = fleet.vault().submit(ObjectKind::Revocations, padded).await;
    assert_eq!(code(verdict), "storage_full");
    let verdict = fleet.vault().submit(ObjectKind::Revocations, list).await;
    assert_eq!(code(verdict), "Accepted");
    fill(disk);
    assert_eq!(called(&mut fleet, &upstream, release).await, "node_revoked");
    fleet.kill_and_restart().await;
    assert_eq!(called(&mut fleet, &upstream, release).await, "node_revoked");
}

#[test]
fn a_node_is_revoked_on_a_full_disk_and_stays_so() {
    on_a_disk(
        "a_node_is_revoked_on_a_full_disk_and_stays_so",
        DISK_MIB,
        |disk| {
            block_on(a_revoked_node(disk));
        },
    );
}

/// Each acknowledged change survives a kill at any moment, with the disk full all the time.
async fn kills(disk: &Path) {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, _) = serving(&upstream).await;
    fill(disk);
    let (mut acknowledged, mut cut_short) = (1, 0);
    for version in 10..60_u64 {
        let mut manifest = fleet.manifest(version);
        manifest.secrets.clear();
        // The moment varies from before the judgement to after the answer.
        let moment = Duration::from_micros(version * version * 5);
        let verdict = tokio::time::timeout(moment, fleet.submit_manifest(&manifest)).await;
        match verdict {
            Ok(Verdict::Accepted) => acknowledged = version,
            Ok(verdict) => panic!("{verdict:?}"),
            Err(_) => cut_short += 1,
        }
        fleet.kill_and_restart().await;
        let (held, _) = fleet.vault().have().await.tenants[0].manifest.unwrap();
        assert!(held >= acknowledged, "{held} after {acknowledged}");
        fill(disk);
    }
    println!("{cut_short} of 50 were killed before their answer");
    assert!(acknowledged > 1);
}

#[test]
fn what_was_accepted_on_a_full_disk_is_there_after_sigkill() {
    on_a_disk(
        "what_was_accepted_on_a_full_disk_is_there_after_sigkill",
        DISK_MIB,
        |disk| {
            block_on(kills(disk));
        },
    );
}
