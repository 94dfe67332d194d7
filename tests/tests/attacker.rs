//! A function that tries to learn its own credential from an upstream that returns text, with the
//! real programs.
//!
//! `node/worker/tests/attacker.rs` shows that each of the attacker's ways finds a leak where there
//! is one.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // Helper functions count as code outside of tests.

use std::time::{Duration, Instant};

use casemate_tests::caller::Answer;
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST};
use casemate_tests::upstream::Upstream;
use casemate_tests::{ATTACKER, caller};
use serde_json::{Value, json};
use tokio::task::block_in_place;

/// Secrets of 16, 24 and 64 bytes; all begin with the prefix that the attacker knows.
const SECRETS: [&str; 3] = [
    "sk_live_5e9a07c3",
    "sk_live_b81f64d20e97ac35",
    "sk_live_3a7be0c94d1f8265f0b3d9e87c6a1254ae5d90b7f3c2861e4da8b05f",
];
const BEGINNING: &str = "sk_live_";
const ALPHABET: &str = "0123456789abcdef";
/// Number of unknown letters that the attacker has to find.
const LETTERS: usize = 3;

/// Ways whose observations depend on the vault alone, and the path of the upstream for each.
const CERTAIN: [(&str, &str); 4] = [
    ("body", "/v1/note"),
    ("many", "/v1/note"),
    ("header", "/v1/note"),
    ("stored", "/v1/note"),
];
/// Ways whose observations also depend on the machine's load: a letter may stand out by chance.
const NOISY: [(&str, &str); 3] = [
    ("pieces", "/v1/stream"),
    ("gzip", "/v1/stream"),
    ("time", "/v1/note"),
];

fn config(upstream: &Upstream) -> String {
    let port = upstream.address.port();
    format!(
        "[limits]\ncpu_time_ms = 20000\nwall_time_ms = 60000\nsubrequests = 1000\n\
         [[credential]]\nbinding = \"payments\"\nsecret = \"KEY_{port}\"\nhost = \"{UPSTREAM_HOST}:{port}\"\n\
         methods = [\"GET\", \"POST\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"ca.pem\"\n\
         [[egress]]\nhost = \"{UPSTREAM_HOST}:{port}\"\nmethods = [\"GET\"]\npaths = [\"/v1/note\"]\nca = \"ca.pem\"\n"
    )
}

/// Deploys an attacker with this secret; returns its host.
fn deploy(fleet: &Fleet, upstream: &Upstream, secret: &str) -> String {
    let name = format!("attacker{}", secret.len());
    let project = fleet
        .small_project(&name, &config(upstream), ATTACKER)
        .unwrap();
    std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
    fleet.put_secret_value(&project, secret, &[]).unwrap();
    fleet.deploy(&project).unwrap();
    format!("{name}.apps.demo.test")
}

/// A deployed attacker with its secret and its upstream.
struct Attacker {
    host: String,
    upstream: Upstream,
    secret: &'static str,
}

impl Attacker {
    async fn deploy(fleet: &Fleet, secret: &'static str) -> Self {
        let upstream = Upstream::start(UPSTREAM_HOST, secret).await.unwrap();
        let host = block_in_place(|| deploy(fleet, &upstream, secret));
        Self {
            host,
            upstream,
            secret,
        }
    }

    /// Has the attacker search for the `letters` that follow the known ones.
    async fn ask(
        &self,
        fleet: &Fleet,
        (way, path): (&str, &str),
        known: &str,
        letters: usize,
    ) -> Answer {
        let port = self.upstream.address.port();
        let order = json!({
            "way": way, "path": path, "base": format!("https://{UPSTREAM_HOST}:{port}"),
            "known": known, "alphabet": ALPHABET, "length": known.len() + letters,
        });
        let answer = caller::post(fleet.node.gateway, &self.host, "/", order.to_string());
        answer.await.unwrap()
    }

    /// The letters that the attacker has recovered, and the number of its calls.
    async fn attack(&self, fleet: &Fleet, way: (&str, &str), known: &str) -> (String, u64) {
        let answer = self.ask(fleet, way, known, LETTERS).await;
        assert_eq!(answer.status, 200, "{way:?}: {}", answer.text());
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        if NOISY[..2].contains(&way) {
            let seen = answer["seen"].as_array().unwrap();
            let comes_early = |seen: &Value| !seen.as_str().unwrap().starts_with("0,");
            assert!(seen.iter().any(comes_early), "{way:?}: {seen:?}");
        }
        let recovered = answer["recovered"].as_str().unwrap();
        (recovered.to_owned(), answer["calls"].as_u64().unwrap())
    }

    async fn recovers_nothing(&self, fleet: &Fleet) {
        let secret = self.secret;
        // With all but one letter known, a guess would be a complete match, which is a proof of the
        // letter.
        for known in [BEGINNING, &secret[..secret.len() - LETTERS - 1]] {
            let began = Instant::now();
            let mut calls = 0;
            for way in CERTAIN {
                let (recovered, made) = self.attack(fleet, way, known).await;
                assert_eq!(recovered, known, "{way:?} of {secret}");
                calls += made;
            }
            for way in NOISY {
                let (recovered, made) = self.attack(fleet, way, known).await;
                let right = &secret[..known.len() + LETTERS];
                assert_ne!(recovered, right, "{way:?}");
                calls += made;
            }
            println!(
                "{} bytes, {} known: nothing in {calls} calls, {:?}",
                secret.len(),
                known.len(),
                began.elapsed()
            );
        }
    }

    /// Tries every possible last letter in one call: the right letter becomes visible, twice.
    async fn guesses_the_last_letter(&self, fleet: &Fleet) {
        let known = &self.secret[..self.secret.len() - 1];
        for _ in 0..2 {
            let answer = self.ask(fleet, CERTAIN[1], known, 1).await;
            assert!(answer.text().contains(self.secret), "{}", answer.text());
        }
        // The third match aborts the call, before its answer begins or in the middle; all later
        // calls are refused.
        let answer = self.ask(fleet, CERTAIN[1], known, 1).await;
        assert!(answer.status.is_server_error(), "{}", answer.text());
        let answer = self.ask(fleet, CERTAIN[1], known, 1).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attacker_recovers_no_letter_of_its_own_secret() {
    let fleet = block_in_place(Fleet::start).unwrap();
    let first = Attacker::deploy(&fleet, SECRETS[0]).await;
    // None of the guesses counts as a match, so the vault does not stop the credential.
    first.recovers_nothing(&fleet).await;
    first.guesses_the_last_letter(&fleet).await;
    for secret in &SECRETS[1..] {
        let attacker = Attacker::deploy(&fleet, secret).await;
        attacker.recovers_nothing(&fleet).await;
    }

    // The tenant's status names the stopped credential.
    let end = Instant::now() + SOON;
    let stopped = loop {
        let status = block_in_place(|| fleet.tenant.json(&fleet.folder, &["status"])).unwrap();
        let stopped = status["stopped_credentials"].as_array().unwrap().clone();
        if !stopped.is_empty() {
            break stopped;
        }
        assert!(Instant::now() < end, "{status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let secret = format!("KEY_{}", first.upstream.address.port());
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!(stopped[0]["function"], "attacker16");
    assert_eq!(stopped[0]["secret"], secret);
    assert_eq!(stopped[0]["nodes"], json!(["edge-1"]));
}
