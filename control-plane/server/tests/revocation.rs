//! The root's list of revoked nodes at the control plane: enforced at once, for ever, and sent to
//! the nodes that it names.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use casemate_api::fleet::FleetView;
use casemate_api::node::NewGrants;
use casemate_push::{NodeEnd, NodeEvent, StatementId, close};
use casemate_trust::dsse::Envelope;
use casemate_trust::key::SigningKey;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::Statement as _;
use support::fleet::{LATER, key, name};
use support::node::{admission, hello, joining, member};
use support::{Control, Fleet, Node};

fn list(fleet: &Fleet, version: u64, node: &SigningKey) -> Envelope {
    let mut list = Revocations {
        fleet: fleet.id,
        version,
        nodes: vec![],
        exposed: [].into(),
        issued: 1,
    };
    list.revoke(node.public(), &name("main"), Some(1));
    list.sign(&[&key(1)])
}

async fn post(control: &Control, envelope: &Envelope) -> support::client::Answer {
    let operator = control.operator();
    operator
        .ask("POST", "/v1/statements", envelope.to_bytes())
        .await
}

/// The list as the revoked node receives it, and the code with which its connection is closed.
async fn told(node: &mut Node) -> (Vec<u8>, u64) {
    let told = loop {
        match node.next().await.unwrap() {
            NodeEvent::Revoked { list } => break list,
            NodeEvent::Statement { id, .. } => node.end.ack(&id).unwrap(),
            _ => {}
        }
    };
    (told, node.close_code().await)
}

#[tokio::test]
async fn a_revoked_node_is_informed_disconnected_and_never_admitted_again() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut revoked = member(&control, &fleet, "edge-1", &key(20)).await;
    let mut other = member(&control, &fleet, "edge-2", &key(21)).await;
    let has = revoked.sync().await.has();
    other.sync().await;

    let signed = list(&fleet, 1, &key(20));
    post(&control, &signed).await.ok();
    let closed = (signed.to_bytes(), u64::from(close::REVOKED));
    assert_eq!(told(&mut revoked).await, closed);
    let pushed = other.sync().await.ids();
    assert_eq!(pushed, [StatementId::Revocations { version: 1 }]);
    let view: FleetView = control.client("").get("/v1/fleet").await.ok().json();
    assert_eq!(view.revocations, Some(signed.clone()));
    let operator = control.operator();
    operator.get("/v1/nodes/edge-1").await.refused(404);

    // With another name and token, but the same key.
    let token = fleet.join_token(&control, "edge-3", LATER).await;
    let mut again = joining(&control, &fleet, &token, &key(20)).await;
    assert_eq!(told(&mut again).await, closed);
    drop(other);
    control.stop().await;
    control.start().await;
    let mut hello = hello("edge-1", &key(20), fleet.id);
    hello.has = has;
    let mut again = Node::connect(&control, &key(20), NodeEnd::member(hello)).await;
    assert_eq!(told(&mut again).await, closed);
    let lower = post(&control, &list(&fleet, 1, &key(21))).await;
    assert_eq!(
        lower.refused(422),
        "revocations_same_version_other_digest",
        "remembered over the restart"
    );
}

#[tokio::test]
async fn a_revoked_key_is_given_no_grant_and_only_the_root_revokes() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let _member = member(&control, &fleet, "edge-1", &key(20)).await;
    let token = fleet.join_token(&control, "edge-2", LATER).await;
    let mut waiting = joining(&control, &fleet, &token, &key(21)).await;
    assert_eq!(waiting.next().await.unwrap(), NodeEvent::JoinPending);
    let late = admission(&control, &fleet, &key(21)).await;
    let forged = Envelope::parse(&list(&fleet, 1, &key(20)).to_bytes()).unwrap();
    let mut unsigned = Revocations::read(&forged).unwrap();
    unsigned.version = 7;
    let forged = post(&control, &unsigned.sign(&[&key(10)])).await;
    assert_eq!(forged.refused(422), "signature_threshold");
    let by_tenant = control.client(&fleet.tenant_token);
    let bytes = list(&fleet, 1, &key(20)).to_bytes();
    let refused = by_tenant.ask("POST", "/v1/statements", bytes).await;
    assert_eq!(refused.refused(403), "forbidden");

    post(&control, &list(&fleet, 1, &key(21))).await.ok();
    let operator = control.operator();
    let refused = operator.post("/v1/nodes/admit", &late).await;
    assert_eq!(refused.refused(422), "node_revoked");
    let grants = NewGrants {
        grants: vec![fleet.grant(&key(20))],
    };
    let path = "/v1/nodes/edge-1/grants";
    operator.post(path, &grants).await.ok();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test]
async fn a_restored_older_folder_does_not_readmit_a_revoked_node() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let has = node.sync().await.has();
    control.stop().await;
    let old = control.folder.path().join("old");
    copy(&control.state(), &old);
    control.start().await;
    let signed = list(&fleet, 1, &key(20));
    post(&control, &signed).await.ok();
    control.stop().await;
    std::fs::remove_dir_all(control.state()).unwrap();
    copy(&old, &control.state());
    control.start().await;

    // The older copy has the node among its members, and serves it, until the home uploads what it
    // remembers.
    let operator = control.operator();
    operator.get("/v1/nodes/edge-1").await.ok();
    let mut hello = hello("edge-1", &key(20), fleet.id);
    hello.has = has;
    let mut node = Node::connect(&control, &key(20), NodeEnd::member(hello)).await;
    node.sync().await;
    let view: FleetView = operator.get("/v1/fleet").await.ok().json();
    assert_eq!(
        view.revocations, None,
        "which shows the home what is missing"
    );
    post(&control, &signed).await.ok();
    let closed = (signed.to_bytes(), u64::from(close::REVOKED));
    assert_eq!(told(&mut node).await, closed);
    operator.get("/v1/nodes/edge-1").await.refused(404);
}
