//! Probes of load balancers: whether the gateway runs, and whether it should get callers. They have
//! listeners of their own, so that a probe reaches no tenant's host and callers cannot send probes.
//!
//! `/.well-known/casemate/health` answers 200 as long as the gateway serves.
//! `/.well-known/casemate/ready` answers 200, or 503 with the reason: the routes are still loading,
//! the node drains, or no worker can start.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::serve::Gateway;

const HEALTH_PATH: &str = "/.well-known/casemate/health";
const READY_PATH: &str = "/.well-known/casemate/ready";

/// Most probes at a time. A balancer has few; further connections are closed.
const MAX_CONNECTIONS: usize = 32;
/// Time limit of a probe, from connection to answer.
const PROBE_TIME: Duration = Duration::from_secs(5);
/// Pause after the kernel refused an accept for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why the gateway should get no callers now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unready {
    /// The supervisor has not sent all routes yet.
    Loading,
    /// The node is draining.
    Draining,
    /// No worker can be started, and none runs.
    NoWorker,
}

impl Unready {
    /// The reason, as balancers and their operators read it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Loading => "routes_loading",
            Self::Draining => "draining",
            Self::NoWorker => "no_worker_can_start",
        }
    }
}

/// Answers probes until the process ends, even while the gateway drains.
pub async fn listen(gateway: Arc<Gateway>, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    continue;
                };
                let gateway = gateway.clone();
                tokio::spawn(async move {
                    let probed = tokio::time::timeout(PROBE_TIME, probe(&gateway, stream)).await;
                    if let Ok(Err(error)) = probed {
                        tracing::debug!(%error, "a probe's connection ended with an error");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a probe could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn probe(gateway: &Gateway, stream: TcpStream) -> Result<(), hyper::Error> {
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), gateway.unready());
        std::future::ready(Ok::<_, Infallible>(answer.map(Full::new)))
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn answer(method: &Method, path: &str, unready: Option<Unready>) -> Response<Bytes> {
    let (status, body) = match path {
        HEALTH_PATH | READY_PATH if !matches!(*method, Method::GET | Method::HEAD) => {
            (StatusCode::METHOD_NOT_ALLOWED, serde_json::json!({}))
        }
        HEALTH_PATH => (StatusCode::OK, serde_json::json!({ "healthy": true })),
        READY_PATH => match unready {
            None => (StatusCode::OK, serde_json::json!({ "ready": true })),
            Some(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                serde_json::json!({ "ready": false, "reason": why.reason() }),
            ),
        },
        _ => (StatusCode::NOT_FOUND, serde_json::json!({})),
    };
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            fields.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        StatusCode::SERVICE_UNAVAILABLE => {
            fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_reports_that_it_runs_and_readiness_why_it_should_get_no_callers() {
        let ask = |path: &str, unready| {
            let response = answer(&Method::GET, path, unready);
            let body = String::from_utf8(response.body().to_vec()).unwrap();
            (response.status().as_u16(), body)
        };
        for unready in [Unready::Loading, Unready::Draining, Unready::NoWorker] {
            let (status, body) = ask(READY_PATH, Some(unready));
            assert!(status == 503 && body.contains(unready.reason()), "{body}");
            assert_eq!(ask(HEALTH_PATH, Some(unready)).0, 200);
        }
        assert_eq!(ask(READY_PATH, None), (200, r#"{"ready":true}"#.to_owned()));
        for path in [
            "/",
            "/.well-known/casemate/",
            "/.well-known/casemate/ready/",
        ] {
            assert_eq!(ask(path, None).0, 404, "{path}");
        }
        let post = answer(&Method::POST, READY_PATH, None);
        assert_eq!(post.status(), 405);
        assert_eq!(post.headers()[ALLOW], "GET, HEAD");
    }
}
