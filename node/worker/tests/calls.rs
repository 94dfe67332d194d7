//! Outgoing calls: `fetch`, capabilities, redirects, refusals, and a hostile vault.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod harness;

use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;

use bytes::Bytes;
use casemate_channel::{Acceptor, Incoming, RecvBody, SendBody, StreamError};
use casemate_wire::control::Failure;
use casemate_wire::control::worker::{Peer, ToWorker};
use casemate_wire::{Fields, ResponseHead};
use harness::{CALLER, Function, answer, call, function, function_with, head, load, whole};

#[tokio::test]
async fn a_plain_call_carries_the_request_and_no_binding() {
    let mut worker = function(CALLER).await;
    let order = r#"{"to":"https://api.test/a?b#c","method":"POST","headers":{"X-One":"1","Host":"evil",
        "Content-Length":"999"},"body":"sent"}"#;
    let shown = call(&mut worker, order, async |vault| {
        let mut incoming = vault.accept().await.unwrap();
        let fields = &incoming.head.fields;
        assert_eq!(
            (incoming.head.method.as_str(), incoming.head.target.as_str()),
            ("POST", "https://api.test/a?b")
        );
        assert_eq!(
            (fields.text(":request"), fields.text(":binding")),
            (Some("r7"), None)
        );
        assert_eq!(
            (
                fields.text("x-one"),
                fields.text("host"),
                fields.text("content-length")
            ),
            (Some("1"), None, Some("4"))
        );
        assert_eq!(whole(&mut incoming.body).await.unwrap(), "sent");
        answer(incoming, 203, &[("x-answer", "yes")], "body").await;
    })
    .await;
    assert_eq!(
        shown,
        r#"{"status":203,"url":"https://api.test/a?b","redirected":false,"header":"yes","text":"body"}"#
    );
    assert_eq!(worker.outcome().await.subrequests, 1);
}

#[tokio::test]
async fn calls_carry_the_hops_of_their_request_and_the_function_cannot_set_them() {
    let source = r#"export default {
        async fetch(request) {
            const seen = [...request.headers].filter(([name]) => name.includes("hops"));
            let forged;
            try { forged = new Headers([[":hops", "0"]]); } catch (error) { forged = error.name; }
            setTimeout(() => fetch("https://api.test/timer"), 1);
            await fetch("https://api.test/", { headers: { hops: "0" } });
            return Response.json([seen, forged]);
        },
    };"#;
    let mut worker = function(source).await;
    for hops in [Some("7"), Some("0"), None] {
        let mut asked = head("GET", "https://fn.test/");
        if let Some(hops) = hops {
            asked.fields.push(":hops", hops);
        }
        let exchange = worker.open(asked, true);
        let mut calls = Vec::new();
        for _ in 0..2 {
            calls.push(worker.vault.accept().await.unwrap());
        }
        for call in calls {
            assert_eq!(call.head.fields.text(":hops"), hops, "{}", call.head.target);
            answer(call, 200, &[], "").await;
        }
        let (_, mut body) = exchange.response.head().await.unwrap();
        assert_eq!(whole(&mut body).await.unwrap(), r#"[[],"TypeError"]"#);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_whole() {
    let source = r#"export default {
        async fetch(request) {
            try {
                const answer = await fetch("https://api.test/");
                console.log(request.url);
                if (!request.url.includes("/stream")) return new Response(await answer.text());
                for await (const _ of answer.body);
                return new Response("whole");
            } catch (error) {
                return new Response(`${error.name} ${error.code}`);
            }
        },
    };"#;
    let mut worker = function(source).await;
    for url in ["https://fn.test/whole", "https://fn.test/stream"] {
        let (vault, kill) = worker.rewire(Peer::Vault).await;
        worker.vault = casemate_channel::acceptor(vault).unwrap();
        worker.call_through().await;
        let exchange = worker.open(head("GET", url), true);
        drop(half_an_answer(&mut worker.vault).await);
        assert_eq!(said(exchange).await, "TypeError call_failed", "{url}");

        let exchange = worker.open(head("GET", &format!("{url}?dies")), true);
        let half = half_an_answer(&mut worker.vault).await;
        while !worker.log().await.message.ends_with("dies") {}
        kill.shutdown(Shutdown::Both).unwrap();
        assert_eq!(said(exchange).await, "TypeError vault_unavailable", "{url}");
        drop(half);
    }
}

/// Answers a call with the beginning of a body, and returns what keeps the body open.
async fn half_an_answer(vault: &mut Acceptor) -> (SendBody, RecvBody) {
    let incoming = vault.accept().await.unwrap();
    let head = ResponseHead {
        status: 200,
        fields: Fields::default(),
    };
    let mut sending = incoming.reply.send(&head, false);
    sending.send(Bytes::from_static(b"half")).await.unwrap();
    (sending, incoming.body)
}

#[tokio::test]
async fn a_capability_resolves_against_its_origin_and_names_itself() {
    let mut worker = function(CALLER).await;
    let shown = call(
        &mut worker,
        r#"{"binding":"stripe","to":"/v1/charges?x=1"}"#,
        async |vault| {
            let incoming = vault.accept().await.unwrap();
            assert_eq!(
                incoming.head.target,
                "https://api.stripe.test/v1/charges?x=1"
            );
            assert_eq!(incoming.head.fields.text(":binding"), Some("stripe"));
            answer(incoming, 200, &[], "").await;
        },
    )
    .await;
    assert!(shown.contains(r#""status":200"#), "{shown}");
}

#[tokio::test]
async fn a_redirect_leaves_the_capability_behind_at_another_origin() {
    let mut worker = function(CALLER).await;
    let order = r#"{"binding":"stripe","to":"/a","method":"POST","body":"b","headers":{"authorization":"x","cookie":"y","x-kept":"z"}}"#;
    let shown = call(&mut worker, order, async |vault| {
        let first = vault.accept().await.unwrap();
        answer(first, 307, &[("location", "/b")], "").await;
        let mut second = vault.accept().await.unwrap();
        assert_eq!(second.head.target, "https://api.stripe.test/b");
        assert_eq!(second.head.fields.text(":binding"), Some("stripe"));
        assert_eq!(
            (
                second.head.method.as_str(),
                whole(&mut second.body).await.unwrap()
            ),
            ("POST", "b".into())
        );
        answer(second, 303, &[("location", "https://other.test/c")], "gone").await;
        let third = vault.accept().await.unwrap();
        let fields = &third.head.fields;
        assert_eq!(
            (third.head.method.as_str(), third.head.target.as_str()),
            ("GET", "https://other.test/c")
        );
        assert_eq!(
            (
                fields.text(":binding"),
                fields.text("authorization"),
                fields.text("cookie")
            ),
            (None, None, None)
        );
        assert_eq!(
            (fields.text("x-kept"), fields.text("content-type")),
            (Some("z"), None)
        );
        // Back at the binding's origin, the capability is not restored.
        answer(third, 302, &[("location", "https://api.stripe.test/d")], "").await;
        let fourth = vault.accept().await.unwrap();
        assert_eq!(fourth.head.fields.text(":binding"), None);
        answer(fourth, 200, &[], "end").await;
    })
    .await;
    assert_eq!(
        shown,
        r#"{"status":200,"url":"https://api.stripe.test/d","redirected":true,"header":null,"text":"end"}"#
    );
    assert_eq!(worker.outcome().await.subrequests, 4);
}

#[tokio::test]
async fn redirects_can_be_seen_or_refused_and_have_an_end() {
    let mut worker = function(CALLER).await;
    let shown = call(
        &mut worker,
        r#"{"to":"https://a.test/","redirect":"manual"}"#,
        async |vault| {
            answer(
                vault.accept().await.unwrap(),
                302,
                &[("location", "/b")],
                "",
            )
            .await;
        },
    )
    .await;
    assert!(shown.contains(r#""status":302"#), "{shown}");
    let shown = call(
        &mut worker,
        r#"{"to":"https://a.test/","redirect":"error"}"#,
        async |vault| {
            answer(
                vault.accept().await.unwrap(),
                302,
                &[("location", "/b")],
                "",
            )
            .await;
        },
    )
    .await;
    assert!(shown.contains("TypeError"), "{shown}");

    let mut settings = load();
    settings.limits.subrequests = 100;
    let mut worker = function_with(&[("main.js", CALLER.as_bytes())], settings).await;
    let shown = call(&mut worker, r#"{"to":"https://a.test/"}"#, async |vault| {
        for _ in 0..21 {
            answer(
                vault.accept().await.unwrap(),
                302,
                &[("location", "/again")],
                "",
            )
            .await;
        }
    })
    .await;
    assert!(shown.contains("more than 20 redirects"), "{shown}");
}

#[tokio::test]
async fn a_refusal_can_be_caught_and_uncaught_it_is_no_exception() {
    let refusal = [
        (":error", "egress_denied"),
        (":message", "no rule allows a.test"),
    ];
    let mut worker = function(CALLER).await;
    let shown = call(&mut worker, r#"{"to":"https://a.test/"}"#, async |vault| {
        answer(vault.accept().await.unwrap(), 0, &refusal, "").await;
    })
    .await;
    assert_eq!(
        shown,
        r#"{"name":"TypeError","code":"egress_denied","message":"no rule allows a.test"}"#
    );
    assert_eq!(worker.outcome().await.failure, None);

    let mut worker =
        function("export default { async fetch(request) { return await fetch(request.url); } };")
            .await;
    let exchange = worker.open(head("GET", "https://a.test/"), true);
    answer(worker.vault.accept().await.unwrap(), 0, &refusal, "").await;
    assert_eq!(
        exchange.response.head().await.unwrap_err(),
        StreamError::Reset(Failure::EgressDenied.to_reset())
    );
    let outcome = worker.outcome().await;
    assert_eq!(outcome.failure, Some(Failure::EgressDenied));
    assert!(
        outcome.message.contains("no rule allows a.test") && outcome.message.contains("main.js:1"),
        "{}",
        outcome.message
    );
    // A failing upstream is an exception, not a denial: no change of the release would help.
    let unreachable = [(":error", "upstream_dns"), (":message", "no such name")];
    let mut worker =
        function("export default { async fetch(request) { return await fetch(request.url); } };")
            .await;
    let exchange = worker.open(head("GET", "https://a.test/"), true);
    answer(worker.vault.accept().await.unwrap(), 0, &unreachable, "").await;
    assert!(exchange.response.head().await.is_err());
    assert_eq!(worker.outcome().await.failure, Some(Failure::Exception));
    // A forged code does not count as a refusal.
    let mut worker = function("export default { fetch() { throw Object.assign(new TypeError('x'), { code: 'egress_denied' }); } };").await;
    worker
        .ask(head("GET", "https://a.test/"))
        .await
        .unwrap_err();
    assert_eq!(worker.outcome().await.failure, Some(Failure::Exception));
}

#[tokio::test]
async fn a_proxy_streams_both_ways_and_unpacks() {
    // gzip of "packed"
    const PACKED: &[u8] =
        b"\x1f\x8b\x08\0\0\0\0\0\x02\x03\x2b\x48\x4c\xce\x4e\x4d\x01\0\x10\xb4\xf6\x21\x06\0\0\0";
    let mut worker =
        function("export default { fetch: (request, env) => env.stripe.fetch(request) };").await;
    let mut exchange = worker.open(head("POST", "https://api.stripe.test/x"), false);
    exchange
        .body
        .send(Bytes::from_static(b"one"))
        .await
        .unwrap();
    let Incoming {
        head: asked,
        mut body,
        reply,
        ..
    } = worker.vault.accept().await.unwrap();
    assert_eq!(
        (asked.method.as_str(), asked.target.as_str()),
        ("POST", "https://api.stripe.test/x")
    );
    assert_eq!(body.next().await.unwrap().unwrap(), "one");
    exchange
        .body
        .send(Bytes::from_static(b"two"))
        .await
        .unwrap();
    exchange.body.finish();
    assert_eq!(whole(&mut body).await.unwrap(), "two");
    let fields = Fields::default()
        .with("content-encoding", "gzip")
        .with("x-answer", "1");
    let mut sending = reply.send(
        &ResponseHead {
            status: 200,
            fields,
        },
        false,
    );
    sending.send(Bytes::from_static(PACKED)).await.unwrap();
    sending.finish();
    let (answer, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(
        (
            answer.fields.text("x-answer"),
            answer.fields.text("content-encoding")
        ),
        (Some("1"), None)
    );
    assert_eq!(whole(&mut body).await.unwrap(), "packed");
}

#[tokio::test]
async fn calls_are_counted_aborted_and_end_with_their_request() {
    let mut settings = load();
    settings.limits.subrequests = 2;
    let source = r#"export default {
        async fetch(request) {
            const { pathname } = new URL(request.url);
            if (pathname === "/count") {
                const all = await Promise.allSettled([1, 2, 3].map((n) => fetch(`https://a.test/${n}`)));
                return Response.json(all.map((one) => one.reason?.code ?? one.value.status));
            }
            if (pathname === "/timeout") {
                const error = await fetch("https://a.test/", { signal: AbortSignal.timeout(50) }).catch((error) => error);
                return new Response(error.name);
            }
            fetch("https://a.test/left").catch(() => {});
            await fetch("https://a.test/awaited");
            return new Response("left");
        },
    };"#;
    let mut worker = function_with(&[("main.js", source.as_bytes())], settings).await;
    let exchange = worker.open(head("GET", "https://fn.test/count"), true);
    for _ in 0..2 {
        answer(worker.vault.accept().await.unwrap(), 200, &[], "").await;
    }
    let (_, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(
        whole(&mut body).await.unwrap(),
        r#"[200,200,"subrequest_limit"]"#
    );

    let exchange = worker.open(head("GET", "https://fn.test/timeout"), true);
    let aborted = async {
        let mut incoming = worker.vault.accept().await.unwrap();
        incoming.reply.cancelled().await;
        std::future::pending::<()>().await;
    };
    // On a busy machine the call may be aborted before it is sent.
    let answered = tokio::select! {
        () = aborted => unreachable!(),
        answered = exchange.response.head() => answered,
    };
    let (_, mut body) = answered.unwrap();
    assert_eq!(whole(&mut body).await.unwrap(), "TimeoutError");

    let exchange = worker.open(head("GET", "https://fn.test/left"), true);
    let mut incoming = worker.vault.accept().await.unwrap();
    if incoming.head.target == "https://a.test/" {
        // The aborted call, which arrived after its request had ended.
        incoming = worker.vault.accept().await.unwrap();
    }
    answer(worker.vault.accept().await.unwrap(), 200, &[], "").await;
    let (_, mut body) = exchange.response.head().await.unwrap();
    assert_eq!(whole(&mut body).await.unwrap(), "left");
    incoming.reply.cancelled().await;
}

#[tokio::test]
async fn a_vault_that_ends_or_breaks_the_protocol_costs_calls_not_the_worker() {
    let source = r#"export default {
        async fetch() {
            const error = await fetch("https://a.test/").then((r) => r.text()).catch((error) => error);
            return new Response(`${error.name} ${error.code}`);
        },
    };"#;
    // The vault breaks off in the middle of a body.
    let mut worker = function(source).await;
    let exchange = worker.open(head("GET", "https://fn.test/"), true);
    drop(half_an_answer(&mut worker.vault).await);
    assert_eq!(said(exchange).await, "TypeError call_failed");

    // An invalid status, and headers that HTTP does not allow.
    for status in [1, 99, 101, 600, u16::MAX] {
        let exchange = worker.open(head("GET", "https://fn.test/"), true);
        let incoming = worker.vault.accept().await.unwrap();
        let fields = Fields::default().with("x", Bytes::from_static(b"\xff\x01"));
        incoming.reply.send(&ResponseHead { status, fields }, true);
        let (answer, mut body) = exchange.response.head().await.unwrap();
        let _ = whole(&mut body).await.unwrap();
        assert_eq!(answer.status, 200, "{status}");
    }

    // The vault is gone.
    let Function {
        gateway,
        vault,
        control,
        child,
        logs,
        outcomes,
    } = worker;
    drop(vault);
    let (_, unused) = casemate_channel::pair().unwrap();
    let vault = casemate_channel::acceptor(unused).unwrap();
    let worker = Function {
        gateway,
        vault,
        control,
        child,
        logs,
        outcomes,
    };
    assert_eq!(worker.get("/").await.text(), "TypeError vault_unavailable");
    assert_eq!(worker.get("/").await.text(), "TypeError vault_unavailable");
}

/// Most calls that may fail before a worker has taken its new channel.
const MAX_TRIES: usize = 10_000;

impl Function {
    /// Plays a restarted vault or gateway: returns its end of a new channel, and a handle that ends
    /// the channel as a kill would.
    async fn rewire(&self, peer: Peer) -> (OwnedFd, UnixStream) {
        let (ours, theirs) = casemate_channel::pair().unwrap();
        let channel = ToWorker::Channel(peer);
        self.control
            .send(&channel, &[theirs.as_fd()])
            .await
            .unwrap();
        let kill = UnixStream::from(ours.try_clone().unwrap());
        (ours, kill)
    }

    /// Sends a request whose function makes a call, which the vault answers. The worker may get its
    /// new channel after the request: until then calls fail.
    async fn call_through(&mut self) {
        for _ in 0..MAX_TRIES {
            let call = self
                .gateway
                .open(head("GET", "https://fn.test/call"), true)
                .unwrap();
            let said = said(call);
            tokio::pin!(said);
            tokio::select! {
                text = &mut said => assert!(text.ends_with("vault_unavailable"), "{text}"),
                incoming = self.vault.accept() => {
                    answer(incoming.unwrap(), 200, &[], "through").await;
                    return assert!(said.await.ends_with("through"));
                }
            }
        }
        panic!("the worker did not take its new channel");
    }
}

async fn said(exchange: casemate_channel::Exchange) -> String {
    let (_, mut body) = exchange.response.head().await.unwrap();
    String::from_utf8(whole(&mut body).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn a_worker_survives_its_vault_and_its_gateway() {
    // The worker would lose its count if it were restarted.
    let source = r#"let requests = 0;
    export default {
        async fetch(request) {
            requests += 1;
            const { pathname } = new URL(request.url);
            if (pathname === "/still") await new Promise((done) => setTimeout(done, 100));
            if (pathname !== "/call") return new Response(`${requests}`);
            const error = await fetch("https://a.test/").then((r) => r.text()).catch((error) => error);
            return new Response(`${requests} ${error.code ?? error}`);
        },
    };"#;
    let mut worker = function(source).await;
    for death in 0..5 {
        let (vault, kill) = worker.rewire(Peer::Vault).await;
        worker.vault = casemate_channel::acceptor(vault).unwrap();
        worker.call_through().await;
        // A call is under way, and so is a request without a call.
        let call = worker.open(head("GET", "https://fn.test/call"), true);
        let incoming = worker.vault.accept().await.unwrap();
        let still = worker.open(head("GET", "https://fn.test/still"), true);
        kill.shutdown(Shutdown::Both).unwrap();
        let text = said(call).await;
        assert!(text.ends_with("vault_unavailable"), "{death}: {text}");
        drop(incoming);
        // Between the two vaults.
        let answer = worker.get("/call").await;
        assert!(answer.text().ends_with("vault_unavailable"), "{death}");
        assert_eq!(worker.get("/").await.status, 200, "{death}");
        let (still, _body) = still.response.head().await.unwrap();
        assert_eq!(
            still.status, 200,
            "{death}: a request without a call must succeed"
        );
    }
    let (vault, _kill) = worker.rewire(Peer::Vault).await;
    worker.vault = casemate_channel::acceptor(vault).unwrap();
    worker.call_through().await;
    let before: u32 = worker.get("/").await.text().parse().unwrap();
    // The gateway dies in the middle of a request.
    let lost = worker.open(head("GET", "https://fn.test/call"), true);
    let incoming = worker.vault.accept().await.unwrap();
    let (gone, _) = casemate_channel::pair().unwrap();
    worker.gateway = casemate_channel::opener(gone).unwrap();
    drop(lost);
    let (gateway, _kill) = worker.rewire(Peer::Gateway).await;
    worker.gateway = casemate_channel::opener(gateway).unwrap();
    assert_eq!(worker.get("/").await.text(), format!("{}", before + 2));
    drop(incoming);
}
