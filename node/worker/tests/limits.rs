//! Limits and the sandbox: hostile functions, through the real program.

mod harness;

use bytes::Bytes;
use casemate_channel::StreamError;
use casemate_channel::control::Control;
use casemate_wire::control::Failure;
use casemate_wire::control::worker::{FromWorker, ToWorker};
use harness::{
    Function, function, function_with, head, limits, load, receive, send_load, spare, tell_apart,
    whole,
};
use tokio::process::Child;

/// A worker with tight limits.
async fn tight(source: &str) -> Function {
    let mut settings = load();
    settings.limits.cpu_time_ms = 100;
    settings.limits.heap_mib = 32;
    function_with(&[("main.js", source.as_bytes())], settings).await
}

/// Asserts that the worker ends because of `failure`, and reports it to gateway and supervisor.
async fn ends_with(source: &str, failure: Failure, code: i32) {
    let mut worker = tight(source).await;
    let answer = worker.ask(head("GET", "https://fn.test/")).await;
    assert_eq!(
        answer.err(),
        Some(StreamError::Reset(failure.to_reset())),
        "{source}"
    );
    assert_eq!(worker.outcome().await.failure, Some(failure), "{source}");
    let (last, status) = worker.end().await;
    assert!(
        matches!(last, Some(FromWorker::Fatal { failure: said, .. }) if said == failure),
        "{source}: {last:?}"
    );
    assert_eq!(status, Some(code), "{source}");
}

#[tokio::test]
async fn cpu_time_in_a_loop_a_regexp_and_a_microtask_storm() {
    let sources = [
        "export default { fetch() { while (true) {} } };",
        "export default { fetch() { /(a+)+b/.test('a'.repeat(60)); } };",
        "export default { async fetch() { while (true) await null; } };",
        "export default { fetch() { try { while (true) {} } finally { while (true) {} } } };",
        "const spin = (go) => { for (let i = 0; i < 1e6; i++); go(); }; \
         export default { async fetch() { while (true) await new Promise((go) => setTimeout(spin, 1, go)); } };",
        "export default { async fetch() { while (true) await crypto.subtle.digest('SHA-256', new Uint8Array(1024)); } };",
    ];
    for source in sources {
        ends_with(source, Failure::ExceededCpu, 80).await;
    }
}

#[tokio::test]
async fn cpu_time_in_a_builtin_that_ignores_being_stopped() {
    let mut settings = load();
    settings.limits.cpu_time_ms = 500;
    settings.limits.heap_mib = 1024;
    // Sorting numbers would be too fast: V8 uses vector instructions for it on some machines.
    let source = r#"export default { fetch() { "\u00e9".repeat(8e7).normalize("NFD"); } };"#;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let first = worker.open(head("GET", "https://fn.test/"), true);
    let first_id = first.id;
    let _never_begun = worker.open(head("GET", "https://fn.test/"), true);
    assert_eq!(
        first.response.head().await.unwrap_err(),
        StreamError::Closed,
        "the ended worker cannot reset the stream"
    );
    let (last, status) = worker.end().await;
    let Some(FromWorker::Fatal { failure, begun, .. }) = last else {
        panic!("{last:?}");
    };
    assert_eq!(failure, Failure::ExceededCpu);
    assert_eq!(u32::from_le_bytes(begun), first_id);
    assert_eq!(status, Some(80));
}

#[tokio::test]
async fn requests_that_have_not_begun_when_the_worker_ends_are_sent_back() {
    let mut worker = tight("export default { fetch() { while (true) {} } };").await;
    let open = || worker.open(head("GET", "https://fn.test/"), true).response;
    let (first, others) = (open(), [open(), open(), open()]);
    let exceeded = StreamError::Reset(Failure::ExceededCpu.to_reset());
    assert_eq!(first.head().await.unwrap_err(), exceeded);
    for other in others {
        let refused = StreamError::Reset(casemate_wire::RESET_REFUSED);
        assert_eq!(other.head().await.unwrap_err(), refused);
    }
    let (last, _) = worker.end().await;
    assert!(
        matches!(
            last,
            Some(FromWorker::Fatal {
                begun: [1, 0, 0, 0],
                ..
            })
        ),
        "{last:?}"
    );
}

#[tokio::test]
async fn cpu_time_that_cryptography_takes_on_its_own_thread() {
    let source = r#"export default {
        async fetch() {
            const key = await crypto.subtle.importKey("raw", new Uint8Array(8), "PBKDF2", false, ["deriveBits"]);
            const settings = { name: "PBKDF2", hash: "SHA-256", salt: new Uint8Array(8), iterations: 1e9 };
            await crypto.subtle.deriveBits(settings, key, 256);
        },
    };"#;
    let mut worker = tight(source).await;
    worker
        .ask(head("GET", "https://fn.test/"))
        .await
        .unwrap_err();
    let (last, status) = worker.end().await;
    assert!(
        matches!(
            last,
            Some(FromWorker::Fatal {
                failure: Failure::ExceededCpu,
                ..
            })
        ),
        "{last:?}"
    );
    assert_eq!(status, Some(80));
}

/// Asserts that the worker ends because of CPU time, without a request.
async fn ends_unasked(control: &Control<ToWorker, FromWorker>, child: &mut Child, source: &str) {
    let last = receive(control).await;
    let why = matches!(
        last,
        Some(FromWorker::Fatal {
            failure: Failure::ExceededCpu,
            ..
        })
    );
    assert!(why, "{source}: {last:?}");
    let status = child.wait().await.expect("a status");
    assert_eq!(status.code(), Some(80), "{source}");
}

#[tokio::test]
async fn cpu_time_that_belongs_to_no_request() {
    let sources = [
        "setInterval(() => { for (let i = 0; i < 1e6; i++); }, 1);",
        "const { port1, port2 } = new MessageChannel(); port1.onmessage = () => port1.postMessage(0); \
         port2.onmessage = () => { for (let i = 0; i < 1e6; i++); port2.postMessage(0); }; port1.postMessage(0);",
        "(async () => { while (true) await crypto.subtle.digest('SHA-256', new Uint8Array(1 << 16)); })();",
    ];
    for source in sources {
        let source = format!("{source} export default {{ fetch: () => new Response('fine') }};");
        let mut worker = tight(&source).await;
        ends_unasked(&worker.control, &mut worker.child, &source).await;
    }
}

#[tokio::test]
async fn cpu_time_that_cryptography_takes_while_loading() {
    let source = r#"
        const key = await crypto.subtle.importKey("raw", new Uint8Array(8), "PBKDF2", false, ["deriveBits"]);
        const settings = { name: "PBKDF2", hash: "SHA-256", salt: new Uint8Array(8), iterations: 1e9 };
        await crypto.subtle.deriveBits(settings, key, 256);
        export default { fetch() {} };"#;
    let (control, mut child) = spare().await;
    let archive = harness::archive(&[("main.js", source.as_bytes())]);
    let _channels = send_load(&control, load(), &archive).await;
    ends_unasked(&control, &mut child, source).await;
}

#[tokio::test]
async fn memory_in_arrays_strings_and_maps() {
    let sources = [
        "export default { fetch() { const all = []; while (true) all.push({ a: all.length }); } };",
        "export default { fetch() { const all = new Map(); for (let i = 0; ; i++) all.set(`key ${i}`, [i]); } };",
        "export default { fetch() { let s = 'x'; const all = []; \
         while (true) { s += 'y' + all.length; all.push(s.slice(1) + 'z', [...s]); } } };",
    ];
    for source in sources {
        let mut settings = load();
        settings.limits.cpu_time_ms = 20_000;
        settings.limits.wall_time_ms = 20_000;
        settings.limits.heap_mib = 32;
        let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
        worker
            .ask(head("GET", "https://fn.test/"))
            .await
            .unwrap_err();
        let (last, status) = worker.end().await;
        assert!(
            matches!(
                last,
                Some(FromWorker::Fatal {
                    failure: Failure::ExceededMemory,
                    ..
                })
            ),
            "{source}: {last:?}"
        );
        assert_eq!(status, Some(81), "{source}");
    }
}

#[tokio::test]
async fn memory_in_buffers_is_a_range_error_and_given_back() {
    let source = r#"export default {
        fetch() {
            const all = [];
            try {
                for (;;) all.push(new Uint8Array(1 << 20));
            } catch (error) {
                return new Response(`${error.name} ${all.length}`);
            }
        },
    };"#;
    let worker = tight(source).await;
    let first = worker.get("/").await.text().to_owned();
    let count: usize = first
        .strip_prefix("RangeError ")
        .expect(&first)
        .parse()
        .unwrap();
    assert!((16..=32).contains(&count), "{first}");
}

#[tokio::test]
async fn bodies_that_are_gone_leave_room_for_others() {
    static BODY: [u8; 64 * 1024] = [b'x'; 64 * 1024];
    let source =
        "export default { async fetch(r) { return new Response(await r.arrayBuffer()); } };";
    for heap_mib in [8, 16, 64] {
        let mut settings = load();
        settings.limits.heap_mib = heap_mib;
        let worker = function_with(&[("main.js", source.as_bytes())], settings).await;
        for _ in 0..600 {
            let head = head("POST", "https://fn.test/");
            let answer = worker.ask_with(head, Some(&BODY)).await;
            assert_eq!(answer.unwrap().body.len(), BODY.len(), "{heap_mib} MiB");
        }
    }
}

#[tokio::test]
async fn a_body_that_is_kept_in_memory_ends_the_worker_not_the_node() {
    let sources = [
        "const all = []; export default { async fetch(r) { for await (const c of r.body) all.push(c); } };",
        "export default { async fetch(r) { return new Response(await r.bytes()); } };",
    ];
    for source in sources {
        is_ended_for_its_body(source).await;
    }
}

async fn is_ended_for_its_body(source: &str) {
    let mut worker = function(source).await;
    let mut exchange = worker.open(head("POST", "https://fn.test/"), false);
    while exchange
        .body
        .send(Bytes::from(vec![0; 64 * 1024]))
        .await
        .is_ok()
    {}
    assert_eq!(
        exchange.response.head().await.expect_err("it is ended"),
        StreamError::Reset(Failure::ExceededMemory.to_reset())
    );
    assert!(matches!(
        worker.end().await,
        (
            Some(FromWorker::Fatal {
                failure: Failure::ExceededMemory,
                ..
            }),
            Some(81)
        )
    ));
}

#[tokio::test]
async fn wall_time_of_a_promise_that_nobody_resolves_spares_the_worker() {
    let mut settings = load();
    settings.limits.wall_time_ms = 300;
    let source = r#"export default {
        async fetch(request, env, ctx) {
            const { pathname } = new URL(request.url);
            if (pathname === "/never") await new Promise(() => {});
            if (pathname === "/half") {
                return new Response(new ReadableStream({ start: (c) => c.enqueue(new Uint8Array(3)) }));
            }
            if (pathname === "/later") ctx.waitUntil(new Promise(() => {}));
            return new Response("fine");
        },
    };"#;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let reset = StreamError::Reset(Failure::ExceededWall.to_reset());
    assert_eq!(
        worker
            .ask(head("GET", "https://fn.test/never"))
            .await
            .unwrap_err(),
        reset
    );
    let outcome = worker.outcome().await;
    assert_eq!(outcome.failure, Some(Failure::ExceededWall));
    assert!(
        (300_000..2_000_000).contains(&outcome.wall_us),
        "{}",
        outcome.wall_us
    );

    let exchange = worker.open(head("GET", "https://fn.test/half"), true);
    let (_, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(whole(&mut body).await.unwrap_err(), reset);
    assert_eq!(worker.outcome().await.failure, Some(Failure::ExceededWall));

    assert_eq!(worker.get("/later").await.text(), "fine");
    assert_eq!(
        worker.outcome().await.failure,
        None,
        "the caller had its answer"
    );
    assert!(worker.log().await.message.contains("longer than its limit"));
    assert_eq!(worker.get("/").await.text(), "fine");
}

#[tokio::test]
async fn requests_that_wait_for_promises_hold_no_slot_and_too_many_end_the_oldest() {
    let mut settings = load();
    settings.limits.concurrency = 1;
    let source = r#"export default {
        fetch(request, env, ctx) {
            ctx.waitUntil(new Promise(() => {}));
            return new Response("fine");
        },
    };"#;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    // The worker's limit of 128, one request beyond it, and the next one.
    for number in 0..130 {
        let name = number.to_string();
        let answer = worker.ask(tell_apart(head("GET", "https://fn.test/"), &name));
        assert_eq!(answer.await.expect(&name).text(), "fine");
    }
    let line = worker.log().await;
    assert_eq!(line.request.as_deref(), Some("0"));
    assert!(line.message.contains("too many"), "{}", line.message);
    let outcome = worker.outcome().await;
    assert_eq!(
        (outcome.request.as_str(), outcome.failure),
        ("0", None),
        "the caller had its answer"
    );
}

#[tokio::test]
async fn exceptions_before_and_in_the_middle_of_a_response() {
    let mut worker = function(
        r#"export default {
            async fetch(request) {
                switch (new URL(request.url).pathname) {
                    case "/throw": throw new RangeError("on purpose");
                    case "/value": throw { toString() { throw 1; }, get stack() { throw 2; } };
                    case "/undefined": return undefined;
                    case "/fake": return { status: 200, headers: new Headers() };
                    case "/error": return Response.error();
                    case "/used": { const r = new Response("x"); await r.text(); return r; }
                    case "/headers": return new Response(null, { headers: { x: "y".repeat(40000) } });
                    case "/stream": return new Response(new ReadableStream({ pull() { throw new Error("in the stream"); } }));
                    case "/text": return new Response(new ReadableStream({ pull(c) { c.enqueue("text"); } }));
                    case "/rejection": Promise.reject(new Error("nobody looks")); setTimeout(() => { throw new Error("timer"); }, 1);
                }
                await new Promise((go) => setTimeout(go, 20));
                return new Response("fine");
            },
        };"#,
    )
    .await;
    let reset = StreamError::Reset(Failure::Exception.to_reset());
    for (path, expected) in [
        (
            "throw",
            "RangeError: on purpose\n    at Object.fetch (file:///main.js:4:",
        ),
        ("value", ""),
        ("undefined", "must return a Response"),
        ("fake", "must return a Response"),
        ("error", "cannot be sent"),
        ("used", "already used"),
        ("headers", "too many headers"),
        ("stream", "in the stream"),
        ("text", "Uint8Array"),
    ] {
        let answer = worker
            .ask(head("GET", &format!("https://fn.test/{path}")))
            .await;
        assert_eq!(answer.unwrap_err(), reset, "{path}");
        let outcome = worker.outcome().await;
        assert_eq!(outcome.failure, Some(Failure::Exception), "{path}");
        assert!(
            outcome.message.contains(expected),
            "{path}: {}",
            outcome.message
        );
    }
    assert_eq!(worker.get("/rejection").await.text(), "fine");
    let lines = [worker.log().await.message, worker.log().await.message].join("\n");
    assert!(
        lines.contains("nobody looks") && lines.contains("timer"),
        "{lines}"
    );
}

#[tokio::test]
async fn a_small_and_a_large_heap_limit_both_hold() {
    let source = r#"export default {
        fetch(request) {
            const all = [];
            const mib = Number(new URL(request.url).pathname.slice(1));
            for (let i = 0; i < mib; i++) all.push(new Array(1 << 17).fill(0.5));
            return new Response(String(all.length));
        },
    };"#;
    let mut settings = load();
    settings.limits = limits();
    settings.limits.heap_mib = 192;
    let worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    assert_eq!(
        worker.get("/128").await.text(),
        "128",
        "over the spare's limit, under its own"
    );
    let mut settings = load();
    settings.limits.heap_mib = 32;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    assert_eq!(worker.get("/8").await.text(), "8");
    worker
        .ask(head("GET", "https://fn.test/128"))
        .await
        .unwrap_err();
    assert!(matches!(
        worker.end().await,
        (
            Some(FromWorker::Fatal {
                failure: Failure::ExceededMemory,
                ..
            }),
            Some(81)
        )
    ));
}
