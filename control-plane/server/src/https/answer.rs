//! Computes the answer to a parsed request.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use casemate_api::audit::AuditQuery;
use casemate_api::endpoint::Operation;
use casemate_api::limits::{MAX_ENVELOPE_BYTES, MAX_JSON_BYTES, MAX_OBJECT_BYTES};
use casemate_api::log::LogQuery;
use casemate_api::node::NewJoinToken;
use casemate_trust::id::{Digest, TenantId};
use futures_util::Stream;
use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde::Serialize;

use tokio_util::sync::CancellationToken;

use super::ask::Ask;
use super::room::Shared;
use crate::fault::Fault;
use crate::plane::{Following, Plane};

/// A followed log sends at least an empty line this often: both ends notice that the other has
/// gone, and a token that has become invalid ends its requests.
const LONGEST_SILENCE: Duration = Duration::from_secs(30);

/// Computed once: anyone may request it, and computing it takes longer than any other answer
/// without a token.
static OPENAPI: LazyLock<Bytes> = LazyLock::new(|| {
    let text = serde_json::to_vec(&casemate_api::openapi::document());
    text.expect("the document is JSON").into()
});
static FLEET: Shared = Shared::new();

/// Answers a request that was routed and authorised.
pub(super) async fn answer(ask: Ask) -> Result<Response, Fault> {
    match ask.endpoint.id {
        Operation::Health => health(ask).await,
        Operation::Openapi => Ok(openapi()),
        Operation::Fleet => Ok(shared(&FLEET, &ask.plane.fleet())),
        Operation::PostStatement => post_statement(ask).await,
        Operation::ListPools => Ok(json(&ask.plane.pools())),
        Operation::ListTenants => Ok(json(&ask.plane.tenants(&ask.actor))),
        Operation::GetTenant => Ok(json(&ask.plane.tenant(&ask.param("id")?)?)),
        Operation::PutObject => put_object(ask).await,
        Operation::GetObject => get_object(ask).await,
        Operation::PutManifest => put_manifest(ask).await,
        Operation::PutFreshness => put_freshness(ask).await,
        Operation::TenantStatus => Ok(json(&ask.plane.tenant_status(&ask.param("id")?)?)),
        Operation::TenantLogs => logs(ask),
        Operation::PutBundle => put_bundle(ask).await,
        Operation::HeadBundle => head_bundle(ask).await,
        Operation::ListImages => Ok(json(&ask.plane.list_images())),
        Operation::GetImage => Ok(json(&ask.plane.image_upload(&ask.param("digest")?).await?)),
        Operation::PutImage => put_image(ask).await,
        Operation::MakeToken => make_token(ask).await,
        Operation::OwnToken => Ok(json(&ask.plane.own_token(&ask.actor)?)),
        Operation::ListTokens => Ok(json(&ask.plane.tokens())),
        Operation::DeleteToken => delete_token(ask).await,
        Operation::RegisterJoinToken => register_join_token(ask).await,
        Operation::ListJoins => Ok(json(&ask.plane.joins())),
        Operation::AdmitNode => admit_node(ask).await,
        Operation::ReadmitNode => readmit_node(ask).await,
        Operation::ListNodes => Ok(json(&ask.plane.nodes())),
        Operation::GetNode => Ok(json(&ask.plane.node(&ask.param("name")?)?)),
        Operation::GrantNode => grant_node(ask).await,
        Operation::RevokeNode => revoke_node(ask).await,
        Operation::Audit => audit(ask).await,
    }
}

async fn health(ask: Ask) -> Result<Response, Fault> {
    ask.plane.health().await?;
    Ok(json(&serde_json::json!({ "status": "ok" })))
}

fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI.clone()).into_response()
}

async fn post_statement(mut ask: Ask) -> Result<Response, Fault> {
    let body = ask.body(MAX_ENVELOPE_BYTES).await?;
    Ok(json(&ask.plane.post_statement(&ask.actor, &body).await?))
}

async fn put_object(mut ask: Ask) -> Result<Response, Fault> {
    let (tenant, digest) = (ask.param("id")?, ask.param("digest")?);
    let body = ask.body(MAX_OBJECT_BYTES).await?;
    ask.plane.put_object(&tenant, &digest, body).await?;
    Ok(no_content())
}

async fn get_object(ask: Ask) -> Result<Response, Fault> {
    let (tenant, digest): (TenantId, Digest) = (ask.param("id")?, ask.param("digest")?);
    let found = ask.plane.object(&tenant, &digest).await?;
    let found = found.ok_or_else(|| Fault::not_found("object"))?;
    Ok(([(CONTENT_TYPE, "application/octet-stream")], found.bytes).into_response())
}

async fn put_manifest(mut ask: Ask) -> Result<Response, Fault> {
    let tenant = ask.param("id")?;
    let body = ask.body(MAX_ENVELOPE_BYTES).await?;
    let answer = ask.plane.put_manifest(&ask.actor, &tenant, &body).await?;
    Ok(json(&answer))
}

async fn put_freshness(mut ask: Ask) -> Result<Response, Fault> {
    let tenant = ask.param("id")?;
    let body = ask.body(MAX_JSON_BYTES).await?;
    let answer = ask.plane.put_freshness(&ask.actor, &tenant, &body).await?;
    Ok(json(&answer))
}

async fn head_bundle(ask: Ask) -> Result<Response, Fault> {
    let (tenant, digest) = (ask.own_tenant()?, ask.param("digest")?);
    let size = ask.plane.bundle_size(&tenant, &digest).await?;
    let size = size.ok_or_else(|| Fault::not_found("bundle"))?;
    Ok(([(CONTENT_LENGTH, size)], StatusCode::OK).into_response())
}

async fn put_image(mut ask: Ask) -> Result<Response, Fault> {
    let (digest, place) = (ask.param("digest")?, ask.query()?);
    let body = ask.stream();
    Ok(json(&ask.plane.put_image(&digest, place, body).await?))
}

async fn make_token(mut ask: Ask) -> Result<Response, Fault> {
    let new = ask.json(MAX_JSON_BYTES).await?;
    let made = ask.plane.make_token(&ask.actor, new).await?;
    Ok((StatusCode::CREATED, json(&made)).into_response())
}

async fn delete_token(ask: Ask) -> Result<Response, Fault> {
    let id: String = ask.param("token")?;
    ask.plane.delete_token(&ask.actor, &id).await?;
    Ok(no_content())
}

async fn register_join_token(mut ask: Ask) -> Result<Response, Fault> {
    let NewJoinToken { record } = ask.json(MAX_JSON_BYTES).await?;
    ask.plane.register_join_token(&ask.actor, record).await?;
    Ok(no_content())
}

async fn admit_node(mut ask: Ask) -> Result<Response, Fault> {
    let admission = ask.json(MAX_JSON_BYTES).await?;
    Ok(json(&ask.plane.admit(&ask.actor, admission).await?))
}

async fn readmit_node(mut ask: Ask) -> Result<Response, Fault> {
    let readmission = ask.json(MAX_JSON_BYTES).await?;
    Ok(json(&ask.plane.readmit(&ask.actor, readmission).await?))
}

async fn grant_node(mut ask: Ask) -> Result<Response, Fault> {
    let name = ask.param("name")?;
    let grants = ask.json(MAX_JSON_BYTES).await?;
    Ok(json(&ask.plane.grant(&ask.actor, &name, grants).await?))
}

async fn revoke_node(ask: Ask) -> Result<Response, Fault> {
    ask.plane.revoke(&ask.actor, &ask.param("name")?).await?;
    Ok(no_content())
}

async fn audit(ask: Ask) -> Result<Response, Fault> {
    let AuditQuery { since } = ask.query()?;
    Ok(json(&ask.plane.audit(since).await?))
}

fn no_content() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

fn json<T: Serialize>(answer: &T) -> Response {
    axum::Json(answer).into_response()
}

/// The answer to requests that need no token and are not limited.
fn shared<T: Serialize>(last: &Shared, answer: &T) -> Response {
    match serde_json::to_vec(answer) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], last.bytes(text)).into_response(),
        // `json` turns the failure into an error response.
        Err(_) => json(answer),
    }
}

async fn put_bundle(mut ask: Ask) -> Result<Response, Fault> {
    let (tenant, digest) = (ask.own_tenant()?, ask.param("digest")?);
    let (declared, body) = (ask.declared_bytes(), ask.stream());
    ask.plane
        .put_bundle(&tenant, &digest, declared, body)
        .await?;
    Ok(no_content())
}

fn logs(mut ask: Ask) -> Result<Response, Fault> {
    let query: LogQuery = ask.query()?;
    let tenant = ask.param("id")?;
    ask.plane.tenant(&tenant)?;
    let following = ask.plane.follow(tenant, query);
    let (plane, stopping) = (Arc::clone(&ask.plane), ask.stopping.clone());
    let may_go_on = move || ask.authorise().is_ok();
    let lines = lines(plane, following, stopping, LONGEST_SILENCE, may_go_on);
    Ok((
        [(CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(lines),
    )
        .into_response())
}

/// Records as lines, and an empty one after each `silence`, until the log ends or the reader's
/// token becomes invalid.
fn lines(
    plane: Arc<Plane>,
    following: Following,
    stopping: CancellationToken,
    silence: Duration,
    may_go_on: impl FnMut() -> bool,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let state = (plane, following, stopping, may_go_on);
    futures_util::stream::unfold(state, move |mut state| async move {
        let (plane, following, stopping, may_go_on) = &mut state;
        let records = tokio::select! {
            records = plane.next_logs(following) => Some(records).filter(|records| !records.is_empty())?,
            () = tokio::time::sleep(silence) => Vec::new(),
            () = stopping.cancelled() => return None,
        };
        if !may_go_on() {
            return None;
        }
        let mut lines = Vec::new();
        for record in &records {
            serde_json::to_writer(&mut lines, &**record).ok()?;
            lines.push(b'\n');
        }
        if records.is_empty() {
            lines.push(b'\n');
        }
        Some((Ok(Bytes::from(lines)), state))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_quiet_log_gives_empty_lines_until_its_reader_may_not_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let plane = crate::plane::tests::plane(folder.path()).await;
        let query = LogQuery {
            follow: true,
            ..LogQuery::default()
        };
        let following = plane.follow(TenantId([1; 32]), query);
        let mut left = 3;
        let may_go_on = || {
            left -= 1;
            left > 0
        };
        let (stopping, silence) = (CancellationToken::new(), Duration::from_millis(1));
        let lines = lines(plane, following, stopping, silence, may_go_on);
        let lines: Vec<_> = lines.take(9).map(Result::unwrap).collect().await;
        assert_eq!(lines, ["\n", "\n"]);
    }
}
