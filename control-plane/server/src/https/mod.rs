//! The HTTPS listener: bounded connections, clients that are slow or say nothing cut off.

mod activity;
mod answer;
mod ask;
mod patient;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::places::{Place, Places, network};
use crate::plane::Plane;

use activity::{Activity, Watched};
use ask::Remote;
use patient::Patient;

/// Connections at a time; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;
/// Connections at a time from one address; further ones are closed. Four addresses are needed to keep others waiting.
const MAX_FROM_ADDRESS: usize = MAX_CONNECTIONS / 4;
/// Until TLS is spoken.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Until a request's head is there, also on a connection that idles.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Until a first request, between two, and between two steps of an answer: more than the longest silence of a log.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// For the end of what is under way when a connection is to close.
const GOODBYE: Duration = Duration::from_secs(2);
/// How long a client may leave our bytes lying.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest head of a request, bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Streams of an HTTP/2 connection.
const MAX_STREAMS: u32 = 64;
/// Between two pings of an HTTP/2 connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// After an accept that failed, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping`, then lets running requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    plane: Arc<Plane>,
    stopping: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let places = Places::new(MAX_CONNECTIONS, MAX_FROM_ADDRESS);
    let tracker = TaskTracker::new();
    let router = ask::router(&plane, &stopping, &tracker);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stopping.cancelled() => None,
        };
        match accepted {
            None => break,
            Some((permit, Ok((stream, remote)))) => {
                let Some(place) = places.take(network(remote.ip())) else {
                    tracing::debug!(%remote, "too many connections from one address");
                    continue;
                };
                let (acceptor, router, stopping) =
                    (acceptor.clone(), router.clone(), stopping.clone());
                tracker.spawn(connection(
                    (permit, place),
                    (stream, remote.ip()),
                    acceptor,
                    router,
                    stopping,
                ));
            }
            Some((_, Err(error))) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tracker.close();
    tracker.wait().await;
}

async fn connection(
    _room: (OwnedSemaphorePermit, Place),
    (stream, remote): (TcpStream, IpAddr),
    acceptor: TlsAcceptor,
    router: Router,
    stopping: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await
    else {
        return;
    };
    talk(stream, remote, router, IDLE_TIMEOUT, stopping).await;
}

/// Speaks HTTP until the client ends it, there is nothing to say for `patience`, or `stopping`.
async fn talk<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    remote: IpAddr,
    router: Router,
    patience: Duration,
    stopping: CancellationToken,
) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .keep_alive_interval(PING_INTERVAL);
    let stream = TokioIo::new(Patient::new(stream, WRITE_TIMEOUT));
    let (activity, router) = (Activity::new(), TowerToHyperService::new(router));
    let service = service_fn(|request: Request<_>| {
        let (answering, activity) = (activity.answer(), Arc::clone(&activity));
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Remote(remote));
        let answer = router.call(request);
        async move {
            let response = answer.await?;
            drop(answering);
            Ok::<_, Infallible>(response.map(|body| Watched::new(body, activity)))
        }
    });
    let serving = builder.serve_connection(stream, service);
    tokio::pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended badly");
            }
            return;
        }
        () = activity.idle(patience) => {}
        () = stopping.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        // What can be said at once is said, also to who was idle for longer than this.
        biased;
        _ = serving => {}
        () = activity.idle(GOODBYE) => {}
    }
}
