//! The drill of the operator's guide: the control plane loses its disk, and the backup of the day
//! before is restored.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::programs::wait_until;
use tokio::task::block_in_place;

const HOST: &str = "day.apps.demo.test";

fn write(project: &Path, day: &str) {
    let source = format!("export default {{ fetch: () => new Response(\"{day}\") }};\n");
    std::fs::write(project.join("main.js"), source).unwrap();
}

/// Waits until callers get the answer of this day.
async fn serves(fleet: &Fleet, expected: &str) {
    let answers = async || {
        let answer = caller::get(fleet.node.gateway, HOST, "/").await.unwrap();
        (answer.status, answer.text())
    };
    let awaited = async {
        while answers().await.1 != expected {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let came = tokio::time::timeout(SOON, awaited).await;
    assert!(
        came.is_ok(),
        "expected {expected:?}, got {:?}",
        answers().await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_of_yesterdays_backup_everybody_finds_the_way() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("day", "", "").unwrap();
    write(&project, "monday");
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let folder = fleet.folder.clone();
    let token = block_in_place(|| {
        fleet.operator.json(
            &folder,
            &["token", "create", "--scope", "tenant", "--tenant", "shop"],
        )
    });
    let token = token.unwrap();
    let backup = folder.join("backup");
    block_in_place(|| fleet.control.backup(&backup)).unwrap();

    // Only the nodes and the homes of tenant and operator know the changes after the backup.
    for day in ["tuesday", "wednesday", "thursday"] {
        write(&project, day);
        block_in_place(|| fleet.deploy(&project)).unwrap();
    }
    serves(&fleet, "thursday").await;
    let id = token["id"].as_str().unwrap().to_owned();
    block_in_place(|| {
        fleet
            .operator
            .ok(&folder, &["token", "revoke", &id, "--yes"], b"")
    })
    .unwrap();

    block_in_place(|| fleet.control.restore(&backup)).unwrap();
    serves(&fleet, "thursday").await;
    let published = block_in_place(|| fleet.operator.json(&folder, &["fleet", "publish"]));
    let published = published.unwrap();
    assert_eq!(published["revoked_tokens"], serde_json::json!([id]));
    assert_eq!(published["revoked_nodes"], serde_json::json!([]));
    block_in_place(|| {
        fleet
            .node
            .wait_for("the node is connected", SOON, |status| {
                status["connected"] == true
            })
    })
    .unwrap();

    // Roll back to Wednesday's release, whose bundle the restored control plane has never received.
    let ran = block_in_place(|| fleet.tenant.run_in(&project, &["rollback", "day"], b"")).unwrap();
    assert_eq!(ran.code, 0, "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains("restored from an older copy"),
        "{}",
        ran.stderr
    );
    serves(&fleet, "wednesday").await;
    write(&project, "friday");
    block_in_place(|| fleet.deploy(&project)).unwrap();
    serves(&fleet, "friday").await;
    let status = block_in_place(|| fleet.tenant.json(&project, &["status"])).unwrap();
    assert_eq!(status["manifest_version"], 6);
    let earlier = status["functions"][0]["fallbacks"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(earlier, 4, "each day's release is available: {status}");
    block_in_place(|| fleet.tenant.ok(&project, &["remove", "day", "--yes"], b"")).unwrap();
    let gone = || {
        let answered = tokio::runtime::Handle::current().block_on(caller::get(
            fleet.node.gateway,
            HOST,
            "/",
        ))?;
        Ok((answered.status == 404).then_some(()))
    };
    block_in_place(|| wait_until(SOON, gone)).unwrap();
}
