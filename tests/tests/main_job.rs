//! The main job with the real programs, and its state across kills and restarts.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod plaintext;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use casemate_tests::caller::{self, Answer};
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::upstream::Upstream;
use tokio::task::block_in_place;

/// Calls the upstream through its credential slot, and answers with all that the function can see.
const CALLER: &str = r#"
export default {
  async fetch(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/slow") {
      await new Promise((resolve) => setTimeout(resolve, 20000));
      return new Response("late");
    }
    if (url.pathname === "/env") return new Response(JSON.stringify([Object.keys(env), String(env.VERSION)]));
    const answer = await env.payments.fetch("/v1" + url.pathname, { method: "POST", body: "x", redirect: "manual" });
    return new Response(await answer.text(), { status: answer.status, headers: { "x-leak": answer.headers.get("x-your-key") ?? "" } });
  },
};
"#;

fn config(upstream: &Upstream, version: u32) -> String {
    format!(
        "[limits]\nwall_time_ms = 30000\n[vars]\nVERSION = \"{version}\"\n[[credential]]\n\
         binding = \"payments\"\nsecret = \"PAYMENTS_KEY\"\n\
         host = \"{UPSTREAM_HOST}:{}\"\nmethods = [\"POST\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"ca.pem\"\n",
        upstream.address.port()
    )
}

fn project(fleet: &Fleet, upstream: &Upstream, name: &str, version: u32) -> std::path::PathBuf {
    let project = fleet
        .small_project(name, &config(upstream, version), CALLER)
        .unwrap();
    std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
    project
}

async fn fleet() -> (Fleet, Upstream) {
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let fleet = block_in_place(Fleet::start).unwrap();
    (fleet, upstream)
}

fn host(name: &str) -> String {
    format!("{name}.apps.demo.test")
}

/// Sends requests until `is_wanted` accepts the answer.
async fn until(
    gateway: SocketAddr,
    name: &str,
    path: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> Answer {
    let end = Instant::now() + SOON;
    loop {
        let answer = caller::get(gateway, &host(name), path).await;
        match answer {
            Ok(answer) if wanted(&answer) => return answer,
            answer => assert!(Instant::now() < end, "{name}{path}: last {answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn deploy(fleet: &Fleet, project: &Path) {
    block_in_place(|| fleet.deploy(project)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_function_uses_a_key_that_nobody_else_ever_holds() {
    let (mut fleet, upstream) = fleet().await;
    let web = project(&fleet, &upstream, "web", 1);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    let answer = until(fleet.node.gateway, "web", "/charges", |answer| {
        answer.status == 200
    })
    .await;
    assert!(
        answer.text().contains("\"path\":\"/v1/charges\""),
        "{}",
        answer.text()
    );
    let seen = upstream.seen();
    assert_eq!(
        seen[0].header("authorization"),
        Some(format!("Bearer {UPSTREAM_KEY}").as_str())
    );
    let env = until(fleet.node.gateway, "web", "/env", |answer| {
        answer.status == 200
    })
    .await;
    assert_eq!(env.text(), "[[\"VERSION\",\"payments\"],\"1\"]");

    // The key is neither in the function's view nor in anything that was stored, logged or printed.
    let leak = until(fleet.node.gateway, "web", "/leak", |answer| {
        answer.status == 302
    })
    .await;
    assert_eq!(leak.headers["x-leak"], "[scrubbed]");
    block_in_place(|| fleet.node.stop()).unwrap();
    fleet.control.kill().unwrap();
    plaintext::must_not_be_below(&fleet.folder, UPSTREAM_KEY.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_serves_while_the_control_plane_is_gone_and_catches_up() {
    let (mut fleet, upstream) = fleet().await;
    let web = project(&fleet, &upstream, "web", 1);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    until(fleet.node.gateway, "web", "/charges", |answer| {
        answer.status == 200
    })
    .await;

    fleet.control.kill().unwrap();
    let refused = block_in_place(|| fleet.tenant.run_in(&web, &["deploy"], b"")).unwrap();
    assert_eq!(
        refused.code, 69,
        "a control plane that is away: {}",
        refused.stderr
    );
    for _ in 0..5 {
        assert_eq!(
            caller::get(fleet.node.gateway, &host("web"), "/charges")
                .await
                .unwrap()
                .status,
            200
        );
    }
    // The node restarts from its own store, and injects the key under the earlier lease.
    block_in_place(|| fleet.node.kill()).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    until(fleet.node.gateway, "web", "/charges", |answer| {
        answer.status == 200
    })
    .await;

    block_in_place(|| fleet.control.restart()).unwrap();
    let web = project(&fleet, &upstream, "web", 2);
    deploy(&fleet, &web);
    until(fleet.node.gateway, "web", "/env", |answer| {
        answer.text().contains("\"2\"")
    })
    .await;
}

/// Each deployment makes one new worker serve; the worker before it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_leaves_one_worker_the_one_that_was_made_ready() {
    let (fleet, upstream) = fleet().await;
    for version in 1..=5u32 {
        let web = project(&fleet, &upstream, "web", version);
        deploy(&fleet, &web);
        let wanted = format!("\"{version}\"");
        until(fleet.node.gateway, "web", "/env", |answer| {
            answer.text().contains(&wanted)
        })
        .await;
        let one = |status: &serde_json::Value| {
            let stages = &status["state"]["workers"];
            let count = |stage: &str| stages[stage].as_u64().unwrap_or(0);
            count("serving") == 1 && count("loading") + count("retired") == 0
        };
        block_in_place(|| fleet.node.wait_for("one worker", SOON, one)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_node_is_killed_twenty_times() {
    let (mut fleet, upstream) = fleet().await;
    let web = project(&fleet, &upstream, "web", 0);
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    for round in 1..=20u32 {
        // The kill comes during a push, a little later in each round.
        project(&fleet, &upstream, "web", round);
        let deploying = fleet
            .tenant
            .command(&web, &["deploy", "--wait", "0"])
            .unwrap()
            .stdin(std::process::Stdio::null())
            .spawn();
        let mut deploying = deploying.unwrap();
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 37)).await;
        block_in_place(|| fleet.node.kill()).unwrap();
        assert!(
            block_in_place(|| deploying.wait()).unwrap().success(),
            "round {round}"
        );
        block_in_place(|| fleet.node.restart()).unwrap();
        let wanted = format!("\"{round}\"");
        until(fleet.node.gateway, "web", "/env", |answer| {
            answer.text().contains(&wanted)
        })
        .await;
    }
    until(fleet.node.gateway, "web", "/charges", |answer| {
        answer.status == 200
    })
    .await;
    assert!(
        !fleet.node.folder().join("state/vault/set-aside").exists(),
        "nothing had to be set aside"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_in_the_middle_costs_its_caller_a_502_and_nobody_else_anything() {
    let (fleet, upstream) = fleet().await;
    let (web, other) = (
        project(&fleet, &upstream, "web", 1),
        project(&fleet, &upstream, "other", 1),
    );
    block_in_place(|| fleet.put_secret(&web)).unwrap();
    deploy(&fleet, &web);
    deploy(&fleet, &other);
    until(fleet.node.gateway, "web", "/env", |answer| {
        answer.status == 200
    })
    .await;
    until(fleet.node.gateway, "other", "/env", |answer| {
        answer.status == 200
    })
    .await;
    let gateway = fleet.node.gateway;
    let slow = tokio::spawn(async move { caller::get(gateway, &host("web"), "/slow").await });
    let neighbour = tokio::spawn(async move {
        for _ in 0..40 {
            assert_eq!(
                caller::get(gateway, &host("other"), "/env")
                    .await
                    .unwrap()
                    .status,
                200
            );
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = fleet.node.status().unwrap();
    let worker = status["workers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|worker| worker["function"] == "web")
        .unwrap();
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(worker["pid"].as_i64().unwrap()).unwrap())
            .unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let answer = slow.await.unwrap().unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    assert!(answer.text().contains("worker_lost"), "{}", answer.text());
    until(gateway, "web", "/env", |answer| answer.status == 200).await;
    neighbour.await.unwrap();
}

/// Size of a source text whose bundle, together with its source map, takes more than half of the
/// tenant's share of the disk in the test below.
const LARGE_BYTES: usize = 2_800_000;

fn large(fleet: &Fleet, name: &str) -> std::path::PathBuf {
    let text = format!("{name} ").repeat(LARGE_BYTES / (name.len() + 1));
    let code = format!(
        "const TEXT = \"{text}\";\nexport default {{ fetch() {{ return new Response(TEXT.slice(0, {})); }} }};\n",
        name.len()
    );
    fleet.small_project(name, "", &code).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_has_a_share_of_the_disk_and_is_told_when_it_is_used_up() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    block_in_place(|| fleet.node.kill()).unwrap();
    let file = fleet.node.folder().join("node.toml");
    let text = std::fs::read_to_string(&file).unwrap() + "[bundles]\ntenant_mib = 10\n";
    std::fs::write(&file, text).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    let gateway = fleet.node.gateway;
    let (first, second) = (large(&fleet, "first"), large(&fleet, "second"));
    deploy(&fleet, &first);
    let refused = block_in_place(|| fleet.tenant.run_in(&second, &["deploy"], b"")).unwrap();
    assert_ne!(refused.code, 0);
    for part in ["bundle_quota", "`second`", "10 MiB", "tenant_mib"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    let serves = |name: &'static str| move |answer: &Answer| answer.text() == name;
    until(gateway, "first", "/", serves("first")).await;
    // Another tenant is not affected.
    let modest = block_in_place(|| fleet.add_tenant("modest", &["modest.test"])).unwrap();
    let third = large(&fleet, "third");
    let head = "name = \"third\"\nmain = \"main.js\"\nhosts = [\"modest.test\"]\n";
    std::fs::write(third.join("casemate.toml"), head).unwrap();
    let deployed = block_in_place(|| modest.run_in(&third, &["deploy"], b"")).unwrap();
    assert_eq!(deployed.code, 0, "{}", deployed.stderr);
    // After a restart the node has the same bundles and still lacks the same one.
    block_in_place(|| fleet.node.kill()).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    until(gateway, "first", "/", serves("first")).await;
    let is_short = |status: &serde_json::Value| {
        let functions = status["state"]["functions"].as_array();
        let functions = functions.into_iter().flatten();
        let refused = functions.filter(|function| function["bundle_refused"] == "bundle_quota");
        refused
            .map(|function| function["function"].clone())
            .eq(["second"])
    };
    block_in_place(|| fleet.node.wait_for("the refusal", SOON, is_short)).unwrap();
    // The second bundle is fetched once there is space.
    let removed = ["remove", "first", "--yes"];
    let removed = block_in_place(|| fleet.tenant.run_in(&first, &removed, b"")).unwrap();
    assert_eq!(removed.code, 0, "{}", removed.stderr);
    until(gateway, "second", "/", serves("second")).await;
}
