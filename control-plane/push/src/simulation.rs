//! Both ends in one seeded world: lost connections, cut frames, refusals, restored backups, new stores.

use std::collections::BTreeMap;

use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _, Wanted};

use crate::*;

const TENANTS: u64 = 5;
const KEY: PublicKey = PublicKey::from_bytes([9; 32]);
const FLEET: FleetId = FleetId([8; 32]);

/// xorshift64*: small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn tenant(number: u64) -> TenantId {
    TenantId([number as u8; 32])
}

#[derive(Clone)]
struct World {
    store: StoreId,
    revision: u64,
    statements: BTreeMap<u64, StatementId>,
    bytes: BTreeMap<StatementId, Vec<u8>>,
    objects: BTreeMap<Digest, Vec<u8>>,
}

impl World {
    fn new(store: u8) -> Self {
        Self {
            store: StoreId([store; 16]),
            revision: 0,
            statements: BTreeMap::new(),
            bytes: BTreeMap::new(),
            objects: BTreeMap::new(),
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
            StatementId::OnlineKey { .. } | StatementId::Manifest { .. }
        ) {
            self.statements.retain(|_, held| !held.is_same_thing(&id));
            self.bytes.retain(|held, _| !held.is_same_thing(&id));
        }
        self.statements.insert(self.revision, id.clone());
        self.bytes.insert(id, bytes);
    }

    /// Something new, of any kind.
    fn publish(&mut self, dice: &mut Dice) {
        let tenant = tenant(dice.roll(TENANTS));
        match dice.roll(10) {
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

    fn put_next(&mut self, id: impl Fn(u64) -> StatementId) {
        let next = id(self.highest(&id(0)) + 1);
        let bytes = next.to_string().into_bytes();
        self.put(next, bytes);
    }

    fn publish_manifest(&mut self, tenant: TenantId, dice: &mut Dice) {
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
            issued: 1,
            // Two worlds that part from one backup differ in their manifests of the same version.
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

    fn next_after(&self, revision: u64) -> Option<(u64, StatementId)> {
        self.statements
            .range(revision + 1..)
            .next()
            .map(|(revision, id)| (*revision, id.clone()))
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

    fn manifest(&self, tenant: &TenantId) -> Option<(u64, Vec<u8>)> {
        let of = |id: &StatementId| matches!(id, StatementId::Manifest { tenant: other, .. } if other == tenant);
        let (revision, id) = self.statements.iter().find(|(_, id)| of(id))?;
        Some((*revision, self.bytes[id].clone()))
    }

    fn object(&self, _: &TenantId, digest: &Digest) -> Option<StoredObject> {
        let bytes = self.objects.get(digest)?.clone();
        Some(StoredObject {
            kind: ObjectKind::Release,
            bytes,
        })
    }
}

/// What a vault would do: never lower, never equal with other content, tenants without a gap, and remember.
#[derive(Default, Clone)]
struct Vault {
    has: Has,
    objects: BTreeMap<Digest, Vec<u8>>,
    cursor: Option<Cursor>,
}

impl Vault {
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
            StatementId::Pool { name, epoch } => {
                assert_eq!(name.as_str(), "main", "another pool's statement was sent");
                self.has.epochs.insert(*epoch).then_some(()).ok_or("again")
            }
            StatementId::Grant { epoch, .. } => {
                self.has.grants.insert(*epoch).then_some(()).ok_or("again")
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
                Ok(())
            }
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            node: name("edge"),
            node_key: KEY,
            fleet: FLEET,
            software: "sim".into(),
            cursor: self.cursor,
            has: self.has.clone(),
        }
    }
}

fn member() -> Member {
    Member {
        name: name("edge"),
        pool: name("main"),
        key: KEY,
        fleet: FLEET,
    }
}

struct Link {
    node: NodeEnd,
    control: ControlEnd,
    to_node: Vec<u8>,
    to_control: Vec<u8>,
    unjudged: Vec<(StatementId, Vec<u8>)>,
}

impl Link {
    fn new(vault: &Vault) -> Self {
        Self {
            node: NodeEnd::member(vault.hello()),
            control: ControlEnd::member(member()),
            to_node: Vec::new(),
            to_control: Vec::new(),
            unjudged: Vec::new(),
        }
    }

    /// Moves a few bytes each way, and lets the vault judge some of what waits. Whether anything moved.
    fn step(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) -> bool {
        let mut moved = false;
        while let Some(frame) = self.node.poll_transmit() {
            self.to_control.extend(frame);
        }
        if self.to_node.len() < 1 << 16
            && let Some(frame) = self.control.poll_transmit(world)
        {
            self.to_node.extend(frame);
        }
        let some = (dice.roll(700) as usize + 1).min(self.to_control.len());
        moved |= some > 0;
        self.control
            .receive(&self.to_control.drain(..some).collect::<Vec<_>>())
            .unwrap();
        while let Some(event) = self.control.poll_event(world).unwrap() {
            if let ControlEvent::Nacked { code, .. } = event {
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
                NodeEvent::Statement { id, bytes, .. } => self.unjudged.push((id, bytes)),
                NodeEvent::Object { digest, bytes, .. } => {
                    drop(vault.objects.insert(digest, bytes))
                }
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

    fn settle(&mut self, world: &World, vault: &mut Vault, dice: &mut Dice) {
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

fn assert_caught_up(world: &World, vault: &Vault, seed: u64) {
    for id in world.bytes.keys() {
        let has = match id {
            StatementId::Root { version } => vault.has.root >= *version,
            StatementId::OnlineKey { version } => vault.has.online >= *version,
            StatementId::Pool { name, epoch } => {
                name.as_str() == "other" || vault.has.epochs.contains(epoch)
            }
            StatementId::Grant { epoch, .. } => vault.has.grants.contains(epoch),
            StatementId::Tenant { tenant, version } => vault
                .has
                .tenants
                .get(tenant)
                .is_none_or(|has| has.version >= *version),
            StatementId::Manifest { tenant, version } => {
                let manifest = Manifest::read(&Envelope::parse(&world.bytes[id]).unwrap()).unwrap();
                let is_here = manifest
                    .functions
                    .values()
                    .any(|wanted| wanted.pools.contains(&name("main")));
                let has = vault.has.tenants.get(tenant).and_then(|has| has.manifest);
                has.map_or(!is_here, |(held, _)| held >= *version)
            }
        };
        assert!(has, "seed {seed}: the node lacks {id}");
    }
    assert_eq!(vault.cursor, Some(world.now()), "seed {seed}");
}

fn run(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let (mut world, mut vault) = (World::new(1), Vault::default());
    let mut backup = world.clone();
    let mut link = Link::new(&vault);
    for _ in 0..400 {
        match dice.roll(40) {
            0..=5 => world.publish(&mut dice),
            // The connection is lost, with whatever was on the way.
            6 => link = Link::new(&vault),
            // The vault's store is lost: it starts empty, and everything is sent again.
            7 if dice.roll(5) == 0 => {
                vault = Vault::default();
                link = Link::new(&vault);
            }
            8 => backup = world.clone(),
            // The control plane comes back from a backup and goes on from there.
            9 if dice.roll(5) == 0 => {
                world = backup.clone();
                link = Link::new(&vault);
            }
            // It comes back with the same content in a new store, under other revisions.
            10 if dice.roll(5) == 0 => {
                let mut copy = World::new(world.store.0[0].wrapping_add(1));
                copy.objects = world.objects.clone();
                let ordered: Vec<_> = world.statements.values().cloned().collect();
                ordered
                    .into_iter()
                    .for_each(|id| copy.put(id.clone(), world.bytes[&id].clone()));
                world = copy;
                link = Link::new(&vault);
            }
            // It comes back empty: nothing is taken away from the node.
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
    while let Some(frame) = again.control.poll_transmit(&world) {
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
fn whatever_happens_a_node_catches_up_and_never_goes_back() {
    (1..=150).for_each(run);
}

fn served(world: &World) -> ControlEnd {
    let mut control = ControlEnd::member(member());
    control
        .receive(&encode(&ToControl::Hello(Box::new(
            Vault::default().hello(),
        ))))
        .unwrap();
    assert!(matches!(
        control.poll_event(world),
        Ok(Some(ControlEvent::Hello(_)))
    ));
    control
}

#[test]
fn a_stranger_may_only_join() {
    let (world, vault) = (World::new(1), Vault::default());
    for message in [
        ToControl::Hello(Box::new(vault.hello())),
        ToControl::Lease { nonce: [0; 32] },
    ] {
        let mut control = ControlEnd::stranger();
        control.receive(&encode(&message)).unwrap();
        assert!(matches!(
            control.poll_event(&world),
            Err(Violation::Unexpected(_))
        ));
    }
    let mut control = ControlEnd::stranger();
    let join = encode(&ToControl::Join { request: vec![1] });
    control.receive(&join).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Ok(Some(ControlEvent::Join { .. }))
    ));
    control.receive(&join).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Unexpected(_))
    ));
}

#[test]
fn a_join_becomes_a_membership_on_the_same_connection() {
    let (mut world, mut vault, mut dice) = (World::new(1), Vault::default(), Dice(1));
    world.put_next(|version| StatementId::Root { version });
    let (mut node, mut control) = (NodeEnd::joining(vec![1]), ControlEnd::stranger());
    control.receive(&node.poll_transmit().unwrap()).unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Ok(Some(ControlEvent::Join { .. }))
    ));
    control.join_pending();
    control.admitted(member());
    for wanted in [NodeEvent::JoinPending, NodeEvent::Admitted] {
        node.receive(&control.poll_transmit(&world).unwrap())
            .unwrap();
        assert_eq!(node.poll_event().unwrap(), Some(wanted));
    }
    node.hello(vault.hello()).unwrap();
    let mut link = Link {
        node,
        control,
        to_node: vec![],
        to_control: vec![],
        unjudged: vec![],
    };
    link.settle(&world, &mut vault, &mut dice);
    assert_eq!(vault.has.root, 1);
}

#[test]
fn a_hello_of_somebody_else_is_refused() {
    let (world, hello) = (World::new(1), Vault::default().hello());
    let hellos = [
        Hello {
            node: name("edge-2"),
            ..hello.clone()
        },
        Hello {
            node_key: PublicKey::from_bytes([1; 32]),
            ..hello.clone()
        },
        Hello {
            fleet: FleetId([1; 32]),
            ..hello.clone()
        },
        Hello {
            protocol: 2,
            ..hello
        },
    ];
    for hello in hellos {
        let mut control = ControlEnd::member(member());
        control
            .receive(&encode(&ToControl::Hello(Box::new(hello))))
            .unwrap();
        assert!(matches!(
            control.poll_event(&world),
            Err(Violation::Identity | Violation::Protocol { .. })
        ));
    }
}

#[test]
fn answers_to_what_was_not_sent_and_floods_are_violations() {
    let world = World::new(1);
    let mut control = served(&world);
    control
        .receive(&encode(&ToControl::Ack {
            revision: 1,
            id: StatementId::Root { version: 1 },
        }))
        .unwrap();
    assert!(matches!(
        control.poll_event(&world),
        Err(Violation::Unexpected(_))
    ));
    let mut control = served(&world);
    for number in 0..=MAX_FETCHES as u8 {
        let digest = Digest([number; 32]);
        control
            .receive(&encode(&ToControl::FetchBundle { digest, offset: 0 }))
            .unwrap();
    }
    let last = (0..=MAX_FETCHES)
        .map(|_| control.poll_event(&world))
        .last()
        .unwrap();
    assert_eq!(last, Err(Violation::Flood("bundles")));
}

#[test]
fn objects_of_another_pool_are_not_given() {
    let mut world = World::new(1);
    let bytes = b"another pool's release".to_vec();
    let digest = Digest::of(&bytes);
    world.objects.insert(digest, bytes);
    let mut control = served(&world);
    control
        .receive(&encode(&ToControl::FetchObjects {
            tenant: tenant(1),
            digests: vec![digest],
        }))
        .unwrap();
    assert_eq!(control.poll_event(&world), Ok(None));
    let frames: Vec<_> = std::iter::from_fn(|| control.poll_transmit(&world)).collect();
    assert!(frames.contains(&encode(&ToNode::Unavailable { digest })));
}

#[test]
fn an_object_with_another_digest_ends_the_connection() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    assert!(matches!(
        node.poll_event(),
        Ok(Some(NodeEvent::Welcome { .. }))
    ));
    let forged = ToNode::Object {
        tenant: tenant(1),
        digest: Digest([1; 32]),
        kind: ObjectKind::Secret,
        bytes: vec![1],
    };
    node.receive(&encode(&forged)).unwrap();
    assert_eq!(node.poll_event(), Err(Violation::Digest));
}

#[test]
fn a_control_plane_cannot_fill_a_nodes_memory() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    node.poll_event().unwrap();
    let bytes = vec![7; casemate_trust::release::MAX_RELEASE_BYTES];
    let object = ToNode::Object {
        tenant: tenant(1),
        digest: Digest::of(&bytes),
        kind: ObjectKind::Release,
        bytes,
    };
    let frame = encode(&object);
    let taken = (0..1000)
        .take_while(|_| node.receive(&frame).is_ok() && node.poll_event().is_ok())
        .count();
    assert_eq!(
        taken,
        MAX_AHEAD_BYTES / casemate_trust::release::MAX_RELEASE_BYTES
    );
    let mut node = NodeEnd::member(Vault::default().hello());
    node.receive(&encode(&ToNode::Welcome {
        now: World::new(1).now(),
    }))
    .unwrap();
    node.poll_event().unwrap();
    for version in 1.. {
        let id = StatementId::Root { version };
        node.receive(&encode(&ToNode::Statement {
            revision: version,
            id,
            bytes: vec![],
        }))
        .unwrap();
        if let Err(violation) = node.poll_event() {
            assert_eq!(
                (violation, version),
                (Violation::Flood("statements"), MAX_UNACKED as u64 + 1)
            );
            break;
        }
    }
}

#[test]
fn logs_that_come_too_fast_are_counted_not_kept() {
    let mut node = NodeEnd::member(Vault::default().hello());
    node.poll_transmit();
    for number in 0..2000 {
        node.log(LogEntry {
            tenant: tenant(1),
            function: name("web"),
            request: None,
            level: LogLevel::Info,
            message: "x".repeat(100_000),
            time_ms: number,
            failure: None,
        });
    }
    assert_eq!(node.poll_transmit(), None, "not before the welcome");
    let world = World::new(1);
    node.receive(&encode(&ToNode::Welcome { now: world.now() }))
        .unwrap();
    node.poll_event().unwrap();
    let mut control = served(&world);
    let (mut kept, mut gone) = (0, 0);
    while let Some(frame) = node.poll_transmit() {
        control.receive(&frame).unwrap();
        while let Some(ControlEvent::Logs { entries, lost }) = control.poll_event(&world).unwrap() {
            kept += entries.len() as u64;
            gone += lost;
        }
    }
    assert_eq!(kept + gone, 2000);
    assert!(gone > 0);
}
