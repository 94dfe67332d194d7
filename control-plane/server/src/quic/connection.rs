//! One node's connection: bytes in, events handled, frames out, all in one task that never waits for the node.

use std::time::Duration;

use casemate_push::bundle::Header;
use casemate_push::{Agreed, ControlEnd, ControlEvent, Member, Transmit, close};
use casemate_trust::id::Digest;
use casemate_trust::key::PublicKey;
use casemate_trust::lease::Lease;
use casemate_trust::statement::Statement as _;
use quinn::{Connecting, Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::arrivals::Arrival;
use crate::places::network;
use crate::plane::{Joining, Unwelcome, Visit};
use crate::tls;

use super::ending::{Ending, Gone, Stop, duplicate, evicted, revoked};
use super::seat::Seat;
use super::shell::{FIRST_WORD, Shell};
use super::watch::{NoCatalog, watch};
use super::{apart, send};

/// How long a stranger's connection may wait for the operator.
const STRANGER_TIME: Duration = Duration::from_secs(10 * 60);
/// Time limit for a last message before the connection is closed.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Bytes that are read at a time.
const CHUNK_BYTES: usize = 64 * 1024;
impl Shell {
    /// Serves the connection. `arrival` is its slot until its key is known.
    pub(super) async fn run(self, connecting: Connecting, arrival: Arrival) {
        let connected = tokio::select! {
            connected = tokio::time::timeout(FIRST_WORD, connecting) => connected,
            () = arrival.evicted().cancelled() => return,
        };
        let Ok(Ok(connection)) = connected else {
            return;
        };
        let remote = connection.remote_address();
        let Some(key) = peer_key(&connection) else {
            return;
        };
        let is_member = self.plane.member(&key).is_some();
        let seat = self.seats.take(key, is_member, network(remote.ip()));
        drop(arrival);
        let stopped = match seat {
            Some(seat) => self.meet(&connection, key, seat).await,
            None => Ending::new(close::TOO_MANY, "too many connections; try again later").into(),
        };
        if let Stop::Ending(Ending { code, reason }) = stopped {
            tracing::info!(%remote, %key, code, reason, "closed a node's connection");
            connection.close(VarInt::from_u32(code), reason.as_bytes());
        }
    }

    async fn meet(self, connection: &Connection, key: PublicKey, seat: Seat) -> Stop {
        let opened = tokio::select! {
            opened = tokio::time::timeout(FIRST_WORD, connection.accept_bi()) => opened,
            () = seat.evicted() => return evicted().into(),
        };
        match opened {
            Ok(Ok((send, recv))) => match apart::agreed(connection, self.versions) {
                Some(Agreed::Version(version)) => {
                    self.talk(connection, (key, version), seat, send, recv)
                        .await
                }
                Some(Agreed::Apart) => {
                    let address = connection.remote_address();
                    apart::part(&self, address, key, recv).await
                }
                None => Stop::Gone,
            },
            Ok(Err(_)) => Stop::Gone,
            Err(_) => Ending::new(close::WAITED, "the node opened no stream").into(),
        }
    }

    async fn talk(
        self,
        connection: &Connection,
        (key, version): (PublicKey, u16),
        seat: Seat,
        send: SendStream,
        recv: RecvStream,
    ) -> Stop {
        let mut talk = Talk {
            changes: self.plane.changes(),
            connection: connection.clone(),
            key,
            version,
            send,
            recv,
            control: ControlEnd::stranger(version),
            stage: Stage::Stranger(seat),
            pending: Vec::new(),
            written: 0,
            bundles: JoinSet::new(),
            image_pieces: JoinSet::new(),
            deadline: Instant::now() + FIRST_WORD,
            shell: self,
        };
        if talk.tell_revoked().await {
            return revoked().into();
        }
        let stopped = match talk.begin() {
            Ok(()) => loop {
                if let Err(stop) = talk.step().await {
                    break stop;
                }
            },
            Err(stop) => stop,
        };
        if let Stage::Member(_, visit) = &talk.stage {
            tracing::info!(node = %visit.node, "disconnected");
            talk.shell.plane.depart(visit).await;
        }
        stopped
    }
}

/// The client's key, which its handshake has proven.
fn peer_key(connection: &Connection) -> Option<PublicKey> {
    let identity = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    tls::public_key(identity.first()?)
}

enum Stage {
    /// Holds its slot until it disconnects or is admitted.
    Stranger(Seat),
    Member(Member, Visit),
}

struct Talk {
    shell: Shell,
    connection: Connection,
    key: PublicKey,
    /// Version of the protocol that the handshake has agreed on.
    version: u16,
    send: SendStream,
    recv: RecvStream,
    control: ControlEnd,
    stage: Stage,
    changes: watch::Receiver<u64>,
    /// The frame that is being sent, and how much of it is written.
    pending: Vec<u8>,
    written: usize,
    bundles: JoinSet<()>,
    image_pieces: JoinSet<()>,
    /// Time limit for the first message, or for a stranger's wait; members have none after their
    /// hello.
    deadline: Instant,
}

impl Talk {
    fn begin(&mut self) -> Result<(), Stop> {
        let Some(member) = self.shell.plane.member(&self.key) else {
            return Ok(());
        };
        self.control = ControlEnd::member(member.clone(), self.version);
        self.become_member(member)
    }

    fn become_member(&mut self, member: Member) -> Result<(), Stop> {
        let visit = self.shell.plane.arrive(&member).map_err(|no| match no {
            Unwelcome::Revoked => revoked(),
            Unwelcome::Duplicate => duplicate(),
        })?;
        self.stage = Stage::Member(member, visit);
        self.deadline = Instant::now() + FIRST_WORD;
        Ok(())
    }

    fn member(&self) -> Option<&Member> {
        match &self.stage {
            Stage::Member(member, _) => Some(member),
            Stage::Stranger(_) => None,
        }
    }

    /// Waits for the first event, and handles it.
    async fn step(&mut self) -> Result<(), Stop> {
        self.fill().await?;
        let is_waiting = self.written < self.pending.len();
        let is_timed = self.control.served().is_none();
        let has_bundles = !self.bundles.is_empty();
        let has_pieces = !self.image_pieces.is_empty();
        let (closing, seat) = match &mut self.stage {
            Stage::Member(_, visit) => (Some(&mut visit.closing), None),
            Stage::Stranger(seat) => (None, Some(&*seat)),
        };
        tokio::select! {
            read = self.recv.read_chunk(CHUNK_BYTES, true) => {
                let chunk = read.ok().flatten().ok_or(Gone)?;
                self.control.receive(&chunk.bytes)?;
                // The node's requests may follow from the end of a stream that it has noticed
                // already.
                while self.bundles.try_join_next().is_some() {
                    self.control.bundle_done();
                }
                self.handle_events().await
            }
            written = self.send.write(&self.pending[self.written..]), if is_waiting => {
                self.written += written.map_err(|_| Gone)?;
                Ok(())
            }
            changed = self.changes.changed() => {
                changed.map_err(|_| Gone)?;
                self.notice_admission()
            }
            code = closed_by_us(closing) => {
                let reason = if code == close::REPLACED {
                    if let Some(member) = self.member() {
                        watch(&self.connection, &self.shell, &member.name).await;
                    }
                    "the node has connected again"
                } else {
                    self.tell_revoked().await;
                    "the node was revoked"
                };
                Err(Ending::new(code, reason).into())
            }
            () = lost_slot(seat) => Err(evicted().into()),
            _ = self.bundles.join_next(), if has_bundles => {
                self.control.bundle_done();
                Ok(())
            }
            _ = self.image_pieces.join_next(), if has_pieces => {
                self.control.image_piece_done();
                Ok(())
            }
            () = tokio::time::sleep_until(self.deadline), if is_timed => {
                Err(Ending::new(close::WAITED, "waited long enough; try again").into())
            }
            () = self.shell.stopping.cancelled() => Err(Ending::new(close::STOPPING, "the control plane stops").into()),
        }
    }

    /// Writes the next frame to the stream.
    async fn fill(&mut self) -> Result<(), Stop> {
        while self.written == self.pending.len() {
            let before = self.control.synced();
            let transmit = match &self.stage {
                Stage::Member(member, _) => {
                    let poll =
                        |catalog: &dyn casemate_push::Catalog| self.control.poll_transmit(catalog);
                    self.shell
                        .plane
                        .with_catalog(&member.name, &member.pool, poll)
                }
                Stage::Stranger(_) => self.control.poll_transmit(&NoCatalog),
            };
            match transmit {
                None => return Ok(()),
                Some(Transmit::Frame(frame)) => (self.pending, self.written) = (frame, 0),
                Some(Transmit::Load { tenant, digest }) => {
                    let failed =
                        |_| Ending::new(close::STOPPING, "the control plane's store failed");
                    let found = self
                        .shell
                        .plane
                        .object(&tenant, &digest)
                        .await
                        .map_err(failed)?;
                    self.control.loaded(found);
                }
            }
            if self.control.synced() != before
                && let Some(member) = self.member()
            {
                self.shell.plane.synced(&member.name, self.control.synced());
            }
        }
        Ok(())
    }

    /// Checks whether a stranger has become a member.
    fn notice_admission(&mut self) -> Result<(), Stop> {
        if matches!(self.stage, Stage::Stranger(_))
            && let Some(member) = self.shell.plane.member(&self.key)
        {
            self.control.admitted(member.clone());
            self.become_member(member)?;
        }
        Ok(())
    }

    /// Sends a revoked node the root's list that names it, so that its vault forgets the pool's
    /// keys; returns whether the list names it.
    async fn tell_revoked(&mut self) -> bool {
        let Some(list) = self.shell.plane.revocation(&self.key) else {
            return false;
        };
        self.control.revoked(list);
        self.last_word().await;
        true
    }

    /// Writes the rest of the current frame and the next one, and ends the stream, within a time
    /// limit.
    async fn last_word(&mut self) {
        let said = async {
            let rest = &self.pending[self.written..];
            self.send.write_all(rest).await.ok();
            self.written = self.pending.len();
            if self.fill().await.is_ok() {
                let next = &self.pending[self.written..];
                self.send.write_all(next).await.ok();
            }
            self.send.finish().ok();
            self.send.stopped().await.ok();
        };
        tokio::time::timeout(LAST_WORD, said).await.ok();
    }

    async fn handle_events(&mut self) -> Result<(), Stop> {
        loop {
            let event = match &self.stage {
                Stage::Member(member, _) => {
                    let poll =
                        |catalog: &dyn casemate_push::Catalog| self.control.poll_event(catalog);
                    self.shell
                        .plane
                        .with_catalog(&member.name, &member.pool, poll)?
                }
                Stage::Stranger(_) => self.control.poll_event(&NoCatalog)?,
            };
            match event {
                None => return Ok(()),
                Some(ControlEvent::Join { request }) => self.join(&request).await?,
                Some(event) => self.handle(event).await?,
            }
        }
    }

    async fn join(&mut self, request: &[u8]) -> Result<(), Stop> {
        self.deadline = Instant::now() + STRANGER_TIME;
        let address = self.connection.remote_address().ip();
        match self.shell.plane.join(&self.key, address, request).await {
            Joining::Pending => {
                if let Stage::Stranger(seat) = &mut self.stage {
                    seat.prove(self.key, &self.shell.seats);
                }
                self.control.join_pending();
                Ok(())
            }
            Joining::Refused(fault) => {
                let (code, message) = (&fault.body.error.code, &fault.body.error.message);
                self.control.join_refused(code, message);
                self.last_word().await;
                Err(Ending::new(close::JOIN_REFUSED, code.clone()).into())
            }
        }
    }

    async fn handle(&mut self, event: ControlEvent) -> Result<(), Stop> {
        let Some(member) = self.member().cloned() else {
            return Ok(());
        };
        let plane = &self.shell.plane;
        match event {
            ControlEvent::Join { .. } => {}
            ControlEvent::Hello(hello) => {
                let protocol = hello.protocol;
                tracing::info!(node = %member.name, version = hello.software, protocol, "connected");
                plane.hello(&member.name, &hello);
            }
            ControlEvent::Acked { id, .. } => plane.acked(&member.name, &id),
            ControlEvent::Stored { tenant, version } => {
                plane.stored(&member.name, &tenant, version);
            }
            ControlEvent::NotStored(not_stored) => {
                plane.not_stored(&member.name, not_stored).await;
            }
            ControlEvent::Nacked {
                id, code, message, ..
            } => {
                tracing::warn!(node = %member.name, what = %id, code, message, "a node refused a \
                statement");
                plane.nacked(&member.name, id, code, message).await;
            }
            ControlEvent::FetchBundle { digest, offset } => {
                self.send_bundle(&member, digest, offset).await?;
            }
            ControlEvent::FetchImage {
                digest,
                offset,
                bytes,
            } => {
                self.send_image_piece(&member, digest, offset, bytes)
                    .await?;
            }
            // The event may have caused the reading of a large manifest: other connections go
            // first.
            ControlEvent::FetchObjects => tokio::task::yield_now().await,
            ControlEvent::Lease { nonce } => {
                let lease = Lease {
                    fleet: member.fleet,
                    node: member.key,
                    nonce: nonce.to_vec(),
                    claims: plane.claims(&member.name, &member.pool),
                };
                self.control
                    .lease_answer(lease.sign(&[&self.shell.keys.liveness]).to_bytes())?;
            }
            ControlEvent::Logs { entries, lost } => {
                if lost > 0 {
                    tracing::warn!(node = %member.name, lost, "log records were lost on the node");
                }
                plane
                    .audit_reflections(&member.name, &member.pool, &entries)
                    .await;
                plane.log(&member.name, &member.pool, entries);
            }
            ControlEvent::Status { json } => plane.status(&member.name, &json),
        }
        Ok(())
    }

    async fn send_bundle(
        &mut self,
        member: &Member,
        digest: Digest,
        offset: u64,
    ) -> Result<(), Stop> {
        let plane = &self.shell.plane;
        let found = match plane.bundle_owner(&member.pool, &digest) {
            Some(tenant) => {
                let found = plane.bundles().get(&tenant, &digest, offset).await;
                found.ok().flatten()
            }
            None => None,
        };
        let Some((total, content)) = found else {
            return Ok(self.control.bundle_unavailable(&digest)?);
        };
        let header = Header {
            digest,
            offset,
            total,
        };
        self.bundles
            .spawn(send::bundle(self.connection.clone(), header, content));
        Ok(())
    }

    async fn send_image_piece(
        &mut self,
        member: &Member,
        digest: Digest,
        offset: u64,
        bytes: u32,
    ) -> Result<(), Stop> {
        let plane = &self.shell.plane;
        let found = plane
            .image_piece(&member.pool, &digest, offset, bytes)
            .await;
        let Some((total, content)) = found.ok().flatten() else {
            return Ok(self.control.image_unavailable(&digest)?);
        };
        let header = Header {
            digest,
            offset,
            total,
        };
        self.image_pieces
            .spawn(send::image_piece(self.connection.clone(), header, content));
        Ok(())
    }
}

/// Waits until this connection has to close.
async fn closed_by_us(closing: Option<&mut watch::Receiver<Option<u32>>>) -> u32 {
    match closing {
        Some(closing) => match closing.wait_for(Option::is_some).await {
            Ok(code) => (*code).unwrap_or(close::REVOKED),
            Err(_) => close::REVOKED,
        },
        None => std::future::pending().await,
    }
}

/// Waits until a stranger has lost its slot.
async fn lost_slot(seat: Option<&Seat>) {
    match seat {
        Some(seat) => seat.evicted().await,
        None => std::future::pending().await,
    }
}
