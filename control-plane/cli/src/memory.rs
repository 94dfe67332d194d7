//! What this home has seen of a fleet: the same judge and the same memory as a node's vault, in one file.

use std::collections::BTreeMap;

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::image::Image;
use casemate_trust::judge::{Accepted, Judge, Memory, Refusal};
use casemate_trust::key::SigningKey;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{Manifest, OnlineKey, Pool, Root, Statement, Tenant};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};
use crate::home::{Home, read_private, write_private};

/// The file.
const FILE: &str = "memory.json";
/// Folder of the objects that manifests list.
const OBJECTS: &str = "objects";
/// Most statements that are kept before a tenant's newest one, which a tenant signs only to change its keys.
const MAX_BEFORE: usize = 64;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// What refuses a rollback.
    memory: Memory,
    /// The statements themselves.
    held: Held,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    roots: Vec<Envelope>,
    online: Option<Envelope>,
    #[serde(default)]
    revocations: Option<Envelope>,
    pools: Vec<Envelope>,
    tenants: BTreeMap<TenantId, Envelope>,
    /// Of a tenant whose newest statement the root has not signed: those before it, from the last one of the root on. Each
    /// proves the keys that signed the next.
    #[serde(default)]
    before: BTreeMap<TenantId, Vec<Envelope>>,
    manifests: BTreeMap<TenantId, Envelope>,
}

/// What a control plane shows beside what this home remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// The newest that is known.
    Newest,
    /// Something older: the home goes on from what it remembers.
    Older,
}

/// A judge that outlives the program.
#[derive(Debug, Clone)]
pub struct Known {
    judge: Judge,
    held: Held,
    changed: bool,
}

/// Objects by digest.
pub type ObjectMap = BTreeMap<Digest, Vec<u8>>;

impl Known {
    /// A fleet of which nothing but its fingerprint is known.
    pub fn new(fleet: FleetId) -> Self {
        Self {
            judge: Judge::new(fleet, None),
            held: Held::default(),
            changed: true,
        }
    }

    /// What this home remembers, if anything.
    ///
    /// # Errors
    /// The file is damaged: without it a rollback could not be refused, so nothing goes on.
    pub fn load(home: &Home, now: Seconds) -> Result<Option<Self>, Error> {
        let Some(stored) = home.read_json::<Stored>(FILE)? else {
            return Ok(None);
        };
        let mut judge = Judge::remembering(stored.memory, None);
        let mut held = Held::default();
        // What is remembered is taken again by its digest; a statement that does not fit is left out and comes anew.
        for root in stored.held.roots {
            if judge.accept_root(&root, now).is_ok() {
                held.roots.push(root);
            }
        }
        if let Some(online) = stored.held.online
            && judge.accept_online_key(&online, now).is_ok()
        {
            held.online = Some(online);
        }
        if let Some(list) = stored.held.revocations
            && judge.accept_revocations(&list, now).is_ok()
        {
            held.revocations = Some(list);
        }
        for pool in stored.held.pools {
            if judge.accept_pool(&pool, now).is_ok() {
                held.pools.push(pool);
            }
        }
        for (id, tenant) in stored.held.tenants {
            if judge.accept_tenant(&tenant, now).is_ok() {
                held.tenants.insert(id, tenant);
            }
        }
        held.before = stored.held.before;
        let objects = |digest: &Digest| load_object(home, digest);
        for (id, manifest) in stored.held.manifests {
            // Kept even when an object is missing here: it is fetched when the manifest is looked at.
            let _ = judge.accept_manifest(&manifest, now, &objects);
            held.manifests.insert(id, manifest);
        }
        Ok(Some(Self {
            judge,
            held,
            changed: false,
        }))
    }

    /// Write it down, if anything is new.
    ///
    /// # Errors
    /// The file cannot be written; the old one is as it was.
    pub fn save(&mut self, home: &Home) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        let stored = Stored {
            memory: self.judge.memory().clone(),
            held: self.held.clone(),
        };
        home.write_json(FILE, &stored)?;
        self.changed = false;
        Ok(())
    }

    /// What was accepted.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.judge.fleet()
    }

    /// The statements that everybody in the fleet needs: roots, online key, revoked nodes, pools.
    pub fn fleet_statements(&self) -> impl Iterator<Item = &Envelope> {
        let held = &self.held;
        let single = held.online.iter().chain(&held.revocations);
        held.roots.iter().chain(single).chain(&held.pools)
    }

    /// The newest statement of every tenant that was seen.
    pub fn tenant_statements(&self) -> impl Iterator<Item = (&TenantId, &Envelope)> {
        self.held.tenants.iter()
    }

    /// All statements of a tenant later than version `from`, the oldest first.
    pub fn tenant_statements_after(&self, id: &TenantId, from: u64) -> Vec<Envelope> {
        let before = self.held.before.get(id).into_iter().flatten();
        let all = before.chain(self.held.tenants.get(id));
        let is_later =
            |envelope: &&Envelope| Tenant::read(envelope).is_ok_and(|tenant| tenant.version > from);
        all.filter(is_later).cloned().collect()
    }

    /// The newest manifest of a tenant, as it was signed.
    pub fn manifest(&self, id: &TenantId) -> Option<&Envelope> {
        self.held.manifests.get(id)
    }

    /// Sign with the newest root's key what earlier roots have signed, for nodes that start afresh; how many statements.
    pub fn sign_anew(&mut self, key: &SigningKey) -> usize {
        let held = &mut self.held;
        let fleet = held.online.iter_mut().chain(&mut held.revocations);
        let all = fleet
            .chain(&mut held.pools)
            .chain(held.tenants.values_mut());
        let mut count = 0;
        for envelope in all.filter(|envelope| !envelope.verify(&[key.public()], 1)) {
            let payload = envelope.unverified_payload().to_vec();
            *envelope = Envelope::sign(envelope.payload_type(), payload, &[key]);
            count += 1;
        }
        if count > 0 {
            // What the tenants have signed on the way to their newest statements is not needed any more.
            held.before.clear();
            self.changed = true;
        }
        count
    }

    /// Whether any root of the fleet that this home has seen has signed this.
    pub fn was_signed_by_root(&self, envelope: &Envelope) -> bool {
        let roots = self
            .held
            .roots
            .iter()
            .filter_map(|root| Root::read(root).ok());
        roots
            .into_iter()
            .any(|root| envelope.verify(&root.keys, root.threshold))
    }

    /// Judge any statement but a manifest.
    ///
    /// # Errors
    /// The refusal: a node would refuse it too.
    pub fn accept(&mut self, envelope: &Envelope, now: Seconds) -> Result<Accepted, Error> {
        self.judge_statement(envelope, now)
            .map_err(|refusal| refused(kind_name(envelope.payload_type()), refusal))
    }

    fn judge_statement(&mut self, envelope: &Envelope, now: Seconds) -> Result<Accepted, Refusal> {
        let kind = envelope.payload_type();
        let judge = &mut self.judge;
        let accepted = match kind {
            Root::TYPE => judge.accept_root(envelope, now),
            OnlineKey::TYPE => judge.accept_online_key(envelope, now),
            Revocations::TYPE => judge.accept_revocations(envelope, now),
            Pool::TYPE => judge.accept_pool(envelope, now),
            Tenant::TYPE => judge.accept_tenant(envelope, now),
            Image::TYPE => judge.accept_image(envelope, now),
            _ => Err(Refusal::Malformed("a statement of an unknown type".into())),
        }?;
        if accepted == Accepted::Held {
            return Ok(accepted);
        }
        self.changed = true;
        match kind {
            Root::TYPE => self.held.roots.push(envelope.clone()),
            OnlineKey::TYPE => self.held.online = Some(envelope.clone()),
            Revocations::TYPE => self.held.revocations = Some(envelope.clone()),
            Pool::TYPE => self.held.pools.push(envelope.clone()),
            // What is remembered of it is all that is needed of it here.
            Image::TYPE => {}
            _ => {
                if let Ok(tenant) = Tenant::read(envelope) {
                    self.hold_tenant(tenant.id, envelope);
                }
            }
        }
        Ok(accepted)
    }

    fn hold_tenant(&mut self, id: TenantId, envelope: &Envelope) {
        let by_root = self
            .judge
            .root()
            .is_some_and(|root| envelope.verify(&root.keys, root.threshold));
        let earlier = self.held.tenants.insert(id, envelope.clone());
        if by_root {
            self.held.before.remove(&id);
        } else if let Some(earlier) = earlier.filter(|earlier| earlier != envelope) {
            let before = self.held.before.entry(id).or_default();
            before.push(earlier);
            let surplus = before.len().saturating_sub(MAX_BEFORE);
            before.drain(..surplus);
        }
    }

    /// Judge several statements of one thing, oldest first. Those below what is remembered are the past and are passed over;
    /// whether the newest of them is, is the answer.
    ///
    /// # Errors
    /// Any other refusal of the newest.
    pub fn accept_history(
        &mut self,
        statements: &[Envelope],
        now: Seconds,
    ) -> Result<Shown, Error> {
        let newest = statements.len().saturating_sub(1);
        let mut shown = Shown::Newest;
        for (at, envelope) in statements.iter().enumerate() {
            match self.judge_statement(envelope, now) {
                Ok(_) => {}
                Err(_) if at < newest => {}
                Err(refusal) if is_past(&refusal) => shown = Shown::Older,
                Err(refusal) => return Err(refused(kind_name(envelope.payload_type()), refusal)),
            }
        }
        Ok(shown)
    }

    /// Judge pools of the control plane. One that has expired before it was ever seen here is none that anything would be
    /// sealed to; it is passed over.
    ///
    /// # Errors
    /// Any other refusal.
    pub fn accept_pools(&mut self, statements: &[Envelope], now: Seconds) -> Result<(), Error> {
        for envelope in statements {
            match self.judge_statement(envelope, now) {
                Ok(_) | Err(Refusal::PoolExpired(_)) => {}
                Err(refusal) => return Err(refused("pool", refusal)),
            }
        }
        Ok(())
    }

    /// Judge an image of the control plane.
    ///
    /// # Errors
    /// The refusal itself: it may only have expired.
    pub fn accept_image(&mut self, envelope: &Envelope, now: Seconds) -> Result<Accepted, Refusal> {
        self.judge_statement(envelope, now)
    }

    /// Judge a manifest with what it lists.
    ///
    /// # Errors
    /// The refusal itself: [`Refusal::Missing`] says what to fetch first.
    pub fn accept_manifest(
        &mut self,
        envelope: &Envelope,
        now: Seconds,
        objects: &ObjectMap,
    ) -> Result<Accepted, Refusal> {
        let find = |digest: &Digest| objects.get(digest).cloned();
        let accepted = self.judge.accept_manifest(envelope, now, &find)?;
        if accepted != Accepted::Held
            && let Ok(manifest) = Manifest::read(envelope)
        {
            self.held
                .manifests
                .insert(manifest.tenant, envelope.clone());
            self.changed = true;
        }
        Ok(accepted)
    }

    /// Judge a statement of freshness. The home remembers its order and digest; the control plane shows the statement itself
    /// with the tenant's manifest.
    ///
    /// # Errors
    /// The refusal itself: it may only have expired.
    pub fn accept_freshness(
        &mut self,
        envelope: &Envelope,
        now: Seconds,
    ) -> Result<Accepted, Refusal> {
        let accepted = self.judge.accept_freshness(envelope, now)?;
        self.changed |= accepted == Accepted::New;
        Ok(accepted)
    }
}

/// An object of the home's cache, if it is there and whole.
pub fn load_object(home: &Home, digest: &Digest) -> Option<Vec<u8>> {
    let path = home.file(OBJECTS).join(digest.to_string());
    let bytes = read_private(&path).ok().flatten()?;
    (Digest::of(&bytes) == *digest).then_some(bytes)
}

/// Keep exactly these objects in the home's cache.
///
/// # Errors
/// The folder cannot be written.
pub fn keep_objects(home: &Home, objects: &ObjectMap) -> Result<(), Error> {
    let folder = home.file(OBJECTS);
    for (digest, bytes) in objects {
        if load_object(home, digest).is_none() {
            write_private(&folder.join(digest.to_string()), bytes)?;
        }
    }
    let listed = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    for entry in listed {
        let digest = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if digest.is_none_or(|digest: Digest| !objects.contains_key(&digest)) {
            // A left-over costs nothing but its bytes.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Whether a statement is refused for nothing but that a newer one is remembered.
fn is_past(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::RootVersionLower(..)
            | Refusal::OnlineVersionLower(..)
            | Refusal::RevocationsVersionLower(..)
            | Refusal::TenantVersionLower(..)
    )
}

fn kind_name(kind: &str) -> &'static str {
    match kind {
        Root::TYPE => "root",
        OnlineKey::TYPE => "online key",
        Revocations::TYPE => "list of revoked nodes",
        Pool::TYPE => "pool",
        Tenant::TYPE => "tenant",
        Image::TYPE => "image",
        _ => "statement",
    }
}

/// The error for a statement that a node would refuse too.
pub fn refused(what: &str, refusal: Refusal) -> Error {
    let next = match &refusal {
        Refusal::RootVersionLower(..)
        | Refusal::OnlineVersionLower(..)
        | Refusal::RevocationsVersionLower(..)
        | Refusal::TenantVersionLower(..)
        | Refusal::ManifestVersionLower(..) => {
            "the control plane shows something older than this home has seen: it was restored from an old backup, or \
             somebody rolls it back. Ask the operator; nothing was accepted"
        }
        Refusal::RootEqualOther
        | Refusal::OnlineEqualOther
        | Refusal::PoolEqualOther
        | Refusal::RevocationsEqualOther
        | Refusal::TenantEqualOther
        | Refusal::ManifestEqualOther => {
            "two different statements of one version were signed: somebody else holds a key, or another home signed at the \
             same time. Compare with whoever holds the keys; nothing was accepted"
        }
        Refusal::ImageVersionLower { .. } | Refusal::ImageEqualOther { .. } => {
            "build it with a higher version: `casemate image build --image-version X.Y.Z`"
        }
        Refusal::RootUnknown | Refusal::FleetOther => {
            "compare the fingerprint with the operator, not over the network; nothing was accepted"
        }
        Refusal::RootExpired(_) => {
            "nothing that the fleet's root says is accepted any more until the operator signs the next root with it"
        }
        Refusal::PoolExpired(_) => "ask the operator to run `casemate pool rotate`",
        Refusal::OnlineExpired(_) => "ask the operator to run `casemate fleet online`",
        Refusal::ManifestExpired(_) => "sign it anew with `casemate renew`",
        Refusal::FreshnessFromFuture(_) => "set the clock of this machine",
        Refusal::TenantExpired(_) => {
            "ask the operator to renew the tenant's statement with `casemate tenant hosts`"
        }
        _ => "nothing was accepted; ask whoever signed it",
    };
    Error::new(
        Code::Refused,
        format!("the {what} is refused ({})", refusal.code()),
        next,
    )
    .source(refusal)
}

#[cfg(test)]
mod tests {
    use casemate_trust::statement::KeySet;

    use super::*;

    const NOW: Seconds = 1000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::locate(Some(dir.path().join("home"))).unwrap();
        (dir, home)
    }

    fn world() -> (Known, Tenant) {
        let root = Root {
            version: 1,
            keys: vec![key(1).public()],
            threshold: 1,
            issued: 1,
            expires: 5000,
        };
        let root = root.sign(&[&key(1)]);
        let mut known = Known::new(FleetId(root.payload_digest().0));
        known.accept(&root, NOW).unwrap();
        let tenant = Tenant::first(
            known.fleet(),
            "shop".parse().unwrap(),
            KeySet::single(key(2).public()),
            Vec::new(),
            1,
            5000,
        );
        known.accept(&tenant.sign(&[&key(1)]), NOW).unwrap();
        (known, tenant)
    }

    fn manifest(tenant: &Tenant, version: u64, issued: Seconds) -> Envelope {
        Manifest {
            fleet: tenant.fleet,
            tenant: tenant.id,
            tenant_version: 1,
            version,
            functions: BTreeMap::new(),
            secrets: BTreeMap::new(),
            freshness: None,
            notes: [].into(),
            issued,
            expires: 5000,
        }
        .sign(&[&key(2)])
    }

    #[test]
    fn memory_outlives_the_program_and_refuses_a_rollback() {
        let (_dir, home) = home();
        let (mut known, tenant) = world();
        let none = ObjectMap::new();
        let (one, two) = (manifest(&tenant, 1, 1), manifest(&tenant, 2, 1));
        known.accept_manifest(&one, NOW, &none).unwrap();
        known.accept_manifest(&two, NOW, &none).unwrap();
        known.save(&home).unwrap();

        let mut known = Known::load(&home, NOW).unwrap().unwrap();
        assert_eq!(known.judge().root().unwrap().version, 1);
        assert_eq!(known.manifest(&tenant.id), Some(&two));
        let lower = known.accept_manifest(&one, NOW, &none).unwrap_err();
        assert_eq!(lower, Refusal::ManifestVersionLower(2, 1));
        let other = known.accept_manifest(&manifest(&tenant, 2, 2), NOW, &none);
        assert_eq!(other.unwrap_err(), Refusal::ManifestEqualOther);
        assert_eq!(known.accept_manifest(&two, NOW, &none), Ok(Accepted::Held));
    }

    #[test]
    fn what_was_accepted_stays_after_it_expired_and_nothing_new_comes() {
        let (_dir, home) = home();
        let (mut known, tenant) = world();
        known.save(&home).unwrap();
        let mut known = Known::load(&home, 9000).unwrap().unwrap();
        assert!(known.judge().tenant(&tenant.id).is_some());
        let late = known.accept_manifest(&manifest(&tenant, 1, 1), 9000, &ObjectMap::new());
        assert_eq!(late.unwrap_err().code(), "manifest_expired");
    }

    #[test]
    fn a_root_of_another_fleet_is_refused_with_advice() {
        let (mut known, _) = world();
        let other = Root {
            version: 1,
            keys: vec![key(9).public()],
            threshold: 1,
            issued: 1,
            expires: 5000,
        };
        let error = known.accept(&other.sign(&[&key(9)]), NOW).unwrap_err();
        assert_eq!(error.code(), Code::Refused);
        assert!(error.to_text().contains("root_same_version_other_digest"));
    }

    #[test]
    fn a_damaged_memory_stops_everything() {
        let (_dir, home) = home();
        write_private(&home.file(FILE), b"{\"memory\":{").unwrap();
        assert_eq!(Known::load(&home, NOW).unwrap_err().code(), Code::Io);
    }

    #[test]
    fn the_cache_holds_whole_objects_only() {
        let (_dir, home) = home();
        let (kept, dropped) = (b"kept".to_vec(), b"dropped".to_vec());
        let digest = Digest::of(&kept);
        let both = ObjectMap::from([
            (digest, kept.clone()),
            (Digest::of(&dropped), dropped.clone()),
        ]);
        keep_objects(&home, &both).unwrap();
        keep_objects(&home, &ObjectMap::from([(digest, kept.clone())])).unwrap();
        assert_eq!(load_object(&home, &digest), Some(kept));
        assert_eq!(load_object(&home, &Digest::of(&dropped)), None);
        write_private(&home.file(OBJECTS).join(digest.to_string()), b"changed").unwrap();
        assert_eq!(load_object(&home, &digest), None);
    }
}
