//! Carrying: what the control plane pushes goes to the vault to be judged, and the judgement goes back.
//!
//! A manifest may lack objects. It waits for them, and a newer one of its tenant may come meanwhile. Then, as soon as the
//! vault has found the newer one to be the tenant's word (it accepts it, or misses objects of it), the older is answered with
//! [`SUPERSEDED`]; a newer one that is refused changes nothing for the older.

mod ahead;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use casemate_push::{NodeEvent, ObjectKind as PushedKind, StatementId, is_transient};
use casemate_trust::id::{Digest, TenantId};
use casemate_wire::control::vault::{ObjectKind, Verdict};

use super::Millis;
use ahead::Ahead;

/// Refused because the tenant's newer manifest came before this one had its objects.
const SUPERSEDED: &str = "superseded";
/// Refused because listed objects cannot be had.
const OBJECTS_MISSING: &str = "objects_missing";
/// Most times that one manifest is shown again: a vault that misses the same after all came, or whose room for objects
/// others fill faster than we fetch, would make us go round for ever.
const MAX_ROUNDS: u32 = 3;
/// First pause before a statement is shown again that was refused for a reason that passes, and the longest: a full disk is
/// full for minutes or hours.
const RETRY_MIN_MS: Millis = 5000;
const RETRY_MAX_MS: Millis = 300_000;
/// Statements that wait to be shown again. What is beyond comes with the next connection.
const MAX_POSTPONED: usize = 64;

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
    /// Connect anew: a statement is held whose refusal was reported, and the hello says so.
    Resync,
}

/// A statement that is shown to the vault.
#[derive(Debug)]
struct Shown {
    id: StatementId,
    bytes: Vec<u8>,
    /// How often the vault has missed objects of it.
    rounds: u32,
    /// How often it was refused for a reason that passes; the first time was reported.
    refusals: u32,
}

/// What a submit was for.
#[derive(Debug)]
enum Purpose {
    Statement(Shown),
    Object(TenantId, Digest),
    /// What the control plane hears no verdict of: a lease, or that this node is revoked.
    Unanswered,
}

/// A manifest that waits for objects.
#[derive(Debug)]
struct Waiting {
    shown: Shown,
    lacks: Lacks,
}

/// Objects that a manifest lacks.
#[derive(Debug, Default)]
struct Lacks {
    /// Asked for.
    asked: BTreeSet<Digest>,
    /// On their way through the vault.
    under_way: BTreeSet<Digest>,
}

/// See the module. One for each connection: what was under way when it broke is sent again by the next.
#[derive(Debug, Default)]
pub(crate) struct Carrier {
    next: u64,
    submitted: BTreeMap<u64, Purpose>,
    waiting: BTreeMap<TenantId, Waiting>,
    ahead: Ahead,
    /// Statements that were refused for a reason that passes, and when each is shown again: once time is known.
    postponed: Vec<(Option<Millis>, Shown)>,
}

fn kind_of(id: &StatementId) -> ObjectKind {
    match id {
        StatementId::Root { .. } => ObjectKind::Root,
        StatementId::OnlineKey { .. } => ObjectKind::OnlineKey,
        StatementId::Pool { .. } => ObjectKind::Pool,
        StatementId::Tenant { .. } => ObjectKind::Tenant,
        StatementId::Manifest { .. } => ObjectKind::Manifest,
        StatementId::Grant { .. } => ObjectKind::Grant,
        StatementId::Image { .. } => ObjectKind::Image,
        StatementId::Revocations { .. } => ObjectKind::Revocations,
        StatementId::Freshness { .. } => ObjectKind::Freshness,
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

    fn show(&mut self, shown: Shown) -> Carried {
        let (kind, bytes) = (kind_of(&shown.id), shown.bytes.clone());
        self.submit(kind, bytes, Purpose::Statement(shown))
    }

    /// What came from the control plane, as far as it is to be judged.
    pub(crate) fn pushed(&mut self, event: NodeEvent) -> Vec<Carried> {
        match event {
            NodeEvent::Statement { id, bytes, .. } => {
                let shown = Shown {
                    id,
                    bytes,
                    rounds: 0,
                    refusals: 0,
                };
                vec![self.show(shown)]
            }
            NodeEvent::Lease { answer } => {
                vec![self.submit(ObjectKind::Lease, answer, Purpose::Unanswered)]
            }
            NodeEvent::Revoked { list } => {
                vec![self.submit(ObjectKind::Revocations, list, Purpose::Unanswered)]
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
                    .filter(|(_, waiting)| waiting.lacks.asked.contains(&digest))
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
        if let Some(waiting) = self.waiting.get_mut(&tenant)
            && waiting.lacks.asked.remove(&digest)
        {
            waiting.lacks.under_way.insert(digest);
            let purpose = Purpose::Object(tenant, digest);
            return vec![self.submit(object_kind(kind), bytes, purpose)];
        }
        self.ahead.keep(tenant, digest, kind, bytes);
        Vec::new()
    }

    /// Shows again what was refused for a reason that passes and is due.
    pub(crate) fn tick(&mut self, now_ms: Millis) -> Vec<Carried> {
        for (again_ms, shown) in &mut self.postponed {
            let pause_ms = RETRY_MIN_MS << shown.refusals.saturating_sub(1).min(10);
            again_ms.get_or_insert(now_ms + pause_ms.min(RETRY_MAX_MS));
        }
        let is_due = |(again_ms, _): &mut (Option<Millis>, Shown)| {
            again_ms.is_some_and(|again_ms| now_ms >= again_ms)
        };
        let due: Vec<_> = self.postponed.extract_if(.., is_due).collect();
        due.into_iter().map(|(_, shown)| self.show(shown)).collect()
    }

    /// The refusal is reported, and the statement is shown again later.
    fn postpone(&mut self, mut shown: Shown, code: String, message: String) -> Option<Carried> {
        let report = (shown.refusals == 0).then(|| nack(shown.id.clone(), code, message));
        shown.refusals = shown.refusals.saturating_add(1);
        if self.postponed.len() < MAX_POSTPONED {
            self.postponed.push((None, shown));
        }
        report
    }

    /// The vault's judgement of submit `id`. It judges in the order in which it was asked.
    pub(crate) fn judged(&mut self, id: u64, verdict: Verdict) -> Vec<Carried> {
        match self.submitted.remove(&id) {
            Some(Purpose::Statement(shown)) => self.statement_judged(shown, verdict),
            Some(Purpose::Object(tenant, digest)) => self
                .object_judged(&tenant, &digest, verdict)
                .into_iter()
                .collect(),
            Some(Purpose::Unanswered) | None => Vec::new(),
        }
    }

    fn statement_judged(&mut self, shown: Shown, verdict: Verdict) -> Vec<Carried> {
        let manifest_of = match &shown.id {
            StatementId::Manifest { tenant, .. } => Some(*tenant),
            _ => None,
        };
        let mut carried = Vec::new();
        let answer = match (verdict, manifest_of) {
            (Verdict::Missing { digests }, Some(tenant)) => {
                return self.missing(tenant, shown, digests);
            }
            (Verdict::Missing { .. }, None) => Some(nack(
                shown.id,
                OBJECTS_MISSING,
                "only a manifest lists objects",
            )),
            (Verdict::Refused { code, message }, _) if is_transient(&code) => {
                self.postpone(shown, code, message)
            }
            // The control plane has its answer, and hears another one only on another connection.
            (Verdict::Refused { .. }, _) if shown.refusals > 0 => Some(Carried::Resync),
            (Verdict::Refused { code, message }, _) => Some(nack(shown.id, code, message)),
            (Verdict::Accepted, _) => {
                carried.extend(self.supersede(&shown.id).map(|(older, _)| older));
                self.postponed.retain(|(_, postponed)| {
                    !postponed.id.is_same_thing(&shown.id)
                        || postponed.id.version() > shown.id.version()
                });
                Some(match shown.refusals {
                    0 => Carried::Ack(shown.id),
                    _ => Carried::Resync,
                })
            }
        };
        carried.extend(answer);
        if let Some(tenant) = manifest_of {
            carried.extend(self.show_again(&tenant));
            if self.newest_shown(&tenant).is_none() {
                // What came ahead has been used or will not be.
                self.ahead.forget(&tenant);
            }
        }
        carried
    }

    /// Gets what a manifest lacks, each object once: from what came ahead, or from what its predecessor waited for.
    fn missing(
        &mut self,
        tenant: TenantId,
        mut shown: Shown,
        digests: Vec<[u8; 32]>,
    ) -> Vec<Carried> {
        let newer = self.waiting.get(&tenant).map(|waiting| &waiting.shown.id);
        if let Some(newer) = newer.filter(|newer| newer.version() > shown.id.version()) {
            return vec![superseded(shown.id, newer)];
        }
        let (older, before) = self.supersede(&shown.id).unzip();
        let mut carried: Vec<Carried> = older.into_iter().collect();
        shown.rounds += 1;
        if shown.rounds > MAX_ROUNDS {
            let message = "listed objects are still missing after several fetches";
            carried.push(nack(shown.id, OBJECTS_MISSING, message));
            return carried;
        }
        let (before, mut lacks, mut fetch) =
            (before.unwrap_or_default(), Lacks::default(), Vec::new());
        for digest in digests.into_iter().map(Digest) {
            if before.under_way.contains(&digest) {
                lacks.under_way.insert(digest);
            } else if let Some((kind, bytes)) = self.ahead.take(&tenant, &digest) {
                let purpose = Purpose::Object(tenant, digest);
                carried.push(self.submit(object_kind(kind), bytes, purpose));
                lacks.under_way.insert(digest);
            } else {
                lacks.asked.insert(digest);
                if !before.asked.contains(&digest) {
                    fetch.push(digest);
                }
            }
        }
        if !fetch.is_empty() {
            let digests = fetch;
            carried.push(Carried::Fetch { tenant, digests });
        }
        self.waiting.insert(tenant, Waiting { shown, lacks });
        carried.extend(self.show_again(&tenant));
        carried
    }

    fn object_judged(
        &mut self,
        tenant: &TenantId,
        digest: &Digest,
        verdict: Verdict,
    ) -> Option<Carried> {
        // One of a manifest that does not wait any more counts for no other.
        let counts = |waiting: &mut Waiting| waiting.lacks.under_way.remove(digest);
        if !self.waiting.get_mut(tenant).is_some_and(counts) {
            return None;
        }
        match verdict {
            Verdict::Refused { code, message } => self.give_up(
                tenant,
                format!("a listed object was refused: {code}: {message}"),
            ),
            _ => self.show_again(tenant),
        }
    }

    /// Shows a manifest again that has all its objects. Not while a newer one is being judged: that supersedes it, or is
    /// refused, and then its turn has come.
    fn show_again(&mut self, tenant: &TenantId) -> Option<Carried> {
        let waiting = self.waiting.get(tenant)?;
        let version = Some(waiting.shown.id.version());
        let is_complete = waiting.lacks.asked.is_empty() && waiting.lacks.under_way.is_empty();
        if !is_complete || self.newest_shown(tenant) > version {
            return None;
        }
        let waiting = self.waiting.remove(tenant)?;
        Some(self.show(waiting.shown))
    }

    /// Version of the newest of a tenant's manifests that are being judged.
    fn newest_shown(&self, tenant: &TenantId) -> Option<u64> {
        let versions = self.submitted.values().filter_map(|purpose| match purpose {
            Purpose::Statement(shown) => match &shown.id {
                StatementId::Manifest {
                    tenant: of,
                    version,
                } if of == tenant => Some(*version),
                _ => None,
            },
            _ => None,
        });
        versions.max()
    }

    /// Ends the waiting of an older manifest of the same tenant; its answer, and what it still lacked.
    fn supersede(&mut self, newer: &StatementId) -> Option<(Carried, Lacks)> {
        let StatementId::Manifest { tenant, version } = newer else {
            return None;
        };
        let is_older = |waiting: &Waiting| waiting.shown.id.version() < *version;
        self.waiting
            .get(tenant)
            .filter(|waiting| is_older(waiting))?;
        let Waiting { shown, lacks } = self.waiting.remove(tenant)?;
        Some((superseded(shown.id, newer), lacks))
    }

    fn give_up(&mut self, tenant: &TenantId, message: String) -> Option<Carried> {
        let waiting = self.waiting.remove(tenant)?;
        Some(nack(waiting.shown.id, OBJECTS_MISSING, message))
    }
}

fn nack(id: StatementId, code: impl Into<String>, message: impl Into<String>) -> Carried {
    Carried::Nack {
        id,
        code: code.into(),
        message: message.into(),
    }
}

fn superseded(older: StatementId, newer: &StatementId) -> Carried {
    let message = format!(
        "superseded by manifest {}, which arrived before all objects of this manifest",
        newer.version()
    );
    nack(older, SUPERSEDED, message)
}

fn object_kind(kind: PushedKind) -> ObjectKind {
    match kind {
        PushedKind::Release => ObjectKind::Release,
        PushedKind::Secret => ObjectKind::Secret,
    }
}
