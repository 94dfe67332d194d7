//! Both ends of a connection, from joining to a deployment.

use std::collections::BTreeMap;

use casemate_push::*;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::key::SigningKey;
use casemate_trust::name::Name;
use casemate_trust::statement::{Manifest, Statement as _, Wanted};

use super::{FLEET, KEY, STORE, TENANT, WHAT_TO_DO, full_hello, hex, ids, name, recorded, unhex};

/// The control plane's statements and objects, in the order in which they were accepted.
#[derive(Default)]
struct World {
    statements: BTreeMap<u64, (StatementId, Vec<u8>)>,
    objects: BTreeMap<Digest, Vec<u8>>,
    manifest: Option<(u64, Vec<u8>)>,
}

impl World {
    fn publish(&mut self, id: StatementId, bytes: Vec<u8>) {
        let revision = self.statements.len() as u64 + 1;
        if matches!(id, StatementId::Manifest { .. }) {
            self.statements
                .retain(|_, (held, _)| !matches!(held, StatementId::Manifest { .. }));
            self.manifest = Some((revision + 100, bytes.clone()));
            self.statements.insert(revision + 100, (id, bytes));
        } else {
            self.statements.insert(revision, (id, bytes));
        }
    }

    /// A manifest that lists one release.
    fn deploy(&mut self, version: u64, release: &[u8]) {
        let digest = Digest::of(release);
        self.objects.insert(digest, release.to_vec());
        let wanted = Wanted {
            release: digest,
            fallbacks: vec![],
            pools: vec![name("main")],
        };
        let manifest = Manifest {
            fleet: FLEET,
            tenant: TENANT,
            tenant_version: 1,
            version,
            functions: [(name("web"), wanted)].into(),
            secrets: [].into(),
            freshness: None,
            notes: [].into(),
            issued: 1,
            expires: 2,
        };
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let signed: Envelope = manifest.sign(&[&key]);
        let tenant = TENANT;
        self.publish(StatementId::Manifest { tenant, version }, signed.to_bytes());
    }
}

impl Catalog for World {
    fn now(&self) -> Cursor {
        let newest = self.statements.last_key_value();
        Cursor {
            store: STORE,
            revision: newest.map_or(0, |(revision, _)| *revision),
        }
    }

    fn next_after(&self, revision: u64) -> Option<(u64, Vec<StatementId>)> {
        let next = self.statements.range(revision + 1..).next();
        next.map(|(revision, (id, _))| (*revision, vec![id.clone()]))
    }

    fn tenant_versions(&self, _: &TenantId) -> Vec<(u64, u64)> {
        let all = self.statements.iter();
        let version = |(revision, (id, _)): (&u64, &(StatementId, _))| match id {
            StatementId::Tenant { version, .. } => Some((*version, *revision)),
            _ => None,
        };
        all.filter_map(version).collect()
    }

    fn statement(&self, wanted: &StatementId) -> Option<Vec<u8>> {
        let mut all = self.statements.values();
        all.find(|(id, _)| id == wanted)
            .map(|(_, bytes)| bytes.clone())
    }

    fn image(&self, _: &Name) -> Option<StatementId> {
        None
    }

    fn manifest(&self, _: &TenantId) -> Option<(u64, &[u8])> {
        let held = self.manifest.as_ref();
        held.map(|(revision, bytes)| (*revision, bytes.as_slice()))
    }
}

/// Both ends of a connection, and what each has said.
struct Talk {
    world: World,
    control: ControlEnd,
    node: NodeEnd,
    said: Vec<String>,
    /// A recording to hand to the ends in place of what the other end says.
    recording: Option<Vec<String>>,
}

fn member() -> Member {
    Member {
        name: name("edge-1"),
        pool: name("main"),
        key: KEY,
        fleet: FLEET,
    }
}

impl Talk {
    fn new(recording: Option<Vec<String>>) -> Self {
        Self {
            world: World::default(),
            control: ControlEnd::stranger(3),
            node: NodeEnd::joining(b"a signed request".to_vec()),
            said: Vec::new(),
            recording,
        }
    }

    /// Notes what an end has said; what the other hears of it.
    fn hear(&mut self, who: &str, frame: &[u8]) -> Vec<u8> {
        let at = self.said.len();
        let now = format!("{who} {}", hex(frame));
        let heard =
            match &self.recording {
                Some(recording) => {
                    let line = recording.get(at).expect("no more than was recorded");
                    let bytes = line.strip_prefix(&format!("{who} "));
                    unhex(bytes.unwrap_or_else(|| {
                        panic!("message {at}: {line}, and now {now}\n{WHAT_TO_DO}")
                    }))
                }
                None => frame.to_vec(),
            };
        self.said.push(now);
        heard
    }

    /// Has the ends speak until neither has anything to say.
    fn go_on(&mut self) {
        let mut is_quiet = false;
        while !is_quiet {
            is_quiet = true;
            while let Some(frame) = self.node.poll_transmit() {
                is_quiet = false;
                let heard = self.hear("node", &frame);
                self.control.receive(&heard).expect(WHAT_TO_DO);
                while let Some(event) = self.control.poll_event(&self.world).expect(WHAT_TO_DO) {
                    self.at_control(event);
                }
            }
            while let Some(transmit) = self.control.poll_transmit(&self.world) {
                is_quiet = false;
                let frame = match transmit {
                    Transmit::Frame(frame) => frame,
                    Transmit::Load { digest, .. } => {
                        let bytes = self.world.objects.get(&digest).cloned();
                        let kind = ObjectKind::Release;
                        self.control
                            .loaded(bytes.map(|bytes| StoredObject { kind, bytes }));
                        continue;
                    }
                };
                let heard = self.hear("control", &frame);
                self.node.receive(&heard).expect(WHAT_TO_DO);
                while let Some(event) = self.node.poll_event().expect(WHAT_TO_DO) {
                    self.at_node(event);
                }
            }
        }
    }

    fn at_control(&mut self, event: ControlEvent) {
        match event {
            ControlEvent::Join { request } => {
                assert_eq!(request, b"a signed request");
                self.control.join_pending();
                self.control.admitted(member());
            }
            ControlEvent::Lease { nonce } => {
                let answer = [&nonce[..], b" signed"].concat();
                self.control.lease_answer(answer).unwrap();
            }
            ControlEvent::FetchBundle { .. } => self.control.bundle_done(),
            ControlEvent::Hello(_)
            | ControlEvent::Acked { .. }
            | ControlEvent::Nacked { .. }
            | ControlEvent::Stored { .. }
            | ControlEvent::NotStored(_)
            | ControlEvent::FetchImage { .. }
            | ControlEvent::FetchObjects
            | ControlEvent::Logs { .. }
            | ControlEvent::Status { .. } => {}
        }
    }

    fn at_node(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Admitted => {
                let hello = Hello {
                    cursor: None,
                    has: Has::default(),
                    ..full_hello()
                };
                self.node.hello(hello).unwrap();
            }
            NodeEvent::Statement { id, bytes, .. } => {
                assert!(!bytes.is_empty());
                // Whoever asks for what has come gets it again.
                if let StatementId::Manifest { tenant, version } = id {
                    let digests: Vec<_> = self.world.objects.keys().copied().collect();
                    self.node.fetch_objects(tenant, &digests[..1]).unwrap();
                    self.node.ack(&id).unwrap();
                    self.node.stored(tenant, version).unwrap();
                    self.node.fetch_bundle(digests[0], version).unwrap();
                } else if let StatementId::Pool { .. } = id {
                    self.node.nack(&id, "pool_expired", "too late").unwrap();
                } else {
                    self.node.ack(&id).unwrap();
                }
            }
            _ => {}
        }
    }

    /// Joins, is sent everything, takes a deployment, asks for a lease, says how it is.
    fn whole(mut self) -> Vec<String> {
        for id in ids() {
            let is_here = !matches!(
                id,
                StatementId::Manifest { .. }
                    | StatementId::Freshness { .. }
                    | StatementId::Image { .. }
            );
            if is_here && !matches!(id, StatementId::Grant { .. }) {
                self.world.publish(id, b"a signed statement".to_vec());
            }
        }
        self.world.deploy(1, b"release one");
        self.go_on();
        assert_eq!(self.control.synced(), Some(self.world.now().revision));
        self.world.deploy(2, b"release two");
        self.go_on();
        self.node.lease([2; 32]).unwrap();
        self.node.status(r#"{"state":{}}"#.into());
        self.go_on();
        self.control.refuse("stopping", "the control plane stops");
        self.go_on();
        self.said
    }
}

#[test]
fn recorded_conversations_are_understood_by_both_ends() {
    let now = Talk::new(None).whole();
    let recording = recorded("conversation-3.txt", &now);
    let replayed = Talk::new(Some(recording.clone())).whole();
    assert_eq!(replayed.len(), recording.len(), "{WHAT_TO_DO}");
}
