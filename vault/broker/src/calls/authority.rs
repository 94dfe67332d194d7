//! What a call rests on: a release that the tenant's newest manifest lists, and a secret that may
//! be used now. The same rules admit a call and end one that is under way.

use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::{Standing, TenantState};
use casemate_trust::name::{Identifier, Name};
use casemate_trust::release::Release;
use casemate_trust::secret::Secret;
use casemate_wire::CallCode;

use super::refused::Refused;
use crate::clock;
use crate::vault::{State, Vault};

/// A secret's name and the digest of its sealed object.
pub(crate) type SecretKey = (Identifier, Digest);

/// The statements on which a call depends.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) tenant: TenantId,
    pub(super) function: Name,
    pub(super) release: Digest,
    pub(super) secret: Option<SecretKey>,
}

/// The release of a channel, as long as its tenant's newest manifest lists it.
pub(super) fn authorised<'a>(
    state: &'a State,
    tenant: &TenantId,
    function: &Name,
    release: &Digest,
) -> Result<(&'a TenantState, &'a Release), Refused> {
    let found = state.judge.tenant(tenant).and_then(|tenant| {
        let release = tenant.may_run(function, release)?;
        Some((tenant, release.as_ref()))
    });
    found.ok_or_else(|| {
        Refused::new(
            CallCode::ReleaseWithdrawn,
            "the tenant's newest manifest no longer lists this release",
        )
    })
}

/// The secret of this name, if it may be used now: listed for this node's pool by a manifest that
/// is fresh, in date, and under a lease.
pub(super) fn usable<'a>(
    vault: &Vault,
    state: &'a State,
    tenant: &'a TenantState,
    name: &Identifier,
) -> Result<(Digest, &'a Secret), Refused> {
    if let Some((code, message)) = state.is_barred() {
        return Err(Refused::new(code, message));
    }
    if !vault.lease_holds() {
        return Err(Refused::new(
            CallCode::CredentialLeaseExpired,
            "this node has not heard from its control plane for too long to use credentials",
        ));
    }
    let pool = &state.identity.pool;
    let withdrawn = || {
        let message = format!("the tenant's newest manifest lists no secret {name} for this pool");
        Refused::new(CallCode::CredentialWithdrawn, message)
    };
    let secret = tenant.secret(name, pool).ok_or_else(withdrawn)?;
    let accord = tenant.manifest.as_ref().ok_or_else(withdrawn)?;
    let digest = accord
        .manifest
        .secrets
        .get(name)
        .and_then(|pools| pools.get(pool))
        .copied()
        .ok_or_else(withdrawn)?;
    let now = state.judge.time(clock::unix());
    let epoch = state
        .judge
        .pool(pool, secret.place.epoch)
        .ok_or_else(withdrawn)?;
    let expiries = [
        ("tenant", tenant.tenant.expires),
        ("manifest", accord.manifest.expires),
        ("pool key", epoch.expires),
    ];
    if let Some((what, _)) = expiries.into_iter().find(|(_, expires)| now >= *expires) {
        return Err(Refused::new(
            CallCode::CredentialExpired,
            format!("the {what} has expired: functions keep running, but credentials are not used"),
        ));
    }
    if let Standing::Stale(stale) = tenant.standing(now) {
        let message = format!("{stale}; functions keep running, but credentials are not used");
        return Err(Refused::new(CallCode::CredentialStale, message));
    }
    Ok((digest, secret))
}
