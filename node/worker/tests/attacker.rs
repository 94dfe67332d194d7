//! The attacker that the end-to-end tests send against the vault's scrubbing can see what it claims to see.
//!
//! The vault is played here: one that leaks partial matches, from which the attacker recovers the credential,
//! and one that replaces complete matches alone, from which the attacker recovers nothing.

mod harness;

use bytes::Bytes;
use casemate_channel::Incoming;
use casemate_wire::{Fields, ResponseHead};
use harness::{Function, function_with, head, load, whole};

const ATTACKER: &str = include_str!("../../../tests/src/attacker.js");
const SECRET: &str = "sk_live_5e9a07c3";
const KNOWN: &str = "sk_live_5e9a";
const SCRUBBED: &str = "[scrubbed]";

/// Replaces a text that ends inside the credential once so many bytes match, as a leaking scrubber did.
const LEAKING_BYTES: usize = 8;

/// Scrubs complete matches.
fn sound(text: &str) -> String {
    text.replace(SECRET, SCRUBBED)
}

/// Scrubs complete matches, and text that ends inside one.
fn leaking(text: &str) -> String {
    let scrub = |line: &str| {
        let is_part = line.len() >= LEAKING_BYTES && SECRET.starts_with(line);
        if is_part {
            SCRUBBED.to_owned()
        } else {
            sound(line)
        }
    };
    let lines: Vec<String> = text.split('\n').map(scrub).collect();
    lines.join("\n")
}

/// Returns the text of a call, in the body and in a header, scrubbed.
async fn echo(mut incoming: Incoming, scrub: fn(&str) -> String) {
    let body = whole(&mut incoming.body)
        .await
        .expect("a worker that goes on");
    let body = scrub(std::str::from_utf8(&body).expect("text"));
    let origin = incoming.head.fields.text("origin").unwrap_or_default();
    let fields = Fields::default().with("x-echo", scrub(origin));
    let head = ResponseHead {
        status: 200,
        fields,
    };
    let mut sending = incoming.reply.send(&head, body.is_empty());
    if !body.is_empty() {
        sending
            .send(Bytes::from(body))
            .await
            .expect("a worker that goes on");
        sending.finish();
    }
}

/// What the attacker makes of a vault that scrubs like this.
async fn recovered(worker: &mut Function, way: &str, scrub: fn(&str) -> String) -> String {
    let order = format!(
        r#"{{"way":"{way}","path":"/echo","known":"{KNOWN}","alphabet":"0123456789abcdef","length":{}}}"#,
        SECRET.len()
    );
    let mut exchange = worker.open(head("POST", "https://fn.test/"), false);
    exchange
        .body
        .send(Bytes::from(order))
        .await
        .expect("a worker that goes on");
    exchange.body.finish();
    let mut answer = std::pin::pin!(exchange.response.head());
    let (_, mut body) = loop {
        tokio::select! {
            answer = &mut answer => break answer.expect("an answer"),
            incoming = worker.vault.accept() => echo(incoming.expect("a call"), scrub).await,
        }
    };
    let text = whole(&mut body).await.expect("a whole answer");
    String::from_utf8(text.to_vec()).expect("text")
}

#[tokio::test]
async fn the_attacker_finds_a_leak_where_there_is_one_and_none_elsewhere() {
    let mut settings = load();
    settings.bindings[0].name = "payments".into();
    settings.limits.subrequests = 1000;
    settings.limits.cpu_time_ms = 20_000;
    let files = [("main.js", ATTACKER.as_bytes())];
    let mut worker = function_with(&files, settings).await;
    for way in ["body", "many", "header"] {
        let found = recovered(&mut worker, way, leaking).await;
        let all = format!(r#"{{"recovered":"{SECRET}""#);
        assert!(found.starts_with(&all), "{way}: {found}");
        // The last letter makes a complete match, which may be seen; all before it must not.
        let found = recovered(&mut worker, way, sound).await;
        let nothing = format!(r#"{{"recovered":"{KNOWN}""#);
        assert!(found.starts_with(&nothing), "{way}: {found}");
    }
}
