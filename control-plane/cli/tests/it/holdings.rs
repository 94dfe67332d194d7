//! The objects that the fake control plane has and lacks.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use casemate_api::error::code;
use casemate_api::node::{Admission, Readmission};
use casemate_api::token::{Scope, TokenList, TokenView};
use casemate_trust::dsse::Envelope;
use casemate_trust::release::Release;
use casemate_trust::statement::{Manifest, Statement as _};

use super::fake::{Given, Shared, json, view};

/// The listed objects that are missing.
pub(crate) fn lacking(given: &Given, manifest: &Manifest) -> Option<&'static str> {
    let wanted = manifest.functions.values();
    let mut releases =
        wanted.flat_map(|wanted| std::iter::once(&wanted.release).chain(&wanted.fallbacks));
    let mut secrets = manifest.secrets.values().flat_map(BTreeMap::values);
    if secrets.any(|digest| !given.objects.contains_key(digest)) {
        return Some(code::OBJECTS_MISSING);
    }
    releases.find_map(|digest| {
        let Some(release) = given.objects.get(digest) else {
            return Some(code::OBJECTS_MISSING);
        };
        let bundle = Release::parse(release).unwrap().bundle.digest;
        (!given.bundles.contains_key(&bundle)).then_some(code::BUNDLE_MISSING)
    })
}

/// A statement with the same content and another signature replaces the earlier one.
pub(crate) fn put_anew(held: &mut Vec<Envelope>, envelope: Envelope) {
    let digest = envelope.payload_digest();
    match held.iter_mut().find(|held| held.payload_digest() == digest) {
        Some(earlier) => *earlier = envelope,
        None => held.push(envelope),
    }
}

pub(crate) async fn readmit(State(given): State<Shared>, body: Bytes) -> Response {
    let Readmission { join, grants } = serde_json::from_slice(&body).unwrap();
    let request = casemate_trust::join::JoinRequest::read(&join).unwrap();
    let mut given = given.lock();
    let admission = Admission {
        request: join.payload_digest(),
        node_key: request.node_key,
        name: request.node,
        pool: request.pool,
        grants: grants.clone(),
    };
    given.grants.extend(grants);
    let name = admission.name.to_string();
    given.admitted.push(admission);
    json(&view(&given, &name).unwrap())
}

pub(crate) async fn own_token(State(given): State<Shared>) -> Response {
    let first = given.lock().tenants.keys().next().copied();
    json(&TokenView {
        id: "own".into(),
        scope: first.map_or(Scope::ReadOnly, Scope::Tenant),
        label: "of this home".into(),
        created: 1,
        expires: Some(4_000_000_000),
    })
}

pub(crate) async fn tokens(State(given): State<Shared>) -> Response {
    let given = given.lock();
    let evil = given.evil;
    let of_tenant = given.tenants.keys().next().filter(|_| given.tenant_token);
    let of_tenant = of_tenant.map(|id| TokenView {
        id: "t2".into(),
        scope: Scope::Tenant(*id),
        label: "tenant".into(),
        created: 1,
        expires: None,
    });
    let token = TokenView {
        id: evil.unwrap_or("t1").into(),
        scope: Scope::Operator,
        label: evil.unwrap_or("first").into(),
        created: 1,
        expires: None,
    };
    json(&TokenList {
        tokens: std::iter::once(token).chain(of_tenant).collect(),
    })
}
