//! The reach of hostile functions and of hostile peers, through the real program.

mod harness;

use casemate_channel::control::{pair as control_pair, sealed_memfd};
use casemate_wire::control::worker::{FromWorker, ToWorker};
use harness::{function, function_with, load, receive, spare};

#[tokio::test]
async fn code_from_strings_works_only_where_the_release_says_so() {
    let source = r#"export default {
        fetch() {
            const results = [() => eval("1 + 1"), () => new Function("return 2")(), () => (async () => {}).constructor("return 2")()];
            return new Response(results.map((run) => { try { return typeof run(); } catch (error) { return error.name; } }).join());
        },
    };"#;
    let worker = function(source).await;
    assert_eq!(
        worker.get("/").await.text(),
        "EvalError,EvalError,EvalError"
    );
    let mut settings = load();
    settings.dynamic_code = true;
    let worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    assert_eq!(worker.get("/").await.text(), "number,number,object");
}

#[tokio::test]
async fn every_clock_stands_still_while_code_runs() {
    let source = r#"export default {
        async fetch() {
            const clocks = [
                () => Date.now(), () => +new Date(), () => Date(), () => performance.now(), () => new Event("x").timeStamp,
                () => new Intl.DateTimeFormat("en", { second: "numeric", fractionalSecondDigits: 3 }).format(),
                () => new File([], "x").lastModified, () => performance.mark("x").startTime,
            ];
            const before = clocks.map((clock) => String(clock()));
            for (let i = 0; i < 3e6; i++) {}
            const after = clocks.map((clock) => String(clock()));
            await new Promise((go) => setTimeout(go, 1100));
            const later = clocks.slice(0, 4).map((clock) => String(clock()));
            const off = Date.now() - (performance.timeOrigin + performance.now());
            return Response.json([
                before.map((value, i) => value === after[i]), later.map((value, i) => value !== after[i]),
                Number.isInteger(performance.now()), Math.abs(off) < 5, Date.now() > 1.6e12,
            ]);
        },
    };"#;
    let worker = function(source).await;
    let expected =
        "[[true,true,true,true,true,true,true,true],[true,true,true,true],true,true,true]";
    assert_eq!(worker.get("/").await.text(), expected);
}

#[tokio::test]
async fn nothing_of_the_machinery_is_in_reach_and_the_platform_is_whole() {
    let source = r#"export default {
        async fetch() {
            const gone = ["Deno", "__bootstrap", "__casemate", "SharedArrayBuffer", "Atomics", "process", "require"];
            const there = `AbortController AbortSignal Event EventTarget CustomEvent ErrorEvent MessageChannel MessageEvent MessagePort
                PromiseRejectionEvent DOMException Headers Request Response FormData Blob File CompressionStream DecompressionStream
                ByteLengthQueuingStrategy CountQueuingStrategy ReadableByteStreamController ReadableStream ReadableStreamBYOBReader
                ReadableStreamBYOBRequest ReadableStreamDefaultController ReadableStreamDefaultReader TransformStream
                TransformStreamDefaultController WritableStream WritableStreamDefaultController WritableStreamDefaultWriter TextDecoder
                TextDecoderStream TextEncoder TextEncoderStream URL URLSearchParams URLPattern Crypto CryptoKey SubtleCrypto Performance
                WebAssembly globalThis atob btoa clearTimeout clearInterval navigator queueMicrotask reportError self setTimeout
                setInterval structuredClone fetch console crypto performance`.split(/\s+/);
            const wasm = "Global Instance Memory Module Table Tag Exception CompileError LinkError RuntimeError compile compileStreaming "
                + "instantiate instantiateStreaming JSTag validate";
            const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode("abc"));
            const pair = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
            const signed = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, pair.privateKey, digest);
            const { port1, port2 } = new MessageChannel();
            const message = new Promise((go) => port2.onmessage = (event) => go(event.data));
            port1.postMessage({ deep: [1] });
            return Response.json({
                found: gone.filter((name) => name in globalThis),
                missing: there.filter((name) => !(name in globalThis)).concat(wasm.split(" ").filter((name) => !(name in WebAssembly))),
                handlers: ["onerror", "onunhandledrejection", "onrejectionhandled"].every((name) => name in globalThis),
                agent: navigator.userAgent,
                digest: new Uint8Array(digest)[0], signed: signed.byteLength, uuid: crypto.randomUUID().length,
                message: await message, clone: structuredClone(new Map([[1, 2]])).get(1),
                pattern: new URLPattern({ pathname: "/:id" }).exec("https://a/7").pathname.groups.id,
                intl: new Intl.NumberFormat("de").format(1234.5), zone: new Date(0).getTimezoneOffset(),
                decoded: new TextDecoder("shift_jis").decode(new Uint8Array([0x82, 0xa0])),
                stack: (() => { try { null.x; } catch (error) { return error.stack.includes("main.js"); } })(),
            });
        },
    };"#;
    let worker = function(source).await;
    let shown = worker.get("/").await.text().to_owned();
    let expected = concat!(
        r#"{"found":[],"missing":[],"handlers":true,"agent":"Casemate","digest":186,"signed":64,"uuid":36,"#,
        r#""message":{"deep":[1]},"clone":2,"pattern":"7","intl":"1.234,5","zone":0,"decoded":"あ","stack":true}"#
    );
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn call_sites_tell_where_code_runs_and_hand_out_none_of_it() {
    // V8 exposes objects of frames up to the first in strict mode. deno_core compiles the
    // platform's scripts as strict, although they do not declare it; otherwise the function could
    // reach objects that our scripts trust. The platform's frames are hidden from the function
    // altogether. The spy is not a frame itself.
    let source = r#"export default {
        fetch() {
            Error.prepareStackTrace = (error, sites) => sites;
            const spy = {};
            const handed = (call) => {
                const seen = {};
                spy.toString = Error.captureStackTrace.bind(Error, seen);
                call();
                const objects = seen.stack.filter((site) => site.getThis() !== undefined || site.getFunction() !== undefined);
                return [seen.stack.some((site) => site.getFileName()?.startsWith("ext:")), objects.map(String)];
            };
            const calls = [() => btoa(spy), () => new Headers([["a", spy]]), () => new File([], spy), () => setTimeout(() => {}, spy),
                () => new Event(spy), () => new URL(spy, "https://a"), () => new Response("", { statusText: spy })];
            const own = { sloppy: new Function("spy", "return `${spy}`;") };
            return Response.json({ platform: calls.map(handed), own: handed(() => own.sloppy(spy))[1].length });
        },
    };"#;
    let mut settings = load();
    settings.dynamic_code = true;
    let worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let expected = format!(
        r#"{{"platform":[{}],"own":1}}"#,
        [r"[false,[]]"; 7].join(",")
    );
    assert_eq!(worker.get("/").await.text(), expected);
}

#[tokio::test]
async fn random_numbers_differ_between_workers_of_one_snapshot() {
    let source =
        "export default { fetch: () => new Response(Math.random() + crypto.randomUUID()) };";
    let (one, other) = (function(source).await, function(source).await);
    assert_ne!(one.get("/").await.text(), other.get("/").await.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_to_a_gateway_that_breaks_the_protocol_is_closed() {
    use std::os::fd::AsFd;
    let (control, mut child) = spare().await;
    let (nonsense, theirs) = casemate_channel::pair().unwrap();
    let (_vault, vault_end) = casemate_channel::pair().unwrap();
    let bundle = sealed_memfd(
        "bundle",
        &harness::archive(&[("main.js", b"export default { fetch() {} };")]),
    )
    .unwrap();
    let message = ToWorker::Load(Box::new(load()));
    control
        .send(
            &message,
            &[bundle.as_fd(), theirs.as_fd(), vault_end.as_fd()],
        )
        .await
        .unwrap();
    drop(theirs);
    assert!(matches!(
        receive(&control).await,
        Some(FromWorker::Loaded { .. })
    ));
    let mut stream = std::os::unix::net::UnixStream::from(nonsense);
    stream.set_nonblocking(false).unwrap();
    std::io::Write::write_all(&mut stream, &[0xff; 4096]).unwrap();
    // The worker closes the channel, and waits for one to another gateway.
    stream.set_read_timeout(Some(harness::PATIENCE)).unwrap();
    let mut rest = Vec::new();
    tokio::task::block_in_place(|| std::io::Read::read_to_end(&mut stream, &mut rest)).unwrap();
    assert_eq!(child.try_wait().unwrap(), None);
    drop(control);
    child.wait().await.unwrap();
}

#[tokio::test]
async fn a_load_with_the_wrong_descriptors_is_refused() {
    use std::os::fd::AsFd;
    let (control, mut child) = spare().await;
    let (one, _other) = control_pair().unwrap();
    let message = ToWorker::Load(Box::new(load()));
    control.send(&message, &[one.as_fd()]).await.unwrap();
    assert!(matches!(
        receive(&control).await,
        Some(FromWorker::LoadFailed { .. })
    ));
    assert_eq!(child.wait().await.unwrap().code(), Some(83));
    // A bundle that its sender could still change.
    let (control, mut child) = spare().await;
    let (a, b) = casemate_channel::pair().unwrap();
    control
        .send(&message, &[b.as_fd(), a.as_fd(), b.as_fd()])
        .await
        .unwrap();
    assert!(matches!(
        receive(&control).await,
        Some(FromWorker::LoadFailed { .. })
    ));
    assert_eq!(child.wait().await.unwrap().code(), Some(83));
}
