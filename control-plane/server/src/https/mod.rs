//! The HTTPS listener: the number of connections is limited, and slow or silent clients are
//! disconnected.

mod activity;
mod answer;
mod ask;
mod patient;
mod room;
mod router;
mod seat;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
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

use crate::config::ApiLimits;
use crate::plane::Plane;

use activity::{Activity, Watched};
use ask::Remote;
use patient::Patient;
use seat::Seats;

/// Evicted connections whose tasks have not ended yet. With more of them no new connection is
/// accepted until some have ended, so that the number of sockets stays limited.
const MAX_EVICTED: usize = 64;
/// Time limit for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time limit for a request's header, also on an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit until the first request, between two, and between two steps of an answer: more than
/// the longest silence of a log.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Time limit for the requests in progress when a connection is to close.
const GOODBYE: Duration = Duration::from_secs(2);
/// Time limit for a client to read the sent bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest header of a request, bytes.
const MAX_HEAD_BYTES: usize = 32 * 1024;
/// Concurrent streams of an HTTP/2 connection.
const MAX_STREAMS: u32 = 64;
/// Interval of the pings of an HTTP/2 connection.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Pause after a failed accept, which is most likely due to a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping`, then lets running requests end.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: rustls::ServerConfig,
    plane: Arc<Plane>,
    limits: ApiLimits,
    stopping: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let sockets = Arc::new(Semaphore::new(limits.all + MAX_EVICTED));
    let seats = Seats::new(&limits);
    let tracker = TaskTracker::new();
    let router = router::router(&plane, &stopping, &tracker);
    loop {
        let accepted = async {
            let permit = Arc::clone(&sockets).acquire_owned().await.ok()?;
            Some((permit, listener.accept().await))
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            () = stopping.cancelled() => None,
        };
        match accepted {
            None => break,
            Some((socket, Ok((stream, remote)))) => {
                // A refused connection is counted and logged by `take`.
                let Some(seat) = seats.take(remote.ip()) else {
                    continue;
                };
                let remote = Remote {
                    address: remote.ip(),
                    seat: Arc::new(seat),
                };
                let (acceptor, router, stopping) =
                    (acceptor.clone(), router.clone(), stopping.clone());
                tracker.spawn(connection(
                    socket, stream, remote, acceptor, router, stopping,
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

/// Serves one connection until it ends or its slot goes to another.
async fn connection(
    _socket: OwnedSemaphorePermit,
    stream: TcpStream,
    remote: Remote,
    acceptor: TlsAcceptor,
    router: Router,
    stopping: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let seat = Arc::clone(&remote.seat);
    let serving = async {
        let accepted = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
        if let Ok(Ok(stream)) = accepted {
            talk(stream, remote, router, IDLE_TIMEOUT, stopping).await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = seat.evicted().cancelled() => {}
    }
}

/// Serves HTTP until the client ends it, the connection is idle for `patience`, or `stopping`.
async fn talk<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    stream: S,
    remote: Remote,
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
        request.extensions_mut().insert(remote.clone());
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
                tracing::debug!(error, "a connection ended with an error");
            }
            return;
        }
        () = activity.idle(patience) => {}
        () = stopping.cancelled() => {}
    }
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        // An answer that is ready is sent, also to a client that was idle for longer than this.
        biased;
        _ = serving => {}
        () = activity.idle(GOODBYE) => {}
    }
}
