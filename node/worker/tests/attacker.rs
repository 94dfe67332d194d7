//! Validates the attacker of the end-to-end tests: it finds leaks where there are some.
//!
//! The test plays the vault: with a vault that leaks partial matches in each way, the attacker
//! recovers the credential; with a vault that replaces complete matches alone, it recovers nothing.

mod harness;

use std::io::Write as _;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use casemate_channel::{Incoming, RecvBody, SendBody};
use casemate_wire::{Fields, ResponseHead};
use flate2::write::MultiGzDecoder;
use harness::{Function, function_with, head, load, whole};

const ATTACKER: &str = include_str!("../../../tests/src/attacker.js");
const SECRET: &str = "sk_live_5e9a07c3";
const KNOWN: &str = "sk_live_5e9a";
const SCRUBBED: &str = "[scrubbed]";

/// Matching bytes from which a leaking scrubber replaces a text that ends inside the credential.
const LEAKING_BYTES: usize = 8;
/// Time that a leaking scrubber spends for each further matching byte. The attacker repeats a guess
/// some thousand times in one body.
const LEAKING_TIME: Duration = Duration::from_millis(5);
/// Tries that the attacker has, because sizes and times depend on the machine's load.
const MAX_TRIES: usize = 20;

/// How a simulated vault treats partial matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scrubber {
    Sound,
    Leaking,
}

use Scrubber::{Leaking, Sound};

impl Scrubber {
    /// Replaces complete matches; a leaking scrubber also replaces lines that end inside a match.
    fn scrub(self, text: &str) -> String {
        let scrub = |line: &str| {
            let is_part = line.len() >= LEAKING_BYTES && SECRET.starts_with(line);
            if self == Leaking && is_part {
                SCRUBBED.to_owned()
            } else {
                line.replace(SECRET, SCRUBBED)
            }
        };
        let lines: Vec<String> = text.split('\n').map(scrub).collect();
        lines.join("\n")
    }

    /// Number of bytes at the end of a text that are held back: by position, or, when leaking, the
    /// bytes with which a credential may begin.
    fn holds_back(self, text: &[u8]) -> usize {
        let most = text.len().min(SECRET.len() - 1);
        match self {
            Sound => most,
            Leaking => {
                let mut lengths = (0..=most).rev();
                let ends_in = |length: &usize| text.ends_with(&SECRET.as_bytes()[..*length]);
                lengths.find(ends_in).unwrap_or(0)
            }
        }
    }

    /// The time to search a body of repeated guesses.
    fn time(self, text: &str) -> Duration {
        let guess = text.split(' ').next().unwrap_or_default();
        let pairs = guess.bytes().zip(SECRET.bytes());
        let matched = pairs.take_while(|(one, other)| one == other).count();
        let further = matched.saturating_sub(LEAKING_BYTES);
        match self {
            Sound => LEAKING_TIME,
            Leaking => LEAKING_TIME * u32::try_from(further).expect("a short secret"),
        }
    }
}

/// A simulated vault, and an upstream that returns text.
struct Played {
    scrubber: Scrubber,
    note: String,
}

impl Played {
    async fn answer(&mut self, mut incoming: Incoming) {
        let path = incoming.head.target.clone();
        if path.ends_with("/stream") {
            let is_gzip = incoming.head.fields.text("content-encoding") == Some("gzip");
            let sending = respond(incoming.reply, Fields::default());
            return self.stream(incoming.body, is_gzip, sending).await;
        }
        let body = whole(&mut incoming.body).await.expect("a whole request");
        let mut text = String::from_utf8(body.to_vec()).expect("text");
        if path.ends_with("/note") {
            if incoming.head.method == "POST" {
                self.note = std::mem::take(&mut text);
            } else {
                text.clone_from(&self.note);
            }
        }
        if path.ends_with("/slow") {
            tokio::time::sleep(self.scrubber.time(&text)).await;
        }
        let origin = incoming.head.fields.text("origin").unwrap_or_default();
        let fields = Fields::default().with("x-echo", self.scrubber.scrub(origin));
        let mut sending = respond(incoming.reply, fields);
        let text = self.scrubber.scrub(&text);
        sending
            .send(text.into())
            .await
            .expect("a worker that goes on");
        sending.finish();
    }

    /// Returns a body as it comes, decoded.
    async fn stream(&self, mut body: RecvBody, is_gzip: bool, mut sending: SendBody) {
        let mut held = BytesMut::new();
        let mut decoder = MultiGzDecoder::new(Vec::new());
        while let Some(piece) = body.next().await {
            let piece = piece.expect("a whole request");
            if is_gzip {
                decoder.write_all(&piece).expect("gzip");
                decoder.flush().expect("gzip");
                held.extend_from_slice(&std::mem::take(decoder.get_mut()));
            } else {
                held.extend_from_slice(&piece);
            }
            let kept = self.scrubber.holds_back(&held);
            let piece = held.split_to(held.len() - kept).freeze();
            sending.send(piece).await.expect("a worker that goes on");
        }
        sending
            .send(held.freeze())
            .await
            .expect("a worker that goes on");
        sending.finish();
    }
}

fn respond(reply: casemate_channel::Reply, fields: Fields) -> SendBody {
    let head = ResponseHead {
        status: 200,
        fields,
    };
    reply.send(&head, false)
}

/// The letters that the attacker recovers from a vault with this scrubber.
async fn recovered(
    worker: &mut Function,
    (way, path): (&str, &str),
    scrubber: Scrubber,
    letters: usize,
) -> String {
    let order = format!(
        r#"{{"way":"{way}","path":"{path}","base":"https://api.stripe.test","known":"{KNOWN}","alphabet":"0123456789abcdef","length":{}}}"#,
        KNOWN.len() + letters
    );
    let mut exchange = worker.open(head("POST", "https://fn.test/"), false);
    exchange
        .body
        .send(Bytes::from(order))
        .await
        .expect("a worker that goes on");
    exchange.body.finish();
    let mut played = Played {
        scrubber,
        note: String::new(),
    };
    let mut answer = std::pin::pin!(exchange.response.head());
    let (_, mut body) = loop {
        tokio::select! {
            answer = &mut answer => break answer.expect("an answer"),
            incoming = worker.vault.accept() => played.answer(incoming.expect("a call")).await,
        }
    };
    let text = whole(&mut body).await.expect("a whole answer");
    let text = std::str::from_utf8(&text).expect("text");
    let recovered = text.strip_prefix(r#"{"recovered":""#);
    let recovered = recovered.and_then(|rest| rest.split('"').next());
    recovered.unwrap_or_else(|| panic!("{text}")).to_owned()
}

async fn attacker() -> Function {
    let mut settings = load();
    settings.bindings[0].name = "payments".into();
    settings.limits.subrequests = 1000;
    settings.limits.cpu_time_ms = 20_000;
    function_with(&[("main.js", ATTACKER.as_bytes())], settings).await
}

#[tokio::test]
async fn the_attacker_finds_a_leak_where_there_is_one_and_none_elsewhere() {
    let mut worker = attacker().await;
    let letters = SECRET.len() - KNOWN.len();
    for (way, path) in [
        ("body", "/echo"),
        ("many", "/echo"),
        ("header", "/echo"),
        ("stored", "/note"),
    ] {
        let found = recovered(&mut worker, (way, path), Leaking, letters).await;
        assert_eq!(found, SECRET, "{way}");
        // The last letter makes a complete match, which may be visible; the letters before it must
        // not be.
        let found = recovered(&mut worker, (way, path), Sound, letters).await;
        assert_eq!(found, KNOWN, "{way}");
    }
}

#[tokio::test]
async fn the_attacker_finds_a_leak_in_the_sizes_of_pieces_and_in_time() {
    const LETTERS: usize = 2;
    let mut worker = attacker().await;
    for way in [
        ("pieces", "/stream"),
        ("gzip", "/stream"),
        ("time", "/slow"),
    ] {
        let mut tries = 0;
        loop {
            tries += 1;
            let found = recovered(&mut worker, way, Leaking, LETTERS).await;
            if found == SECRET[..KNOWN.len() + LETTERS] {
                break;
            }
            assert!(tries < MAX_TRIES, "{way:?}: last {found}");
        }
        println!("{way:?}: found after {tries} tries");
        // One letter may stand out by chance, but hardly two, and rarely the right ones.
        let found = recovered(&mut worker, way, Sound, LETTERS).await;
        assert_ne!(found, SECRET[..KNOWN.len() + LETTERS], "{way:?}");
    }
}
