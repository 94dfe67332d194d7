//! A node that says anything to a control plane that serves it, while statements change.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use casemate_push::{
    Catalog, ControlEnd, ControlEvent, Cursor, Has, Hello, MAX_FRAME_BYTES, MAX_UNACKED, Member,
    ObjectKind, StatementId, StoreId, StoredObject, TenantHas, ToControl, ToNode, Transmit,
    VERSIONS, encode,
};
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::{PublicKey, SigningKey};
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _, Wanted};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Manifests of each tenant; each lists one object more than the one before.
const MANIFESTS: usize = 4;
const TENANTS: u8 = 3;
/// More frames than a node can make the control plane write at one go: answers, unanswered
/// statements, objects.
const MAX_FRAMES: usize = 40_000;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Bytes of the stream, whatever they are.
    Bytes(Vec<u8>),
    /// Bytes as a whole frame.
    Frame(Vec<u8>),
    /// The first message of the node that was admitted.
    Hello {
        revision: u8,
        tenant: u8,
        version: u8,
        more: bool,
    },
    /// Answers a statement that was sent, or one that was not.
    Answer {
        accepted: bool,
        which: u8,
    },
    FetchObjects {
        tenant: u8,
        objects: Vec<u8>,
    },
    FetchBundle(u8),
    FetchImage(u8, u32),
    Lease,
    /// The control plane accepts something new.
    Publish {
        kind: u8,
        tenant: u8,
    },
    BundleDone,
    PieceDone,
    LeaseSigned(Vec<u8>),
    /// The stream has room for so many frames.
    Write(u8),
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn tenant(number: u8) -> TenantId {
    TenantId([number % TENANTS; 32])
}

fn object(tenant: u8, number: usize) -> Vec<u8> {
    format!("object {number} of {}", tenant % TENANTS).into_bytes()
}

fn member() -> Member {
    Member {
        name: name("edge-1"),
        pool: name("main"),
        key: PublicKey::from_bytes([1; 32]),
        fleet: FleetId([2; 32]),
    }
}

/// Signed once: that takes longer than everything else here.
fn manifest(number: u8, version: usize) -> &'static [u8] {
    static SIGNED: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let signed = SIGNED.get_or_init(|| {
        let key = SigningKey::from_seed(&[1; 32]).expect("a key");
        let sign = |number: u8, version: usize| {
            let functions = (0..=version).map(|function| {
                let release = Digest::of(&object(number, function));
                let pools = vec![name(if function == 1 { "other" } else { "main" })];
                let wanted = Wanted {
                    release,
                    fallbacks: vec![],
                    pools,
                };
                (name(&format!("f{function}")), wanted)
            });
            let manifest = Manifest {
                fleet: FleetId([2; 32]),
                tenant: tenant(number),
                tenant_version: 1,
                version: version as u64 + 1,
                functions: functions.collect(),
                secrets: BTreeMap::new(),
                freshness: None,
                notes: [].into(),
                issued: 1,
                expires: 2,
            };
            manifest.sign(&[&key]).to_bytes()
        };
        let all =
            (0..TENANTS).flat_map(|number| (0..MANIFESTS).map(move |version| (number, version)));
        all.map(|(number, version)| sign(number, version)).collect()
    });
    &signed[usize::from(number % TENANTS) * MANIFESTS + version % MANIFESTS]
}

#[derive(Default)]
struct World {
    revision: u64,
    statements: BTreeMap<u64, StatementId>,
    bytes: BTreeMap<StatementId, Vec<u8>>,
    /// Manifests that were published of each tenant.
    manifests: BTreeMap<TenantId, (u64, &'static [u8], u64)>,
    lists: u64,
}

impl World {
    fn put(&mut self, id: StatementId, bytes: Vec<u8>) {
        self.revision += 1;
        self.statements.insert(self.revision, id.clone());
        self.bytes.insert(id, bytes);
    }

    fn publish(&mut self, kind: u8, number: u8) {
        let tenant = tenant(number);
        self.lists += 1;
        match kind % 6 {
            0 => self.put(
                StatementId::Root {
                    version: self.lists,
                },
                vec![1],
            ),
            1 => self.put(
                StatementId::Pool {
                    name: name("main"),
                    epoch: self.lists,
                },
                vec![2],
            ),
            2 => self.put(
                StatementId::Pool {
                    name: name("other"),
                    epoch: self.lists,
                },
                vec![3],
            ),
            3 => {
                let (version, issued) = (1, self.lists);
                self.put(
                    StatementId::Freshness {
                        tenant,
                        version,
                        issued,
                    },
                    vec![4],
                );
            }
            _ => {
                let before = self
                    .manifests
                    .get(&tenant)
                    .map_or(0, |(_, _, version)| *version);
                if before == 0 {
                    self.put(StatementId::Tenant { tenant, version: 1 }, vec![5]);
                }
                if before < MANIFESTS as u64 {
                    let bytes = manifest(number, usize::try_from(before).expect("few"));
                    let is_old = |id: &StatementId| {
                        matches!(id, StatementId::Manifest { .. }) && id.tenant() == Some(&tenant)
                    };
                    self.statements.retain(|_, id| !is_old(id));
                    self.bytes.retain(|id, _| !is_old(id));
                    let version = before + 1;
                    self.put(StatementId::Manifest { tenant, version }, bytes.to_vec());
                    self.manifests
                        .insert(tenant, (self.revision, bytes, version));
                }
            }
        }
    }
}

impl Catalog for World {
    fn now(&self) -> Cursor {
        Cursor {
            store: StoreId([3; 16]),
            revision: self.revision,
        }
    }

    fn next_after(&self, revision: u64) -> Option<(u64, Vec<StatementId>)> {
        let mut later = self.statements.range(revision + 1..);
        later
            .next()
            .map(|(revision, id)| (*revision, vec![id.clone()]))
    }

    fn tenant_versions(&self, tenant: &TenantId) -> Vec<(u64, u64)> {
        let of = |id: &StatementId| {
            matches!(id, StatementId::Tenant { .. }) && id.tenant() == Some(tenant)
        };
        let versions = self.statements.iter().filter(|(_, id)| of(id));
        versions.map(|(revision, _)| (1, *revision)).collect()
    }

    fn statement(&self, id: &StatementId) -> Option<Vec<u8>> {
        self.bytes.get(id).cloned()
    }

    fn image(&self, _: &Name) -> Option<StatementId> {
        None
    }

    fn manifest(&self, tenant: &TenantId) -> Option<(u64, &[u8])> {
        self.manifests
            .get(tenant)
            .map(|(revision, bytes, _)| (*revision, *bytes))
    }
}

fn said(step: &Step, world: &World, sent: &BTreeMap<StatementId, u64>) -> Option<Vec<u8>> {
    let digest = |number: &u8| Digest::of(&object(0, usize::from(*number)));
    let message = match step {
        Step::Bytes(bytes) => return Some(bytes.clone()),
        Step::Frame(bytes) => {
            let length = u32::try_from(bytes.len()).expect("a short input");
            return Some([&length.to_be_bytes(), &bytes[..]].concat());
        }
        Step::Hello {
            revision,
            tenant: number,
            version,
            more,
        } => {
            let member = member();
            let version = u64::from(*version);
            let manifest = (version > 0).then_some((version, Digest([7; 32])));
            let has = TenantHas {
                version: 1,
                manifest,
                ..TenantHas::default()
            };
            let cursor = Cursor {
                store: world.now().store,
                revision: (*revision).into(),
            };
            ToControl::Hello(Box::new(Hello {
                protocol: VERSIONS.newest,
                node: member.name,
                node_key: member.key,
                fleet: member.fleet,
                software: "0.1.0".into(),
                cursor: Some(cursor),
                has: Has {
                    tenants: BTreeMap::from([(tenant(*number), has)]),
                    more_tenants: *more,
                    ..Has::default()
                },
            }))
        }
        Step::Answer { accepted, which } => {
            let (id, revision) = sent.iter().nth(usize::from(*which) % sent.len().max(1))?;
            let (id, revision) = (id.clone(), *revision);
            match accepted {
                true => ToControl::Ack { revision, id },
                false => {
                    let (code, message) = ("refused".into(), "no".into());
                    ToControl::Nack {
                        revision,
                        id,
                        code,
                        message,
                    }
                }
            }
        }
        Step::FetchObjects {
            tenant: number,
            objects,
        } => ToControl::FetchObjects {
            tenant: tenant(*number),
            digests: objects
                .iter()
                .map(|number| Digest::of(&object(*number >> 4, usize::from(*number & 15))))
                .collect(),
        },
        Step::FetchBundle(number) => ToControl::FetchBundle {
            digest: digest(number),
            offset: 0,
        },
        Step::FetchImage(number, bytes) => ToControl::FetchImage {
            digest: digest(number),
            offset: 0,
            bytes: *bytes,
        },
        Step::Lease => ToControl::Lease { nonce: [9; 32] },
        _ => return None,
    };
    Some(encode(&message))
}

/// Writes frames, each of which must be a message that this node may see.
fn write(
    end: &mut ControlEnd,
    world: &World,
    frames: usize,
    sent: &mut BTreeMap<StatementId, u64>,
) -> usize {
    for number in 0..frames {
        let frame = match end.poll_transmit(world) {
            None => return number,
            Some(Transmit::Load { digest, .. }) => {
                let of = |number: u8| (0..MANIFESTS).map(move |n| object(number, n));
                let mut all = (0..TENANTS).flat_map(of);
                let found = all.find(|bytes| Digest::of(bytes) == digest);
                let kind = ObjectKind::Release;
                end.loaded(found.map(|bytes| StoredObject { kind, bytes }));
                continue;
            }
            Some(Transmit::Frame(frame)) => frame,
        };
        assert!(frame.len() <= 4 + MAX_FRAME_BYTES);
        let message = postcard::from_bytes::<ToNode>(&frame[4..]);
        match message.expect("a frame of ours holds a message") {
            ToNode::Statement { revision, id, .. } => {
                if let StatementId::Pool { name, .. } = &id {
                    assert_eq!(*name, member().pool, "a pool of somebody else");
                }
                assert_eq!(
                    sent.insert(id, revision),
                    None,
                    "sent again before its answer"
                );
                assert!(sent.len() <= MAX_UNACKED);
            }
            ToNode::Object { digest, bytes, .. } => assert_eq!(Digest::of(&bytes), digest),
            _ => {}
        }
    }
    frames
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (is_member, steps) = input;
    let mut end = match is_member {
        true => ControlEnd::member(member(), VERSIONS.newest),
        false => ControlEnd::stranger(VERSIONS.newest),
    };
    let mut world = World::default();
    world.publish(4, 0);
    let mut sent = BTreeMap::new();
    let mut bundles = BTreeSet::new();
    for step in steps {
        match &step {
            Step::Publish { kind, tenant } => world.publish(*kind, *tenant),
            Step::BundleDone if bundles.pop_first().is_some() => end.bundle_done(),
            Step::PieceDone => end.image_piece_done(),
            Step::LeaseSigned(answer) if end.lease_answer(answer.clone()).is_err() => return,
            Step::Write(frames) => {
                write(&mut end, &world, usize::from(*frames), &mut sent);
            }
            _ => {}
        }
        let Some(bytes) = said(&step, &world, &sent) else {
            continue;
        };
        if end.receive(&bytes).is_err() {
            return;
        }
        loop {
            match end.poll_event(&world) {
                Ok(Some(
                    ControlEvent::Acked { id, revision }
                    | ControlEvent::Nacked { id, revision, .. },
                )) => {
                    assert_eq!(
                        sent.remove(&id),
                        Some(revision),
                        "an answer to what was not sent"
                    );
                }
                Ok(Some(ControlEvent::Join { .. })) => {
                    end.join_pending();
                    end.admitted(member());
                }
                Ok(Some(ControlEvent::FetchBundle { digest, .. })) => {
                    bundles.insert(digest);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(violation) => {
                    assert!(violation.close_code() >= 16);
                    return;
                }
            }
        }
    }
    let frames = write(&mut end, &world, MAX_FRAMES, &mut sent);
    assert!(frames < MAX_FRAMES, "no end of what is written");
});
