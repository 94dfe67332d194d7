//! The real vault as a child: this test plays supervisor, control plane, worker and upstream.

#![allow(clippy::unwrap_used, reason = "a test that panics says enough")]

mod fleet;
mod upstream;

use std::time::Duration;

use bytes::Bytes;
use casemate_channel::{Opener, opener};
use casemate_wire::control::vault::{ObjectKind, ToVault, Verdict};
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{Fields, RequestHead};
use fleet::{Fleet, KEY};
use upstream::Upstream;

const SOON: Duration = Duration::from_secs(30);

/// What a worker gets back.
struct Answer {
    status: u16,
    fields: Fields,
    body: Vec<u8>,
}

impl Answer {
    fn error(&self) -> &str {
        self.fields.text(":error").unwrap_or("none")
    }
}

async fn call(
    channel: &Opener,
    binding: Option<&str>,
    method: &str,
    url: &str,
    body: &'static str,
    fields: &[(&str, &str)],
) -> Answer {
    let mut all = Fields::default().with(":request", "r1");
    if let Some(binding) = binding {
        all.push(":binding", binding.to_owned());
    }
    for (name, value) in fields {
        all.push(*name, Bytes::from((*value).to_owned()));
    }
    let head = RequestHead {
        method: method.into(),
        target: url.into(),
        fields: all,
    };
    let mut exchange = channel.open(head, body.is_empty()).unwrap();
    if !body.is_empty() {
        exchange
            .body
            .send(Bytes::from_static(body.as_bytes()))
            .await
            .unwrap();
    }
    exchange.body.finish();
    let (head, mut received) = tokio::time::timeout(SOON, exchange.response.head())
        .await
        .unwrap()
        .unwrap();
    let mut body = Vec::new();
    while let Some(piece) = tokio::time::timeout(SOON, received.next()).await.unwrap() {
        body.extend_from_slice(&piece.unwrap());
    }
    Answer {
        status: head.status,
        fields: head.fields,
        body,
    }
}

async fn channel(fleet: &mut Fleet, release: [u8; 32]) -> Opener {
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let key = FunctionKey {
        tenant: fleet.tenant.id.0,
        function: "web".into(),
    };
    fleet
        .vault()
        .send(
            ToVault::Channel {
                worker: WorkerId(1),
                key,
                release,
            },
            Some(theirs),
        )
        .await;
    opener(ours).unwrap()
}

/// A member with a lease, a secret and a function that may call the upstream.
async fn serving(upstream: &Upstream) -> (Fleet, [u8; 32]) {
    let mut fleet = Fleet::start(upstream).await;
    fleet.join().await;
    let release = fleet.deploy(1).await;
    (fleet, release)
}

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
        "the vault's and nobody else's"
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
    assert_eq!(upstream.seen().len(), 1, "what is denied is not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_not_followed_and_headers_are_scrubbed() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = serving(&upstream).await;
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
    for (name, value) in &answer.fields.0 {
        assert!(!String::from_utf8_lossy(value).contains(KEY), "{name}");
    }
    assert_eq!(answer.fields.text("x-your-key"), Some("[scrubbed]"));
    assert_eq!(answer.fields.text("x-in-base64"), Some("[scrubbed]"));
    assert_eq!(answer.fields.text("location"), Some("[scrubbed]"));
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
