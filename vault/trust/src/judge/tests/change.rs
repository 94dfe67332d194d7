//! The commit protocol: a decision is written before it is applied, and applied only to the state
//! for which it was made.

use super::*;
use crate::freshness::FreshnessDemand;

fn rotated(world: &World) -> Envelope {
    let tenant = Tenant {
        version: 2,
        current: KeySet::single(key(11).public()),
        ..world.tenant.clone()
    };
    tenant.sign(&[&key(10)])
}

#[test]
fn a_change_that_was_not_written_is_not_applied() {
    let world = World::new();
    let change = world
        .judge
        .decide(&rotated(&world), NOW, &no_objects)
        .unwrap();
    let failed = change.commit(|change| {
        assert_eq!(change.rows().len(), 1);
        assert_eq!(change.memory().len(), 1, "one row of the tenant");
        Err::<(), _>("the disk is full")
    });
    assert_eq!(failed.unwrap_err(), "the disk is full");
    let tenant = world.judge.tenant(&world.tenant.id).unwrap();
    assert_eq!(tenant.tenant.version, 1);
}

#[test]
#[should_panic(expected = "expected a change of this judge's present state")]
fn a_change_of_an_earlier_state_is_not_applied() {
    let mut world = World::new();
    let change = world
        .judge
        .decide(&rotated(&world), NOW, &no_objects)
        .unwrap();
    let (committed, ()) = change.commit(|_| Ok::<_, ()>(())).unwrap();
    let next = root(2, &[2]).sign(&[&key(1), &key(2)]);
    world.judge.accept(&next, NOW).unwrap();
    world.judge.apply(committed);
}

#[test]
#[should_panic(expected = "expected a change of this judge's present state")]
fn a_change_of_another_judge_is_not_applied() {
    let (world, mut other) = (World::new(), World::new());
    let change = world
        .judge
        .decide(&rotated(&world), NOW, &no_objects)
        .unwrap();
    let (committed, ()) = change.commit(|_| Ok::<_, ()>(())).unwrap();
    other.judge.apply(committed);
}

/// A kill between records and memory: the tenant's earlier statement, whose keys have signed this
/// one, is already overwritten.
#[test]
fn a_rotation_whose_memory_was_not_written_is_remembered_at_the_next_start() {
    let mut world = World::new();
    let before = world.judge.memory().clone();
    world.judge.accept(&rotated(&world), NOW).unwrap();
    let rows = [
        root(1, &[1]).sign(&[&key(1)]),
        world.pool.sign(&[&key(1)]),
        rotated(&world),
    ];
    let rows = rows.into_iter().map(|envelope| ((), envelope));
    let (judge, refused) = Judge::replay(before, Some(name("main")), rows, &no_objects);
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(judge.memory(), world.judge.memory());
    let tenant = judge.tenant(&world.tenant.id).unwrap();
    assert_eq!(tenant.tenant.version, 2);
}

#[test]
fn rows_of_another_fleet_are_refused() {
    let world = World::new();
    let other = FleetId([9; 32]);
    let rows = [
        root(1, &[1]).sign(&[&key(1)]),
        world.pool.sign(&[&key(1)]),
        world.tenant.sign(&[&key(1)]),
    ];
    let rows = rows.into_iter().enumerate();
    let (judge, refused) = Judge::replay(Memory::new(other), None, rows, &no_objects);
    let codes: Vec<_> = refused
        .iter()
        .map(|(at, refusal)| (*at, refusal.code()))
        .collect();
    assert_eq!(
        codes,
        [(0, "root_unknown"), (1, "fleet_other"), (2, "fleet_other")]
    );
    assert_eq!(*judge.memory(), Memory::new(other));
}

#[test]
fn a_manifest_names_the_rows_that_it_puts_and_those_that_it_drops() {
    let mut world = World::new();
    let mut first = world.manifest(1);
    first.freshness = Some(FreshnessDemand {
        max_age_secs: 3600,
        key: None,
    });
    let signed = first.sign(&[&key(10)]);
    world.accept(&signed).unwrap();
    let fresh = crate::freshness::Freshness {
        fleet: world.fleet,
        tenant: world.tenant.id,
        version: 1,
        manifest: signed.payload_digest(),
        issued: NOW,
    };
    world.judge.accept(&fresh.sign(&[&key(10)]), NOW).unwrap();
    let mut next = first.clone();
    (next.version, next.secrets) = (2, [].into());
    let mut release = world.release();
    release.credentials.clear();
    let listed = world.put(release.to_bytes());
    next.functions
        .values_mut()
        .for_each(|wanted| wanted.release = listed);
    let objects = world.objects.clone();
    let find = |digest: &Digest| objects.get(digest).cloned();
    let signed = next.sign(&[&key(10)]);
    let change = world.judge.decide(&signed, NOW, &find).unwrap();
    let id = world.tenant.id;
    let before: std::collections::BTreeSet<_> =
        objects.keys().filter(|digest| **digest != listed).collect();
    let mut expected: Vec<_> = before
        .into_iter()
        .map(|digest| Row::Drop(RowKey::Object(*digest)))
        .collect();
    expected.push(Row::Drop(RowKey::Freshness(id)));
    expected.push(Row::Put(RowKey::Manifest(id), signed.to_bytes()));
    expected.push(Row::Put(RowKey::Object(listed), release.to_bytes()));
    assert_eq!(change.rows(), expected);
    assert_eq!(change.affected(), [id]);
    assert_eq!(change.memory().len(), 1);
}
