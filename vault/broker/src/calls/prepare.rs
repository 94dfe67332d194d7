//! From a worker's request to the bytes for the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::RecvBody;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::{Standing, TenantState};
use casemate_trust::name::Identifier;
use casemate_trust::release::{Credential, Release};
use casemate_trust::secret::{Secret, SecretValue};
use casemate_vault_core::egress::{Denial, decide};
use casemate_vault_core::slot::{Outgoing, fill};
use casemate_wire::{CallCode, RequestHead};
use http::uri::{Authority as UriAuthority, PathAndQuery, Scheme as UriScheme};
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body::Body as _;
use hyper_util::client::legacy::connect::capture_connection;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::body::CallBody;
use super::cut::Exchange;
use super::heads::{self, CredentialedRules};
use super::in_flight::{Authority, InFlight, Registered};
use super::searchers::{Shared, Values};
use super::share::Permit;
use super::upstream::Place;
use super::watch::Watch;
use super::{Caller, Refused};
use crate::clock;
use crate::vault::{State, Vault};

/// A secret's name and the digest of its sealed object.
pub(crate) type SecretKey = (Identifier, Digest);

/// A call that was admitted by policy.
pub(super) struct Prepared {
    pub(super) request: Request<CallBody>,
    /// A copy of the request, if it may be sent again.
    pub(super) again: Option<Again>,
    pub(super) place: Place,
    /// The secrets to search the answer for, where the release declares a credential for the host.
    pub(super) watch: Option<(Watch, Values)>,
    /// The call's time limit.
    pub(super) lifetime: Duration,
    pub(super) registered: Registered,
    pub(super) exchange: Exchange,
    /// The body holds it too: hyper drops a body that has been sent, and keeps one that an upstream
    /// does not read.
    pub(super) permit: Arc<Permit>,
}

/// A request that may be sent to an upstream twice: without a body, and idempotent (RFC 9110,
/// section 9.2.2).
pub(super) struct Again {
    head: Request<()>,
    permit: Arc<Permit>,
}

impl Again {
    fn of(request: &Request<CallBody>, permit: &Arc<Permit>) -> Option<Self> {
        if !request.body().is_end_stream() || !request.method().is_idempotent() {
            return None;
        }
        let mut head = Request::new(());
        request.method().clone_into(head.method_mut());
        request.uri().clone_into(head.uri_mut());
        request.headers().clone_into(head.headers_mut());
        Some(Self {
            head,
            permit: permit.clone(),
        })
    }

    /// The request, and its resources until it is over.
    pub(super) fn request(self) -> (Request<CallBody>, Exchange) {
        let over = CancellationToken::new();
        let body = CallBody::empty(&over, self.permit);
        let sent = body.sent();
        let mut request = self.head.map(|()| body);
        let connection = capture_connection(&mut request);
        (request, Exchange::new(connection, sent, over))
    }
}

/// State for an answer that is searched.
pub(super) struct Credentialed {
    pub(super) watch: Watch,
    /// `None`: every secret is too short to be searched for.
    pub(super) searcher: Option<Arc<Shared>>,
}

/// Decides by the release that belongs to the channel, opens the secret, and builds the request.
/// The call is listed as under way before the lock is released that a withdrawal needs.
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub(super) fn prepare(
    vault: &Vault,
    in_flight: &Arc<InFlight>,
    caller: &Caller,
    head: &RequestHead,
    body: RecvBody,
    permit: Permit,
) -> Result<Prepared, Refused> {
    let state = vault.read();
    let (tenant, release) = authorised(&state, &caller.tenant, &caller.function, &caller.release)?;
    let binding = head.fields.text(":binding");
    let ceiling = tenant.tenant.egress.as_ref();
    let allowed = decide(release, ceiling, binding, &head.method, &head.target)
        .map_err(|denial| denied(&denial))?;
    let opened = allowed
        .credential
        .map(|credential| open(vault, &state, tenant, credential))
        .transpose()?;
    let slot = allowed
        .credential
        .zip(opened.as_ref())
        .map(|(credential, (_, value))| (&credential.slot, value));
    let host = &allowed.target.host;
    let watch = Watch::new(vault, &state, tenant, caller, release, host)?;
    let rules = watch.as_ref().map(|(watch, _)| watch.rules);
    let fields = sent_fields(head, rules)?;
    let mut outgoing = fill(
        &allowed.target,
        fields.into_iter(),
        slot,
        allowed.limited,
        rules.is_some(),
    );
    let cdn_loop = Bytes::from(heads::cdn_loop(&head.fields));
    outgoing
        .fields
        .push((heads::CDN_LOOP.to_owned(), cdn_loop, false));

    let length = head
        .fields
        .text("content-length")
        .and_then(|text| text.parse().ok());
    let over = CancellationToken::new();
    let permit = Arc::new(permit);
    let body = CallBody::new(body, length, &over, permit.clone());
    let sent = body.sent();
    let target = &allowed.target;
    let mut request = request(
        &target.authority(),
        target.scheme.as_str(),
        allowed.method.as_str(),
        outgoing,
        body,
    )?;
    let again = Again::of(&request, &permit);
    let exchange = Exchange::new(capture_connection(&mut request), sent, over);
    let secret = allowed
        .credential
        .zip(opened.as_ref())
        .map(|(credential, (digest, _))| (credential.secret.clone(), *digest));
    let registered = in_flight.register(Authority {
        tenant: caller.tenant,
        function: caller.function.clone(),
        release: caller.release,
        secret: secret.clone(),
    });
    let place = Place {
        tenant: caller.tenant,
        scheme: target.scheme,
        host: target.host.clone(),
        port: target.port,
        secret,
        ca: allowed.ca.map(ToOwned::to_owned),
        private: ceiling.map(|ceiling| ceiling.private_networks.clone()),
    };
    Ok(Prepared {
        request,
        again,
        place,
        watch,
        lifetime: Duration::from_millis(release.limits.call_time_ms.into()),
        registered,
        exchange,
        permit,
    })
}

/// The release of a channel, as long as its tenant's newest manifest lists it.
pub(super) fn authorised<'a>(
    state: &'a State,
    tenant: &TenantId,
    function: &casemate_trust::name::Name,
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

/// The refusal for a denial: by the release, by the operator's ceiling, or because no release could
/// allow the call.
fn denied(denial: &Denial) -> Refused {
    let code = match denial {
        Denial::Target(_) | Denial::Method => CallCode::CallInvalid,
        Denial::Ceiling { .. } => CallCode::EgressCeiling,
        Denial::Binding(_)
        | Denial::Elsewhere { .. }
        | Denial::Host { .. }
        | Denial::MethodOrPath(_)
        | Denial::Path => CallCode::EgressDenied,
    };
    Refused::new(code, denial.to_string())
}

/// The function's fields that may be sent, before the slot is filled.
fn sent_fields(
    head: &RequestHead,
    rules: Option<CredentialedRules>,
) -> Result<Vec<(&str, &[u8])>, Refused> {
    let mut sent = Vec::with_capacity(head.fields.len());
    for (name, value) in head.fields.iter() {
        let is_loop = name.replace('_', "-").eq_ignore_ascii_case(heads::CDN_LOOP);
        let goes = match rules {
            Some(rules) => rules.sends(&head.method, name, value)?,
            None => true,
        };
        if goes && !is_loop {
            sent.push((name, value));
        }
    }
    Ok(sent)
}

/// The secret of this name, if it may be used now: listed for this node's pool by a manifest that
/// is fresh, in date, and under a lease. The same rule admits a call and ends one that is under
/// way.
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

/// Opens a secret for one call, within the secret's own limits.
fn open(
    vault: &Vault,
    state: &State,
    tenant: &TenantState,
    credential: &Credential,
) -> Result<(Digest, SecretValue), Refused> {
    let (digest, secret) = usable(vault, state, tenant, &credential.secret)?;
    if let Some(message) = credential.widens(&secret.place.limits) {
        return Err(Refused::new(CallCode::CredentialWithdrawn, message));
    }
    let value = vault
        .kept
        .open(&digest, secret, &state.pool_keys)
        .map_err(|error| Refused::new(CallCode::CredentialUnopenable, error.to_string()))?;
    Ok((digest, value))
}

fn request(
    authority: &str,
    scheme: &str,
    method: &str,
    outgoing: Outgoing,
    body: CallBody,
) -> Result<Request<CallBody>, Refused> {
    let mut request = Request::builder()
        .method(method)
        .uri(uri(scheme, authority, outgoing.path_and_query).ok_or_else(unsendable)?);
    for (name, value, secret) in outgoing.fields {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| Refused::new(CallCode::CallInvalid, "a header name cannot be sent"))?;
        let mut value = HeaderValue::from_maybe_shared::<Bytes>(value)
            .map_err(|_| Refused::new(CallCode::CallInvalid, "a header value cannot be sent"))?;
        value.set_sensitive(secret);
        request = request.header(name, value);
    }
    request.body(body).map_err(|_| unsendable())
}

fn unsendable() -> Refused {
    Refused::new(CallCode::CallInvalid, "the request cannot be sent as it is")
}

/// The target of a request. Its path and query may contain a secret, so their memory is shared, not
/// copied, and wiped when the last holder drops it.
fn uri(scheme: &str, authority: &str, path_and_query: Zeroizing<String>) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(UriScheme::try_from(scheme).ok()?);
    parts.authority = Some(UriAuthority::try_from(authority).ok()?);
    let path = Bytes::from_owner(path_and_query);
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).ok()?);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_query_is_shared_with_the_target_and_not_copied() {
        let path = Zeroizing::new("/x?key=s3cr3t".to_owned());
        let place = path.as_ptr();
        let uri = uri("https", "a.test:8443", path).unwrap();
        assert_eq!(uri.to_string(), "https://a.test:8443/x?key=s3cr3t");
        assert_eq!(uri.path_and_query().unwrap().as_str().as_ptr(), place);
    }
}
