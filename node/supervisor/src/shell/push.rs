//! The connection to the control plane: kept, lost, made again. What comes is handed on; what is to be said is queued.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use casemate_channel::fair::{self, Taken};
use casemate_push::bundle::{Header, Part, Receiver};
use casemate_push::{
    Expected, Hello, LogEntry, LogLevel, NodeEnd, NodeEvent, NotStored, Pauses, StatementId,
    Versions, Violation,
};
use casemate_trust::id::{Digest, TenantId};
use casemate_wire::control::FunctionKey;
use quinn::{Connection, Endpoint, RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;

use super::Happening;
use super::agree::{agree, handshake_failed};

/// Keeps the path through NATs open, and notices within the idle timeout that nobody is there.
const KEEP_ALIVE: Duration = Duration::from_secs(8);
/// Until a silent connection is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(25);
/// Until a handshake is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that the control plane may send before we have read them: on the connection, and on one stream.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Bundles at a time.
const MAX_UNI_STREAMS: u32 = 8;
/// Read at a time.
const READ_BYTES: usize = 64 * 1024;
/// A bundle that the control plane did not have is asked for again after this.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Until a piece of an image is given up, and the connection with it: at 4 KB a second it would have come.
const PIECE_TIMEOUT: Duration = Duration::from_secs(300);
/// Things to say that wait.
pub(crate) const MAX_COMMANDS: usize = 4096;
/// Records that wait, each of 5 KiB at most: those of functions, and those of refused calls.
const MAX_LOGS: usize = 2048;
const MAX_REFUSALS: usize = 1024;

/// What to say to the control plane.
#[derive(Debug)]
pub(crate) enum Say {
    /// What is held, once connected.
    Hello(Box<Hello>),
    Ack(StatementId),
    /// Every bundle of this manifest is on the disk.
    Stored {
        tenant: TenantId,
        version: u64,
    },
    /// Bundles of a manifest are not kept here.
    NotStored(NotStored),
    Nack {
        id: StatementId,
        code: String,
        message: String,
    },
    FetchObjects {
        tenant: TenantId,
        digests: Vec<Digest>,
    },
    /// A bundle is wanted until it has come.
    FetchBundle(Digest),
    /// A piece of the machine's next image, on this connection.
    FetchImage {
        digest: Digest,
        offset: u64,
        bytes: u32,
    },
    /// Only these are wanted.
    Keep(Vec<Digest>),
    Lease([u8; 32]),
    Status(String),
}

/// Records for the control plane, which wait here while there is no connection. A function that has too many loses its own,
/// and reads in its log how many.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    /// Of workers and requests.
    pub(crate) logs: Arc<fair::Queue<FunctionKey, LogEntry>>,
    /// Of calls that the vault refused: apart, so that no log is a way to hide them, and a share for each tenant.
    pub(crate) refusals: Arc<fair::Queue<TenantId, LogEntry>>,
}

impl Default for Records {
    fn default() -> Self {
        Self {
            logs: Arc::new(fair::Queue::new(MAX_LOGS)),
            refusals: Arc::new(fair::Queue::new(MAX_REFUSALS)),
        }
    }
}

impl Records {
    /// What is next, after a word about what was lost before it.
    async fn next(&self) -> (Option<LogEntry>, LogEntry) {
        let Taken { item, lost } = tokio::select! {
            taken = self.refusals.next() => taken,
            taken = self.logs.next() => taken,
        };
        let word = (lost > 0).then(|| LogEntry {
            request: None,
            level: LogLevel::Warn,
            message: format!("{lost} records were dropped: they come faster than they can be sent"),
            failure: None,
            ..item.clone()
        });
        (word, item)
    }
}

/// What the connection has to tell.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Connected, and the control plane knows us: say hello.
    Connected,
    Event(NodeEvent),
    Bundle {
        digest: Digest,
        bytes: Vec<u8>,
    },
    /// A piece of an image, or its beginning where the stream was cut.
    ImagePiece {
        digest: Digest,
        offset: u64,
        bytes: Vec<u8>,
    },
    Disconnected(String),
}

/// Whom to connect to, and as whom.
pub(crate) struct Link {
    pub(crate) address: String,
    /// What `tls` offers.
    pub(crate) versions: Versions,
    pub(crate) tls: rustls::ClientConfig,
    /// The signed request of a node that is not yet a member.
    pub(crate) join_request: Option<Vec<u8>>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("{0}")]
    Connect(String),
    #[error("the control plane closed the connection: {0}")]
    Closed(#[from] quinn::ConnectionError),
    #[error("the control plane broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the stream broke: {0}")]
    Stream(String),
    #[error("this node ends")]
    Ended,
}

/// Bundles that are wanted, with what has come of each: a cut stream goes on where it stopped.
type Wanted = BTreeMap<Digest, Vec<u8>>;

/// Connects, and connects again, until the main loop is gone.
pub(crate) async fn run(
    mut link: Link,
    mut says: mpsc::Receiver<Say>,
    records: Records,
    happenings: mpsc::Sender<Happening>,
) {
    let mut wanted = Wanted::new();
    let mut pauses = Pauses::default();
    loop {
        let mut served = false;
        let broken = session(
            &mut link,
            &mut says,
            &records,
            &happenings,
            &mut wanted,
            &mut served,
        )
        .await;
        let Err(broken) = broken else { return };
        if matches!(broken, Broken::Ended) {
            return;
        }
        if served {
            pauses = Pauses::default();
        }
        if happenings
            .send(Happening::Push(Heard::Disconnected(broken.to_string())))
            .await
            .is_err()
        {
            return;
        }
        // What was to be said on that connection has no meaning on the next, but for bundles.
        let pause = pauses.take();
        let until = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => break,
                say = says.recv() => match say {
                    Some(say) => note(say, &mut wanted),
                    None => return,
                },
            }
        }
    }
}

/// What stays wanted across connections.
fn note(say: Say, wanted: &mut Wanted) {
    match say {
        Say::FetchBundle(digest) => drop(wanted.entry(digest).or_default()),
        Say::Keep(digests) => wanted.retain(|digest, _| digests.contains(digest)),
        _ => {}
    }
}

async fn connect(link: &Link) -> Result<(Endpoint, Connection), Broken> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Broken::Connect(format!("{what} {}: {error}", link.address))
    };
    let address = match link.address.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let mut found = tokio::net::lookup_host(&link.address)
                .await
                .map_err(|error| failed("cannot resolve", &error))?;
            found
                .next()
                .ok_or_else(|| failed("cannot resolve", &"no address"))?
        }
    };
    let local: SocketAddr = if address.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let endpoint =
        Endpoint::client(local).map_err(|error| failed("cannot open a socket for", &error))?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(link.tls.clone())
        .map_err(|error| failed("cannot use TLS with", &error))?;
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    transport.max_idle_timeout(Some(
        IDLE_TIMEOUT
            .try_into()
            .map_err(|error| failed("timeout", &error))?,
    ));
    transport
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    transport
        .max_concurrent_uni_streams(VarInt::from_u32(MAX_UNI_STREAMS))
        .max_concurrent_bidi_streams(VarInt::from_u32(0));
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    let connecting = endpoint
        .connect_with(config, address, "control.casemate")
        .map_err(|error| failed("cannot connect to", &error))?;
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| failed("cannot reach", &"no answer in time"))?;
    let connected = connected.map_err(|error| {
        failed(
            "cannot connect to",
            &handshake_failed(&error, link.versions),
        )
    })?;
    Ok((endpoint, connected))
}

/// One connection from beginning to end; it never ends well.
#[expect(clippy::too_many_lines, reason = "older than the limit")]
async fn session(
    link: &mut Link,
    says: &mut mpsc::Receiver<Say>,
    records: &Records,
    happenings: &mpsc::Sender<Happening>,
    wanted: &mut Wanted,
    served: &mut bool,
) -> Result<(), Broken> {
    let (_endpoint, connection) = connect(link).await?;
    let version = agree(link.versions, &connection).await?;
    let (mut writer, mut reader) = connection.open_bi().await?;
    let tell = async |heard: Heard| {
        happenings
            .send(Happening::Push(heard))
            .await
            .map_err(|_| Broken::Ended)
    };
    let mut node = match &link.join_request {
        Some(request) => Some(NodeEnd::joining(request.clone())),
        None => {
            tell(Heard::Connected).await?;
            None
        }
    };
    let (parts, mut streams) = mpsc::channel::<Stream>(MAX_UNI_STREAMS as usize);
    let mut chunk = vec![0; READ_BYTES];
    let mut again = tokio::time::interval(ASK_AGAIN);
    let mut piece_by = None;
    loop {
        if let Some(node) = &mut node {
            flush(node, &mut writer).await?;
        }
        tokio::select! {
            say = says.recv() => match (say.ok_or(Broken::Ended)?, &mut node) {
                (Say::Hello(mut hello), node) => {
                    hello.protocol = version;
                    match node {
                        Some(node) => node.hello(*hello)?,
                        none => *none = Some(NodeEnd::member(*hello)),
                    }
                }
                (say, Some(node)) => speak(node, say, wanted)?,
                (say, None) => note(say, wanted),
            },
            // Not sooner than they can be sent: what would wait with the protocol waits without shares.
            (word, entry) = records.next(), if *served => if let Some(node) = &mut node {
                word.into_iter().chain([entry]).for_each(|entry| node.log(entry));
            },
            read = reader.read(&mut chunk) => {
                let length = read.map_err(|error| Broken::Stream(error.to_string()))?.ok_or_else(|| Broken::Stream("it ended".into()))?;
                let Some(node) = &mut node else { return Err(Violation::Unexpected("a message before our hello").into()) };
                node.receive(&chunk[..length])?;
                while let Some(event) = node.poll_event()? {
                    match event {
                        NodeEvent::Admitted => {
                            link.join_request = None;
                            tell(Heard::Connected).await?;
                        }
                        NodeEvent::Unavailable { digest } if wanted.contains_key(&digest) => {
                            tracing::warn!(%digest, "the control plane does not have a wanted bundle yet");
                            node.bundle_done(&digest);
                        }
                        NodeEvent::Welcome { .. } => {
                            *served = true;
                            for (digest, so_far) in &*wanted {
                                node.fetch_bundle(*digest, so_far.len() as u64)?;
                            }
                            tell(Heard::Event(event)).await?;
                        }
                        event => tell(Heard::Event(event)).await?,
                    }
                }
            }
            incoming = connection.accept_uni() => {
                let (stream, parts) = (incoming?, parts.clone());
                tokio::spawn(async move { parts.send(receive(stream).await).await });
            }
            Some(stream) = streams.recv() => {
                if let Some(node) = &mut node
                    && let Some(heard) = put_together(node, stream, wanted)?
                {
                    tell(heard).await?;
                }
                piece_by = None;
            }
            _ = again.tick() => if let Some(node) = node.as_mut().filter(|_| *served) {
                let now = tokio::time::Instant::now();
                let by = *piece_by.get_or_insert(now + PIECE_TIMEOUT);
                if !node.is_fetching_image() {
                    piece_by = None;
                } else if now > by {
                    return Err(Broken::Stream("a piece of an image did not come".into()));
                }
                for (digest, so_far) in &*wanted {
                    node.fetch_bundle(*digest, so_far.len() as u64)?;
                }
            },
        }
    }
}

async fn flush(node: &mut NodeEnd, writer: &mut SendStream) -> Result<(), Broken> {
    while let Some(frame) = node.poll_transmit() {
        writer
            .write_all(&frame)
            .await
            .map_err(|error| Broken::Stream(error.to_string()))?;
    }
    Ok(())
}

fn speak(node: &mut NodeEnd, say: Say, wanted: &mut Wanted) -> Result<(), Violation> {
    match say {
        // A statement of an earlier connection, judged late: it will be sent again.
        Say::Ack(id) => drop(node.ack(&id)),
        Say::Stored { tenant, version } => node.stored(tenant, version)?,
        Say::NotStored(not_stored) => node.not_stored(not_stored)?,
        Say::Nack { id, code, message } => drop(node.nack(&id, &code, &message)),
        Say::FetchObjects { tenant, digests } => node.fetch_objects(tenant, &digests)?,
        Say::FetchBundle(digest) => {
            let so_far = wanted.entry(digest).or_default().len() as u64;
            node.fetch_bundle(digest, so_far)?;
        }
        // One is under way already: what comes of that says when the next is asked for.
        Say::FetchImage {
            digest,
            offset,
            bytes,
        } => drop(node.fetch_image(digest, offset, bytes)),
        Say::Lease(nonce) => node.lease(nonce)?,
        Say::Status(json) => node.status(json),
        say @ (Say::Keep(_) | Say::Hello(_)) => note(say, wanted),
    }
    Ok(())
}

/// What came on one stream; without a header, nothing that can be used.
struct Stream {
    header: Option<Header>,
    bytes: Vec<u8>,
    violation: Option<Violation>,
}

async fn receive(mut stream: RecvStream) -> Stream {
    let mut received = Stream {
        header: None,
        bytes: Vec::new(),
        violation: None,
    };
    let mut receiver = Receiver::default();
    let mut chunk = vec![0; READ_BYTES];
    while let Ok(Some(length)) = stream.read(&mut chunk).await {
        if let Err(violation) = receiver.receive(&chunk[..length]) {
            received.violation = Some(violation);
            return received;
        }
        loop {
            match receiver.poll() {
                Ok(Some(Part::Header(header))) => received.header = Some(header),
                Ok(Some(Part::Bytes(bytes))) => received.bytes.extend_from_slice(&bytes),
                Ok(Some(Part::End) | None) => break,
                Err(violation) => {
                    received.violation = Some(violation);
                    return received;
                }
            }
        }
    }
    received
}

/// Adds what a stream brought; the piece of an image, or the bundle when it is whole and has the digest that was asked for.
fn put_together(
    node: &mut NodeEnd,
    stream: Stream,
    wanted: &mut Wanted,
) -> Result<Option<Heard>, Violation> {
    if let Some(violation) = stream.violation {
        return Err(violation);
    }
    let Some(header) = stream.header else {
        return Ok(None);
    };
    match node.expects(&header) {
        Some(Expected::Bundle) => {}
        Some(Expected::ImagePiece) => {
            node.image_piece_done();
            let (digest, offset, bytes) = (header.digest, header.offset, stream.bytes);
            return Ok(Some(Heard::ImagePiece {
                digest,
                offset,
                bytes,
            }));
        }
        None => return Err(Violation::Unexpected("a stream that nobody asked for")),
    }
    node.bundle_done(&header.digest);
    let Some(so_far) = wanted.get_mut(&header.digest) else {
        return Ok(None);
    };
    if header.offset != so_far.len() as u64 {
        so_far.clear();
        return Ok(None);
    }
    so_far.extend_from_slice(&stream.bytes);
    if so_far.len() as u64 != header.total {
        return Ok(None);
    }
    let bytes = std::mem::take(so_far);
    if Digest::of(&bytes) != header.digest {
        tracing::warn!(digest = %header.digest, "a bundle came with another digest and is thrown away");
        return Ok(None);
    }
    wanted.remove(&header.digest);
    let digest = header.digest;
    Ok(Some(Heard::Bundle { digest, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tenant: u8, text: &str) -> LogEntry {
        LogEntry {
            tenant: TenantId([tenant; 32]),
            function: "web".parse().unwrap(),
            request: None,
            level: LogLevel::Info,
            message: text.into(),
            time_ms: 0,
            failure: None,
        }
    }

    fn key(tenant: u8) -> FunctionKey {
        FunctionKey {
            tenant: [tenant; 32],
            function: "web".into(),
        }
    }

    #[tokio::test]
    async fn no_flood_hides_a_refusal_or_the_logs_of_another_and_what_is_missing_is_said() {
        let records = Records::default();
        for _ in 0..3 * MAX_LOGS {
            records.logs.push(key(1), entry(1, "flood"));
        }
        records.logs.push(key(2), entry(2, "log"));
        for _ in 0..3 * MAX_REFUSALS {
            let refusal = entry(1, "refused flood");
            records.refusals.push(refusal.tenant, refusal);
        }
        let refusal = entry(2, "refusal");
        records.refusals.push(refusal.tenant, refusal);

        let (mut words, mut quiet) = (Vec::new(), Vec::new());
        for _ in 0..MAX_LOGS + MAX_REFUSALS {
            let (word, entry) = records.next().await;
            words.extend(word);
            quiet.extend(Some(entry).filter(|entry| entry.tenant == TenantId([2; 32])));
        }
        quiet.sort_by_key(|entry| entry.message.len());
        assert_eq!(quiet, [entry(2, "log"), entry(2, "refusal")]);
        let dropped = [2 * MAX_LOGS + 1, 2 * MAX_REFUSALS + 1].map(|dropped| {
            let message =
                format!("{dropped} records were dropped: they come faster than they can be sent");
            let level = LogLevel::Warn;
            LogEntry {
                level,
                ..entry(1, &message)
            }
        });
        words.sort_by_key(|word| word.message != dropped[0].message);
        assert_eq!(words, dropped);
    }
}
