//! State of a request that outlives it: promises that later requests wait for, and code that keeps
//! running.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use casemate_channel::StreamError;
use casemate_wire::ResponseHead;
use casemate_wire::control::Failure;
use harness::{Function, answer, function, function_with, head, load, tell_apart, whole};

/// Shares the object that the path names between all requests, and answers with its result.
const SHARED: &str = r#"
    const url = "https://api.test/";
    const sleep = (ms) => new Promise((go) => setTimeout(go, ms));
    const make = {
        call: () => fetch(url).then((answer) => answer.text()),
        body: () => fetch(url).then((answer) => answer.text()),
        read: () => fetch(url).then((answer) => answer.body.getReader().read()),
        sent: () => fetch(url, { method: "POST", body: new ReadableStream({
            pull(controller) { controller.enqueue(new Uint8Array(100000)); },
        }) }),
        timer: async () => { await sleep(150); return "ticked"; },
        retry: async () => {
            try { return await fetch(url); } catch {}
            await sleep(10);
            return await fetch(url);
        },
        late: async () => { await sleep(150); return await fetch(url); },
        never: () => new Promise(() => {}),
        idle: () => "idle",
    };
    const shared = {};
    export default {
        async fetch(request) {
            const name = new URL(request.url).pathname.slice(1);
            try {
                return new Response(String(await (shared[name] ??= make[name]())));
            } catch (error) {
                console.log(error.code);
                return new Response(`${error.name} ${error.code}: ${error.message}`);
            }
        },
    };"#;

fn ask(worker: &Function, path: &str, name: &str) -> casemate_channel::Exchange {
    let request = head("GET", &format!("https://fn.test/{path}"));
    worker.open(tell_apart(request, name), true)
}

async fn text(exchange: casemate_channel::Exchange) -> String {
    let (_, mut body) = exchange.response.head().await.unwrap();
    String::from_utf8(whole(&mut body).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn promises_of_an_ended_request_reject_for_later_requests() {
    let mut worker = function(SHARED).await;
    for name in ["call", "body", "read", "sent"] {
        let first = ask(&worker, name, "first");
        let mut call = worker.vault.accept().await.unwrap();
        let mut sending = None;
        if matches!(name, "body" | "read") {
            let head = ResponseHead {
                status: 200,
                fields: [("content-type", "text/plain")].into_iter().collect(),
            };
            sending = Some(call.reply.send(&head, false));
        } else if name == "sent" {
            // The window fills, and the function waits for credit.
            call.body.next().await.unwrap().unwrap();
        }
        let second = ask(&worker, name, "second");
        // The second request waits already when a third one, which does not wait, gets its answer.
        assert_eq!(worker.get("/idle").await.text(), "idle");
        drop(first);
        let error = "TypeError request_ended: the request that began ";
        let shown = text(second).await;
        assert!(shown.starts_with(error), "{name}: {shown}");
        assert!(shown.ends_with("a promise has settled"), "{name}: {shown}");
        drop(sending);
        // Later requests get the error at once.
        assert!(
            worker
                .get(&format!("/{name}"))
                .await
                .text()
                .starts_with(error)
        );
    }
}

#[tokio::test]
async fn timers_of_an_ended_request_fire_once_more_and_its_code_comes_to_an_end() {
    let mut worker = function(SHARED).await;
    let first = ask(&worker, "timer", "first");
    let second = ask(&worker, "timer", "second");
    assert_eq!(worker.get("/idle").await.text(), "idle");
    drop(first);
    assert_eq!(text(second).await, "ticked");
    assert_eq!(worker.get("/timer").await.text(), "ticked");
    // Code that wakes after its request has ended can neither make a call nor set a timer.
    for name in ["retry", "late"] {
        let first = ask(&worker, name, "first");
        let call = match name {
            "retry" => Some(worker.vault.accept().await.unwrap()),
            _ => None,
        };
        let second = ask(&worker, name, "second");
        assert_eq!(worker.get("/idle").await.text(), "idle");
        drop(first);
        let shown = text(second).await;
        assert!(
            shown.starts_with("TypeError request_ended: the "),
            "{name}: {shown}"
        );
        drop(call);
    }
}

#[tokio::test]
async fn the_log_says_what_a_request_gave_up_and_code_that_goes_on_keeps_its_request() {
    let mut worker = function(SHARED).await;
    let first = ask(&worker, "call", "first");
    let call = worker.vault.accept().await.unwrap();
    drop(first);
    let line = worker.log().await;
    assert_eq!(line.request.as_deref(), Some("first"));
    assert!(
        line.message.contains("outgoing calls: 1"),
        "{}",
        line.message
    );
    assert!(line.message.contains("request_ended"), "{}", line.message);
    // The handler's `catch` runs in a request that has ended.
    let line = worker.log().await;
    assert_eq!(
        (line.request.as_deref(), line.message.as_str()),
        (Some("first"), "request_ended")
    );
    drop(call);
    // A call that is answered completes normally.
    let answered = ask(&worker, "body", "second");
    let call = worker.vault.accept().await.unwrap();
    answer(call, 200, &[], "fine").await;
    assert_eq!(text(answered).await, "fine");
}

#[tokio::test]
async fn a_request_that_waits_for_nothing_of_its_own_learns_why_it_took_too_long() {
    let mut settings = load();
    settings.limits.wall_time_ms = 400;
    let mut worker = function_with(&[("main.js", SHARED.as_bytes())], settings).await;
    let reset = StreamError::Reset(Failure::ExceededWall.to_reset());
    let waits = ask(&worker, "never", "waits");
    assert_eq!(waits.response.head().await.unwrap_err(), reset);
    let message = worker.outcome().await.message;
    assert!(
        message.contains("a promise that nobody settled"),
        "{message}"
    );
    let calls = ask(&worker, "call", "calls");
    let call = worker.vault.accept().await.unwrap();
    assert_eq!(calls.response.head().await.unwrap_err(), reset);
    let message = worker.outcome().await.message;
    assert!(!message.contains("nobody settled"), "{message}");
    drop(call);
}

/// Every way in which the function's code can be entered, each with a line of the log.
const ENTRIES: &str = r#"
    const empty = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]);
    addEventListener("unhandledrejection", (event) => {
        console.log("unhandledrejection", event.reason);
        event.preventDefault();
    });
    addEventListener("rejectionhandled", (event) => console.log("rejectionhandled", event.reason));
    addEventListener("error", (event) => {
        console.log("error", event.error.message);
        if (event.error.message.startsWith("kept")) event.preventDefault();
    });
    export default {
        async fetch(request, env, ctx) {
            console.log("handler");
            queueMicrotask(() => console.log("microtask"));
            queueMicrotask(() => { throw new Error("kept microtask"); });
            setTimeout(() => console.log("timeout"), 1);
            setTimeout(() => { throw new Error("thrown by a timer"); }, 1);
            const interval = setInterval(() => { console.log("interval"); clearInterval(interval); }, 1);
            AbortSignal.timeout(1).onabort = () => console.log("abort by time");
            reportError(new Error("reported"));
            const rejected = Promise.reject("nobody");
            setTimeout(() => rejected.catch(() => {}), 5);
            const { port1, port2 } = new MessageChannel();
            port1.onmessage = () => { console.log("message"); port1.close(); };
            port2.postMessage(0);
            crypto.subtle.digest("SHA-256", empty).then(() => console.log("digest"));
            crypto.subtle.digest("MD5", empty).catch(() => console.log("no digest"));
            WebAssembly.compile(empty).then(() => console.log("compiled"));
            import("./later.js").then(() => console.log("imported"));
            import("./gone.js").catch(() => console.log("not imported"));
            new Blob(["x"]).text().then(() => console.log("blob"));
            const target = new EventTarget();
            target.addEventListener("x", () => { throw new Error("kept listener"); });
            target.dispatchEvent(new Event("x"));
            const gzip = new Blob(["x"]).stream().pipeThrough(new CompressionStream("gzip"));
            gzip.pipeThrough(new DecompressionStream("gzip")).getReader().read().then(() => console.log("unzipped"));
            ctx.waitUntil({ then(go) { console.log("thenable"); go(); } });
            ctx.waitUntil(Promise.reject(new Error("not waited for")));
            ctx.waitUntil(new Promise((go) => request.signal.addEventListener("abort", () => {
                console.log("abort");
                fetch("https://api.test/left").then(() => { console.log("told"); go(); });
            })));
            const refused = fetch("https://api.test/refused").catch(() => console.log("refused"));
            const sent = fetch("https://api.test/sent", { method: "POST", body: new ReadableStream({
                pull(controller) { console.log("pull"); controller.enqueue(empty); controller.close(); },
            }) });
            await sent.then(() => console.log("answered"));
            await refused;
            const answer = await fetch("https://api.test/body");
            console.log("body", await answer.text());
            await new Promise((go) => setTimeout(go, 30));
            return new Response(new ReadableStream({
                pull() { console.log("pull of the response"); return new Promise(() => {}); },
                cancel() { console.log("cancel"); },
            }));
        },
    };"#;

/// The lines that [`ENTRIES`] logs, each at least once.
const LINES: &[&str] = &[
    "handler",
    "microtask",
    "error kept microtask",
    "timeout",
    "error thrown by a timer",
    "Uncaught Error: thrown by a timer",
    "interval",
    "abort by time",
    "error reported",
    "Uncaught Error: reported",
    "unhandledrejection nobody",
    "rejectionhandled nobody",
    "message",
    "digest",
    "no digest",
    "compiled",
    "imported",
    "not imported",
    "blob",
    "error kept listener",
    "unzipped",
    "thenable",
    "Uncaught Error: not waited for",
    "refused",
    "pull",
    "answered",
    "body whole",
    "pull of the response",
    "abort",
    "cancel",
    "told",
];

#[tokio::test]
async fn every_way_into_the_function_restores_its_request() {
    let files: &[(&str, &[u8])] = &[
        ("main.js", ENTRIES.as_bytes()),
        ("later.js", b"console.log('module');"),
    ];
    let mut worker = function_with(files, load()).await;
    let exchange = ask(&worker, "", "mine");
    let mut answered = 0;
    while answered < 3 {
        let mut call = worker.vault.accept().await.unwrap();
        assert_eq!(call.head.fields.text(":request"), Some("mine"));
        match call.head.target.as_str() {
            "https://api.test/refused" => answer(call, 0, &[(":error", "egress_denied")], "").await,
            "https://api.test/sent" => {
                whole(&mut call.body).await.unwrap();
                answer(call, 204, &[], "").await;
            }
            _ => answer(call, 200, &[], "whole").await,
        }
        answered += 1;
    }
    let (_, body) = exchange.response.head().await.unwrap();
    let mut missing = LINES.to_vec();
    let mut caller = Some((exchange.body, body));
    while !missing.is_empty() {
        let line = worker.log().await;
        assert_eq!(line.request.as_deref(), Some("mine"), "{}", line.message);
        let first = line.message.lines().next().unwrap_or_default();
        missing.retain(|expected| *expected != first);
        if missing
            .iter()
            .all(|left| matches!(*left, "abort" | "cancel" | "told"))
        {
            // The caller leaves last.
            drop(caller.take());
        }
        if first == "abort" {
            let told = worker.vault.accept().await.unwrap();
            assert_eq!(told.head.fields.text(":request"), Some("mine"));
            answer(told, 204, &[], "").await;
        }
    }
}
