//! Redirects of calls: what the next hop carries. The vault, which the test plays, judges every hop
//! afresh.

mod harness;

use casemate_channel::Incoming;
use harness::{CALLER, answer, call, function_with, load, whole};

/// The redirect target of a call to `https://api.stripe.test/v1/a`, the next hop's URL, and whether
/// the origin is the same.
const HOPS: &[(&str, &str, bool)] = &[
    ("https://other.test/x", "https://other.test/x", false),
    (
        "https://api.stripe.test:8443/x",
        "https://api.stripe.test:8443/x",
        false,
    ),
    (
        "http://api.stripe.test/x",
        "http://api.stripe.test/x",
        false,
    ),
    (
        "http://api.stripe.test:443/x",
        "http://api.stripe.test:443/x",
        false,
    ),
    (
        "https://eu.api.stripe.test/x",
        "https://eu.api.stripe.test/x",
        false,
    ),
    (
        "https://api.stripe.test./x",
        "https://api.stripe.test./x",
        false,
    ),
    ("//other.test/x", "https://other.test/x", false),
    (r"\\other.test/x", "https://other.test/x", false),
    (
        "https://api.stripe.test@other.test/x",
        "https://api.stripe.test@other.test/x",
        false,
    ),
    ("/admin", "https://api.stripe.test/admin", true),
    ("../admin", "https://api.stripe.test/admin", true),
    ("b", "https://api.stripe.test/v1/b", true),
    (
        "HTTPS://API.STRIPE.TEST:443/v1/b",
        "https://api.stripe.test/v1/b",
        true,
    ),
];

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

/// Checks a hop: its method, its body, and its fields.
async fn check(hop: &mut Incoming, status: u16, url: &str, same_origin: bool, binding: bool) {
    let case = format!("{status} {url}");
    assert_eq!(hop.head.target, url, "{case}");
    let is_kept = matches!(status, 307 | 308);
    let (method, body) = if is_kept { ("POST", "b") } else { ("GET", "") };
    assert_eq!(hop.head.method, method, "{case}");
    assert_eq!(
        whole(&mut hop.body).await.expect("a worker that goes on"),
        body,
        "{case}"
    );
    let fields = &hop.head.fields;
    let expected_binding = (same_origin && binding).then_some("stripe");
    assert_eq!(fields.text(":binding"), expected_binding, "{case}");
    for (name, value) in [("authorization", "x"), ("cookie", "y")] {
        assert_eq!(
            fields.text(name),
            same_origin.then_some(value),
            "{case} {name}"
        );
    }
    assert_eq!(fields.text("x-kept"), Some("z"), "{case}");
    assert_eq!(fields.text("content-type").is_some(), is_kept, "{case}");
}

#[tokio::test]
async fn a_capability_never_follows_to_another_origin_and_every_hop_is_asked_for() {
    const CAPABILITY: &str = r#"{"binding":"stripe","to":"/v1/a","method":"POST","body":"b",
        "headers":{"authorization":"x","cookie":"y","x-kept":"z"}}"#;
    const PLAIN: &str = r#"{"to":"https://api.stripe.test/v1/a","method":"POST","body":"b",
        "headers":{"authorization":"x","cookie":"y","x-kept":"z"}}"#;
    let mut worker = function_with(&[("main.js", CALLER.as_bytes())], load()).await;
    for (order, binding) in [(CAPABILITY, true), (PLAIN, false)] {
        for status in STATUSES {
            for (location, url, same_origin) in HOPS {
                let shown = call(&mut worker, order, async |vault| {
                    let first = vault.accept().await.unwrap();
                    assert_eq!(
                        first.head.fields.text(":binding"),
                        binding.then_some("stripe")
                    );
                    answer(first, status, &[("location", location)], "").await;
                    let mut second = vault.accept().await.unwrap();
                    check(&mut second, status, url, *same_origin, binding).await;
                    // The vault refuses what the release does not allow, even behind a redirect.
                    let refusal = [(":error", "egress_denied"), (":message", "not declared")];
                    answer(second, 0, &refusal, "").await;
                })
                .await;
                let expected =
                    r#"{"name":"TypeError","code":"egress_denied","message":"not declared"}"#;
                assert_eq!(shown, expected, "{status} {location}");
            }
        }
    }
}
