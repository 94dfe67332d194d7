//! The real gateway as a child; the test plays supervisor, workers and callers.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(unreachable_pub, reason = "shared by several test programs")]
#![allow(dead_code, reason = "each test program uses its own part")]

use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use casemate_channel::{Acceptor, Control, Incoming};
use casemate_wire::control::gateway::{
    Access, FromGateway, Listener, Perimeter, Route, Shares, Standing, Start, ToGateway,
};
use casemate_wire::control::{Digest, Failure, FunctionKey, WorkerId};
use casemate_wire::{Fields, ResponseHead};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Bound for waits: no step of these tests takes nearly so long.
pub const SOON: Duration = Duration::from_secs(20);
pub const RELEASE: Digest = [7; 32];
/// Wall-time limit of workers whose requests end in time.
pub const WALL_TIME_MS: u32 = 600_000;

pub struct Node {
    pub child: Child,
    pub control: Control<ToGateway, FromGateway>,
    /// The control channel's socket, for bytes that are not a message.
    pub socket: OwnedFd,
    pub addresses: Vec<String>,
    /// The gateway's listening sockets, as launch holds them.
    pub sockets: Vec<OwnedFd>,
    /// Access records that arrived while waiting for another message.
    pub records: Vec<Access>,
    /// Other messages that arrived meanwhile.
    pub seen: VecDeque<FromGateway>,
    /// Number of calls of `settle`.
    settled: u64,
}

pub fn start() -> Start {
    Start {
        listeners: vec![Listener {
            address: "127.0.0.1:0".into(),
            tls: false,
        }],
        health: Vec::new(),
        load_wait_ms: 0,
        certificates: Vec::new(),
        max_connections: 100,
        header_timeout_ms: 10_000,
        idle_timeout_ms: 10_000,
        shares: Shares {
            connections_per_network: 10_000,
            network_prefix_v4: 24,
            network_prefix_v6: 56,
            requests: 8192,
            requests_per_tenant: 2048,
        },
    }
}

pub fn key(function: &str) -> FunctionKey {
    FunctionKey {
        tenant: [1; 32],
        function: function.into(),
    }
}

pub fn perimeter() -> Perimeter {
    Perimeter {
        methods: vec![],
        paths: vec![],
        max_body_bytes: 8 << 20,
    }
}

pub fn route(function: &str, hosts: &[&str], perimeter: Perimeter) -> ToGateway {
    let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
    ToGateway::Route(Box::new(Route {
        key: key(function),
        release: RELEASE,
        hosts,
        perimeter,
    }))
}

/// Starts the program and sends `Start`. The returned descriptor is the control channel's socket,
/// on which a test can send bytes that are not a message.
pub async fn spawn(start: Start) -> (Child, Control<ToGateway, FromGateway>, OwnedFd) {
    spawn_with(start, &[]).await
}

/// Like [`spawn`], with the sockets of an earlier gateway.
async fn spawn_with(
    start: Start,
    sockets: &[OwnedFd],
) -> (Child, Control<ToGateway, FromGateway>, OwnedFd) {
    let (ours, theirs) = casemate_channel::control::pair().unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_casemate-gateway"))
        .env(
            "CASEMATE_LOG",
            std::env::var("CASEMATE_LOG").unwrap_or_else(|_| "warn".into()),
        )
        .stdin(Stdio::from(theirs))
        .spawn()
        .unwrap();
    let socket = ours.try_clone().unwrap();
    let control = Control::new(ours).unwrap();
    for (place, given) in (0..).zip(sockets) {
        let message = ToGateway::Socket { place };
        control.send(&message, &[given.as_fd()]).await.unwrap();
    }
    control.send(&ToGateway::Start(start), &[]).await.unwrap();
    (child, control, socket)
}

impl Node {
    pub async fn start(start: Start) -> Self {
        let node = Self::start_unloaded(start, &[]).await;
        node.stand(true, &[], true).await;
        node
    }

    /// Starts with the sockets of an earlier gateway, and before all routes are known.
    pub async fn start_unloaded(start: Start, given: &[OwnedFd]) -> Self {
        let (child, control, socket) = spawn_with(start, given).await;
        let mut sockets = Vec::new();
        let (addresses, layers) = loop {
            let received = timeout(SOON, control.recv()).await.unwrap().unwrap();
            match received.unwrap() {
                (FromGateway::Socket { place }, fds) => {
                    assert_eq!(place as usize, sockets.len());
                    sockets.extend(fds);
                }
                (FromGateway::Ready { addresses, layers }, _) => break (addresses, layers),
                (other, _) => panic!("{other:?}"),
            }
        };
        assert_eq!(sockets.len(), addresses.len());
        assert!(
            layers
                .iter()
                .any(|layer| layer.layer == "seccomp" && layer.in_force),
            "{layers:?}"
        );
        Self {
            child,
            control,
            socket,
            addresses,
            sockets,
            records: Vec::new(),
            seen: VecDeque::new(),
            settled: 0,
        }
    }

    /// Reports the node's state, as a supervisor that has sent all routes.
    pub async fn stand(&self, is_loaded: bool, expected: &[&str], can_start: bool) {
        let expected = expected.iter().map(|host| (*host).to_owned()).collect();
        self.say(ToGateway::Standing(Standing {
            is_loaded,
            expected,
            can_start,
        }))
        .await;
    }

    /// Starts with a route from `a.test`.
    pub async fn with_route() -> Self {
        Self::with_start(start()).await
    }

    /// Like [`Self::with_route`], with this `Start`.
    pub async fn with_start(start: Start) -> Self {
        let mut node = Self::start(start).await;
        node.say(route("f", &["a.test"], perimeter())).await;
        node.settle().await;
        node
    }

    /// Waits until all messages so far are carried out: messages are handled in order, and this one
    /// is answered.
    pub async fn settle(&mut self) {
        // A worker's id is never reused: its channel may be seen to close after `Gone`.
        self.settled += 1;
        let last = WorkerId(u64::MAX - self.settled);
        let _acceptor = self.worker("nobody", last.0, 1).await;
        self.say(ToGateway::Retire { worker: last }).await;
        self.hear(|message| (*message == FromGateway::Drained { worker: last }).then_some(()))
            .await;
        self.say(ToGateway::Gone {
            worker: last,
            failure: Failure::WorkerLost,
        })
        .await;
    }

    /// Starts with a route from `a.test` and a worker that answers with this handler.
    pub async fn with_worker<F: Future<Output = ()> + Send + 'static>(
        handle: impl Fn(Incoming) -> F + Send + 'static,
    ) -> Self {
        let node = Self::with_route().await;
        tokio::spawn(work(node.worker("f", 1, 64).await, handle));
        node
    }

    pub async fn say(&self, message: ToGateway) {
        self.control.send(&message, &[]).await.unwrap();
    }

    pub async fn worker(&self, function: &str, id: u64, concurrency: u32) -> Acceptor {
        self.worker_and_socket(function, id, concurrency).await.0
    }

    /// Adds a worker; returns the channel's socket too, for an abrupt end.
    pub async fn worker_and_socket(
        &self,
        function: &str,
        id: u64,
        concurrency: u32,
    ) -> (Acceptor, OwnedFd) {
        let (ours, theirs) = casemate_channel::pair().unwrap();
        let message = ToGateway::Channel {
            key: key(function),
            release: RELEASE,
            worker: WorkerId(id),
            concurrency,
            wall_time_ms: WALL_TIME_MS,
        };
        self.control
            .send(&message, &[theirs.as_fd()])
            .await
            .unwrap();
        let socket = ours.try_clone().unwrap();
        (casemate_channel::acceptor(ours).unwrap(), socket)
    }

    /// Waits for the next message that `wanted` accepts; other messages are kept.
    pub async fn hear<T>(&mut self, mut wanted: impl FnMut(&FromGateway) -> Option<T>) -> T {
        if let Some(at) = self
            .seen
            .iter()
            .position(|message| wanted(message).is_some())
        {
            return wanted(&self.seen.remove(at).unwrap()).unwrap();
        }
        loop {
            let message = timeout(SOON, self.control.recv())
                .await
                .expect("a message in time")
                .unwrap()
                .unwrap()
                .0;
            if let Some(found) = wanted(&message) {
                return found;
            }
            match message {
                FromGateway::Access(records) => self.records.extend(records),
                other => self.seen.push_back(other),
            }
        }
    }

    /// The next access record.
    pub async fn record(&mut self) -> Access {
        if self.records.is_empty() {
            let heard = self.hear(|message| match message {
                FromGateway::Access(records) => Some(records.clone()),
                _ => None,
            });
            self.records = heard.await;
        }
        self.records.remove(0)
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.addresses[0]).await.unwrap()
    }

    /// A caller that has sent two bytes of a body of five, and its request as the worker receives
    /// it.
    pub async fn half_a_request(&self, worker: &mut Acceptor) -> (TcpStream, Incoming) {
        let mut caller = self.connect().await;
        let sent =
            caller.write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nab");
        sent.await.unwrap();
        let incoming = timeout(SOON, worker.accept()).await.unwrap();
        (caller, incoming.unwrap())
    }

    /// Sends these bytes on a new connection; returns everything until the gateway closes it.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        // The gateway may close before it has read everything; only its answer matters.
        let _ = stream.write_all(bytes.as_ref()).await;
        read_all(&mut stream).await
    }

    /// Sends a request without a body, as the only one on its connection.
    pub async fn get(&self, host: &str, path: &str) -> String {
        self.raw(format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
        .await
    }

    pub async fn exit(&mut self) -> ExitStatus {
        for _ in 0..2000 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the gateway did not exit");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until the end; bytes before a reset count too.
pub async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut bytes))
        .await
        .expect("the gateway closes in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until the text holds `end`.
pub async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut piece = [0; 4096];
    while !text.contains(end) {
        let count = timeout(SOON, stream.read(&mut piece))
            .await
            .expect("an answer in time")
            .unwrap();
        assert!(count > 0, "closed before {end:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    text
}

/// Serves a channel, each request in a task of its own.
pub async fn work<F: Future<Output = ()> + Send + 'static>(
    mut acceptor: Acceptor,
    handle: impl Fn(Incoming) -> F,
) {
    while let Some(incoming) = acceptor.accept().await {
        tokio::spawn(handle(incoming));
    }
}

pub fn ok(fields: &[(&str, &str)]) -> ResponseHead {
    status(200, fields)
}

pub fn status(status: u16, fields: &[(&str, &str)]) -> ResponseHead {
    let fields = fields
        .iter()
        .map(|(name, value)| (*name, Bytes::copy_from_slice(value.as_bytes())));
    ResponseHead {
        status,
        fields: fields.collect::<Fields>(),
    }
}

/// Answers with a description of the request: method, target, and the fields, one a line.
pub async fn describe(incoming: Incoming) {
    let head = &incoming.head;
    let mut text = format!("{} {}\n", head.method, head.target);
    for (name, value) in head.fields.iter() {
        text.push_str(&format!("{name}={}\n", String::from_utf8_lossy(value)));
    }
    let mut body = incoming
        .reply
        .send(&ok(&[("content-type", "text/plain")]), false);
    let _ = body.send(text.into()).await;
    body.finish();
}

/// Sends the body back as it comes, with its trailers.
pub async fn echo(mut incoming: Incoming) {
    let mut out = incoming.reply.send(&ok(&[]), false);
    while let Some(piece) = incoming.body.next().await {
        let Ok(piece) = piece else { return };
        if out.send(piece).await.is_err() {
            return;
        }
    }
    out.finish_with(&incoming.body.trailers().cloned().unwrap_or_default());
}

/// The client preface of HTTP/2.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A HEADERS frame for `GET` of `a.test`; HPACK with static names and literal values.
pub fn headers(stream: u32, path: &str, end_headers: bool) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x01, 6];
    block.extend_from_slice(b"a.test");
    block.extend_from_slice(&[0x04, path.len() as u8]);
    block.extend_from_slice(path.as_bytes());
    frame(1, if end_headers { 5 } else { 1 }, stream, &block)
}

/// An HTTP/2 client.
pub async fn http2<B>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::client::conn::http2::SendRequest<B>
where
    B: http_body::Body<Error: std::error::Error + Send + Sync, Data: Send> + Unpin + Send + 'static,
{
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(connection);
    sender
}

/// A TLS client that trusts this certificate and speaks HTTP/2.
pub fn http2_connector(trusted: &CertificateDer<'static>) -> tokio_rustls::TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    tokio_rustls::TlsConnector::from(Arc::new(config))
}
