//! Callers at a steady rate, who must not notice what happens to the node: counts the callers that
//! are lost.
//!
//! Every call is a GET of a path that has one right answer. A caller is *lost* when its connection
//! is refused or reset, when no answer comes, or when the answer differs from the right one.
//! Callers retry on another connection as RFC 9110 and RFC 9113 permit: if the connection had ended
//! in order before the request was sent; if a kept HTTP/1 connection had been idle for long and was
//! closed as the request was sent; or if the gateway's GOAWAY (HTTP/2) shows that the gateway has
//! not begun the request.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};

/// Calls a second that use a new connection each.
const FRESH_RATE: u32 = 70;
/// Calls a second on one HTTP/2 connection.
const HTTP2_RATE: u32 = 70;
/// Number of kept HTTP/1 connections.
const KEPT: u32 = 6;
/// Calls a second on each of the kept connections.
const KEPT_RATE: u32 = 10;
/// Calls a second in all.
pub const RATE: u32 = FRESH_RATE + HTTP2_RATE + KEPT * KEPT_RATE;

/// A caller without an answer is lost after this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Idle time after which the gateway may close a kept connection; a request that was sent on a
/// connection after this time and met its end may be retried (RFC 9112, section 9.3.1).
const RESTED: Duration = Duration::from_millis(500);
/// Most connections that one call tries.
const TRIES: u32 = 5;
/// Most losses that are kept with their description.
const MAX_LOSSES: usize = 20;

/// One call in this many is slow in the function, so that some calls are always in flight.
const SLOW_EVERY: u64 = 4;
/// Path of the slow calls, and path of the other calls.
pub const PATHS: [&str; 2] = ["/slow", "/"];

/// Counts of answered, retried and lost calls.
#[derive(Debug, Default)]
pub struct Tally {
    answered: AtomicU64,
    /// Retries, by [`Again`].
    again: [AtomicU64; 3],
    lost: AtomicU64,
    longest_ms: AtomicU64,
    losses: Mutex<Vec<String>>,
}

/// Why a call is retried on another connection.
#[derive(Debug, Clone, Copy)]
enum Again {
    /// The connection had ended before the request was sent.
    Unsent,
    /// A GOAWAY shows that the gateway has not begun the request.
    NotBegun,
    /// The gateway closed a kept connection that had been idle for long, as the request was sent.
    Rested,
}

/// Callers at a steady rate, which run until [`Load::end`].
#[derive(Debug)]
pub struct Load {
    tally: Arc<Tally>,
    is_over: Arc<AtomicBool>,
    callers: Vec<JoinHandle<()>>,
}

/// The called host, and its right answer.
#[derive(Debug, Clone)]
struct Target {
    gateway: SocketAddr,
    host: String,
    right: String,
    tally: Arc<Tally>,
    is_over: Arc<AtomicBool>,
}

impl Tally {
    /// Number of answered calls.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Number of lost calls.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The counts in one line, then a line for each of the first losses.
    pub fn describe(&self) -> String {
        let losses = self.losses.lock();
        let again = |why: Again| self.again[why as usize].load(Ordering::Relaxed);
        format!(
            "{} answered, {} lost; sent again on another connection: {} that had not been sent, {} that GOAWAY says were not \
             begun, {} on a connection that had rested; the longest took {} ms\n{}",
            self.answered(),
            self.lost(),
            again(Again::Unsent),
            again(Again::NotBegun),
            again(Again::Rested),
            self.longest_ms.load(Ordering::Relaxed),
            losses.join("\n")
        )
    }

    fn note(&self, kind: &str, began: Instant, outcome: Result<()>) {
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_ms.fetch_max(took_ms, Ordering::Relaxed);
        match outcome {
            Ok(()) => drop(self.answered.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
                let mut losses = self.losses.lock();
                if losses.len() < MAX_LOSSES {
                    losses.push(format!("{kind} after {took_ms} ms: {error:#}"));
                }
            }
        }
    }
}

impl Load {
    /// Starts to call `host`, whose function answers with `right`, at [`RATE`] a second.
    pub fn start(gateway: SocketAddr, host: &str, right: &str) -> Self {
        let (tally, is_over) = (Arc::<Tally>::default(), Arc::<AtomicBool>::default());
        let target = Target {
            gateway,
            host: host.to_owned(),
            right: right.to_owned(),
            tally: tally.clone(),
            is_over: is_over.clone(),
        };
        let mut callers = vec![
            tokio::spawn(fresh(target.clone())),
            tokio::spawn(by_http2(target.clone())),
        ];
        callers.extend((0..KEPT).map(|_| tokio::spawn(kept(target.clone()))));
        Self {
            tally,
            is_over,
            callers,
        }
    }

    /// The counts so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Waits until `calls` more calls are answered, or one is lost.
    pub async fn more(&self, calls: u64) {
        let wanted = self.tally.answered() + calls;
        while self.tally.answered() < wanted && self.tally.lost() == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Starts no more calls, and waits for those in flight.
    pub async fn end(self) -> Arc<Tally> {
        self.is_over.store(true, Ordering::Relaxed);
        for caller in self.callers {
            if let Err(error) = caller.await {
                self.tally
                    .note("a caller", Instant::now(), Err(error.into()));
            }
        }
        self.tally
    }
}

impl Target {
    async fn connect(&self) -> Result<TokioIo<TcpStream>> {
        let stream = TcpStream::connect(self.gateway).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(TokioIo::new(stream))
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn request(&self, number: u64, absolute: bool) -> Result<Request<Full<Bytes>>> {
        let path = PATHS[usize::from(!number.is_multiple_of(SLOW_EVERY))];
        let (host, path) = (&self.host, path.to_owned());
        let uri = if absolute {
            format!("http://{host}{path}")
        } else {
            path
        };
        let request = Request::get(uri).header("host", host.as_str());
        Ok(request.body(Full::default())?)
    }

    async fn check(&self, response: Response<Incoming>) -> Result<()> {
        let status = response.status();
        let body = response.into_body().collect().await.context("the body")?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status != 200 || text != self.right {
            bail!("status {status}: {text}");
        }
        Ok(())
    }

    fn again(&self, why: Again) {
        self.tally.again[why as usize].fetch_add(1, Ordering::Relaxed);
    }
}

fn ticks(rate: u32) -> tokio::time::Interval {
    tokio::time::interval(Duration::from_secs(1) / rate)
}

async fn in_time<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let called = tokio::time::timeout(CALL_TIMEOUT, call).await;
    called.context("no answer")?
}

/// A connection for each call; calls do not wait for each other.
async fn fresh(target: Target) {
    let (mut ticks, mut calls) = (ticks(FRESH_RATE), JoinSet::new());
    for number in 0.. {
        if target.is_over() {
            break;
        }
        ticks.tick().await;
        while calls.try_join_next().is_some() {}
        let target = target.clone();
        calls.spawn(async move {
            let began = Instant::now();
            let call = async {
                let (mut sender, connection) = http1::handshake(target.connect().await?).await?;
                let driver = tokio::spawn(connection);
                let response = sender.send_request(target.request(number, false)?).await;
                let checked = target.check(response.context("the answer")?).await;
                driver.abort();
                checked
            };
            target
                .tally
                .note("a new connection", began, in_time(call).await);
        });
    }
    while calls.join_next().await.is_some() {}
}

/// One call after the other on a kept connection.
async fn kept(target: Target) {
    let mut ticks = ticks(KEPT_RATE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sender: Option<http1::SendRequest<Full<Bytes>>> = None;
    let mut used = Instant::now();
    for number in 0.. {
        if target.is_over() {
            break;
        }
        ticks.tick().await;
        let began = Instant::now();
        let outcome = in_time(call_kept(&target, number, &mut sender, used)).await;
        target.tally.note("a kept connection", began, outcome);
        used = Instant::now();
    }
}

async fn call_kept(
    target: &Target,
    number: u64,
    kept: &mut Option<http1::SendRequest<Full<Bytes>>>,
    used: Instant,
) -> Result<()> {
    for _ in 0..TRIES {
        let ready = match kept.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let was_kept = ready.is_some();
        let mut sender = match ready {
            Some(sender) => sender,
            None => {
                let (sender, connection) = http1::handshake(target.connect().await?).await?;
                tokio::spawn(connection);
                sender
            }
        };
        match sender
            .try_send_request(target.request(number, false)?)
            .await
        {
            Ok(response) => {
                *kept = Some(sender);
                return target.check(response).await;
            }
            Err(mut error) => {
                let is_unsent = error.take_message().is_some();
                let has_rested = was_kept && used.elapsed() >= RESTED;
                if !was_kept || !(is_unsent || has_rested) {
                    return Err(anyhow::Error::new(error.into_error()).context("the answer"));
                }
                target.again(if is_unsent {
                    Again::Unsent
                } else {
                    Again::Rested
                });
            }
        }
    }
    bail!("{TRIES} connections ended before a request could be sent")
}

/// Whether the gateway has refused, by its GOAWAY, a request that crossed the GOAWAY on the way:
/// such a request may be retried (RFC 9113, section 6.8). Only a GOAWAY with NO_ERROR counts, which
/// reports no fault of either side.
fn is_unprocessed(error: &hyper::Error) -> bool {
    /// The text of `h2`'s error for the peer's GOAWAY with NO_ERROR.
    const GOAWAY: &str = "connection error received: not a result of an error";
    let source = error.source().map(ToString::to_string);
    source.is_some_and(|source| source.starts_with(GOAWAY))
}

/// The connection that all calls share, and the number of connections before it.
#[derive(Default)]
struct Shared {
    count: u64,
    sender: Option<http2::SendRequest<Full<Bytes>>>,
}

/// Concurrent calls on one connection, which is replaced after its GOAWAY.
async fn by_http2(target: Target) {
    let (mut ticks, mut calls) = (ticks(HTTP2_RATE), JoinSet::new());
    let shared = Arc::<tokio::sync::Mutex<Shared>>::default();
    for number in 0.. {
        if target.is_over() {
            break;
        }
        ticks.tick().await;
        while calls.try_join_next().is_some() {}
        let (target, shared) = (target.clone(), shared.clone());
        calls.spawn(async move {
            let began = Instant::now();
            let outcome = in_time(call_http2(&target, number, &shared)).await;
            target.tally.note("HTTP/2", began, outcome);
        });
    }
    while calls.join_next().await.is_some() {}
}

async fn call_http2(
    target: &Target,
    number: u64,
    shared: &tokio::sync::Mutex<Shared>,
) -> Result<()> {
    for _ in 0..TRIES {
        let (count, mut sender) = {
            let mut shared = shared.lock().await;
            let count = shared.count;
            match shared.sender.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => (count, sender.clone()),
                None => {
                    let io = target.connect().await?;
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                    tokio::spawn(connection);
                    shared.count += 1;
                    shared.sender = Some(sender.clone());
                    (shared.count, sender)
                }
            }
        };
        match sender.try_send_request(target.request(number, true)?).await {
            Ok(response) => return target.check(response).await,
            Err(mut error) => {
                let is_unsent = error.take_message().is_some();
                let error = error.into_error();
                if !is_unsent && !is_unprocessed(&error) {
                    return Err(anyhow::Error::new(error).context("the answer"));
                }
                target.again(if is_unsent {
                    Again::Unsent
                } else {
                    Again::NotBegun
                });
                // The lock lets only one call open the next connection.
                let mut shared = shared.lock().await;
                if shared.count == count {
                    shared.sender = None;
                }
            }
        }
    }
    bail!("{TRIES} connections ended before a request could be sent")
}
