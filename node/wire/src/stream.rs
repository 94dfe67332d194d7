//! One stream as a channel keeps it, and what happens to streams.

use bytes::Bytes;

use crate::fields::Fields;
use crate::frame::StreamId;
use crate::head::{RequestHead, ResponseHead};
use crate::limits::{EARLY_BYTES, STREAM_WINDOW_BYTES};

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A stream was opened by the other end.
    Request {
        /// The stream.
        id: StreamId,
        /// Its head.
        head: RequestHead,
        /// No body follows.
        end: bool,
    },
    /// The answer to a stream that we opened.
    Response {
        /// The stream.
        id: StreamId,
        /// Its head.
        head: ResponseHead,
        /// No body follows.
        end: bool,
    },
    /// A piece of a body. Say [`Channel::consumed`](crate::Channel::consumed) when it is used.
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
        /// Trailers, often none.
        trailers: Fields,
    },
    /// The stream is over, both ways.
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
    /// The other end opens and takes no new streams.
    GoAway,
}

/// What one end knows of a stream.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Our direction: whether our head is sent, and whether we have ended.
    pub(crate) head_sent: bool,
    pub(crate) send_open: bool,
    /// Their direction.
    pub(crate) head_received: bool,
    pub(crate) receive_open: bool,
    pub(crate) send_credit: u32,
    /// Whether a sender was turned away for want of credit and is to be told.
    pub(crate) blocked: bool,
    pub(crate) receive_credit: u32,
    /// Used but not yet given back.
    pub(crate) used: u32,
    /// Received and not yet used.
    pub(crate) held: u32,
    /// Nobody reads: what comes is used at once.
    pub(crate) discard: bool,
    /// The end that accepts has not asked for the body yet.
    pub(crate) unasked: bool,
}

impl Stream {
    /// With both directions open and no head yet.
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

    /// What may be sent on a stream at first.
    pub(crate) fn first_window(unasked: bool) -> u32 {
        if unasked {
            EARLY_BYTES
        } else {
            STREAM_WINDOW_BYTES
        }
    }
}
