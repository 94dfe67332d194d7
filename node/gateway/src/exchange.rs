//! One request: its host, the perimeter, a worker, and the answer.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use casemate_channel::{Exchange, RecvBody, SendBody, StreamError};
use casemate_wire::control::Failure;
use casemate_wire::control::gateway::{Access, Standing};
use casemate_wire::{OpenError, RESET_REFUSED, RequestHead, ResponseHead, StreamId};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use crate::answer::{Code, REQUEST_FIELD, Refusal};
use crate::body::{self, Body, Known};
use crate::connection::{Connection, InFlight};
use crate::fields::{self, Outgoing};
use crate::hops;
use crate::host::Host;
use crate::route::Site;
use crate::serve::Gateway;
use crate::target::Target;
use crate::upload::{Bounds, Upload, UploadError};
use crate::workers::{Function, Lease};

/// Most workers that are tried for one request when each ends before it begins the request.
const MAX_WORKERS_TRIED: usize = 4;
/// Longest path and longest method in an access record, bytes.
const MAX_RECORDED_BYTES: usize = 2048;

/// Makes request ids: 128 bits, unique on this node, also after a restart.
#[derive(Debug)]
pub struct RequestIds {
    boot: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// Makes ids from random bits.
    pub fn new(boot: u64, first: u64) -> Self {
        Self {
            boot,
            next: AtomicU64::new(first),
        }
    }

    fn next(&self) -> String {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let id = u128::from(self.boot) << 64 | u128::from(count);
        (0..32)
            .rev()
            .map(|at| char::from(HEX[(id >> (at * 4)) as usize & 15]))
            .collect()
    }
}

type Route = Arc<Site<Arc<Function>>>;

/// A worker's answer, ready to be sent.
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    content: Content,
}

enum Content {
    Whole(Bytes),
    Flow {
        first: Option<Bytes>,
        rest: RecvBody,
        lease: Lease,
        length: Option<u64>,
    },
}

/// The facts about a request that are known while it is answered.
#[derive(Default)]
struct Progress {
    route: Option<Route>,
    /// Part of the body was not read and never will be: an HTTP/1 connection closes after the
    /// answer.
    is_unread: bool,
}

/// Why a worker did not answer.
enum Trouble {
    /// The worker has not begun the request: another worker may.
    NotBegun,
    Refused(Refusal),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure.into())
    }
}

impl From<Code> for Trouble {
    fn from(code: Code) -> Self {
        Self::Refused(code.into())
    }
}

/// Answers a request, with the worker's answer or the gateway's own.
pub async fn answer(
    gateway: &Gateway,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Response<Body> {
    let started = Instant::now();
    let mut flight = connection.begin(request.version() == Version::HTTP_2);
    let id = gateway.ids.next();
    let (head, body) = request.into_parts();
    let mut progress = Progress::default();
    let forwarded = forward(gateway, &mut flight, &head, body, &id, &mut progress).await;
    let Progress { route, is_unread } = progress;
    flight.answered();
    let failure = forwarded
        .as_ref()
        .err()
        .and_then(|refusal| refusal.code.failure());
    let mut response = match forwarded {
        Ok(answer) => {
            let body = match answer.content {
                Content::Whole(bytes) => Body::whole(bytes, flight),
                Content::Flow {
                    first,
                    rest,
                    lease,
                    length,
                } => Body::flow(first, rest, lease, length, flight),
            };
            let mut response = Response::new(body);
            (*response.status_mut(), *response.headers_mut()) = (answer.status, answer.fields);
            response
        }
        Err(refusal) => {
            let gate = route.as_ref().map(|route| route.gate.allow());
            let allow = gate.filter(|_| refusal.code == Code::PerimeterMethod);
            refusal
                .respond(&id, allow)
                .map(|bytes| Body::whole(bytes, flight))
        }
    };
    if (is_unread || gateway.is_draining()) && head.version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_FIELD, value);
    }
    if let Some(route) = route
        && let Some(dropped) = route.function.may_record(head.uri.path().len())
    {
        gateway.record(Access {
            key: route.key.clone(),
            request: id,
            method: recorded(head.method.as_str()),
            path: recorded(head.uri.path()),
            status: response.status().as_u16(),
            failure,
            head_us: u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX),
            dropped,
            wide_cookies: route.function.take_dropped_cookies(),
        });
    }
    response
}

/// Cuts a caller's text to the recorded length, between characters.
fn recorded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_RECORDED_BYTES)].to_owned()
}

async fn forward(
    gateway: &Gateway,
    flight: &mut InFlight,
    head: &Parts,
    body: Incoming,
    id: &str,
    progress: &mut Progress,
) -> Result<Answer, Refusal> {
    progress.is_unread = !body.is_end_stream();
    let connection = flight.connection().clone();
    let host = read_host(head)?;
    if gateway.is_misdirected(&connection, &host.name) {
        return Err(Code::Misdirected.into());
    }
    let route = gateway.table.load().find(&host.name).cloned();
    let route = route.ok_or_else(|| no_route(gateway, &host.name))?;
    let route = progress.route.insert(route);
    if !fits(head) {
        return Err(Code::HeadTooLarge.into());
    }
    let rest = head.uri.path_and_query();
    let rest = rest.map_or("/", http::uri::PathAndQuery::as_str);
    let target = Target::new(connection.tls, &host, rest)?;
    let length = body.size_hint().exact();
    let method = head.method.as_str();
    route.gate.check(method, target.path(), length)?;
    let target = target.into_text();
    if wants_websocket(&head.headers) {
        return Err(Code::NotSupported.into());
    }
    let hops = hops::count(&head.headers).map_err(|hops::Loop| Code::LoopDetected)?;
    let place = route.function.tenant.begin();
    flight.keep(place.ok_or(Code::TooManyRequests)?);
    let make_head = || to_worker(&connection, head, &host, &target, id, hops);
    let bounds = Bounds {
        max_bytes: route.gate.max_body_bytes,
        idle: gateway.patience.idle,
    };
    let mut upload = Upload::new(body, bounds, expects_continue(&head.headers));
    let conversed = by_a_worker(&route.function, make_head, &mut upload).await;
    progress.is_unread = !upload.has_come();
    let (lease, conversation) = conversed?;
    if let Some(to) = conversation.to {
        progress.is_unread &= !go_on(upload, to, &connection, lease.worker.head_wait());
    }
    let (response, rest) = (conversation.head, conversation.rest);
    let has_neighbours = || gateway.table.load().has_neighbours_below(&host.name);
    let asked = (&head.method, &*host.name);
    to_caller(asked, has_neighbours, response, rest, lease).await
}

/// Sends the rest of a body during and after the answer, as long as the worker has the request: a
/// promise in the function's `waitUntil` may read it. Does nothing when no reader is left, or when
/// the caller waits for `100 Continue`, which cannot follow the answer. Returns whether it does.
fn go_on(
    mut upload: Upload,
    mut to: SendBody,
    connection: &Arc<Connection>,
    wait: Duration,
) -> bool {
    if to.is_over() || upload.is_held_back() {
        return false;
    }
    let uploading = connection.uploads();
    tokio::spawn(async move {
        let pumped = tokio::time::timeout(wait, upload.pump(&mut to)).await;
        if let Ok(Ok(trailers)) = pumped {
            to.finish_with(&trailers);
        }
        drop(uploading);
    });
    true
}

/// The answer when no function has the host. That is certain only once all plans are known.
fn no_route(gateway: &Gateway, host: &str) -> Refusal {
    let standing = gateway.standing.load();
    let is_expected = |standing: &Standing| {
        let found = standing
            .expected
            .binary_search_by(|one| one.as_str().cmp(host));
        found.is_ok()
    };
    let message = if !standing.is_loaded {
        "the node has not loaded its routes yet; try again"
    } else if is_expected(&standing) {
        "the function for this host is not ready on this node yet; try again"
    } else {
        return Code::NoSuchHost.into();
    };
    Refusal {
        code: Code::Failed(Failure::Unavailable),
        message: message.into(),
    }
}

fn read_host(head: &Parts) -> Result<Host<'_>, Code> {
    let target = head.uri.authority().map(http::uri::Authority::as_str);
    let named = head.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    Host::of_request(target, named, head.version == Version::HTTP_11).map_err(|_| Code::BadHost)
}

/// The HTTP parsers' own bounds are wider: HTTP/1 reads some bytes beyond, HTTP/2 counts no fields.
fn fits(head: &Parts) -> bool {
    let lines = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    let target = head
        .uri
        .path_and_query()
        .map_or(0, |rest| rest.as_str().len());
    fields::count(&head.headers) <= fields::MAX_REQUEST_FIELDS
        && !fields::has_too_many_options(&head.headers)
        && target + lines.sum::<usize>() <= fields::MAX_HEAD_BYTES
}

fn wants_websocket(fields: &HeaderMap) -> bool {
    let mut upgrades = fields
        .get_all(UPGRADE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    upgrades.any(|protocol| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

fn expects_continue(fields: &HeaderMap) -> bool {
    let mut expectations = fields.get_all(EXPECT).iter();
    expectations.any(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn to_worker(
    connection: &Connection,
    head: &Parts,
    host: &Host<'_>,
    target: &str,
    id: &str,
    hops: u8,
) -> RequestHead {
    let mut authority = String::with_capacity(host.name.len() + 8);
    host.write(&mut authority);
    let mut fields = fields::to_worker(&head.headers);
    fields.push("host", &authority);
    fields.push(":request", id);
    fields.push(":client", &connection.client);
    // One digit, because counts from `MAX_HOPS` on were refused.
    fields.push(":hops", [b'0' + hops]);
    RequestHead {
        method: head.method.as_str().to_owned(),
        target: target.to_owned(),
        fields,
    }
}

/// Gets the answer from a worker with a free slot. If a worker ends before it has begun the
/// request, another one is tried; once a worker has begun the request, there is no second try.
async fn by_a_worker(
    function: &Arc<Function>,
    make_head: impl Fn() -> RequestHead,
    upload: &mut Upload,
) -> Result<(Lease, Conversation), Refusal> {
    for _ in 0..MAX_WORKERS_TRIED {
        let lease = function.lease().await?;
        let conversation = begin(make_head(), upload, &lease);
        match lease.hold_to_wall(conversation).await {
            Ok(conversation) => return Ok((lease, conversation)),
            Err(Trouble::Refused(refusal)) => return Err(refusal),
            Err(Trouble::NotBegun) if upload.rewind() => function.pass_over(lease),
            Err(Trouble::NotBegun) => break,
        }
    }
    Err(Failure::Unavailable.into())
}

/// A worker's answer, once its head has come.
struct Conversation {
    head: ResponseHead,
    rest: RecvBody,
    /// The stream for the rest of the request's body, if there is a rest.
    to: Option<SendBody>,
}

/// Opens a stream when the worker's channel can carry one more, and sends the request. A full
/// channel is not the worker's fault: its output is still being written.
async fn begin(
    head: RequestHead,
    upload: &mut Upload,
    lease: &Lease,
) -> Result<Conversation, Trouble> {
    let opener = &lease.worker.opener;
    let opening = if upload.is_empty() {
        opener.open_in_turn(head, true)
    } else {
        opener.open_to_ask_in_turn(head)
    };
    match opening.await {
        Ok(exchange) => converse(exchange, upload, lease).await,
        Err(StreamError::Open(OpenError::Head(_))) => Err(Code::HeadTooLarge.into()),
        Err(_) => Err(Trouble::NotBegun),
    }
}

/// Sends the body until the head of the response comes.
async fn converse(
    exchange: Exchange,
    upload: &mut Upload,
    lease: &Lease,
) -> Result<Conversation, Trouble> {
    let Exchange {
        id,
        body: mut to,
        response,
    } = exchange;
    let mut response = pin!(response.head());
    let to = if upload.is_empty() {
        None
    } else {
        let sent = tokio::select! {
            biased;
            came = &mut response => return conversation(came, Some(to), id, lease).await,
            sent = upload.pump(&mut to) => sent,
        };
        match sent {
            Ok(trailers) => {
                to.finish_with(&trailers);
                None
            }
            Err(UploadError::Worker) => Some(to),
            Err(UploadError::TooLarge) => return Err(Code::BodyTooLarge.into()),
            Err(UploadError::Slow) => return Err(Code::BodyTimeout.into()),
            Err(UploadError::Caller) => return Err(Code::BadBody.into()),
        }
    };
    conversation(response.await, to, id, lease).await
}

async fn conversation(
    came: Result<(ResponseHead, RecvBody), StreamError>,
    to: Option<SendBody>,
    stream: StreamId,
    lease: &Lease,
) -> Result<Conversation, Trouble> {
    match came {
        Ok((head, rest)) => Ok(Conversation { head, rest, to }),
        Err(error) => Err(explain(error, stream, lease).await),
    }
}

async fn explain(error: StreamError, stream: StreamId, lease: &Lease) -> Trouble {
    let failure = match error {
        StreamError::Reset(RESET_REFUSED) => None,
        StreamError::Reset(code) => Some(Failure::from_reset(code).unwrap_or(Failure::WorkerLost)),
        StreamError::Closed | StreamError::Open(_) => lease.worker.verdict(stream).await,
    };
    failure.map_or(Trouble::NotBegun, Trouble::from)
}

/// Converts a worker's answer to HTTP; 500 `exception` if it is invalid.
async fn to_caller(
    (method, host): (&Method, &str),
    has_neighbours: impl Fn() -> bool,
    head: ResponseHead,
    rest: RecvBody,
    lease: Lease,
) -> Result<Answer, Refusal> {
    let broken = |_| Refusal::from(Failure::Exception);
    let status = StatusCode::from_u16(head.status)
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()));
    let status = status.ok_or(()).map_err(broken)?;
    let Outgoing {
        mut fields,
        length,
        wide_cookies,
    } = fields::to_caller(&head.fields, host, has_neighbours).map_err(|_| broken(()))?;
    lease.function().dropped_cookies(wide_cookies);
    if method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        if let Some(length) = length.filter(|_| method == Method::HEAD) {
            fields.insert(CONTENT_LENGTH, length.into());
        }
        return Ok(Answer {
            status,
            fields,
            content: Content::Whole(Bytes::new()),
        });
    }
    let content = match body::known(rest) {
        Known::Whole(bytes) if length.is_none_or(|length| length == bytes.len() as u64) => {
            Content::Whole(bytes)
        }
        Known::Whole(_) => return Err(broken(())),
        Known::Begun(first, rest) => Content::Flow {
            first,
            rest,
            lease,
            length,
        },
        // The head has come, so the worker had begun the request.
        Known::Broken(error) => match explain(error, StreamId::MIN, &lease).await {
            Trouble::Refused(refusal) => return Err(refusal),
            Trouble::NotBegun => return Err(Failure::WorkerLost.into()),
        },
    };
    Ok(Answer {
        status,
        fields,
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_unique_and_of_one_length() {
        let ids = RequestIds::new(0xabc, u64::MAX);
        assert_eq!(ids.next(), "0000000000000abcffffffffffffffff");
        assert_eq!(ids.next(), "0000000000000abc0000000000000000");
    }

    #[test]
    fn what_is_recorded_is_bounded() {
        let long = format!("/{}", "é".repeat(MAX_RECORDED_BYTES));
        assert_eq!(recorded(&long).len(), MAX_RECORDED_BYTES - 1);
        assert_eq!(recorded("/a"), "/a");
    }

    #[test]
    fn websocket_is_seen_in_any_place() {
        let fields = |value: &'static str| {
            HeaderMap::from_iter([(UPGRADE, HeaderValue::from_static(value))])
        };
        assert!(wants_websocket(&fields("h2c, WebSocket")));
        assert!(!wants_websocket(&fields("h2c")));
    }
}
