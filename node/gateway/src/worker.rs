//! One worker, as the gateway sees it: its channel and its limits.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casemate_channel::Opener;
use casemate_wire::StreamId;
use casemate_wire::control::{Failure, WorkerId};
use rustix::net::Shutdown;
use tokio::sync::SetOnce;

/// Time within which the supervisor's reason usually follows the close of a channel. After it, the
/// gateway asks the supervisor to end the process.
pub const REASON_WAIT: Duration = Duration::from_millis(200);
/// How long the callers of a worker whose channel has closed wait for the reason. On a loaded
/// machine the kernel needs time to end a process with much memory, and the supervisor to learn of
/// it.
const VERDICT_WAIT: Duration = Duration::from_secs(5);

/// Time beyond the wall-clock limit of a request until its worker counts as stuck: on a loaded
/// machine a worker that keeps to its limits may itself wait seconds for a processor.
const WALL_GRACE: Duration = Duration::from_secs(10);
/// Additional time for the first request: a worker gets requests before it has loaded its function,
/// and the supervisor ends a worker that loads for longer than this.
const LOAD_WAIT: Duration = Duration::from_secs(30);

/// One worker process, as the gateway sees it.
#[derive(Debug)]
pub struct Worker {
    /// The worker's id.
    pub id: WorkerId,
    /// The channel to the worker.
    pub opener: Opener,
    /// The channel's socket once more, to shut it down when the process has ended.
    socket: OwnedFd,
    failure: SetOnce<Failure>,
    /// The last stream that the worker has begun, as it reported before its end.
    begun: SetOnce<StreamId>,
    wall: Duration,
    /// Whether the head of a response has come, which shows that the worker has loaded.
    has_answered: AtomicBool,
    /// Whether the worker was given up because it did not answer.
    given_up: AtomicBool,
}

/// The supervisor's description of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// Requests that the worker may have at a time.
    pub concurrency: u32,
    /// Time within which the worker ends each request by itself.
    pub wall: Duration,
}

impl Worker {
    /// Makes a worker with a channel and its wall-clock limit for a request.
    pub fn new(id: WorkerId, opener: Opener, socket: OwnedFd, wall: Duration) -> Self {
        Self {
            id,
            opener,
            socket,
            failure: SetOnce::new(),
            begun: SetOnce::new(),
            wall,
            has_answered: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }
    }

    /// The process has ended: its callers get the reason, and its channel is shut down.
    pub fn ended(&self, failure: Failure) {
        // The first reason counts.
        let _ = self.failure.set(failure);
        // Another process may hold the other end open, but for callers the worker has ended.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// The worker is about to end, and has begun no stream above this one: streams above it are
    /// over.
    pub fn dying(&self, begun: StreamId) {
        // The first message counts.
        if self.begun.set(begun).is_ok() {
            self.opener.refuse_above(begun);
        }
    }

    /// Gives the worker up; returns whether it was not given up before.
    pub fn is_given_up_now(&self) -> bool {
        !self.given_up.swap(true, Ordering::Relaxed)
    }

    /// Why the worker ended, once its channel is closed. `None`: it has not begun this stream.
    pub async fn verdict(&self, stream: StreamId) -> Option<Failure> {
        let not_begun = async {
            if *self.begun.wait().await >= stream {
                std::future::pending::<()>().await;
            }
        };
        let told = tokio::time::timeout(VERDICT_WAIT, async {
            tokio::select! {
                biased;
                () = not_begun => None,
                failure = self.failure.wait() => Some(*failure),
            }
        });
        told.await.unwrap_or(Some(Failure::WorkerLost))
    }

    /// How long the head of a response may take. A worker ends each request within the wall-clock
    /// limit of its release; a worker that does not is stopped, stuck or taken over.
    pub fn head_wait(&self) -> Duration {
        let load = if self.has_answered.load(Ordering::Relaxed) {
            Duration::ZERO
        } else {
            LOAD_WAIT
        };
        self.wall + WALL_GRACE + load
    }

    /// The head of a response has come.
    pub fn answered(&self) {
        if !self.has_answered.load(Ordering::Relaxed) {
            self.has_answered.store(true, Ordering::Relaxed);
        }
    }
}
