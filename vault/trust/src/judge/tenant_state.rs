//! What is held of a tenant: its newest statement, and its newest manifest with what that lists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::freshness::Freshness;
use crate::id::Digest;
use crate::name::{Identifier, Name};
use crate::release::Release;
use crate::secret::Secret;
use crate::statement::{Manifest, Tenant};

/// The held statements of a tenant. Owned by the judge; its owner reads it for each call.
#[derive(Debug, Clone)]
pub struct TenantState {
    /// Its newest statement.
    pub tenant: Tenant,
    /// Its newest manifest, with the objects that it lists.
    pub manifest: Option<Accord>,
    /// Its newest statement of freshness, which is never about a manifest older than the held one.
    pub freshness: Option<Freshness>,
}

/// A manifest and its listed objects, as far as they matter here.
#[derive(Debug, Clone)]
pub struct Accord {
    /// The manifest.
    pub manifest: Manifest,
    /// Digest of its payload.
    pub digest: Digest,
    /// Releases by digest, wanted ones and fallbacks.
    pub releases: BTreeMap<Digest, Arc<Release>>,
    /// Sealed secrets by name, then pool.
    pub secrets: BTreeMap<(Identifier, Name), Arc<Secret>>,
}

impl Accord {
    /// Digests of all listed objects that matter here.
    pub fn objects(&self) -> BTreeSet<Digest> {
        let secrets = self
            .secrets
            .keys()
            .filter_map(|(name, pool)| self.manifest.secrets.get(name)?.get(pool));
        self.releases.keys().chain(secrets).copied().collect()
    }
}
