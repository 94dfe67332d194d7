//! The API over TLS: statements, deploys, conflicts, scopes, limits, the audit chain.
// A panic is how a test fails.
#![allow(clippy::unwrap_used)]

#[path = "api/access.rs"]
mod access;
mod support;

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_api::endpoint::{ENDPOINTS, Method};
use casemate_api::fleet::{FleetView, PoolList, StatementAnswer};
use casemate_api::limits::{MAX_BUNDLE_BYTES, MAX_ENVELOPE_BYTES};
use casemate_api::tenant::{ManifestAnswer, TenantList};
use casemate_api::token::{MadeToken, NewToken, Scope, TokenList};
use casemate_control_store::{Change, Redb, Store as _, StoreId};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::statement::{KeySet, Root, Statement as _, Tenant};
use support::fleet::{LATER, key, online, pool, tenant, tenant_path, token};
use support::{Control, Fleet};

async fn post(control: &Control, envelope: &Envelope) -> support::client::Answer {
    control
        .operator()
        .ask("POST", "/v1/statements", envelope.to_bytes())
        .await
}

#[tokio::test]
async fn the_first_root_makes_the_fleet_and_no_other_replaces_it() {
    let control = Control::new().await;
    let public = control.client("");
    let before: FleetView = public.get("/v1/fleet").await.ok().json();
    assert_eq!(
        (
            before.fleet,
            before.roots.len(),
            before.quic_address.as_str()
        ),
        (None, 0, control.quic.as_str())
    );
    let early = pool(casemate_trust::id::FleetId([1; 32]), "main", 1).sign(&[&key(1)]);
    assert_eq!(post(&control, &early).await.refused(409), "no_fleet");
    let fleet = Fleet::new(&control).await;
    let after: FleetView = public.get("/v1/fleet").await.ok().json();
    assert_eq!(
        (after.fleet, after.roots),
        (Some(fleet.id), vec![fleet.root.clone()])
    );
    assert!(after.online_key.is_some());
    let own = Root {
        version: 1,
        keys: vec![key(2).public()],
        threshold: 1,
        issued: 2,
        expires: LATER,
    };
    assert_eq!(
        post(&control, &own.sign(&[&key(2)])).await.refused(422),
        "root_same_version_other_digest"
    );
    let again: StatementAnswer = post(&control, &fleet.root).await.ok().json();
    assert_eq!(again.accepted, casemate_api::fleet::Outcome::Held);
}

#[tokio::test]
async fn statements_that_the_judge_refuses_are_refused_by_name() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let forged = pool(fleet.id, "other", 1).sign(&[&key(2)]);
    assert_eq!(
        post(&control, &forged).await.refused(422),
        "signature_threshold"
    );
    let mut keys = control.keys.clone();
    keys.liveness = key(9).public();
    let mut foreign = online(fleet.id, &keys);
    foreign.version = 2;
    assert_eq!(
        post(&control, &foreign.sign(&[&key(1)])).await.refused(422),
        "online_key_other"
    );
    let garbage = control
        .operator()
        .ask("POST", "/v1/statements", b"{}".to_vec())
        .await;
    assert_eq!(garbage.refused(422), "statement_malformed");
    let manifest = fleet.manifest(1, b"", None).sign(&[&key(10)]);
    assert_eq!(
        post(&control, &manifest).await.refused(422),
        "statement_malformed"
    );
    let refused = support::refused(&control).await;
    let subjects: Vec<_> = refused.iter().map(|(_, _, subject)| subject).collect();
    assert_eq!(
        subjects,
        [
            "signature_threshold: pool other epoch 1",
            "online_key_other: online key 2",
            "statement_malformed: /v1/statements",
            "statement_malformed: /v1/statements",
        ]
    );
}

#[tokio::test]
async fn every_refused_request_leaves_a_record_and_a_flood_only_some() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let (operator, id) = (control.operator(), fleet.tenant.id);
    let other = tenant(fleet.id, "other", 11);
    post(&control, &other.sign(&[&key(1)])).await.ok();
    let read_only = control.client(&token(&operator, Scope::ReadOnly).await);
    let client = control.client(&fleet.tenant_token);
    let manifest = tenant_path(&id, "manifest");
    let mut foreign = fleet.manifest(1, b"", None);
    foreign.tenant = other.id;
    let object = fleet.release(&other, b"bundle").to_bytes();
    let object_path = tenant_path(&id, &format!("objects/{}", Digest::of(&object)));
    let rotated = Tenant {
        version: 2,
        ..other.clone()
    };
    let rotated = rotated.sign(&[&key(11)]).to_bytes();
    let unsigned = fleet.manifest(1, b"", None).sign(&[&key(11)]).to_bytes();
    let others = tenant_path(&other.id, "status");
    let stranger = control.client("casemate_wrong");
    stranger.get("/v1/nodes").await.refused(401);
    read_only.delete("/v1/nodes/edge-1").await.refused(403);
    client.get(&others).await.refused(403);
    let foreign = foreign.sign(&[&key(11)]).to_bytes();
    client.put(&manifest, foreign).await.refused(403);
    client.put(&manifest, unsigned).await.refused(422);
    client.put(&object_path, object).await.refused(422);
    let statement = client.ask("POST", "/v1/statements", rotated).await;
    statement.refused(403);
    operator.delete("/v1/nodes/edge-1").await.refused(404);
    // Asking whether an object exists leaves no record.
    operator.get("/v1/nodes/edge-1").await.refused(404);
    let refused = support::refused(&control).await;
    let seen: Vec<_> = refused
        .iter()
        .map(|(_, action, subject)| (action.as_str(), subject.as_str()))
        .collect();
    let of_other = format!("forbidden: tenant {} version 2", other.id);
    assert_eq!(
        seen,
        [
            ("list_nodes.refused", "unauthenticated: /v1/nodes"),
            ("revoke_node.refused", "forbidden: /v1/nodes/edge-1"),
            ("tenant_status.refused", &*format!("forbidden: {others}")),
            ("put_manifest.refused", &*format!("forbidden: {manifest}")),
            (
                "put_manifest.refused",
                &*format!("signature_threshold: manifest 1 of tenant {id}")
            ),
            (
                "put_object.refused",
                &*format!("object_malformed: {object_path}")
            ),
            ("post_statement.refused", &*of_other),
            ("revoke_node.refused", "not_found: /v1/nodes/edge-1"),
        ]
    );
    assert_eq!(refused[0].0, "stranger at 127.0.0.1");
    assert!(refused[1].0.starts_with("token "), "{refused:?}");
    let flood = (0..100).map(|_| stranger.get("/v1/nodes"));
    futures_util::future::join_all(flood).await;
    let more = support::refused(&control).await.len() - refused.len();
    assert!((1..50).contains(&more), "{more}");
}

#[tokio::test]
async fn a_changed_root_can_sign_old_statements_anew() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let second = Root {
        version: 2,
        keys: vec![key(2).public()],
        threshold: 1,
        issued: 2,
        expires: LATER,
    };
    post(&control, &second.sign(&[&key(1), &key(2)])).await.ok();
    let same: StatementAnswer = post(&control, &fleet.pool.sign(&[&key(1)]))
        .await
        .ok()
        .json();
    assert_eq!(same.accepted, casemate_api::fleet::Outcome::Held);
    let anew = fleet.pool.sign(&[&key(2)]);
    let answer: StatementAnswer = post(&control, &anew).await.ok().json();
    assert_eq!(answer.accepted, casemate_api::fleet::Outcome::New);
    let pools: PoolList = control.operator().get("/v1/pools").await.ok().json();
    assert_eq!(pools.pools[0].statements, [anew]);
}

#[tokio::test]
async fn an_expired_root_signs_nothing_new_and_leads_to_the_next() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let root = |version: u8, expires| {
        let next = Root {
            version: version.into(),
            keys: vec![key(version).public()],
            threshold: 1,
            issued: 2,
            expires,
        };
        next.sign(&[&key(version - 1), &key(version)])
    };
    post(&control, &root(2, 3)).await.ok();
    let other = |seed| pool(fleet.id, "other", 1).sign(&[&key(seed)]);
    assert_eq!(post(&control, &other(2)).await.refused(422), "root_expired");
    post(&control, &root(3, LATER)).await.ok();
    post(&control, &other(3)).await.ok();
}

#[tokio::test]
async fn a_manifest_needs_its_objects_its_bundles_and_the_version_before() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let (client, id) = (control.client(&fleet.tenant_token), fleet.tenant.id);
    let at = tenant_path(&id, "manifest");
    let release = fleet.release(&fleet.tenant, b"bundle").to_bytes();
    let manifest = fleet.manifest(1, &release, None);
    let signed = manifest.sign(&[&key(10)]).to_bytes();
    let missing = client.put(&at, signed.clone()).await;
    assert_eq!(missing.refused(422), "objects_missing");
    assert_eq!(
        missing.details()["digests"][0],
        Digest::of(&release).to_string()
    );
    let object = tenant_path(&id, &format!("objects/{}", Digest::of(&release)));
    client.put(&object, release.clone()).await.ok();
    assert_eq!(client.get(&object).await.ok().body, release);
    let missing = client.put(&at, signed.clone()).await;
    assert_eq!(missing.refused(422), "bundle_missing");
    assert_eq!(
        missing.details()["digests"][0],
        Digest::of(b"bundle").to_string()
    );
    client
        .put(
            &format!("/v1/bundles/{}", Digest::of(b"bundle")),
            b"bundle".to_vec(),
        )
        .await
        .ok();
    let unsigned = manifest.sign(&[&key(11)]).to_bytes();
    assert_eq!(
        client.put(&at, unsigned).await.refused(422),
        "signature_threshold"
    );
    let first: ManifestAnswer = client.put(&at, signed.clone()).await.ok().json();
    let again: ManifestAnswer = client.put(&at, signed).await.ok().json();
    assert_eq!(
        (first.accepted, again.accepted),
        (
            casemate_api::fleet::Outcome::New,
            casemate_api::fleet::Outcome::Held
        )
    );
    let mut other = manifest.clone();
    other.expires -= 1;
    let conflict = client.put(&at, other.sign(&[&key(10)]).to_bytes()).await;
    assert_eq!(conflict.refused(409), "manifest_conflict");
    assert_eq!(conflict.details()["version"], 1);
}

#[tokio::test]
async fn of_two_concurrent_deploys_one_wins_and_the_other_learns_it() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    fleet.deploy(&client, 1, b"bundle").await;
    let release = fleet.release(&fleet.tenant, b"bundle").to_bytes();
    let at = tenant_path(&fleet.tenant.id, "manifest");
    let tries = (0..6).map(|number| {
        let mut manifest = fleet.manifest(2, &release, None);
        manifest.expires -= number;
        client.put(&at, manifest.sign(&[&key(10)]).to_bytes())
    });
    let answers = futures_util::future::join_all(tries).await;
    let won = answers.iter().filter(|answer| answer.status == 200).count();
    let told = answers
        .iter()
        .filter(|answer| answer.status == 409 && answer.details()["version"] == 2)
        .count();
    assert_eq!((won, told), (1, 5));
}

#[tokio::test]
async fn uploads_are_bounded_checked_and_can_be_repeated() {
    let control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    let client = control.client(&fleet.tenant_token);
    let bundle = vec![7; 1_000_000];
    let at = format!("/v1/bundles/{}", Digest::of(&bundle));
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 404);
    for _ in 0..2 {
        client.put(&at, bundle.clone()).await.ok();
    }
    assert_eq!(client.ask("HEAD", &at, vec![]).await.status, 200);
    let wrong = client
        .put(&format!("/v1/bundles/{}", Digest::of(b"x")), b"y".to_vec())
        .await;
    assert_eq!(wrong.refused(422), "digest_mismatch");
    let large = vec![0; MAX_BUNDLE_BYTES as usize + 1];
    let refused = client
        .put(&format!("/v1/bundles/{}", Digest::of(&large)), large)
        .await;
    assert_eq!(
        (
            refused.refused(413).as_str(),
            &refused.details()["limit_bytes"]
        ),
        ("too_large", &MAX_BUNDLE_BYTES.into())
    );
    let object = tenant_path(
        &fleet.tenant.id,
        &format!("objects/{}", Digest::of(b"nonsense")),
    );
    assert_eq!(
        client.put(&object, b"nonsense".to_vec()).await.refused(422),
        "object_malformed"
    );
    let statement = control
        .operator()
        .ask("POST", "/v1/statements", vec![b' '; MAX_ENVELOPE_BYTES + 1])
        .await;
    assert_eq!(statement.refused(413), "too_large");
    for digest in ["..", "%2e%2e%2f%2e%2e%2fkeys%2fapi.key", "ABCD"] {
        assert_eq!(
            client
                .put(&format!("/v1/bundles/{digest}"), vec![])
                .await
                .refused(400),
            "bad_request"
        );
    }
}

#[tokio::test]
async fn tokens_are_shown_once_expire_and_can_be_revoked() {
    let control = Control::new().await;
    let operator = control.operator();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let new = NewToken {
        scope: Scope::ReadOnly,
        label: "for a minute".into(),
        expires: Some(now + 2),
    };
    let made: MadeToken = operator.post("/v1/tokens", &new).await.ok().json();
    assert!(made.token.starts_with("casemate_"));
    assert_eq!(
        control.client(&made.token).get("/v1/nodes").await.status,
        200
    );
    let list = operator.get("/v1/tokens").await.ok();
    assert!(!String::from_utf8_lossy(&list.body).contains(&made.token));
    assert_eq!(list.json::<TokenList>().tokens.len(), 2);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(
        control
            .client(&made.token)
            .get("/v1/nodes")
            .await
            .refused(401),
        "unauthenticated"
    );
    let past = NewToken {
        expires: Some(1),
        ..new
    };
    assert_eq!(
        operator.post("/v1/tokens", &past).await.refused(400),
        "bad_request"
    );
    let other = NewToken {
        expires: None,
        ..past
    };
    let other: MadeToken = operator.post("/v1/tokens", &other).await.ok().json();
    operator
        .delete(&format!("/v1/tokens/{}", other.id))
        .await
        .ok();
    assert_eq!(
        control.client(&other.token).get("/v1/nodes").await.status,
        401
    );
    // No token is stored in clear.
    let store = std::fs::read(control.state().join("store.redb")).unwrap();
    for token in [&made.token, &other.token, &control.operator] {
        assert!(
            !store
                .windows(token.len())
                .any(|window| window == token.as_bytes())
        );
    }
}

#[tokio::test]
async fn the_audit_chain_is_unbroken_until_somebody_touches_it() {
    let mut control = Control::new().await;
    let fleet = Fleet::new(&control).await;
    fleet
        .deploy(&control.client(&fleet.tenant_token), 1, b"bundle")
        .await;
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    assert!(page.verified && page.newest == page.records.len() as u64);
    AuditRecord::verify(None, &page.records).unwrap();
    let deployed = page.records.last().unwrap();
    assert!(
        deployed.action == "manifest.put"
            && deployed.actor.starts_with("token ")
            && deployed.revision > 0
    );
    let rest: AuditPage = control
        .operator()
        .get(&format!("/v1/audit?since={}", page.newest - 1))
        .await
        .ok()
        .json();
    assert_eq!(rest.records, std::slice::from_ref(deployed));
    control.stop().await;
    {
        let store = Redb::open(&control.state().join("store.redb"), StoreId([0; 16])).unwrap();
        let at = format!("audit/{:020}", 3);
        let mut record: AuditRecord =
            serde_json::from_slice(&store.get(&at).await.unwrap().unwrap().value).unwrap();
        record.actor = "nobody".into();
        store
            .commit(
                vec![],
                vec![Change::put(at, serde_json::to_vec(&record).unwrap())],
            )
            .await
            .unwrap();
    }
    control.start().await;
    let page: AuditPage = control.operator().get("/v1/audit").await.ok().json();
    assert!(!page.verified, "the change was not noticed");
    assert_eq!(AuditRecord::verify(None, &page.records).unwrap_err().seq, 3);
}
