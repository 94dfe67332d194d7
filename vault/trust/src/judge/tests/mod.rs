//! Every refusal that a taken-over control plane can meet, by code.

mod adversary;
mod change;
mod freshness;
mod hosts;
mod image;
mod revocation;
mod rotation;
mod world;

use super::*;
use crate::key::{SealingKey, SigningKey};
use crate::release::{Release, Slot};
use crate::secret::Secret;
use crate::statement::{KeySet, Manifest, Tenant};
use world::{LATER, NOW, World, key, name, root};

#[test]
fn the_honest_path_is_accepted_and_again_is_held() {
    let mut world = World::new();
    let manifest = world.manifest(1).sign(&[&key(10)]);
    assert_eq!(world.accept(&manifest), Ok(Accepted::New));
    assert_eq!(world.accept(&manifest), Ok(Accepted::Held));
    let state = world.judge.tenant(&world.tenant.id).unwrap();
    assert_eq!(state.running(&name("main")).count(), 1);
    assert_eq!(state.running(&name("other")).count(), 0);
}

#[test]
fn another_root_is_refused() {
    let mut world = World::new();
    let refused = |judge: &mut Judge, root: Root, keys: &[&SigningKey]| {
        judge.accept(&root.sign(keys), NOW).unwrap_err().code()
    };
    let judge = &mut world.judge;
    assert_eq!(
        refused(
            &mut Judge::new(FleetId([9; 32]), None),
            root(1, &[1]),
            &[&key(1)]
        ),
        "root_unknown"
    );
    assert_eq!(
        refused(judge, root(1, &[2]), &[&key(2)]),
        "root_same_version_other_digest"
    );
    assert_eq!(
        refused(judge, root(2, &[2]), &[&key(2)]),
        "signature_threshold"
    );
    assert_eq!(
        refused(judge, root(2, &[2]), &[&key(1)]),
        "signature_threshold"
    );
    assert_eq!(
        refused(judge, root(3, &[2]), &[&key(1), &key(2)]),
        "root_version_gap"
    );
    assert_eq!(
        refused(
            judge,
            Root {
                version: u64::MAX,
                ..root(2, &[2])
            },
            &[&key(1), &key(2)]
        ),
        "statement_malformed"
    );
    judge
        .accept(&root(2, &[2]).sign(&[&key(1), &key(2)]), NOW)
        .unwrap();
    assert_eq!(
        refused(judge, root(1, &[1]), &[&key(1)]),
        "root_version_lower"
    );
}

#[test]
fn an_online_key_of_its_own_is_refused() {
    let mut world = World::new();
    let online = |version, seed: u8| {
        let public = key(seed).public();
        OnlineKey {
            fleet: world.fleet,
            version,
            liveness: public,
            quic: public,
            api: public,
            issued: 1,
            expires: LATER,
        }
    };
    let code =
        |judge: &mut Judge, envelope: Envelope| judge.accept(&envelope, NOW).unwrap_err().code();
    let (own, good, other) = (
        online(1, 66).sign(&[&key(66)]),
        online(2, 20).sign(&[&key(1)]),
        online(2, 21).sign(&[&key(1)]),
    );
    let old = online(1, 20).sign(&[&key(1)]);
    assert_eq!(code(&mut world.judge, own), "signature_threshold");
    world.judge.accept(&good, NOW).unwrap();
    assert_eq!(
        code(&mut world.judge, other),
        "online_same_version_other_digest"
    );
    assert_eq!(code(&mut world.judge, old), "online_version_lower");
}

#[test]
fn a_pool_key_of_its_own_is_refused() {
    let mut world = World::new();
    let mut own = world.pool.clone();
    own.public_key = SealingKey::of_seed(&[66; 32]).unwrap();
    let code =
        |judge: &mut Judge, envelope: Envelope| judge.accept(&envelope, NOW).unwrap_err().code();
    assert_eq!(
        code(&mut world.judge, own.sign(&[&key(66)])),
        "pool_same_epoch_other_key"
    );
    own.epoch = 2;
    assert_eq!(
        code(&mut world.judge, own.sign(&[&key(66)])),
        "signature_threshold"
    );
    own.expires = NOW;
    assert_eq!(code(&mut world.judge, own.sign(&[&key(1)])), "pool_expired");
}

#[test]
fn a_pool_has_no_more_epochs_than_a_node_can_report() {
    let mut world = World::new();
    let mut accept = |epoch| {
        let pool = Pool {
            epoch,
            ..world.pool.clone()
        };
        world.judge.accept(&pool.sign(&[&key(1)]), NOW)
    };
    for epoch in 2..=MAX_EPOCHS_HELD as u64 {
        assert_eq!(accept(epoch), Ok(Accepted::New));
    }
    let more = accept(MAX_EPOCHS_HELD as u64 + 1);
    assert_eq!(more.unwrap_err().code(), "too_many");
    assert_eq!(accept(1), Ok(Accepted::Held));
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, step by step")]
fn a_tenant_of_its_own_is_refused() {
    let mut world = World::new();
    let code = |judge: &mut Judge, tenant: &Tenant, signer: u8| {
        judge
            .accept(&tenant.sign(&[&key(signer)]), NOW)
            .unwrap_err()
            .code()
    };
    let first = world.tenant.clone();
    let impostor = Tenant::first(
        world.fleet,
        name("shop"),
        KeySet::single(key(66).public()),
        vec![],
        1,
        LATER,
    );
    assert_eq!(code(&mut world.judge, &impostor, 66), "signature_threshold");
    assert_ne!(
        impostor.id, first.id,
        "other keys are another tenant, whoever signs"
    );
    let stolen = Tenant {
        genesis: KeySet::single(key(66).public()),
        version: 2,
        ..first.clone()
    };
    assert_eq!(code(&mut world.judge, &stolen, 66), "statement_malformed");
    let next = Tenant {
        version: 2,
        current: KeySet::single(key(66).public()),
        ..first.clone()
    };
    assert_eq!(
        code(&mut world.judge, &next, 66),
        "tenant_key_change_unauthorised"
    );
    let wider = Tenant {
        version: 2,
        hosts: vec!["bank.test".parse().unwrap()],
        ..first.clone()
    };
    assert_eq!(code(&mut world.judge, &wider, 10), "tenant_scope_widened");
    let longer = Tenant {
        version: 2,
        expires: LATER + 1,
        ..first.clone()
    };
    assert_eq!(code(&mut world.judge, &longer, 10), "tenant_scope_widened");
    assert_eq!(
        code(
            &mut world.judge,
            &Tenant {
                issued: 2,
                ..first.clone()
            },
            1
        ),
        "tenant_same_version_other_digest"
    );
    assert_eq!(
        code(
            &mut world.judge,
            &Tenant {
                version: 2,
                expires: NOW,
                ..first.clone()
            },
            1
        ),
        "tenant_expired"
    );
    world
        .judge
        .accept(
            &Tenant {
                version: 2,
                current: KeySet::single(key(11).public()),
                ..first.clone()
            }
            .sign(&[&key(10)]),
            NOW,
        )
        .unwrap();
    assert_eq!(code(&mut world.judge, &first, 1), "tenant_version_lower");
}

#[test]
fn manifests_signed_by_too_few_the_same_twice_a_removed_key_or_another_tenant_are_refused() {
    let mut world = World::new();
    let current = KeySet {
        keys: vec![key(11).public(), key(12).public()],
        threshold: 2,
    };
    world
        .judge
        .accept(
            &Tenant {
                version: 2,
                current,
                ..world.tenant.clone()
            }
            .sign(&[&key(10)]),
            NOW,
        )
        .unwrap();
    let manifest = world.manifest(1);
    for keys in [
        &[&key(11)][..],
        &[&key(11), &key(11)],
        &[&key(10)],
        &[&key(10), &key(11)],
        &[&key(1)],
        &[],
    ] {
        assert_eq!(
            world.accept(&manifest.sign(keys)),
            Err("signature_threshold")
        );
    }
    let unknown = Manifest {
        tenant: TenantId([1; 32]),
        ..manifest.clone()
    };
    assert_eq!(
        world.accept(&unknown.sign(&[&key(11), &key(12)])),
        Err("tenant_unknown")
    );
    let ahead = Manifest {
        tenant_version: 3,
        ..manifest.clone()
    };
    assert_eq!(
        world.accept(&ahead.sign(&[&key(11), &key(12)])),
        Err("tenant_unknown")
    );
    assert_eq!(
        world.accept(&manifest.sign(&[&key(11), &key(12)])),
        Ok(Accepted::New)
    );
}

#[test]
fn manifests_that_are_expired_lower_or_equal_with_another_digest_are_refused() {
    let mut world = World::new();
    let manifest = world.manifest(5);
    world.accept(&manifest.sign(&[&key(10)])).unwrap();
    let mut refused = |change: &dyn Fn(&mut Manifest)| {
        let mut other = manifest.clone();
        change(&mut other);
        world.accept(&other.sign(&[&key(10)])).unwrap_err()
    };
    assert_eq!(refused(&|m| m.version = 4), "manifest_version_lower");
    assert_eq!(
        refused(&|m| m.issued = 2),
        "manifest_same_version_other_digest"
    );
    assert_eq!(
        refused(&|m| (m.version, m.expires) = (6, NOW)),
        "manifest_expired"
    );
    assert_eq!(refused(&|m| m.version = u64::MAX), "statement_malformed");
    assert_eq!(
        refused(&|m| (m.version, m.fleet) = (6, FleetId([0; 32]))),
        "fleet_other"
    );
}

#[test]
fn objects_with_another_digest_and_missing_ones_are_refused() {
    let mut world = World::new();
    let manifest = world.manifest(1).sign(&[&key(10)]);
    let digests: Vec<Digest> = world.objects.keys().copied().collect();
    let swapped = world.objects[&digests[0]].clone();
    let kept = world.objects.insert(digests[1], swapped);
    assert_eq!(world.accept(&manifest), Err("digest_mismatch"));
    world.objects.remove(&digests[1]);
    assert_eq!(world.accept(&manifest), Err("objects_missing"));
    world.objects.insert(digests[1], kept.unwrap());
    assert_eq!(world.accept(&manifest), Ok(Accepted::New));
}

#[test]
fn releases_that_are_not_the_tenants_or_ask_too_much_are_refused() {
    assert_eq!(
        World::with_release(|release| release.hosts = vec!["bank.test".parse().unwrap()]),
        Err("release_host_not_tenants")
    );
    assert_eq!(
        World::with_release(|release| release.function = name("api")),
        Err("release_other")
    );
    assert_eq!(
        World::with_release(|release| release.tenant = TenantId([0; 32])),
        Err("release_other")
    );
    assert_eq!(
        World::with_release(|release| release.limits.heap_mib = 4096),
        Err("release_over_ceiling")
    );
    assert_eq!(
        World::with_release(|release| release.limits.cpu_time_ms = 0),
        Err("release_malformed")
    );
    let evil = Slot::Header {
        name: "host".into(),
        prefix: String::new(),
    };
    assert_eq!(
        World::with_release(|release| release.credentials[0].slot = evil),
        Err("release_malformed")
    );
    assert_eq!(
        World::with_release(|release| release.credentials[0].host = "evil.test".parse().unwrap()),
        Err("secret_limits_widened")
    );
}

#[test]
fn secrets_swapped_between_tenants_names_and_pools_are_refused() {
    assert_eq!(World::with_secret(|_| ()), Ok(Accepted::New));
    assert_eq!(
        World::with_secret(|place| place.tenant = TenantId([0; 32])),
        Err("secret_other")
    );
    assert_eq!(
        World::with_secret(|place| place.name = "OTHER".parse().unwrap()),
        Err("secret_other")
    );
    assert_eq!(
        World::with_secret(|place| place.pool = name("other")),
        Err("secret_other")
    );
    assert_eq!(
        World::with_secret(|place| place.limits.methods = vec!["GET".parse().unwrap()]),
        Err("secret_limits_widened")
    );
    assert_eq!(
        World::with_secret(|place| place.limits.paths = vec!["/v1/*".parse().unwrap()]),
        Err("secret_limits_widened")
    );
    assert_eq!(
        World::with_secret(|place| place.limits.slots = vec![crate::release::SlotKind::Query]),
        Err("secret_limits_widened")
    );
}

#[test]
fn a_lost_store_takes_the_same_again_and_nothing_lower() {
    let mut world = World::new();
    let (old, new) = (
        world.manifest(1).sign(&[&key(10)]),
        world.manifest(2).sign(&[&key(10)]),
    );
    world.accept(&old).unwrap();
    world.accept(&new).unwrap();
    let before = world.judge.memory().clone();
    world.judge = Judge::remembering(before.clone(), Some(name("main")));
    assert_eq!(
        world.accept(&new),
        Err("tenant_unknown"),
        "absence is not a statement"
    );
    // Long after everything has expired, accepted statements stay held.
    let long_after = LATER + 1;
    world
        .judge
        .accept(&root(1, &[1]).sign(&[&key(1)]), long_after)
        .unwrap();
    world
        .judge
        .accept(&world.pool.sign(&[&key(1)]), long_after)
        .unwrap();
    world
        .judge
        .accept(&world.tenant.sign(&[&key(1)]), long_after)
        .unwrap();
    assert_eq!(world.accept(&old), Err("manifest_version_lower"));
    assert_eq!(world.accept(&new), Ok(Accepted::Again));
    assert_eq!(*world.judge.memory(), before);
}

#[test]
fn a_clock_of_1970_does_not_revive_what_expired() {
    let mut world = World::new();
    let newer = Tenant {
        version: 2,
        issued: LATER + 5,
        expires: LATER + 9,
        ..world.tenant.clone()
    };
    world.judge.accept(&newer.sign(&[&key(1)]), NOW).unwrap();
    let manifest = world.manifest(1).sign(&[&key(10)]);
    assert_eq!(
        world.accept(&manifest),
        Err("manifest_expired"),
        "the root has signed a later statement"
    );
}

#[test]
fn a_tenant_that_loses_a_host_loses_the_function_there() {
    let mut world = World::new();
    let manifest = world.manifest(1).sign(&[&key(10)]);
    world.accept(&manifest).unwrap();
    let narrower = Tenant {
        version: 2,
        hosts: vec!["other.test".parse().unwrap()],
        ..world.tenant.clone()
    };
    world.judge.accept(&narrower.sign(&[&key(1)]), NOW).unwrap();
    assert_eq!(
        world
            .judge
            .tenant(&world.tenant.id)
            .unwrap()
            .running(&name("main"))
            .count(),
        0
    );
}
