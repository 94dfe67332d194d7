//! A function that sends guesses through an upstream that returns them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;
mod worker;

use casemate_channel::Opener;
use casemate_trust::secret::Reflection;
use casemate_wire::Fields;
use fleet::{Fleet, KEY};
use upstream::Upstream;
use worker::{Answer, SOON, call, channel, open, serving_with, with_plain_egress};

async fn deployed(upstream: &Upstream, reflection: Reflection) -> (Fleet, [u8; 32]) {
    let prepare = |fleet: &mut Fleet| {
        fleet.edit_release = with_plain_egress;
        fleet.reflection = reflection;
    };
    serving_with(upstream, prepare).await
}

async fn start(upstream: &Upstream, reflection: Reflection) -> (Fleet, Opener) {
    let (mut fleet, release) = deployed(upstream, reflection).await;
    let worker = channel(&mut fleet, release).await;
    (fleet, worker)
}

async fn echo(worker: &Opener, upstream: &Upstream, binding: Option<&str>, text: &str) -> Answer {
    let text: &'static str = Box::leak(text.to_owned().into_boxed_str());
    call(
        worker,
        binding,
        "POST",
        &upstream.url("/v1/echo"),
        text,
        &[],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_complete_match_in_an_hour_stops_the_credential_on_every_way_to_the_host() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, worker) = start(&upstream, Reflection::Refuse).await;
    // A value that was stored through the slot is read back through plain `fetch`.
    for binding in [Some("pay"), None] {
        let answer = echo(&worker, &upstream, binding, &format!("k={KEY};")).await;
        assert_eq!(answer.body, b"k=[scrubbed];", "{binding:?}");
    }
    let answer = echo(&worker, &upstream, None, KEY).await;
    assert!(answer.broken && answer.body.is_empty());
    for binding in [Some("pay"), None] {
        let answer = echo(&worker, &upstream, binding, "harmless").await;
        assert_eq!(answer.error(), "credential_reflected", "{binding:?}");
    }
    let status = fleet.vault().describe().await;
    let stopped = &status["stopped_credentials"][0];
    assert_eq!(
        (&stopped["function"], &stopped["secret"]),
        (&"web".into(), &"KEY".into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_under_way_end_when_the_credential_stops_although_they_hold_nothing() {
    let upstream = Upstream::start(KEY).await;
    let (_fleet, worker) = start(&upstream, Reflection::Refuse).await;
    let fields = Fields::default().with(":request", "r1");
    let under_way = open(&worker, "POST", &upstream.url("/v1/endless"), fields, true);
    let (head, mut body) = under_way.response.head().await.unwrap();
    assert_eq!(head.status, 200);
    for _ in 0..3 {
        echo(&worker, &upstream, Some("pay"), KEY).await;
    }
    let ending = async { while let Some(Ok(_)) = body.next().await {} };
    tokio::time::timeout(SOON, ending).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_is_killed_continues_its_counts() {
    let upstream = Upstream::start(KEY).await;
    let (mut fleet, release) = deployed(&upstream, Reflection::Refuse).await;
    for matches in 1..=3 {
        let worker = channel(&mut fleet, release).await;
        let answer = echo(&worker, &upstream, Some("pay"), KEY).await;
        let is_stopped = matches == 3;
        assert_eq!(answer.broken, is_stopped, "match {matches}");
        if !is_stopped {
            assert_eq!(answer.body, b"[scrubbed]");
        }
        fleet.kill_and_restart().await;
    }
    // The credential stays stopped, even when the vault is killed again.
    for _ in 0..2 {
        let worker = channel(&mut fleet, release).await;
        let answer = echo(&worker, &upstream, Some("pay"), "harmless").await;
        assert_eq!(answer.error(), "credential_reflected");
        let status = fleet.vault().describe().await;
        assert_eq!(status["stopped_credentials"][0]["secret"], "KEY");
        fleet.kill_and_restart().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_match_that_cannot_be_written_stops_the_credential() {
    let upstream = Upstream::start(KEY).await;
    let (fleet, worker) = start(&upstream, Reflection::Refuse).await;
    fleet.lose_the_records();
    let answer = echo(&worker, &upstream, Some("pay"), KEY).await;
    assert!(answer.broken && answer.body.is_empty());
    let answer = echo(&worker, &upstream, Some("pay"), "harmless").await;
    assert_eq!(answer.error(), "credential_reflected");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_that_are_wrong_come_back_as_they_are_and_stop_nothing() {
    let upstream = Upstream::start(KEY).await;
    let (_fleet, worker) = start(&upstream, Reflection::Refuse).await;
    let guesses = (0..KEY.len()).flat_map(|known| {
        let right = KEY[..known + 1].to_owned();
        [format!("{}~", &KEY[..known]), right]
    });
    let guesses = guesses.filter(|guess| guess != KEY).collect::<Vec<_>>();
    for text in [guesses.join("\n"), guesses.join("\n\n")] {
        let answer = echo(&worker, &upstream, Some("pay"), &text).await;
        assert_eq!(answer.body, text.as_bytes());
    }
    let header = call(
        &worker,
        Some("pay"),
        "POST",
        &upstream.url("/v1/x"),
        "",
        &[],
    )
    .await;
    assert_eq!(header.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_right_guesses_in_one_answer_break_it_off() {
    let upstream = Upstream::start(KEY).await;
    let (_fleet, worker) = start(&upstream, Reflection::Refuse).await;
    let text = format!("{KEY} {KEY} {KEY}");
    let answer = echo(&worker, &upstream, Some("pay"), &text).await;
    assert!(answer.broken && answer.body.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_an_upstream_returns_by_design_is_replaced_each_time() {
    let upstream = Upstream::start(KEY).await;
    let (_fleet, worker) = start(&upstream, Reflection::Scrub).await;
    for _ in 0..5 {
        let answer = echo(&worker, &upstream, Some("pay"), KEY).await;
        assert_eq!(answer.body, b"[scrubbed]");
    }
}
