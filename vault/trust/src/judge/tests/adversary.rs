//! Flipped bits, and a fleet under an adversary.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

/// Sealing is slow without optimisation: one world, cloned for each case.
static WORLD: LazyLock<(World, Manifest)> = LazyLock::new(|| {
    let mut world = World::new();
    let manifest = world.manifest(1);
    (world, manifest)
});

/// Every statement, sealed into its envelope, with one bit flipped anywhere: never accepted as new, and never another meaning.
fn flip(bytes: &[u8], bit: usize) -> Option<Envelope> {
    let mut flipped = bytes.to_vec();
    let bit = bit % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    Envelope::parse(&flipped).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_flipped_bit_is_refused(bit: usize, which in 0usize..5) {
        let (mut world, manifest) = WORLD.clone();
        let online = OnlineKey {
            fleet: world.fleet,
            version: 1,
            liveness: key(2).public(),
            quic: key(3).public(),
            api: key(4).public(),
            issued: 1,
            expires: LATER,
        };
        let pool = Pool { epoch: 2, ..world.pool.clone() };
        let tenant = Tenant { version: 2, ..world.tenant.clone() };
        let envelope = match which {
            0 => root(2, &[2]).sign(&[&key(1), &key(2)]),
            1 => online.sign(&[&key(1)]),
            2 => pool.sign(&[&key(1)]),
            3 => tenant.sign(&[&key(1)]),
            _ => manifest.sign(&[&key(10)]),
        };
        let Some(flipped) = flip(&envelope.to_bytes(), bit) else { return Ok(()) };
        let result = match which {
            0 => world.judge.accept_root(&flipped, NOW).map_err(|refusal| refusal.code()),
            1 => world.judge.accept_online_key(&flipped, NOW).map_err(|refusal| refusal.code()),
            2 => world.judge.accept_pool(&flipped, NOW).map_err(|refusal| refusal.code()),
            3 => world.judge.accept_tenant(&flipped, NOW).map_err(|refusal| refusal.code()),
            _ => world.accept(&flipped),
        };
        // A key id is a hint outside of the signature: a flip there changes nothing that is said.
        let same = flipped.unverified_payload() == envelope.unverified_payload() && flipped.payload_type() == envelope.payload_type();
        prop_assert!(result.is_err() || same, "{result:?}");
    }
}

/// Nodes that an adversary feeds: it reorders, hides and replays honest statements and adds its own. Whatever it does, no
/// node's versions ever go down, and what a node holds is what some honest signer signed.
#[test]
fn no_node_ever_accepts_less_than_it_had() {
    let mut taken = 0;
    for seed in 0..40u64 {
        let mut dice = seed;
        let mut roll = move |sides: usize| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        let (world, honest) = WORLD.clone();
        let mut letters = vec![
            (3, world.tenant.sign(&[&key(1)])),
            (0, root(1, &[1]).sign(&[&key(1)])),
            (2, world.pool.sign(&[&key(1)])),
        ];
        let mut signer = 10;
        let mut tenant = world.tenant.clone();
        for version in 1..12 {
            let manifest = Manifest {
                tenant_version: tenant.version,
                version,
                ..honest.clone()
            };
            letters.push((4, manifest.sign(&[&key(signer)])));
            letters.push((
                4,
                Manifest {
                    version: version + 50,
                    ..manifest.clone()
                }
                .sign(&[&key(66)]),
            ));
            if roll(3) == 0 {
                let next = Tenant {
                    version: tenant.version + 1,
                    current: KeySet::single(key(signer + 1).public()),
                    ..tenant.clone()
                };
                letters.push((3, next.sign(&[&key(if roll(2) == 0 { 1 } else { signer })])));
                (tenant, signer) = (next, signer + 1);
            }
        }
        let mut nodes: Vec<Judge> = (0..4)
            .map(|_| Judge::new(world.fleet, Some(name("main"))))
            .collect();
        let objects = world.objects.clone();
        for _ in 0..1500 {
            let (kind, letter) = &letters[roll(letters.len())];
            let at = roll(nodes.len());
            let node = &mut nodes[at];
            let before = node.memory().clone();
            let fetch = |digest: &Digest| objects.get(digest).cloned();
            let result = match kind {
                0 => node.accept_root(letter, NOW),
                2 => node.accept_pool(letter, NOW),
                3 => node.accept_tenant(letter, NOW),
                _ => node.accept_manifest(letter, NOW, &fetch),
            };
            let after = node.memory();
            if result.is_err() {
                assert_eq!(*after, before, "a refusal changes nothing");
            }
            for (id, seen) in &before.tenants {
                assert!(after.tenants[id].tenant.version >= seen.tenant.version);
                assert!(
                    after.tenants[id].manifest.map(|m| m.version)
                        >= seen.manifest.map(|m| m.version)
                );
                assert!(
                    after.tenants[id].manifest.is_none_or(|m| m.version < 50),
                    "the adversary's own"
                );
            }
            if roll(40) == 0 {
                nodes[at] = Judge::remembering(nodes[at].memory().clone(), Some(name("main")));
            }
        }
        let with_manifest = |node: &&Judge| {
            node.memory()
                .tenants
                .values()
                .any(|seen| seen.manifest.is_some())
        };
        taken += nodes.iter().filter(with_manifest).count();
    }
    assert!(
        taken > 40,
        "honest statements must get through, or this proves nothing: {taken}"
    );
}
