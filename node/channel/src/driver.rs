//! One task for each channel: moves bytes between the socket and the state that all handles share.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, Bytes};
use casemate_wire::channel::MAX_OUTPUT_BYTES;
use casemate_wire::{Channel, Event, RequestHead, Side, StreamId};
use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{Notify, SetOnce};

use crate::StreamError;
use crate::arrived::Arrived;
use crate::openings::Openings;

/// Read at a time: a few of the largest frames.
const READ_BYTES: usize = 128 * 1024;

/// Reads after which the driver yields to the other tasks of this thread, so that an end that
/// writes without pause does not starve them.
const READS_IN_A_TURN: u32 = 4;

/// Output that is worth a write, bytes: some ten heads. Waiting for more would leave the other end
/// idle.
const WRITE_BYTES: usize = 2 * 1024;

/// State that handles and driver share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Notifies the driver that there is output.
    wake: Notify,
    /// Notifies the driver that there is enough output for a write.
    full: Notify,
    /// Notifies all handles that the channel has closed.
    over: Notify,
    /// Set when the other end takes no new streams.
    going_away: SetOnce<()>,
    /// Set when the driver has ended.
    ended: SetOnce<()>,
}

/// The state under the lock, which is never held across an await.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) channel: Channel,
    pub(crate) streams: HashMap<StreamId, Arrived>,
    requests: VecDeque<(StreamId, RequestHead, bool)>,
    /// The last request that was accepted.
    last_accepted: StreamId,
    accepting: Option<Waker>,
    pub(crate) closed: bool,
    /// Senders that wait for the output to drain.
    draining: Vec<Waker>,
    pub(crate) openings: Openings,
}

/// Dropped with the last handle, which ends the driver.
#[derive(Debug)]
pub(crate) struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.close();
    }
}

pub(crate) fn start(fd: OwnedFd, side: Side) -> io::Result<(Arc<Shared>, Arc<Alive>)> {
    let socket = std::os::unix::net::UnixStream::from(fd);
    socket.set_nonblocking(true)?;
    let socket = UnixStream::from_std(socket)?;
    let state = State {
        channel: Channel::new(side),
        streams: HashMap::new(),
        requests: VecDeque::new(),
        last_accepted: 0,
        accepting: None,
        closed: false,
        draining: Vec::new(),
        openings: Openings::default(),
    };
    let shared = Arc::new(Shared {
        state: Mutex::new(state),
        wake: Notify::new(),
        full: Notify::new(),
        over: Notify::new(),
        going_away: SetOnce::new(),
        ended: SetOnce::new(),
    });
    tokio::spawn(drive(socket, side, shared.clone()));
    Ok((shared.clone(), Arc::new(Alive(shared))))
}

/// Ends when the socket does, when the other end breaks the protocol, or when no handle is left.
async fn drive(mut socket: UnixStream, side: Side, shared: Arc<Shared>) {
    let (mut reader, mut writer) = socket.split();
    let (mut output, mut written) = (Vec::new(), 0);
    let mut input = vec![0; READ_BYTES];
    let mut reads = 0;
    // The other end has stopped reading, but bytes that it sent before can still arrive.
    let mut is_deaf = false;
    loop {
        if reads >= READS_IN_A_TURN {
            reads = 0;
            tokio::task::yield_now().await;
        }
        if written == output.len() {
            output.clear();
            written = 0;
            let mut state = shared.lock();
            std::mem::swap(&mut output, state.channel.output());
            // Openings come before the senders, which would fill the output again.
            state.next_opening().into_iter().for_each(Waker::wake);
            state.draining.drain(..).for_each(Waker::wake);
            if is_deaf {
                output.clear();
            }
            if state.closed && output.is_empty() {
                break;
            }
        }
        let writes = written < output.len();
        // The acceptor stops reading while the opener does not read the answers, because the heads
        // of further requests would fill memory. The opener always reads, or two ends with full
        // output would wait for each other.
        let reads_on = side == Side::Opener || !writes || !shared.lock().is_full();
        tokio::select! {
            biased;
            count = writer.write(&output[written..]), if writes => match count {
                Ok(count) => written += count,
                Err(_) => (is_deaf, written) = (true, output.len()),
            },
            count = reader.read(&mut input), if reads_on => match count {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    reads += 1;
                    if shared.receive(&input[..count]).is_err() {
                        break;
                    }
                }
            },
            // Other tasks that are ready now may add output, which then goes out in the same write.
            () = shared.wake.notified(), if !writes => tokio::select! {
                biased;
                () = shared.full.notified() => {}
                () = tokio::task::yield_now() => {}
            },
        }
    }
    shared.close();
    // Set once, here.
    let _already = shared.ended.set(());
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a holder of the lock leaves consistent state: every method completes its
        // change.
        self.state.lock()
    }

    /// Changes the state, then lets the driver send the resulting output.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let result = change(&mut state);
        let bytes = state.channel.output().len();
        let opening = state.next_opening();
        drop(state);
        opening.into_iter().for_each(Waker::wake);
        if bytes > 0 {
            self.wake.notify_one();
        }
        if bytes >= WRITE_BYTES {
            self.full.notify_one();
        }
        result
    }

    pub(crate) fn open(&self, head: &RequestHead, end: bool) -> Result<StreamId, StreamError> {
        self.with(|state| {
            if state.closed {
                return Err(StreamError::Closed);
            }
            let id = state.channel.open(head, end)?;
            state.streams.entry(id).or_default().handles = 2;
            Ok(id)
        })
    }

    pub(crate) async fn accept(&self) -> Option<(StreamId, RequestHead, bool)> {
        std::future::poll_fn(|context| {
            let mut state = self.lock();
            if !state.closed && state.is_full() {
                // The other end sends requests and does not read the answers: no more answers until
                // it does.
                state.draining.push(context.waker().clone());
                return Poll::Pending;
            }
            match state.requests.pop_front() {
                Some((id, head, end)) => {
                    state.last_accepted = id;
                    state.streams.entry(id).or_default().handles = 2;
                    Poll::Ready(Some((id, head, end)))
                }
                None if state.closed => Poll::Ready(None),
                None => {
                    state.accepting = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) async fn closed(&self) {
        loop {
            let over = self.over.notified();
            tokio::pin!(over);
            over.as_mut().enable();
            if self.lock().closed {
                return;
            }
            over.await;
        }
    }

    /// Stops accepting requests. Requests that were not accepted yet end as not begun.
    pub(crate) fn go_away(&self) {
        self.with(|state| {
            for (id, ..) in std::mem::take(&mut state.requests) {
                state.streams.remove(&id);
            }
            state.channel.go_away(state.last_accepted);
        });
    }

    /// Ends the streams above this one as not begun, as if the other end had reported that.
    pub(crate) fn refuse_above(&self, last: StreamId) {
        self.with(|state| {
            for id in state.channel.remove_above(last) {
                let code = casemate_wire::RESET_REFUSED;
                state.arrive(Event::Reset { id, code });
            }
        });
    }

    /// Completes when the other end takes no new streams, or the channel has closed.
    pub(crate) async fn goes_away(&self) {
        tokio::select! {
            _ = self.going_away.wait() => {}
            () = self.closed() => {}
        }
    }

    pub(crate) async fn ended(&self) {
        self.ended.wait().await;
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = state
            .accepting
            .take()
            .into_iter()
            .chain(std::mem::take(&mut state.draining));
        let mut wakers: Vec<Waker> = wakers.collect();
        wakers.extend(state.openings.drain());
        for stream in state.streams.values_mut() {
            wakers.extend(
                stream
                    .reading
                    .take()
                    .into_iter()
                    .chain(stream.writing.take()),
            );
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.wake.notify_one();
        self.over.notify_waiters();
    }

    fn receive(&self, bytes: &[u8]) -> Result<(), casemate_wire::Violation> {
        self.with(|state| {
            let result = state.channel.receive(bytes);
            while let Some(event) = state.channel.event() {
                if event == Event::GoAway {
                    // A repeated notice changes nothing.
                    let _already = self.going_away.set(());
                }
                state.arrive(event);
            }
            result
        })
    }
}

impl State {
    fn arrive(&mut self, event: Event) {
        match event {
            Event::Request { id, head, end } => {
                self.streams.entry(id).or_default().end = end;
                self.requests.push_back((id, head, end));
                self.accepting.take().into_iter().for_each(Waker::wake);
            }
            Event::Response { id, head, end } => self.arrived(id, |stream| {
                stream.head = Some((head, end));
                stream.end = end;
            }),
            Event::Data { id, bytes } => self.arrived(id, |stream| stream.put(bytes)),
            Event::End { id, trailers } => self.arrived(id, |stream| {
                stream.end = true;
                stream.trailers = (!trailers.is_empty()).then_some(trailers);
            }),
            Event::Reset { id, code } => {
                // Reset before it was accepted: no handle exists yet.
                let waiting = self.requests.len();
                self.requests.retain(|(request, ..)| *request != id);
                if self.requests.len() < waiting {
                    self.streams.remove(&id);
                }
                self.arrived(id, |stream| stream.reset = Some(code));
                self.wake_writer(id);
            }
            Event::Writable { id } => self.wake_writer(id),
            // `with` wakes the first waiting opener, which finds that no stream will be opened any
            // more.
            Event::GoAway => {}
        }
    }

    fn arrived(&mut self, id: StreamId, change: impl FnOnce(&mut Arrived)) {
        if let Some(stream) = self.streams.get_mut(&id) {
            change(stream);
            stream.reading.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Ends a stream from our side. A sender that waits gets an error, and drops the rest of its
    /// data.
    pub(crate) fn reset(&mut self, id: StreamId, code: u16) {
        self.channel.reset(id, code);
        self.wake_writer(id);
    }

    fn wake_writer(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.writing.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Why nothing more will arrive on this stream, if so.
    pub(crate) fn failure(&self, id: StreamId) -> Option<StreamError> {
        match self.streams.get(&id) {
            Some(Arrived {
                reset: Some(code), ..
            }) => Some(StreamError::Reset(*code)),
            _ if self.closed => Some(StreamError::Closed),
            Some(_) => None,
            None => Some(StreamError::Reset(casemate_wire::RESET_CANCELLED)),
        }
    }

    /// Whether so much output waits that no more should be added.
    pub(crate) fn is_full(&mut self) -> bool {
        self.channel.output().len() >= MAX_OUTPUT_BYTES
    }

    /// The first waiting opener, if the channel can carry one more stream or never will.
    fn next_opening(&mut self) -> Option<Waker> {
        let most = casemate_wire::channel::MAX_STREAMS;
        if self.openings.is_empty() || self.is_full() || self.channel.streams() >= most {
            return None;
        }
        self.openings.first()
    }

    /// Sends what credit allows; ready when all is sent.
    pub(crate) fn poll_send(
        &mut self,
        id: StreamId,
        bytes: &mut Bytes,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        if let Some(failure) = self.failure(id) {
            return Poll::Ready(Err(failure));
        }
        if self.is_full() {
            self.draining.push(context.waker().clone());
            return Poll::Pending;
        }
        let Some(sent) = self.channel.send(id, bytes) else {
            return Poll::Ready(Err(StreamError::Reset(casemate_wire::RESET_CANCELLED)));
        };
        bytes.advance(sent);
        if bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.writing = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Ready when the other end has asked for the body of this stream.
    pub(crate) fn poll_asked(
        &mut self,
        id: StreamId,
        context: &Context<'_>,
    ) -> Poll<Result<(), StreamError>> {
        if let Some(failure) = self.failure(id) {
            return Poll::Ready(Err(failure));
        }
        match self.channel.is_asked(id) {
            Some(true) => Poll::Ready(Ok(())),
            Some(false) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.writing = Some(context.waker().clone());
                }
                Poll::Pending
            }
            None => Poll::Ready(Err(StreamError::Reset(casemate_wire::RESET_CANCELLED))),
        }
    }

    /// Takes the next piece of a stream; the other end may then send as much more.
    pub(crate) fn take(&mut self, id: StreamId) -> Option<Bytes> {
        let bytes = self.streams.get_mut(&id)?.take()?;
        self.channel.consumed(id, bytes.len());
        Some(bytes)
    }

    /// One of the two handles of a stream was dropped.
    pub(crate) fn let_go(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.handles = stream.handles.saturating_sub(1);
            if stream.handles == 0 {
                self.streams.remove(&id);
            }
        }
    }
}
