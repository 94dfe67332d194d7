//! Messages between supervisor and worker.

use serde::{Deserialize, Serialize};

use super::{Failure, LayerReport, Limits, MAX_INLINE_BYTES, Message};

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// Load this function and serve it. Sent once. Descriptors: the bundle (a sealed memfd with a
    /// tar archive), the channel to the gateway (the worker accepts streams), the channel to the
    /// vault (the worker opens streams).
    Load(Box<Load>),
    /// The named program was restarted; this channel replaces the one to its predecessor.
    /// Descriptor: the channel. Open streams of the earlier channel end with it; the worker is
    /// otherwise not affected.
    Channel(Peer),
    /// Finish requests under way within the grace time, accept none, then exit 0.
    Stop {
        /// Time, in milliseconds, before the supervisor kills the worker.
        grace_ms: u32,
    },
}

impl Message for ToWorker {
    /// A release has at most 32 KiB of variables and 128 bindings of less than 400 bytes.
    const MAX_BYTES: usize = 128 * 1024;
}

impl Message for FromWorker {
    /// Room for a console line of 16 KiB, or for an exception of that length, and a margin. A
    /// message never takes a memfd, so that nobody reads a memfd of a worker.
    const MAX_BYTES: usize = MAX_INLINE_BYTES;
}

/// The program at the far end of one of a worker's two data channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Opens streams: the worker accepts requests on this channel.
    Gateway,
    /// Accepts streams: the worker makes outgoing calls on this channel.
    Vault,
}

/// The function that a spare worker loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Function name, for stack traces and logs.
    pub function: String,
    /// Name of the entry module inside the bundle, such as `main.js`.
    pub entry: String,
    /// The release's limits.
    pub limits: Limits,
    /// Plain variables of `env`, at most 32 KiB in all.
    pub vars: Vec<(String, String)>,
    /// Capabilities of `env`: each becomes an object with `fetch`.
    pub bindings: Vec<Binding>,
    /// Whether `eval` and `new Function` work.
    pub dynamic_code: bool,
}

/// A credential slot as the function sees it: a name, never a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Property of `env`.
    pub name: String,
    /// Base of relative URLs given to `env.NAME.fetch`, such as `https://api.example.com`.
    pub origin: String,
}

/// From a worker to the supervisor. Hostile: the worker may have been taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Started, with the sandbox closed; the worker is now a spare.
    Ready {
        /// The layers in force, as the worker sees them.
        layers: Vec<LayerReport>,
    },
    /// The function's modules are evaluated, and the worker takes requests.
    Loaded {
        /// Time since `Load` was read, microseconds.
        load_us: u32,
    },
    /// The function cannot be loaded; the worker exits after this.
    LoadFailed {
        /// The message and stack for the tenant.
        message: String,
    },
    /// A line of the function's console.
    Log(Log),
    /// Requests have ended. Successful ones wait a few milliseconds for others, because each
    /// message wakes the supervisor.
    Outcomes(Vec<Outcome>),
    /// The worker is about to exit for this reason.
    Fatal {
        /// The class of the failure.
        failure: Failure,
        /// The message for the tenant.
        message: String,
        /// The last stream of the gateway's channel that the worker has begun, little-endian. The
        /// length is fixed, so that a worker without memory can still write it.
        begun: [u8; 4],
    },
}

/// Severity of a console line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// `console.debug`
    Debug,
    /// `console.log`, `console.info`
    Info,
    /// `console.warn`
    Warn,
    /// `console.error`, and uncaught exceptions
    Error,
}

/// A line of the function's console, at most 16 KiB; a longer one is cut and marked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The request of the line, if any: the `:request` field of its head.
    pub request: Option<String>,
    /// Severity.
    pub level: LogLevel,
    /// The text.
    pub message: String,
    /// Lines dropped before this one because the function logged faster than its budget.
    pub dropped: u32,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The `:request` field of its head.
    pub request: String,
    /// `None` for success.
    pub failure: Option<Failure>,
    /// Message and stack of the exception, for the tenant's log; empty for success.
    pub message: String,
    /// CPU time, microseconds.
    pub cpu_us: u32,
    /// Wall-clock time, microseconds.
    pub wall_us: u32,
    /// Outgoing calls.
    pub subrequests: u32,
}
