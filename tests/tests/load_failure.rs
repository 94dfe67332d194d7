//! A release that cannot be loaded: its tenant learns why, and the earlier release goes on serving,
//! also after a restart.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use casemate_tests::caller;
use casemate_tests::cli::Ran;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::programs::wait_until;
use tokio::task::block_in_place;

const HOST: &str = "calm.apps.demo.test";

fn answers(text: &str) -> String {
    format!("export default {{ fetch: () => new Response(\"{text}\") }};")
}

fn deploy(fleet: &Fleet, project: &Path, source: &str) -> Ran {
    std::fs::write(project.join("main.js"), source).unwrap();
    block_in_place(|| fleet.tenant.run_in(project, &["deploy"], b"")).unwrap()
}

/// Waits until the operator's list shows the node as healthy.
fn must_be_healthy(fleet: &Fleet) {
    let mut last = serde_json::Value::Null;
    let healthy = wait_until(SOON, || {
        let nodes = fleet.operator.json(&fleet.folder, &["node", "list"])?;
        last = nodes[0]["health"]["checks"].clone();
        let checks = last.as_array().cloned().unwrap_or_default();
        let is_healthy = !checks.is_empty() && checks.iter().all(|check| check["ok"] == true);
        Ok(is_healthy.then_some(()))
    });
    assert!(healthy.is_ok(), "{last}");
}

/// A release that could not be loaded fails again when the tenant deploys it again or rolls back to
/// it, and no list shows it as running.
fn must_fail_again(fleet: &Fleet, project: &Path) {
    let again = |args: &[&str]| fleet.tenant.run_in(project, args, b"").unwrap();
    let ran = again(&["deploy"]);
    assert_eq!(ran.code, 81, "{}{}", ran.stdout, ran.stderr);
    let told = "stopped while loading";
    assert!(ran.stderr.contains(told), "{}", ran.stderr);
    let status = fleet.tenant.json(project, &["status"]).unwrap();
    let functions = status["functions"].as_array().unwrap();
    let current = |name: &str| {
        let found = functions.iter().find(|one| one["name"] == name).unwrap();
        found["nodes_current"].as_u64().unwrap()
    };
    assert_eq!((current("calm"), current("other")), (0, 1));
    let shown = fleet.tenant.json(project, &["versions", "calm"]).unwrap();
    let versions = shown["functions"][0]["versions"].as_array().unwrap();
    let (broken, first) = (versions.first().unwrap(), versions.last().unwrap());
    assert_eq!(broken["nodes"], serde_json::json!([]));
    must_be_healthy(fleet);
    let back_to = |version: &serde_json::Value| {
        let release = version["release"].as_str().unwrap();
        again(&["rollback", "calm", "--to", release])
    };
    assert_eq!(back_to(first).code, 0);
    let ran = back_to(broken);
    assert_eq!(ran.code, 81, "{}{}", ran.stdout, ran.stderr);
}

async fn text(fleet: &Fleet) -> (u16, String) {
    let answer = caller::get(fleet.node.gateway, HOST, "/").await.unwrap();
    (answer.status.as_u16(), answer.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_does_not_load_fails_its_deployment_and_changes_nothing_for_callers() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", &answers("first")).unwrap();
    let served = (200, "first".to_owned());
    let ran = deploy(&fleet, &project, &answers("first"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(text(&fleet).await, served);
    for (source, words) in [
        (
            "function no() { throw new Error('no good'); }\nno();\nexport default {};",
            &["no good", "main.js"][..],
        ),
        (
            "for (;;) {}\nexport default {};",
            &["stopped while loading"][..],
        ),
    ] {
        let ran = deploy(&fleet, &project, source);
        assert_eq!(ran.code, 81, "{}", ran.stderr);
        for word in words {
            assert!(ran.stderr.contains(word), "{word} is not in {}", ran.stderr);
        }
        assert_eq!(text(&fleet).await, served);
    }
    // Another function of the tenant is not affected, and the broken release fails again.
    let other = fleet.small_project("other", "", &answers("other")).unwrap();
    block_in_place(|| fleet.deploy(&other)).unwrap();
    block_in_place(|| must_fail_again(&fleet, &project));
    assert_eq!(text(&fleet).await, served);
    // After a restart, the node tries the broken release once more, and serves the earlier one.
    block_in_place(|| fleet.node.kill()).unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    let tried = |status: &serde_json::Value| {
        let functions = status["state"]["functions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let is_tried =
            |one: &serde_json::Value| one["function"] == "calm" && !one["error"].is_null();
        functions.iter().any(is_tried)
    };
    block_in_place(|| {
        fleet
            .node
            .wait_for("the release was tried again", SOON, tried)
    })
    .unwrap();
    assert_eq!(text(&fleet).await, served);
    let ran = deploy(&fleet, &project, &answers("third"));
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(text(&fleet).await, (200, "third".to_owned()));
}
