//! A taken-over control plane against the real vault: every refusal by name, after each of which
//! the honest state is unchanged.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod fleet;
mod upstream;

use casemate_trust::dsse::MAX_ENVELOPE_BYTES;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::join::Grant;
use casemate_trust::key::{SealingKey, SigningKey};
use casemate_trust::lease::Claims;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{KeySet, Manifest, OnlineKey, Pool, Root, Statement as _, Tenant};
use casemate_wire::control::vault::{ObjectKind, ToVault, Verdict};
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{Fields, RequestHead};
use fleet::{FAR, Fleet, KEY, key, random};
use upstream::Upstream;

async fn code(fleet: &mut Fleet, kind: ObjectKind, bytes: Vec<u8>) -> String {
    match fleet.vault().submit(kind, bytes).await {
        Verdict::Refused { code, .. } => code,
        verdict => format!("{verdict:?}"),
    }
}

/// The outcome of a call with the credential: `sent`, or the code of the refusal.
async fn injected(fleet: &mut Fleet, upstream: &Upstream, release: [u8; 32]) -> String {
    let (ours, theirs) = casemate_channel::pair().unwrap();
    let channel = ToVault::Channel {
        worker: WorkerId(1),
        key: FunctionKey {
            tenant: fleet.tenant.id.0,
            function: "web".into(),
        },
        release,
    };
    fleet.vault().send(channel, Some(theirs)).await;
    let head = RequestHead {
        method: "POST".into(),
        target: upstream.url("/v1/charges"),
        fields: Fields::default()
            .with(":request", "r1")
            .with(":binding", "pay"),
    };
    let channel = casemate_channel::opener(ours).unwrap();
    let exchange = channel.open(head, true).unwrap();
    let (head, _body) = exchange.response.head().await.unwrap();
    let error = head.fields.text(":error").map(ToOwned::to_owned);
    error.unwrap_or_else(|| "sent".to_owned())
}

fn signed(manifest: &Manifest, keys: &[&SigningKey]) -> Vec<u8> {
    manifest.sign(keys).to_bytes()
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
async fn every_refusal_of_a_taken_over_control_plane_by_name() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    fleet.deploy(5).await;
    let evil = key(66);
    let honest = fleet.vault().have().await;

    // Roots with keys of the attacker.
    let root = |version, keys: &[u8]| Root {
        version,
        keys: keys.iter().map(|seed| key(*seed).public()).collect(),
        threshold: 1,
        issued: 1,
        expires: FAR,
    };
    let own = |root: Root, keys: &[&SigningKey]| root.sign(keys).to_bytes();
    assert_eq!(
        code(&mut fleet, ObjectKind::Root, own(root(1, &[66]), &[&evil])).await,
        "root_same_version_other_digest"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Root, own(root(2, &[66]), &[&evil])).await,
        "signature_threshold"
    );
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Root,
            own(root(9, &[66]), &[&evil, &key(1)])
        )
        .await,
        "root_version_gap"
    );
    let online = |version| {
        let public = evil.public();
        OnlineKey {
            fleet: fleet.fleet,
            version,
            liveness: public,
            quic: public,
            api: public,
            issued: 1,
            expires: FAR,
        }
        .sign(&[&evil])
        .to_bytes()
    };
    let (online_same, online_next) = (online(1), online(2));
    assert_eq!(
        code(&mut fleet, ObjectKind::OnlineKey, online_same).await,
        "online_same_version_other_digest"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::OnlineKey, online_next).await,
        "signature_threshold"
    );
    let pool = |epoch| Pool {
        fleet: fleet.fleet,
        name: "main".parse().unwrap(),
        epoch,
        public_key: SealingKey::of_seed(&[66; 32]).unwrap(),
        issued: 1,
        expires: FAR,
    };
    let (pool_same, pool_next) = (pool(1), pool(2));
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Pool,
            pool_same.sign(&[&evil]).to_bytes()
        )
        .await,
        "pool_same_epoch_other_key"
    );
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Pool,
            pool_next.sign(&[&evil]).to_bytes()
        )
        .await,
        "signature_threshold"
    );

    // A grant with another pool key than the signed one.
    let (node_key, sealing_key) = fleet.node_keys();
    let grant = |pool: &Pool, seed: u8| {
        Grant::seal(pool, &[seed; 32], node_key, &sealing_key, &mut random)
            .unwrap()
            .to_bytes()
    };
    let (not_the_pools, unknown) = (grant(&fleet.pool, 66), grant(&pool_next, 66));
    assert_eq!(
        code(&mut fleet, ObjectKind::Grant, not_the_pools).await,
        "grant_key_not_the_pools"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Grant, unknown).await,
        "pool_unknown"
    );

    // Tenants of the attacker.
    let tenant = fleet.tenant.clone();
    let impostor = Tenant::first(
        fleet.fleet,
        "shop".parse().unwrap(),
        KeySet::single(evil.public()),
        vec![],
        1,
        FAR,
    );
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Tenant,
            impostor.sign(&[&evil]).to_bytes()
        )
        .await,
        "signature_threshold"
    );
    let keys = Tenant {
        version: 2,
        current: KeySet::single(evil.public()),
        ..tenant.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Tenant,
            keys.sign(&[&evil]).to_bytes()
        )
        .await,
        "tenant_key_change_unauthorised"
    );
    let wider = Tenant {
        version: 2,
        hosts: vec!["bank.test".parse().unwrap()],
        ..tenant.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Tenant,
            wider.sign(&[&key(10)]).to_bytes()
        )
        .await,
        "tenant_scope_widened"
    );
    let again = Tenant {
        issued: 2,
        ..tenant.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Tenant,
            again.sign(&[&key(1)]).to_bytes()
        )
        .await,
        "tenant_same_version_other_digest"
    );

    // Manifests.
    let next = fleet.manifest(6);
    assert_eq!(
        code(&mut fleet, ObjectKind::Manifest, signed(&next, &[])).await,
        "signature_threshold"
    );
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&next, &[&evil, &evil])
        )
        .await,
        "signature_threshold"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Manifest, signed(&next, &[&key(1)])).await,
        "signature_threshold"
    );
    let lower = fleet.manifest(4);
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&lower, &[&key(10)])
        )
        .await,
        "manifest_version_lower"
    );
    let equal = Manifest {
        issued: 2,
        ..fleet.manifest(5)
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&equal, &[&key(10)])
        )
        .await,
        "manifest_same_version_other_digest"
    );
    let expired = Manifest {
        expires: 2,
        ..next.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&expired, &[&key(10)])
        )
        .await,
        "manifest_expired"
    );
    let others = Manifest {
        tenant: TenantId([9; 32]),
        ..next.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&others, &[&key(10)])
        )
        .await,
        "tenant_unknown"
    );
    let fleets = Manifest {
        fleet: FleetId([9; 32]),
        ..next.clone()
    };
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            signed(&fleets, &[&key(10)])
        )
        .await,
        "fleet_other"
    );
    let last = Manifest {
        version: u64::MAX,
        ..next.clone()
    };
    assert_eq!(
        code(&mut fleet, ObjectKind::Manifest, signed(&last, &[&key(10)])).await,
        "statement_malformed"
    );

    // Objects that no manifest lists, and floods.
    assert_eq!(
        code(&mut fleet, ObjectKind::Release, b"{}".to_vec()).await,
        "object_unlisted"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Secret, b"{}".to_vec()).await,
        "object_unlisted"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Release, vec![b' '; 1 << 20]).await,
        "object_too_large"
    );
    assert_eq!(
        code(
            &mut fleet,
            ObjectKind::Manifest,
            vec![b' '; MAX_ENVELOPE_BYTES + 1]
        )
        .await,
        "statement_malformed"
    );

    // A listed object that does not exist keeps the manifest out, and the earlier state stays.
    let mut hollow = next.clone();
    hollow
        .functions
        .values_mut()
        .for_each(|wanted| wanted.release = Digest([3; 32]));
    assert!(matches!(
        fleet.submit_manifest(&hollow).await,
        Verdict::Missing { .. }
    ));
    assert_eq!(
        fleet.vault().have().await,
        honest,
        "none of the attempts changed anything"
    );
    fleet.kill_and_restart().await;
    assert_eq!(fleet.vault().have().await, honest, "nothing is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_root_signs_nothing_new_and_leads_to_the_next() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    fleet.deploy(5).await;
    let root = |version: u8, expires| {
        let next = Root {
            version: version.into(),
            keys: vec![key(version).public()],
            threshold: 1,
            issued: 1,
            expires,
        };
        next.sign(&[&key(version - 1), &key(version)]).to_bytes()
    };
    let pool = Pool {
        epoch: 2,
        public_key: SealingKey::of_seed(&[6; 32]).unwrap(),
        ..fleet.pool.clone()
    };
    let tenant = Tenant {
        version: 2,
        hosts: vec!["shop.test".parse().unwrap(), "more.test".parse().unwrap()],
        ..fleet.tenant.clone()
    };
    let accepted = Verdict::Accepted;
    let verdict = fleet.vault().submit(ObjectKind::Root, root(2, 2)).await;
    assert_eq!(verdict, accepted);
    let before = fleet.vault().have().await;
    let statements = |seed| {
        [
            (ObjectKind::Pool, pool.sign(&[&key(seed)]).to_bytes()),
            (ObjectKind::Tenant, tenant.sign(&[&key(seed)]).to_bytes()),
        ]
    };
    for (kind, bytes) in statements(2) {
        assert_eq!(code(&mut fleet, kind, bytes).await, "root_expired");
    }
    fleet.kill_and_restart().await;
    assert_eq!(
        fleet.vault().have().await,
        before,
        "accepted statements stay valid"
    );
    let verdict = fleet.vault().submit(ObjectKind::Root, root(3, FAR)).await;
    assert_eq!(verdict, accepted);
    for (kind, bytes) in statements(3) {
        assert_eq!(fleet.vault().submit(kind, bytes).await, accepted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_learns_of_its_revocation_stops_for_good_whoever_renews_its_lease() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    fleet.join().await;
    let release = fleet.deploy(5).await;
    assert_eq!(injected(&mut fleet, &upstream, release).await, "sent");
    let (node, sealing) = fleet.node_keys();
    let list = |version: u64, revoked: &[casemate_trust::key::PublicKey]| {
        let mut list = Revocations {
            fleet: fleet.fleet,
            version,
            nodes: vec![],
            exposed: [].into(),
            issued: 1,
        };
        for node in revoked {
            list.revoke(*node, &fleet.pool.name, Some(1));
        }
        list
    };
    // The holder of the online key cannot revoke a node.
    let forged = list(1, &[node]).sign(&[&key(20)]).to_bytes();
    let (none, named, later) = (list(1, &[]), list(2, &[node]), list(3, &[node]));
    let root = |list: Revocations| list.sign(&[&key(1)]).to_bytes();
    assert_eq!(
        code(&mut fleet, ObjectKind::Revocations, forged).await,
        "signature_threshold"
    );
    // Another node's revocation changes nothing here.
    let accepted = Verdict::Accepted;
    let none = root(none);
    let verdict = fleet
        .vault()
        .submit(ObjectKind::Revocations, none.clone())
        .await;
    assert_eq!(verdict, accepted);
    assert_eq!(injected(&mut fleet, &upstream, release).await, "sent");

    let verdict = fleet
        .vault()
        .submit(ObjectKind::Revocations, root(named))
        .await;
    assert_eq!(verdict, accepted);
    assert_eq!(
        injected(&mut fleet, &upstream, release).await,
        "node_revoked"
    );
    assert!(fleet.vault().have().await.grants.is_empty());
    // The attempts of a taken-over control plane: restart the node, grant the key again, send the
    // older list, answer leases.
    fleet.kill_and_restart().await;
    assert_eq!(
        injected(&mut fleet, &upstream, release).await,
        "node_revoked"
    );
    let grant = Grant::seal(&fleet.pool, &[5; 32], node, &sealing, &mut random).unwrap();
    assert_eq!(
        code(&mut fleet, ObjectKind::Grant, grant.to_bytes()).await,
        "node_revoked"
    );
    assert_eq!(
        code(&mut fleet, ObjectKind::Revocations, none).await,
        "revocations_version_lower"
    );
    let verdict = fleet
        .vault()
        .submit(ObjectKind::Revocations, root(later))
        .await;
    assert_eq!(verdict, accepted);
    assert_eq!(
        injected(&mut fleet, &upstream, release).await,
        "node_revoked"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lease_claims_is_kept_under_the_online_keys_signature() {
    let upstream = Upstream::start(KEY).await;
    let mut fleet = Fleet::start(&upstream).await;
    let nonce = fleet.join_without_lease().await;
    fleet.deploy(5).await;
    // The control plane hides manifest 5, which the vault holds, and another tenant's manifest,
    // which it does not send.
    let claimed = [(fleet.tenant.id, 4), (TenantId([9; 32]), 1)];
    let claims = Claims::new(77, 1, claimed.into());
    let answered = fleet.answer_lease_with(&nonce, 20, claims.clone()).await;
    assert_eq!(answered, None);
    let said = fleet.describe().await["claims"].clone();
    assert_eq!(said["lacking"], 2, "{said}");
    assert_eq!(said["outdated"], 1, "{said}");
    // The lie stays stored with its signature, even after a restart.
    fleet.kill_and_restart().await;
    assert_eq!(fleet.describe().await["claims"], said);
    let kept = fleet.kept_leases();
    assert_eq!(kept.last().unwrap().claims, claims);
}
