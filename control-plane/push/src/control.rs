//! The control plane's end of one connection.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use casemate_trust::id::{Digest, TenantId};

use crate::bounds::shorten;
use crate::catalog::{Catalog, ControlEvent, Member, StoredObject, Transmit};
use crate::codec::{Decoder, Violation, encode};
use crate::listing::Listings;
use crate::message::{
    Cursor, Has, Hello, MAX_AHEAD_BYTES, MAX_BUNDLES_IN_HAND, MAX_IMAGE_PIECES, MAX_TEXT_BYTES,
    MAX_UNACKED, StatementId, ToControl, ToNode,
};

/// Most entries in the queue of objects to send, each a digest: the largest manifest and as many
/// fetches.
const MAX_WORK: usize = 32 * 1024;
/// Most small answers that wait to be written; a node that sends requests and does not read is
/// closed.
const MAX_ANSWERS: usize = 256;
#[derive(Debug)]
enum State {
    /// The node is not admitted; whether it has asked to join.
    Stranger { has_asked: bool },
    /// The node is admitted, and has not sent its hello.
    Silent(Member),
    /// The node is being served.
    Served(Member),
}

#[derive(Debug)]
enum Work {
    Statement { revision: u64, id: StatementId },
    Object(Object),
}

#[derive(Debug)]
struct Object {
    tenant: TenantId,
    digest: Digest,
    /// Whether the object was requested; otherwise it precedes the manifest that lists it.
    is_wanted: bool,
}

/// The control plane's end of one connection: a state machine without IO, owned by the task that
/// serves the connection. `receive` takes bytes, `poll_event` returns the shell's next task,
/// `poll_transmit` returns bytes to write; the crate's documentation has the order.
#[derive(Debug)]
pub struct ControlEnd {
    /// The version of the handshake.
    version: u16,
    state: State,
    decoder: Decoder,
    answers: VecDeque<ToNode>,
    work: VecDeque<Work>,
    loading: Option<Object>,
    /// The statements that the node has or was sent.
    has: Has,
    /// Tenants that the hello did not list need nothing up to this revision.
    unlisted_until: u64,
    /// Everything up to this revision was considered.
    position: u64,
    synced: Option<u64>,
    unacked: BTreeMap<StatementId, u64>,
    /// Statements of freshness that wait until the node has judged a manifest of the same tenant.
    /// While the node fetches that manifest's objects, such a statement would reach the vault first
    /// and stop the tenant's credentials.
    deferred: BTreeMap<TenantId, (u64, StatementId)>,
    /// Newest manifests that were read.
    read: Listings,
    /// Manifests whose objects were sent.
    sent: Listings,
    ahead_bytes: usize,
    /// Bundles that are being sent.
    bundles: usize,
    image_pieces: usize,
}

impl ControlEnd {
    /// Makes the end for an admitted key, with the version of the handshake.
    pub fn member(member: Member, version: u16) -> Self {
        Self::new(State::Silent(member), version)
    }

    /// Makes the end for an unknown key.
    pub fn stranger(version: u16) -> Self {
        Self::new(State::Stranger { has_asked: false }, version)
    }

    fn new(state: State, version: u16) -> Self {
        Self {
            version,
            state,
            decoder: Decoder::default(),
            answers: VecDeque::new(),
            work: VecDeque::new(),
            loading: None,
            has: Has::default(),
            unlisted_until: 0,
            position: 0,
            synced: None,
            unacked: BTreeMap::new(),
            deferred: BTreeMap::new(),
            read: Listings::default(),
            sent: Listings::default(),
            ahead_bytes: 0,
            bundles: 0,
            image_pieces: 0,
        }
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
    /// The node broke the protocol.
    pub fn poll_event(&mut self, catalog: &dyn Catalog) -> Result<Option<ControlEvent>, Violation> {
        while let Some(message) = self.decoder.next()? {
            if let Some(event) = self.handle(message, catalog)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn handle(
        &mut self,
        message: ToControl,
        catalog: &dyn Catalog,
    ) -> Result<Option<ControlEvent>, Violation> {
        match (&mut self.state, message) {
            (State::Stranger { has_asked }, ToControl::Join { request }) if !*has_asked => {
                *has_asked = true;
                Ok(Some(ControlEvent::Join { request }))
            }
            (State::Stranger { .. }, ToControl::Hello(_)) => Err(Violation::Unknown),
            (State::Stranger { .. }, _) => Err(Violation::Unexpected(
                "anything but a join request from a stranger",
            )),
            (State::Silent(member), ToControl::Hello(hello)) => {
                check_hello(member, &hello, self.version)?;
                self.state = State::Served(member.clone());
                self.begin(&hello, catalog.now());
                Ok(Some(ControlEvent::Hello(hello)))
            }
            // The node was admitted while its request was on the way.
            (State::Silent(_), ToControl::Join { .. }) => {
                self.answer(ToNode::Admitted)?;
                Ok(None)
            }
            (State::Silent(_), _) => Err(Violation::Unexpected("a message before the hello")),
            (State::Served(_), message) => self.handle_served(message, catalog),
        }
    }

    fn handle_served(
        &mut self,
        message: ToControl,
        catalog: &dyn Catalog,
    ) -> Result<Option<ControlEvent>, Violation> {
        Ok(Some(match message {
            ToControl::Hello(_) | ToControl::Join { .. } => {
                return Err(Violation::Unexpected("a second hello"));
            }
            ToControl::Ack { revision, id } => {
                self.answered(revision, &id)?;
                ControlEvent::Acked { revision, id }
            }
            ToControl::Nack {
                revision,
                id,
                code,
                message,
            } => {
                self.answered(revision, &id)?;
                ControlEvent::Nacked {
                    revision,
                    id,
                    code,
                    message,
                }
            }
            ToControl::Stored { tenant, version } => ControlEvent::Stored { tenant, version },
            ToControl::NotStored(not_stored) => ControlEvent::NotStored(not_stored),
            ToControl::FetchBundle { digest, offset } => {
                self.bundles += 1;
                if self.bundles > MAX_BUNDLES_IN_HAND {
                    return Err(Violation::Flood("bundles"));
                }
                ControlEvent::FetchBundle { digest, offset }
            }
            ToControl::FetchImage {
                digest,
                offset,
                bytes,
            } => {
                self.image_pieces += 1;
                if self.image_pieces > MAX_IMAGE_PIECES {
                    return Err(Violation::Flood("pieces of images"));
                }
                ControlEvent::FetchImage {
                    digest,
                    offset,
                    bytes,
                }
            }
            ToControl::FetchObjects { tenant, digests } => {
                self.fetch_objects(tenant, &digests, catalog)?;
                ControlEvent::FetchObjects
            }
            ToControl::Lease { nonce } => ControlEvent::Lease { nonce },
            ToControl::Logs { entries, lost } => ControlEvent::Logs { entries, lost },
            ToControl::Status { json } => ControlEvent::Status { json },
        }))
    }

    fn begin(&mut self, hello: &Hello, now: Cursor) {
        self.has = hello.has.clone();
        let resumes = hello
            .cursor
            .filter(|cursor| cursor.store == now.store && cursor.revision <= now.revision);
        self.unlisted_until = resumes.map_or(0, |cursor| cursor.revision);
        self.answers.push_back(ToNode::Welcome { now });
    }

    fn answered(&mut self, revision: u64, id: &StatementId) -> Result<(), Violation> {
        match self.unacked.remove(id) {
            Some(sent) if sent == revision => {}
            _ => return Err(Violation::Unexpected("an answer to what was not sent")),
        }
        if let Some(tenant) = id.tenant()
            && !self.awaits_manifest(tenant)
            && let Some((revision, id)) = self.deferred.remove(tenant)
        {
            self.work.push_back(Work::Statement { revision, id });
        }
        Ok(())
    }

    /// Whether the node still has to answer a manifest of this tenant.
    fn awaits_manifest(&self, tenant: &TenantId) -> bool {
        let of = |version| StatementId::Manifest {
            tenant: *tenant,
            version,
        };
        self.unacked.range(of(0)..=of(u64::MAX)).next().is_some()
    }

    fn fetch_objects(
        &mut self,
        tenant: TenantId,
        digests: &[Digest],
        catalog: &dyn Catalog,
    ) -> Result<(), Violation> {
        if digests.is_empty() {
            return Err(Violation::Unexpected("a request for no objects"));
        }
        if self.work.len() + digests.len() > MAX_WORK {
            return Err(Violation::Flood("objects"));
        }
        let listing = self.listing(tenant, catalog);
        for digest in digests {
            if listing
                .as_ref()
                .is_some_and(|listing| listing.objects.contains(digest))
            {
                self.work.push_back(Work::Object(Object {
                    tenant,
                    digest: *digest,
                    is_wanted: true,
                }));
            } else {
                self.answer(ToNode::Unavailable { digest: *digest })?;
            }
        }
        Ok(())
    }

    /// The request is plausible and waits.
    pub fn join_pending(&mut self) {
        self.answers.push_back(ToNode::JoinPending);
    }

    /// The request will not be relayed.
    pub fn join_refused(&mut self, code: &str, message: &str) {
        let (code, message) = (code.to_owned(), shorten(message.to_owned(), MAX_TEXT_BYTES));
        self.answers
            .push_back(ToNode::JoinRefused { code, message });
    }

    /// The node has become a member.
    pub fn admitted(&mut self, member: Member) {
        if matches!(self.state, State::Stranger { .. }) {
            self.state = State::Silent(member);
            self.answers.push_back(ToNode::Admitted);
        }
    }

    /// Sends the answer to a lease request.
    ///
    /// # Errors
    /// The node sends requests and does not read.
    pub fn lease_answer(&mut self, answer: Vec<u8>) -> Result<(), Violation> {
        self.answer(ToNode::Lease { answer })
    }

    /// A bundle's stream has ended, complete or not.
    pub fn bundle_done(&mut self) {
        self.bundles = self.bundles.saturating_sub(1);
    }

    /// There is no such bundle for this node.
    ///
    /// # Errors
    /// The node sends requests and does not read.
    pub fn bundle_unavailable(&mut self, digest: &Digest) -> Result<(), Violation> {
        self.bundle_done();
        self.answer(ToNode::Unavailable { digest: *digest })
    }

    /// A piece's stream has ended, complete or not.
    pub fn image_piece_done(&mut self) {
        self.image_pieces = self.image_pieces.saturating_sub(1);
    }

    /// There is no such image for this node.
    ///
    /// # Errors
    /// The node sends requests and does not read.
    pub fn image_unavailable(&mut self, digest: &Digest) -> Result<(), Violation> {
        self.image_piece_done();
        self.answer(ToNode::Unavailable { digest: *digest })
    }

    /// The root has revoked the node: its list becomes the next message, before anything else that
    /// waits, and the last one that the shell has to write before it closes the connection.
    pub fn revoked(&mut self, list: Vec<u8>) {
        self.answers.push_front(ToNode::Revoked { list });
    }

    /// Queues the last message before the connection is closed.
    pub fn refuse(&mut self, code: &str, message: &str) {
        let (code, message) = (code.to_owned(), shorten(message.to_owned(), MAX_TEXT_BYTES));
        self.answers.push_back(ToNode::Refused { code, message });
    }

    /// The member, once it has sent its hello.
    pub const fn served(&self) -> Option<&Member> {
        match &self.state {
            State::Served(member) => Some(member),
            State::Stranger { .. } | State::Silent(_) => None,
        }
    }

    /// Revision up to which everything was sent.
    pub const fn synced(&self) -> Option<u64> {
        self.synced
    }

    fn answer(&mut self, message: ToNode) -> Result<(), Violation> {
        if self.answers.len() >= MAX_ANSWERS {
            return Err(Violation::Flood("questions"));
        }
        self.answers.push_back(message);
        Ok(())
    }

    /// The next bytes to write. Call it when the stream has capacity, and again when the catalog
    /// has changed: objects are read only at this point, so a slow node costs no memory.
    pub fn poll_transmit(&mut self, catalog: &dyn Catalog) -> Option<Transmit> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(Transmit::Frame(encode(&answer)));
        }
        self.served()?;
        while self.unacked.len() < MAX_UNACKED && self.loading.is_none() {
            match self.work.pop_front() {
                Some(Work::Statement {
                    revision,
                    id: id @ StatementId::Freshness { tenant, .. },
                }) if self.awaits_manifest(&tenant) => {
                    self.deferred.insert(tenant, (revision, id));
                }
                Some(Work::Statement { revision, id }) => {
                    if let Some(bytes) = catalog.statement(&id) {
                        self.ahead_bytes = 0;
                        self.unacked.insert(id.clone(), revision);
                        let message = ToNode::Statement {
                            revision,
                            id,
                            bytes,
                        };
                        return Some(Transmit::Frame(encode(&message)));
                    }
                }
                Some(Work::Object(object)) => {
                    let (tenant, digest) = (object.tenant, object.digest);
                    self.loading = Some(object);
                    return Some(Transmit::Load { tenant, digest });
                }
                None => match catalog.next_after(self.position) {
                    Some((revision, ids)) => {
                        self.position = revision;
                        ids.into_iter()
                            .for_each(|id| self.plan(revision, id, catalog));
                    }
                    None if !self.deferred.is_empty() => return None,
                    None => {
                        let message = self.sync(catalog.now())?;
                        return Some(Transmit::Frame(encode(&message)));
                    }
                },
            }
        }
        None
    }

    /// Takes the object for [`Transmit::Load`], or its absence.
    pub fn loaded(&mut self, found: Option<StoredObject>) {
        let Some(Object {
            tenant,
            digest,
            is_wanted,
        }) = self.loading.take()
        else {
            return;
        };
        match found {
            Some(StoredObject { kind, bytes }) => {
                if !is_wanted {
                    // The node will request what exceeds the bytes that may precede a manifest.
                    if self.ahead_bytes + bytes.len() > MAX_AHEAD_BYTES {
                        return;
                    }
                    self.ahead_bytes += bytes.len();
                }
                self.answers.push_front(ToNode::Object {
                    tenant,
                    digest,
                    kind,
                    bytes,
                });
            }
            None if is_wanted => self.answers.push_front(ToNode::Unavailable { digest }),
            None => {}
        }
    }

    fn sync(&mut self, now: Cursor) -> Option<ToNode> {
        if self.synced == Some(now.revision) {
            return None;
        }
        self.synced = Some(now.revision);
        Some(ToNode::Synced { now })
    }
}

fn check_hello(member: &Member, hello: &Hello, version: u16) -> Result<(), Violation> {
    if hello.protocol != version {
        return Err(Violation::Protocol {
            ours: version,
            theirs: hello.protocol,
        });
    }
    let is_same =
        hello.node == member.name && hello.node_key == member.key && hello.fleet == member.fleet;
    if is_same {
        Ok(())
    } else {
        Err(Violation::Identity)
    }
}
