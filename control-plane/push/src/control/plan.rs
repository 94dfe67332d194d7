//! The consequences of a change of the control plane's state for a node: what is sent, in which
//! order.

use std::sync::Arc;

use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};

use super::{ControlEnd, Object, State, Work};
use crate::catalog::Catalog;
use crate::listing::Listing;
use crate::message::StatementId;

impl ControlEnd {
    /// Plans the messages that a change means for this node.
    pub(super) fn plan(&mut self, revision: u64, id: StatementId, catalog: &dyn Catalog) {
        let State::Served(member) = &self.state else {
            return;
        };
        let is_wanted = match &id {
            StatementId::Root { version } => raise(&mut self.has.root, *version),
            StatementId::OnlineKey { version } => raise(&mut self.has.online, *version),
            StatementId::Revocations { version } => raise(&mut self.has.revocations, *version),
            StatementId::Pool { name, epoch } => {
                *name == member.pool && self.has.epochs.insert(*epoch)
            }
            StatementId::Grant { pool, epoch } => {
                *pool == member.pool && self.has.grants.insert(*epoch)
            }
            // Only the newest of several: the node would fetch the others in vain.
            StatementId::Image { version, statement } => {
                let is_newest = catalog.image(&member.pool).as_ref() == Some(&id);
                let has = self.has.image;
                let is_new = has.is_none_or(|(held, other)| {
                    *version > held || (*version == held && *statement != other)
                });
                if is_newest && is_new {
                    self.has.image = Some((*version, *statement));
                }
                is_newest && is_new
            }
            StatementId::Tenant { tenant, .. } => {
                if self.matters(tenant, revision) {
                    self.plan_tenant(*tenant, revision, catalog);
                }
                false
            }
            StatementId::Manifest { tenant, version } => {
                self.plan_manifest(*tenant, *version, revision, catalog);
                false
            }
            StatementId::Freshness {
                tenant,
                version,
                issued,
            } => {
                self.matters(tenant, revision) && self.raise_freshness(tenant, (*version, *issued))
            }
        };
        if is_wanted {
            self.work.push_back(Work::Statement { revision, id });
        }
    }

    /// Whether the node has, or may have, statements of this tenant.
    fn matters(&self, tenant: &TenantId, revision: u64) -> bool {
        self.has.tenants.contains_key(tenant)
            || (self.has.more_tenants && revision > self.unlisted_until)
    }

    /// Whether a statement of freshness is newer than the one that the node has of the tenant; from
    /// now on the node counts as having it. For a tenant that the node has not listed, every
    /// statement of freshness is newer.
    fn raise_freshness(&mut self, tenant: &TenantId, statement: (u64, Seconds)) -> bool {
        let Some(has) = self.has.tenants.get_mut(tenant) else {
            return true;
        };
        let is_new = Some(statement) > has.freshness;
        has.freshness = Some(statement).max(has.freshness);
        is_new
    }

    fn plan_tenant(&mut self, tenant: TenantId, until: u64, catalog: &dyn Catalog) {
        let has = self.has.tenants.entry(tenant).or_default();
        let lacking = catalog.tenant_versions(&tenant).into_iter();
        for (version, revision) in
            lacking.filter(|(version, revision)| *version > has.version && *revision <= until)
        {
            self.work.push_back(Work::Statement {
                revision,
                id: StatementId::Tenant { tenant, version },
            });
        }
        let newest = catalog
            .tenant_versions(&tenant)
            .into_iter()
            .filter(|(_, revision)| *revision <= until);
        has.version = newest
            .map(|(version, _)| version)
            .max()
            .map_or(has.version, |newest| newest.max(has.version));
    }

    fn plan_manifest(
        &mut self,
        tenant: TenantId,
        version: u64,
        revision: u64,
        catalog: &dyn Catalog,
    ) {
        let id = StatementId::Manifest { tenant, version };
        let Some(listing) = self.listing(tenant, catalog) else {
            return;
        };
        let is_known = self.has.tenants.contains_key(&tenant);
        let may_be_unlisted = self.has.more_tenants && !is_known;
        let was_answered = may_be_unlisted && revision <= self.unlisted_until;
        if was_answered || (listing.objects.is_empty() && !is_known && !may_be_unlisted) {
            return;
        }
        let held = self.has.tenants.get(&tenant).and_then(|has| has.manifest);
        if held.is_some_and(|(held, digest)| {
            held > version || (held == version && digest == listing.digest)
        }) {
            return;
        }
        self.plan_tenant(tenant, revision, catalog);
        if let Some(has) = self.has.tenants.get_mut(&tenant) {
            has.manifest = Some((version, listing.digest));
        }
        let sent = self.sent.get(&tenant);
        let was_sent = |digest: &Digest| sent.is_some_and(|sent| sent.objects.contains(digest));
        let new = listing.objects.iter().filter(|digest| !was_sent(digest));
        self.work.extend(new.map(|digest| {
            Work::Object(Object {
                tenant,
                digest: *digest,
                is_wanted: false,
            })
        }));
        self.work.push_back(Work::Statement { revision, id });
        self.sent.insert(tenant, listing);
    }

    /// The objects that a tenant's newest manifest lists for this node's pool.
    pub(super) fn listing(
        &mut self,
        tenant: TenantId,
        catalog: &dyn Catalog,
    ) -> Option<Arc<Listing>> {
        let (revision, bytes) = catalog.manifest(&tenant)?;
        if let Some(read) = self.read.get(&tenant)
            && read.revision == revision
        {
            return Some(Arc::clone(read));
        }
        let State::Served(member) = &self.state else {
            return None;
        };
        let listing = Arc::new(Listing::read(revision, bytes, &member.pool)?);
        self.read.insert(tenant, Arc::clone(&listing));
        Some(listing)
    }
}

fn raise(held: &mut u64, version: u64) -> bool {
    let is_higher = version > *held;
    *held = version.max(*held);
    is_higher
}
