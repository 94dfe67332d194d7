//! Freshness: a manifest that demands it is valid as long as its tenant renews it, and only the
//! tenant can do so.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::freshness::{Freshness, FreshnessDemand, MAX_SKEW_SECS};
use crate::statement::Manifest;

const HOUR: Seconds = 3600;
/// The tenant's key, the key that the manifest names, and an unknown key.
const TENANT: u8 = 10;
const CRON: u8 = 30;
const EVIL: u8 = 66;

/// A manifest that was signed now and is fresh for an hour, and that [`CRON`] may renew.
fn demanding(world: &mut World, version: u64) -> Manifest {
    let freshness = FreshnessDemand {
        max_age_secs: HOUR,
        key: Some(key(CRON).public()),
    };
    Manifest {
        freshness: Some(freshness),
        issued: NOW,
        ..world.manifest(version)
    }
}

fn deployed(version: u64) -> (World, Manifest) {
    let mut world = World::new();
    let manifest = demanding(&mut world, version);
    world.accept(&manifest.sign(&[&key(TENANT)])).unwrap();
    (world, manifest)
}

fn statement(manifest: &Manifest, issued: Seconds) -> Freshness {
    Freshness {
        fleet: manifest.fleet,
        tenant: manifest.tenant,
        version: manifest.version,
        manifest: manifest.sign(&[]).payload_digest(),
        issued,
    }
}

fn shown(world: &mut World, statement: &Freshness, signer: u8, clock: Seconds) -> &'static str {
    let judged = world.judge.accept(&statement.sign(&[&key(signer)]), clock);
    judged.map_or_else(|refusal| refusal.code(), |_| "accepted")
}

fn standing(world: &World, now: Seconds) -> Standing {
    world.judge.tenant(&world.tenant.id).unwrap().standing(now)
}

fn is_stale(world: &World, now: Seconds) -> bool {
    matches!(standing(world, now), Standing::Stale(_))
}

#[test]
fn a_manifest_is_fresh_for_as_long_as_its_tenant_renews_it() {
    let (mut world, manifest) = deployed(5);
    assert_eq!(standing(&world, NOW), Standing::Fresh(NOW + HOUR));
    assert!(!is_stale(&world, NOW + HOUR - 1) && is_stale(&world, NOW + HOUR));
    // Both keys may renew it.
    for (signer, at) in [(CRON, NOW + 100), (TENANT, NOW + 200)] {
        let renewed = statement(&manifest, at);
        assert_eq!(shown(&mut world, &renewed, signer, at), "accepted");
        assert_eq!(standing(&world, at), Standing::Fresh(at + HOUR));
        let again = world.judge.accept(&renewed.sign(&[&key(signer)]), at);
        assert_eq!(again, Ok(Accepted::Held));
    }
    assert!(is_stale(&world, NOW + 200 + HOUR));
    // It has no effect on a manifest without the demand.
    let plain = world.manifest(6);
    world.accept(&plain.sign(&[&key(TENANT)])).unwrap();
    assert_eq!(standing(&world, LATER), Standing::Undemanded);
    let undemanded = statement(&plain, NOW + 300);
    assert_eq!(
        shown(&mut world, &undemanded, TENANT, NOW + 300),
        "freshness_undemanded"
    );
}

#[test]
fn only_the_tenant_and_the_named_key_renew_it() {
    let (mut world, manifest) = deployed(5);
    let before = world.judge.memory().clone();
    let good = statement(&manifest, NOW + 100);
    // The root, a key like the online key, and an unknown key.
    for signer in [1, 20, EVIL] {
        assert_eq!(
            shown(&mut world, &good, signer, NOW + 100),
            "signature_threshold"
        );
    }
    let fleet = Freshness {
        fleet: FleetId([9; 32]),
        ..good.clone()
    };
    let tenant = Freshness {
        tenant: TenantId([9; 32]),
        ..good.clone()
    };
    let other = Freshness {
        manifest: Digest([9; 32]),
        ..good.clone()
    };
    let older = Freshness {
        version: 4,
        ..good.clone()
    };
    let future = Freshness {
        issued: NOW + MAX_SKEW_SECS + 1,
        ..good.clone()
    };
    let past = Freshness {
        issued: NOW - HOUR,
        ..good.clone()
    };
    for (wrong, code) in [
        (fleet, "fleet_other"),
        (tenant, "tenant_unknown"),
        (other, "freshness_manifest_other"),
        (older, "freshness_version_lower"),
        (future, "freshness_from_future"),
        (past, "freshness_expired"),
        (
            Freshness {
                version: 0,
                ..good.clone()
            },
            "statement_malformed",
        ),
    ] {
        assert_eq!(shown(&mut world, &wrong, TENANT, NOW), code);
    }
    assert_eq!(*world.judge.memory(), before, "nothing has changed");
    assert_eq!(shown(&mut world, &good, CRON, NOW + 100), "accepted");
}

#[test]
fn a_statement_is_not_replayed_backwards_also_after_a_loss() {
    let (mut world, manifest) = deployed(5);
    let (first, second) = (
        statement(&manifest, NOW + 10),
        statement(&manifest, NOW + 20),
    );
    assert_eq!(shown(&mut world, &second, CRON, NOW + 20), "accepted");
    assert_eq!(shown(&mut world, &first, CRON, NOW + 20), "freshness_older");
    // The same time with other bytes: another signer's formatting changes the digest.
    let spaced = serde_json::to_vec_pretty(&second).unwrap();
    let spaced = Envelope::sign(Freshness::TYPE, spaced, &[&key(CRON)]);
    let judged = world.judge.accept(&spaced, NOW + 20).unwrap_err();
    assert_eq!(judged.code(), "freshness_older");

    // What is held is lost; what is remembered is not.
    let statements = [
        world.tenant.sign(&[&key(1)]),
        manifest.sign(&[&key(TENANT)]),
    ];
    let memory = world.judge.memory().clone();
    let memory = serde_json::from_slice(&serde_json::to_vec(&memory).unwrap()).unwrap();
    world.judge = Judge::remembering(memory, Some(name("main")));
    world.judge.accept(&statements[0], NOW).unwrap();
    world.accept(&statements[1]).unwrap();
    let late = NOW + 2 * HOUR;
    assert_eq!(shown(&mut world, &first, CRON, NOW + 20), "freshness_older");
    // The same statement is accepted again at any time, and is valid for no longer than before.
    assert_eq!(shown(&mut world, &second, CRON, late), "accepted");
    assert!(is_stale(&world, late));
    assert_eq!(standing(&world, NOW + 30), Standing::Fresh(NOW + 20 + HOUR));
}

#[test]
fn once_the_tenant_has_named_a_newer_manifest_the_old_ones_key_keeps_nothing_fresh() {
    let (mut world, old) = deployed(5);
    let newer = demanding(&mut world, 6);
    // Manifest 6 is withheld. The key that it names is unknown here, and the old one's may not
    // renew it.
    let named = statement(&newer, NOW + 50);
    assert_eq!(
        shown(&mut world, &named, CRON, NOW + 50),
        "signature_threshold"
    );
    assert_eq!(standing(&world, NOW + 50), Standing::Fresh(NOW + HOUR));
    assert_eq!(shown(&mut world, &named, TENANT, NOW + 50), "accepted");
    let superseded = Stale::Superseded { held: 5, newest: 6 };
    assert_eq!(standing(&world, NOW + 50), Standing::Stale(superseded));
    let kept = statement(&old, NOW + 60);
    for signer in [CRON, TENANT] {
        assert_eq!(
            shown(&mut world, &kept, signer, NOW + 60),
            "freshness_version_lower"
        );
    }
    assert!(is_stale(&world, NOW + 60));
    // With the named manifest, its credentials may be used at once.
    world.accept(&newer.sign(&[&key(TENANT)])).unwrap();
    assert_eq!(standing(&world, NOW + 60), Standing::Fresh(NOW + 50 + HOUR));
    assert_eq!(
        shown(&mut world, &kept, CRON, NOW + 70),
        "freshness_version_lower"
    );
    let renewed = statement(&newer, NOW + 70);
    assert_eq!(shown(&mut world, &renewed, CRON, NOW + 70), "accepted");
}

#[test]
fn a_deployment_is_fresh_by_its_own_signature_and_forgets_statements_on_older_manifests() {
    let (mut world, old) = deployed(5);
    let renewed = statement(&old, NOW + 10);
    assert_eq!(shown(&mut world, &renewed, CRON, NOW + 10), "accepted");
    let newer = demanding(&mut world, 6);
    world.accept(&newer.sign(&[&key(TENANT)])).unwrap();
    let state = world.judge.tenant(&world.tenant.id).unwrap();
    assert_eq!(state.freshness, None);
    assert_eq!(standing(&world, NOW), Standing::Fresh(NOW + HOUR));
    assert_eq!(
        shown(&mut world, &renewed, CRON, NOW + 10),
        "freshness_version_lower"
    );
    // With new keys of the tenant, statements by the earlier ones are refused, and accepted ones
    // stay remembered.
    let renewed = statement(&newer, NOW + 20);
    assert_eq!(shown(&mut world, &renewed, TENANT, NOW + 20), "accepted");
    let keys = Tenant {
        version: 2,
        current: KeySet::single(key(11).public()),
        ..world.tenant.clone()
    };
    let judge = &mut world.judge;
    judge.accept(&keys.sign(&[&key(TENANT)]), NOW).unwrap();
    let next = statement(&newer, NOW + 30);
    assert_eq!(
        shown(&mut world, &next, TENANT, NOW + 30),
        "signature_threshold"
    );
    let replayed = statement(&newer, NOW + 15);
    assert_eq!(
        shown(&mut world, &replayed, 11, NOW + 30),
        "freshness_older"
    );
    assert_eq!(shown(&mut world, &next, 11, NOW + 30), "accepted");
}

#[test]
fn a_clock_that_was_set_back_makes_nothing_fresh() {
    let (mut world, manifest) = deployed(5);
    let renewed = statement(&manifest, NOW + HOUR / 2);
    assert_eq!(
        shown(&mut world, &renewed, CRON, NOW + HOUR / 2),
        "accepted"
    );
    let back = NOW - MAX_SKEW_SECS - 1;
    assert_eq!(standing(&world, back), Standing::Stale(Stale::FromFuture));
    // The later statement is not used before its time; the earlier one is.
    assert_eq!(standing(&world, NOW), Standing::Fresh(NOW + HOUR));
}

#[test]
fn a_manifest_without_the_demand_is_as_it_was() {
    let plain = World::new().manifest(1);
    let text = serde_json::to_string(&plain).unwrap();
    assert!(!text.contains("freshness"), "{text}");
    let read: Manifest = serde_json::from_str(&text).unwrap();
    assert_eq!(read, plain);
}

static DEPLOYED: LazyLock<(World, Manifest)> = LazyLock::new(|| deployed(5));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_flipped_bit_of_a_statement_is_refused(bit: usize) {
        let (mut world, manifest) = DEPLOYED.clone();
        let envelope = statement(&manifest, NOW + 10).sign(&[&key(CRON)]);
        let mut bytes = envelope.to_bytes();
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let Ok(flipped) = Envelope::parse(&bytes) else { return Ok(()) };
        let judged = world.judge.accept(&flipped, NOW + 10);
        // A key id is a hint outside of the signature: a flip there does not change the statement.
        let same = flipped.unverified_payload() == envelope.unverified_payload()
            && flipped.payload_type() == envelope.payload_type();
        prop_assert!(judged.is_err() || same, "{judged:?}");
    }
}

#[test]
fn an_age_out_of_bounds_is_refused_with_the_manifest() {
    let mut world = World::new();
    for max_age_secs in [0, 59, 30 * 24 * HOUR + 1, u64::MAX] {
        let mut manifest = demanding(&mut world, 1);
        manifest.freshness = Some(FreshnessDemand {
            max_age_secs,
            key: None,
        });
        let refused = world.accept(&manifest.sign(&[&key(TENANT)]));
        assert_eq!(refused, Err("statement_malformed"));
    }
}
