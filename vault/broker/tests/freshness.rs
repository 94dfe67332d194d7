//! Freshness against a taken-over control plane: it renews leases, withholds the manifest that
//! withdraws a secret, and replays any statement that was ever signed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_channel::Opener;
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::{Freshness, FreshnessDemand};
use casemate_trust::key::SigningKey;
use casemate_trust::lease::Claims;
use casemate_trust::statement::{Manifest, Statement as _};
use casemate_wire::control::vault::{ObjectKind, Verdict};
use fleet::{Fleet, KEY, key};
use upstream::Upstream;
use upstream::raw::{Raw, Then};
use worker::{call, channel, open, with_plain_egress};

const SOON: Duration = Duration::from_secs(60);
/// The shortest age that can be demanded, seconds.
const MAX_AGE_SECS: u64 = 60;
/// Seeds of the tenant's key, and of the key that its manifest names.
const TENANT: u8 = 10;
const CRON: u8 = 30;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// A manifest that was signed so many seconds ago.
fn demanding(fleet: &Fleet, version: u64, age_secs: u64) -> Manifest {
    Manifest {
        freshness: Some(FreshnessDemand {
            max_age_secs: MAX_AGE_SECS,
            key: Some(key(CRON).public()),
        }),
        issued: now() - age_secs,
        ..fleet.manifest(version)
    }
}

/// Deploys a manifest that is fresh for so many more seconds, and returns it.
async fn deploy(fleet: &mut Fleet, left_secs: u64) -> (Manifest, [u8; 32]) {
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let manifest = demanding(fleet, 2, MAX_AGE_SECS - left_secs);
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    (manifest, release)
}

fn statement(manifest: &Manifest, issued: u64) -> Freshness {
    Freshness {
        fleet: manifest.fleet,
        tenant: manifest.tenant,
        version: manifest.version,
        manifest: manifest.sign(&[]).payload_digest(),
        issued,
    }
}

async fn show(fleet: &mut Fleet, statement: &Freshness, signer: &SigningKey) -> String {
    show_envelope(fleet, &statement.sign(&[signer])).await
}

async fn show_envelope(fleet: &mut Fleet, statement: &Envelope) -> String {
    let verdict = fleet
        .vault()
        .submit(ObjectKind::Freshness, statement.to_bytes())
        .await;
    match verdict {
        Verdict::Refused { code, .. } => code,
        verdict => format!("{verdict:?}"),
    }
}

/// The outcome of a call with the credential: its refusal's code, or `none`.
async fn injected(worker: &Opener, upstream: &Upstream) -> String {
    let url = upstream.url("/v1/charges");
    let answer = call(worker, Some("pay"), "POST", &url, "", &[]).await;
    answer.error().to_owned()
}

async fn wait_until_stale(worker: &Opener, upstream: &Upstream) {
    let end = Instant::now() + SOON;
    while injected(worker, upstream).await != "credential_stale" {
        assert!(Instant::now() < end, "credentials must still be used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withheld_withdrawal_ends_injection_and_no_replay_prolongs_it() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let (held, release) = deploy(&mut fleet, 20).await;
    let before = channel(&mut fleet, release).await;
    assert_eq!(injected(&before, &upstream).await, "none");
    // The tenant renewed twice; then it withdrew the secret, which never arrives, and so did not
    // renew manifest 2 again.
    let (first, second) = (
        statement(&held, held.issued + 1),
        statement(&held, held.issued + 2),
    );
    let (first, second) = (first.sign(&[&key(CRON)]), second.sign(&[&key(CRON)]));
    assert_eq!(show_envelope(&mut fleet, &second).await, "Accepted");
    wait_until_stale(&before, &upstream).await;
    let late = now() >= held.issued + 2 + MAX_AGE_SECS;
    assert!(late, "not before the time that the manifest allows");

    // The attacker has old statements, another tenant's keys, the online key, and a key of its own.
    assert_eq!(show_envelope(&mut fleet, &second).await, "Accepted");
    assert_eq!(show_envelope(&mut fleet, &first).await, "freshness_older");
    let fresh = statement(&held, now());
    for seed in [1, 11, 20, 66] {
        let code = show(&mut fleet, &fresh, &key(seed)).await;
        assert_eq!(code, "signature_threshold", "key {seed}");
    }
    let mut relabelled = serde_json::to_value(&second).unwrap();
    relabelled["payload"] = serde_json::to_value(fresh.sign(&[])).unwrap()["payload"].take();
    let relabelled = serde_json::from_value(relabelled).unwrap();
    assert_eq!(
        show_envelope(&mut fleet, &relabelled).await,
        "signature_threshold"
    );
    fleet.kill_and_restart().await;
    let again = channel(&mut fleet, release).await;
    assert_eq!(injected(&again, &upstream).await, "credential_stale");
    // A lease and the old manifest once more.
    let nonce = [7; 32];
    fleet.answer_lease_with(&nonce, 20, Claims::default()).await;
    assert_eq!(fleet.submit_manifest(&held).await, Verdict::Accepted);
    assert_eq!(injected(&again, &upstream).await, "credential_stale");
    let (shop, web) = (fleet.tenant.clone(), release);
    // Another tenant's statement, however fresh, applies to that tenant alone.
    fleet.admit_another_tenant("bank", 11).await;
    fleet.deploy(1).await;
    let banks = demanding(&fleet, 2, 0);
    assert_eq!(fleet.submit_manifest(&banks).await, Verdict::Accepted);
    let of_bank = show(&mut fleet, &statement(&banks, now()), &key(11)).await;
    assert_eq!(of_bank, "Accepted");
    fleet.tenant = shop;
    let shops = channel(&mut fleet, web).await;
    assert_eq!(injected(&shops, &upstream).await, "credential_stale");

    // The honest statement, which survives a kill.
    let renewed = statement(&held, now());
    assert_eq!(show(&mut fleet, &renewed, &key(CRON)).await, "Accepted");
    assert_eq!(injected(&shops, &upstream).await, "none");
    fleet.kill_and_restart().await;
    let after = channel(&mut fleet, web).await;
    assert_eq!(injected(&after, &upstream).await, "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_about_a_newer_manifest_stops_the_old_one_and_ends_its_calls() {
    let raw = Raw::start(|_| (Vec::new(), Then::Hold)).await;
    let mut fleet = Fleet::start(&raw.upstream).await;
    fleet.edit_release = with_plain_egress;
    let (held, release) = deploy(&mut fleet, MAX_AGE_SECS).await;
    let worker = channel(&mut fleet, release).await;
    let url = |path: &str| raw.upstream.url(path);
    let fields = |binding: Option<&str>| {
        let fields = casemate_wire::Fields::default().with(":request", "r1");
        match binding {
            Some(binding) => fields.with(":binding", binding),
            None => fields,
        }
    };
    let with = open(&worker, "POST", &url("/v1/hold"), fields(Some("pay")), true);
    let without = open(&worker, "POST", &url("/plain/hold"), fields(None), true);
    raw.wait_for_open(2).await;
    let mut newer = demanding(&fleet, 3, 0);
    newer.secrets.clear();
    // Signed by the key of the old manifest, or by an attacker.
    for seed in [CRON, 20, 66] {
        let code = show(&mut fleet, &statement(&newer, now()), &key(seed)).await;
        assert_eq!(code, "signature_threshold", "key {seed}");
    }
    fleet.vault().wait_for_calls(2).await;
    let said = statement(&newer, now());
    assert_eq!(show(&mut fleet, &said, &key(TENANT)).await, "Accepted");
    let ended = tokio::time::timeout(SOON, with.response.head());
    let (head, _) = ended.await.unwrap().unwrap();
    assert_eq!(head.fields.text(":error"), Some("credential_stale"));
    // The call without a credential continues, and nothing makes the old manifest fresh again, even
    // after kills.
    raw.wait_for_open(1).await;
    let old = statement(&held, now() + 5);
    for signer in [key(CRON), key(TENANT)] {
        let code = show(&mut fleet, &old, &signer).await;
        assert_eq!(code, "freshness_version_lower");
    }
    fleet.kill_and_restart().await;
    let code = show(&mut fleet, &old, &key(CRON)).await;
    assert_eq!(code, "freshness_version_lower");
    let tenants = fleet.describe().await["tenants"].take();
    let stale = tenants[0]["freshness"]["stale"].as_str().unwrap();
    assert!(stale.contains("manifest 3"), "{stale}");
    drop(without);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_interrupts_nothing_and_needs_no_statement() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let (_, release) = deploy(&mut fleet, MAX_AGE_SECS).await;
    let worker = channel(&mut fleet, release).await;
    for version in 3..20 {
        let next = demanding(&fleet, version, 0);
        assert_eq!(fleet.submit_manifest(&next).await, Verdict::Accepted);
        assert_eq!(injected(&worker, &upstream).await, "none", "{version}");
        if version.is_multiple_of(2) {
            let renewed = statement(&next, now());
            assert_eq!(show(&mut fleet, &renewed, &key(CRON)).await, "Accepted");
        }
    }
    let have = fleet.vault().have().await;
    assert_eq!(have.tenants[0].freshness, None, "manifest 19 needs none");
    // The record of the statement on manifest 18 was removed with it.
    fleet.kill_and_restart().await;
    assert_eq!(fleet.vault().have().await, have);
    let off = Manifest {
        freshness: None,
        ..demanding(&fleet, 20, 0)
    };
    assert_eq!(fleet.submit_manifest(&off).await, Verdict::Accepted);
    let code = show(&mut fleet, &statement(&off, now()), &key(TENANT)).await;
    assert_eq!(code, "freshness_undemanded");
    let worker = channel(&mut fleet, release).await;
    assert_eq!(injected(&worker, &upstream).await, "none");
}
