//! One caller's connection: its requests under way, and when it must close.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::admission::HeadNotice;
use crate::body::{SharedFlow, Stalled};
use crate::drain::REST;
use crate::requests::RequestPlace;
use crate::workers::now_ms;

/// Requests that a caller may abandon within a second on one connection. More is a flood (HTTP/2
/// rapid reset) that would cost workers' time.
const MAX_ABANDONED: u32 = 100;
/// Period over which abandoned requests are counted, milliseconds.
const ABANDONED_PERIOD_MS: u64 = 1000;
/// How long a connection may idle while others wait for its slot.
const CROWDED_REST: Duration = Duration::from_secs(1);

/// Time after the caller has ended its side until the first probe.
const PROBE_PERIOD: Duration = Duration::from_secs(1);
/// Time limits of connections.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Time until a whole request head has come.
    pub header: Duration,
    /// Time without a request, or without a byte of a body.
    pub idle: Duration,
}

/// The state of a caller's connection, shared by its reader, its requests and its timer.
#[derive(Debug)]
pub struct Connection {
    /// The `:client` field: the caller's address.
    pub client: Bytes,
    /// Whether the connection uses TLS.
    pub tls: bool,
    /// The server name of the TLS handshake.
    pub server_name: Option<String>,
    /// Notified when the first request begins.
    head: Option<HeadNotice>,
    flight: AtomicU32,
    served: AtomicBool,
    http2: AtomicBool,
    /// When the connection became idle; 0 while requests are under way.
    rest_ms: AtomicU64,
    /// When the first byte of a head came; 0 when there is none.
    head_ms: AtomicU64,
    /// When the caller stopped reading; 0 while it reads.
    blocked_ms: AtomicU64,
    /// When the caller ended its side; 0 when it has not.
    ended_ms: AtomicU64,
    /// Number of requests that have ended.
    done: AtomicU32,
    /// Whether the caller is to be probed: see [`crate::watched::Watched`].
    probe: AtomicBool,
    /// The reader to wake, once the caller has ended its side.
    reader: AtomicWaker,
    abandoned: Mutex<(u64, u32)>,
    flows: Mutex<Vec<Weak<SharedFlow>>>,
    /// Notified when the connection must end at once.
    pub cut: Notify,
}

/// What the connection must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Stay open.
    Stay,
    /// Close after the requests under way.
    Close,
    /// End at once.
    Cut,
}

impl Connection {
    /// The state of a new connection.
    pub fn new(
        client: Bytes,
        tls: bool,
        server_name: Option<String>,
        head: Option<HeadNotice>,
    ) -> Self {
        Self {
            client,
            tls,
            server_name,
            head,
            flight: AtomicU32::new(0),
            served: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            rest_ms: AtomicU64::new(some_ms(now_ms())),
            head_ms: AtomicU64::new(0),
            blocked_ms: AtomicU64::new(0),
            ended_ms: AtomicU64::new(0),
            done: AtomicU32::new(0),
            probe: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            abandoned: Mutex::new((0, 0)),
            flows: Mutex::new(Vec::new()),
            cut: Notify::new(),
        }
    }

    /// Begins a request.
    pub fn begin(self: &Arc<Self>, http2: bool) -> InFlight {
        self.flight.fetch_add(1, Ordering::Relaxed);
        self.head_ms.store(0, Ordering::Relaxed);
        if !self.served.load(Ordering::Relaxed) {
            self.served.store(true, Ordering::Relaxed);
            self.head.iter().for_each(HeadNotice::head_came);
            self.http2.store(http2, Ordering::Relaxed);
        }
        InFlight {
            connection: self.clone(),
            answered: false,
            place: None,
        }
    }

    /// The body of a request continues after its answer: the connection counts as busy until this
    /// is dropped.
    pub fn uploads(self: &Arc<Self>) -> Uploading {
        self.flight.fetch_add(1, Ordering::Relaxed);
        Uploading(self.clone())
    }

    fn ends_one(&self) {
        if self.flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.rest_ms.store(some_ms(now_ms()), Ordering::Relaxed);
        }
    }

    /// Registers the body of a response for the check for stalled bodies.
    fn watch(&self, flow: &Arc<SharedFlow>) {
        let mut flows = self.flows.lock();
        // Ended bodies are removed before the list grows, so that its length is bounded by the
        // requests under way.
        if flows.len() == flows.capacity() {
            flows.retain(|flow| flow.strong_count() > 0);
        }
        flows.push(Arc::downgrade(flow));
    }

    /// What the connection must do now. `crowded`: other connections wait for its slot.
    pub fn judge(&self, now_ms: u64, patience: Patience, crowded: bool) -> Verdict {
        let past = |since: &AtomicU64, wait: Duration| {
            let since = since.load(Ordering::Relaxed);
            since > 0 && u128::from(now_ms.saturating_sub(since)) >= wait.as_millis()
        };
        if past(&self.blocked_ms, patience.idle) {
            return Verdict::Cut;
        }
        let mut untaken = false;
        let mut flows = self.flows.lock();
        flows.retain(|flow| {
            flow.upgrade().is_some_and(|flow| {
                untaken |= flow.cut_if_stalled(now_ms, patience.idle) == Stalled::Untaken;
                true
            })
        });
        drop(flows);
        if untaken {
            return Verdict::Cut;
        }
        if self.flight.load(Ordering::Relaxed) > 0 {
            if past(&self.ended_ms, PROBE_PERIOD) {
                self.probe.store(true, Ordering::Relaxed);
                self.reader.wake();
            }
            return Verdict::Stay;
        }
        let rest = match (self.served.load(Ordering::Relaxed), crowded) {
            (false, _) => patience.header,
            (true, true) => CROWDED_REST.min(patience.idle),
            (true, false) => patience.idle,
        };
        if past(&self.head_ms, patience.header) || past(&self.rest_ms, rest) {
            Verdict::Close
        } else {
            Verdict::Stay
        }
    }

    /// Whether the connection is asked to close now, in a gateway that drains since then. An HTTP/2
    /// connection is asked at once: requests under way continue, and GOAWAY names them. On HTTP/1
    /// only an answer can carry such a notice, so an idle connection is closed only after a rest: a
    /// request may be on its way.
    pub fn may_go(&self, now_ms: u64, drains_since_ms: u64) -> bool {
        if self.http2.load(Ordering::Relaxed) {
            return true;
        }
        let is_busy =
            self.flight.load(Ordering::Relaxed) > 0 || self.head_ms.load(Ordering::Relaxed) > 0;
        let since_ms = self.rest_ms.load(Ordering::Relaxed).max(drains_since_ms);
        !is_busy && u128::from(now_ms.saturating_sub(since_ms)) >= REST.as_millis()
    }

    pub(crate) fn received(&self) {
        let head_begins =
            self.head_ms.load(Ordering::Relaxed) == 0 && self.flight.load(Ordering::Relaxed) == 0;
        // An HTTP/2 connection without requests still gets pings and the like; its idle time limit
        // applies instead.
        if head_begins && !self.http2.load(Ordering::Relaxed) {
            self.head_ms.store(some_ms(now_ms()), Ordering::Relaxed);
        }
    }

    /// The caller has ended its side while a request is under way.
    pub(crate) fn ends(&self) {
        if self.ended_ms.load(Ordering::Relaxed) == 0 {
            self.ended_ms.store(some_ms(now_ms()), Ordering::Relaxed);
        }
    }

    pub(crate) fn writes(&self, blocked: bool) {
        let was = self.blocked_ms.load(Ordering::Relaxed);
        if blocked && was == 0 {
            self.blocked_ms.store(some_ms(now_ms()), Ordering::Relaxed);
        } else if !blocked && was > 0 {
            self.blocked_ms.store(0, Ordering::Relaxed);
        }
    }

    /// Number of requests that have ended.
    pub(crate) fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }

    /// Registers the reader to wake when a request ends, and when the caller is to be probed.
    pub(crate) fn wakes(&self, reader: &Waker) {
        self.reader.register(reader);
    }

    /// Whether the caller is to be probed now; clears the flag.
    pub(crate) fn takes_probe(&self) -> bool {
        let is_blocked = self.blocked_ms.load(Ordering::Relaxed) > 0;
        self.probe.swap(false, Ordering::Relaxed) && !is_blocked
    }

    fn abandon(&self) {
        let now_ms = now_ms();
        let mut abandoned = self.abandoned.lock();
        if now_ms.saturating_sub(abandoned.0) >= ABANDONED_PERIOD_MS {
            *abandoned = (now_ms, 0);
        }
        abandoned.1 += 1;
        if abandoned.1 > MAX_ABANDONED {
            self.cut.notify_one();
        }
    }
}

/// A time that is never 0, because 0 means "not set".
fn some_ms(now_ms: u64) -> u64 {
    now_ms.max(1)
}

/// The rest of a request's body after its answer.
#[derive(Debug)]
pub struct Uploading(Arc<Connection>);

impl Drop for Uploading {
    fn drop(&mut self) {
        self.0.ends_one();
    }
}

/// A request under way; it ends when this is dropped.
#[derive(Debug)]
pub struct InFlight {
    connection: Arc<Connection>,
    answered: bool,
    place: Option<RequestPlace>,
}

impl InFlight {
    /// The connection of the request.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Holds the tenant's slot until the request ends.
    pub fn keep(&mut self, place: RequestPlace) {
        self.place = Some(place);
    }

    /// Whether the request came over HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.connection.http2.load(Ordering::Relaxed)
    }

    /// Registers the response's body for the check for stalled bodies.
    pub fn watch(&self, flow: &Arc<SharedFlow>) {
        self.connection.watch(flow);
    }

    /// The head of the response has come.
    pub fn answered(&mut self) {
        self.answered = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.connection.ends_one();
        self.connection.done.fetch_add(1, Ordering::Relaxed);
        self.connection.reader.wake();
        if !self.answered {
            self.connection.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        header: Duration::from_secs(5),
        idle: Duration::from_secs(60),
    };

    fn connection() -> Arc<Connection> {
        Arc::new(Connection::new(
            Bytes::from_static(b"192.0.2.1"),
            false,
            None,
            None,
        ))
    }

    #[test]
    fn a_connection_that_never_asks_goes_after_the_head_timeout() {
        let (connection, start) = (connection(), now_ms());
        assert_eq!(
            connection.judge(start + 4000, PATIENCE, false),
            Verdict::Stay
        );
        assert_eq!(
            connection.judge(start + 6000, PATIENCE, false),
            Verdict::Close
        );
    }

    #[test]
    fn a_slow_head_goes_after_the_head_timeout_also_on_a_kept_connection() {
        let connection = connection();
        drop(connection.begin(false));
        assert_eq!(
            connection.judge(now_ms() + 50_000, PATIENCE, false),
            Verdict::Stay
        );
        connection.received();
        assert_eq!(
            connection.judge(now_ms() + 4000, PATIENCE, false),
            Verdict::Stay
        );
        assert_eq!(
            connection.judge(now_ms() + 6000, PATIENCE, false),
            Verdict::Close
        );
    }

    #[test]
    fn rest_is_shorter_when_others_wait() {
        let connection = connection();
        let flight = connection.begin(true);
        assert_eq!(
            connection.judge(now_ms() + 900_000, PATIENCE, true),
            Verdict::Stay
        );
        drop(flight);
        connection.received();
        assert_eq!(
            connection.judge(now_ms() + 2000, PATIENCE, false),
            Verdict::Stay
        );
        assert_eq!(
            connection.judge(now_ms() + 2000, PATIENCE, true),
            Verdict::Close
        );
        assert_eq!(
            connection.judge(now_ms() + 61_000, PATIENCE, false),
            Verdict::Close
        );
    }

    #[test]
    fn a_drained_connection_goes_when_it_has_rested_and_http2_at_once() {
        let rest_ms = REST.as_millis() as u64;
        let connection = self::connection();
        let start_ms = now_ms();
        // No byte has come yet, but one may be on its way.
        assert!(!connection.may_go(start_ms + rest_ms - 1, start_ms));
        assert!(connection.may_go(start_ms + rest_ms + 1000, start_ms));
        connection.received();
        assert!(!connection.may_go(start_ms + 100 * rest_ms, start_ms));
        let flight = connection.begin(false);
        assert!(!connection.may_go(start_ms + 100 * rest_ms, start_ms));
        drop(flight);
        // The connection was idle long before the drain began.
        let drains_ms = now_ms() + 100 * rest_ms;
        assert!(!connection.may_go(drains_ms, drains_ms));
        assert!(connection.may_go(drains_ms + rest_ms, drains_ms));
        let http2 = self::connection();
        let _flight = http2.begin(true);
        assert!(http2.may_go(start_ms, start_ms));
    }

    #[test]
    fn a_caller_that_takes_nothing_is_cut() {
        let connection = connection();
        let _flight = connection.begin(false);
        connection.writes(true);
        assert_eq!(
            connection.judge(now_ms() + 59_000, PATIENCE, false),
            Verdict::Stay
        );
        assert_eq!(
            connection.judge(now_ms() + 61_000, PATIENCE, false),
            Verdict::Cut
        );
        connection.writes(false);
        assert_eq!(
            connection.judge(now_ms() + 61_000, PATIENCE, false),
            Verdict::Stay
        );
    }

    #[tokio::test]
    async fn abandoning_without_end_is_cut() {
        let connection = connection();
        for _ in 0..MAX_ABANDONED {
            let mut answered = connection.begin(true);
            answered.answered();
            drop(connection.begin(true));
        }
        assert!(
            tokio::time::timeout(Duration::from_millis(20), connection.cut.notified())
                .await
                .is_err()
        );
        drop(connection.begin(true));
        tokio::time::timeout(Duration::from_secs(5), connection.cut.notified())
            .await
            .unwrap();
    }
}
