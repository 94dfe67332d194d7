//! What a client can do by going away, and by saying nothing.

use std::time::Duration;

use axum::body::Body;
use casemate_api::token::Scope;
use casemate_push::close;
use futures_util::FutureExt as _;
use http::Request;
use http::header::AUTHORIZATION;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::plane::tests::{member, plane, token};

/// How long anything may take to happen.
const SOON: Duration = Duration::from_secs(20);

fn request(method: &str, path: &str, token: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn a_change_is_made_to_its_end_when_its_client_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(folder.path()).await;
    let mut visit = plane.arrive(&member()).unwrap();
    let operator = token(&plane, Scope::Operator).await;
    let other = token(&plane, Scope::ReadOnly).await;
    let tasks = TaskTracker::new();
    let router = ask::router(&plane, &CancellationToken::new(), &tasks);
    let token_path = format!("/v1/tokens/{}", other.id);
    for path in ["/v1/nodes/edge-1", &token_path] {
        let request = request("DELETE", path, &operator.token);
        let answered = TowerToHyperService::new(router.clone()).call(request);
        // As far as it comes at one go, which is to the disk; then it is dropped, as hyper does with a reset stream.
        assert!(answered.now_or_never().is_none(), "{path}");
    }
    tasks.close();
    tokio::time::timeout(SOON, tasks.wait()).await.unwrap();
    assert_eq!(*visit.closing.borrow_and_update(), Some(close::REVOKED));
    assert!(plane.node(&visit.node).is_err());
    assert!(plane.authenticate(&other.token).is_none());
    // And what comes next builds on it.
    token(&plane, Scope::ReadOnly).await;
}
