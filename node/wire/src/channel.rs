//! One end of a channel: takes bytes and commands in, gives bytes and events out.

mod receive;

use std::collections::VecDeque;

use bytes::BytesMut;
use hashbrown::HashMap;

use crate::RESET_UNREAD;
use crate::error::{HeadError, OpenError};
use crate::fields::Fields;
use crate::frame::{self, FLAG_ASK, FLAG_END, Kind, StreamId};
use crate::head::{RequestHead, ResponseHead};
use crate::limits::WINDOW_UPDATE_BYTES;
pub use crate::limits::{
    CHANNEL_WINDOW_BYTES, EARLY_BYTES, MAX_DATA_BYTES, MAX_OUTPUT_BYTES, MAX_STREAMS,
    STREAM_WINDOW_BYTES,
};
pub use crate::stream::Event;
use crate::stream::Stream;

/// The role of this end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This end opens streams.
    Opener,
    /// This end accepts streams.
    Acceptor,
}

/// One end of a channel, as a state machine: bytes and commands in, bytes and [`Event`]s out. The
/// driver of the socket owns it: bytes from the socket go into [`Channel::receive`], bytes for the
/// socket come from [`Channel::output`], and after each the driver takes every [`Channel::event`].
#[derive(Debug)]
pub struct Channel {
    side: Side,
    streams: HashMap<StreamId, Stream>,
    highest: StreamId,
    send_credit: u32,
    receive_credit: u32,
    used: u32,
    blocked: VecDeque<StreamId>,
    input: BytesMut,
    output: Vec<u8>,
    events: VecDeque<Event>,
    /// Pings that were not answered yet.
    pings: u32,
    going_away: bool,
    /// Streams above this one are refused.
    last: StreamId,
}

impl Channel {
    /// Makes a new end.
    pub fn new(side: Side) -> Self {
        Self {
            side,
            streams: HashMap::new(),
            highest: 0,
            send_credit: CHANNEL_WINDOW_BYTES,
            receive_credit: CHANNEL_WINDOW_BYTES,
            used: 0,
            blocked: VecDeque::new(),
            input: BytesMut::new(),
            output: Vec::new(),
            events: VecDeque::new(),
            pings: 0,
            going_away: false,
            last: StreamId::MAX,
        }
    }

    /// Number of open streams.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Opens a stream; with `end`, without a body.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent.
    pub fn open(&mut self, head: &RequestHead, end: bool) -> Result<StreamId, OpenError> {
        self.open_with(head, end_flag(end))
    }

    /// Opens a stream of whose body only [`EARLY_BYTES`] are sent before the other end asks for the
    /// rest: see [`Channel::is_asked`]. Until then the opener can still send the whole request
    /// elsewhere.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent.
    pub fn open_to_ask(&mut self, head: &RequestHead) -> Result<StreamId, OpenError> {
        self.open_with(head, FLAG_ASK)
    }

    fn open_with(&mut self, head: &RequestHead, flags: u8) -> Result<StreamId, OpenError> {
        assert_eq!(self.side, Side::Opener, "only the opener opens streams");
        if self.going_away || self.highest == StreamId::MAX {
            return Err(OpenError::GoingAway);
        }
        if self.streams.len() >= MAX_STREAMS {
            return Err(OpenError::TooManyStreams);
        }
        // Streams that are opened and then reset leave their heads in the output.
        if self.output.len() >= MAX_OUTPUT_BYTES {
            return Err(OpenError::Stalled);
        }
        let id = self.highest + 1;
        frame::write_with(&mut self.output, Kind::Head, flags, id, |out| {
            head.write(out)
        })?;
        self.highest = id;
        let unasked = flags & FLAG_ASK != 0;
        let stream = Stream {
            head_sent: true,
            send_open: flags & FLAG_END == 0,
            unasked,
            send_credit: Stream::first_window(unasked),
            ..Stream::new()
        };
        self.streams.insert(id, stream);
        Ok(id)
    }

    /// Whether the other end has asked for the body of this stream; `None`: the stream is gone. If
    /// it has not, [`Event::Writable`] reports when that may have changed.
    pub fn is_asked(&mut self, id: StreamId) -> Option<bool> {
        let stream = self.streams.get_mut(&id)?;
        if stream.unasked && !stream.blocked {
            stream.blocked = true;
            self.blocked.push_back(id);
        }
        Some(!stream.unasked)
    }

    /// Asks for the body of a stream that the other end opened, unless all of it has arrived.
    pub fn ask(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut stream.unasked) && stream.receive_open {
            let more = STREAM_WINDOW_BYTES - EARLY_BYTES;
            stream.receive_credit += more;
            frame::write(&mut self.output, Kind::Window, 0, id, &more.to_le_bytes());
        }
    }

    /// Answers a stream that the other end opened; has no effect when the stream is gone.
    ///
    /// # Errors
    /// The head does not fit; nothing was sent.
    pub fn respond(
        &mut self,
        id: StreamId,
        head: &ResponseHead,
        end: bool,
    ) -> Result<(), HeadError> {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.head_sent) else {
            return Ok(());
        };
        frame::write_with(&mut self.output, Kind::Head, end_flag(end), id, |out| {
            head.write(out)
        })?;
        stream.head_sent = true;
        stream.send_open = !end;
        self.forget_if_over(id);
        self.stop_if_unread(id);
        Ok(())
    }

    /// Sends as much of `bytes` as there is credit for, and returns how much that was.
    /// [`Event::Writable`] reports when more may be tried. `None`: the stream is gone.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) -> Option<usize> {
        let stream = self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.head_sent && stream.send_open)?;
        let mut left = bytes;
        while !left.is_empty() {
            let credit = stream.send_credit.min(self.send_credit) as usize;
            let length = left.len().min(credit).min(MAX_DATA_BYTES);
            if length == 0 {
                if !stream.blocked {
                    stream.blocked = true;
                    self.blocked.push_back(id);
                }
                break;
            }
            frame::write(&mut self.output, Kind::Data, 0, id, &left[..length]);
            left = &left[length..];
            stream.send_credit -= length as u32;
            self.send_credit -= length as u32;
        }
        Some(bytes.len() - left.len())
    }

    /// Ends our direction. Trailers that do not fit are left out.
    pub fn finish(&mut self, id: StreamId, trailers: &Fields) {
        let Some(stream) = self
            .streams
            .get_mut(&id)
            .filter(|stream| stream.head_sent && stream.send_open)
        else {
            return;
        };
        stream.send_open = false;
        let fits = !trailers.is_empty()
            && frame::write_with(&mut self.output, Kind::End, 0, id, |out| {
                trailers.write(out, out.len())
            })
            .is_ok();
        if !fits {
            frame::write(&mut self.output, Kind::End, 0, id, &[]);
        }
        self.forget_if_over(id);
        self.stop_if_unread(id);
    }

    /// Ends both directions at once.
    pub fn reset(&mut self, id: StreamId, code: u16) {
        if let Some(stream) = self.streams.remove(&id) {
            frame::write(&mut self.output, Kind::Reset, 0, id, &code.to_le_bytes());
            self.give_back(stream.held);
        }
    }

    /// `bytes` bytes of a body have been consumed: the other end may send as many more.
    pub fn consumed(&mut self, id: StreamId, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if let Some(stream) = self.streams.get_mut(&id) {
            let bytes = bytes.min(stream.held);
            stream.held -= bytes;
            stream.used += bytes;
            if stream.used >= WINDOW_UPDATE_BYTES && stream.receive_open {
                let used = std::mem::take(&mut stream.used);
                stream.receive_credit += used;
                frame::write(&mut self.output, Kind::Window, 0, id, &used.to_le_bytes());
            }
            self.give_back(bytes);
        }
    }

    /// The rest of this body will not be read: held and future bytes are consumed at once. The
    /// sender is asked to stop when the answer has ended.
    pub fn discard(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.discard = true;
            let held = stream.held as usize;
            self.consumed(id, held);
            self.stop_if_unread(id);
        }
    }

    /// Announces that no new streams will be opened or accepted. Streams of the other end above
    /// `last` end without having been begun: the other end may send their requests elsewhere.
    pub fn go_away(&mut self, last: StreamId) {
        self.last = self.last.min(last);
        let last = self.last;
        frame::write(&mut self.output, Kind::GoAway, 0, 0, &last.to_le_bytes());
        if self.side == Side::Acceptor {
            self.remove_above(last);
        }
    }

    /// Sends a ping, to see whether the other end answers.
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.pings += 1;
        frame::write(&mut self.output, Kind::Ping, 0, 0, &payload);
    }

    /// Bytes for the other end, in order; the caller takes all of them or a part from the front.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// The next event.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn give_back(&mut self, bytes: u32) {
        self.used += bytes;
        if self.used >= WINDOW_UPDATE_BYTES {
            let used = std::mem::take(&mut self.used);
            self.receive_credit += used;
            frame::write(&mut self.output, Kind::Window, 0, 0, &used.to_le_bytes());
        }
    }

    /// Stops a stream that the other end opened, whose answer has ended and whose body is not read.
    fn stop_if_unread(&mut self, id: StreamId) {
        let is_unread = |stream: &Stream| {
            stream.discard && stream.head_sent && !stream.send_open && stream.receive_open
        };
        if self.side == Side::Acceptor && self.streams.get(&id).is_some_and(is_unread) {
            self.reset(id, RESET_UNREAD);
        }
    }

    /// Removes the streams above this one; returns them in order.
    pub fn remove_above(&mut self, last: StreamId) -> Vec<StreamId> {
        let ids = self.streams.keys().copied();
        let mut above: Vec<StreamId> = ids.filter(|id| *id > last).collect();
        above.sort_unstable();
        for id in &above {
            if let Some(stream) = self.streams.remove(id) {
                self.give_back(stream.held);
            }
        }
        above
    }

    /// Removes a stream whose two directions have ended; the credit of bytes that the caller still
    /// holds is returned at once, because they are bounded by the window and no more can come.
    fn forget_if_over(&mut self, id: StreamId) {
        let over = |stream: &Stream| {
            stream.head_sent && stream.head_received && !stream.send_open && !stream.receive_open
        };
        if self.streams.get(&id).is_some_and(over)
            && let Some(stream) = self.streams.remove(&id)
        {
            self.give_back(stream.held);
        }
    }
}

fn end_flag(end: bool) -> u8 {
    if end { FLAG_END } else { 0 }
}
