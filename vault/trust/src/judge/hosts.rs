//! Decides which tenant owns a host.
//!
//! The root may have given one host to several tenants, by mistake or from two homes that did not
//! know of each other. **A host name belongs to the tenant that the root admitted first among those
//! whose patterns cover the name**; statements without the time of admission come first, and the
//! lower id decides between equal times. A wildcard counts like the name itself: a later tenant
//! with `x.b.test` does not get that name from an earlier one with `*.b.test`. The rule depends on
//! the held statements, not on the order in which they arrived.

use std::collections::{BTreeMap, BTreeSet};

use super::{Judge, TenantState};
use crate::Seconds;
use crate::host::{HostName, HostPattern};
use crate::id::TenantId;
use crate::statement::Tenant;

/// First label of a wildcard.
const WILDCARD: &str = "*";

/// The rank of a tenant among those with the same host: the lowest owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(Option<Seconds>, TenantId);

impl Rank {
    fn of(tenant: &Tenant) -> Self {
        Self(tenant.admitted, tenant.id)
    }
}

/// Sorted ranks. Most patterns have one tenant, for which a set would take ten times the memory.
type Ranks = Vec<Rank>;

/// The patterns of all tenants: by the part after the first label, then by that label, so that a
/// host name finds its wildcard and a wildcard its host names.
#[derive(Debug, Clone, Default)]
pub(super) struct HostClaims(BTreeMap<String, BTreeMap<String, Ranks>>);

impl HostClaims {
    pub(super) fn insert(&mut self, tenant: &Tenant) {
        for pattern in &tenant.hosts {
            let (label, parent) = pattern.label_and_parent();
            let labels = self.0.entry(parent.to_owned()).or_default();
            let ranks = labels.entry(label.to_owned()).or_default();
            let rank = Rank::of(tenant);
            if let Err(at) = ranks.binary_search(&rank) {
                ranks.reserve_exact(1);
                ranks.insert(at, rank);
            }
        }
    }

    pub(super) fn remove(&mut self, tenant: &Tenant) {
        for pattern in &tenant.hosts {
            let (label, parent) = pattern.label_and_parent();
            let Some(labels) = self.0.get_mut(parent) else {
                continue;
            };
            if let Some(ranks) = labels.get_mut(label) {
                ranks.retain(|rank| *rank != Rank::of(tenant));
                if ranks.is_empty() {
                    labels.remove(label);
                }
            }
            if labels.is_empty() {
                self.0.remove(parent);
            }
        }
    }

    fn owner(&self, host: &HostName) -> Option<TenantId> {
        let (label, parent) = host.label_and_parent();
        let labels = self.0.get(parent)?;
        let first = |label| labels.get(label).and_then(|ranks| ranks.first());
        let owner = first(label).into_iter().chain(first(WILDCARD)).min();
        owner.map(|Rank(_, id)| *id)
    }

    /// Tenants with patterns that overlap with this one.
    fn overlapping(&self, pattern: &HostPattern) -> impl Iterator<Item = &Ranks> {
        let (label, parent) = pattern.label_and_parent();
        let labels = self.0.get(parent);
        let below = labels.filter(|_| label == WILDCARD);
        let named = labels.filter(|_| label != WILDCARD);
        let named = named.map(|labels| [labels.get(label), labels.get(WILDCARD)]);
        let below = below.into_iter().flat_map(BTreeMap::values);
        below.chain(named.into_iter().flatten().flatten())
    }
}

impl Judge {
    /// The held tenant that owns a host name: see the module.
    pub fn host_owner(&self, host: &HostName) -> Option<&TenantState> {
        self.tenant(&self.claims.owner(host)?)
    }

    /// Hosts in the releases of a tenant that another tenant owns, each with the owner.
    pub fn lost_hosts<'a>(
        &'a self,
        tenant: &'a TenantId,
        hosts: &'a [HostName],
    ) -> impl Iterator<Item = (&'a HostName, &'a TenantState)> {
        let owners = hosts
            .iter()
            .filter_map(|host| Some((host, self.host_owner(host)?)));
        owners.filter(move |(_, owner)| owner.tenant.id != *tenant)
    }

    /// Patterns of a tenant that overlap with those of higher-ranked tenants, each with such a
    /// tenant.
    pub fn contested_hosts(&self, id: &TenantId) -> Vec<(&HostPattern, &TenantState)> {
        let Some(tenant) = self.tenant(id).map(|state| &state.tenant) else {
            return Vec::new();
        };
        let of = |pattern| {
            let ahead = self
                .claims
                .overlapping(pattern)
                .flatten()
                .filter(|rank| **rank < Rank::of(tenant));
            ahead.map(|Rank(_, other)| *other).collect::<BTreeSet<_>>()
        };
        let contested = tenant.hosts.iter().flat_map(|pattern| {
            let others = of(pattern).into_iter();
            others.filter_map(move |other| Some((pattern, self.tenant(&other)?)))
        });
        contested.collect()
    }

    /// Tenants whose hosts may change once `next` is the newest statement of its tenant: only
    /// tenants that rank behind that tenant, because it takes nothing from those ahead of it. The
    /// cost is that of the patterns that overlap with the changed ones.
    pub(super) fn affected_by(&self, next: &Tenant) -> BTreeSet<TenantId> {
        let before = self.tenant(&next.id).map(|state| &state.tenant);
        let patterns = |tenant: Option<&Tenant>| -> BTreeSet<HostPattern> {
            tenant
                .iter()
                .flat_map(|tenant| &tenant.hosts)
                .cloned()
                .collect()
        };
        let (old, new) = (patterns(before), patterns(Some(next)));
        let changed = old.symmetric_difference(&new);
        let ranks = changed.flat_map(|pattern| self.claims.overlapping(pattern));
        let affected = ranks.flatten().filter(|rank| **rank > Rank::of(next));
        affected.map(|Rank(_, other)| *other).collect()
    }
}
