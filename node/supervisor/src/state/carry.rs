//! Carrying: what the control plane pushes goes to the vault to be judged, and the judgement goes back.

use std::collections::{BTreeMap, BTreeSet};

use casemate_push::{NodeEvent, ObjectKind as PushedKind, StatementId};
use casemate_trust::id::{Digest, TenantId};
use casemate_wire::control::vault::{ObjectKind, Verdict};

/// Objects that came before their manifest, bytes: what the control plane may send ahead.
const MAX_AHEAD_BYTES: usize = casemate_push::MAX_AHEAD_BYTES;

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    /// Have the vault judge this.
    Submit {
        id: u64,
        kind: ObjectKind,
        bytes: Vec<u8>,
    },
    /// Tell the control plane.
    Ack(StatementId),
    /// Tell the control plane.
    Nack {
        id: StatementId,
        code: String,
        message: String,
    },
    /// Ask the control plane.
    Fetch {
        tenant: TenantId,
        digests: Vec<Digest>,
    },
}

/// What a submit was for.
#[derive(Debug)]
enum Purpose {
    Statement(StatementId, Vec<u8>),
    Object(TenantId),
    Lease,
}

/// A manifest that waits for objects.
#[derive(Debug)]
struct Waiting {
    id: StatementId,
    bytes: Vec<u8>,
    missing: BTreeSet<Digest>,
    /// Objects on their way through the vault.
    under_way: usize,
    /// A vault that misses the same after all came would make us go round for ever.
    rounds: u32,
}

/// Most times that one manifest is shown again.
const MAX_ROUNDS: u32 = 3;

/// See the module. One for each connection: what was under way when it broke is sent again by the next.
#[derive(Debug, Default)]
pub(crate) struct Carrier {
    next: u64,
    submitted: BTreeMap<u64, Purpose>,
    waiting: BTreeMap<TenantId, Waiting>,
    ahead: BTreeMap<Digest, (PushedKind, Vec<u8>)>,
    ahead_bytes: usize,
}

fn kind_of(id: &StatementId) -> ObjectKind {
    match id {
        StatementId::Root { .. } => ObjectKind::Root,
        StatementId::OnlineKey { .. } => ObjectKind::OnlineKey,
        StatementId::Pool { .. } => ObjectKind::Pool,
        StatementId::Tenant { .. } => ObjectKind::Tenant,
        StatementId::Manifest { .. } => ObjectKind::Manifest,
        StatementId::Grant { .. } => ObjectKind::Grant,
    }
}

impl Carrier {
    /// A carrier whose submits are numbered from here: answers to an earlier one's are not taken for its own.
    pub(crate) fn starting_at(next: u64) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    /// The number of the next submit.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    fn submit(&mut self, kind: ObjectKind, bytes: Vec<u8>, purpose: Purpose) -> Carried {
        self.next += 1;
        self.submitted.insert(self.next, purpose);
        Carried::Submit {
            id: self.next,
            kind,
            bytes,
        }
    }

    /// What came from the control plane, as far as it is to be judged.
    pub(crate) fn pushed(&mut self, event: NodeEvent) -> Vec<Carried> {
        match event {
            NodeEvent::Statement { id, bytes, .. } => {
                let purpose = Purpose::Statement(id.clone(), bytes.clone());
                vec![self.submit(kind_of(&id), bytes, purpose)]
            }
            NodeEvent::Lease { answer } => {
                vec![self.submit(ObjectKind::Lease, answer, Purpose::Lease)]
            }
            NodeEvent::Object {
                tenant,
                digest,
                kind,
                bytes,
            } => self.object(tenant, digest, kind, bytes),
            NodeEvent::Unavailable { digest } => {
                let stuck: Vec<TenantId> = self
                    .waiting
                    .iter()
                    .filter(|(_, waiting)| waiting.missing.contains(&digest))
                    .map(|(id, _)| *id)
                    .collect();
                stuck
                    .iter()
                    .filter_map(|tenant| {
                        self.give_up(
                            tenant,
                            format!("the control plane does not have the listed object {digest}"),
                        )
                    })
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    fn object(
        &mut self,
        tenant: TenantId,
        digest: Digest,
        kind: PushedKind,
        bytes: Vec<u8>,
    ) -> Vec<Carried> {
        let wanted = self.waiting.get_mut(&tenant).is_some_and(|waiting| {
            waiting.missing.remove(&digest) && {
                waiting.under_way += 1;
                true
            }
        });
        if wanted {
            return vec![self.submit(object_kind(kind), bytes, Purpose::Object(tenant))];
        }
        if self.ahead_bytes + bytes.len() <= MAX_AHEAD_BYTES {
            self.ahead_bytes += bytes.len();
            if let Some((_, old)) = self.ahead.insert(digest, (kind, bytes)) {
                self.ahead_bytes -= old.len();
            }
        }
        Vec::new()
    }

    /// The vault's judgement of submit `id`.
    pub(crate) fn judged(&mut self, id: u64, verdict: Verdict) -> Vec<Carried> {
        match (self.submitted.remove(&id), verdict) {
            (Some(Purpose::Statement(id, bytes)), Verdict::Missing { digests }) => {
                self.missing(id, bytes, digests)
            }
            (Some(Purpose::Statement(id, _)), verdict) => {
                if let StatementId::Manifest { tenant, .. } = &id {
                    self.waiting.remove(tenant);
                    // What came ahead has been used or will not be.
                    self.ahead.clear();
                    self.ahead_bytes = 0;
                }
                vec![match verdict {
                    Verdict::Refused { code, message } => Carried::Nack { id, code, message },
                    _ => Carried::Ack(id),
                }]
            }
            (Some(Purpose::Object(tenant)), Verdict::Refused { code, message }) => self
                .give_up(
                    &tenant,
                    format!("a listed object was refused: {code}: {message}"),
                )
                .into_iter()
                .collect(),
            (Some(Purpose::Object(tenant)), _) => self.object_taken(tenant),
            (Some(Purpose::Lease) | None, _) => Vec::new(),
        }
    }

    fn missing(&mut self, id: StatementId, bytes: Vec<u8>, digests: Vec<[u8; 32]>) -> Vec<Carried> {
        let Some(tenant) = id.tenant().copied() else {
            return Vec::new();
        };
        let rounds = self
            .waiting
            .get(&tenant)
            .filter(|waiting| waiting.id == id)
            .map_or(0, |waiting| waiting.rounds)
            + 1;
        let mut missing: BTreeSet<Digest> = digests.into_iter().map(Digest).collect();
        let mut carried = Vec::new();
        for digest in missing.clone() {
            if let Some((kind, bytes)) = self.ahead.remove(&digest) {
                self.ahead_bytes -= bytes.len();
                missing.remove(&digest);
                carried.push(self.submit(object_kind(kind), bytes, Purpose::Object(tenant)));
            }
        }
        let under_way = carried.len();
        if !missing.is_empty() {
            carried.push(Carried::Fetch {
                tenant,
                digests: missing.iter().copied().collect(),
            });
        }
        self.waiting.insert(
            tenant,
            Waiting {
                id,
                bytes,
                missing,
                under_way,
                rounds,
            },
        );
        if rounds > MAX_ROUNDS {
            return self
                .give_up(&tenant, "listed objects are missing again and again".into())
                .into_iter()
                .collect();
        }
        carried
    }

    fn object_taken(&mut self, tenant: TenantId) -> Vec<Carried> {
        let Some(waiting) = self.waiting.get_mut(&tenant) else {
            return Vec::new();
        };
        waiting.under_way = waiting.under_way.saturating_sub(1);
        if waiting.under_way > 0 || !waiting.missing.is_empty() {
            return Vec::new();
        }
        let (id, bytes) = (waiting.id.clone(), waiting.bytes.clone());
        vec![self.submit(
            ObjectKind::Manifest,
            bytes.clone(),
            Purpose::Statement(id, bytes),
        )]
    }

    fn give_up(&mut self, tenant: &TenantId, message: String) -> Option<Carried> {
        let waiting = self.waiting.remove(tenant)?;
        Some(Carried::Nack {
            id: waiting.id,
            code: "objects_missing".into(),
            message,
        })
    }
}

fn object_kind(kind: PushedKind) -> ObjectKind {
    match kind {
        PushedKind::Release => ObjectKind::Release,
        PushedKind::Secret => ObjectKind::Secret,
    }
}
