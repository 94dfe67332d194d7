//! Tests with clients that disconnect or send nothing.

use std::net::IpAddr;
use std::time::Duration;

use axum::routing::get;
use casemate_api::token::Scope;
use casemate_push::close;
use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use hyper::client::conn::http2;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::*;
use crate::plane::tests::{member, plane, token};

/// Time limit for every event.
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
    let router = router::router(&plane, &CancellationToken::new(), &tasks);
    let token_path = format!("/v1/tokens/{}", other.id);
    for path in ["/v1/nodes/edge-1", &token_path] {
        let request = request("DELETE", path, &operator.token);
        let answered = TowerToHyperService::new(router.clone()).call(request);
        // It runs up to the first wait, which is for the disk; then it is dropped, as hyper does
        // with a reset stream.
        assert!(answered.now_or_never().is_none(), "{path}");
    }
    tasks.close();
    tokio::time::timeout(SOON, tasks.wait()).await.unwrap();
    assert_eq!(*visit.closing.borrow_and_update(), Some(close::REVOKED));
    assert!(plane.node(&visit.node).is_err());
    assert!(plane.authenticate(&other.token).is_none());
    // The next change builds on it.
    token(&plane, Scope::ReadOnly).await;
}

#[tokio::test]
async fn the_changes_in_progress_of_one_token_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(folder.path()).await;
    let slow = token(&plane, Scope::Operator).await;
    let other = token(&plane, Scope::Operator).await;
    let tasks = TaskTracker::new();
    let router = router::router(&plane, &CancellationToken::new(), &tasks);
    let router = TowerToHyperService::new(router);
    let begun = (0..=room::MAX_QUESTIONS_OF_TOKEN).map(|_| {
        let body = futures_util::stream::pending::<Result<&[u8], Infallible>>();
        let request = request("POST", "/v1/tokens", &slow.token);
        Box::pin(router.call(request.map(|_| Body::from_stream(body))))
    });
    // The accepted requests wait for their bodies.
    let (first, ..) = futures_util::future::select_all(begun).await;
    assert_eq!(first.unwrap().status(), 429);
    let unknown = request("DELETE", "/v1/tokens/none", &other.token);
    assert_eq!(router.call(unknown).await.unwrap().status(), 404);
}

#[tokio::test]
async fn the_unread_answers_of_one_token_are_limited() {
    let folder = tempfile::tempdir().unwrap();
    let plane = plane(folder.path()).await;
    let [greedy, other] = [
        token(&plane, Scope::ReadOnly).await,
        token(&plane, Scope::ReadOnly).await,
    ];
    let tasks = TaskTracker::new();
    let router = router::router(&plane, &CancellationToken::new(), &tasks);
    let router = TowerToHyperService::new(router);
    let ask = async |token: &str| {
        let answer = router.call(request("GET", "/v1/audit", token));
        answer.await.unwrap()
    };
    let mut untaken = Vec::new();
    for _ in 0..room::MAX_QUESTIONS_OF_TOKEN {
        let answer = ask(&greedy.token).await;
        assert_eq!(answer.status(), 200);
        untaken.push(answer);
    }
    assert_eq!(ask(&greedy.token).await.status(), 429);
    assert_eq!(ask(&other.token).await.status(), 200);
    // An answer that is read or dropped frees its slot.
    drop(untaken.pop());
    assert_eq!(ask(&greedy.token).await.status(), 200);
}

/// A client's end of a connection that is closed after a short idle time.
fn connected() -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let large = get(async || vec![0; 1024 * 1024]);
    let router = Router::new().route("/large", large);
    let (moment, stopping) = (Duration::from_millis(50), CancellationToken::new());
    let address = IpAddr::from([127, 0, 0, 1]);
    let seat = Arc::new(Seats::new(&ApiLimits::default()).take(address).unwrap());
    let remote = Remote { address, seat };
    tokio::spawn(talk(ours, remote, router, moment, stopping));
    theirs
}

#[tokio::test]
async fn a_silent_client_or_an_incomplete_request_is_disconnected() {
    for word in ["", "PRI * HTTP/2.0\r\n", "GET /large HT"] {
        let mut stream = connected();
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{word:?}");
    }
}

#[tokio::test]
async fn a_client_that_only_answers_pings_or_reads_no_answer_is_disconnected() {
    for asks in [false, true] {
        let client = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(1)
            .handshake::<_, Body>(TokioIo::new(connected()));
        let (mut sender, connection) = client.await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::get("http://control/large").body(Body::empty());
        let untaken = if asks {
            Some(sender.send_request(request.unwrap()).await.unwrap())
        } else {
            None
        };
        let ended = tokio::time::timeout(SOON, connection).await;
        assert!(ended.is_ok(), "asks: {asks}");
        drop((sender, untaken));
    }
}
