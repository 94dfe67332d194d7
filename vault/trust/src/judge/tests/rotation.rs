//! Replaced pools and roots: what stays of the older ones.

use super::*;

fn pool(world: &World, epoch: u64) -> Pool {
    Pool {
        epoch,
        public_key: SealingKey::of_seed(&[epoch as u8; 32]).unwrap(),
        ..world.pool.clone()
    }
}

/// The memory of an earlier program, which remembered one digest for each pool.
#[test]
fn a_memory_of_the_newest_epoch_only_is_still_read() {
    let (fleet, digest) = ("0a".repeat(32), "0b".repeat(32));
    let written = format!(
        r#"{{"fleet":"{fleet}","root":{{"version":1,"digest":"{digest}"}},"online":null,
        "pools":{{"main":{{"version":3,"digest":"{digest}"}}}},"tenants":{{}},"floor":7}}"#
    );
    let memory: Memory = serde_json::from_str(&written).unwrap();
    let seen = Seen {
        version: 3,
        digest: Digest([11; 32]),
    };
    let main = PoolSeen {
        newest: seen,
        older: BTreeMap::new(),
    };
    assert_eq!(memory.pools, [(name("main"), main)].into());
    assert_eq!((memory.floor, memory.root.unwrap().version), (7, 1));
    let other = Pool {
        fleet: FleetId([10; 32]),
        ..pool(&World::new(), 3)
    };
    let mut judge = Judge::remembering(memory, None);
    assert_eq!(
        judge.accept(&other.sign(&[&key(1)]), NOW),
        Err(Refusal::PoolEqualOther)
    );
}

#[test]
fn every_epoch_outlives_a_change_of_root_and_a_restart() {
    let mut world = World::new();
    let envelopes = [1, 2, 3].map(|epoch| match epoch {
        1 => world.pool.sign(&[&key(1)]),
        _ => pool(&world, epoch).sign(&[&key(1)]),
    });
    // An epoch that was never seen may be lower than the newest.
    for at in [2, 1] {
        assert_eq!(world.judge.accept(&envelopes[at], NOW), Ok(Accepted::New));
    }
    let second = root(2, &[2]).sign(&[&key(1), &key(2)]);
    world.judge.accept(&second, NOW).unwrap();
    let written = serde_json::to_vec(world.judge.memory()).unwrap();
    let memory: Memory = serde_json::from_slice(&written).unwrap();
    assert_eq!(memory, *world.judge.memory());

    let mut judge = Judge::remembering(memory, Some(name("main")));
    judge.accept(&second, LATER).unwrap();
    let mut other = pool(&world, 1);
    other.public_key = SealingKey::of_seed(&[66; 32]).unwrap();
    assert_eq!(
        judge.accept(&other.sign(&[&key(2)]), NOW),
        Err(Refusal::PoolEqualOther),
        "the epoch is remembered although it is not held"
    );
    for envelope in &envelopes {
        assert_eq!(judge.accept(envelope, LATER), Ok(Accepted::Again));
    }
    assert_eq!(judge.epochs(&name("main")).collect::<Vec<_>>(), [1, 2, 3]);
    let unseen = pool(&world, 4);
    assert_eq!(
        judge.accept(&unseen.sign(&[&key(1)]), NOW),
        Err(Refusal::SignatureThreshold),
        "the replaced root signs nothing new"
    );
}

#[test]
fn of_too_many_epochs_the_lowest_are_forgotten() {
    let seen = |version| Seen {
        version,
        digest: Digest([version as u8; 32]),
    };
    let most = MAX_EPOCHS_REMEMBERED as u64;
    let epochs = (2..=most + 1).rev().chain([most + 2]);
    let main = epochs.fold(None, |main: Option<PoolSeen>, version| {
        Some(PoolSeen::with(main.as_ref(), seen(version)))
    });
    let main = main.unwrap();
    assert_eq!(main.newest, seen(most + 2));
    let older: Vec<u64> = main.older.keys().copied().collect();
    assert_eq!(older, (3..=most + 1).collect::<Vec<_>>());
    let lower = PoolSeen::with(Some(&main), seen(2));
    assert_eq!(lower.older.len(), older.len());
}

#[test]
fn an_expired_root_is_a_step_of_the_chain_and_signs_nothing_new() {
    let world = World::new();
    let mut late = Judge::new(world.fleet, None);
    let (first, second) = (
        root(1, &[1]).sign(&[&key(1)]),
        Root {
            expires: LATER + 9,
            ..root(2, &[2])
        }
        .sign(&[&key(1), &key(2)]),
    );
    assert_eq!(late.accept(&first, LATER), Ok(Accepted::New));
    let online = OnlineKey {
        fleet: world.fleet,
        version: 1,
        liveness: key(20).public(),
        quic: key(20).public(),
        api: key(20).public(),
        issued: 1,
        expires: LATER + 9,
    };
    let pool = Pool {
        expires: LATER + 9,
        ..world.pool.clone()
    };
    let tenant = Tenant {
        expires: LATER + 9,
        ..world.tenant.clone()
    };
    let say = |judge: &mut Judge, seed: u8, clock| {
        [
            judge.accept(&online.sign(&[&key(seed)]), clock),
            judge.accept(&pool.sign(&[&key(seed)]), clock),
            judge.accept(&tenant.sign(&[&key(seed)]), clock),
        ]
    };
    let refused = |refusal: Refusal| [(); 3].map(|()| Err(refusal.clone()));
    let expired = |expires, clock| Refusal::RootExpired(crate::late::Late { expires, clock });
    assert_eq!(say(&mut late, 1, LATER), refused(expired(LATER, LATER)));
    assert_eq!(late.accept(&second, LATER), Ok(Accepted::New));
    assert_eq!(
        say(&mut late, 1, LATER),
        refused(Refusal::SignatureThreshold)
    );
    assert_eq!(
        say(&mut late, 2, LATER),
        [(); 3].map(|()| Ok(Accepted::New))
    );
    // Accepted statements stay valid after the second root has expired too; a tenant's own
    // statements are still accepted, the root's are not.
    assert_eq!(
        say(&mut late, 2, LATER + 9),
        [(); 3].map(|()| Ok(Accepted::Held))
    );
    let mut rotated = Tenant {
        version: 2,
        expires: LATER + 20,
        ..tenant.clone()
    };
    assert_eq!(
        late.accept(&rotated.sign(&[&key(2)]), LATER + 9),
        Err(expired(LATER + 9, LATER + 9))
    );
    assert_eq!(
        late.accept(&rotated.sign(&[&key(10)]), LATER + 9),
        Err(Refusal::TenantScopeWidened)
    );
    (rotated.expires, rotated.current) = (tenant.expires, KeySet::single(key(11).public()));
    assert_eq!(
        late.accept(&rotated.sign(&[&key(10)]), LATER + 8),
        Ok(Accepted::New)
    );
}
