//! Lists of revoked nodes: only the root signs them, and an older list never replaces a newer one.

use super::*;
use crate::key::PublicKey;
use crate::revocation::Revocations;

fn list(world: &World, version: u64, nodes: &[u8]) -> Revocations {
    let mut list = Revocations {
        fleet: world.fleet,
        version,
        nodes: vec![],
        exposed: [].into(),
        issued: 1,
    };
    for node in nodes {
        list.revoke(key(*node).public(), &name("main"), Some(version));
    }
    list
}

fn code(judge: &mut Judge, list: &Revocations, signer: u8) -> &'static str {
    let envelope = list.sign(&[&key(signer)]);
    judge.accept(&envelope, NOW).unwrap_err().code()
}

#[test]
fn the_newest_list_counts_and_outlives_the_loss_of_what_is_held() {
    let mut world = World::new();
    let node: PublicKey = key(21).public();
    assert_eq!(world.judge.must_not_be_revoked(&node), Ok(()));
    let first = list(&world, 1, &[21]).sign(&[&key(1)]);
    assert_eq!(world.judge.accept(&first, NOW), Ok(Accepted::New));
    assert_eq!(world.judge.accept(&first, NOW), Ok(Accepted::Held));
    let refused = world.judge.must_not_be_revoked(&node).unwrap_err();
    assert_eq!(refused.code(), "node_revoked");
    assert!(world.judge.is_exposed(&name("main"), 1));
    let second = list(&world, 2, &[21, 22]).sign(&[&key(1)]);
    world.judge.accept(&second, NOW).unwrap();
    let mut later = Judge::remembering(world.judge.memory().clone(), None);
    let lower = later.accept(&first, NOW).unwrap_err();
    assert_eq!(lower.code(), "revocations_version_lower");
    assert_eq!(later.accept(&second, NOW), Ok(Accepted::Again));
    assert!(later.is_revoked(&key(22).public()));
}

#[test]
fn foreign_unsigned_and_contradicting_lists_are_refused() {
    let mut world = World::new();
    let good = list(&world, 5, &[21]);
    let accepted = world.judge.accept(&good.sign(&[&key(1)]), NOW);
    assert_eq!(accepted, Ok(Accepted::New));
    let before = world.judge.memory().clone();
    let (other, lower, next) = (
        list(&world, 5, &[]),
        list(&world, 4, &[]),
        list(&world, 6, &[]),
    );
    let foreign = Revocations {
        fleet: FleetId([9; 32]),
        ..next.clone()
    };
    let judge = &mut world.judge;
    assert_eq!(
        code(judge, &other, 1),
        "revocations_same_version_other_digest"
    );
    assert_eq!(code(judge, &lower, 1), "revocations_version_lower");
    assert_eq!(code(judge, &foreign, 1), "fleet_other");
    // Neither the control plane's online key nor a tenant's key may sign a list.
    for signer in [2, 10] {
        assert_eq!(code(judge, &next, signer), "signature_threshold");
    }
    assert_eq!(*judge.memory(), before);
}
