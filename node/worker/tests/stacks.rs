//! Stacks lead to the tenant's own files, through the bundle's source map and without the
//! platform's frames.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use casemate_wire::control::worker::FromWorker;
use harness::{Function, archive, function_with, head, load, receive, send_load, spare};

/// Line 2 maps to line 4 of `src/deep/thrower.ts`, line 4 to line 10 of `src/main.ts`, and so on.
const MAIN: &str = r#"function thrower(message) {
  throw new Error(message);
}
const ok = () => new Response("ok"); export default { async fetch({ url }) { switch (new URL(url).pathname) {
  case "/throw": return thrower("uncaught");
  case "/log": try { thrower("logged"); } catch (e) { console.error("caught", e); } return ok();
  case "/stack": try { thrower("stack"); } catch (e) { console.log("STACK " + e.stack); } return ok();
  case "/cause": try { try { thrower("inner"); } catch (cause) {
    throw new Error("outer", { cause }); } } catch (e) { console.error(e); } return ok();
  case "/timer": setTimeout(() => thrower("in a timer"), 1);
    await new Promise((go) => setTimeout(go, 20)); return ok();
  case "/reject": Promise.reject(new Error("nobody waits")); return ok();
  case "/fetch": try { await fetch("nowhere:"); } catch (e) { console.error(e); } return ok();
  case "/sites": Error.prepareStackTrace = (_, sites) =>
      sites.map((site) => `${site.getFileName()}:${site.getLineNumber()}`).join();
    try { await fetch("nowhere:"); } catch (e) { console.log(e.stack); } return ok();
} } };
//# sourceMappingURL=main.js.map
"#;
const MAP: &str = r#"{"version":3,"file":"main.js","sources":["../src/deep/thrower.ts","../src/main.ts"],
    "sourcesContent":["not kept","not kept"],"names":[],
    "mappings":";AAGE;;ACMF;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA;AACA"}"#;

async fn mapped(map: &str) -> Function {
    let files = [
        ("main.js", MAIN.as_bytes()),
        ("main.js.map", map.as_bytes()),
    ];
    function_with(&files, load()).await
}

/// The log line for `path`, or the outcome's message if nothing is logged.
async fn told(worker: &mut Function, path: &str) -> String {
    let answer = worker
        .ask(head("GET", &format!("https://fn.test/{path}")))
        .await;
    if answer.is_err() {
        return worker.outcome().await.message;
    }
    worker.log().await.message
}

#[tokio::test]
async fn stacks_name_the_files_and_lines_of_the_sources() {
    let mut worker = mapped(MAP).await;
    let thrower = "at thrower (file:///src/deep/thrower.ts:4:3)";
    for (path, expected) in [
        (
            "throw",
            &["Error: uncaught", thrower, "(file:///src/main.ts:11:1)"][..],
        ),
        (
            "log",
            &["caught Error: logged", thrower, "file:///src/main.ts:12:1"],
        ),
        (
            "stack",
            &["STACK Error: stack", thrower, "file:///src/main.ts:13:1"],
        ),
        (
            "cause",
            &[
                "Error: outer",
                "Error: inner",
                thrower,
                "file:///src/main.ts:14:1",
                "file:///src/main.ts:15:1",
            ],
        ),
        (
            "timer",
            &[
                "Uncaught Error: in a timer",
                thrower,
                "file:///src/main.ts:16:1",
            ],
        ),
        (
            "reject",
            &["Error: nobody waits", "file:///src/main.ts:18:1"],
        ),
        (
            "fetch",
            &[
                "fetch cannot reach nowhere: URLs",
                "file:///src/main.ts:19:1",
            ],
        ),
        ("sites", &["/src/main.ts:22"]),
    ] {
        let told = told(&mut worker, path).await;
        for expected in expected {
            assert!(
                told.contains(expected),
                "{path}: expected {expected} in {told}"
            );
        }
        for internal in ["ext:", "main.js"] {
            assert!(!told.contains(internal), "{path}: {internal} in {told}");
        }
    }
}

#[tokio::test]
async fn an_invalid_or_hostile_map_does_no_harm() {
    for map in [
        "",
        "{}",
        r#"{"version":3,"sources":["a"],"names":[],"mappings":"!!!"}"#,
        r#"{"version":3,"sources":[],"names":[],"mappings":";AAGE"}"#,
        r#"{"version":3,"sections":[{"offset":{"line":0,"column":0},"map":{"version":3,"mappings":""}}]}"#,
    ] {
        let mut worker = mapped(map).await;
        let told = told(&mut worker, "throw").await;
        assert!(
            told.contains("at thrower (file:///main.js:2:9)"),
            "{map}: {told}"
        );
        assert_eq!(told.matches("ext:").count(), 0);
    }
    // Sources may have any name, and lines any number.
    let lies = [
        r#"{"version":3,"sources":["https://other.test/a.ts"],"names":[],"mappings":";AAGE"}"#,
        r#"{"version":3,"sources":["../../../etc/passwd"],"names":[],"mappings":";AAGE"}"#,
        r#"{"version":3,"sources":[null],"names":[],"mappings":";AAGE"}"#,
        r#"{"version":3,"sources":["a\\n  at b"],"names":[],"mappings":";AA+/////DA"}"#,
    ];
    for map in lies {
        let mut worker = mapped(map).await;
        assert!(
            told(&mut worker, "throw").await.contains("Error: uncaught"),
            "{map}"
        );
        assert!(
            told(&mut worker, "log").await.contains("Error: logged"),
            "{map}"
        );
    }
}

#[tokio::test]
async fn an_error_at_load_is_reported_with_its_position_in_the_sources() {
    let main = "function thrower(message) {\n  throw new Error(message);\n}\nthrower('at load');\n//# sourceMappingURL=main.js.map\n";
    let files = [
        ("main.js", main.as_bytes()),
        ("main.js.map", MAP.as_bytes()),
    ];
    let (control, _child) = spare().await;
    let _channels = send_load(&control, load(), &archive(&files)).await;
    let Some(FromWorker::LoadFailed { message }) = receive(&control).await else {
        panic!("expected LoadFailed")
    };
    for expected in [
        "Error: at load",
        "at thrower (file:///src/deep/thrower.ts:4:3)",
        "file:///src/main.ts:10:1",
    ] {
        assert!(message.contains(expected), "{message}");
    }
}
