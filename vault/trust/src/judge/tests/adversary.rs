//! Flipped bits, and a fleet under an adversary.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::image::ImageVersion;

/// Sealing is slow without optimisation, so one world is made and cloned for each case.
static WORLD: LazyLock<(World, Manifest)> = LazyLock::new(|| {
    let mut world = World::new();
    let manifest = world.manifest(1);
    (world, manifest)
});

/// Every statement, sealed into its envelope, with one bit flipped anywhere, is never accepted as
/// new and never gets another meaning.
fn flip(bytes: &[u8], bit: usize) -> Option<Envelope> {
    let mut flipped = bytes.to_vec();
    let bit = bit % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    Envelope::parse(&flipped).ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_flipped_bit_is_refused(bit: usize, which in 0usize..6) {
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
            4 => image(&world, (1, 0), FAR).sign(&[&key(1)]),
            _ => manifest.sign(&[&key(10)]),
        };
        let Some(flipped) = flip(&envelope.to_bytes(), bit) else { return Ok(()) };
        let fetch = |digest: &Digest| world.objects.get(digest).cloned();
        let result = world.judge.accept_with(&flipped, NOW, &fetch);
        // A key id is a hint outside of the signature: a flip there does not change the statement.
        let same = flipped.unverified_payload() == envelope.unverified_payload() && flipped.payload_type() == envelope.payload_type();
        prop_assert!(result.is_err() || same, "{result:?}");
    }
}

/// A time after every event of the test.
const FAR: Seconds = 10 * LATER;
/// Time that passes between two deliveries, seconds: 2,000 deliveries go from [`NOW`] past the
/// expiry of two roots.
const STEP: Seconds = 1000;
const DELIVERIES: Seconds = 2000;
/// The time during which each root is the fleet's. The seed of a root's key is 100 plus the root's
/// version, except for the first root.
const ROOTS: [(Seconds, Seconds); 4] = [
    (NOW, LATER),
    (NOW + 500 * STEP, NOW + 1400 * STEP),
    (NOW + 1000 * STEP, NOW + 1800 * STEP),
    (NOW + 1500 * STEP, FAR),
];

static ROOT_DIGESTS: LazyLock<[Digest; 4]> =
    LazyLock::new(|| [1, 2, 3, 4].map(|version| rotated_root(version).payload_digest()));

/// Statements that the adversary may deliver, and from when each exists.
struct Letter {
    from: Seconds,
    envelope: Envelope,
}

fn root_key(version: usize) -> SigningKey {
    key(if version == 1 { 1 } else { 100 + version as u8 })
}

fn rotated_root(version: usize) -> Envelope {
    if version == 1 {
        return root(1, &[1]).sign(&[&key(1)]);
    }
    let (issued, expires) = ROOTS[version - 1];
    let next = Root {
        version: version as u64,
        keys: vec![root_key(version).public()],
        threshold: 1,
        issued,
        expires,
    };
    next.sign(&[&root_key(version - 1), &root_key(version)])
}

/// The digest of an honest image contains its version; an adversary's contains 66.
fn image(world: &World, (version, content): (u16, u8), expires: Seconds) -> Image {
    Image {
        fleet: world.fleet,
        version: ImageVersion {
            major: version,
            minor: 0,
            patch: 0,
        },
        digest: Digest([content; 32]),
        bytes: 100,
        pools: vec![name("main"), name("other")],
        issued: 1,
        expires,
    }
}

/// The honest history of a fleet whose root changes three times, and the statements that a thief of
/// old keys adds.
fn letters(world: &World, honest: &Manifest, roll: &mut dyn FnMut(usize) -> usize) -> Vec<Letter> {
    let mut letters = Vec::new();
    let (mut tenant, mut signer) = (world.tenant.clone(), 10);
    tenant.expires = FAR;
    for (at, (from, _)) in ROOTS.into_iter().enumerate() {
        let mut write = |envelope| letters.push(Letter { from, envelope });
        let version = at + 1;
        let own = root_key(version);
        write(rotated_root(version));
        write(root(version as u64 + 1, &[66]).sign(&[&key(66)]));
        // Each root signs the standing statements again, for nodes that join late.
        for epoch in 1..=version as u64 {
            let expires = FAR;
            let pool = Pool {
                epoch,
                expires,
                ..world.pool.clone()
            };
            write(pool.sign(&[&own]));
        }
        let stolen = Pool {
            epoch: 50 + version as u64,
            expires: FAR,
            ..world.pool.clone()
        };
        write(stolen.sign(&[&key(1)]));
        // The same image may be signed again for longer.
        let expires = FAR + roll(2) as Seconds;
        let content = at as u8;
        write(image(world, (at as u16, content), expires).sign(&[&own]));
        write(image(world, (at as u16, 66), FAR).sign(&[&key(66)]));
        write(tenant.sign(&[&own]));
        for number in 1..4 {
            let manifest = Manifest {
                tenant_version: tenant.version,
                version: 3 * at as u64 + number,
                expires: FAR,
                ..honest.clone()
            };
            write(manifest.sign(&[&key(signer)]));
            let version = manifest.version + 50;
            write(
                Manifest {
                    version,
                    ..manifest
                }
                .sign(&[&key(66)]),
            );
        }
        if roll(2) == 0 {
            tenant.version += 1;
            tenant.current = KeySet::single(key(signer + 1).public());
            let before = key(signer);
            write(tenant.sign(&[if roll(2) == 0 { &own } else { &before }]));
            signer += 1;
        }
    }
    letters
}

/// The key under which a vault keeps a row. Of statements whose version only rises the vault keeps
/// the newest alone, but it keeps every root.
fn place(key: &RowKey) -> RowKey {
    match key {
        RowKey::Tenant(id, _) => RowKey::Tenant(*id, 0),
        RowKey::Image(..) => RowKey::Image(
            ImageVersion {
                major: 0,
                minor: 0,
                patch: 0,
            },
            Digest([0; 32]),
        ),
        key => key.clone(),
    }
}

/// Everything that a judge holds, by version.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    root: Option<u64>,
    epochs: Vec<u64>,
    image: Option<Image>,
    /// The version of each tenant, and of its manifest.
    tenants: Vec<(u64, Option<u64>)>,
    claims: String,
}

impl Holdings {
    fn of(judge: &Judge) -> Self {
        let tenants = judge.tenants().map(|(_, state)| {
            let manifest = state.manifest.as_ref();
            (
                state.tenant.version,
                manifest.map(|accord| accord.manifest.version),
            )
        });
        Self {
            root: judge.root().map(|root| root.version),
            epochs: judge.epochs(&name("main")).collect(),
            image: judge.image(&name("main")).cloned(),
            tenants: tenants.collect(),
            claims: format!("{:?}", judge.claims),
        }
    }
}

/// Asserts that nothing in the memory was forgotten or lowered, and that nothing in it is the
/// adversary's own.
fn must_not_shrink(before: &Memory, after: &Memory) {
    let version = |memory: &Memory| memory.root.map(|root| root.version);
    assert!(version(after) >= version(before));
    let honest = |seen: Seen| ROOT_DIGESTS[seen.version as usize - 1] == seen.digest;
    assert!(after.root.is_none_or(honest));
    assert!(after.floor >= before.floor);
    for (pool, seen) in &before.pools {
        let after = &after.pools[pool];
        assert!(after.newest.version >= seen.newest.version);
        for epoch in seen.older.keys().chain([&seen.newest.version]) {
            assert_eq!(after.digest(*epoch), seen.digest(*epoch), "epoch {epoch}");
        }
    }
    for (pool, seen) in &before.images {
        let after = &after.images[pool];
        assert!(after.version >= seen.version);
        assert!(after.version > seen.version || after.digest == seen.digest);
    }
    let honest = |seen: &ImageSeen| seen.digest == Digest([seen.version.major as u8; 32]);
    assert!(after.images.values().all(honest));
    for (id, seen) in &before.tenants {
        let after = &after.tenants[id];
        assert!(after.tenant.version >= seen.tenant.version);
        assert!(after.manifest.map(|m| m.version) >= seen.manifest.map(|m| m.version));
        assert!(after.manifest.is_none_or(|m| m.version < 50));
    }
}

/// A vault: its judge, and what is on its disk.
struct Node {
    judge: Judge,
    rows: BTreeMap<RowKey, Vec<u8>>,
    memory: Vec<MemoryRow>,
    accepted: usize,
}

impl Node {
    fn new(fleet: FleetId) -> Self {
        let judge = Judge::new(fleet, Some(name("main")));
        Self {
            memory: judge.memory().rows().collect(),
            judge,
            rows: BTreeMap::new(),
            accepted: 0,
        }
    }

    fn take(&mut self, letter: &Envelope, clock: Seconds, objects: Objects<'_>) {
        // A refused statement has changed nothing.
        let Ok(change) = self.judge.decide(letter, clock, objects) else {
            return;
        };
        if change.is_empty() {
            assert!(change.rows().is_empty() && change.memory().is_empty());
            return;
        }
        let again = self.judge.decide(letter, clock, objects).unwrap();
        let texts = (format!("{change:?}"), format!("{again:?}"));
        assert_eq!(texts.0, texts.1, "decide is pure");
        let before = self.judge.memory().clone();
        if change.accepted() == Accepted::New
            && [Pool::TYPE, Image::TYPE].contains(&letter.payload_type())
        {
            let root = self.judge.root().unwrap();
            assert!(letter.verify(&root.keys, root.threshold) && clock < root.expires);
        }
        let (rows, memory) = (&mut self.rows, &mut self.memory);
        let written = change.commit(|change| {
            for row in change.rows() {
                match row {
                    Row::Drop(key) => drop(rows.remove(&place(key))),
                    Row::Put(key, bytes) => drop(rows.insert(place(key), bytes.clone())),
                }
            }
            memory.extend_from_slice(change.memory());
            Ok::<_, Refusal>(change.memory().len())
        });
        let (committed, remembered) = written.unwrap();
        self.judge.apply(committed);
        must_not_shrink(&before, self.judge.memory());
        self.accepted += 1;
        // A kill before the memory was written: always simulated for what a tenant has signed, at
        // random for other statements.
        if letter.payload_type() == Tenant::TYPE || self.accepted.is_multiple_of(8) {
            self.must_replay(self.memory.len() - remembered);
        }
    }

    /// The state of a vault that starts with the rows and the first `kept` rows of the memory.
    fn replayed(&self, remembered: usize) -> Judge {
        let written = serde_json::to_vec(&self.memory[..remembered]).unwrap();
        let memory: Vec<MemoryRow> = serde_json::from_slice(&written).unwrap();
        let memory = Memory::from_rows(memory).unwrap();
        let statements = self
            .rows
            .iter()
            .filter(|(key, _)| !matches!(key, RowKey::Object(_)));
        let rows = statements.map(|(key, bytes)| (key, Envelope::parse(bytes).unwrap()));
        let objects = |digest: &Digest| self.rows.get(&RowKey::Object(*digest)).cloned();
        let (judge, refused) = Judge::replay(memory, Some(name("main")), rows, &objects);
        for (key, refusal) in refused {
            let is_ancestor = matches!(refusal, Refusal::RootVersionLower(..));
            assert!(is_ancestor, "{key:?}: {refusal:?}");
        }
        judge
    }

    fn must_replay(&self, remembered: usize) {
        let judge = self.replayed(remembered);
        assert_eq!(Holdings::of(&judge), Holdings::of(&self.judge));
        assert_eq!(judge.memory(), self.judge.memory());
    }
}

/// Nodes that an adversary feeds: the adversary reorders, hides and replays honest statements and
/// adds its own, while the fleet's roots change and expire, and nodes join late, restart, and lose
/// their disks. No version that a node holds ever goes down, a restarted node holds what it held,
/// and every statement that a node holds was signed by an honest signer.
#[test]
fn no_node_ever_accepts_less_than_it_had() {
    let (mut with_manifest, mut at_the_last_root, mut of_many_epochs) = (0, 0, 0);
    let (mut latest, mut later_image) = (0, 0);
    for seed in 0..20u64 {
        let mut dice = seed;
        let mut roll = move |sides: usize| {
            dice = dice
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (dice >> 33) as usize % sides
        };
        let (world, honest) = WORLD.clone();
        let letters = letters(&world, &honest, &mut roll);
        let (roots, others): (Vec<_>, Vec<_>) = letters
            .iter()
            .partition(|letter| letter.envelope.payload_type() == Root::TYPE);
        let mut nodes: Vec<Node> = (0..3).map(|_| Node::new(world.fleet)).collect();
        let fetch = |digest: &Digest| world.objects.get(digest).cloned();
        for delivery in 0..DELIVERIES {
            let clock = NOW + delivery * STEP;
            // The last node joins when the first root has long expired.
            if [250, 500, 1250].contains(&delivery) {
                nodes.push(Node::new(world.fleet));
            }
            let at = roll(nodes.len());
            let node = &mut nodes[at];
            let bag = if roll(3) == 0 { &roots } else { &others };
            let letter = bag[roll(bag.len())];
            if letter.from <= clock {
                node.take(&letter.envelope, clock, &fetch);
            }
            match roll(80) {
                0 | 1 => {
                    of_many_epochs +=
                        usize::from(node.judge.epochs(&name("main")).nth(2).is_some());
                    node.must_replay(node.memory.len());
                    node.judge = node.replayed(node.memory.len());
                }
                2 => {
                    let memory = node.judge.memory().clone();
                    node.judge = Judge::remembering(memory, Some(name("main")));
                    node.rows.clear();
                }
                _ => {}
            }
        }
        let holds = |node: &&Node| {
            let tenants = &node.judge.memory().tenants;
            tenants.values().any(|seen| seen.manifest.is_some())
        };
        let version = |node: &Node| node.judge.memory().root.map_or(0, |root| root.version);
        with_manifest += nodes.iter().filter(holds).count();
        at_the_last_root += nodes.iter().filter(|node| version(node) == 4).count();
        let image = |node: &Node| {
            let images = &node.judge.memory().images;
            images.get(&name("main")).map(|seen| seen.version.major)
        };
        later_image += nodes.iter().filter(|node| image(node) >= Some(1)).count();
        latest += nodes.last().iter().filter(|node| holds(node)).count();
    }
    assert!(later_image > 60, "{later_image} of 120 nodes");
    // Without honest statements that get through, the test would prove nothing.
    assert!(with_manifest > 80, "{with_manifest} of 120 nodes");
    assert!(at_the_last_root > 80, "{at_the_last_root} of 120 nodes");
    assert!(of_many_epochs > 100, "{of_many_epochs} restarts");
    assert!(latest > 4, "{latest} of 20 that came after the first root");
}
