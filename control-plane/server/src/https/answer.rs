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
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub(super) async fn answer(mut ask: Ask) -> Result<Response, Fault> {
    let plane = Arc::clone(&ask.plane);
    let actor = ask.actor.clone();
    match ask.endpoint.id {
        Operation::Health => plane
            .health()
            .await
            .map(|()| json(&serde_json::json!({ "status": "ok" }))),
        Operation::Openapi => {
            Ok(([(CONTENT_TYPE, "application/json")], OPENAPI.clone()).into_response())
        }
        Operation::Fleet => Ok(shared(&FLEET, &plane.fleet())),
        Operation::PostStatement => {
            let body = ask.body(MAX_ENVELOPE_BYTES).await?;
            Ok(json(&plane.post_statement(&actor, &body).await?))
        }
        Operation::ListPools => Ok(json(&plane.pools())),
        Operation::ListTenants => Ok(json(&plane.tenants(&actor))),
        Operation::GetTenant => Ok(json(&plane.tenant(&ask.param("id")?)?)),
        Operation::PutObject => {
            let (tenant, digest) = (ask.param("id")?, ask.param("digest")?);
            let body = ask.body(MAX_OBJECT_BYTES).await?;
            plane.put_object(&tenant, &digest, body).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Operation::GetObject => {
            let (tenant, digest): (TenantId, Digest) = (ask.param("id")?, ask.param("digest")?);
            let found = plane
                .object(&tenant, &digest)
                .await?
                .ok_or_else(|| Fault::not_found("object"))?;
            Ok(([(CONTENT_TYPE, "application/octet-stream")], found.bytes).into_response())
        }
        Operation::PutManifest => {
            let tenant = ask.param("id")?;
            let body = ask.body(MAX_ENVELOPE_BYTES).await?;
            Ok(json(&plane.put_manifest(&actor, &tenant, &body).await?))
        }
        Operation::PutFreshness => {
            let tenant = ask.param("id")?;
            let body = ask.body(MAX_JSON_BYTES).await?;
            Ok(json(&plane.put_freshness(&actor, &tenant, &body).await?))
        }
        Operation::TenantStatus => Ok(json(&plane.tenant_status(&ask.param("id")?)?)),
        Operation::TenantLogs => logs(ask),
        Operation::PutBundle => put_bundle(ask).await,
        Operation::HeadBundle => {
            let (tenant, digest) = (ask.own_tenant()?, ask.param("digest")?);
            let size = plane.bundle_size(&tenant, &digest).await?;
            let size = size.ok_or_else(|| Fault::not_found("bundle"))?;
            Ok(([(CONTENT_LENGTH, size)], StatusCode::OK).into_response())
        }
        Operation::ListImages => Ok(json(&plane.list_images())),
        Operation::GetImage => Ok(json(&plane.image_upload(&ask.param("digest")?).await?)),
        Operation::PutImage => {
            let (digest, place) = (ask.param("digest")?, ask.query()?);
            let body = ask.stream();
            Ok(json(&plane.put_image(&digest, place, body).await?))
        }
        Operation::MakeToken => {
            let new = ask.json(MAX_JSON_BYTES).await?;
            Ok((
                StatusCode::CREATED,
                json(&plane.make_token(&actor, new).await?),
            )
                .into_response())
        }
        Operation::OwnToken => Ok(json(&plane.own_token(&actor)?)),
        Operation::ListTokens => Ok(json(&plane.tokens())),
        Operation::DeleteToken => {
            let id: String = ask.param("token")?;
            plane.delete_token(&actor, &id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Operation::RegisterJoinToken => {
            let NewJoinToken { record } = ask.json(MAX_JSON_BYTES).await?;
            plane.register_join_token(&actor, record).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Operation::ListJoins => Ok(json(&plane.joins())),
        Operation::AdmitNode => {
            let admission = ask.json(MAX_JSON_BYTES).await?;
            Ok(json(&plane.admit(&actor, admission).await?))
        }
        Operation::ReadmitNode => {
            let readmission = ask.json(MAX_JSON_BYTES).await?;
            Ok(json(&plane.readmit(&actor, readmission).await?))
        }
        Operation::ListNodes => Ok(json(&plane.nodes())),
        Operation::GetNode => Ok(json(&plane.node(&ask.param("name")?)?)),
        Operation::GrantNode => {
            let name = ask.param("name")?;
            let grants = ask.json(MAX_JSON_BYTES).await?;
            Ok(json(&plane.grant(&actor, &name, grants).await?))
        }
        Operation::RevokeNode => {
            plane.revoke(&actor, &ask.param("name")?).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Operation::Audit => {
            let AuditQuery { since } = ask.query()?;
            Ok(json(&plane.audit(since).await?))
        }
    }
}

fn json<T: Serialize>(answer: &T) -> Response {
    axum::Json(answer).into_response()
}

/// The answer to requests that need no token and are not limited.
fn shared<T: Serialize>(last: &Shared, answer: &T) -> Response {
    match serde_json::to_vec(answer) {
        Ok(text) => ([(CONTENT_TYPE, "application/json")], last.bytes(text)).into_response(),
        // As it answers itself.
        Err(_) => json(answer),
    }
}

async fn put_bundle(mut ask: Ask) -> Result<Response, Fault> {
    let (tenant, digest) = (ask.own_tenant()?, ask.param("digest")?);
    let (declared, body) = (ask.declared_bytes(), ask.stream());
    ask.plane
        .put_bundle(&tenant, &digest, declared, body)
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
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
