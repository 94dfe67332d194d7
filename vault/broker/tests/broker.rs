//! The real vault as a child: this test plays supervisor, control plane, worker and upstream.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use casemate_trust::key::SealingKey;
use casemate_trust::secret::Reflection;
use casemate_trust::statement::{EgressCeiling, Pool, Root, Statement as _, Tenant};
use casemate_wire::control::vault::{FromVault, ObjectKind, ToVault, Verdict};
use fleet::{FAR, Fleet, KEY, key};
use upstream::Upstream;
use worker::{call, channel, serving};

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_set_at_call_time_and_shown_to_nobody() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    let worker = channel(&mut fleet, release).await;
    let url = upstream.url("/v1/charges?a=b");

    let answer = call(
        &worker,
        Some("pay"),
        "POST",
        &url,
        "{}",
        &[
            ("authorization", "mine"),
            ("x-kept", "1"),
            ("content-length", "2"),
        ],
    )
    .await;
    assert_eq!((answer.status, answer.error()), (200, "none"));
    let seen = upstream.seen();
    assert_eq!(
        seen[0].header("authorization"),
        [format!("Bearer {KEY}")],
        "only the vault sets the field"
    );
    assert_eq!(seen[0].header("x-kept"), ["1"]);
    assert_eq!(
        (seen[0].target.as_str(), seen[0].body.as_str()),
        ("/v1/charges?a=b", "{}")
    );

    // Plain fetch to the same host gets nothing: the slot is not automatic, and no egress rule names it.
    assert_eq!(
        call(&worker, None, "POST", &url, "", &[]).await.error(),
        "egress_denied"
    );
    for (binding, method, path) in [
        ("pay", "GET", "/v1/x"),
        ("pay", "POST", "/v2"),
        ("pay", "POST", "/v1/../x"),
        ("other", "POST", "/v1/x"),
    ] {
        assert_eq!(
            call(&worker, Some(binding), method, &upstream.url(path), "", &[])
                .await
                .error(),
            "egress_denied",
            "{method} {path}"
        );
    }
    assert_eq!(
        call(
            &worker,
            Some("pay"),
            "POST",
            "https://elsewhere.test/v1/x",
            "",
            &[]
        )
        .await
        .error(),
        "egress_denied"
    );
    assert_eq!(upstream.seen().len(), 1, "a denied call is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed_and_headers_are_scrubbed() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.reflection = Reflection::Scrub;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let answer = call(
        &worker,
        Some("pay"),
        "POST",
        &upstream.url("/v1/leak"),
        "",
        &[],
    )
    .await;
    assert_eq!(answer.status, 302);
    assert_eq!(upstream.seen().len(), 1, "nobody follows");
    for (name, value) in answer.fields.iter() {
        assert!(!String::from_utf8_lossy(value).contains(KEY), "{name}");
    }
    assert_eq!(answer.fields.text("x-your-key"), Some("[scrubbed]"));
    assert_eq!(answer.fields.text("x-in-base64"), Some("[scrubbed]"));
    assert_eq!(answer.fields.text("location"), Some("[scrubbed]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_echoes_the_credential_is_scrubbed_however_it_is_written() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.reflection = Reflection::Scrub;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let whole = r#"{"before":1,"key":"[scrubbed]","after":2}"#;
    // The upstream's encoding, the function's view of it, and whether the answer breaks off.
    let cases = [
        ("plain", whole, false),
        ("an+error+page", whole, false),
        ("gzip", whole, false),
        ("events", &format!("data: {whole}\n\n").repeat(3), false),
        ("base64", "[scrubbed]", false),
        ("hex", "[scrubbed]", false),
        ("percent", "[scrubbed]", false),
        ("a+lie", "", true),
    ];
    for (how, seen, broken) in cases {
        let url = upstream.url(&format!("/v1/mirror?{how}"));
        let fields = [("accept-encoding", "zstd"), ("te", "trailers")];
        let answer = call(&worker, Some("pay"), "POST", &url, "", &fields).await;
        let body = String::from_utf8(answer.body.clone()).unwrap();
        assert!(body.contains(seen), "{how}: {body}");
        assert_eq!(answer.broken, broken, "{how}");
        assert!(answer.fields.text("content-encoding").is_none(), "{how}");
        let written = body.to_lowercase();
        for form in [KEY.to_owned(), hex(KEY), base64(KEY)[..8].to_owned()] {
            assert!(!written.contains(&form.to_lowercase()), "{how}: {body}");
        }
    }
    for how in ["unasked", "twice"] {
        let url = upstream.url(&format!("/v1/mirror?{how}"));
        let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
        assert_eq!(
            (answer.error(), answer.body.len()),
            ("upstream_encoding", 0),
            "{how}"
        );
    }
    for seen in upstream.seen() {
        assert_eq!(seen.header("accept-encoding"), ["gzip"]);
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_stream_both_ways() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    let worker = channel(&mut fleet, release).await;
    let big: &'static str = Box::leak("x".repeat(3_000_000).into_boxed_str());
    let answer = call(
        &worker,
        Some("pay"),
        "POST",
        &upstream.url("/v1/echo"),
        big,
        &[],
    )
    .await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == big.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn private_addresses_are_refused_unless_the_operator_allows_them() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start_with(&upstream, "").await;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    assert_eq!(
        call(
            &worker,
            Some("pay"),
            "POST",
            &upstream.url("/v1/x"),
            "",
            &[]
        )
        .await
        .error(),
        "address_denied"
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_ceiling_opens_a_private_network_to_one_tenant_and_closes_ports() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start_with(&upstream, "").await;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let url = upstream.url("/v1/x");
    let mut version = 1;
    let mut signed = async |fleet: &mut Fleet, ports: &[u16], private: &[&str]| {
        version += 1;
        let egress = EgressCeiling {
            ports: ports.to_vec(),
            private_networks: private.iter().map(|net| net.parse().unwrap()).collect(),
            ..EgressCeiling::default()
        };
        let tenant = Tenant {
            version,
            egress: Some(egress),
            ..fleet.tenant.clone()
        };
        let bytes = tenant.sign(&[&key(1)]).to_bytes();
        let verdict = fleet.vault().submit(ObjectKind::Tenant, bytes).await;
        assert!(matches!(verdict, Verdict::Accepted), "{verdict:?}");
    };
    signed(&mut fleet, &[], &["127.0.0.0/8"]).await;
    let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
    assert_eq!(answer.status, 200);
    signed(&mut fleet, &[], &["10.0.0.0/8"]).await;
    let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
    assert_eq!(answer.error(), "address_denied");
    signed(&mut fleet, &[443], &["127.0.0.0/8"]).await;
    let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
    assert_eq!(answer.error(), "egress_ceiling");
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_lease_nothing_is_injected_and_an_old_answer_gives_none() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let nonce = fleet.join_without_lease().await;
    let release = fleet.deploy(1).await;
    let worker = channel(&mut fleet, release).await;
    let url = upstream.url("/v1/x");
    assert_eq!(
        call(&worker, Some("pay"), "POST", &url, "", &[])
            .await
            .error(),
        "credential_lease_expired"
    );
    assert_eq!(
        fleet.answer_lease(&[9; 32], 20).await,
        Some("lease_other".to_owned())
    );
    assert_eq!(
        fleet.answer_lease(&nonce, 66).await,
        Some("lease_signature".to_owned())
    );
    assert_eq!(fleet.answer_lease(&nonce, 20).await, None);
    assert_eq!(
        call(&worker, Some("pay"), "POST", &url, "", &[])
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_secret_and_a_withdrawn_release_stop_at_once() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    let worker = channel(&mut fleet, release).await;
    let url = upstream.url("/v1/x");
    assert_eq!(
        call(&worker, Some("pay"), "POST", &url, "", &[])
            .await
            .status,
        200
    );
    let mut manifest = fleet.manifest(2);
    manifest.secrets.clear();
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    assert_eq!(
        call(&worker, Some("pay"), "POST", &url, "", &[])
            .await
            .error(),
        "credential_withdrawn"
    );
    let mut manifest = fleet.manifest(3);
    manifest.functions.clear();
    manifest.secrets.clear();
    assert_eq!(fleet.submit_manifest(&manifest).await, Verdict::Accepted);
    assert_eq!(
        call(&worker, Some("pay"), "POST", &url, "", &[])
            .await
            .error(),
        "release_withdrawn"
    );
    let old = fleet.manifest(1);
    assert!(
        matches!(fleet.submit_manifest(&old).await, Verdict::Refused { code, .. } if code == "manifest_version_lower")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_is_there_after_sigkill_with_its_lease() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    fleet.kill_and_restart().await;
    assert_eq!(fleet.vault().plan().await.functions[0].release, release);
    let worker = channel(&mut fleet, release).await;
    assert_eq!(
        call(
            &worker,
            Some("pay"),
            "POST",
            &upstream.url("/v1/x"),
            "",
            &[]
        )
        .await
        .status,
        200
    );
    let unlisted = fleet
        .vault()
        .submit(ObjectKind::Secret, b"{}".to_vec())
        .await;
    assert!(matches!(unlisted, Verdict::Refused { code, .. } if code == "object_unlisted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_of_an_older_epoch_opens_after_a_change_of_root_and_a_restart() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
    let second_epoch = Pool {
        epoch: 2,
        public_key: SealingKey::of_seed(&[6; 32]).unwrap(),
        ..fleet.pool.clone()
    };
    let second_root = Root {
        version: 2,
        keys: vec![key(2).public()],
        threshold: 1,
        issued: 1,
        expires: FAR,
    };
    let next = [
        (ObjectKind::Pool, second_epoch.sign(&[&key(1)])),
        (ObjectKind::Root, second_root.sign(&[&key(1), &key(2)])),
    ];
    for (kind, envelope) in next {
        let verdict = fleet.vault().submit(kind, envelope.to_bytes()).await;
        assert_eq!(verdict, Verdict::Accepted, "{kind:?}");
    }
    fleet.kill_and_restart().await;
    let have = fleet.vault().have().await;
    assert_eq!(
        (have.root, have.epochs, have.grants),
        (2, vec![1, 2], vec![1])
    );
    let worker = channel(&mut fleet, release).await;
    let url = upstream.url("/v1/x");
    let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.error());
}

/// Whether the vault reports that all its plans were sent, before it answers another request.
async fn has_all_plans(fleet: &mut Fleet) -> bool {
    let vault = fleet.vault();
    vault.send(ToVault::Describe, None).await;
    let said = vault.wait(|message| match message {
        FromVault::AllPlans => Some(true),
        FromVault::Description { .. } => Some(false),
        _ => None,
    });
    said.await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_vault_reports_that_all_plans_were_sent_unless_some_may_be_lost() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    assert!(
        !has_all_plans(&mut fleet).await,
        "the vault has no plan yet"
    );
    fleet.deploy(2).await;
    fleet.kill_and_restart().await;
    assert!(has_all_plans(&mut fleet).await);
    fleet.kill_and_restart().await;
    fleet.damage_records_and_restart(4096);
    assert!(!has_all_plans(&mut fleet).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_records_are_reported_and_filled_again_and_nothing_lower_comes() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    let release = fleet.deploy(2).await;
    let refilled = |message| match message {
        FromVault::Refill { set_aside } => Some(set_aside),
        _ => None,
    };
    // At its start sled records the position of its pages; pages that were written later and are
    // damaged are silently dropped.
    for (at, started_again, told) in [(64, true, "set-aside"), (4096, false, "are missing")] {
        if started_again {
            fleet.kill_and_restart().await;
            fleet.vault().have().await;
        }
        fleet.damage_records_and_restart(at);
        let set_aside = fleet.vault().wait(refilled).await;
        assert!(set_aside.contains(told), "{set_aside}");
        let (node_key, sealing_key) = fleet.node_keys();
        fleet.fill(node_key, &sealing_key).await;
        let lower = fleet.manifest(1);
        assert!(
            matches!(fleet.submit_manifest(&lower).await, Verdict::Refused { code, .. } if code == "manifest_version_lower")
        );
        fleet.deploy(2).await;
        let worker = channel(&mut fleet, release).await;
        let url = upstream.url("/v1/x");
        let answer = call(&worker, Some("pay"), "POST", &url, "", &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.error());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_supervisor_that_was_taken_over_gets_no_signature_of_its_own() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let (ours, theirs) = casemate_channel::control::pair().unwrap();
    fleet.vault().send(ToVault::Signer, Some(theirs)).await;
    let ask = |question: Vec<u8>| {
        let socket = ours.try_clone().unwrap();
        tokio::task::spawn_blocking(move || {
            rustix::io::ioctl_fionbio(&socket, false).unwrap();
            rustix::io::write(&socket, &question).unwrap();
            let mut answer = [0; 100];
            rustix::io::read(&socket, &mut answer).unwrap()
        })
    };
    let handshake = [
        &[0x20; 64][..],
        b"TLS 1.3, client CertificateVerify\0",
        &[1; 32],
    ]
    .concat();
    assert_eq!(ask(handshake).await.unwrap(), 64);
    assert_eq!(ask(b"DSSEv1 1 t 1 p".to_vec()).await.unwrap(), 1);
}
