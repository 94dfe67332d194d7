//! From what a worker asks to the bytes that go on the wire.

use bytes::Bytes;
use casemate_channel::RecvBody;
use casemate_trust::id::Digest;
use casemate_trust::judge::TenantState;
use casemate_trust::name::Identifier;
use casemate_trust::release::Credential;
use casemate_trust::secret::SecretValue;
use casemate_vault_core::egress::decide;
use casemate_vault_core::scrub::Scrubber;
use casemate_vault_core::slot::{Outgoing, fill};
use casemate_wire::RequestHead;
use http::{HeaderName, HeaderValue, Request, Uri};

use super::body::CallBody;
use super::upstream::Place;
use super::{Caller, Refused};
use crate::clock;
use crate::vault::{State, Vault};

/// A call that may go.
pub(crate) struct Prepared {
    pub(crate) request: Request<CallBody>,
    pub(crate) place: Place,
    /// Of the credential, where there is one.
    pub(crate) scrubber: Option<Scrubber>,
}

/// Decides by the release that belongs to the channel, opens the secret, and builds the request.
pub(crate) fn prepare(
    vault: &Vault,
    caller: &Caller,
    head: &RequestHead,
    body: RecvBody,
) -> Result<Prepared, Refused> {
    let state = vault.read();
    let withdrawn = || {
        Refused::new(
            "release_withdrawn",
            "the tenant's newest manifest no longer lists this release",
        )
    };
    let tenant = state.judge.tenant(&caller.tenant).ok_or_else(withdrawn)?;
    let release = tenant
        .may_run(&caller.function, &caller.release)
        .ok_or_else(withdrawn)?;
    let binding = head.fields.text(":binding");
    let ceiling = tenant.tenant.egress.as_ref();
    let allowed = decide(release, ceiling, binding, &head.method, &head.target)
        .map_err(|denial| Refused::new("egress_denied", denial.to_string()))?;

    let opened = allowed
        .credential
        .map(|credential| open(vault, &state, tenant, credential))
        .transpose()?;
    let slot = allowed
        .credential
        .zip(opened.as_ref())
        .map(|(credential, (_, value))| (&credential.slot, value));
    let outgoing = fill(&allowed.target, head.fields.iter(), slot, allowed.limited);
    let scrubber = opened
        .as_ref()
        .and_then(|(_, value)| Scrubber::new(value.expose_secret()));

    let length = head
        .fields
        .text("content-length")
        .and_then(|text| text.parse().ok());
    let request = request(
        &allowed.target.authority(),
        allowed.target.scheme.as_str(),
        allowed.method.as_str(),
        outgoing,
        CallBody::new(body, length),
    )?;
    let secret = allowed
        .credential
        .zip(opened.as_ref())
        .map(|(credential, (digest, _))| (credential.secret.clone(), *digest));
    let target = &allowed.target;
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
        place,
        scrubber,
    })
}

/// Opens a secret for one call: listed, in date, within its limits, and under a lease.
fn open(
    vault: &Vault,
    state: &State,
    tenant: &TenantState,
    credential: &Credential,
) -> Result<(Digest, SecretValue), Refused> {
    if !vault.lease_holds() {
        return Err(Refused::new(
            "credential_lease_expired",
            "this node has not heard from its control plane for too long to use credentials",
        ));
    }
    let pool = &state.identity.pool;
    let withdrawn = || {
        Refused::new(
            "credential_withdrawn",
            format!(
                "the tenant's newest manifest lists no secret {} for this pool",
                credential.secret
            ),
        )
    };
    let secret = tenant
        .secret(&credential.secret, pool)
        .ok_or_else(withdrawn)?;
    let accord = tenant.manifest.as_ref().ok_or_else(withdrawn)?;
    let digest = accord
        .manifest
        .secrets
        .get(&credential.secret)
        .and_then(|pools| pools.get(pool))
        .copied()
        .ok_or_else(withdrawn)?;
    if let Some(message) = credential.widens(&secret.place.limits) {
        return Err(Refused::new("credential_withdrawn", message));
    }
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
            "credential_expired",
            format!("the {what} has expired; what runs goes on, credentials do not"),
        ));
    }
    let value = vault
        .kept
        .open(&digest, secret, &state.pool_keys)
        .map_err(|error| Refused::new("credential_unopenable", error.to_string()))?;
    Ok((digest, value))
}

fn request(
    authority: &str,
    scheme: &str,
    method: &str,
    outgoing: Outgoing,
    body: CallBody,
) -> Result<Request<CallBody>, Refused> {
    let unsendable = |_| Refused::new("egress_denied", "the request cannot be sent as it is");
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(outgoing.path_and_query.as_str());
    let mut request = Request::builder()
        .method(method)
        .uri(uri.build().map_err(unsendable)?);
    for (name, value, secret) in outgoing.fields {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| Refused::new("egress_denied", "a header name cannot be sent"))?;
        // Shared, not copied: the bytes of a secret are wiped when the last holder lets go.
        let mut value = HeaderValue::from_maybe_shared::<Bytes>(value)
            .map_err(|_| Refused::new("egress_denied", "a header value cannot be sent"))?;
        value.set_sensitive(secret);
        request = request.header(name, value);
    }
    request.body(body).map_err(unsendable)
}

/// A secret's name and the digest of its sealed object.
pub(crate) type SecretKey = (Identifier, Digest);
