//! Statements of freshness at the control plane: judged, pushed, replaced, and dropped with their
//! manifest.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use casemate_api::audit::AuditPage;
use casemate_api::fleet::Outcome;
use casemate_api::tenant::{FreshnessAnswer, TenantView};
use casemate_push::{NodeEnd, NodeEvent, StatementId};
use casemate_trust::dsse::Envelope;
use casemate_trust::freshness::{Freshness, FreshnessDemand};
use casemate_trust::statement::{Manifest, Statement as _};
use support::client::Answer;
use support::fleet::{key, tenant_path};
use support::node::{hello, member};
use support::{Client, Control, Fleet, Node, refused};

const DAY: u64 = 24 * 60 * 60;
const CRON: u8 = 30;

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// Uploads a manifest that demands freshness.
async fn deploy(fleet: &Fleet, client: &Client, version: u64) -> Manifest {
    let bundle = version.to_string();
    let uploaded = fleet.upload(client, version, bundle.as_bytes()).await;
    let manifest = Manifest {
        freshness: Some(FreshnessDemand {
            max_age_secs: 20 * DAY,
            key: Some(key(CRON).public()),
        }),
        issued: now(),
        ..Manifest::read(&uploaded).unwrap()
    };
    let signed = manifest.sign(&[&key(10)]).to_bytes();
    let path = tenant_path(&fleet.tenant.id, "manifest");
    client.put(&path, signed).await.ok();
    manifest
}

fn statement(manifest: &Manifest, issued: u64) -> Envelope {
    let statement = Freshness {
        fleet: manifest.fleet,
        tenant: manifest.tenant,
        version: manifest.version,
        manifest: manifest.sign(&[]).payload_digest(),
        issued,
    };
    statement.sign(&[&key(CRON)])
}

async fn put(fleet: &Fleet, client: &Client, statement: &Envelope) -> Answer {
    let path = tenant_path(&fleet.tenant.id, "freshness");
    client.put(&path, statement.to_bytes()).await
}

async fn shown(fleet: &Fleet, client: &Client) -> Option<Envelope> {
    let path = format!("/v1/tenants/{}", fleet.tenant.id);
    let view: TenantView = client.get(&path).await.ok().json();
    view.freshness
}

fn id(manifest: &Manifest, issued: u64) -> StatementId {
    StatementId::Freshness {
        tenant: manifest.tenant,
        version: manifest.version,
        issued,
    }
}

#[tokio::test]
async fn a_statement_is_pushed_survives_a_restart_and_goes_with_its_manifest() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let first = deploy(&fleet, &client, 1).await;
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    let issued = now();
    let said = statement(&first, issued);
    put(&fleet, &client, &said).await.ok();
    let pushed = node.sync().await;
    assert_eq!(pushed.ids(), [id(&first, issued)]);
    assert_eq!(pushed.statements[0].1, said.to_bytes());
    assert_eq!(shown(&fleet, &client).await, Some(said.clone()));

    drop(node);
    control.stop().await;
    control.start().await;
    let client = control.client(&fleet.tenant_token);
    assert_eq!(shown(&fleet, &client).await, Some(said.clone()));
    let held: FreshnessAnswer = put(&fleet, &client, &said).await.ok().json();
    assert_eq!(held.accepted, Outcome::Held);
    // A node that has the manifest gets the statement; a node that has the statement too gets
    // nothing.
    let mut hello = hello("edge-1", &key(20), fleet.id);
    hello.has = came.has();
    let mut node = Node::connect(&control, &key(20), NodeEnd::member(hello.clone())).await;
    assert_eq!(node.sync().await.ids(), [id(&first, issued)]);
    let has = hello.has.tenants.get_mut(&fleet.tenant.id).unwrap();
    has.freshness = Some((1, issued));
    let mut node = Node::connect(&control, &key(20), NodeEnd::member(hello)).await;
    assert_eq!(node.sync().await.ids(), []);

    let second = deploy(&fleet, &client, 2).await;
    assert_eq!(shown(&fleet, &client).await, None);
    let late = put(&fleet, &client, &statement(&first, issued + 100)).await;
    assert_eq!(late.refused(422), "freshness_version_lower");
    put(&fleet, &client, &statement(&second, issued)).await.ok();
}

#[tokio::test]
async fn a_statement_waits_until_the_node_has_judged_its_manifest() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    node.sync().await;
    let manifest = deploy(&fleet, &client, 1).await;
    let issued = now();
    let mut unanswered = loop {
        match node.next().await.unwrap() {
            NodeEvent::Statement { id, .. } if matches!(id, StatementId::Manifest { .. }) => {
                break vec![id];
            }
            NodeEvent::Statement { id, .. } => node.end.ack(&id).unwrap(),
            _ => {}
        }
    };
    put(&fleet, &client, &statement(&manifest, issued))
        .await
        .ok();
    // Another statement arrives meanwhile, and the statement of freshness does not.
    let other = support::fleet::pool(fleet.id, "main", 2).sign(&[&key(1)]);
    let operator = control.operator();
    let posted = operator.ask("POST", "/v1/statements", other.to_bytes());
    posted.await.ok();
    let next = loop {
        if let NodeEvent::Statement { id, .. } = node.next().await.unwrap() {
            break id;
        }
    };
    assert!(matches!(next, StatementId::Pool { .. }), "{next}");
    node.end.ack(&next).unwrap();
    node.end.ack(&unanswered.pop().unwrap()).unwrap();
    node.write().await;
    // The node's answers complete the sync before the statement, which arrives then.
    assert_eq!(node.sync().await.ids(), []);
    assert_eq!(node.sync().await.ids(), [id(&manifest, issued)]);
}

#[tokio::test]
async fn only_the_tenant_may_upload_and_only_its_keys_count() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let manifest = deploy(&fleet, &client, 1).await;
    let said = statement(&manifest, now());
    let operator = put(&fleet, &control.operator(), &said).await;
    assert_eq!(operator.refused(403), "forbidden");
    let stranger = put(&fleet, &control.client(""), &said).await;
    assert_eq!(stranger.refused(401), "unauthenticated");
    let unsigned = Freshness::read(&said).unwrap();
    for seed in [1, 20, 66] {
        let forged = put(&fleet, &client, &unsigned.sign(&[&key(seed)])).await;
        assert_eq!(forged.refused(422), "signature_threshold", "{seed}");
    }
    let others = Freshness {
        tenant: casemate_trust::id::TenantId([9; 32]),
        ..unsigned.clone()
    };
    let others = put(&fleet, &client, &others.sign(&[&key(CRON)])).await;
    assert_eq!(others.refused(403), "forbidden");
    let ahead = put(&fleet, &client, &statement(&manifest, now() + 1000)).await;
    assert_eq!(ahead.refused(422), "freshness_from_future");
    assert_eq!(shown(&fleet, &client).await, None);
    let tries = refused(&control).await;
    let named = format!("freshness of manifest 1 of tenant {}", fleet.tenant.id);
    let of_statement = |(_, action, subject): &&(String, String, String)| {
        action == "put_freshness.refused" && subject.ends_with(&named)
    };
    assert!(tries.iter().filter(of_statement).count() >= 4, "{tries:?}");
    put(&fleet, &client, &said).await.ok();
}

#[tokio::test]
async fn statements_replace_each_other_and_leave_one_record_a_day() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let manifest = deploy(&fleet, &client, 1).await;
    // Ten days of renewals, every three hours, all in time.
    let (begin, step) = (now() / DAY * DAY - 10 * DAY, 3 * 60 * 60);
    for number in 0..80 {
        let said = statement(&manifest, begin + number * step);
        put(&fleet, &client, &said).await.ok();
    }
    let last = begin + 79 * step;
    let soon = put(&fleet, &client, &statement(&manifest, last + 1)).await;
    assert_eq!(soon.refused(429), "too_soon");
    let older = put(&fleet, &client, &statement(&manifest, last - step)).await;
    assert_eq!(older.refused(422), "freshness_older");
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    let records = page.records.iter();
    let count = records.filter(|record| record.action == "freshness.put");
    assert_eq!(count.count(), 10);
    // Statements with proper dates that arrive all at once are too many nevertheless.
    let next = last + step;
    let answers = async {
        let mut taken = 0;
        for number in 0..80 {
            let said = statement(&manifest, next + 15 * number);
            let answer = put(&fleet, &client, &said).await;
            if answer.status == 429 {
                break;
            }
            answer.ok();
            taken += 1;
        }
        taken
    };
    let taken = answers.await;
    assert!((30..80).contains(&taken), "{taken} more");
    let last = next + 15 * (taken - 1);
    // A node that connects now gets the newest, and no other.
    let mut node = member(&control, &fleet, "edge-1", &key(20)).await;
    let came = node.sync().await;
    let statements = came.ids().into_iter();
    let statements: Vec<_> = statements
        .filter(|id| matches!(id, StatementId::Freshness { .. }))
        .collect();
    assert_eq!(statements, [id(&manifest, last)]);
}
