//! A control plane that was restored from yesterday's backup, with a tenant's and an operator's
//! homes.

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::statement::{KeySet, Manifest, Statement as _, Tenant};

use super::fake::Given;
use super::world::{Person, World, world};

/// The state of a control plane.
struct Yesterday {
    tenants: Vec<Envelope>,
    manifests: Vec<Envelope>,
    objects: Vec<Digest>,
    bundles: Vec<Digest>,
}

impl Yesterday {
    fn of(given: &Given, id: &TenantId) -> Self {
        Self {
            tenants: given.tenants[id].clone(),
            manifests: given.manifests.get(id).cloned().unwrap_or_default(),
            objects: given.objects.keys().copied().collect(),
            bundles: given.bundles.keys().copied().collect(),
        }
    }

    fn restore(&self, given: &mut Given, id: &TenantId) {
        given.tenants.insert(*id, self.tenants.clone());
        given.manifests.insert(*id, self.manifests.clone());
        given
            .objects
            .retain(|digest, _| self.objects.contains(digest));
        given
            .bundles
            .retain(|digest, _| self.bundles.contains(digest));
    }
}

fn newest(given: &Given, id: &TenantId) -> Manifest {
    Manifest::read(given.manifests[id].last().unwrap()).unwrap()
}

fn deploy(tenant: &Person, project: &str, version: u32) -> serde_json::Value {
    tenant.source("web", version);
    tenant.json(&["deploy", "--project", project])
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_objects_are_uploaded_again_and_the_version_is_raised() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    let first = deploy(&tenant, &project, 1);
    let id = *fake.given().tenants.keys().next().unwrap();
    let yesterday = Yesterday::of(&fake.given(), &id);
    let second = deploy(&tenant, &project, 2);
    let third = deploy(&tenant, &project, 3);
    yesterday.restore(&mut fake.given(), &id);

    let back = tenant.json(&["rollback", "web"]);
    assert_eq!(
        (&back["manifest"], &back["release"]),
        (&4.into(), &second["release"])
    );
    let wanted = newest(&fake.given(), &id)
        .functions
        .into_values()
        .next()
        .unwrap();
    let fallbacks = serde_json::json!(wanted.fallbacks);
    assert_eq!(
        fallbacks,
        serde_json::json!([third["release"], first["release"]])
    );

    yesterday.restore(&mut fake.given(), &id);
    assert_eq!(deploy(&tenant, &project, 4)["manifest"], 5);
    yesterday.restore(&mut fake.given(), &id);
    assert_eq!(tenant.json(&["remove", "web", "--yes"])["manifest"], 6);
    assert!(newest(&fake.given(), &id).functions.is_empty());
    let kept = std::fs::read_dir(tenant.home.join("bundles"))
        .unwrap()
        .count();
    assert_eq!(kept, 0, "objects that are not listed any more are not kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn earlier_releases_with_lost_bundles_are_left_out() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let project = tenant.project("web", "web.shop.test", "");
    let other = tenant.project("other", "other.shop.test", "");
    tenant.source("other", 11);
    tenant.json(&["deploy", "--project", &other]);
    deploy(&tenant, &project, 1);
    let id = *fake.given().tenants.keys().next().unwrap();
    let yesterday = Yesterday::of(&fake.given(), &id);
    deploy(&tenant, &project, 2);
    tenant.source("other", 12);
    tenant.json(&["deploy", "--project", &other]);
    yesterday.restore(&mut fake.given(), &id);
    std::fs::remove_dir_all(tenant.home.join("bundles")).unwrap();

    // A running function has no bundle any more: a deployment of its own project restores it.
    tenant.source("web", 3);
    tenant
        .run(&["deploy", "--project", &project])
        .ended(66, "lost the bundle of other");
    tenant
        .run(&["deploy", "--project", &other])
        .ended(66, "lost the bundle of web");
    // The deployment uploaded the sources of `other`, so that they exist now.
    tenant
        .run(&["deploy", "--project", &project])
        .ended(0, "an earlier release of web");
    let functions = newest(&fake.given(), &id).functions;
    let fallbacks: Vec<usize> = functions
        .values()
        .map(|wanted| wanted.fallbacks.len())
        .collect();
    assert_eq!(fallbacks, [1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_lost_the_newest_manifest_signs_above_the_nodes_when_told_to() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    fake.given().nodes = vec!["edge-1"];
    let project = tenant.project("web", "web.shop.test", "");
    deploy(&tenant, &project, 1);
    fake.given().hold = Some((7, Digest([7; 32])));
    let ran = tenant.run(&["renew"]);
    assert_eq!(ran.code, 82, "{}{}", ran.out, ran.err);
    let over = ["renew", "--from-memory", "--wait", "0"];
    assert_eq!(tenant.json(&over)["manifest"], 8);
    // `--from-memory` does not sign above a version that no tool can have signed.
    fake.given().hold = Some((1 << 52, Digest([7; 32])));
    tenant.run(&over).ended(0, "is left alone");
    let id = *fake.given().tenants.keys().next().unwrap();
    assert_eq!(newest(&fake.given(), &id).version, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_own_change_of_keys_is_handed_in_again() {
    let World {
        fake, tenant, _dir, ..
    } = world().await;
    let id = *fake.given().tenants.keys().next().unwrap();
    let yesterday = Yesterday::of(&fake.given(), &id);
    // The tenant alone has signed it: no home of the operator has seen it.
    let key = tenant.json(&["tenant", "key"]);
    let own: PublicKey = key["public_key"].as_str().unwrap().parse().unwrap();
    let seed = std::fs::read_to_string(tenant.home.join("tenant.key")).unwrap();
    let purpose = casemate_trust::keyfile::Purpose::Tenant;
    let seed = casemate_trust::keyfile::read(&seed, purpose, None).unwrap();
    let signer = SigningKey::from_seed(&seed).unwrap();
    let mut statement = Tenant::read(&yesterday.tenants[0]).unwrap();
    let second = SigningKey::from_seed(&[77; 32]).unwrap();
    for keys in [vec![own, second.public()], vec![own]] {
        statement.version += 1;
        statement.current = KeySet { keys, threshold: 1 };
        let signed = statement.sign(&[&signer]);
        fake.given().tenants.get_mut(&id).unwrap().push(signed);
    }
    tenant.json(&["status"]);
    let today = fake.given().tenants[&id].clone();
    yesterday.restore(&mut fake.given(), &id);
    let project = tenant.project("web", "web.shop.test", "");
    deploy(&tenant, &project, 1);
    assert_eq!(
        fake.given().tenants[&id],
        today,
        "both of them, in their order"
    );
}
