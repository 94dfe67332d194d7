//! Accepts statements, manifests and objects.

use std::collections::{BTreeMap, BTreeSet};

use casemate_api::error::code;
use casemate_api::fleet::{Outcome, StatementAnswer};
use casemate_api::limits::{MAX_OBJECT_BYTES, MAX_SECRET_BYTES};
use casemate_api::tenant::ManifestAnswer;
use casemate_api::token::Scope;
use casemate_control_store::{Change, Store as _};
use casemate_push::{ObjectKind, StatementId, StoredObject};
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::image::Image;
use casemate_trust::judge::{self, Judge, Refusal, no_objects};
use casemate_trust::late::Early;
use casemate_trust::release::Release;
use casemate_trust::secret::Secret;
use casemate_trust::statement::{Manifest, OnlineKey, Statement as _};
use serde::Deserialize;
use serde_json::json;

use super::rates::Kind;
use super::storage::{Item, Kept};
use super::{Actor, Decided, Plane, key, now, objects, statement_ids};
use crate::fault::Fault;

/// How far ahead of the control plane's clock a statement may be dated, seconds: a day, in which a wrong clock is noticed.
const MAX_AHEAD_SECS: Seconds = 24 * 60 * 60;

impl Plane {
    /// Accepts a `Root`, `OnlineKey`, `Pool`, `Revocations`, `Tenant` or `Image`.
    pub(crate) async fn post_statement(
        &self,
        actor: &Actor,
        bytes: &[u8],
    ) -> Result<StatementAnswer, Fault> {
        let envelope = parse(bytes)?;
        let id = self.identify(actor, &envelope)?;
        must_not_be_early(&envelope).map_err(|fault| fault.about(&id))?;
        // A file that exists now still exists when the statement is written.
        let image = Image::read(&envelope).ok();
        let _still = match &image {
            Some(image) => {
                let still = self.images.still().await;
                self.must_have_image(image)
                    .await
                    .map_err(|fault| fault.about(&id))?;
                Some(still)
            }
            None => None,
        };
        let writing = self.begin().await;
        let decided = self.decide(&id, &envelope);
        let decided = decided.map_err(|fault| fault.about(&id))?;
        let is_new = !decided.change.is_empty() || self.is_signed_anew(&id, &envelope);
        let revision = if is_new {
            let names_nodes = matches!(id, StatementId::Revocations { .. });
            let recorded = Some((actor, "statement.put"));
            let revision = writing.accept(decided, id, &envelope, recorded).await?;
            if names_nodes {
                self.remove_revoked(&writing, actor).await?;
            }
            revision
        } else {
            self.store.revision()
        };
        let accepted = if is_new { Outcome::New } else { Outcome::Held };
        Ok(StatementAnswer { accepted, revision })
    }

    /// The kind that an envelope claims, and whether this client may upload such a statement at
    /// all.
    fn identify(&self, actor: &Actor, envelope: &Envelope) -> Result<StatementId, Fault> {
        let malformed = |message: String| Fault::from(Refusal::Malformed(message));
        let id = statement_ids::statement_id(envelope).map_err(malformed)?;
        if matches!(
            id,
            StatementId::Manifest { .. } | StatementId::Freshness { .. }
        ) {
            let path = match id {
                StatementId::Manifest { .. } => "manifest",
                _ => "freshness",
            };
            let message = format!("a {path} goes to its tenant: PUT /v1/tenants/{{id}}/{path}");
            return Err(malformed(message));
        }
        let may = match actor {
            Actor::Token {
                scope: Scope::Operator,
                ..
            } => true,
            Actor::Token {
                scope: Scope::Tenant(own),
                ..
            } => matches!(&id, StatementId::Tenant { tenant, .. } if tenant == own),
            _ => false,
        };
        if may {
            Ok(id)
        } else {
            let message =
                "a tenant's token may hand in that tenant's own key rotation and nothing else";
            Err(Fault::new(403, code::FORBIDDEN, message).about(&id))
        }
    }

    /// Decides any statement that lists no objects, in parallel with readers.
    pub(super) fn decide(&self, id: &StatementId, envelope: &Envelope) -> Result<Decided, Fault> {
        if let Ok(online) = OnlineKey::read(envelope)
            && (online.liveness, online.quic, online.api)
                != (self.keys.liveness, self.keys.quic, self.keys.api)
        {
            let message = "the online key names other keys than this control plane holds; sign the keys of its public.json";
            return Err(Fault::new(422, code::ONLINE_KEY_OTHER, message));
        }
        let held = self.held();
        let is_first = matches!(id, StatementId::Root { version: 1 });
        // The first root's digest determines the fleet: the holder of the first operator token
        // chooses it.
        let founder = (held.judge.is_none() && is_first)
            .then(|| Judge::new(FleetId(envelope.payload_digest().0), None));
        let judge = held.judge.as_ref().or(founder.as_ref());
        let judge = judge.ok_or_else(Fault::no_fleet)?;
        let change = judge.decide(envelope, now(), &no_objects)?;
        Ok(Decided { change, founder })
    }

    /// Whether the same statement now has the newest root's signature and the stored one has not:
    /// after a change of the root, nodes that start afresh need the new signature.
    fn is_signed_anew(&self, id: &StatementId, envelope: &Envelope) -> bool {
        let held = self.held();
        let Some(root) = held.judge.as_ref().and_then(Judge::root) else {
            return false;
        };
        let by_root = |envelope: &Envelope| envelope.verify(&root.keys, root.threshold);
        let stored = held
            .index
            .get(id)
            .and_then(|(_, bytes)| Envelope::parse(bytes).ok());
        by_root(envelope) && stored.is_some_and(|stored| !by_root(&stored))
    }

    /// Stores a release or a sealed secret of a tenant.
    pub(crate) async fn put_object(
        &self,
        tenant: &TenantId,
        digest: &Digest,
        bytes: Vec<u8>,
    ) -> Result<(), Fault> {
        let found = Digest::of(&bytes);
        if found != *digest {
            let message = format!("the object's digest is {found}, not {digest}");
            return Err(
                Fault::new(422, code::DIGEST_MISMATCH, message).with(json!({ "digest": found }))
            );
        }
        let malformed = |message: String| Fault::new(422, code::OBJECT_MALFORMED, message);
        let kind = match (Release::parse(&bytes), Secret::parse(&bytes)) {
            (Ok(release), _) if release.tenant == *tenant => ObjectKind::Release,
            (_, Ok(secret)) if secret.place.tenant == *tenant => ObjectKind::Secret,
            (Ok(_), _) | (_, Ok(_)) => {
                return Err(malformed("the object is another tenant's".into()));
            }
            (Err(_), Err(secret))
                if bytes.len() > MAX_SECRET_BYTES && bytes.len() > MAX_OBJECT_BYTES =>
            {
                return Err(malformed(secret.to_string()));
            }
            (Err(release), Err(secret)) => {
                return Err(malformed(format!(
                    "neither a release ({release}) nor a sealed secret ({secret})"
                )));
            }
        };
        self.reserve().await?;
        let (at, item) = (key::object(tenant, digest), Item::Object(*digest));
        let _writing = self.begin().await;
        if self.stays(tenant, &item) && self.store.get(&at).await?.is_some() {
            return Ok(());
        }
        let kept = Kept {
            bytes: bytes.len() as u64,
            since: now(),
        };
        let _room = self.ledger.reserve(tenant, item, kept.bytes)?;
        // Objects have no effect until a manifest lists them, so they leave no audit record of
        // their own.
        let object = StoredObject { kind, bytes };
        let changes = vec![
            Change::put(at, objects::stored(&object)),
            Change::put(key::kept(tenant, digest), super::json(&kept)),
        ];
        self.store.commit(vec![], changes).await?;
        self.ledger.keep(tenant, item, kept);
        Ok(())
    }

    /// Accepts a tenant's next manifest.
    pub(crate) async fn put_manifest(
        &self,
        actor: &Actor,
        tenant: &TenantId,
        bytes: &[u8],
    ) -> Result<ManifestAnswer, Fault> {
        let envelope = parse(bytes)?;
        let manifest = Manifest::read(&envelope).map_err(Refusal::Malformed)?;
        if manifest.tenant != *tenant {
            let message = "the manifest is another tenant's";
            return Err(Fault::new(403, code::FORBIDDEN, message));
        }
        let version = manifest.version;
        let id = StatementId::Manifest {
            tenant: *tenant,
            version,
        };
        if let Err(wait) = self.rates.take(tenant, Kind::Manifest) {
            let wait_ms = wait.as_millis();
            let message = format!("too many manifests of this tenant; try again in {wait_ms} ms");
            let details = json!({ "wait_ms": u64::try_from(wait_ms).unwrap_or(u64::MAX) });
            return Err(Fault::new(429, code::TOO_SOON, message)
                .with(details)
                .about(&id));
        }
        self.reserve().await?;
        let writing = self.begin().await;
        let decided = self.decide_manifest(&envelope, &manifest).await;
        let change = decided.map_err(|fault| fault.about(&id))?;
        if change.is_empty() {
            return Ok(ManifestAnswer {
                accepted: Outcome::Held,
                revision: self.store.revision(),
            });
        }
        let decided = Decided {
            change,
            founder: None,
        };
        let recorded = Some((actor, "manifest.put"));
        let revision = writing.accept(decided, id, &envelope, recorded).await?;
        self.due.add([*tenant]);
        Ok(ManifestAnswer {
            accepted: Outcome::New,
            revision,
        })
    }

    async fn decide_manifest(
        &self,
        envelope: &Envelope,
        manifest: &Manifest,
    ) -> Result<judge::Change, Fault> {
        self.must_be_next(envelope, manifest)?;
        // The manifest is first decided without objects: its own mistakes are found before anything
        // is read for it.
        let digests = match self.decide_listing(envelope, &BTreeMap::new()) {
            Err(Refusal::Missing(digests)) => digests,
            decided => return Ok(decided?),
        };
        let objects = objects::objects(&self.store, &manifest.tenant, &digests).await?;
        let missing: Vec<_> = digests
            .into_iter()
            .filter(|digest| !objects.contains_key(digest))
            .collect();
        if !missing.is_empty() {
            return Err(Refusal::Missing(missing).into());
        }
        self.must_fit_egress(&manifest.tenant, &objects)?;
        self.must_have_bundles(&manifest.tenant, &objects).await?;
        Ok(self.decide_listing(envelope, &objects)?)
    }

    fn decide_listing(
        &self,
        envelope: &Envelope,
        objects: &BTreeMap<Digest, StoredObject>,
    ) -> Result<judge::Change, Refusal> {
        let find = |digest: &Digest| objects.get(digest).map(|object| object.bytes.clone());
        let held = self.held();
        let judge = held.judge.as_ref().ok_or(Refusal::RootUnknown)?;
        judge.decide(envelope, now(), &find)
    }

    /// Two concurrent deploys: one is accepted, the other learns which manifest it has to build on.
    fn must_be_next(&self, envelope: &Envelope, manifest: &Manifest) -> Result<(), Fault> {
        let held = self.held();
        let judge = held.judge.as_ref().ok_or_else(Fault::no_fleet)?;
        let seen = judge
            .memory()
            .tenants
            .get(&manifest.tenant)
            .and_then(|seen| seen.manifest);
        let Some(seen) = seen else { return Ok(()) };
        let is_same = seen.version == manifest.version && seen.digest == envelope.payload_digest();
        if is_same || manifest.version > seen.version {
            return Ok(());
        }
        let message = format!(
            "manifest {} exists already; build the next one on it, not on {}",
            seen.version,
            manifest.version.saturating_sub(1)
        );
        let details = json!({ "version": seen.version, "digest": seen.digest });
        Err(Fault::new(409, code::MANIFEST_CONFLICT, message).with(details))
    }

    /// Refuses a new release that declares calls beyond the tenant's egress ceiling before any node
    /// has it. Releases that the earlier manifest lists stay: a lowered ceiling must not keep a
    /// tenant from withdrawing a secret.
    fn must_fit_egress(
        &self,
        tenant: &TenantId,
        objects: &BTreeMap<Digest, StoredObject>,
    ) -> Result<(), Refusal> {
        let held = self.held();
        let judge = held.judge.as_ref();
        let state = judge.and_then(|judge| judge.tenant(tenant));
        let state = state.ok_or(Refusal::TenantUnknown)?;
        objects
            .iter()
            .filter(|(_, object)| object.kind == ObjectKind::Release)
            .filter_map(|(digest, object)| Some((digest, Release::parse(&object.bytes).ok()?)))
            .try_for_each(|(digest, release)| state.egress_must_fit(digest, &release))
    }

    async fn must_have_bundles(
        &self,
        tenant: &TenantId,
        objects: &BTreeMap<Digest, StoredObject>,
    ) -> Result<(), Fault> {
        let releases = objects
            .values()
            .filter(|object| object.kind == ObjectKind::Release);
        let releases = releases.filter_map(|object| Release::parse(&object.bytes).ok());
        let wanted: BTreeSet<_> = releases
            .map(|release| (release.bundle.digest, release.bundle.bytes))
            .collect();
        let mut missing = Vec::new();
        for (digest, bytes) in wanted {
            match self.bundles.size(tenant, &digest).await? {
                Some(found) if found == bytes => {}
                Some(found) => {
                    let message =
                        format!("bundle {digest} has {found} bytes, the release names {bytes}");
                    return Err(Fault::new(422, code::OBJECT_MALFORMED, message));
                }
                None => missing.push(digest),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{} bundles of listed releases were not uploaded",
            missing.len()
        );
        Err(Fault::new(422, code::BUNDLE_MISSING, message).with(json!({ "digests": missing })))
    }
}

/// Refuses dates in the future. Every recipient of a statement believes the root's date
/// permanently: setting the clock back does not undo it. A date that is further in the future than
/// clocks differ would make them refuse later statements.
fn must_not_be_early(envelope: &Envelope) -> Result<(), Fault> {
    #[derive(Deserialize)]
    struct Dated {
        issued: Seconds,
    }
    // Every statement has a date; the judge refuses one without.
    let dated = serde_json::from_slice::<Dated>(envelope.unverified_payload()).ok();
    let clock = now();
    match dated {
        Some(Dated { issued }) if issued > clock.saturating_add(MAX_AHEAD_SECS) => {
            let early = Early { issued, clock };
            let message = format!(
                "the statement is dated in the future: {early}; set the clock that is wrong, and sign it again"
            );
            Err(Fault::new(422, code::FROM_FUTURE, message))
        }
        _ => Ok(()),
    }
}

fn parse(bytes: &[u8]) -> Result<Envelope, Fault> {
    Envelope::parse(bytes).map_err(|error| Refusal::Malformed(error.to_string()).into())
}
