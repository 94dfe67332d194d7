//! `fetch` of URLs that stay within the isolate: data: and blob:.

mod harness;

use harness::{function, head};

#[tokio::test]
async fn data_and_blob_urls_are_read_without_a_call() {
    let source = r#"
        const show = async (input, init) => {
            try {
                const answer = await fetch(input, init);
                const bytes = [...new Uint8Array(await answer.arrayBuffer())].join();
                return [answer.status, answer.headers.get("content-type"), bytes, answer.url].join(" | ");
            } catch (error) {
                return `${error.name}: ${error.message}`;
            }
        };
        // `fetch` of a data: URL also works while the module is loaded, without a request.
        const atLoad = await show("data:,A");
        export default {
            async fetch(request, env) {
                const blob = URL.createObjectURL(new Blob(["blob"], { type: "text/x" }));
                const shown = {
                    atLoad,
                    plain: await show("data:,A%20%zz#fragment"),
                    base64: await show("data:image/png;base64,AAEC%2Fw=="),
                    spaced: await show("data:text/plain;charset=utf-8; base64, Q Q = ="),
                    parameters: await show("data:;charset=x,A"),
                    wrongType: await show("data:nothing,A"),
                    post: await show("data:,A", { method: "POST", body: "x" }),
                    head: await show("data:,A", { method: "HEAD" }),
                    noComma: await show("data:text/plain"),
                    noBase64: await show("data:;base64,!"),
                    blob: (await show(blob)).replace(blob, "BLOB"),
                    made: (await show(new Request(blob))).replace(blob, "BLOB"),
                    blobPost: await show(blob, { method: "POST", body: "x" }),
                    binding: await env.stripe.fetch("data:,A").catch((error) => error.message),
                    other: await show("file:///etc/passwd"),
                };
                const kept = new Request(blob);
                URL.revokeObjectURL(blob);
                shown.revoked = await show(blob);
                shown.kept = (await show(kept)).replace(blob, "BLOB");
                const wasm = await WebAssembly.compileStreaming(fetch("data:application/wasm;base64,AGFzbQEAAAA="));
                shown.wasm = wasm instanceof WebAssembly.Module;
                return Response.json(shown, { headers: { "x-lines": String(Object.keys(shown).length) } });
            },
        };"#;
    let mut worker = function(source).await;
    let answer = worker
        .ask(head("GET", "https://fn.test/"))
        .await
        .expect("an answer");
    let shown = answer
        .text()
        .trim_matches(['{', '}'])
        .replace("\",\"", "\"\n\"");
    let expected = r#""atLoad":"200 | text/plain;charset=US-ASCII | 65 | data:,A"
"plain":"200 | text/plain;charset=US-ASCII | 65,32,37,122,122 | data:,A%20%zz"
"base64":"200 | image/png | 0,1,2,255 | data:image/png;base64,AAEC%2Fw=="
"spaced":"200 | text/plain;charset=utf-8 | 65 | data:text/plain;charset=utf-8; base64, Q Q = ="
"parameters":"200 | text/plain;charset=x | 65 | data:;charset=x,A"
"wrongType":"200 | text/plain;charset=US-ASCII | 65 | data:nothing,A"
"post":"200 | text/plain;charset=US-ASCII | 65 | data:,A"
"head":"200 | text/plain;charset=US-ASCII |  | data:,A"
"noComma":"TypeError: fetch cannot read this data: URL: expected a comma before the data"
"noBase64":"TypeError: fetch cannot read this data: URL: its data are not base64"
"blob":"200 | text/x | 98,108,111,98 | BLOB"
"made":"200 | text/x | 98,108,111,98 | BLOB"
"blobPost":"TypeError: fetch reads blob: URLs with GET, not with POST"
"binding":"fetch cannot reach data: URLs"
"other":"TypeError: fetch cannot reach file: URLs"
"revoked":"TypeError: fetch cannot read this blob: URL: it was revoked, or belongs to another function"
"kept":"200 | text/x | 98,108,111,98 | BLOB"
"wasm":true"#;
    assert_eq!(shown, expected);
    assert_eq!(worker.outcome().await.subrequests, 0);
}
