//! Listeners and connections.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use casemate_channel::fair;
use casemate_wire::control::FunctionKey;
use casemate_wire::control::gateway::{Access, Shares, Standing};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;

use crate::admission::{Admissions, Entry, Seat};
use crate::body::Body;
use crate::connection::{Connection, Patience, Verdict};
use crate::drain::{self, Drain};
use crate::exchange::{self, RequestIds};
use crate::fields::MAX_HEAD_BYTES;
use crate::health::Unready;
use crate::renew::Renewal;
use crate::route::Table;
use crate::tls::Certificates;
use crate::watched::Watched;
use crate::workers::{Function, Registry, now_ms};

/// Most streams at a time on an HTTP/2 connection.
const MAX_HTTP2_STREAMS: u32 = 128;
/// HTTP/2 streams that may be reset before the gateway has handled them (rapid reset); beyond, the
/// connection ends.
const MAX_HTTP2_RESETS: usize = 20;
/// HTTP/2 streams that the gateway may have to reset for the caller's errors; beyond, the
/// connection ends.
const MAX_HTTP2_ERRORS: usize = 64;
/// Unread bytes of request bodies on an HTTP/2 stream.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Unread bytes of request bodies on an HTTP/2 connection.
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of responses that may wait on an HTTP/2 stream for the caller to read.
const HTTP2_SEND_BYTES: usize = 64 * 1024;
/// Period of pings on an HTTP/2 connection, and the time limit of the answer: finds callers that
/// have vanished.
const HTTP2_PING: Duration = Duration::from_secs(30);
/// Shortest and longest period at which a connection is judged.
const JUDGE_PERIOD: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Time from asking an idle connection to close until it is cut.
const CLOSE_WAIT: Duration = Duration::from_secs(1);
/// Pause after the kernel refused an accept for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Access records that may wait for the supervisor. Beyond this, records of the function with the
/// most waiting records are dropped and counted, because logs must not slow callers down.
const MAX_RECORDS: usize = 4096;
/// Bytes of text that are sent at a time; the longest record is a sixth of this, and all must fit
/// into a packet.
const RECORDS_BYTES: usize = 24 * 1024;
/// Bytes of a record beside its path.
const RECORD_BYTES: usize = 128;

/// The state that all connections share.
#[derive(Debug)]
pub struct Gateway {
    /// Routes from hosts to functions.
    pub table: ArcSwap<Table<Arc<Function>>>,
    /// Whether the node should get callers, as the supervisor reports.
    pub standing: ArcSwap<Standing>,
    /// Functions and workers.
    pub registry: Arc<Registry>,
    /// The source of request ids.
    pub ids: RequestIds,
    /// Time limits for callers.
    pub patience: Patience,
    certificates: Option<Arc<Certificates>>,
    /// Renewal of the certificates.
    pub renewal: Option<Arc<Renewal>>,
    admissions: Arc<Admissions>,
    records: fair::Queue<FunctionKey, Access>,
    /// Whether all routes are known, or were known once.
    is_loaded: watch::Sender<bool>,
    drain: Drain,
}

impl Gateway {
    /// Starts without routes.
    pub fn new(
        ids: RequestIds,
        patience: Patience,
        max_connections: u32,
        shares: Shares,
        certificates: Option<Arc<Certificates>>,
        renewal: Option<Arc<Renewal>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            table: ArcSwap::default(),
            standing: ArcSwap::default(),
            registry: Arc::new(Registry::new(&shares)),
            ids,
            patience,
            certificates,
            renewal,
            admissions: Admissions::new(max_connections, shares),
            records: fair::Queue::new(MAX_RECORDS),
            is_loaded: watch::Sender::new(false),
            drain: Drain::default(),
        })
    }

    /// Takes the supervisor's report of the node's state.
    pub fn stand(&self, standing: Standing) {
        let is_loaded = standing.is_loaded;
        self.standing.store(Arc::new(standing));
        if is_loaded {
            self.is_loaded.send_replace(true);
        }
    }

    /// Serves a listener until the gateway accepts no more. Callers stay in the socket's queue
    /// until all routes are known, but no longer than `load_wait`; after that they get an answer
    /// that the node is loading.
    pub fn listen(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        load_wait: Duration,
    ) {
        let gateway = self.clone();
        self.drain.listens(async move {
            let mut is_loaded = gateway.is_loaded.subscribe();
            tokio::select! {
                () = gateway.drain.closes() => return,
                _ = tokio::time::timeout(load_wait, is_loaded.wait_for(|loaded| *loaded)) => {}
            }
            listen(gateway, listener, tls).await;
        });
    }

    /// Why the node should get no callers, if so.
    pub fn unready(&self) -> Option<Unready> {
        let standing = self.standing.load();
        if self.is_draining() {
            Some(Unready::Draining)
        } else if !standing.is_loaded {
            Some(Unready::Loading)
        } else {
            (!standing.can_start).then_some(Unready::NoWorker)
        }
    }

    /// Queues an access record for the supervisor. Records that are dropped instead are counted in
    /// the function's next record.
    pub fn record(&self, access: Access) {
        self.records.push(access.key.clone(), access);
    }

    /// Waits until there is a record to send.
    pub async fn has_records(&self) {
        self.records.filled().await;
    }

    /// Takes the next records to send, as many as fit into one message.
    pub fn next_records(&self) -> Option<Vec<Access>> {
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < RECORDS_BYTES
            && let Some(taken) = self.records.try_next()
        {
            let access = counted(taken);
            bytes += RECORD_BYTES + access.path.len() + access.method.len();
            records.push(access);
        }
        (!records.is_empty()).then_some(records)
    }

    /// Whether TLS was made for a host with another certificate than this one's (RFC 9110, section 15.5.20).
    pub fn is_misdirected(&self, connection: &Connection, host: &str) -> bool {
        let (Some(certificates), Some(name)) = (&self.certificates, &connection.server_name) else {
            return false;
        };
        name != host && certificates.place(name) != certificates.place(host)
    }

    /// Whether the gateway is about to end.
    pub fn is_draining(&self) -> bool {
        self.drain.has_begun()
    }

    /// Drains the gateway, see [`Drain`]; returns whether all connections ended within `grace`.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.drain.run(grace).await
    }
}

fn counted(taken: fair::Taken<Access>) -> Access {
    let mut access = taken.item;
    access.dropped = access.dropped.saturating_add(taken.lost);
    access
}

/// Serves a listener until the gateway accepts no more. A connection without a slot waits in a task
/// of its own, so that no network delays another one.
async fn listen(gateway: Arc<Gateway>, listener: TcpListener, tls: Option<TlsAcceptor>) {
    loop {
        tokio::select! {
            () = gateway.drain.closes() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => match gateway.admissions.ask(address.ip()) {
                    Ok(entry) => {
                        let tls = tls.clone();
                        let connecting = connect(gateway.clone(), stream, address, tls, entry);
                        gateway.drain.connects(connecting);
                    }
                    Err(error) => tracing::debug!(%error, "connection closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn connect(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    entry: Entry,
) {
    let seat = match entry.seat().await {
        Ok(seat) => seat,
        Err(error) => return tracing::debug!(%error, "connection closed"),
    };
    tokio::select! {
        biased;
        () = seat.evicted() => tracing::debug!("connection without a complete request head evicted for a new connection"),
        () = converse(gateway, stream, address, tls, &seat) => {}
    }
}

async fn converse(
    gateway: Arc<Gateway>,
    stream: TcpStream,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    seat: &Seat,
) {
    // Answers are written whole; a delay for more would only slow them down.
    let _ = stream.set_nodelay(true);
    let client = Bytes::from(address.ip().to_canonical().to_string());
    let connection = |tls, name| Connection::new(client, tls, name, Some(seat.head_notice()));
    let Some(tls) = tls else {
        return serve(gateway, stream, connection(false, None), seat).await;
    };
    match tokio::time::timeout(gateway.patience.header, tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let name = stream
                .get_ref()
                .1
                .server_name()
                .map(|name| name.trim_end_matches('.').to_ascii_lowercase());
            serve(gateway, stream, connection(true, name), seat).await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Answers the requests of one connection.
#[derive(Debug, Clone)]
struct Answers {
    gateway: Arc<Gateway>,
    connection: Arc<Connection>,
}

impl hyper::service::Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let Self {
            gateway,
            connection,
        } = self.clone();
        Box::pin(async move { Ok(exchange::answer(&gateway, &connection, request).await) })
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    gateway: Arc<Gateway>,
    stream: S,
    connection: Connection,
    seat: &Seat,
) {
    let connection = Arc::new(connection);
    let io = TokioIo::new(Watched::new(stream, connection.clone()));
    let builder = builder();
    let answers = Answers {
        gateway: gateway.clone(),
        connection: connection.clone(),
    };
    let mut serving = pin!(builder.serve_connection(io, answers));
    let (shortest, longest) = JUDGE_PERIOD;
    let period = (gateway.patience.header.min(gateway.patience.idle) / 4).clamp(shortest, longest);
    let mut judging = tokio::time::interval(period);
    judging.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut drains_since_ms = None;
    let mut is_asked_to_go = false;
    let mut closes_ms = None;
    loop {
        tokio::select! {
            biased;
            ended = serving.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error = &*error, "a caller's connection ended with an error");
                }
                return;
            }
            () = connection.cut.notified() => return,
            () = gateway.drain.begins(), if drains_since_ms.is_none() => {
                drains_since_ms = Some(now_ms());
                judging = tokio::time::interval(period.min(drain::LOOK_PERIOD));
                judging.set_missed_tick_behavior(MissedTickBehavior::Delay);
            }
            _ = judging.tick() => {
                let now_ms = now_ms();
                if closes_ms.is_some_and(|closes_ms| now_ms >= closes_ms) {
                    return;
                }
                let may_go = |since_ms| connection.may_go(now_ms, since_ms);
                if !is_asked_to_go && drains_since_ms.is_some_and(may_go) {
                    is_asked_to_go = true;
                    serving.as_mut().graceful_shutdown();
                }
                match connection.judge(now_ms, gateway.patience, seat.is_crowded()) {
                    Verdict::Stay => closes_ms = None,
                    Verdict::Cut => return,
                    Verdict::Close if closes_ms.is_none() => {
                        closes_ms = Some(now_ms + CLOSE_WAIT.as_millis() as u64);
                        serving.as_mut().graceful_shutdown();
                    }
                    Verdict::Close => {}
                }
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The connection's judge bounds slow heads: one timer a connection instead of one a request.
    // 100 fields is the parser's own limit.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_pending_accept_reset_streams(MAX_HTTP2_RESETS)
        .max_local_error_reset_streams(MAX_HTTP2_ERRORS)
        .max_header_list_size(MAX_HEAD_BYTES as u32)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(HTTP2_SEND_BYTES)
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares = Shares {
        connections_per_network: 1,
        network_prefix_v4: 24,
        network_prefix_v6: 56,
        requests: 1,
        requests_per_tenant: 1,
    };

    fn access(function: &str) -> Access {
        Access {
            key: FunctionKey {
                tenant: [1; 32],
                function: function.into(),
            },
            request: String::new(),
            method: "GET".into(),
            path: "/".into(),
            status: 200,
            failure: None,
            head_us: 1,
            dropped: 0,
            wide_cookies: 0,
        }
    }

    #[test]
    fn a_function_with_many_requests_does_not_cost_another_its_records() {
        let patience = Patience {
            header: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        };
        let gateway = Gateway::new(RequestIds::new(1, 0), patience, 1, SHARES, None, None);
        (0..3 * MAX_RECORDS).for_each(|_| gateway.record(access("flood")));
        (0..MAX_RECORDS / 4).for_each(|_| gateway.record(access("quiet")));
        (0..MAX_RECORDS).for_each(|_| gateway.record(access("flood")));
        let all: Vec<_> = std::iter::from_fn(|| gateway.next_records())
            .flatten()
            .collect();
        let of = |function| {
            let all = all
                .iter()
                .filter(move |access| access.key == self::access(function).key);
            (
                all.clone().count(),
                all.map(|access| access.dropped as usize).sum::<usize>(),
            )
        };
        assert_eq!(of("quiet"), (MAX_RECORDS / 4, 0));
        assert_eq!(
            of("flood"),
            (MAX_RECORDS * 3 / 4, 4 * MAX_RECORDS - MAX_RECORDS * 3 / 4)
        );
    }
}
