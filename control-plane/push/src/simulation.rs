//! Both ends in one seeded world: lost connections, cut frames, refusals, restored backups, new stores.

mod bundles;
mod caught_up;
mod freshness;
mod image;

use std::collections::BTreeMap;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _, Wanted};

use crate::bundle::Header;
use crate::*;
use caught_up::assert_caught_up;
use image::image_of;

const TENANTS: u64 = 5;
const KEY: PublicKey = PublicKey::from_bytes([9; 32]);
const FLEET: FleetId = FleetId([8; 32]);

/// xorshift64*: small, seeded, the same everywhere.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
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

/// A model of a vault: never a lower version, never an equal one with other content, tenants
/// without a gap, and a memory.
#[derive(Clone)]
pub(crate) struct Vault {
    pub(crate) has: Has,
    pub(crate) objects: BTreeMap<Digest, Vec<u8>>,
    cursor: Option<Cursor>,
    /// The bytes that have come of the wanted bundles.
    bundles: BTreeMap<Digest, Vec<u8>>,
    /// The accepted image, and the bytes that have come of it.
    image: Option<(Digest, Vec<u8>)>,
    /// Most tenants that its hello lists.
    listed: usize,
}

impl Default for Vault {
    fn default() -> Self {
        Self {
            has: Has::default(),
            objects: BTreeMap::new(),
            cursor: None,
            bundles: BTreeMap::new(),
            image: None,
            listed: usize::MAX,
        }
    }
}

impl Vault {
    #[expect(clippy::too_many_lines, reason = "one story, step by step")]
    fn judge(&mut self, id: &StatementId, bytes: &[u8]) -> Result<(), &'static str> {
        let raise = |held: &mut u64, version: u64, may_skip: bool| match version {
            lower if lower < *held => Err("lower"),
            gap if !may_skip && gap > *held + 1 => Err("gap"),
            version => {
                *held = version;
                Ok(())
            }
        };
        match id {
            StatementId::Root { version } => raise(&mut self.has.root, *version, false),
            StatementId::OnlineKey { version } => raise(&mut self.has.online, *version, true),
            StatementId::Revocations { version } => {
                raise(&mut self.has.revocations, *version, true)
            }
            StatementId::Pool { name, epoch } => {
                assert_eq!(name.as_str(), "main", "another pool's statement was sent");
                self.has.epochs.insert(*epoch).then_some(()).ok_or("again")
            }
            StatementId::Grant { epoch, .. } => {
                self.has.grants.insert(*epoch).then_some(()).ok_or("again")
            }
            StatementId::Image { version, statement } => {
                let (pool, digest) = image_of(bytes);
                assert_eq!(pool, "main", "another pool's image was sent");
                match self.has.image {
                    Some((held, _)) if *version < held => return Err("lower"),
                    Some((_, other)) if *statement == other => return Err("again"),
                    _ => {}
                }
                self.has.image = Some((*version, *statement));
                if self.image.as_ref().is_none_or(|(held, _)| *held != digest) {
                    self.image = Some((digest, Vec::new()));
                }
                Ok(())
            }
            StatementId::Tenant { tenant, version } => raise(
                &mut self.has.tenants.entry(*tenant).or_default().version,
                *version,
                false,
            ),
            StatementId::Manifest { tenant, version } => {
                let envelope = Envelope::parse(bytes).unwrap();
                let manifest = Manifest::read(&envelope).unwrap();
                let held = self.has.tenants.get_mut(tenant).ok_or("unknown tenant")?;
                match held.manifest {
                    Some((before, _)) if *version < before => return Err("lower"),
                    Some((before, digest))
                        if *version == before && digest != envelope.payload_digest() =>
                    {
                        return Err("other");
                    }
                    _ => {}
                }
                let here = manifest
                    .functions
                    .values()
                    .filter(|wanted| wanted.pools.contains(&name("main")));
                if here
                    .clone()
                    .any(|wanted| !self.objects.contains_key(&wanted.release))
                {
                    return Err("objects_missing");
                }
                held.manifest = Some((*version, envelope.payload_digest()));
                held.freshness = held.freshness.filter(|(named, _)| named >= version);
                Ok(())
            }
            StatementId::Freshness {
                tenant,
                version,
                issued,
            } => self.judge_freshness(tenant, (*version, *issued)),
        }
    }

    pub(crate) fn hello(&self) -> Hello {
        let mut has = self.has.clone();
        has.more_tenants = has.tenants.len() > self.listed;
        has.tenants = has.tenants.into_iter().take(self.listed).collect();
        Hello {
            protocol: VERSIONS.newest,
            node: name("edge"),
            node_key: KEY,
            fleet: FLEET,
            software: "sim".into(),
            cursor: self.cursor,
            has,
        }
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

/// The next frame, with objects read as requested.
pub(crate) fn next_frame(control: &mut ControlEnd, world: &World) -> Option<Vec<u8>> {
    loop {
        match control.poll_transmit(world)? {
            Transmit::Frame(frame) => return Some(frame),
            Transmit::Load { digest, .. } => {
                let object = |bytes: &Vec<u8>| StoredObject {
                    kind: ObjectKind::Release,
                    bytes: bytes.clone(),
                };
                control.loaded(world.objects.get(&digest).map(object));
            }
        }
    }
}

pub(crate) struct Link {
    pub(crate) node: NodeEnd,
    pub(crate) control: ControlEnd,
    pub(crate) to_node: Vec<u8>,
    pub(crate) to_control: Vec<u8>,
    pub(crate) unjudged: Vec<(StatementId, Vec<u8>)>,
    /// Pieces of images on their streams.
    pub(crate) pieces: Vec<(Header, Vec<u8>)>,
    /// The image that the control plane reported as unavailable.
    pub(crate) unavailable: Option<Digest>,
    /// Bundles on their streams.
    pub(crate) streams: Vec<(Header, Vec<u8>)>,
    /// Streams whose end the control plane has not noticed yet.
    pub(crate) ended: usize,
}

impl Link {
    pub(crate) fn new(vault: &Vault) -> Self {
        Self {
            node: NodeEnd::member(vault.hello()),
            control: ControlEnd::member(member(), VERSIONS.newest),
            to_node: Vec::new(),
            to_control: Vec::new(),
            unjudged: Vec::new(),
            pieces: Vec::new(),
            unavailable: None,
            streams: Vec::new(),
            ended: 0,
        }
    }

    /// Moves a few bytes each way, and lets the vault judge some of the waiting statements. Returns
    /// whether anything moved.
    #[expect(clippy::too_many_lines, reason = "one story, step by step")]
    fn step(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) -> bool {
        let mut moved = false;
        while let Some(frame) = self.node.poll_transmit() {
            self.to_control.extend(frame);
        }
        if self.to_node.len() < 1 << 16
            && let Some(frame) = next_frame(&mut self.control, world)
        {
            self.to_node.extend(frame);
        }
        let some = (dice.roll(700) as usize + 1).min(self.to_control.len());
        moved |= some > 0;
        self.control
            .receive(&self.to_control.drain(..some).collect::<Vec<_>>())
            .unwrap();
        while let Some(event) = self.control.poll_event(world).unwrap() {
            if let ControlEvent::FetchImage {
                digest,
                offset,
                bytes,
            } = event
            {
                self.send_piece(world, digest, offset, bytes);
            } else if let ControlEvent::FetchBundle { digest, offset } = event {
                self.send_bundle(world, digest, offset);
            } else if let ControlEvent::Nacked { code, .. } = event {
                assert!(
                    [
                        "other",
                        "lower",
                        "again",
                        "gap",
                        "objects_missing",
                        "unknown tenant"
                    ]
                    .contains(&code.as_str())
                );
            }
        }
        let some = (dice.roll(700) as usize + 1).min(self.to_node.len());
        moved |= some > 0;
        self.node
            .receive(&self.to_node.drain(..some).collect::<Vec<_>>())
            .unwrap();
        while let Some(event) = self.node.poll_event().unwrap() {
            match event {
                NodeEvent::Statement { id, bytes, .. } => {
                    freshness::assert_in_order(&id, &self.unjudged);
                    self.unjudged.push((id, bytes));
                }
                NodeEvent::Object { digest, bytes, .. } => {
                    drop(vault.objects.insert(digest, bytes));
                }
                NodeEvent::ImageUnavailable { digest } => self.unavailable = Some(digest),
                NodeEvent::Synced { now } => {
                    assert!(
                        self.unjudged.is_empty(),
                        "synced before everything was answered"
                    );
                    vault.cursor = Some(now);
                }
                _ => {}
            }
        }
        moved |= self.fetch_image(vault, dice);
        assert!(self.unjudged.len() <= MAX_UNACKED);
        let some = dice.roll(4) as usize;
        for (id, bytes) in self.unjudged.drain(..some.min(self.unjudged.len())) {
            moved = true;
            match vault.judge(&id, &bytes) {
                Ok(()) => self.node.ack(&id).unwrap(),
                Err(code) => self.node.nack(&id, code, "").unwrap(),
            }
        }
        moved || !self.unjudged.is_empty()
    }

    pub(crate) fn settle(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) {
        let mut quiet = 0;
        while quiet < 4 {
            quiet = if self.step(world, vault, dice) {
                0
            } else {
                quiet + 1
            };
        }
    }
}

fn run(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
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
    // What was synced is not sent again.
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
