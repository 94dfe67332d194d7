//! The serving loop: delivers what arrives as turns of the function, and advances the operations
//! that the function has started.

use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use casemate_channel::{Acceptor, Incoming, acceptor, opener};
use casemate_wire::control::Failure;
use casemate_wire::control::worker::{Peer, ToWorker};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use crate::engine::ops::RequestId;
use crate::engine::{self, Engine, Event, Turn};
use crate::spare::Order;
use crate::state::Worker;

/// Rounds after which the platform's own asynchrony is polled although there are requests, so that
/// neither starves.
const ROUNDS_PER_POLL: u32 = 32;

/// Rounds after which the channels are served, so that answers do not wait for each other.
const ROUNDS_PER_WRITE: u32 = 8;

/// How long V8's delayed tasks, which free memory, are run once the worker is idle.
const SETTLE: Duration = Duration::from_secs(20);
/// Period at which they are run during that time.
const SETTLE_EVERY: Duration = Duration::from_secs(1);

/// The shortest wait for the pool's thread before its account is settled again.
const POOL_SETTLE_MIN: Duration = Duration::from_millis(1);

/// Why serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The supervisor ordered it, or has ended, and no request is under way.
    Stopped,
    /// The function exceeded a limit, and the isolate must not be entered again.
    Exceeded(Failure),
}

/// A function that is served.
pub(crate) struct Server {
    engine: Engine,
    worker: Rc<Worker>,
    /// The channel to the gateway; `None` after a gateway has ended, until the supervisor sends a
    /// channel to its successor.
    acceptor: Option<Acceptor>,
    inbox: mpsc::Receiver<Order>,
    sleep: Pin<Box<Sleep>>,
    /// The end of the sleep, which may be too early but never too late.
    sleeps_until: Instant,
    rounds: u32,
    /// The time of the last activity.
    active: Instant,
    /// No more requests are accepted; those under way are given up at this time.
    stopping: Option<Instant>,
}

/// The reason why a wait ended.
enum Wake {
    Incoming(Option<Incoming>),
    Control(Option<Order>),
    Time,
    Progress,
    /// The request to blame, if there is one, and the limit that it exceeded.
    Stopped(Option<RequestId>, Failure),
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("under_way", &self.worker.under_way())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Serves the requests on `acceptor` until `inbox` brings `Stop`.
    pub(crate) fn new(
        engine: Engine,
        worker: Rc<Worker>,
        acceptor: Acceptor,
        inbox: mpsc::Receiver<Order>,
    ) -> Self {
        let now = Instant::now();
        worker.serving.set(true);
        // CPU time of loading counts against its own limit.
        engine::pool::settle(|_, _| (), |request| worker.cpu_left(request));
        Self {
            engine,
            worker,
            acceptor: Some(acceptor),
            inbox,
            sleep: Box::pin(tokio::time::sleep(Duration::ZERO)),
            sleeps_until: now,
            rounds: 0,
            active: now,
            stopping: None,
        }
    }

    /// Runs until the end. Returns the channel to the gateway, on which the last answers may still
    /// have to be written.
    pub(crate) async fn run(mut self) -> (End, Option<Acceptor>) {
        let end = self.serve().await;
        (end, self.acceptor)
    }

    async fn serve(&mut self) -> End {
        loop {
            let wake = std::future::poll_fn(|context| self.poll_wake(context)).await;
            let now = Instant::now();
            self.worker.set_now(now);
            match wake {
                Wake::Stopped(request, failure) => return self.exceeded(request, failure),
                Wake::Incoming(Some(incoming)) if self.stopping.is_none() => {
                    engine::note_begun(incoming.id);
                    self.worker.accept(incoming);
                }
                Wake::Incoming(Some(incoming)) => incoming.reply.refuse(),
                // The gateway has ended, and its requests with it. The supervisor will send a
                // channel to the next gateway.
                Wake::Incoming(None) => self.acceptor = None,
                Wake::Control(None) => self.stop(now),
                Wake::Control(Some((message, fds))) => self.obey(message, fds, now),
                Wake::Time => self.worker.time_passed(),
                Wake::Progress => {}
            }
            self.active = now;
            if let Err(end) = self.turns() {
                return end;
            }
            if self.rounds.is_multiple_of(ROUNDS_PER_WRITE) {
                tokio::task::yield_now().await;
            }
            if self
                .stopping
                .is_some_and(|at| self.worker.under_way() == 0 || at <= now)
            {
                return End::Stopped;
            }
        }
    }

    /// Carries out a message of the supervisor.
    fn obey(&mut self, message: ToWorker, fds: Vec<OwnedFd>, now: Instant) {
        match message {
            ToWorker::Stop { grace_ms } => {
                if let Some(acceptor) = &self.acceptor {
                    acceptor.go_away();
                }
                self.stop(now + Duration::from_millis(grace_ms.into()));
            }
            ToWorker::Channel(peer) => {
                if let Err(error) = self.replace_channel(peer, fds) {
                    tracing::error!(?peer, %error, "a new channel is unusable; the worker ends");
                    self.stop(now);
                }
            }
            ToWorker::Load(_) => {
                tracing::warn!("a worker loads once: second load ignored");
            }
        }
    }

    /// Replaces the channel to a program that was restarted. The old channel's open streams keep it
    /// alive until they end.
    fn replace_channel(&mut self, peer: Peer, fds: Vec<OwnedFd>) -> std::io::Result<()> {
        let [fd] = <[OwnedFd; 1]>::try_from(fds).map_err(|fds| {
            std::io::Error::other(format!("expected one descriptor, found {}", fds.len()))
        })?;
        match peer {
            Peer::Gateway => {
                self.acceptor = Some(acceptor(fd)?);
                // The new channel numbers its streams from the beginning.
                engine::note_begun(0);
            }
            Peer::Vault => self.worker.set_vault(opener(fd)?),
        }
        Ok(())
    }

    fn stop(&mut self, at: Instant) {
        self.stopping = Some(self.stopping.map_or(at, |before| before.min(at)));
    }

    /// Delivers all pending events to the function's side.
    fn turns(&mut self) -> Result<(), End> {
        let mut at = None;
        while let Some(event) = self.worker.next_event() {
            let request = request_of(&event);
            let Some(budget) = self.worker.budget(request) else {
                return Err(self.exceeded(Some(request), Failure::ExceededCpu));
            };
            let mut start = at.unwrap_or_else(engine::thread_cpu);
            if self.engine.make_room(&event) {
                // All requests share the cost of garbage collection.
                let after = engine::thread_cpu();
                self.worker.charge_all(after.saturating_sub(start));
                start = after;
            }
            let Turn {
                cpu,
                ended,
                stopped,
                ..
            } = self.engine.turn(&event, budget, start);
            at = Some(ended);
            self.worker.charge(request, cpu);
            if let Some(failure) = stopped {
                return Err(self.exceeded(Some(request), failure));
            }
            self.worker.after_turn(request);
        }
        Ok(())
    }

    /// Ends the request that is to blame; the others that have begun end with the worker. The
    /// gateway first gets the notice that no more requests are taken, and sends those that have not
    /// begun elsewhere.
    fn exceeded(&self, request: Option<RequestId>, failure: Failure) -> End {
        if let Some(acceptor) = &self.acceptor {
            acceptor.go_away();
        }
        self.worker.refuse_undispatched();
        if let Some(request) = request {
            self.worker
                .abort(request, failure, engine::limit_message(failure));
        }
        // Earlier outcomes are reported before the worker's last message.
        self.worker.say_outcomes();
        End::Exceeded(failure)
    }

    fn poll_wake(&mut self, context: &mut Context<'_>) -> Poll<Wake> {
        self.rounds += 1;
        if self.rounds >= ROUNDS_PER_POLL
            && let Some(stopped) = self.poll_engine(context)
        {
            return Poll::Ready(stopped);
        }
        if self.worker.has_events() && self.worker.poll_done(context).is_ready() {
            return Poll::Ready(Wake::Progress);
        }
        if let Poll::Ready(message) = self.inbox.poll_recv(context) {
            return Poll::Ready(Wake::Control(message));
        }
        if self.worker.poll_done(context).is_ready() {
            return Poll::Ready(Wake::Progress);
        }
        if let Some(acceptor) = &mut self.acceptor
            && let Poll::Ready(incoming) = std::pin::pin!(acceptor.accept()).poll(context)
        {
            return Poll::Ready(Wake::Incoming(incoming));
        }
        if self.poll_time(context).is_ready() {
            return Poll::Ready(Wake::Time);
        }
        if self.worker.poll_cancelled(context).is_ready() {
            return Poll::Ready(Wake::Progress);
        }
        if let Some(stopped) = self.poll_engine(context) {
            return Poll::Ready(stopped);
        }
        if self.worker.has_events() {
            Poll::Ready(Wake::Progress)
        } else {
            Poll::Pending
        }
    }

    /// Polls the platform's own asynchrony and settles the account of the pool's thread; returns
    /// which request exceeded its limit.
    fn poll_engine(&mut self, context: &mut Context<'_>) -> Option<Wake> {
        self.rounds = 0;
        if engine::pool::is_active() {
            engine::pool::settle(
                |request, cpu| self.worker.charge(request, cpu),
                |request| self.worker.cpu_left(request),
            );
        }
        let budget = self.worker.shared_budget();
        let start = engine::thread_cpu();
        let Turn {
            cpu,
            stopped,
            running,
            ..
        } = self.engine.poll(context, budget, start);
        match (stopped, running) {
            (Some(_), Some(request)) => self.worker.charge(request, cpu),
            _ => self.worker.charge_all(cpu),
        }
        if let Some(failure) = stopped {
            return Some(Wake::Stopped(running.or(self.worker.busiest()), failure));
        }
        let overdrawn = self.worker.overdrawn();
        overdrawn.map(|request| Wake::Stopped(Some(request), Failure::ExceededCpu))
    }

    /// Ready at the next timer, deadline, end of grace, or run of V8's delayed tasks.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let settle = (now < self.active + SETTLE).then_some(now + SETTLE_EVERY);
        let pool = engine::pool::settle_within().map(|wait| now + wait.max(POOL_SETTLE_MIN));
        let wanted = [self.worker.next_deadline(), self.stopping, settle, pool]
            .into_iter()
            .flatten()
            .min();
        let Some(wanted) = wanted else {
            return Poll::Pending;
        };
        if wanted < self.sleeps_until || self.sleeps_until <= now {
            self.sleep.as_mut().reset(wanted.into());
            self.sleeps_until = wanted;
        }
        self.sleep.as_mut().poll(context)
    }
}

fn request_of(event: &Event) -> RequestId {
    match event {
        Event::Dispatch { request, .. }
        | Event::Cancelled { request }
        | Event::Over { request, .. }
        | Event::Answered { request, .. }
        | Event::Refused { request, .. }
        | Event::Arrived { request, .. }
        | Event::Taken { request, .. }
        | Event::Fire { request, .. }
        | Event::Resume { request, .. } => *request,
    }
}
