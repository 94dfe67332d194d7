//! Requests and responses, `env`, the console and modules, through the real program in its sandbox.

mod harness;

use bytes::Bytes;
use casemate_channel::StreamError;
use casemate_wire::control::Failure;
use casemate_wire::control::worker::{FromWorker, LogLevel, ToWorker};
use harness::{
    Answer, archive, function, function_with, head, load, receive, send_load, spare, tell_apart,
    whole,
};

#[tokio::test]
async fn hello_with_headers_status_and_outcome() {
    let mut worker = function(
        r#"export default {
            fetch(request, env) {
                const url = new URL(request.url);
                return new Response(`${env.GREETING} ${url.searchParams.get("name")} ${request.method}`, {
                    status: 201,
                    headers: { "X-Seen": request.headers.get("x-one"), "set-cookie": "a=1", "connection": "close" },
                });
            },
        };"#,
    )
    .await;
    let mut head = head("GET", "https://fn.test/path?name=world");
    head.fields.push("x-one", "1, 2");
    let answer = worker.ask(head).await.unwrap();
    assert_eq!((answer.status, answer.text()), (201, "hello world GET"));
    assert_eq!(answer.fields.text("x-seen"), Some("1, 2"));
    assert_eq!(answer.fields.text("set-cookie"), Some("a=1"));
    assert_eq!(answer.fields.text("connection"), None);
    assert_eq!(
        answer.fields.text("content-type"),
        Some("text/plain;charset=UTF-8")
    );
    assert_eq!(answer.fields.text("content-length"), Some("15"));
    let outcome = worker.outcome().await;
    assert_eq!((outcome.request.as_str(), outcome.failure), ("r1", None));
    assert!(outcome.cpu_us > 0 && outcome.wall_us > 0);
}

#[tokio::test]
async fn a_body_can_be_read_once_as_a_whole_as_a_stream_or_through_a_clone() {
    let source = r#"export default {
        async fetch(request) {
            const used = [request.bodyUsed];
            const again = async () => {
                used.push(request.bodyUsed);
                try { await request.text(); } catch (error) { used.push(error.name); }
            };
            let text;
            switch (new URL(request.url).pathname) {
                case "/text": text = await request.text(); break;
                case "/bytes": text = new TextDecoder().decode(await request.bytes()); break;
                case "/json": text = (await request.json()).a; break;
                case "/form": text = (await request.formData()).get("a"); break;
                case "/stream": text = await new Response(request.body).text(); break;
                case "/clone": {
                    const other = request.clone();
                    text = `${await other.text()} ${await request.text()}`;
                    break;
                }
                case "/passed": text = await new Request(request).text(); break;
                case "/after": {
                    await request.text();
                    text = request.body.locked ? "locked" : "open";
                    break;
                }
                default: return new Response("not read");
            }
            await again();
            return new Response(`${text} ${used}`);
        },
    };"#;
    let mut worker = function(source).await;
    for (path, body, answer) in [
        ("/text", "a=1", "a=1 false,true,TypeError"),
        ("/bytes", "a=1", "a=1 false,true,TypeError"),
        ("/json", r#"{"a":"b"}"#, "b false,true,TypeError"),
        ("/form", "a=1", "1 false,true,TypeError"),
        ("/stream", "a=1", "a=1 false,true,TypeError"),
        ("/clone", "a=1", "a=1 a=1 false,true,TypeError"),
        ("/passed", "a=1", "a=1 false,true,TypeError"),
        ("/after", "a=1", "locked false,true,TypeError"),
        ("/none", "a=1", "not read"),
    ] {
        let mut head = head("POST", &format!("https://fn.test{path}"));
        head.fields
            .push("content-type", "application/x-www-form-urlencoded");
        let got = worker.ask_with(head, Some(body.as_bytes())).await;
        let outcome = worker.outcome().await;
        assert_eq!(
            got.as_ref().map(Answer::text),
            Ok(answer),
            "{path}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn every_kind_of_response_and_our_fields_stay_hidden() {
    let worker = function(
        r#"class App {
            #name = "app";
            async fetch(request) {
                const { pathname } = new URL(request.url);
                switch (pathname) {
                    case "/json": return Response.json({ name: this.#name });
                    case "/bytes": return new Response(new Uint8Array([0, 255, 1]));
                    case "/empty": return new Response(null, { status: 204 });
                    case "/fields": return new Response([...request.headers.keys()].join());
                    case "/form": {
                        const form = new FormData();
                        form.set("file", new File(["content"], "name.txt"));
                        return new Response(form);
                    }
                    case "/gzip": {
                        const zip = new Blob(["zipped"]).stream().pipeThrough(new CompressionStream("gzip"));
                        return new Response(zip.pipeThrough(new DecompressionStream("gzip")));
                    }
                    case "/clone": {
                        const made = new Request(request, { headers: { "x-new": "1" } });
                        return new Response(made.url + made.headers.get("x-new") + request.clone().method);
                    }
                    default: return new Response("none", { status: 404 });
                }
            }
        }
        export default new App();"#,
    )
    .await;
    let answer = worker.get("/json").await;
    assert_eq!(answer.text(), r#"{"name":"app"}"#);
    assert_eq!(answer.fields.text("content-type"), Some("application/json"));
    assert_eq!(
        worker.get("/bytes").await.body,
        Bytes::from_static(&[0, 255, 1])
    );
    assert_eq!(worker.get("/empty").await.status, 204);
    assert_eq!(worker.get("/fields").await.text(), "host");
    assert!(
        worker
            .get("/form")
            .await
            .text()
            .contains("filename=\"name.txt\"")
    );
    assert_eq!(worker.get("/gzip").await.text(), "zipped");
    assert_eq!(
        worker.get("/clone").await.text(),
        "https://fn.test/clone1GET"
    );
    assert_eq!(worker.get("/other").await.status, 404);
}

#[tokio::test]
async fn bodies_stream_both_ways_piece_by_piece() {
    let worker = function(
        r#"export default {
            async fetch(request) {
                if (request.method === "PUT") {
                    return new Response((await request.text()).toUpperCase());
                }
                return new Response(request.body.pipeThrough(new TransformStream({
                    transform(chunk, controller) {
                        controller.enqueue(chunk.map((byte) => byte + 1));
                    },
                })));
            },
        };"#,
    )
    .await;
    let whole_body = worker
        .ask_with(head("PUT", "https://fn.test/"), Some(b"whole"))
        .await
        .unwrap();
    assert_eq!(whole_body.text(), "WHOLE");

    let mut exchange = worker.open(head("POST", "https://fn.test/"), false);
    exchange
        .body
        .send(Bytes::from_static(b"abc"))
        .await
        .unwrap();
    let (answer, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(
        (answer.status, answer.fields.text("content-length")),
        (200, None)
    );
    assert_eq!(body.next().await.unwrap().unwrap(), "bcd");
    exchange
        .body
        .send(Bytes::from_static(b"xyz"))
        .await
        .unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "yz{");
    exchange.body.finish();
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn a_large_echo_is_held_back_by_a_slow_reader_and_arrives_whole() {
    const PIECES: usize = 64;
    const PIECE: usize = 64 * 1024;
    let worker =
        function("export default { fetch: (request) => new Response(request.body) };").await;
    let mut exchange = worker.open(head("POST", "https://fn.test/"), false);
    let sender = tokio::spawn(async move {
        for number in 0..PIECES {
            exchange
                .body
                .send(vec![number as u8; PIECE].into())
                .await
                .unwrap();
        }
        exchange.body.finish();
    });
    let (_, mut body) = exchange.response.head().await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(
        !sender.is_finished(),
        "4 MiB exceed credits and buffers: the body is collected in memory"
    );
    let all = whole(&mut body).await.unwrap();
    assert_eq!(all.len(), PIECES * PIECE);
    assert!(
        all.chunks(PIECE)
            .enumerate()
            .all(|(number, piece)| piece.iter().all(|byte| *byte == number as u8))
    );
}

#[tokio::test]
async fn a_caller_who_leaves_aborts_the_signal_and_cancels_the_stream() {
    let mut worker = function(
        r#"export default {
            async fetch(request, env, ctx) {
                request.signal.addEventListener("abort", () => {
                    console.log("aborted");
                    ctx.waitUntil(fetch("https://api.test/left"));
                });
                const body = new ReadableStream({
                    start(controller) { controller.enqueue(new TextEncoder().encode("first")); },
                    cancel() { console.log("cancelled"); },
                });
                return new Response(body);
            },
        };"#,
    )
    .await;
    let exchange = worker.open(head("GET", "https://fn.test/"), true);
    let (_, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(body.next().await.unwrap().unwrap(), "first");
    drop((body, exchange.body));
    let mut lines = vec![];
    for _ in 0..2 {
        let line = worker.log().await;
        assert_eq!(line.request.as_deref(), Some("r1"), "{}", line.message);
        lines.push(line.message);
    }
    lines.sort();
    assert_eq!(lines, ["aborted", "cancelled"]);
    // The listener is part of the request, so it may make calls.
    let left = worker.vault.accept().await.expect("a call");
    assert_eq!(left.head.fields.text(":request"), Some("r1"));
    harness::answer(left, 204, &[], "").await;
    let outcome = worker.outcome().await;
    assert_eq!((outcome.failure, outcome.subrequests), (None, 1));
}

#[tokio::test]
async fn requests_at_once_do_not_mix_and_too_many_are_sent_back() {
    let mut settings = load();
    settings.limits.concurrency = 2;
    let source = r#"export default {
        async fetch(request) {
            const name = new URL(request.url).pathname;
            console.log("begin", name);
            await new Promise((resolve) => setTimeout(resolve, name === "/a" ? 60 : 30));
            console.log("end", name);
            return new Response(name);
        },
    };"#;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let ask = |name: &str| {
        worker.ask(tell_apart(
            head("GET", &format!("https://fn.test/{name}")),
            name,
        ))
    };
    let (a, b, c) = tokio::join!(ask("a"), ask("b"), ask("c"));
    assert_eq!((a.unwrap().text(), b.unwrap().text()), ("/a", "/b"));
    assert_eq!(
        c.unwrap_err(),
        StreamError::Reset(Failure::Unavailable.to_reset())
    );
    for expected in [
        ("a", "begin /a"),
        ("b", "begin /b"),
        ("b", "end /b"),
        ("a", "end /a"),
    ] {
        let line = worker.log().await;
        assert_eq!(
            (line.request.as_deref(), line.message.as_str()),
            (Some(expected.0), expected.1)
        );
    }
}

#[tokio::test]
async fn wait_until_goes_on_after_the_response() {
    let mut worker = function(
        r#"export default {
            fetch(request, env, ctx) {
                ctx.waitUntil(new Promise((resolve) => setTimeout(() => { console.log("later"); resolve(); }, 30)));
                return new Response("now");
            },
        };"#,
    )
    .await;
    assert_eq!(worker.get("/").await.text(), "now");
    let line = worker.log().await;
    assert_eq!(
        (line.message.as_str(), line.request.as_deref()),
        ("later", Some("r1"))
    );
    assert!(
        worker.outcomes.is_empty(),
        "the request is over only when its promises are"
    );
    assert!(worker.outcome().await.wall_us >= 30_000);
}

#[tokio::test]
async fn console_levels_cuts_and_floods() {
    let mut worker = function(
        r#"export default {
            fetch() {
                console.debug("d"); console.info("i %d", 7, { a: 1 }); console.warn("w"); console.error(new Error("e").message);
                console.log("x".repeat(100000));
                for (let i = 0; i < 3000; i++) console.log(i);
                return new Response();
            },
        };"#,
    )
    .await;
    worker.get("/").await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let line = worker.log().await;
        seen.push((line.level, line.message));
    }
    let expected = [
        (LogLevel::Debug, "d"),
        (LogLevel::Info, "i 7 { a: 1 }"),
        (LogLevel::Warn, "w"),
        (LogLevel::Error, "e"),
    ];
    assert_eq!(seen, expected.map(|(level, text)| (level, text.to_owned())));
    assert!((16_000..=16_384).contains(&worker.log().await.message.len()));
    worker.get("/").await;
    let mut lines = 0;
    let dropped = loop {
        let dropped = worker.log().await.dropped;
        if dropped > 0 {
            break dropped;
        }
        lines += 1;
    };
    assert!(lines >= 990 && lines + dropped <= 6000, "{lines} {dropped}");
}

#[tokio::test]
async fn modules_and_assets_are_imported_by_their_kind() {
    // (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
    const ADD: &[u8] = b"\0asm\x01\0\0\0\x01\x07\x01\x60\x02\x7f\x7f\x01\x7f\
        \x03\x02\x01\0\x07\x07\x01\x03add\0\0\x0a\x09\x01\x07\0\x20\0\x20\x01\x6a\x0b";
    let main = br#"
        import add from "./lib/add.wasm";
        import settings from "./settings.json";
        import withType from "./settings.json" with { type: "json" };
        import text from "./text.txt";
        import data from "./data.bin";
        import { twice } from "./lib/twice.mjs";
        const later = await import("./lib/later.js");
        export default {
            async fetch() {
                const { exports } = await WebAssembly.instantiate(add);
                const again = await import("./lib/later.js");
                const empty = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]);
                const typed = (type) => new Response(empty, { headers: { "content-type": type } });
                const streamed = await WebAssembly.compileStreaming(typed("application/wasm"));
                const wrong = await WebAssembly.compileStreaming(typed("text/html")).catch((error) => error);
                return Response.json([
                    add instanceof WebAssembly.Module, exports.add(2, 3), settings.a, withType.a, text,
                    data instanceof ArrayBuffer && data.byteLength, twice(4), later.name, again === later, import.meta.url,
                    streamed instanceof WebAssembly.Module, wrong.name,
                ]);
            },
        };"#;
    let files: &[(&str, &[u8])] = &[
        ("main.js", main),
        ("lib/add.wasm", ADD),
        ("settings.json", br#"{"a":1}"#),
        ("text.txt", "grün".as_bytes()),
        ("data.bin", &[1, 2, 3]),
        ("lib/twice.mjs", b"export const twice = (n) => 2 * n;"),
        ("lib/later.js", b"export const name = 'later';"),
        ("main.js.map", b"{}"),
    ];
    let worker = function_with(files, load()).await;
    let expected = r#"[true,5,1,1,"grün",3,8,"later",true,"file:///main.js",true,"TypeError"]"#;
    assert_eq!(worker.get("/").await.text(), expected);
}

#[tokio::test]
async fn the_reason_of_a_failed_load_is_reported() {
    type Files<'a> = &'a [(&'a str, &'a [u8])];
    let cases: &[(Files<'_>, &str)] = &[
        (&[("main.js", b"export default {")], "SyntaxError"),
        (&[("main.js", b"throw new Error('at load');")], "at load"),
        (&[("main.js", b"export const x = 1;")], "export default"),
        (&[("main.js", b"import './gone.js';")], "not in the bundle"),
        (&[("main.js", b"import 'node:fs';")], "Node.js"),
        (
            &[("main.js", b"import 'ext:core/mod.js';")],
            "only modules of the bundle",
        ),
        (
            &[
                ("main.js", b"import m from './bad.wasm'; export default m;"),
                ("bad.wasm", b"none"),
            ],
            "bad.wasm",
        ),
        (&[("other.js", b"")], "main.js"),
        (&[("main.ts", b"")], "main.ts"),
        (&[("main.js", b"while (true) {}")], "its limit"),
        (&[("main.js", b"await new Promise(() => {});")], "await"),
    ];
    for (files, expected) in cases {
        let (control, mut child) = spare().await;
        let _channels = send_load(&control, load(), &archive(files)).await;
        let Some(FromWorker::LoadFailed { message }) = receive(&control).await else {
            panic!("{expected}: no LoadFailed")
        };
        assert!(
            message.contains(expected),
            "expected {expected:?} in {message:?}"
        );
        assert_eq!(receive(&control).await, None);
        assert_eq!(child.wait().await.unwrap().code(), Some(83), "{expected}");
    }
}

#[tokio::test]
async fn stop_lets_requests_in_flight_finish_and_accepts_no_new_ones() {
    let source = "export default { fetch: () => new Promise((go) => setTimeout(() => go(new Response('done')), 200)) };";
    let mut worker = function(source).await;
    let exchange = worker.open(head("GET", "https://fn.test/"), true);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    worker
        .control
        .send(&ToWorker::Stop { grace_ms: 5000 }, &[])
        .await
        .unwrap();
    let (answer, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(
        (answer.status, whole(&mut body).await.unwrap()),
        (200, Bytes::from("done"))
    );
    assert!(matches!(
        worker.end().await,
        (Some(FromWorker::Outcomes(_)), Some(0))
    ));
}

#[tokio::test]
async fn a_worker_whose_supervisor_is_gone_ends() {
    let (control, mut child) = spare().await;
    drop(control);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
    let worker = function("export default { fetch: () => new Response() };").await;
    let harness::Function {
        control, mut child, ..
    } = worker;
    drop(control);
    assert_eq!(child.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn cookies_that_came_in_crumbs_are_joined_as_cookies_are() {
    let mut worker = function(
        r#"export default {
            async fetch(request) {
                await fetch("https://api.test/", { headers: [["cookie", "a=1"], ["cookie", "b=2"]] });
                const { headers } = request;
                const answer = new Response(JSON.stringify([headers.get("cookie"), [...headers].length]));
                answer.headers.append("set-cookie", "x=1, y");
                answer.headers.append("set-cookie", "z=2");
                return answer;
            },
        };"#,
    )
    .await;
    let mut crumbs = head("GET", "https://fn.test/");
    for crumb in ["a=1", "b=2", "c=3"] {
        crumbs.fields.push("cookie", crumb);
    }
    let exchange = worker.open(crumbs, true);
    let call = worker.vault.accept().await.unwrap();
    let sent: Vec<_> = call
        .head
        .fields
        .iter()
        .filter(|(name, _)| *name == "cookie")
        .collect();
    assert_eq!(sent, [("cookie", &b"a=1; b=2"[..])]);
    harness::answer(call, 204, &[], "").await;
    let (answer, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(whole(&mut body).await.unwrap(), r#"["a=1; b=2; c=3",2]"#);
    let set = answer
        .fields
        .iter()
        .filter(|(name, _)| *name == "set-cookie");
    assert_eq!(
        set.map(|(_, value)| value).collect::<Vec<_>>(),
        [&b"x=1, y"[..], b"z=2"]
    );
}
