//! Both ends in one seeded world: lost connections, cut frames, refusals, restored backups, new
//! stores.

mod bundles;
mod caught_up;
mod freshness;
mod image;
mod link;
mod vault;

use std::collections::BTreeMap;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _, Wanted};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use crate::bundle::Header;
use crate::*;
use caught_up::assert_caught_up;
use image::image_of;
pub(crate) use link::{Link, next_frame};
pub(crate) use vault::Vault;

const TENANTS: u64 = 5;
const KEY: PublicKey = PublicKey::from_bytes([9; 32]);
const FLEET: FleetId = FleetId([8; 32]);

/// Choices that follow from a seed, the same on every machine.
pub(crate) struct Dice(ChaCha8Rng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0.next_u64() % sides
    }
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn tenant(number: u64) -> TenantId {
    TenantId([number as u8; 32])
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) store: StoreId,
    pub(crate) revision: u64,
    pub(crate) statements: BTreeMap<u64, StatementId>,
    pub(crate) bytes: BTreeMap<StatementId, Vec<u8>>,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
    /// Files of images, which are never removed.
    images: BTreeMap<Digest, Vec<u8>>,
}

impl World {
    pub(crate) fn new(store: u8) -> Self {
        Self {
            store: StoreId([store; 16]),
            revision: 0,
            statements: BTreeMap::new(),
            bytes: BTreeMap::new(),
            objects: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }

    fn highest(&self, like: &StatementId) -> u64 {
        let same = self.bytes.keys().filter(|id| id.is_same_thing(like));
        same.map(StatementId::version).max().unwrap_or(0)
    }

    fn put(&mut self, id: StatementId, bytes: Vec<u8>) {
        self.revision += 1;
        if matches!(
            id,
            StatementId::OnlineKey { .. }
                | StatementId::Manifest { .. }
                | StatementId::Revocations { .. }
        ) {
            self.statements.retain(|_, held| !held.is_same_thing(&id));
            self.bytes.retain(|held, _| !held.is_same_thing(&id));
        }
        self.drop_superseded_freshness(&id);
        self.statements.insert(self.revision, id.clone());
        self.bytes.insert(id, bytes);
    }

    /// Publishes a new statement of a random kind.
    fn publish(&mut self, dice: &mut Dice) {
        let tenant = tenant(dice.roll(TENANTS));
        match dice.roll(14) {
            12 | 13 => self.publish_freshness(tenant),
            11 => self.put_next(|version| StatementId::Revocations { version }),
            10 => self.publish_image(dice),
            0 => self.put_next(|version| StatementId::Root { version }),
            1 => self.put_next(|version| StatementId::OnlineKey { version }),
            2 => self.put_next(|epoch| StatementId::Pool {
                name: name("main"),
                epoch,
            }),
            3 => self.put_next(|epoch| StatementId::Pool {
                name: name("other"),
                epoch,
            }),
            4 => self.put_next(|epoch| StatementId::Grant {
                pool: name("main"),
                epoch,
            }),
            5 => self.put_next(|version| StatementId::Tenant { tenant, version }),
            _ => self.publish_manifest(tenant, dice),
        }
    }

    pub(crate) fn put_next(&mut self, id: impl Fn(u64) -> StatementId) {
        let next = id(self.highest(&id(0)) + 1);
        let bytes = next.to_string().into_bytes();
        self.put(next, bytes);
    }

    pub(crate) fn publish_manifest(&mut self, tenant: TenantId, dice: &mut Dice) {
        let first = StatementId::Tenant { tenant, version: 1 };
        if !self.bytes.contains_key(&first) {
            self.put(first, b"tenant".to_vec());
        }
        let version = self.highest(&StatementId::Manifest { tenant, version: 0 }) + 1;
        let pools = match dice.roll(3) {
            0 => vec![name("other")],
            _ => vec![name("main")],
        };
        let functions = (0..dice.roll(4)).map(|number| {
            let bytes = format!("release {} of {tenant}", dice.roll(20)).into_bytes();
            let digest = Digest::of(&bytes);
            self.objects.insert(digest, bytes);
            let wanted = Wanted {
                release: digest,
                fallbacks: vec![],
                pools: pools.clone(),
            };
            (name(&format!("f{number}")), wanted)
        });
        let manifest = Manifest {
            fleet: FLEET,
            tenant,
            tenant_version: 1,
            version,
            functions: functions.collect(),
            secrets: BTreeMap::new(),
            freshness: None,
            notes: [].into(),
            issued: 1,
            // Two worlds that diverge from one backup differ in their manifests of the same
            // version.
            expires: 2 + u64::from(self.store.0[0]) + self.revision + dice.roll(1 << 20),
        };
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        self.put(
            StatementId::Manifest { tenant, version },
            manifest.sign(&[&key]).to_bytes(),
        );
    }
}

impl Catalog for World {
    fn now(&self) -> Cursor {
        Cursor {
            store: self.store,
            revision: self.revision,
        }
    }

    fn next_after(&self, revision: u64) -> Option<(u64, Vec<StatementId>)> {
        self.statements
            .range(revision + 1..)
            .next()
            .map(|(revision, id)| (*revision, vec![id.clone()]))
    }

    fn tenant_versions(&self, tenant: &TenantId) -> Vec<(u64, u64)> {
        let of = |id: &StatementId| matches!(id, StatementId::Tenant { tenant: other, .. } if other == tenant);
        let mut versions: Vec<_> = self
            .statements
            .iter()
            .filter(|(_, id)| of(id))
            .map(|(revision, id)| (id.version(), *revision))
            .collect();
        versions.sort_unstable();
        versions
    }

    fn statement(&self, id: &StatementId) -> Option<Vec<u8>> {
        self.bytes.get(id).cloned()
    }

    fn image(&self, pool: &Name) -> Option<StatementId> {
        let of_pool = |id: &StatementId| {
            matches!(id, StatementId::Image { .. }) && image_of(&self.bytes[id]).0 == pool.as_str()
        };
        let newest = self.statements.iter().filter(|(_, id)| of_pool(id));
        let newest = newest.max_by_key(|(revision, id)| (id.version(), **revision));
        newest.map(|(_, id)| id.clone())
    }

    fn manifest(&self, tenant: &TenantId) -> Option<(u64, &[u8])> {
        let of = |id: &StatementId| matches!(id, StatementId::Manifest { tenant: other, .. } if other == tenant);
        let (revision, id) = self.statements.iter().find(|(_, id)| of(id))?;
        Some((*revision, &self.bytes[id]))
    }
}

pub(crate) fn member() -> Member {
    Member {
        name: name("edge"),
        pool: name("main"),
        key: KEY,
        fleet: FLEET,
    }
}

fn run(seed: u64) {
    let mut dice = Dice::new(seed);
    // A shortened list relies on its cursor, which a restored backup invalidates: so a seed has one
    // or the other.
    let (is_cut, listed) = (seed.is_multiple_of(3), 2);
    let new_vault = || Vault {
        listed: if is_cut { listed } else { usize::MAX },
        ..Vault::default()
    };
    let (mut world, mut vault) = (World::new(1), new_vault());
    let mut backup = world.clone();
    let mut link = Link::new(&vault);
    for _ in 0..400 {
        match dice.roll(40) {
            0..=5 => world.publish(&mut dice),
            // The connection is lost, with everything on the way.
            6 => link = Link::new(&vault),
            // The vault's store is lost: it starts empty, and everything is sent again.
            7 if dice.roll(5) == 0 => {
                vault = new_vault();
                link = Link::new(&vault);
            }
            8 => backup = world.clone(),
            // The control plane is restored from a backup and continues from there.
            9 if !is_cut && dice.roll(5) == 0 => {
                world = backup.clone();
                link = Link::new(&vault);
            }
            // The control plane returns with the same content in a new store, under other
            // revisions.
            10 if dice.roll(5) == 0 => {
                let mut copy = World::new(world.store.0[0].wrapping_add(1));
                copy.objects = world.objects.clone();
                copy.images = world.images.clone();
                let ordered: Vec<_> = world.statements.values().cloned().collect();
                ordered
                    .into_iter()
                    .for_each(|id| copy.put(id.clone(), world.bytes[&id].clone()));
                world = copy;
                link = Link::new(&vault);
            }
            // The control plane returns empty: nothing is removed from the node.
            11 if dice.roll(20) == 0 => {
                let before = vault.has.clone();
                let empty = World::new(99);
                link = Link::new(&vault);
                link.settle(&empty, &mut vault, &mut dice);
                assert_eq!(vault.has, before, "absence deleted something");
                link = Link::new(&vault);
            }
            _ => drop(link.step(&world, &mut vault, &mut dice)),
        }
    }
    link = Link::new(&vault);
    link.settle(&world, &mut vault, &mut dice);
    assert_caught_up(&world, &vault, seed);
    // Synchronised statements are not sent again.
    let mut again = Link::new(&vault);
    let before = vault.has.clone();
    again
        .node
        .poll_transmit()
        .into_iter()
        .for_each(|frame| again.control.receive(&frame).unwrap());
    while again.control.poll_event(&world).unwrap().is_some() {}
    let mut sent = Vec::new();
    while let Some(frame) = next_frame(&mut again.control, &world) {
        sent.extend(frame);
    }
    again.node.receive(&sent).unwrap();
    while let Some(event) = again.node.poll_event().unwrap() {
        if let NodeEvent::Statement { id, bytes, .. } = event {
            assert!(
                vault.judge(&id, &bytes).is_err(),
                "seed {seed}: {id} was sent though the node has it"
            );
        }
    }
    assert_eq!(vault.has, before);
}

#[test]
fn in_every_simulated_world_a_node_catches_up_and_never_goes_back() {
    (1..=150).chain([606, 1458]).for_each(run);
}
