//! Supervisor and gateway.

use serde::{Deserialize, Serialize};

use super::{Digest, Failure, FunctionKey, LayerReport, MAX_INLINE_BYTES, Message, WorkerId};

/// From the supervisor to the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGateway {
    /// Comes before `Start`, at most [`MAX_SOCKETS`] times: a listening socket that an earlier gateway has opened. Descriptor:
    /// the socket.
    Socket {
        /// Where `Start` names the socket's address: a position among its `listeners`, followed by its `health`.
        place: u32,
    },
    /// What to listen on. The gateway opens the sockets that did not come before, reads its certificate files, closes its
    /// sandbox, and answers with its sockets and `Ready`, or with `Failed`.
    Start(Start),
    /// These hosts now lead to this function, and no other host does. An empty list takes the function away.
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
        /// Requests at a time.
        concurrency: u32,
        /// Wall-clock time of one request until its response ends, milliseconds: the worker's own limit, which the gateway
        /// holds it to.
        wall_time_ms: u32,
    },
    /// Send this worker nothing new; say `Drained` when its last stream has ended.
    Retire {
        /// The worker.
        worker: WorkerId,
    },
    /// The worker is about to end. Requests on its channel above `begun` were not begun by it: they go to another worker,
    /// and so do all that come. `Gone` follows.
    Dying {
        /// The worker.
        worker: WorkerId,
        /// The last stream that it has begun.
        begun: u32,
    },
    /// The worker's process has ended. What its callers are told depends on `failure`.
    Gone {
        /// The worker.
        worker: WorkerId,
        /// Why.
        failure: Failure,
    },
    /// No worker can be had for this function now; callers that wait are told so.
    Refuse {
        /// The function.
        key: FunctionKey,
        /// Why.
        failure: Failure,
        /// What the caller may read.
        message: String,
    },
    /// Whether the node should get callers. Sent after all routes when the gateway has started, and on each change.
    Standing(Standing),
    /// Look at the certificate files now, changed or not.
    Reload,
    /// Ask callers to go, then stop accepting, finish what is under way, say `Stopped` and exit 0.
    Drain {
        /// How long at most, milliseconds.
        grace_ms: u32,
    },
    /// First message of a supervisor that was started in place of one that has crashed: hand the sockets over and say `Ready`
    /// once more.
    Resume,
}

impl Message for ToGateway {
    /// `Start`, with all that a configuration file of 256 KiB can name; a route has at most 64 hosts and 32 paths of 1 KiB.
    const MAX_BYTES: usize = 1024 * 1024;
}

impl Message for FromGateway {
    /// Records, of which no more are said at a time, or the addresses of hundreds of listeners; never a memfd.
    const MAX_BYTES: usize = MAX_INLINE_BYTES;
}

/// What the gateway listens on and its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Sockets to open.
    pub listeners: Vec<Listener>,
    /// `address:port` of sockets on which only the node's health is answered.
    pub health: Vec<String>,
    /// Callers stay in the sockets' queues until all routes are known, milliseconds at most: a gateway in the place of
    /// another one answers none of them with a refusal that a moment later would be an answer.
    pub load_wait_ms: u32,
    /// PEM files; the names in each certificate choose it by SNI, the first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// Connections at a time, over all listeners.
    pub max_connections: u32,
    /// Until the whole request head has come, milliseconds.
    pub header_timeout_ms: u32,
    /// Between two bytes of a body in either direction, milliseconds.
    pub idle_timeout_ms: u32,
    /// How connections and requests are divided.
    pub shares: Shares,
}

/// Sockets that a gateway listens on at most. Each is held by launch too, for the next gateway.
pub const MAX_SOCKETS: usize = 256;

/// Whether the node should get callers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// All plans of the vault are known: a host without a route then has no function, unless it is in `expected`.
    pub is_loaded: bool,
    /// Hosts of plans whose functions are not ready here, such as for want of their bundles; at most [`MAX_EXPECTED`].
    pub expected: Vec<String>,
    /// Whether a worker can be had: starting workers does not fail again and again, or there is one.
    pub can_start: bool,
}

/// Hosts in [`Standing`] at most: what fits into a message.
pub const MAX_EXPECTED: usize = 2000;

/// How much of the gateway one source network, and one tenant, may have.
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

/// Where requests for a function come from and which are let through.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The function.
    pub key: FunctionKey,
    /// The wanted release.
    pub release: Digest,
    /// Host names, lower case, no port.
    pub hosts: Vec<String>,
    /// What is checked before a worker is woken.
    pub perimeter: Perimeter,
}

/// Checks made before a worker is woken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Perimeter {
    /// Methods let through; empty means all of GET HEAD POST PUT PATCH DELETE OPTIONS.
    pub methods: Vec<String>,
    /// Path patterns let through (`/a`, `/a/*`); empty means all.
    pub paths: Vec<String>,
    /// Largest request body, bytes.
    pub max_body_bytes: u64,
}

/// From the gateway to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGateway {
    /// A socket that the gateway listens on: each comes before `Ready`. Descriptor: the socket.
    Socket {
        /// As in [`ToGateway::Socket`].
        place: u32,
    },
    /// Listening, walls closed.
    Ready {
        /// The addresses in the order of `Start::listeners`, then of `Start::health`, with real ports.
        addresses: Vec<String>,
        /// Layers of its sandbox.
        layers: Vec<LayerReport>,
    },
    /// Could not start; the gateway exits after this.
    Failed {
        /// What was wrong, where, and what would be right.
        message: String,
    },
    /// Requests wait for this function and no worker has room.
    Need {
        /// The function.
        key: FunctionKey,
        /// How many wait.
        waiting: u32,
    },
    /// This worker has had nothing to do for so long (sent every few seconds while so).
    Idle {
        /// The worker.
        worker: WorkerId,
        /// Milliseconds.
        idle_ms: u64,
    },
    /// This worker was given so many requests since it serves (sent about once a second while they become more).
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
    /// The gateway sends nothing more to this worker, although the worker's process has not been
    /// reported as ended. The supervisor ends the process: without the gateway nobody could reach
    /// it.
    Unusable {
        /// The worker.
        worker: WorkerId,
        /// What the gateway observed.
        fault: WorkerFault,
    },
    /// The certificates that are served: sent after `Ready` and whenever one has changed.
    Certificates(Vec<Certificate>),
    /// Access records, for the tenants' logs: many at a time, or each would wake the supervisor.
    Access(Vec<Access>),
    /// Drained; exiting.
    Stopped,
}

/// A certificate that the gateway serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The file of its chain.
    pub chain: String,
    /// When it expires, seconds since 1970; `None` where that cannot be read.
    pub expires: Option<u64>,
    /// Why the files are not what is served, where they are not: what is wrong with them.
    pub refused: Option<String>,
}

/// Certificates that are reported at most; those that expire first.
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
    /// Method.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// Status sent to the caller.
    pub status: u16,
    /// Class, when the gateway itself answered.
    pub failure: Option<Failure>,
    /// Until the head of the response was sent, microseconds.
    pub head_us: u32,
    /// Records of this function that were dropped before: they came faster than they are recorded.
    pub dropped: u32,
    /// Cookies of this function that were dropped, for they named a domain wider than its host; not told before.
    pub wide_cookies: u32,
}
