//! Which of several concurrent requests of a function is charged for CPU time, and which one ends
//! when the time runs out.

mod harness;

use casemate_wire::control::Failure;
use casemate_wire::control::worker::FromWorker;
use harness::{Function, function, function_with, head, load, tell_apart};

/// CPU time that a process has used, in ms; also of a process that has ended and was not waited
/// for.
fn process_cpu_ms(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process of ours");
    // After the name in parentheses: user and system time are the 12th and 13th field, in ticks of
    // 10 ms.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    (ticks(11) + ticks(12)) * 10
}

/// Opens a request of this name whose answer the test does not wait for.
fn open(worker: &Function, name: &str) -> casemate_channel::Exchange {
    let request = head("GET", &format!("https://fn.test/{name}"));
    worker.open(tell_apart(request, name), true)
}

#[tokio::test]
async fn cryptography_of_four_requests_stops_at_the_limit_of_the_first() {
    let source = r#"
        const key = await crypto.subtle.importKey("raw", new Uint8Array(8), "PBKDF2", false, ["deriveBits"]);
        const settings = { name: "PBKDF2", hash: "SHA-256", salt: new Uint8Array(8), iterations: 1e9 };
        export default {
            async fetch() {
                await crypto.subtle.deriveBits(settings, key, 256);
            },
        };"#;
    let mut settings = load();
    settings.limits.cpu_time_ms = 400;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let pid = worker.child.id().expect("it runs");
    let before_ms = process_cpu_ms(pid);
    let _open: Vec<_> = ["first", "second", "third", "fourth"]
        .map(|name| open(&worker, name))
        .into();
    let outcome = worker.outcome().await;
    assert_eq!(
        (outcome.request.as_str(), outcome.failure),
        ("first", Some(Failure::ExceededCpu))
    );
    let fatal = harness::receive(&worker.control).await;
    assert!(matches!(fatal, Some(FromWorker::Fatal { .. })), "{fatal:?}");
    assert_eq!(
        harness::receive(&worker.control).await,
        None,
        "it has ended"
    );
    let used_ms = process_cpu_ms(pid) - before_ms;
    // One limit of 400 ms, and the time until it is noticed; four limits would be 1,600.
    assert!((390..1500).contains(&used_ms), "{used_ms} ms");
    assert_eq!(
        worker.child.wait().await.expect("a status").code(),
        Some(80)
    );
}

#[tokio::test]
async fn cryptography_is_charged_to_the_request_that_asked_for_it() {
    let source = r#"
        const key = await crypto.subtle.importKey("raw", new Uint8Array(8), "PBKDF2", false, ["deriveBits"]);
        const settings = { name: "PBKDF2", hash: "SHA-256", salt: new Uint8Array(8), iterations: 30000 };
        let done;
        const working = new Promise((go) => done = go);
        export default {
            async fetch(request) {
                if (request.url.endsWith("/idle")) {
                    await working;
                } else {
                    for (let i = 0; i < 10; i++) await crypto.subtle.deriveBits(settings, key, 256);
                    done();
                }
                return new Response("fine");
            },
        };"#;
    let mut worker = function(source).await;
    let idle = open(&worker, "idle");
    let busy = open(&worker, "busy");
    let _answers = (
        idle.response.head().await.expect("an answer"),
        busy.response.head().await.expect("an answer"),
    );
    let mut outcomes = [worker.outcome().await, worker.outcome().await];
    outcomes.sort_by(|a, b| a.request.cmp(&b.request));
    let [busy, idle] = outcomes;
    assert_eq!((busy.failure, idle.failure), (None, None));
    assert!(
        busy.cpu_us > 4 * idle.cpu_us,
        "{} us and {} us",
        busy.cpu_us,
        idle.cpu_us
    );
}

#[tokio::test]
async fn the_request_whose_code_overruns_is_blamed_and_not_its_neighbour() {
    let guilty = [
        // Inspecting an unhandled error runs code of the function.
        "Promise.reject(Object.defineProperty(new Error('x'), 'stack', { get() { for (;;); } }));",
        "addEventListener('unhandledrejection', () => { for (;;); }); Promise.reject(1);",
        // Code that continues after the platform's own asynchrony.
        "await crypto.subtle.digest('SHA-256', new Uint8Array(1)); for (;;);",
        "const { port1, port2 } = new MessageChannel(); port1.onmessage = () => { for (;;); }; port2.postMessage(0);",
        "AbortSignal.timeout(1).onabort = () => { for (;;); };",
        "WebAssembly.compile(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0])).then(() => { for (;;); });",
        "import('./spin.js');",
    ];
    for guilty in guilty {
        let source = format!(
            "export default {{ async fetch(request) {{
                if (request.url.endsWith('/neighbour')) for (let i = 0; i < 1e7; i++);
                if (request.url.endsWith('/guilty')) {{ {guilty} }}
                await new Promise(() => {{}});
            }} }};"
        );
        let mut settings = load();
        settings.limits.cpu_time_ms = 200;
        let files: [(&str, &[u8]); 2] = [("main.js", source.as_bytes()), ("spin.js", b"for (;;);")];
        let mut worker = function_with(&files, settings).await;
        // The neighbour has used more CPU time by then.
        let _open = ["neighbour", "guilty", "bystander"].map(|name| open(&worker, name));
        let outcome = worker.outcome().await;
        assert_eq!(
            (outcome.request.as_str(), outcome.failure),
            ("guilty", Some(Failure::ExceededCpu)),
            "{guilty}"
        );
        let (last, status) = worker.end().await;
        assert!(matches!(last, Some(FromWorker::Fatal { .. })), "{last:?}");
        assert_eq!(status, Some(80), "{guilty}");
    }
}

#[tokio::test]
async fn code_of_no_request_that_overruns_is_blamed_on_no_request() {
    // The listener belongs to the module, whichever request sends the message.
    let source = r#"
        const { port1, port2 } = new MessageChannel();
        port1.onmessage = () => { for (;;); };
        export default {
            async fetch(request) {
                if (request.url.endsWith("/neighbour")) for (let i = 0; i < 1e7; i++);
                else port2.postMessage(0);
                await new Promise(() => {});
            },
        };"#;
    let mut settings = load();
    settings.limits.cpu_time_ms = 200;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let _open = ["neighbour", "other"].map(|name| open(&worker, name));
    let first = harness::receive(&worker.control).await;
    assert!(
        matches!(
            first,
            Some(FromWorker::Fatal {
                failure: Failure::ExceededCpu,
                ..
            })
        ),
        "{first:?}"
    );
    assert_eq!(worker.end().await.1, Some(80));
}
