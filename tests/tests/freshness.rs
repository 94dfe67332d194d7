//! Freshness with the real programs: a tenant demands it and renews it; then the node stops
//! receiving the tenant's statements, and freshness runs out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::upstream::Upstream;
use serde_json::Value;
use tokio::task::block_in_place;

const CALLER: &str = r#"
export default {
  async fetch(request, env) {
    if (new URL(request.url).pathname === "/alive") return new Response("alive");
    try {
      const answer = await env.payments.fetch("/v1/charges", { method: "POST", body: "x" });
      return new Response("sent", { status: answer.status });
    } catch (error) {
      return new Response(error.code);
    }
  },
};
"#;

/// The shortest age that may be demanded, and a margin for a busy machine.
const STALE: Duration = Duration::from_secs(60 + 60);

struct World {
    fleet: Fleet,
    _upstream: Upstream,
    project: PathBuf,
}

impl World {
    async fn start() -> Self {
        let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
        let fleet = block_in_place(Fleet::start).unwrap();
        let config = format!(
            "[[credential]]\nbinding = \"payments\"\nsecret = \"PAYMENTS_KEY\"\n\
             host = \"{UPSTREAM_HOST}:{}\"\nmethods = [\"POST\"]\npaths = [\"/v1/*\"]\nslot = \"bearer\"\nca = \"ca.pem\"\n",
            upstream.address.port()
        );
        let project = fleet.small_project("web", &config, CALLER).unwrap();
        std::fs::write(project.join("ca.pem"), &upstream.ca_pem).unwrap();
        block_in_place(|| {
            fleet.put_secret(&project).unwrap();
            fleet.deploy(&project).unwrap();
        });
        Self {
            fleet,
            _upstream: upstream,
            project,
        }
    }

    fn tenant(&self, args: &[&str]) -> Value {
        block_in_place(|| self.fleet.tenant.json(&self.project, args)).unwrap()
    }

    async fn get(&self, path: &str) -> Option<String> {
        let answer = caller::get(self.fleet.node.gateway, "web.apps.demo.test", path).await;
        answer.ok().map(|answer| answer.text().to_string())
    }

    /// Calls the function until its outgoing call ends with `wanted`.
    async fn until(&self, wanted: &str, within: Duration) {
        let end = Instant::now() + within;
        loop {
            let got = self.get("/call").await;
            if got.as_deref() == Some(wanted) {
                return;
            }
            assert!(Instant::now() < end, "wanted {wanted}, last {got:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn node_is_fresh_until(&self, until: u64) {
        let says = |status: &Value| status["vault"]["tenants"][0]["freshness"]["until"] == until;
        block_in_place(|| {
            self.fleet
                .node
                .wait_for("the renewed freshness", SOON, says)
        })
        .unwrap();
    }

    /// Renews freshness until the new end is later than `before`; returns the new end.
    fn renew(&self, before: u64) -> u64 {
        let end = Instant::now() + SOON;
        loop {
            let renewed = self.tenant(&["freshness", "renew"]);
            let until = renewed["fresh_until"].as_u64().unwrap();
            if until > before {
                return until;
            }
            assert!(Instant::now() < end, "{renewed}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_stop_when_renewals_do_not_arrive() {
    let mut world = World::start().await;
    let key = world.tenant(&["freshness", "key", "--plain-keys"]);
    let key = key["public_key"].as_str().unwrap().to_owned();
    world.tenant(&["freshness", "require", "--max-age", "60s", "--key", &key]);
    let shown = world.tenant(&["freshness", "show"]);
    let deployed = shown["fresh_until"].as_u64().unwrap();
    world.node_is_fresh_until(deployed);
    world.until("sent", SOON).await;
    let renewed = world.renew(deployed);
    world.node_is_fresh_until(renewed);

    // The control plane sends nothing more. Its lease is still valid for a day.
    world.fleet.control.kill().unwrap();
    world.until("credential_stale", STALE).await;
    assert_eq!(world.get("/alive").await.as_deref(), Some("alive"));
    block_in_place(|| world.fleet.node.kill()).unwrap();
    block_in_place(|| world.fleet.node.restart()).unwrap();
    world.until("credential_stale", SOON).await;

    // The control plane is back and sends the tenant's freshness statement, which the node keeps
    // across a kill.
    block_in_place(|| world.fleet.control.restart()).unwrap();
    let renewed = world.renew(renewed);
    world.until("sent", SOON).await;
    world.fleet.control.kill().unwrap();
    block_in_place(|| world.fleet.node.kill()).unwrap();
    block_in_place(|| world.fleet.node.restart()).unwrap();
    world.node_is_fresh_until(renewed);
}
