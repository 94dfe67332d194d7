//! The node's end.

mod event;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use casemate_trust::id::{Digest, TenantId};
use casemate_trust::release::MAX_BUNDLE_BYTES;

use crate::bounds::shorten;
use crate::bundle;
use crate::codec::{Decoder, Violation, encode};
use crate::message::{
    Cursor, Hello, LogEntry, MAX_AHEAD_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS,
    MAX_FETCH_DIGESTS, MAX_FETCHES, MAX_IMAGE_PIECE_BYTES, MAX_LOG_BYTES, MAX_STATUS_BYTES,
    MAX_TEXT_BYTES, MAX_UNACKED, NONCE_BYTES, NotStored, StatementId, ToControl, ToNode,
};

pub use event::{Expected, NodeEvent};

/// Most messages that wait to be written: an answer to each statement, and as many requests.
const MAX_WAITING: usize = 1024;
/// Most bundles that wait in the queue: every release of the largest plan.
const MAX_WANTED_BUNDLES: usize = 16 * 1024;
/// Most objects that were requested and have not come.
const MAX_WANTED_OBJECTS: usize = 16 * 1024;
/// Most bytes of waiting log text; the oldest records are dropped first and counted.
const MAX_LOG_QUEUE_BYTES: usize = 1024 * 1024;

/// A requested piece of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    digest: Digest,
    offset: u64,
    bytes: u32,
    is_sent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The node has asked to join.
    Joining,
    /// The node was admitted and has to send its hello.
    Admitted,
    /// The node has sent its hello.
    Greeting,
    /// The node is being served.
    Served,
}

/// The node's end of one connection: a state machine without IO, owned by the shell of the link.
/// `receive` takes bytes, `poll_event` gives what came, `ack` and `nack` answer it, `poll_transmit`
/// gives what to write; the crate's documentation has the order.
#[derive(Debug)]
pub struct NodeEnd {
    state: State,
    decoder: Decoder,
    waiting: VecDeque<ToControl>,
    unanswered: BTreeMap<StatementId, u64>,
    /// The position that the control plane's end reached, with statements that are not answered
    /// yet.
    synced: Option<Cursor>,
    wanted_objects: BTreeSet<Digest>,
    ahead_bytes: usize,
    fetching: BTreeSet<Digest>,
    wanted_bundles: VecDeque<(Digest, u64)>,
    piece: Option<Piece>,
    logs: VecDeque<LogEntry>,
    log_bytes: usize,
    lost: u64,
    status: Option<String>,
}

impl NodeEnd {
    /// Makes the end of an admitted node.
    pub fn member(hello: Hello) -> Self {
        Self::new(State::Greeting, ToControl::Hello(Box::new(hello)))
    }

    /// Makes the end of a node that is not admitted: `request` is the envelope that its vault
    /// signed.
    pub fn joining(request: Vec<u8>) -> Self {
        Self::new(State::Joining, ToControl::Join { request })
    }

    fn new(state: State, first: ToControl) -> Self {
        Self {
            state,
            decoder: Decoder::default(),
            waiting: VecDeque::from([first]),
            unanswered: BTreeMap::new(),
            synced: None,
            wanted_objects: BTreeSet::new(),
            ahead_bytes: 0,
            fetching: BTreeSet::new(),
            wanted_bundles: VecDeque::new(),
            piece: None,
            logs: VecDeque::new(),
            log_bytes: 0,
            lost: 0,
            status: None,
        }
    }

    /// Sends the hello after [`NodeEvent::Admitted`].
    ///
    /// # Errors
    /// The node was not just admitted.
    pub fn hello(&mut self, hello: Hello) -> Result<(), Violation> {
        if self.state != State::Admitted {
            return Err(Violation::Unexpected("a hello of ours"));
        }
        self.state = State::Greeting;
        self.ask(ToControl::Hello(Box::new(hello)))
    }

    /// Takes the bytes that were read from the stream.
    ///
    /// # Errors
    /// Too many bytes came, because events were not polled.
    pub fn receive(&mut self, chunk: &[u8]) -> Result<(), Violation> {
        self.decoder.receive(chunk)
    }

    /// The next event.
    ///
    /// # Errors
    /// The control plane broke the protocol.
    pub fn poll_event(&mut self) -> Result<Option<NodeEvent>, Violation> {
        if let Some(now) = self.synced.take_if(|_| self.unanswered.is_empty()) {
            return Ok(Some(NodeEvent::Synced { now }));
        }
        while let Some(message) = self.decoder.next()? {
            if let Some(event) = self.handle(message)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn handle(&mut self, message: ToNode) -> Result<Option<NodeEvent>, Violation> {
        let event = match (self.state, message) {
            (_, ToNode::Refused { code, message }) => NodeEvent::Refused { code, message },
            (_, ToNode::Revoked { list }) => NodeEvent::Revoked { list },
            (State::Joining, ToNode::JoinPending) => NodeEvent::JoinPending,
            (State::Joining, ToNode::JoinRefused { code, message }) => {
                NodeEvent::JoinRefused { code, message }
            }
            (State::Joining, ToNode::Admitted) => {
                self.state = State::Admitted;
                NodeEvent::Admitted
            }
            (State::Greeting, ToNode::Welcome { now }) => {
                self.state = State::Served;
                NodeEvent::Welcome { now }
            }
            (State::Served, message) => return self.handle_served(message),
            _ => return Err(Violation::Unexpected("a message before the welcome")),
        };
        Ok(Some(event))
    }

    fn handle_served(&mut self, message: ToNode) -> Result<Option<NodeEvent>, Violation> {
        match message {
            ToNode::Statement {
                revision,
                id,
                bytes,
            } => {
                self.ahead_bytes = 0;
                if self.unanswered.len() >= MAX_UNACKED
                    || self.unanswered.insert(id.clone(), revision).is_some()
                {
                    return Err(Violation::Flood("statements"));
                }
                Ok(Some(NodeEvent::Statement {
                    id,
                    revision,
                    bytes,
                }))
            }
            ToNode::Object {
                tenant,
                digest,
                kind,
                bytes,
            } => {
                if Digest::of(&bytes) != digest {
                    return Err(Violation::Digest);
                }
                if !self.wanted_objects.remove(&digest) {
                    self.ahead_bytes += bytes.len();
                }
                if self.ahead_bytes > MAX_AHEAD_BYTES {
                    return Err(Violation::Flood("objects"));
                }
                Ok(Some(NodeEvent::Object {
                    tenant,
                    digest,
                    kind,
                    bytes,
                }))
            }
            ToNode::Synced { now } if self.unanswered.is_empty() => {
                Ok(Some(NodeEvent::Synced { now }))
            }
            ToNode::Synced { now } => {
                self.synced = Some(now);
                Ok(None)
            }
            ToNode::Unavailable { digest } if self.is_image(&digest) => {
                self.piece = None;
                Ok(Some(NodeEvent::ImageUnavailable { digest }))
            }
            ToNode::Unavailable { digest } => {
                let was_wanted =
                    self.wanted_objects.remove(&digest) | self.fetching.remove(&digest);
                if !was_wanted {
                    return Err(Violation::Unexpected("an answer without a request"));
                }
                Ok(Some(NodeEvent::Unavailable { digest }))
            }
            ToNode::Lease { answer } => Ok(Some(NodeEvent::Lease { answer })),
            _ => Err(Violation::Unexpected("a message of joining")),
        }
    }

    /// Reports that the statement was accepted and is on disk.
    ///
    /// # Errors
    /// No such statement waits for an answer.
    pub fn ack(&mut self, id: &StatementId) -> Result<(), Violation> {
        let revision = self.answer(id)?;
        self.ask(ToControl::Ack {
            revision,
            id: id.clone(),
        })
    }

    /// Reports that every bundle of a manifest is on disk. Before the hello, which contains this,
    /// nothing is sent.
    ///
    /// # Errors
    /// Too many messages wait to be sent.
    pub fn stored(&mut self, tenant: TenantId, version: u64) -> Result<(), Violation> {
        if matches!(self.state, State::Joining | State::Admitted) {
            return Ok(());
        }
        self.ask(ToControl::Stored { tenant, version })
    }

    /// Reports that bundles of a manifest are missing here. Before the hello nothing is sent.
    ///
    /// # Errors
    /// Too many messages wait to be sent.
    pub fn not_stored(&mut self, not_stored: NotStored) -> Result<(), Violation> {
        if matches!(self.state, State::Joining | State::Admitted) {
            return Ok(());
        }
        self.ask(ToControl::NotStored(NotStored {
            code: shorten(not_stored.code, MAX_TEXT_BYTES),
            message: shorten(not_stored.message, MAX_TEXT_BYTES),
            ..not_stored
        }))
    }

    /// Reports that the statement was refused.
    ///
    /// # Errors
    /// No such statement waits for an answer.
    pub fn nack(&mut self, id: &StatementId, code: &str, message: &str) -> Result<(), Violation> {
        let revision = self.answer(id)?;
        self.ask(ToControl::Nack {
            revision,
            id: id.clone(),
            code: shorten(code.to_owned(), MAX_TEXT_BYTES),
            message: shorten(message.to_owned(), MAX_TEXT_BYTES),
        })
    }

    fn answer(&mut self, id: &StatementId) -> Result<u64, Violation> {
        self.unanswered
            .remove(id)
            .ok_or(Violation::Unexpected("an answer of ours"))
    }

    /// Requests objects that a manifest lists and that did not come with it.
    ///
    /// # Errors
    /// More are under way than allowed.
    pub fn fetch_objects(&mut self, tenant: TenantId, digests: &[Digest]) -> Result<(), Violation> {
        if self.wanted_objects.len() + digests.len() > MAX_WANTED_OBJECTS {
            return Err(Violation::Flood("objects"));
        }
        let new: Vec<_> = digests
            .iter()
            .filter(|digest| self.wanted_objects.insert(**digest))
            .copied()
            .collect();
        new.chunks(MAX_FETCH_DIGESTS).try_for_each(|digests| {
            let digests = digests.to_vec();
            self.ask(ToControl::FetchObjects { tenant, digests })
        })
    }

    /// Requests a bundle from `offset` on; at most [`MAX_FETCHES`] are under way, the others wait.
    /// Repeating a request changes nothing.
    ///
    /// # Errors
    /// More would wait than allowed.
    pub fn fetch_bundle(&mut self, digest: Digest, offset: u64) -> Result<(), Violation> {
        if self.wanted_bundles.len() >= MAX_WANTED_BUNDLES {
            return Err(Violation::Flood("bundles"));
        }
        let is_asked = self.fetching.contains(&digest)
            || self
                .wanted_bundles
                .iter()
                .any(|(wanted, _)| *wanted == digest);
        if !is_asked {
            self.wanted_bundles.push_back((digest, offset));
        }
        Ok(())
    }

    /// Requests a piece of an image, at most [`MAX_IMAGE_PIECE_BYTES`] from `offset` on. Only one
    /// may be under way: request the next one after [`NodeEnd::image_piece_done`] or
    /// [`NodeEvent::ImageUnavailable`].
    ///
    /// # Errors
    /// A piece is under way already.
    pub fn fetch_image(
        &mut self,
        digest: Digest,
        offset: u64,
        bytes: u32,
    ) -> Result<(), Violation> {
        if self.piece.is_some() {
            return Err(Violation::Flood("pieces of images"));
        }
        self.piece = Some(Piece {
            digest,
            offset,
            bytes: bytes.min(MAX_IMAGE_PIECE_BYTES),
            is_sent: false,
        });
        Ok(())
    }

    /// Whether a piece of an image is under way.
    pub const fn is_fetching_image(&self) -> bool {
        self.piece.is_some()
    }

    /// The stream of a piece has ended, complete or not.
    pub fn image_piece_done(&mut self) {
        self.piece = None;
    }

    fn is_image(&self, digest: &Digest) -> bool {
        self.piece
            .is_some_and(|piece| piece.is_sent && piece.digest == *digest)
    }

    /// The request that a stream's header answers; without one, the stream must be stopped.
    pub fn expects(&self, header: &bundle::Header) -> Option<Expected> {
        let is_piece = |piece: &Piece| {
            let bytes = header.total.saturating_sub(header.offset);
            piece.is_sent
                && (piece.digest, piece.offset) == (header.digest, header.offset)
                && bytes <= u64::from(piece.bytes)
        };
        if self.piece.as_ref().is_some_and(is_piece) {
            return Some(Expected::ImagePiece);
        }
        let is_bundle = self.fetching.contains(&header.digest) && header.total <= MAX_BUNDLE_BYTES;
        is_bundle.then_some(Expected::Bundle)
    }

    /// A bundle's stream has ended, complete or not: the next may be requested.
    pub fn bundle_done(&mut self, digest: &Digest) {
        self.fetching.remove(digest);
    }

    /// Requests a lease.
    ///
    /// # Errors
    /// Too many messages wait to be written.
    pub fn lease(&mut self, nonce: [u8; NONCE_BYTES]) -> Result<(), Violation> {
        self.ask(ToControl::Lease { nonce })
    }

    /// Adds a log record; when records come faster than they can be sent, the oldest are dropped
    /// and counted.
    pub fn log(&mut self, mut entry: LogEntry) {
        entry.request = entry.request.map(|text| shorten(text, MAX_LOG_BYTES / 8));
        entry.failure = entry.failure.map(|text| shorten(text, MAX_LOG_BYTES / 8));
        entry.message = shorten(entry.message, MAX_LOG_BYTES / 2);
        self.log_bytes += size_in_queue(&entry);
        self.logs.push_back(entry);
        while self.log_bytes > MAX_LOG_QUEUE_BYTES {
            let Some(oldest) = self.logs.pop_front() else {
                break;
            };
            self.log_bytes -= size_in_queue(&oldest);
            self.lost += 1;
        }
    }

    /// Replaces the node's report about itself, a JSON object. A report over [`MAX_STATUS_BYTES`]
    /// is not sent.
    pub fn status(&mut self, json: String) {
        self.status = Some(json).filter(|json| json.len() <= MAX_STATUS_BYTES);
    }

    fn ask(&mut self, message: ToControl) -> Result<(), Violation> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(Violation::Flood("messages of ours"));
        }
        self.waiting.push_back(message);
        Ok(())
    }

    /// The next frame to write.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        if let Some(message) = self.waiting.pop_front() {
            return Some(encode(&message));
        }
        if self.state != State::Served {
            return None;
        }
        if self.fetching.len() < MAX_FETCHES
            && let Some((digest, offset)) = self.wanted_bundles.pop_front()
        {
            self.fetching.insert(digest);
            return Some(encode(&ToControl::FetchBundle { digest, offset }));
        }
        if let Some(piece) = self.piece.as_mut().filter(|piece| !piece.is_sent) {
            piece.is_sent = true;
            let Piece {
                digest,
                offset,
                bytes,
                ..
            } = *piece;
            let message = ToControl::FetchImage {
                digest,
                offset,
                bytes,
            };
            return Some(encode(&message));
        }
        if let Some(json) = self.status.take() {
            return Some(encode(&ToControl::Status { json }));
        }
        self.batch().map(|message| encode(&message))
    }

    fn batch(&mut self) -> Option<ToControl> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while entries.len() < MAX_BATCH_RECORDS
            && let Some(entry) = self
                .logs
                .pop_front_if(|entry| bytes + entry.bytes() <= MAX_BATCH_BYTES)
        {
            bytes += entry.bytes();
            self.log_bytes -= size_in_queue(&entry);
            entries.push(entry);
        }
        if entries.is_empty() {
            return None;
        }
        let lost = std::mem::take(&mut self.lost);
        Some(ToControl::Logs { entries, lost })
    }
}

/// A record without text takes memory too.
fn size_in_queue(entry: &LogEntry) -> usize {
    size_of::<LogEntry>() + entry.bytes()
}
