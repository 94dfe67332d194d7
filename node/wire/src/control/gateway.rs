//! Messages between supervisor and gateway.

use serde::{Deserialize, Serialize};

use super::{Digest, Failure, FunctionKey, LayerReport, MAX_INLINE_BYTES, Message, WorkerId};

/// From the supervisor to the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// Comes before `Start`, at most [`MAX_SOCKETS`] times: a listening socket that an earlier
    /// gateway has opened. Descriptor: the socket.
    Socket {
        /// The index of the socket's address in `Start`: among its `listeners`, followed by its
        /// `health`.
        place: u32,
    },
    /// The addresses to listen on. The gateway opens the sockets that were not passed before, reads
    /// its certificate files, closes its sandbox, and answers with its sockets and `Ready`, or with
    /// `Failed`.
    Start(Start),
    /// These hosts now lead to this function, and no other host does. An empty list removes the
    /// function.
    Route(Box<Route>),
    /// A worker serves this function from now on. Descriptor: the channel (the gateway opens streams). Requests may be
    /// sent before the worker has loaded. A channel of another release than the newest route's drains.
    Channel {
        /// The function.
        key: FunctionKey,
        /// The release that the worker runs.
        release: Digest,
        /// The worker.
        worker: WorkerId,
        /// Requests that the worker may have at a time.
        concurrency: u32,
        /// Wall-clock time of one request until its response ends, milliseconds: the worker's own
        /// limit, which the gateway enforces.
        wall_time_ms: u32,
    },
    /// Send this worker no new request; report `Drained` when its last stream has ended.
    Retire {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker is about to end. It has not begun the requests on its channel above `begun`: they
    /// go to another worker, and so do all new ones. `Gone` follows.
    Dying {
        /// The worker.
        worker: WorkerId,
        /// The last stream that it has begun.
        begun: u32,
    },
    /// The worker's process has ended. Its callers' answer depends on `failure`.
    Gone {
        /// The worker.
        worker: WorkerId,
        /// The reason.
        failure: Failure,
    },
    /// No worker is available for this function now; waiting callers get this refusal.
    Refuse {
        /// The function.
        key: FunctionKey,
        /// The reason.
        failure: Failure,
        /// The message for the callers.
        message: String,
    },
    /// Whether the node should get callers. Sent after all routes when the gateway has started, and on each change.
    Standing(Standing),
    /// Check the certificate files now, changed or not.
    Reload,
    /// Ask callers to leave, then stop accepting, finish requests under way, report `Stopped` and
    /// exit 0.
    Drain {
        /// Longest time, milliseconds.
        grace_ms: u32,
    },
    /// First message of a supervisor that replaces one that has crashed: send the sockets and
    /// `Ready` once more.
    Resume,
}

impl Message for ToGateway {
    /// `Start`, with all that a configuration file of 256 KiB can name; a route has at most 64
    /// hosts and 32 paths of 1 KiB.
    const MAX_BYTES: usize = 1024 * 1024;
}

impl Message for FromGateway {
    /// Records, which are sent in bounded groups, or the addresses of hundreds of listeners; never
    /// a memfd.
    const MAX_BYTES: usize = MAX_INLINE_BYTES;
}

/// The gateway's listening addresses and its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Sockets to open.
    pub listeners: Vec<Listener>,
    /// `address:port` of sockets on which only health probes are answered.
    pub health: Vec<String>,
    /// Longest time, milliseconds, for which callers stay in the sockets' queues until all routes
    /// are known: a gateway that replaces another one should not refuse requests that it could
    /// answer a moment later.
    pub load_wait_ms: u32,
    /// PEM files; SNI selects a certificate by its names, and the first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// Connections at a time, over all listeners.
    pub max_connections: u32,
    /// Time until the whole request head has come, milliseconds.
    pub header_timeout_ms: u32,
    /// Longest pause between two bytes of a body in either direction, milliseconds.
    pub idle_timeout_ms: u32,
    /// How connections and requests are divided.
    pub shares: Shares,
}

/// Most sockets that a gateway listens on. Launch holds each of them too, for the next gateway.
pub const MAX_SOCKETS: usize = 256;

/// Whether the node should get callers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// All plans of the vault are known: a host without a route then has no function, unless it is in `expected`.
    pub is_loaded: bool,
    /// Hosts of plans whose functions are not ready here, such as for lack of their bundles; at
    /// most [`MAX_EXPECTED`].
    pub expected: Vec<String>,
    /// Whether a worker is available: workers can be started, or one runs.
    pub can_start: bool,
}

/// Most hosts in [`Standing`], so that it fits into a message.
pub const MAX_EXPECTED: usize = 2000;

/// The shares of one source network, and of one tenant, in the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shares {
    /// Connections at a time from one source network.
    pub connections_per_network: u32,
    /// Bits of an IPv4 address that name its network.
    pub network_prefix_v4: u8,
    /// Bits of an IPv6 address that name its network.
    pub network_prefix_v6: u8,
    /// Requests in flight at a time, in all.
    pub requests: u32,
    /// Requests in flight at a time for the functions of one tenant.
    pub requests_per_tenant: u32,
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// `address:port`; port 0 asks the kernel for one.
    pub address: String,
    /// Whether it speaks TLS.
    pub tls: bool,
}

/// A certificate chain and its key, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFiles {
    /// Path of the chain.
    pub chain: String,
    /// Path of the private key.
    pub key: String,
}

/// The hosts that lead to a function, and its perimeter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The function.
    pub key: FunctionKey,
    /// The wanted release.
    pub release: Digest,
    /// Host names, lower case, no port.
    pub hosts: Vec<String>,
    /// The checks before a worker is woken.
    pub perimeter: Perimeter,
}

/// Checks made before a worker is woken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Perimeter {
    /// Permitted methods; an empty list means GET HEAD POST PUT PATCH DELETE OPTIONS.
    pub methods: Vec<String>,
    /// Permitted path patterns (`/a`, `/a/*`); an empty list means all.
    pub paths: Vec<String>,
    /// Largest request body, bytes.
    pub max_body_bytes: u64,
}

/// From the gateway to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGateway {
    /// A socket that the gateway listens on; all of them come before `Ready`. Descriptor: the
    /// socket.
    Socket {
        /// As in [`ToGateway::Socket`].
        place: u32,
    },
    /// The gateway listens, and its sandbox is closed.
    Ready {
        /// The addresses in the order of `Start::listeners`, then of `Start::health`, with real ports.
        addresses: Vec<String>,
        /// Layers of its sandbox.
        layers: Vec<LayerReport>,
    },
    /// The gateway could not start; it exits after this.
    Failed {
        /// The fault, its place, and the remedy.
        message: String,
    },
    /// Requests wait for this function, and no worker has a free slot.
    Need {
        /// The function.
        key: FunctionKey,
        /// Number of waiting requests.
        waiting: u32,
    },
    /// Reports the time for which a worker has been idle; sent every few seconds while it is.
    Idle {
        /// The worker.
        worker: WorkerId,
        /// Milliseconds.
        idle_ms: u64,
    },
    /// Number of requests that this worker has got so far (sent about once a second while it
    /// rises).
    Given {
        /// The worker.
        worker: WorkerId,
        /// Requests.
        requests: u64,
    },
    /// The last stream of a retired worker has ended.
    Drained {
        /// The worker.
        worker: WorkerId,
    },
    /// The gateway sends no more requests to this worker, although the worker's process has not
    /// been reported as ended. The supervisor ends the process, because without the gateway no
    /// caller can reach it.
    Unusable {
        /// The worker.
        worker: WorkerId,
        /// What the gateway observed.
        fault: WorkerFault,
    },
    /// The served certificates: sent after `Ready` and whenever one has changed.
    Certificates(Vec<Certificate>),
    /// Access records, for the tenants' logs: in groups, because each message wakes the supervisor.
    Access(Vec<Access>),
    /// Drained; the gateway exits.
    Stopped,
}

/// A certificate that the gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The file of its chain.
    pub chain: String,
    /// When it expires, seconds since 1970; `None` where that cannot be read.
    pub expires: Option<u64>,
    /// The fault in the files, if they are not what is served.
    pub refused: Option<String>,
}

/// Most certificates in a report; those that expire first.
pub const MAX_CERTIFICATES: usize = 16;
/// Longest text in such a report, bytes.
pub const MAX_CERTIFICATE_TEXT_BYTES: usize = 400;

/// Why the gateway has given a worker up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerFault {
    /// The worker closed its channel, or broke the channel's protocol.
    ChannelClosed,
    /// The worker did not answer a request within the request's wall-clock limit and a grace time.
    NotAnswering,
}

/// One answered request, without query, headers or body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The function.
    pub key: FunctionKey,
    /// The `:request` field given to the worker.
    pub request: String,
    /// Method of the request.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Status sent to the caller.
    pub status: u16,
    /// The failure, when the gateway itself answered.
    pub failure: Option<Failure>,
    /// Time until the head of the response was sent, microseconds.
    pub head_us: u32,
    /// Records of this function that were dropped before, because they came faster than the budget
    /// allows.
    pub dropped: u32,
    /// Cookies of this function that were dropped because their domain was wider than its host, and
    /// not reported before.
    pub wide_cookies: u32,
}
