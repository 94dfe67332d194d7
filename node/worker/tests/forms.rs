//! multipart/form-data in the spellings that clients send, and with damage.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use harness::{Answer, Function, function, head};

/// Shows the entries of a form, or why it is invalid.
const SHOW: &str = r#"
    const bytes = async (file) => [...new Uint8Array(await file.arrayBuffer())];
    const show = async (form) => Promise.all([...form].map(async ([name, value]) =>
        [name, value instanceof File ? [value.name, value.type, await bytes(value)] : value]));
    export default {
        async fetch(request) {
            if (request.method === "GET") {
                const form = new FormData();
                form.append("fi\u015do", "v\u00e4lue\r\nline");
                const content = new Uint8Array([0, 255, 13, 10, 45, 45, 1]);
                const file = new File([content], 'a"b\u65e5.bin', { type: "application/x" });
                form.append('na"me\r\n', file);
                form.append("empty", "");
                form.append("", "no name");
                form.append("\ufeffmark", "\ufeffvalue");
                const sent = new Request("http://x/", { method: "POST", body: form });
                const answered = new Response(form);
                return Response.json([await show(await sent.formData()), await show(await answered.formData())]);
            }
            try {
                return Response.json(await show(await request.formData()));
            } catch (error) {
                return new Response(`${error.name}: ${error.message}`);
            }
        },
    };"#;

async fn post(worker: &Function, content_type: &str, body: impl Into<Vec<u8>>) -> String {
    let mut request = head("POST", "https://fn.test/");
    request.fields.push("content-type", content_type);
    let body: &'static [u8] = body.into().leak();
    let answer: Answer = worker.ask_with(request, Some(body)).await.unwrap();
    answer.text().to_owned()
}

#[tokio::test]
async fn a_form_survives_a_round_trip() {
    let worker = function(SHOW).await;
    let entries = concat!(
        r#"[["fi\u015do","v\u00e4lue\r\nline"],"#,
        r#"["na\"me\r\n",["a\"b\u65e5.bin","application/x",[0,255,13,10,45,45,1]]],"#,
        r#"["empty",""],["","no name"],["\ufeffmark","\ufeffvalue"]]"#,
    );
    let shown = worker.get("/").await;
    let plain = |text: &str| -> String {
        // JSON writes letters as they are.
        text.replace(r"\u015d", "\u{15d}")
            .replace(r"\u00e4", "\u{e4}")
            .replace(r"\u65e5", "\u{65e5}")
            .replace(r"\ufeff", "\u{feff}")
    };
    assert_eq!(shown.text(), plain(&format!("[{entries},{entries}]")));
}

#[tokio::test]
async fn forms_are_read_in_every_spelling() {
    let worker = function(SHOW).await;
    let form = |part: &str| format!("--b\r\n{part}\r\n--b--\r\n");
    let disposition =
        |rest: &str| form(&format!("Content-Disposition: form-data; {rest}\r\n\r\nv"));
    for (content_type, body, expected) in [
        (
            "multipart/form-data; boundary=b",
            disposition("name=n"),
            r#"[["n","v"]]"#,
        ),
        (
            "multipart/form-data; boundary=\"b\"",
            disposition("name=\"n\""),
            r#"[["n","v"]]"#,
        ),
        (
            "Multipart/Form-Data; charset=utf-8; Boundary=b",
            disposition("Name = \"n\""),
            r#"[["n","v"]]"#,
        ),
        // The value ends at the first quote.
        (
            "multipart/form-data; boundary=b",
            disposition("name=\"a\\\"; x=\"1\""),
            r#"[["a\\","v"]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            disposition("name=\"a;b=c\"; other=1"),
            r#"[["a;b=c","v"]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            disposition("name=\"%22%0d%0A%41\""),
            r#"[["\"\r\n%41","v"]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            disposition("name=\"f\"; filename=\"x.txt\"; filename*=UTF-8''y.txt"),
            r#"[["f",["x.txt","application/octet-stream",[118]]]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            form(
                "content-type: text/plain\r\ncontent-disposition: form-data; name=\"f\"; filename=\"\"\r\n\r\nv",
            ),
            r#"[["f",["","text/plain",[118]]]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            format!("preamble\r\n{}epilogue", disposition("name=n")),
            r#"[["n","v"]]"#,
        ),
        (
            "multipart/form-data; boundary=b",
            "--b \t\r\nContent-Disposition: form-data; name=n\r\n\r\n--x\r\n--bc\r\n--b-- ".into(),
            r#"[["n","--x\r\n--bc"]]"#,
        ),
        ("multipart/form-data; boundary=b", "--b--".into(), "[]"),
        (
            "application/x-www-form-urlencoded",
            "a=1&b=%22".into(),
            r#"[["a","1"],["b","\""]]"#,
        ),
    ] {
        assert_eq!(
            post(&worker, content_type, body.clone()).await,
            expected,
            "{body:?}"
        );
    }
}

#[tokio::test]
async fn an_incomplete_form_is_an_error() {
    let worker = function(SHOW).await;
    let content_type = "multipart/form-data; boundary=b";
    let whole = "--b\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\nvalue\r\n--b\r\n\
        Content-Disposition: form-data; name=\"m\"; filename=\"f\"\r\n\r\n\r\n--b--";
    assert_eq!(
        post(&worker, content_type, whole).await,
        r#"[["n","value"],["m",["f","application/octet-stream",[]]]]"#
    );
    // Wherever the form is cut off, its end is missing.
    for length in (0..whole.len()).step_by(3).chain([whole.len() - 1]) {
        let shown = post(&worker, content_type, &whole.as_bytes()[..length]).await;
        assert!(shown.starts_with("TypeError: "), "{length}: {shown}");
    }
    let many = "x: y\r\n".repeat(200);
    let long = "x".repeat(20_000);
    for body in [
        "--b\r\nContent-Disposition: form-data; name=\"n\r\n\r\nv\r\n--b--".to_owned(),
        "--b\r\nContent-Disposition: attachment; name=n\r\n\r\nv\r\n--b--".to_owned(),
        "--b\r\nContent-Disposition: form-data\r\n\r\nv\r\n--b--".to_owned(),
        "--b\r\nX: y\r\n\r\nv\r\n--b--".to_owned(),
        format!("--b\r\n{many}Content-Disposition: form-data; name=n\r\n\r\nv\r\n--b--"),
        format!("--b\r\nX: {long}\r\nContent-Disposition: form-data; name=n\r\n\r\nv\r\n--b--"),
        "no form".to_owned(),
    ] {
        let shown = post(&worker, content_type, body.clone()).await;
        assert!(
            shown.starts_with("TypeError: the body is not the form"),
            "{body}: {shown}"
        );
    }
    let shown = post(&worker, "multipart/form-data", whole).await;
    assert!(shown.contains("boundary"), "{shown}");
    let shown = post(&worker, "text/plain", "x").await;
    assert!(shown.starts_with("TypeError: "), "{shown}");
}
