//! More concurrent calls than the channel to the vault carries: the excess calls wait in order, and
//! none of them fails.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use casemate_channel::Incoming;
use casemate_wire::control::worker::Load;
use harness::{Function, PATIENCE, answer, function_with, head, load, tell_apart, whole};

/// Makes `count` calls at once, `size` bytes each, and shows how often each result occurred.
const MANY: &str = r#"export default {
    async fetch(request) {
        const asked = new URL(request.url).searchParams;
        const body = new Uint8Array(Number(asked.get("size"))).fill(120);
        const stream = () => new ReadableStream({
            start(controller) { controller.enqueue(body); controller.close(); },
        });
        const empty = () => new ReadableStream({ start: (controller) => controller.close() });
        const bodies = { whole: () => body, stream, empty, none: () => undefined };
        const made = bodies[asked.get("kind") ?? "whole"];
        const call = async (_, number) => {
            const method = asked.get("kind") === "none" ? "GET" : "POST";
            const response = await fetch(`https://api.test/${number}`, { method, body: made() });
            return await response.text();
        };
        const count = Number(asked.get("count"));
        const all = await Promise.allSettled(Array.from({ length: count }, call));
        const seen = {};
        for (const { value, reason } of all) {
            const key = value ?? `${reason.code}: ${reason.message}`;
            seen[key] = (seen[key] ?? 0) + 1;
        }
        return Response.json(seen);
    },
};"#;

fn settings() -> Load {
    let mut settings = load();
    settings.limits.subrequests = 1200;
    settings.limits.cpu_time_ms = 20_000;
    settings
}

async fn started(source: &str) -> Function {
    function_with(&[("main.js", source.as_bytes())], settings()).await
}

/// Reads the body of a call and answers with its length.
async fn count(mut incoming: Incoming) {
    let body = whole(&mut incoming.body).await.unwrap();
    let length: &'static str = body.len().to_string().leak();
    answer(incoming, 200, &[], length).await;
}

/// Requests `count` calls, answers them, and returns their results and their order.
async fn many(worker: &mut Function, query: &str, calls: usize) -> (String, Vec<String>) {
    let url = format!("https://fn.test/?count={calls}&{query}");
    let exchange = worker.open(head("GET", &url), true);
    let mut targets = Vec::new();
    let mut answers = tokio::task::JoinSet::new();
    let played = async {
        for _ in 0..calls {
            let incoming = worker.vault.accept().await.unwrap();
            targets.push(incoming.head.target.clone());
            answers.spawn(count(incoming));
        }
    };
    tokio::time::timeout(PATIENCE, played).await.unwrap();
    let (_, mut body) = exchange.response.head().await.unwrap();
    let shown = whole(&mut body).await.unwrap();
    (String::from_utf8(shown.to_vec()).unwrap(), targets)
}

#[tokio::test]
async fn calls_beyond_what_the_channel_carries_wait_in_their_order() {
    let mut worker = started(MANY).await;
    for (query, shown) in [
        ("size=100000", r#"{"100000":40}"#),
        ("size=300000", r#"{"300000":40}"#),
        ("size=300000&kind=stream", r#"{"300000":40}"#),
        ("size=100&kind=none", r#"{"0":40}"#),
    ] {
        let (got, targets) = many(&mut worker, query, 40).await;
        assert_eq!(got, shown, "{query}");
        let expected = (0..40).map(|number| format!("https://api.test/{number}"));
        assert!(
            targets.iter().eq(expected.collect::<Vec<_>>().iter()),
            "{targets:?}"
        );
    }
}

#[tokio::test]
async fn calls_beyond_the_streams_of_a_channel_wait_whatever_their_body() {
    let mut worker = started(MANY).await;
    for kind in ["whole", "stream", "empty", "none"] {
        let url = format!("https://fn.test/?count=1100&size=10&kind={kind}");
        let exchange = worker.open(head("GET", &url), true);
        let mut open = Vec::new();
        let filled = async {
            while open.len() < casemate_wire::channel::MAX_STREAMS {
                open.push(worker.vault.accept().await.unwrap());
            }
        };
        tokio::time::timeout(PATIENCE, filled).await.unwrap();
        let played = async {
            for incoming in open {
                count(incoming).await;
            }
            for _ in casemate_wire::channel::MAX_STREAMS..1100 {
                count(worker.vault.accept().await.unwrap()).await;
            }
        };
        tokio::time::timeout(PATIENCE, played).await.unwrap();
        let (_, mut body) = exchange.response.head().await.unwrap();
        let sent = if matches!(kind, "whole" | "stream") {
            10
        } else {
            0
        };
        let expected = format!(r#"{{"{sent}":1100}}"#);
        assert_eq!(
            whole(&mut body).await.unwrap(),
            expected.as_bytes(),
            "{kind}"
        );
    }
}

/// Fills the channel, then makes one more call, which can be aborted.
const ONE_MORE: &str = r#"export default {
    async fetch(request) {
        const { pathname } = new URL(request.url);
        if (pathname === "/fill") {
            await Promise.all(Array.from({ length: 1024 }, () => fetch("https://api.test/fill")));
            return new Response("filled");
        }
        const controller = new AbortController();
        if (pathname === "/abort") setTimeout(() => controller.abort(), 20);
        try {
            const { signal } = controller;
            const init = { method: "POST", body: new Blob(["more"]).stream(), signal };
            const response = await fetch("https://api.test/more", init);
            return new Response(await response.text());
        } catch (error) {
            return new Response(error.name);
        }
    },
};"#;

#[tokio::test]
async fn a_waiting_call_ends_with_its_signal_or_its_request_and_lets_the_next_go_on() {
    let mut worker = started(ONE_MORE).await;
    let fill = tell_apart(head("GET", "https://fn.test/fill"), "fill");
    let _filling = worker.open(fill, true);
    let mut open = Vec::new();
    for _ in 0..casemate_wire::channel::MAX_STREAMS {
        open.push(worker.vault.accept().await.unwrap());
    }
    let ask = |path: &str| head("GET", &format!("https://fn.test/{path}"));
    assert_eq!(worker.get("/abort").await.text(), "AbortError");
    // Its caller leaves while it waits.
    drop(worker.open(ask("left"), true));
    let next = worker.open(tell_apart(ask("next"), "next"), true);
    answer(open.pop().unwrap(), 200, &[], "").await;
    let call = worker.vault.accept().await.unwrap();
    assert_eq!(call.head.fields.text(":request"), Some("next"));
    count(call).await;
    let (_, mut body) = next.response.head().await.unwrap();
    assert_eq!(whole(&mut body).await.unwrap(), "4");
}
