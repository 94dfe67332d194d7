//! From a worker's request to the bytes for the upstream.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::RecvBody;
use casemate_trust::ceiling::EgressCeiling;
use casemate_trust::id::Digest;
use casemate_trust::judge::TenantState;
use casemate_trust::release::{Credential, Slot};
use casemate_trust::secret::SecretValue;
use casemate_vault_core::egress::{Allowed, Denial, decide};
use casemate_vault_core::slot::{Outgoing, fill};
use casemate_wire::{CallCode, RequestHead};
use http::uri::{Authority as UriAuthority, PathAndQuery, Scheme as UriScheme};
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body::Body as _;
use hyper_util::client::legacy::connect::capture_connection;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::authority::{Authority, SecretKey, authorised, usable};
use super::body::CallBody;
use super::caller::Caller;
use super::cut::Exchange;
use super::heads::{self, CredentialedRules};
use super::in_flight::{InFlight, Registered};
use super::refused::Refused;
use super::searchers::Values;
use super::share::Permit;
use super::upstream::Place;
use super::watch::Watch;
use crate::vault::{State, Vault};

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

/// Decides by the release that belongs to the channel, opens the secret, and builds the request.
/// The call is listed as under way before the lock is released that a withdrawal needs.
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
    let outgoing = outgoing(head, &allowed, slot, rules)?;

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
    let place = place(caller, &allowed, secret, ceiling);
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

/// What is sent: the function's fields that may go out, and the secret in its slot.
fn outgoing(
    head: &RequestHead,
    allowed: &Allowed<'_>,
    slot: Option<(&Slot, &SecretValue)>,
    rules: Option<CredentialedRules>,
) -> Result<Outgoing, Refused> {
    let fields = sent_fields(head, rules)?.into_iter();
    let is_searched = rules.is_some();
    let mut outgoing = fill(&allowed.target, fields, slot, allowed.limited, is_searched);
    let cdn_loop = Bytes::from(heads::cdn_loop(&head.fields));
    let cdn_loop = (heads::CDN_LOOP.to_owned(), cdn_loop, false);
    outgoing.fields.push(cdn_loop);
    Ok(outgoing)
}

/// Where the call goes: connections are shared only between calls with the same place.
fn place(
    caller: &Caller,
    allowed: &Allowed<'_>,
    secret: Option<SecretKey>,
    ceiling: Option<&EgressCeiling>,
) -> Place {
    let target = &allowed.target;
    Place {
        tenant: caller.tenant,
        scheme: target.scheme,
        host: target.host.clone(),
        port: target.port,
        secret,
        ca: allowed.ca.map(ToOwned::to_owned),
        private: ceiling.map(|ceiling| ceiling.private_networks.clone()),
    }
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
