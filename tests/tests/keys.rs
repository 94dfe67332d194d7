//! The keys of a serving fleet are replaced: first the root's, then the tenant's. Then the tenant
//! is removed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::time::Duration;

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use tokio::task::block_in_place;

const HOST: &str = "key.apps.demo.test";

fn write(project: &Path, text: &str) {
    let source = format!("export default {{ fetch: () => new Response(\"{text}\") }};\n");
    std::fs::write(project.join("main.js"), source).unwrap();
}

async fn answer(fleet: &Fleet) -> (u16, String) {
    let answer = caller::get(fleet.node.gateway, HOST, "/").await.unwrap();
    (answer.status.as_u16(), answer.text())
}

/// Deploys a function that answers with this text, and waits until callers get it.
async fn deploys(fleet: &Fleet, project: &Path, text: &str) {
    write(project, text);
    block_in_place(|| fleet.deploy(project)).unwrap();
    let serves = async {
        while answer(fleet).await.1 != text {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let came = tokio::time::timeout(SOON, serves).await;
    assert!(
        came.is_ok(),
        "expected {text:?}, got {:?}",
        answer(fleet).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn root_and_tenant_keys_are_replaced_while_the_node_serves() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("key", "", "").unwrap();
    deploys(&fleet, &project, "first").await;
    let folder = fleet.folder.clone();
    let operator = |args: &[&str]| block_in_place(|| fleet.operator.json(&folder, args)).unwrap();
    assert_eq!(operator(&["fleet", "rotate-root"])["root"], 2);
    assert_eq!(operator(&["fleet", "publish"])["published"], 4);
    let is_there = |status: &serde_json::Value| status["vault"]["root"] == 2;
    block_in_place(|| {
        fleet
            .node
            .wait_for("the node has the next root", SOON, is_there)
    })
    .unwrap();
    deploys(&fleet, &project, "under the next root").await;
    operator(&["tenant", "update", "shop", "--max-subrequests", "50"]);

    let tenant = |args: &[&str]| block_in_place(|| fleet.tenant.json(&project, args)).unwrap();
    assert_eq!(tenant(&["tenant", "rekey"])["version"], 3);
    tenant(&["renew"]);
    deploys(&fleet, &project, "with the next key").await;
    // A restarted control plane reads the re-signed statements.
    block_in_place(|| {
        fleet.control.kill().unwrap();
        fleet.control.restart().unwrap();
    });
    deploys(&fleet, &project, "after a restart").await;

    let removed = ["tenant", "remove", "shop", "--yes"];
    block_in_place(|| fleet.operator.json(&folder, &removed)).unwrap();
    let gone = async {
        while answer(&fleet).await.0 != 404 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, gone).await.unwrap();
    let ran = block_in_place(|| fleet.tenant.run_in(&project, &["renew"], b"")).unwrap();
    assert_eq!(ran.code, 77, "its token is gone: {}", ran.stderr);
}
