//! One tenant as its own command line sees it: the newest manifest, how the next one is made, and
//! how the nodes adopt it.

mod draft;
mod follow;
mod freshness;
mod recover;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bytes::Bytes;
use casemate_api::error::code;
use casemate_api::tenant::{TenantStatus, TenantView};
use casemate_trust::dsse::Envelope;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::Refusal;
use casemate_trust::key::SigningKey;
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::note;
use casemate_trust::release::Release;
use casemate_trust::secret::Secret;
use casemate_trust::statement::{MAX_VERSION, Manifest, Statement as _, Tenant};
use http::Method;

use crate::args::Signing;
use crate::error::{Code, Error};
use crate::keys::{TENANT, tenant_key_at};
use crate::machine::{DAY, now};
use crate::memory::{ObjectMap, keep_objects, load_object, refused};
use crate::session::{Context, Session};

/// How often another client may be faster before a change is given up.
const MAX_TRIES: u32 = 5;

pub use draft::{Draft, egress_not_given, hosts_not_given, limits_not_given};
pub use follow::{Reach, Until, broken, not_loaded};
pub use freshness::{Renewed, undemanded};
use recover::HandedIn;

/// A tenant, opened over a session for one command. `change` signs the next manifest, `wait`
/// follows it to the nodes, `status` asks what became of it; what was read is judged before it is
/// shown.
#[derive(Debug)]
pub struct Tenancy<'a> {
    /// The connection.
    pub session: Session<'a>,
    /// The tenant's newest statement.
    pub id: TenantId,
    /// Its newest statement.
    pub tenant: Tenant,
    /// The objects that the newest manifest lists.
    pub objects: ObjectMap,
    /// Whether the control plane shows an older state than this home remembers.
    is_ahead: bool,
    /// Whether the manifest that this home remembers takes precedence over another one of the same
    /// version.
    from_memory: bool,
    /// The manifest that nodes hold and that this home does not know, which the next one is to
    /// replace; 0 if there is none.
    held_by_nodes: u64,
    /// The tenant as the control plane shows it.
    view: TenantView,
}

impl<'a> Tenancy<'a> {
    /// The tenant that this home acts for, with its newest manifest verified.
    ///
    /// # Errors
    /// The control plane cannot be reached, or shows a statement that a node would refuse.
    pub async fn open(cx: &'a Context, name: Option<&Name>) -> Result<Self, Error> {
        Self::open_over(cx, name, false).await
    }

    /// Like [`Tenancy::open`]; with `from_memory` it continues from what this home remembers even
    /// if the control plane shows another manifest of the same version.
    ///
    /// # Errors
    /// See [`Tenancy::open`].
    pub async fn open_over(
        cx: &'a Context,
        name: Option<&Name>,
        from_memory: bool,
    ) -> Result<Self, Error> {
        let mut session = Session::open(cx).await?;
        let id = session.own_tenant(name).await?;
        let (tenant, view) = session.read_tenant(id).await?;
        let mut tenancy = Self {
            session,
            id,
            tenant,
            objects: ObjectMap::new(),
            is_ahead: false,
            from_memory,
            held_by_nodes: 0,
            view,
        };
        tenancy.refresh().await?;
        let held = tenancy.manifest().map(|manifest| manifest.expires);
        let session = &tenancy.session;
        session.warn_of_expiry(
            "the tenant's statement",
            tenancy.tenant.expires,
            "Ask the operator to renew it: `casemate tenant hosts NAME`.",
        );
        if let Some(expires) = held {
            session.warn_of_expiry("the manifest", expires, "Sign it again: `casemate renew`.");
        }
        Ok(tenancy)
    }

    /// The newest manifest.
    pub fn manifest(&self) -> Option<&Manifest> {
        let state = self.session.known.judge().tenant(&self.id)?;
        state.manifest.as_ref().map(|accord| &accord.manifest)
    }

    /// The error for a function that the newest manifest does not list.
    pub fn no_function(&self, name: &Name) -> Error {
        let functions = self.manifest().map(|manifest| manifest.functions.keys());
        let known: Vec<_> = functions
            .into_iter()
            .flatten()
            .map(ToString::to_string)
            .collect();
        let next = if known.is_empty() {
            "nothing is deployed yet: `casemate deploy`".to_owned()
        } else {
            format!("deployed are {}", known.join(", "))
        };
        Error::new(Code::NotFound, format!("there is no function {name}"), next)
    }

    /// A release that the newest manifest lists.
    pub fn release(&self, digest: &Digest) -> Option<Release> {
        Release::parse(self.objects.get(digest)?).ok()
    }

    /// A sealed secret that the newest manifest lists.
    pub fn secret(&self, digest: &Digest) -> Option<Secret> {
        Secret::parse(self.objects.get(digest)?).ok()
    }

    /// Read tenant and manifest again and judge them. If the control plane shows an older state
    /// than this home remembers, the remembered one holds.
    async fn refresh(&mut self) -> Result<(), Error> {
        (self.tenant, self.view) = self.session.read_tenant(self.id).await?;
        let had = self.manifest().map(|manifest| manifest.version);
        self.is_ahead = false;
        match self.view.manifest.clone() {
            Some(envelope) => self.read_manifest(&envelope, had.is_some()).await?,
            None if had.is_some() => self.go_on_from_memory(None),
            None => {}
        }
        let freshness = self.view.freshness.clone();
        self.read_freshness(freshness.as_ref())?;
        let mut all = ObjectMap::new();
        for digest in self.manifest().map(listed).unwrap_or_default() {
            all.insert(digest, self.object(&digest).await?);
        }
        keep_objects(&self.session.cx.home, &all)?;
        self.objects = all;
        Ok(())
    }

    async fn read_manifest(&mut self, envelope: &Envelope, has_one: bool) -> Result<(), Error> {
        let mut objects = ObjectMap::new();
        loop {
            let known = &mut self.session.known;
            match known.decide_manifest(envelope, now(), &objects) {
                Ok(change) => return known.keep(change, envelope).map(drop),
                Err(Refusal::Missing(digests)) if objects.is_empty() => {
                    for digest in digests {
                        objects.insert(digest, self.object(&digest).await?);
                    }
                }
                Err(Refusal::ManifestVersionLower(_, theirs)) if has_one => {
                    self.go_on_from_memory(Some(theirs));
                    return Ok(());
                }
                Err(Refusal::ManifestEqualOther) if has_one && self.from_memory => {
                    self.session.cx.output.warn(
                        "the control plane shows another manifest of the version that this home \
                         remembers: what only that one changed is undone",
                    );
                    return Ok(());
                }
                Err(refusal) => {
                    return Err(refused("manifest", refusal).at(self.session.api.address()));
                }
            }
        }
    }

    /// An object from the home's cache, else from the control plane; its digest is checked.
    async fn object(&mut self, digest: &Digest) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = self.objects.get(digest) {
            return Ok(bytes.clone());
        }
        if let Some(bytes) = load_object(&self.session.cx.home, digest) {
            return Ok(bytes);
        }
        let path = self.object_path(digest);
        let bytes = self.session.api.get_bytes(&path).await?;
        if Digest::of(&bytes) == *digest {
            Ok(bytes.to_vec())
        } else {
            Err(refused("object", Refusal::DigestMismatch).at(digest))
        }
    }

    fn object_path(&self, digest: &Digest) -> String {
        format!("/v1/tenants/{}/objects/{digest}", self.id)
    }

    /// The keys that sign: this home's, and those that were named.
    ///
    /// # Errors
    /// A key is missing, does not belong to the tenant, or there are too few.
    pub fn signers(&self, with_keys: &[PathBuf]) -> Result<Vec<SigningKey>, Error> {
        let cx = self.session.cx;
        let mut keys = Vec::new();
        if cx.keys().has(TENANT) || with_keys.is_empty() {
            keys.push(cx.keys().signing(TENANT, Purpose::Tenant)?);
        }
        for path in with_keys {
            keys.push(tenant_key_at(path, &cx.passphrases)?);
        }
        let current = &self.tenant.current;
        if let Some(other) = keys
            .iter()
            .find(|key| !current.keys.contains(&key.public()))
        {
            return Err(Error::new(
                Code::NoKey,
                format!("this key does not sign for the tenant {}", self.tenant.name),
                "use the home with the tenant's key, or ask the operator which keys were admitted",
            )
            .at(format!("fingerprint {}", other.public().fingerprint())));
        }
        let distinct: BTreeSet<_> = keys.iter().map(SigningKey::public).collect();
        if distinct.len() < current.threshold as usize {
            return Err(Error::new(
                Code::NoKey,
                format!(
                    "{} keys must sign, {} are here",
                    current.threshold,
                    distinct.len()
                ),
                "name the others with `--with-key FILE`",
            ));
        }
        Ok(keys)
    }

    /// Make the next manifest: `edit` changes a draft that begins with the newest one. If another
    /// client was faster, its manifest is read and the edit is made again on top of it.
    ///
    /// # Errors
    /// `edit` refuses, a node would refuse the result, or the control plane cannot be reached.
    /// Nothing has changed then.
    pub async fn change(
        &mut self,
        signing: &Signing,
        mut edit: impl FnMut(&Self, &mut Draft) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let keys = self.signers(&signing.with_keys)?;
        let keys: Vec<&SigningKey> = keys.iter().collect();
        self.session.must_have_the_time()?;
        self.session.publish_tenant(self.id, &self.view).await?;
        let mut lost = BTreeSet::new();
        for _ in 0..MAX_TRIES {
            let mut draft = self.draft();
            edit(self, &mut draft)?;
            let mut all = self.objects.clone();
            all.extend(draft.objects.clone());
            self.leave_out(&mut draft, &all, &lost)?;
            for warning in draft.fit(&self.tenant, &all)? {
                self.session.cx.output.warn(&warning);
            }
            let manifest = self.next(&draft, signing)?;
            let version = manifest.version;
            let listed = listed(&manifest);
            let mut objects = self.objects.clone();
            objects.extend(draft.objects.clone());
            objects.retain(|digest, _| listed.contains(digest));
            let envelope = manifest.sign(&keys);
            let known = &self.session.known;
            let decided = known.decide_manifest(&envelope, now(), &objects);
            let change = decided.map_err(|refusal| self.own_fault(refusal))?;
            self.upload(&draft).await?;
            match self.hand_in(&envelope, &objects).await {
                Ok(HandedIn::Taken) => {
                    self.session.known.keep(change, &envelope)?;
                    keep_objects(&self.session.cx.home, &objects)?;
                    self.objects = objects;
                    self.is_ahead = false;
                    self.keep_bundles(&draft.bundles)?;
                    return Ok(version);
                }
                Ok(HandedIn::Lacks(bundles)) => lost.extend(bundles),
                Err(error) if error.remote_code() == Some(code::MANIFEST_CONFLICT) => {
                    self.session.cx.output.warn(&format!(
                        "manifest {version} was already signed elsewhere; applying this change to \
                         it and trying again"
                    ));
                    self.refresh().await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            Code::Conflict,
            format!("the manifest was changed elsewhere during each of {MAX_TRIES} tries"),
            "wait until the other deployments have ended and run the command again",
        ))
    }

    /// Make the next manifest as far as no key is needed, with the same checks as `change`.
    ///
    /// # Errors
    /// A function does not fit the limits of tenant and secrets.
    pub fn rehearse(&self, edit: impl FnOnce(&mut Draft)) -> Result<(), Error> {
        let mut draft = self.draft();
        edit(&mut draft);
        let mut all = self.objects.clone();
        all.extend(draft.objects.clone());
        for warning in draft.fit(&self.tenant, &all)? {
            self.session.cx.output.warn(&warning);
        }
        Ok(())
    }

    fn draft(&self) -> Draft {
        self.manifest()
            .map_or_else(Draft::default, |manifest| Draft {
                functions: manifest.functions.clone(),
                secrets: manifest.secrets.clone(),
                freshness: manifest.freshness.clone(),
                notes: manifest.notes.clone(),
                ..Draft::default()
            })
    }

    fn next(&self, draft: &Draft, signing: &Signing) -> Result<Manifest, Error> {
        let now = self.session.known.judge().time(now());
        let before = self.manifest().map_or(0, |manifest| manifest.version);
        let version = before.max(self.held_by_nodes) + 1;
        if version > MAX_VERSION {
            return Err(Error::internal("no more manifests can be counted"));
        }
        let mut notes = draft.notes.clone();
        let releases = draft.functions.values();
        let listed: BTreeSet<&Digest> = releases
            .flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks))
            .collect();
        note::trim(&mut notes, |release| listed.contains(release));
        Ok(Manifest {
            fleet: self.session.fleet(),
            tenant: self.id,
            tenant_version: self.tenant.version,
            version,
            functions: draft.functions.clone(),
            secrets: draft.secrets.clone(),
            freshness: draft.freshness.clone(),
            notes,
            issued: now,
            expires: now + u64::from(signing.lifetime.expires_days) * DAY,
        })
    }

    /// The error for a new manifest that nodes would refuse.
    fn own_fault(&self, refusal: Refusal) -> Error {
        let next = match &refusal {
            Refusal::HostTwice(_) => "give the functions different hosts in their casemate.toml",
            Refusal::TooMany(_) => {
                "remove functions that are no longer needed with `casemate remove FUNCTION`, or \
                 ask the operator for more"
            }
            _ => "correct the named mistake; nothing was uploaded",
        };
        let code = refusal.code();
        Error::new(
            Code::Project,
            format!("nodes would refuse this ({code})"),
            next,
        )
        .source(refusal)
    }

    async fn put_object(&mut self, digest: &Digest, bytes: Vec<u8>) -> Result<(), Error> {
        let path = self.object_path(digest);
        let api = &mut self.session.api;
        api.send_bytes(Method::PUT, &path, "application/json", bytes.into())
            .await?;
        Ok(())
    }

    async fn put_bundle(&mut self, digest: &Digest, bytes: Bytes) -> Result<(), Error> {
        let path = format!("/v1/bundles/{digest}");
        let api = &mut self.session.api;
        api.send_bytes(Method::PUT, &path, "application/x-tar", bytes)
            .await?;
        Ok(())
    }

    async fn upload(&mut self, draft: &Draft) -> Result<(), Error> {
        for (digest, bytes) in &draft.bundles {
            if !self
                .session
                .api
                .has(&format!("/v1/bundles/{digest}"))
                .await?
            {
                self.put_bundle(digest, bytes.clone()).await?;
            }
        }
        for (digest, bytes) in &draft.objects {
            self.put_object(digest, bytes.clone()).await?;
        }
        Ok(())
    }

    /// The nodes' state with regard to the newest manifest.
    ///
    /// # Errors
    /// The control plane cannot be reached.
    pub async fn status(&mut self) -> Result<TenantStatus, Error> {
        let path = format!("/v1/tenants/{}/status", self.id);
        self.session.api.get(&path).await
    }
}

/// All objects that a manifest lists.
fn listed(manifest: &Manifest) -> BTreeSet<Digest> {
    let functions = manifest.functions.values();
    let releases =
        functions.flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
    let secrets = manifest.secrets.values().flat_map(BTreeMap::values);
    releases.chain(secrets).copied().collect()
}
