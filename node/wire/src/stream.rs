//! The state of one stream in a channel, and the events of streams.

use bytes::Bytes;

use crate::fields::Fields;
use crate::frame::StreamId;
use crate::head::{RequestHead, ResponseHead};
use crate::limits::{EARLY_BYTES, STREAM_WINDOW_BYTES};

/// An event of a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream was opened by the other end.
    Request {
        /// The stream.
        id: StreamId,
        /// The request's head.
        head: RequestHead,
        /// Whether no body follows.
        end: bool,
    },
    /// The answer to a stream that we opened.
    Response {
        /// The stream.
        id: StreamId,
        /// The response's head.
        head: ResponseHead,
        /// Whether no body follows.
        end: bool,
    },
    /// A piece of a body. Call [`Channel::consumed`](crate::Channel::consumed) when it is used.
    Data {
        /// The stream.
        id: StreamId,
        /// The bytes.
        bytes: Bytes,
    },
    /// The other end's direction has ended.
    End {
        /// The stream.
        id: StreamId,
        /// Trailers, often empty.
        trailers: Fields,
    },
    /// The stream has ended in both directions.
    Reset {
        /// The stream.
        id: StreamId,
        /// The code.
        code: u16,
    },
    /// There is credit for this stream again.
    Writable {
        /// The stream.
        id: StreamId,
    },
    /// The other end opens and accepts no new streams.
    GoAway,
}

/// The state of a stream at one end.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Our direction: whether our head is sent, and whether we have ended it.
    pub(crate) head_sent: bool,
    pub(crate) send_open: bool,
    /// Their direction.
    pub(crate) head_received: bool,
    pub(crate) receive_open: bool,
    pub(crate) send_credit: u32,
    /// Whether a sender was refused for lack of credit and must be notified.
    pub(crate) blocked: bool,
    pub(crate) receive_credit: u32,
    /// Bytes consumed whose credit is not yet returned.
    pub(crate) used: u32,
    /// Bytes received and not yet consumed.
    pub(crate) held: u32,
    /// The body is not read: arriving bytes are consumed at once.
    pub(crate) discard: bool,
    /// The accepting end has not asked for the body yet.
    pub(crate) unasked: bool,
}

impl Stream {
    /// Makes a stream with both directions open and no head yet.
    pub(crate) fn new() -> Self {
        Self {
            head_sent: false,
            send_open: true,
            head_received: false,
            receive_open: true,
            send_credit: STREAM_WINDOW_BYTES,
            blocked: false,
            receive_credit: STREAM_WINDOW_BYTES,
            used: 0,
            held: 0,
            discard: false,
            unasked: false,
        }
    }

    /// The initial window for sending on a stream.
    pub(crate) fn first_window(unasked: bool) -> u32 {
        if unasked {
            EARLY_BYTES
        } else {
            STREAM_WINDOW_BYTES
        }
    }
}
