//! WebAssembly memories: none is shared, and they have limits. Hostile functions, through the real
//! program.

mod harness;

use casemate_wire::control::worker::FromWorker;
use casemate_wire::control::{Failure, WORKER_OVERHEAD_MIB};
use harness::{function_with, head, load};

/// A module that declares a shared memory of one page and exports it as `m`.
const SHARED: &[u8] = b"\0asm\x01\0\0\0\x05\x04\x01\x03\x01\x01\x07\x05\x01\x01m\x02\0";

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn no_way_leads_to_memory_that_is_shared() {
    let source = r#"
        import asset from "./shared.wasm";
        const HEAD = [0, 0x61, 0x73, 0x6d, 1, 0, 0, 0];
        const EXPORT = [7, 5, 1, 1, 0x6d, 2, 0];
        const module = (...sections) => new Uint8Array([...HEAD, ...sections]);
        const declared = {
            plain: module(5, 4, 1, 3, 1, 1, ...EXPORT),
            wide: module(5, 4, 1, 7, 1, 1, ...EXPORT),
            second: module(5, 6, 2, 0, 1, 3, 1, 1, 7, 5, 1, 1, 0x6d, 2, 1),
            unexported: module(5, 4, 1, 3, 1, 1),
        };
        const imported = module(2, 9, 1, 1, 0x61, 1, 0x62, 2, 3, 1, 1);
        const WAIT = module(1, 5, 1, 0x60, 0, 1, 0x7f, 3, 2, 1, 0, 5, 3, 1, 0, 1, 7, 5, 1, 1, 0x77, 0, 0,
            10, 14, 1, 12, 0, 0x41, 0, 0x41, 0, 0x42, 0x7f, 0xfe, 1, 2, 0, 0x0b);
        const { Memory, Module, Instance } = WebAssembly;
        const SETTINGS = { initial: 1, maximum: 1, shared: true };
        class Derived extends Memory {}
        const streamed = (bytes) => new Response(bytes, { headers: { "content-type": "application/wasm" } });
        const ways = {
            constructor: () => new Memory(SETTINGS).buffer,
            derived: () => new Derived(SETTINGS).buffer,
            reflected: () => Reflect.construct(Memory, [SETTINGS], Object).buffer,
            prototype: () => new Memory.prototype.constructor(SETTINGS).buffer,
            empty: () => new Memory({ initial: 0, maximum: 0, shared: 1 }).buffer,
            asset: () => new Instance(asset).exports.m.buffer,
            compiled: async () => new Instance(await WebAssembly.compile(declared.plain)).exports.m.buffer,
            instantiated: async () => (await WebAssembly.instantiate(declared.plain)).instance.exports.m.buffer,
            streamed: async () => (await WebAssembly.instantiateStreaming(streamed(declared.plain))).instance.exports.m.buffer,
            imported: () => new Instance(new Module(imported), { a: { b: new Memory({ initial: 1, maximum: 1 }) } }),
            cloned: () => structuredClone(new Memory(SETTINGS)),
            waiting: () => new Instance(new Module(WAIT)).exports.w(),
        };
        for (const name in declared) {
            ways[`declared ${name}`] = () => new Instance(new Module(declared[name])).exports.m?.buffer;
        }
        export default {
            async fetch() {
                const found = {};
                for (const name in ways) {
                    found[name] = await Promise.resolve().then(ways[name]).then(() => "made", (error) => error.name);
                }
                const { buffer } = new Memory({ initial: 1, maximum: 2 });
                const ofBuffer = buffer.constructor === ArrayBuffer;
                const globals = ["SharedArrayBuffer", "Atomics"].filter((name) => name in globalThis);
                return Response.json({ found, ofBuffer, globals });
            },
        };"#;
    let files: [(&str, &[u8]); 2] = [("main.js", source.as_bytes()), ("shared.wasm", SHARED)];
    let worker = function_with(&files, load()).await;
    let range_errors = [
        "constructor",
        "derived",
        "reflected",
        "prototype",
        "empty",
        "asset",
        "compiled",
        "instantiated",
        "streamed",
    ];
    let mut expected: Vec<(&str, &str)> = range_errors.map(|way| (way, "RangeError")).to_vec();
    expected.push(("imported", "LinkError"));
    expected.push(("cloned", "RangeError"));
    expected.push(("waiting", "RuntimeError"));
    for way in ["plain", "wide", "second", "unexported"] {
        expected.push((way, "RangeError"));
    }
    let found: Vec<String> = expected
        .iter()
        .map(|(way, error)| {
            let declared = ["plain", "wide", "second", "unexported"].contains(way);
            let prefix = if declared { "declared " } else { "" };
            format!(r#""{prefix}{way}":"{error}""#)
        })
        .collect();
    let expected = format!(
        r#"{{"found":{{{}}},"ofBuffer":true,"globals":[]}}"#,
        found.join(",")
    );
    assert_eq!(worker.get("/").await.text(), expected);
}

#[tokio::test]
async fn one_memory_is_at_most_as_large_as_the_heap_limit() {
    // 512 pages are 32 MiB. The module grows its own memory of one page by 511 pages, then by one
    // more.
    let source = r#"
        const grower = new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 6, 1, 0x60, 1, 0x7f, 1, 0x7f, 3, 2, 1, 0,
            5, 3, 1, 0, 1, 7, 5, 1, 1, 0x67, 0, 0, 10, 8, 1, 6, 0, 0x20, 0, 0x40, 0, 0x0b]);
        const large = new Uint8Array([0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 5, 4, 1, 0, 0x81, 4]);
        const tried = (task) => { try { return task(); } catch (error) { return error.name; } };
        export default {
            fetch() {
                const { Instance, Memory, Module } = WebAssembly;
                const { g } = new Instance(new Module(grower)).exports;
                const memory = new Memory({ initial: 512, maximum: 65536 });
                return Response.json([
                    new Uint8Array(memory.buffer).fill(1).length,
                    tried(() => memory.grow(1)), tried(() => new Memory({ initial: 513 }).buffer.byteLength),
                    tried(() => new Instance(new Module(large))), g(511), g(1),
                ]);
            },
        };"#;
    for heap_mib in [8, 32] {
        let mut settings = load();
        settings.limits.heap_mib = heap_mib;
        let worker = function_with(&[("main.js", source.as_bytes())], settings).await;
        let expected = r#"[33554432,"RangeError","RangeError","RangeError",1,-1]"#;
        assert_eq!(worker.get("/").await.text(), expected, "{heap_mib} MiB");
    }
}

#[tokio::test]
async fn all_memories_together_have_the_limit_of_the_worker() {
    const HEAP_MIB: u32 = 32;
    const STEP_MIB: u32 = 8;
    let source = r#"
        const memories = Array.from({ length: 20 }, () => new WebAssembly.Memory({ initial: 512, maximum: 512 }));
        let at = 0;
        export default {
            fetch() {
                const memory = memories[at >> 2];
                new Uint8Array(memory.buffer, (at & 3) * (8 << 20), 8 << 20).fill(1);
                at++;
                return new Response("filled");
            },
        };"#;
    let mut settings = load();
    settings.limits.heap_mib = HEAP_MIB;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let mut filled_mib = 0;
    while worker.ask(head("GET", "https://fn.test/")).await.is_ok() {
        filled_mib += STEP_MIB;
    }
    let ending = worker.end().await;
    let fatal = matches!(
        ending.0,
        Some(FromWorker::Fatal {
            failure: Failure::ExceededMemory,
            ..
        })
    );
    assert!(fatal && ending.1 == Some(81), "{ending:?}");
    // The watch checks once in 5 ms of CPU time, in which a few more steps may be made.
    let limit_mib = HEAP_MIB + WORKER_OVERHEAD_MIB;
    assert!(
        (HEAP_MIB * 3..=limit_mib + 4 * STEP_MIB).contains(&filled_mib),
        "{filled_mib} MiB of {limit_mib}"
    );
}
