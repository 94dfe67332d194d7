//! State of earlier vaults, opened by this one: what they accepted is held, judged against, and
//! used for calls.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../../../tests/fixtures/archive.rs"]
mod archive;
mod fleet;
mod upstream;
mod worker;

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use casemate_trust::freshness::{Freshness, FreshnessDemand};
use casemate_trust::id::Digest;
use casemate_trust::image::Image;
use casemate_trust::lease::Claims;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, Statement as _};
use casemate_wire::control::vault::{FromVault, ObjectKind, Verdict};
use fleet::{FAR, Fleet, KEY, key};
use serde_json::{Value, json};
use upstream::{Certificate, Upstream};
use worker::{call, channel};

/// Every format that a vault's folder has had.
const FIXTURES: [&str; 2] = ["vault-1", "vault-2"];
/// The upstream's address, which the fixtures' releases and secrets name. All of 127.0.0.0/8 is
/// this machine, and no other test uses this address.
const UPSTREAM: ([u8; 4], u16) = ([127, 77, 13, 1], 18_443);
/// Seed of the second tenant's key.
const BANK: u8 = 11;
/// Files that every vault makes anew, and that are large.
const LEFT_OUT: [&str; 2] = ["vault/reserve", "vault/lock"];

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

async fn accepted(fleet: &mut Fleet, kind: ObjectKind, bytes: Vec<u8>) {
    let verdict = fleet.vault().submit(kind, bytes).await;
    assert_eq!(verdict, Verdict::Accepted, "{kind:?}");
}

/// The code of the manifest's refusal.
async fn refused(fleet: &mut Fleet, manifest: &Manifest) -> String {
    match fleet.submit_manifest(manifest).await {
        Verdict::Refused { code, .. } => code,
        verdict => panic!("{verdict:?}"),
    }
}

/// Writes the state of a vault with something of each kind: two tenants, one of which demands
/// freshness, an image, a list of revoked nodes.
async fn write(name: &str) {
    let certificate = Certificate::new();
    let upstream = Upstream::start_at(SocketAddr::from(UPSTREAM), &certificate, KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    certificate.keep(fleet.folder());
    fleet.join().await;
    fleet.deploy(1).await;
    let second = fleet.manifest(2);
    assert_eq!(fleet.submit_manifest(&second).await, Verdict::Accepted);
    let image = Image {
        fleet: fleet.fleet,
        version: "1.2.3".parse().unwrap(),
        digest: Digest([0x11; 32]),
        bytes: 1000,
        pools: vec!["main".parse().unwrap()],
        issued: 1,
        expires: FAR,
    };
    let image = image.sign(&[&key(1)]).to_bytes();
    accepted(&mut fleet, ObjectKind::Image, image).await;
    let revocations = Revocations {
        fleet: fleet.fleet,
        version: 4,
        nodes: vec![key(66).public()],
        exposed: [].into(),
        issued: 1,
    };
    let revocations = revocations.sign(&[&key(1)]).to_bytes();
    accepted(&mut fleet, ObjectKind::Revocations, revocations).await;
    let shop = fleet.tenant.clone();
    fleet.admit_another_tenant("bank", BANK).await;
    fleet.deploy(1).await;
    let fresh = Manifest {
        freshness: Some(FreshnessDemand {
            max_age_secs: 60,
            key: None,
        }),
        issued: now() - 1,
        ..fleet.manifest(2)
    };
    assert_eq!(fleet.submit_manifest(&fresh).await, Verdict::Accepted);
    let freshness = Freshness {
        fleet: fresh.fleet,
        tenant: fresh.tenant,
        version: fresh.version,
        manifest: fresh.sign(&[]).payload_digest(),
        issued: fresh.issued + 1,
    };
    let freshness = freshness.sign(&[&key(BANK)]).to_bytes();
    accepted(&mut fleet, ObjectKind::Freshness, freshness).await;
    fleet.become_tenant(shop, 10);
    fleet.kill();
    archive::pack(name, fleet.folder(), &LEFT_OUT);
}

/// Converts digests to text.
fn readable(value: Value) -> Value {
    match value {
        Value::Array(bytes) if bytes.len() == 32 && bytes.iter().all(Value::is_number) => {
            let bytes = bytes.iter().map(|byte| byte.as_u64().unwrap());
            Value::String(bytes.map(|byte| format!("{byte:02x}")).collect())
        }
        Value::Array(values) => values.into_iter().map(readable).collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(name, value)| (name, readable(value)))
            .collect(),
        other => other,
    }
}

/// What the vault holds, and what it asks its supervisor to run.
async fn found(fleet: &mut Fleet) -> Value {
    let plans = [fleet.vault().plan().await, fleet.vault().plan().await];
    let mut plans = plans.map(|plan| serde_json::to_value(plan).unwrap());
    plans.sort_by_key(|plan| plan["name"].as_str().unwrap().to_owned());
    let have = serde_json::to_value(fleet.vault().have().await).unwrap();
    readable(json!({ "have": have, "plans": plans }))
}

#[tokio::test(flavor = "multi_thread")]
async fn vaults_of_earlier_programs_hold_judge_and_inject() {
    if let Some(name) = FIXTURES.iter().find(|name| archive::is_wanted(name)) {
        // Its upstream keeps listening in this process: the next run opens what was written.
        return write(name).await;
    }
    for name in FIXTURES {
        let folder = archive::unpack(name);
        let certificate = Certificate::kept(folder.path());
        let upstream = Upstream::start_at(SocketAddr::from(UPSTREAM), &certificate, KEY).await;
        let mut fleet = Fleet::of_earlier(folder, &upstream).await;
        archive::same_as_written(name, &found(&mut fleet).await);

        // Its memory judges: no lower version, no other content at the same version; the next
        // version is accepted.
        let lower = fleet.manifest(1);
        assert_eq!(refused(&mut fleet, &lower).await, "manifest_version_lower");
        let mut other = fleet.manifest(2);
        other.issued = 7;
        let code = refused(&mut fleet, &other).await;
        assert_eq!(code, "manifest_same_version_other_digest");
        // Its secret opens with the granted pool key, under a lease of today. On the machine that
        // wrote the fixture, the old lease still holds until the next boot.
        if fleet.describe().await["lease_left_secs"].is_null() {
            let nonce = fleet.vault().wait(|message| match message {
                FromVault::LeaseWanted { nonce } => Some(nonce),
                _ => None,
            });
            let (nonce, claims) = (nonce.await, Claims::default());
            assert_eq!(fleet.answer_lease_with(&nonce, 20, claims).await, None);
        }
        let release = Digest::of(&fleet.release().to_bytes()).0;
        let worker = channel(&mut fleet, release).await;
        let url = upstream.url("/v1/charges");
        let answer = call(&worker, Some("pay"), "POST", &url, "{}", &[]).await;
        assert_eq!((answer.status, answer.error()), (200, "none"));
        let sent = upstream.seen()[0].header("authorization");
        assert_eq!(sent, [format!("Bearer {KEY}")]);

        // It continues over a restart.
        let third = fleet.manifest(3);
        assert_eq!(fleet.submit_manifest(&third).await, Verdict::Accepted);
        fleet.kill_and_restart().await;
        let second = fleet.manifest(2);
        assert_eq!(refused(&mut fleet, &second).await, "manifest_version_lower");
        upstream.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_an_earlier_program_outlives_its_records() {
    for name in FIXTURES {
        let folder = archive::unpack(name);
        let upstream = Upstream::start(KEY).await;
        std::fs::remove_dir_all(folder.path().join("vault/records")).unwrap();
        let mut fleet = Fleet::of_earlier(folder, &upstream).await;
        let refill = fleet.vault().wait(|message| match message {
            FromVault::Refill { .. } => Some(()),
            _ => None,
        });
        refill.await;
        let (root, tenant) = (fleet.root(), fleet.tenant.sign(&[&key(1)]).to_bytes());
        accepted(&mut fleet, ObjectKind::Root, root).await;
        accepted(&mut fleet, ObjectKind::Tenant, tenant).await;
        let lower = fleet.manifest(1);
        assert_eq!(refused(&mut fleet, &lower).await, "manifest_version_lower");
        let image = Image {
            fleet: fleet.fleet,
            version: "1.2.2".parse().unwrap(),
            digest: Digest([0x22; 32]),
            bytes: 1000,
            pools: vec!["main".parse().unwrap()],
            issued: 1,
            expires: FAR,
        };
        let image = image.sign(&[&key(1)]).to_bytes();
        let verdict = fleet.vault().submit(ObjectKind::Image, image).await;
        assert!(
            matches!(&verdict, Verdict::Refused { code, .. } if code == "image_version_lower"),
            "{verdict:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_a_newer_vault_is_refused_with_both_versions() {
    let folder = archive::unpack(FIXTURES[FIXTURES.len() - 1]);
    let state = folder.path().join("vault");
    let mark = r#"{"format":99,"software":"9.0.0"}"#;
    std::fs::write(state.join("format.json"), mark).unwrap();
    let memory = std::fs::read(state.join("memory")).unwrap();
    let (message, code) = Fleet::refused(folder.path()).await;
    assert_eq!(code, 65, "{message}");
    for part in [
        "format 99",
        "casemate 9.0.0",
        env!("CARGO_PKG_VERSION"),
        "install",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert_eq!(std::fs::read(state.join("memory")).unwrap(), memory);
    assert!(!state.join("reserve").exists());
}
