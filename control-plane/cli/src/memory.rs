//! The statements that this home has seen of a fleet, judged by the same code as in a node's vault,
//! in one file.

use std::collections::{BTreeMap, BTreeSet};

use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::image::Image;
use casemate_trust::judge::{Accepted, Change, Judge, Memory, Refusal, Row, RowKey, no_objects};
use casemate_trust::key::SigningKey;
use casemate_trust::revocation::Revocations;
use casemate_trust::statement::{OnlineKey, Pool, Root, Statement as _, Tenant};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};
use crate::home::{Home, read_private, write_private};

/// Name of the file.
const FILE: &str = "memory.json";
/// Folder of the objects that manifests list.
const OBJECTS: &str = "objects";
/// Most statements that are kept before a tenant's newest one; a tenant itself signs one only to
/// change its keys.
const MAX_BEFORE: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// The highest versions, which refuse a rollback.
    memory: Memory,
    /// The statements themselves.
    held: Held,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    roots: Vec<Envelope>,
    online: Option<Envelope>,
    #[serde(default)]
    revocations: Option<Envelope>,
    pools: Vec<Envelope>,
    tenants: BTreeMap<TenantId, Envelope>,
    /// For a tenant whose newest statement the root has not signed: the earlier ones, from the
    /// root's last one on. Each proves the keys that signed the next.
    #[serde(default)]
    before: BTreeMap<TenantId, Vec<Envelope>>,
    manifests: BTreeMap<TenantId, Envelope>,
}

/// How the control plane's newest statement compares with the one that this home remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// It is the newest that is known.
    Newest,
    /// It is older: the home uses the one that it remembers.
    Older,
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &Envelope> {
        let single = self.online.iter().chain(&self.revocations);
        let fleet = self.roots.iter().chain(single).chain(&self.pools);
        fleet
            .chain(self.tenants.values())
            .chain(self.manifests.values())
    }

    /// Removes statements that do not fit the memory: they are fetched again.
    fn retain(&mut self, stays: impl Fn(&Envelope) -> bool) {
        self.roots.retain(&stays);
        self.online.take_if(|online| !stays(online));
        self.revocations.take_if(|list| !stays(list));
        self.pools.retain(&stays);
        self.tenants.retain(|_, tenant| stays(tenant));
    }

    /// Stores an accepted statement. Images and statements of freshness need only their entry in
    /// the memory.
    fn put(&mut self, key: &RowKey, envelope: &Envelope, is_by_root: bool) {
        match key {
            RowKey::Root(_) => self.roots.push(envelope.clone()),
            RowKey::OnlineKey => self.online = Some(envelope.clone()),
            RowKey::Revocations => self.revocations = Some(envelope.clone()),
            RowKey::Pool(..) => self.pools.push(envelope.clone()),
            RowKey::Tenant(id, _) => self.put_tenant(*id, envelope, is_by_root),
            RowKey::Manifest(id) => drop(self.manifests.insert(*id, envelope.clone())),
            RowKey::Image(..) | RowKey::Freshness(_) | RowKey::Object(_) => {}
        }
    }

    fn put_tenant(&mut self, id: TenantId, envelope: &Envelope, is_by_root: bool) {
        let earlier = self.tenants.insert(id, envelope.clone());
        if is_by_root {
            self.before.remove(&id);
        } else if let Some(earlier) = earlier.filter(|earlier| earlier != envelope) {
            let before = self.before.entry(id).or_default();
            before.push(earlier);
            let surplus = before.len().saturating_sub(MAX_BEFORE);
            before.drain(..surplus);
        }
    }
}

/// Everything that a home knows of its fleet. A statement is decided, stored in the home's file,
/// and only then accepted by the judge.
#[derive(Debug)]
pub struct Known {
    judge: Judge,
    held: Held,
    /// The home of the file; `None` for a fleet that was just met, until [`Known::save`].
    home: Option<Home>,
}

/// Objects by digest.
pub type ObjectMap = BTreeMap<Digest, Vec<u8>>;

impl Known {
    /// A fleet of which only the fingerprint is known.
    pub fn new(fleet: FleetId) -> Self {
        Self {
            judge: Judge::new(fleet, None),
            held: Held::default(),
            home: None,
        }
    }

    /// The fleet that this home remembers, if any.
    ///
    /// # Errors
    /// The file is damaged: without it a rollback could not be refused, so every command stops.
    pub fn load(home: &Home) -> Result<Option<Self>, Error> {
        let Some(Stored { memory, mut held }) = home.read_json::<Stored>(FILE)? else {
            return Ok(None);
        };
        let rows = held
            .all()
            .map(|envelope| (envelope.payload_digest(), envelope.clone()));
        let objects = |digest: &Digest| load_object(home, digest);
        let (judge, refused) = Judge::replay(memory, None, rows, &objects);
        // The roots before the newest are its ancestors. A manifest is kept even if an object is
        // missing here: the object is fetched when the manifest is read.
        let is_ancestor = |refusal: &Refusal| matches!(refusal, Refusal::RootVersionLower(..));
        let unfit = refused
            .into_iter()
            .filter(|(_, refusal)| !is_ancestor(refusal));
        let unfit: BTreeSet<Digest> = unfit.map(|(digest, _)| digest).collect();
        held.retain(|envelope| !unfit.contains(&envelope.payload_digest()));
        let home = Some(home.clone());
        Ok(Some(Self { judge, held, home }))
    }

    /// Writes the file for a fleet that was just met; for any other, everything is written already.
    ///
    /// # Errors
    /// The file cannot be written; the old one is unchanged.
    pub fn save(&mut self, home: &Home) -> Result<(), Error> {
        if self.home.is_none() {
            let (memory, held) = (self.judge.memory().clone(), self.held.clone());
            home.write_json(FILE, &Stored { memory, held })?;
            self.home = Some(home.clone());
        }
        Ok(())
    }

    /// Replaces the file.
    fn write(&self, memory: Memory, held: Held) -> Result<Held, Error> {
        let stored = Stored { memory, held };
        if let Some(home) = &self.home {
            home.write_json(FILE, &stored)?;
        }
        Ok(stored.held)
    }

    /// The accepted statements.
    pub fn judge(&self) -> &Judge {
        &self.judge
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetId {
        self.judge.fleet()
    }

    /// The statements that every member of the fleet needs: roots, online key, revoked nodes,
    /// pools.
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

    /// Sign with the newest root's key what earlier roots have signed, for nodes that start afresh;
    /// returns how many statements.
    ///
    /// # Errors
    /// The file cannot be written; the old one is unchanged.
    pub fn sign_anew(&mut self, key: &SigningKey) -> Result<usize, Error> {
        let mut held = self.held.clone();
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
            // The statements before the tenants' newest ones are not needed any more.
            held.before.clear();
            self.held = self.write(self.judge.memory().clone(), held)?;
        }
        Ok(count)
    }

    /// Whether any root of the fleet that this home has seen has signed the statement.
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

    /// Decide about any statement except a manifest.
    ///
    /// # Errors
    /// A node would refuse the statement too.
    pub fn decide(&self, envelope: &Envelope, now: Seconds) -> Result<Change, Refusal> {
        self.judge.decide(envelope, now, &no_objects)
    }

    /// Decide about a manifest with the objects that it lists.
    ///
    /// # Errors
    /// The refusal: [`Refusal::Missing`] says what to fetch first.
    pub fn decide_manifest(
        &self,
        envelope: &Envelope,
        now: Seconds,
        objects: &ObjectMap,
    ) -> Result<Change, Refusal> {
        let find = |digest: &Digest| objects.get(digest).cloned();
        self.judge.decide(envelope, now, &find)
    }

    /// Store a decided statement, and accept it only after that.
    ///
    /// # Errors
    /// The file cannot be written; nothing has changed.
    pub fn keep(&mut self, change: Change, envelope: &Envelope) -> Result<Accepted, Error> {
        let accepted = change.accepted();
        let root = self.judge.root();
        let is_by_root = root.is_some_and(|root| envelope.verify(&root.keys, root.threshold));
        let (mut memory, mut held) = (self.judge.memory().clone(), self.held.clone());
        let (committed, held) = change.commit(|change| {
            let rows = change.memory().iter().cloned();
            rows.for_each(|row| memory.put(row));
            for row in change.rows() {
                if let Row::Put(key, _) = row {
                    held.put(key, envelope, is_by_root);
                }
            }
            if memory == *self.judge.memory() && held == self.held {
                return Ok(held);
            }
            self.write(memory, held)
        })?;
        self.judge.apply(committed);
        self.held = held;
        Ok(accepted)
    }

    /// Decide about and store any statement except a manifest.
    ///
    /// # Errors
    /// A node would refuse the statement too; or the file cannot be written.
    pub fn accept(&mut self, envelope: &Envelope, now: Seconds) -> Result<Accepted, Error> {
        let decided = self.decide(envelope, now);
        let change = decided.map_err(|refusal| refused_statement(envelope, refusal))?;
        self.keep(change, envelope)
    }

    /// Judge several statements about one object, oldest first. Statements older than the
    /// remembered one are skipped; the result tells whether the newest of them is older.
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
            match self.decide(envelope, now) {
                Ok(change) => drop(self.keep(change, envelope)?),
                Err(_) if at < newest => {}
                Err(refusal) if is_past(&refusal) => shown = Shown::Older,
                Err(refusal) => return Err(refused_statement(envelope, refusal)),
            }
        }
        Ok(shown)
    }

    /// Judge the pools that the control plane lists. A pool that has expired before this home ever
    /// saw it would never be used for sealing; it is skipped.
    ///
    /// # Errors
    /// Any other refusal.
    pub fn accept_pools(&mut self, statements: &[Envelope], now: Seconds) -> Result<(), Error> {
        for envelope in statements {
            match self.decide(envelope, now) {
                Ok(change) => drop(self.keep(change, envelope)?),
                Err(Refusal::PoolExpired(_)) => {}
                Err(refusal) => return Err(refused("pool", refusal)),
            }
        }
        Ok(())
    }
}

/// An object of the home's cache, if it exists and is undamaged.
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
            // A file that remains costs only its disk space.
            let _ = std::fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// Whether a statement is refused only because a newer one is remembered.
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

/// The error for a statement of any kind that a node would refuse too.
pub fn refused_statement(envelope: &Envelope, refusal: Refusal) -> Error {
    refused(kind_name(envelope.payload_type()), refusal)
}

/// The error for an object that a node would refuse too.
pub fn refused(what: &str, refusal: Refusal) -> Error {
    let next = match &refusal {
        Refusal::RootVersionLower(..)
        | Refusal::OnlineVersionLower(..)
        | Refusal::RevocationsVersionLower(..)
        | Refusal::TenantVersionLower(..)
        | Refusal::ManifestVersionLower(..) => {
            "the control plane shows an older statement than this home has seen: it was restored \
             from an old backup, or an attacker rolls it back. Ask the operator; nothing was \
             accepted"
        }
        Refusal::RootEqualOther
        | Refusal::OnlineEqualOther
        | Refusal::PoolEqualOther
        | Refusal::RevocationsEqualOther
        | Refusal::TenantEqualOther
        | Refusal::ManifestEqualOther => {
            "two different statements of one version were signed: somebody else holds a key, or \
             another home signed at the same time. Compare with the other key holders; nothing was \
             accepted"
        }
        Refusal::ImageVersionLower { .. } | Refusal::ImageEqualOther { .. } => {
            "build it with a higher version: `casemate image build --image-version X.Y.Z`"
        }
        Refusal::RootUnknown | Refusal::FleetOther => {
            "compare the fingerprint with the operator, not over the network; nothing was accepted"
        }
        Refusal::RootExpired(_) => {
            "no statement of the fleet's root is accepted any more until the operator signs the \
             next root with it"
        }
        Refusal::PoolExpired(_) => "ask the operator to run `casemate pool rotate`",
        Refusal::OnlineExpired(_) => "ask the operator to run `casemate fleet online`",
        Refusal::ManifestExpired(_) => "sign it again with `casemate renew`",
        Refusal::FreshnessFromFuture(_) => "set the clock of this machine",
        Refusal::TenantExpired(_) => {
            "ask the operator to renew the tenant's statement with `casemate tenant hosts`"
        }
        _ => "nothing was accepted; ask its signer",
    };
    Error::new(
        Code::Refused,
        format!("the {what} is refused ({})", refusal.code()),
        next,
    )
    .source(refusal)
}

#[cfg(test)]
pub(crate) mod tests;
