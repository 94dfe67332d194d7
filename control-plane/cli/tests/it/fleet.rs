//! Tests of nodes, listings and records.

use std::process::{Command, Stdio};

use casemate_trust::join::{JoinRequest, JoinToken};
use casemate_trust::key::{SealingKey, SigningKey};
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::Statement as _;
use serde_json::Value;

use super::fake::Fake;
use super::records::audit_chain;
use super::world::{Person, World, world};

pub(crate) fn ask(fake: &Fake, token: &str, seed: u8) {
    let token: JoinToken = token.parse().unwrap();
    let node = SigningKey::from_seed(&[seed; 32]).unwrap();
    let request = JoinRequest {
        fleet: token.fleet,
        node: token.node.clone(),
        pool: token.pool.clone(),
        node_key: node.public(),
        sealing_key: SealingKey::of_seed(&[seed; 32]).unwrap(),
    };
    fake.ask(request.sign(&[&token.key().unwrap(), &node]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_once_and_gets_the_key_of_each_epoch() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    let token = operator.json(&["node", "token", "edge-1"]);
    assert_eq!(token["control"], "control.test:7000");
    let token = token["token"].as_str().unwrap();
    let raw = operator.home.join("joins.json");
    assert!(
        !std::fs::read_to_string(raw)
            .unwrap()
            .contains(&token[5..40]),
        "the token itself is not kept"
    );
    assert!(!operator.run(&["node", "list"]).err.contains("asks to join"));
    ask(&fake, token, 8);
    let listed = operator.run(&["node", "list"]);
    let told = "asks to join pool main as node edge-1: `casemate node admit edge-1`";
    assert!(listed.err.contains(told), "{}", listed.err);
    let admitted = operator.json(&["node", "admit", "edge-1"]);
    assert_eq!(admitted["admitted"][0]["node"], "edge-1");
    assert_eq!(fake.given().grants.len(), 1);
    // The node is admitted already, and no machine asks.
    fake.given().joins.clear();
    operator
        .run(&["node", "admit", "edge-1", "--wait", "0"])
        .ended(73, "edge-1 is a member");
    // Another node uses the same token.
    fake.given().joins.clear();
    ask(&fake, token, 9);
    operator
        .run(&["node", "admit", "edge-1", "--wait", "1"])
        .ended(76, "token_used");
    assert_eq!(fake.given().admitted.len(), 1);
    // A rotation gives the new key to the remaining members.
    fake.given().joins.clear();
    ask(&fake, token, 8);
    let rotated = operator.json(&["pool", "rotate", "main"]);
    assert_eq!(
        (&rotated["epoch"], &rotated["grants"]),
        (&2.into(), &1.into())
    );
    operator.json(&["node", "revoke", "edge-1", "--yes"]);
    let rotated = operator.json(&["pool", "rotate", "main"]);
    assert_eq!(
        (&rotated["epoch"], &rotated["grants"]),
        (&3.into(), &0.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_nodes_are_revoked_again_at_a_restored_control_plane() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    for (seed, node) in [(8, "edge-1"), (9, "edge-2"), (10, "edge-3")] {
        let token = operator.json(&["node", "token", node]);
        ask(&fake, token["token"].as_str().unwrap(), seed);
        operator.json(&["node", "admit", node]);
    }
    let published = operator.json(&["fleet", "publish"]);
    assert_eq!(published["revoked_nodes"], serde_json::json!([]));
    let revoked = operator.json(&["node", "revoke", "edge-1", "--yes"]);
    assert_eq!(revoked["signed"], true);
    operator.json(&["token", "revoke", "t1", "--yes"]);
    let list = fake.given().revocations.clone().unwrap();
    let list = Revocations::read(&list).unwrap();
    let key = |seed| SigningKey::from_seed(&[seed; 32]).unwrap().public();
    assert_eq!(list.nodes, [key(8)]);
    assert!(list.exposes(&"main".parse().unwrap(), 1));
    // No tenant seals to a key that the revoked node knows.
    let put = ["secret", "put", "KEY", "--host", "api.test"];
    let ran = tokio::task::block_in_place(|| tenant.try_with(&put, "hunter2hunter2hunter2"));
    assert!(ran.err.contains("a revoked node knows"), "{}", ran.err);

    // The older copy has the revoked node and token, no list of revoked nodes, and not the last
    // node.
    {
        let mut given = fake.given();
        given.revocations = None;
        given.deleted.clear();
        given.admitted.pop();
    }
    let published = operator.json(&["fleet", "publish"]);
    assert_eq!(published["published"], 1);
    assert_eq!(published["revoked_nodes"], serde_json::json!(["edge-1"]));
    assert_eq!(published["revoked_tokens"], serde_json::json!(["t1"]));
    let lost = published["lost"].as_array().unwrap();
    let said = |text: &str| {
        lost.iter()
            .any(|line| line.as_str().unwrap().contains(text))
    };
    assert!(said("lost node edge-3"), "{lost:?}");
    assert!(said("tenant shop has no API token"), "{lost:?}");
    assert_eq!(lost.len(), 2, "{lost:?}");
    assert_eq!(fake.given().deleted, ["node edge-1", "token t1"]);
    let again = fake.given().revocations.clone().unwrap();
    assert_eq!(Revocations::read(&again).unwrap(), list);
    let ran = operator.run(&["fleet", "publish"]);
    assert!(
        ran.err.contains("restored from an older copy"),
        "{}",
        ran.err
    );
    // The last node is still a member for this home; the first stays revoked.
    let published = operator.json(&["fleet", "publish", "--readmit"]);
    assert_eq!(published["readmitted"], serde_json::json!(["edge-3"]));
    let nodes = operator.json(&["node", "list"]);
    let names = nodes.as_array().unwrap().iter().map(|node| &node["name"]);
    assert!(names.clone().any(|name| name == "edge-3"), "{nodes}");
    let again = operator.json(&["fleet", "publish", "--readmit"]);
    assert_eq!(again["readmitted"], serde_json::json!([]));
    // With the pool's next key the tenant can continue.
    operator.json(&["pool", "rotate", "main"]);
    let ran = tokio::task::block_in_place(|| tenant.try_with(&put, "hunter2hunter2hunter2"));
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn listings_are_json_and_tables() {
    let World {
        fake,
        operator,
        tenant,
        _dir,
        ..
    } = world().await;
    let token = operator.json(&["node", "token", "edge-1"]);
    ask(&fake, token["token"].as_str().unwrap(), 8);
    operator.json(&["node", "admit"]);
    assert_eq!(operator.json(&["node", "list"])[0]["name"], "edge-1");
    assert_eq!(operator.json(&["node", "show", "edge-1"])["pool"], "main");
    assert_eq!(operator.json(&["pool", "list"])[0]["epoch"], 1);
    assert_eq!(operator.json(&["tenant", "list"])[0]["name"], "shop");
    assert_eq!(
        operator.json(&["tenant", "show", "shop"])["hosts"][0],
        "*.shop.test"
    );
    assert_eq!(operator.json(&["token", "list"])[0]["id"], "t1");
    assert_eq!(
        operator.json(&["token", "revoke", "t1", "--yes"])["revoked"],
        "t1"
    );
    let made = operator.json(&[
        "token",
        "create",
        "--scope",
        "tenant",
        "--tenant",
        "shop",
        "--out",
        "token.txt",
    ]);
    assert!(made["token"].is_null());
    assert!(
        std::fs::read_to_string(operator.folder.join("token.txt"))
            .unwrap()
            .starts_with("casemate_")
    );
    let fingerprint = operator.json(&["fingerprint"]);
    assert!(
        fingerprint["login"]
            .as_str()
            .unwrap()
            .ends_with(fingerprint["fleet"].as_str().unwrap())
    );
    tables_show(&operator);
    assert_eq!(tenant.json(&["secret", "list"]), serde_json::json!([]));
    let status = tenant.run(&["status"]);
    assert!(
        status.out.contains("nothing is deployed yet"),
        "{}",
        status.out
    );
}

fn tables_show(operator: &Person) {
    for (args, text) in [
        (&["node", "list"][..], "edge-1  main  never seen"),
        (
            &["node", "show", "edge-1"],
            "pool       main (key epochs [1])",
        ),
        (&["pool", "list"], "POOL  EPOCH"),
        (&["tenant", "list"], "shop"),
        (&["tenant", "show", "shop"], "host       *.shop.test"),
        (&["token", "list"], "t1     operator  never    first"),
        (&["completions", "bash"], "-F _clap_complete_casemate"),
    ] {
        let ran = operator.run(args);
        assert!(
            ran.code == 0 && ran.out.contains(text),
            "{args:?}: {text}\n{}{}",
            ran.out,
            ran.err
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_audit_chain_is_found_over_pages() {
    let World {
        fake,
        operator,
        _dir,
        ..
    } = world().await;
    fake.given().audit = audit_chain(5, "c");
    assert_eq!(
        operator.json(&["audit", "--last", "2"])["records"][0]["seq"],
        4
    );
    let verified = operator.json(&["audit", "--verify", "--last", "3"]);
    assert_eq!(
        (
            &verified["verified"],
            verified["records"].as_array().unwrap().len()
        ),
        (&5.into(), 3)
    );
    // Over pages of two as well: the newest records, not the oldest of the newest.
    let newest = operator.json(&["audit", "--last", "3"]);
    let seqs: Vec<_> = newest["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| &record["seq"])
        .collect();
    assert_eq!(seqs, [3, 4, 5]);
    fake.given().audit[2].subject = "d".into();
    operator
        .run(&["audit", "--verify"])
        .ended(76, "broken at record 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_followed_and_cannot_move_the_cursor() {
    use std::io::{BufRead as _, BufReader};
    let World { tenant, _dir, .. } = world().await;
    let ran = tenant.run(&["logs", "--last", "1"]);
    assert!(
        ran.out.contains("edge-1/web two") && !ran.out.contains("one"),
        "{}",
        ran.out
    );
    let ran = tenant.run_in_colour(&["logs"]);
    assert!(ran.out.contains("[2Jcleared"), "{}", ran.out);
    assert!(!ran.out.contains("\u{1b}[2J"), "{}", ran.out);
    tenant
        .run(&["logs", "web", "--follow"])
        .ended(66, "no function web");
    tenant.deploys("web", "web.shop.test", "");
    let mut child = Command::new(env!("CARGO_BIN_EXE_casemate"))
        .arg("--home")
        .arg(&tenant.home)
        .args(["--json", "logs", "web", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let read = |line: std::io::Result<String>| {
        serde_json::from_str::<Value>(&line.unwrap()).unwrap()["seq"].clone()
    };
    // The stream ends after the third record and is opened again behind it: no record is shown
    // twice.
    let seen: Vec<Value> = tokio::task::block_in_place(|| lines.take(3).map(read).collect());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(seen, [1, 2, 3]);
}
