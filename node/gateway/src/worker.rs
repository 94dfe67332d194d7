//! One worker, as the gateway sees it: its channel, and what it promises.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casemate_channel::Opener;
use casemate_wire::StreamId;
use casemate_wire::control::{Failure, WorkerId};
use rustix::net::Shutdown;
use tokio::sync::SetOnce;

/// A channel that closes is soon followed by the supervisor's reason. After this, the supervisor is
/// asked to end the process.
pub const REASON_WAIT: Duration = Duration::from_millis(200);
/// How long the callers of a worker whose channel has closed wait for the reason: on a machine
/// under load the kernel takes its time to end a process with much memory, and so does the
/// supervisor to hear of that.
const VERDICT_WAIT: Duration = Duration::from_secs(5);

/// Beyond the wall-clock limit of a request until its worker counts as stuck: on a machine under
/// load a worker that keeps to its limits may itself wait seconds for a processor.
const WALL_GRACE: Duration = Duration::from_secs(10);
/// A worker gets requests before it has loaded its function; the supervisor ends one that loads
/// longer than this.
const LOAD_WAIT: Duration = Duration::from_secs(30);

/// One worker process, as the gateway sees it.
#[derive(Debug)]
pub struct Worker {
    /// Which.
    pub id: WorkerId,
    /// Its channel.
    pub opener: Opener,
    /// The channel's socket once more, to end it for good when the process has ended.
    socket: OwnedFd,
    failure: SetOnce<Failure>,
    /// The last stream that the worker has begun, said as it ends.
    begun: SetOnce<StreamId>,
    wall: Duration,
    /// Whether a head of a response has come: then the worker has loaded.
    has_answered: AtomicBool,
    /// Whether it was given up for not answering.
    given_up: AtomicBool,
}

/// What the supervisor says of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Promise {
    /// Requests at a time.
    pub concurrency: u32,
    /// Within this time the worker ends each request by itself.
    pub wall: Duration,
}

impl Worker {
    /// With a channel, and its wall-clock limit for a request.
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

    /// The process has ended: its callers are told why, and its channel is shut.
    pub fn ended(&self, failure: Failure) {
        // The first reason stands.
        let _ = self.failure.set(failure);
        // Whoever else holds the other end open: for its callers it has ended.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }

    /// The worker is about to end, and has begun no stream above this one: those are over.
    pub fn dying(&self, begun: StreamId) {
        // The first word stands.
        if self.begun.set(begun).is_ok() {
            self.opener.refuse_above(begun);
        }
    }

    /// Gives it up; whether it was not given up before.
    pub fn is_given_up_now(&self) -> bool {
        !self.given_up.swap(true, Ordering::Relaxed)
    }

    /// Why it ended, once its channel is closed. `None`: it has not begun this stream.
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
    /// limit of its release; one that does not is stopped, stuck or taken over.
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
