//! Judges tenants and their manifests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::change::Held;
use super::tenant_state::{Accord, TenantState};
use super::{Age, Change, Judge, MAX_TENANTS, MemoryRow, Refusal, Row, RowKey, Seen, TenantSeen};
use super::{accepted, age};
use crate::Seconds;
use crate::dsse::Envelope;
use crate::freshness::Freshness;
use crate::id::{Digest, TenantId};
use crate::name::{Identifier, Name};
use crate::release::Release;
use crate::secret::Secret;
use crate::statement::{Manifest, Statement, Tenant};

/// Looks up an object's bytes by its digest. The bytes are checked against the digest.
pub type Objects<'a> = &'a dyn Fn(&Digest) -> Option<Vec<u8>>;

/// A lookup that finds nothing, for statements other than manifests.
pub fn no_objects(_digest: &Digest) -> Option<Vec<u8>> {
    None
}

impl Judge {
    /// Judges a `Tenant`.
    pub(super) fn decide_tenant(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
    ) -> Result<Change, Refusal> {
        let tenant = Tenant::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(tenant.fleet)?;
        let (id, version, digest) = (tenant.id, tenant.version, envelope.payload_digest());
        let seen = self.memory.tenants.get(&id);
        let age = age(
            seen.map(|seen| &seen.tenant),
            version,
            digest,
            Refusal::TenantVersionLower,
            Refusal::TenantEqualOther,
        )?;
        let held = self.tenants.get(&id).map(|held| &held.tenant);
        if age == Age::Same && held.is_some() {
            return Ok(self.unchanged());
        }
        if seen.is_none() && self.memory.tenants.len() >= MAX_TENANTS {
            return Err(Refusal::TooMany("tenants"));
        }
        let mut memory = Vec::new();
        if age == Age::New {
            let by_root = self.must_be_signed_by_root(envelope, clock.unwrap_or(0));
            if by_root.is_ok() {
                memory.extend(self.floor(tenant.issued));
            }
            if let Some(clock) = clock {
                must_be_authorised(by_root, envelope, &tenant, held)?;
                must_be_admitted_as_before(&tenant, held)?;
                self.must_be_fresh(tenant.expires, clock, Refusal::TenantExpired)?;
            }
            let seen = TenantSeen {
                tenant: Seen { version, digest },
                manifest: seen.and_then(|seen| seen.manifest),
                freshness: seen.and_then(|seen| seen.freshness),
            };
            memory.push(MemoryRow::Tenant(id, seen));
        }
        let behind = self.affected_by(&tenant);
        let row = (RowKey::Tenant(id, version), envelope);
        let held = Held::Tenant(Box::new(tenant));
        let mut change = self.put(accepted(age), row, held, memory);
        change.affected = std::iter::once(id).chain(behind).collect();
        Ok(change)
    }

    pub(super) fn hold_tenant(&mut self, tenant: Tenant) {
        if let Some(held) = self.tenants.get(&tenant.id) {
            self.claims.remove(&held.tenant);
        }
        self.claims.insert(&tenant);
        match self.tenants.get_mut(&tenant.id) {
            Some(held) => held.tenant = tenant,
            None => {
                let id = tenant.id;
                let state = TenantState {
                    tenant,
                    manifest: None,
                    freshness: None,
                };
                self.tenants.insert(id, Box::new(state));
            }
        }
    }

    /// Judges a `Manifest` with the objects that it lists.
    pub(super) fn decide_manifest(
        &self,
        envelope: &Envelope,
        clock: Option<Seconds>,
        objects: Objects<'_>,
    ) -> Result<Change, Refusal> {
        let manifest = Manifest::read(envelope).map_err(Refusal::Malformed)?;
        self.must_be_our_fleet(manifest.fleet)?;
        let (id, version) = (manifest.tenant, manifest.version);
        let (Some(held), Some(seen)) = (self.tenants.get(&id), self.memory.tenants.get(&id)) else {
            return Err(Refusal::TenantUnknown);
        };
        let digest = envelope.payload_digest();
        let age = age(
            seen.manifest.as_ref(),
            version,
            digest,
            Refusal::ManifestVersionLower,
            Refusal::ManifestEqualOther,
        )?;
        if age == Age::Same && held.manifest.is_some() {
            return Ok(self.unchanged());
        }
        if manifest.tenant_version > held.tenant.version {
            return Err(Refusal::TenantUnknown);
        }
        let is_new = clock.filter(|_| age == Age::New);
        if let Some(clock) = is_new {
            if !envelope.verify(&held.tenant.current.keys, held.tenant.current.threshold) {
                return Err(Refusal::SignatureThreshold);
            }
            self.must_be_fresh(manifest.expires, clock, Refusal::ManifestExpired)?;
        }
        let (accord, listed) = self.gather(&held.tenant, manifest, digest, objects)?;
        // An accepted manifest is not judged again by a later `Tenant`: the maker of the plan
        // applies that.
        if is_new.is_some() {
            must_fit(&held.tenant, &accord)?;
        }
        let mut rows = dropped(held, &accord);
        let manifest = Some(Seen { version, digest });
        let seen = MemoryRow::Tenant(id, TenantSeen { manifest, ..*seen });
        let row = (RowKey::Manifest(id), envelope);
        let accord = Held::Manifest(Box::new(accord));
        let mut change = self.put(accepted(age), row, accord, vec![seen]);
        rows.append(&mut change.rows);
        rows.extend(listed);
        change.rows = rows;
        change.affected = vec![id];
        Ok(change)
    }

    pub(super) fn hold_manifest(&mut self, accord: Accord) {
        if let Some(state) = self.tenants.get_mut(&accord.manifest.tenant) {
            let version = accord.manifest.version;
            state
                .freshness
                .take_if(|statement| statement.version < version);
            state.manifest = Some(accord);
        }
    }

    /// Finds and parses all listed objects that matter here, with their rows.
    fn gather(
        &self,
        tenant: &Tenant,
        manifest: Manifest,
        digest: Digest,
        objects: Objects<'_>,
    ) -> Result<(Accord, Vec<Row>), Refusal> {
        let matters = |pool: &Name| self.here.as_ref().is_none_or(|here| here == pool);
        let mut missing = BTreeSet::new();
        let mut fetch = |digest: &Digest| match objects(digest) {
            Some(bytes) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Some(_) => Err(Refusal::DigestMismatch),
            None => {
                missing.insert(*digest);
                Ok(None)
            }
        };
        let (mut releases, mut secrets) = (BTreeMap::new(), BTreeMap::new());
        let mut listed = BTreeMap::new();
        for (function, wanted) in manifest
            .functions
            .iter()
            .filter(|(_, wanted)| wanted.pools.iter().any(matters))
        {
            for digest in std::iter::once(&wanted.release).chain(&wanted.fallbacks) {
                let Some(bytes) = fetch(digest)? else {
                    continue;
                };
                let malformed = |error: crate::release::ReleaseError| error.to_string();
                let release = Release::parse(&bytes).map_err(malformed);
                let release = release.map_err(|message| Refusal::ReleaseMalformed {
                    function: function.clone(),
                    message,
                })?;
                if release.fleet != tenant.fleet
                    || release.tenant != tenant.id
                    || release.function != *function
                {
                    return Err(Refusal::ReleaseOther(function.clone()));
                }
                releases.insert(*digest, Arc::new(release));
                listed.insert(*digest, bytes);
            }
        }
        for (name, sealed) in &manifest.secrets {
            for (pool, digest) in sealed.iter().filter(|(pool, _)| matters(pool)) {
                let Some(bytes) = fetch(digest)? else {
                    continue;
                };
                let secret = Secret::parse(&bytes);
                let secret = secret.map_err(|source| Refusal::SecretMalformed {
                    name: name.clone(),
                    source,
                })?;
                let place = &secret.place;
                let is_listed_place = place.fleet == tenant.fleet
                    && place.tenant == tenant.id
                    && place.name == *name
                    && place.pool == *pool;
                if !is_listed_place {
                    return Err(Refusal::SecretOther(name.clone()));
                }
                secrets.insert((name.clone(), pool.clone()), Arc::new(secret));
                listed.insert(*digest, bytes);
            }
        }
        if !missing.is_empty() {
            return Err(Refusal::Missing(missing.into_iter().collect()));
        }
        let accord = Accord {
            manifest,
            digest,
            releases,
            secrets,
        };
        let row = |(digest, bytes)| Row::Put(RowKey::Object(digest), bytes);
        Ok((accord, listed.into_iter().map(row).collect()))
    }

    /// The id of the tenant with this name, if it is known here.
    pub fn tenant_named(&self, name: &Name) -> Option<TenantId> {
        self.tenants
            .iter()
            .find(|(_, state)| state.tenant.name == *name)
            .map(|(id, _)| *id)
    }
}

/// Rows that a tenant no longer needs once it has this manifest: objects that only the manifest
/// before lists, and a statement of freshness about an older one.
fn dropped(held: &TenantState, next: &Accord) -> Vec<Row> {
    let before = held.manifest.as_ref();
    let before = before.map_or_else(BTreeSet::new, Accord::objects);
    let listed = next.objects();
    let objects = before
        .difference(&listed)
        .map(|digest| RowKey::Object(*digest));
    let is_superseded = |statement: &&Freshness| statement.version < next.manifest.version;
    let freshness = held.freshness.as_ref().filter(is_superseded);
    let freshness = freshness.map(|statement| RowKey::Freshness(statement.tenant));
    objects.chain(freshness).map(Row::Drop).collect()
}

/// Checks who has signed: the root for any change, the threshold of the earlier keys for a change
/// of keys alone.
fn must_be_authorised(
    by_root: Result<(), Refusal>,
    envelope: &Envelope,
    tenant: &Tenant,
    held: Option<&Tenant>,
) -> Result<(), Refusal> {
    match (by_root, held) {
        (Ok(()), _) => Ok(()),
        (Err(refusal), None) => Err(refusal),
        // The root has signed, but has expired: this refusal is more precise than that of the
        // tenant's keys.
        (Err(refusal @ Refusal::RootExpired(_)), _) => Err(refusal),
        (Err(_), Some(held)) => {
            let follows = tenant.version == held.version + 1;
            if !follows || !envelope.verify(&held.current.keys, held.current.threshold) {
                return Err(Refusal::TenantKeyChange);
            }
            if held.only_keys_change(tenant) {
                Ok(())
            } else {
                Err(Refusal::TenantScopeWidened)
            }
        }
    }
}

/// Not even the root may change the time of admission, which decides who owns a host.
fn must_be_admitted_as_before(tenant: &Tenant, held: Option<&Tenant>) -> Result<(), Refusal> {
    match held {
        Some(held) if held.admitted != tenant.admitted => Err(Refusal::TenantAdmittedOther {
            held: held.admitted,
            got: tenant.admitted,
        }),
        _ => Ok(()),
    }
}

/// Checks that a release and its slots stay within the limits of tenant and secrets.
///
/// # Errors
/// The refusal, by name.
pub(crate) fn release_must_fit(
    tenant: &Tenant,
    accord: &Accord,
    function: &Name,
    release: &Release,
) -> Result<(), Refusal> {
    if let Some(host) = release.hosts_outside(tenant).next() {
        return Err(Refusal::ReleaseHost {
            function: function.clone(),
            host: host.clone(),
        });
    }
    if let Some((limit, asked, allowed)) = release.limits_over(&tenant.ceilings).next() {
        return Err(Refusal::ReleaseOverCeiling {
            function: function.clone(),
            limit,
            asked,
            allowed,
        });
    }
    for credential in &release.credentials {
        let sealed = accord
            .secrets
            .iter()
            .filter(|((name, _), _)| *name == credential.secret);
        for (_, secret) in sealed {
            if let Some(message) = credential.widens(&secret.place.limits) {
                let binding = credential.binding.clone();
                return Err(Refusal::SecretLimitsWidened {
                    function: function.clone(),
                    binding,
                    message,
                });
            }
        }
    }
    Ok(())
}

fn must_fit(tenant: &Tenant, accord: &Accord) -> Result<(), Refusal> {
    let allowed = tenant.ceilings.functions;
    if accord.manifest.functions.len() > allowed as usize {
        return Err(Refusal::TooMany("functions"));
    }
    let mut claimed = BTreeSet::new();
    for (function, wanted) in &accord.manifest.functions {
        for digest in std::iter::once(&wanted.release).chain(&wanted.fallbacks) {
            if let Some(release) = accord.releases.get(digest) {
                release_must_fit(tenant, accord, function, release)?;
            }
        }
        let hosts = accord
            .releases
            .get(&wanted.release)
            .map_or(&[][..], |release| release.hosts.as_slice());
        let own: BTreeSet<_> = hosts.iter().collect();
        if let Some(twice) = own.iter().find(|host| claimed.contains(**host)) {
            return Err(Refusal::HostTwice((**twice).clone()));
        }
        claimed.extend(own);
    }
    Ok(())
}

impl TenantState {
    /// The functions that run in `pool` now, each with its wanted release: those of the newest
    /// manifest, without what the newest `Tenant` no longer allows.
    pub fn running<'a>(
        &'a self,
        pool: &'a Name,
    ) -> impl Iterator<Item = (&'a Name, Digest, &'a Arc<Release>)> {
        let accord = self.manifest.as_ref();
        let functions = accord.into_iter().flat_map(|accord| {
            accord
                .manifest
                .functions
                .iter()
                .map(move |entry| (accord, entry))
        });
        functions.filter_map(move |(accord, (function, wanted))| {
            let release = accord
                .releases
                .get(&wanted.release)
                .filter(|_| wanted.pools.contains(pool))?;
            release_must_fit(&self.tenant, accord, function, release).ok()?;
            Some((function, wanted.release, release))
        })
    }

    /// Checks that a release that no accepted manifest lists yet stays within the tenant's egress
    /// ceiling. Programs that take in a new release call this; a vault accepts the manifest all the
    /// same and refuses the calls, because the ceiling may have been lowered after the release was
    /// deployed.
    ///
    /// # Errors
    /// [`Refusal::ReleaseEgress`].
    pub fn egress_must_fit(&self, digest: &Digest, release: &Release) -> Result<(), Refusal> {
        let accord = self.manifest.as_ref();
        if accord.is_some_and(|accord| accord.releases.contains_key(digest)) {
            return Ok(());
        }
        let Some(ceiling) = &self.tenant.egress else {
            return Ok(());
        };
        match release.egress_outside(ceiling).next() {
            None => Ok(()),
            Some((host, port)) => Err(Refusal::ReleaseEgress {
                function: release.function.clone(),
                host: host.clone(),
                port,
                allowed: ceiling.to_string(),
            }),
        }
    }

    /// The present fallbacks of a function, in the manifest's order.
    pub fn fallbacks<'a>(
        &'a self,
        function: &'a Name,
    ) -> impl Iterator<Item = (Digest, &'a Arc<Release>)> {
        let accord = self.manifest.as_ref();
        let wanted = accord.and_then(|accord| accord.manifest.functions.get(function));
        let listed = wanted.into_iter().flat_map(|wanted| &wanted.fallbacks);
        listed.filter_map(move |digest| Some((*digest, self.may_run(function, digest)?)))
    }

    /// The releases of a function that may run now: the wanted one and its fallbacks.
    pub fn may_run(&self, function: &Name, release: &Digest) -> Option<&Arc<Release>> {
        let accord = self.manifest.as_ref()?;
        let wanted = accord.manifest.functions.get(function)?;
        let listed = wanted.release == *release || wanted.fallbacks.contains(release);
        let release = accord.releases.get(release).filter(|_| listed)?;
        release_must_fit(&self.tenant, accord, function, release)
            .is_ok()
            .then_some(release)
    }

    /// A sealed secret by name, for a pool.
    pub fn secret(&self, name: &Identifier, pool: &Name) -> Option<&Arc<Secret>> {
        self.manifest
            .as_ref()?
            .secrets
            .get(&(name.clone(), pool.clone()))
    }
}
