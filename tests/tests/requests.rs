//! Requests on a whole node: bodies that a function reads late or never, and workers that end while
//! callers send more requests.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use casemate_tests::caller;
use casemate_tests::fleet::Fleet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::block_in_place;
use tokio::time::timeout;

use casemate_tests::fleet::SOON;

const HOST: &str = "calm.apps.demo.test";

const LIMITS: &str = "[limits]\ncpu_time_ms = 300\nheap_mib = 32\nconcurrency = 8\n\
    [perimeter]\nmax_body_bytes = 16777216\n";

const SOURCE: &str = r#"
let read = "nothing";
export default {
  async fetch(request, env, ctx) {
    const path = new URL(request.url).pathname;
    if (path === "/loop") for (;;);
    if (path === "/heap") { const all = []; for (;;) all.push(new Array(1000).fill({})); }
    if (path === "/late") {
      ctx.waitUntil((async () => {
        await new Promise((go) => setTimeout(go, 100));
        read = `${(await request.text()).length} read`;
      })());
      return new Response("accepted", { status: 202 });
    }
    if (path === "/read") return new Response(read);
    if (path === "/whole") return new Response(`${(await request.text()).length} read`);
    return new Response("plain");
  },
};"#;

/// Reads until the text contains `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let (mut text, mut piece) = (String::new(), [0; 4096]);
    while !text.contains(end) {
        let read = timeout(SOON, stream.read(&mut piece)).await;
        let count = read.expect("an answer in time").unwrap();
        assert!(count > 0, "closed before {end:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    text
}

/// The head of a POST request.
async fn post(fleet: &Fleet, path: &str, length: usize, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(fleet.node.gateway).await.unwrap();
    let head =
        format!("POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_late_and_workers_that_end_under_their_callers() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", LIMITS, SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let get = |path: &'static str| caller::get(fleet.node.gateway, HOST, path);
    assert_eq!(get("/").await.unwrap().text(), "plain");

    // Only the guilty request fails, however its worker ends and however many callers send requests
    // concurrently.
    for (path, code) in [("/loop", "exceeded_cpu"), ("/heap", "exceeded_memory")] {
        for _ in 0..3 {
            let guilty = get(path).await.unwrap();
            assert!(guilty.text().contains(code), "{path}: {}", guilty.text());
            let after: Vec<_> = (0..5).map(|_| tokio::spawn(get("/"))).collect();
            for answer in after {
                let answer = timeout(SOON, answer).await.unwrap().unwrap().unwrap();
                assert_eq!(answer.text(), "plain", "after {path}");
            }
        }
    }

    // A body that the function does not read does not cost the caller its answer.
    let mut caller = post(&fleet, "/", 8 << 20, "").await;
    caller.write_all(&vec![b'x'; 8 << 20]).await.unwrap();
    let answer = read_until(&mut caller, "plain").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    // The function reads the body after it has answered, and the caller sends it only then.
    let mut caller = post(&fleet, "/late", 2 << 20, "").await;
    let answer = read_until(&mut caller, "accepted").await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    caller.write_all(&vec![b'x'; 2 << 20]).await.unwrap();
    let whole = format!("{} read", 2 << 20);
    let is_read = async { while get("/read").await.unwrap().text() != whole {} };
    timeout(SOON, is_read).await.unwrap();

    // The gateway sends `100 Continue` when the function starts to read the body.
    let mut caller = post(&fleet, "/whole", 2 << 20, "Expect: 100-continue\r\n").await;
    read_until(&mut caller, "HTTP/1.1 100 Continue\r\n\r\n").await;
    caller.write_all(&vec![b'x'; 2 << 20]).await.unwrap();
    read_until(&mut caller, &whole).await;
    let mut caller = post(&fleet, "/", 2 << 20, "Expect: 100-continue\r\n").await;
    let answer = read_until(&mut caller, "plain").await;
    assert!(
        answer.starts_with("HTTP/1.1 200"),
        "`100 Continue` came before the function read: {answer}"
    );
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert!(fleet.node.stop().unwrap().success());
}
