//! Nodes over real QUIC: joining, being served, reconnecting, being revoked.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

#[path = "nodes/keys.rs"]
mod keys;
mod support;

use casemate_api::node::{JoinList, NewGrants, NodeList, NodeView};
use casemate_api::tenant::TenantStatus;
use casemate_push::{Has, NodeEnd, NodeEvent, StatementId, VERSIONS, close};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::join::JoinToken;
use casemate_trust::lease;
use casemate_trust::statement::{KeySet, OnlineKey, Statement as _, Tenant};
use quinn::ConnectionError;
use support::fleet::{LATER, key, name, tenant_path};
use support::node::{admission, connect, hello, joining, member, quic_config, serving};
use support::{Client, Control, Fleet, Node, SOON, eventually};

#[tokio::test]
async fn a_node_joins_and_is_served_on_the_same_connection() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let tenant = control.client(&fleet.tenant_token);
    fleet.deploy(&tenant, 1, b"bundle one").await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    let id = fleet.tenant.id;
    let wanted = [
        StatementId::Root { version: 1 },
        StatementId::OnlineKey { version: 1 },
        StatementId::Pool {
            name: name("main"),
            epoch: 1,
        },
        StatementId::Tenant {
            tenant: id,
            version: 1,
        },
        StatementId::Manifest {
            tenant: id,
            version: 1,
        },
        StatementId::Grant {
            pool: name("main"),
            epoch: 1,
        },
    ];
    assert_eq!(came.ids(), wanted);
    assert_eq!(
        came.objects.len(),
        2,
        "the release and the secret came with the manifest"
    );
    // A deploy is pushed at once, with only the objects that are new.
    let second = fleet
        .deploy(&tenant, 2, b"bundle two")
        .await
        .payload_digest();
    let pushed = node.sync().await;
    assert_eq!(
        pushed.ids(),
        [StatementId::Manifest {
            tenant: id,
            version: 2
        }]
    );
    assert_eq!(
        node.fetch(Digest::of(b"bundle two"), 0).await,
        b"bundle two"
    );
    assert_eq!(
        node.fetch(Digest::of(b"bundle two"), 7).await,
        b"two",
        "an interrupted bundle continues"
    );
    let status: TenantStatus = tenant.get(&tenant_path(&id, "status")).await.ok().json();
    assert_eq!(status.functions[&name("web")].nodes_total, 1);
    // The manifest is accepted; it does not count as running until its bundle is on the node's
    // disk.
    acknowledged(&tenant, &id, second, false).await;
    node.end.stored(id, 1).unwrap();
    node.end.stored(id, 2).unwrap();
    node.write().await;
    acknowledged(&tenant, &id, second, true).await;
    let has = came.has();
    reconnects(&control, &fleet, has, pushed.has()).await;
}

/// Waits until the node has manifest 2, and whether its bundles are stored.
async fn acknowledged(tenant: &Client, id: &TenantId, manifest: Digest, is_stored: bool) {
    eventually("the acknowledgement", async || {
        let status: TenantStatus = tenant.get(&tenant_path(id, "status")).await.ok().json();
        assert_eq!(status.manifest_digest, Some(manifest));
        let node = &status.nodes[0];
        let current = (node.manifest_version, node.manifest_digest);
        let is_counted = status.functions[&name("web")].nodes_current == usize::from(is_stored);
        let is_current = current == (Some(2), Some(manifest)) && node.is_stored == is_stored;
        is_current && is_counted && node.connected
    })
    .await;
}

/// A node that reconnects with the newest statements is sent nothing; a node with another manifest
/// does not count.
async fn reconnects(control: &Control, fleet: &Fleet, mut has: Has, pushed: Has) {
    let tenant = control.client(&fleet.tenant_token);
    let id = fleet.tenant.id;
    has.tenants
        .extend(pushed.tenants.into_iter().map(|(id, mut new)| {
            new.version = 1;
            (id, new)
        }));
    let mut again = hello("edge-1", &key(20), fleet.id);
    again.has = has;
    let mut other = again.clone();
    let mut node = Node::connect(control, &key(20), NodeEnd::member(again)).await;
    assert_eq!(node.sync().await.ids(), []);
    // A manifest of the same version with another digest, as after a restored backup, is not the
    // newest.
    let foreign = Digest([9; 32]);
    other.has.tenants.get_mut(&id).unwrap().manifest = Some((2, foreign));
    let _node = Node::connect(control, &key(20), NodeEnd::member(other)).await;
    eventually("the other manifest", async || {
        let status: TenantStatus = tenant.get(&tenant_path(&id, "status")).await.ok().json();
        let is_foreign = status.nodes[0].manifest_digest == Some(foreign);
        is_foreign && status.functions[&name("web")].nodes_current == 0
    })
    .await;
}

#[tokio::test]
async fn refusals_of_a_node_are_visible_and_end_with_the_next_version() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let tenant = control.client(&fleet.tenant_token);
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    fleet.deploy(&tenant, 1, b"bundle one").await;
    loop {
        if let NodeEvent::Statement { id, .. } = node.next().await.unwrap() {
            match id {
                StatementId::Manifest { .. } => {
                    node.end
                        .nack(&id, "manifest_expired", "the manifest has expired")
                        .unwrap();
                    break;
                }
                id => node.end.ack(&id).unwrap(),
            }
        }
    }
    node.end.status(r#"{"layers":["seccomp"]}"#.into());
    node.write().await;
    eventually("the refusal", async || {
        let view: NodeView = control.operator().get("/v1/nodes/edge-1").await.ok().json();
        view.refused
            .iter()
            .any(|refused| refused.code == "manifest_expired")
            && view.status["layers"][0] == "seccomp"
    })
    .await;
    let subject = format!("manifest_expired: manifest 1 of tenant {}", fleet.tenant.id);
    let record = ("node edge-1".into(), "node.refused".into(), subject);
    assert_eq!(support::refused(&control).await, [record]);
    // The end of the first push, then the second.
    node.sync().await;
    fleet.deploy(&tenant, 2, b"bundle two").await;
    node.sync().await;
    eventually("the refusal has gone", async || {
        let view: NodeView = control.operator().get("/v1/nodes/edge-1").await.ok().json();
        view.refused.is_empty() && view.manifests[&fleet.tenant.id] == 2
    })
    .await;
}

#[tokio::test]
async fn a_node_that_joins_later_is_not_sent_the_manifest_of_a_tenant_that_was_removed() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let tenant = control.client(&fleet.tenant_token);
    fleet.deploy(&tenant, 1, b"bundle").await;
    let removed = Tenant {
        version: 2,
        current: KeySet::single(key(99).public()),
        hosts: Vec::new(),
        ..fleet.tenant.clone()
    };
    let operator = control.operator();
    let statement = removed.sign(&[&key(1)]).to_bytes();
    operator.ask("POST", "/v1/statements", statement).await.ok();
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let ids = node.sync().await.ids();
    let is_manifest = |id: &StatementId| matches!(id, StatementId::Manifest { .. });
    assert!(!ids.iter().any(is_manifest), "{ids:?}");
}

#[tokio::test]
async fn stopped_credentials_of_a_nodes_own_functions_are_in_the_tenants_status() {
    let control = Control::new().await;
    let (fleet, tenant, mut node) = serving(&control).await;
    let id = fleet.tenant.id;
    let entry = |tenant: TenantId, function: &str, secret: &str| {
        serde_json::json!({
            "tenant": tenant, "function": function, "secret": secret, "left_secs": 3600,
        })
    };
    let status = serde_json::json!({ "vault": { "stopped_credentials": [
        entry(TenantId([9; 32]), "web", "KEY"),
        entry(id, "elsewhere", "KEY"),
        entry(id, "web", "UNLISTED"),
        "no entry",
        entry(id, "web", "KEY"),
        entry(id, "web", "KEY"),
    ] } });
    node.end.status(status.to_string());
    node.write().await;
    let path = tenant_path(&id, "status");
    let mut stopped = Vec::new();
    eventually("the stopped credential", async || {
        let status: TenantStatus = tenant.get(&path).await.ok().json();
        stopped = status.stopped_credentials;
        !stopped.is_empty()
    })
    .await;
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!(stopped[0].secret.as_str(), "KEY");
    assert_eq!(stopped[0].nodes, [name("edge-1")]);
    // The next status reports that the stop is over.
    node.end.status("{}".into());
    node.write().await;
    eventually("it is over", async || {
        let status: TenantStatus = tenant.get(&path).await.ok().json();
        status.stopped_credentials.is_empty()
    })
    .await;
}

#[tokio::test]
async fn expired_and_twice_used_tokens_and_second_nodes_are_refused() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let operator = control.operator();
    let soon = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 2;
    let expiring = fleet.join_token(&control, "edge-2", soon).await;
    let mut late = joining(&control, &fleet, &expiring, &key(22)).await;
    assert_eq!(late.next().await.unwrap(), NodeEvent::JoinPending);
    let late = admission(&control, &fleet, &key(22)).await;

    let token = fleet.join_token(&control, "edge-1", LATER).await;
    let mut first = joining(&control, &fleet, &token, &key(20)).await;
    assert_eq!(first.next().await.unwrap(), NodeEvent::JoinPending);
    let admission = admission(&control, &fleet, &key(20)).await;
    let mut other_grant = admission.clone();
    other_grant.grants = vec![fleet.grant(&key(21))];
    assert_eq!(
        operator
            .post("/v1/nodes/admit", &other_grant)
            .await
            .refused(422),
        "grant_other"
    );
    operator.post("/v1/nodes/admit", &admission).await.ok();
    assert_eq!(
        operator
            .post("/v1/nodes/admit", &admission)
            .await
            .refused(409),
        "node_exists"
    );
    // Another key uses the same token.
    let mut second = joining(&control, &fleet, &token, &key(21)).await;
    assert!(
        matches!(second.next().await.unwrap(), NodeEvent::JoinRefused { code, .. } if code == "token_used")
    );
    // Another token for the same name, and another name with the same key.
    let body = casemate_api::node::NewJoinToken {
        record: token.record().unwrap(),
    };
    assert_eq!(
        operator.post("/v1/nodes/tokens", &body).await.refused(409),
        "node_exists"
    );

    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(
        operator.post("/v1/nodes/admit", &late).await.refused(422),
        "token_expired"
    );
    let mut again = joining(&control, &fleet, &expiring, &key(22)).await;
    assert!(
        matches!(again.next().await.unwrap(), NodeEvent::JoinRefused { code, .. } if code == "token_expired")
    );
    let refused = support::refused(&control).await;
    let seen: Vec<_> = refused
        .iter()
        .map(|(_, action, subject)| (action.as_str(), subject.split_once(':').unwrap().0))
        .collect();
    assert_eq!(
        seen,
        [
            ("admit_node.refused", "grant_other"),
            ("admit_node.refused", "node_exists"),
            ("join.refused", "token_used"),
            ("register_join_token.refused", "node_exists"),
            ("admit_node.refused", "token_expired"),
            ("join.refused", "token_expired"),
        ]
    );
}

#[tokio::test]
async fn revoking_closes_the_connection_at_once_and_for_good() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    control.operator().delete("/v1/nodes/edge-1").await.ok();
    assert_eq!(node.close_code().await, u64::from(close::REVOKED));
    let mut again = hello("edge-1", &key(20), fleet.id);
    again.has = came.has();
    let node = Node::connect(&control, &key(20), NodeEnd::member(again)).await;
    assert!(
        node.close_code().await >= 16,
        "a stranger may not say hello"
    );
    assert_eq!(
        control
            .operator()
            .get("/v1/nodes/edge-1")
            .await
            .refused(404),
        "not_found"
    );
    let grants = NewGrants {
        grants: vec![fleet.grant(&key(20))],
    };
    assert_eq!(
        control
            .operator()
            .post("/v1/nodes/edge-1/grants", &grants)
            .await
            .refused(404),
        "not_found"
    );
}

#[tokio::test]
async fn leases_are_signed_with_the_liveness_key_for_the_requesting_node() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle").await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    let (_, online) = came
        .statements
        .iter()
        .find(|(id, _)| matches!(id, StatementId::OnlineKey { .. }))
        .unwrap();
    let online = OnlineKey::read(&casemate_trust::dsse::Envelope::parse(online).unwrap()).unwrap();
    node.end.lease([9; 32]).unwrap();
    let NodeEvent::Lease { answer } = node.next().await.unwrap() else {
        panic!("no lease")
    };
    let answer = casemate_trust::dsse::Envelope::parse(&answer).unwrap();
    let asked = |nonce: u8| lease::Question {
        fleet: fleet.id,
        node: key(20).public(),
        nonce: vec![nonce; 32],
    };
    let claims = lease::check(&answer, &asked(9), &online).unwrap();
    assert_eq!(claims.tenants, [(fleet.tenant.id, 1)].into());
    assert!(lease::check(&answer, &asked(8), &online).is_err());
}

#[tokio::test]
async fn a_restart_keeps_everything_and_a_node_notices_at_once() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let tenant = control.client(&fleet.tenant_token);
    let manifest = fleet.deploy(&tenant, 1, b"bundle one").await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let before = node.sync().await;
    let nodes_before = control
        .operator()
        .get("/v1/nodes/edge-1")
        .await
        .ok()
        .json::<NodeView>();
    control.stop().await;
    assert_eq!(node.close_code().await, u64::from(close::STOPPING));
    control.start().await;
    let tenant = control.client(&fleet.tenant_token);
    let view: casemate_api::tenant::TenantView = tenant
        .get(&format!("/v1/tenants/{}", fleet.tenant.id))
        .await
        .ok()
        .json();
    assert_eq!(view.manifest, Some(manifest));
    assert_eq!(view.statements.len(), 1);
    let node_after: NodeView = control.operator().get("/v1/nodes/edge-1").await.ok().json();
    assert_eq!(
        (node_after.summary.key, node_after.grants),
        (nodes_before.summary.key, vec![1])
    );
    assert!(node_after.summary.last_seen.is_some());
    let mut node = Node::connect(
        &control,
        &key(20),
        NodeEnd::member(hello("edge-1", &key(20), fleet.id)),
    )
    .await;
    let after = node.sync().await;
    assert_eq!(
        after.statements, before.statements,
        "the same statements in the same order"
    );
    assert_eq!(
        node.fetch(Digest::of(b"bundle one"), 0).await,
        b"bundle one"
    );
    // The control plane continues: the next version is judged against the earlier one.
    let same = fleet.manifest(1, b"", None).sign(&[&key(10)]);
    let conflict = tenant
        .put(&tenant_path(&fleet.tenant.id, "manifest"), same.to_bytes())
        .await;
    assert_eq!(conflict.refused(409), "manifest_conflict");
    fleet.deploy(&tenant, 2, b"bundle two").await;
}
