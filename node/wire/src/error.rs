//! What the other end of a channel may do wrong, and why a head is refused or a stream not opened.

use crate::frame::{FrameError, Kind, MAX_PAYLOAD_BYTES, StreamId};
use crate::limits::{MAX_FIELDS, MAX_STREAMS};

/// The other end broke the protocol: the channel is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame that is none.
    #[error("invalid frame")]
    Frame(#[from] FrameError),
    /// A head that is none.
    #[error("invalid head")]
    Head(#[from] HeadError),
    /// A frame that this end never gets, or at the wrong time.
    #[error("a {0:?} frame out of place on stream {1}")]
    Unexpected(Kind, StreamId),
    /// A stream id that was used or comes too early.
    #[error("expected a stream id above {highest}, got {got}")]
    StreamId {
        /// Highest so far.
        highest: StreamId,
        /// What came.
        got: StreamId,
    },
    /// More streams than allowed.
    #[error("expected at most {MAX_STREAMS} streams at a time")]
    TooManyStreams,
    /// More data than it had credit for.
    #[error("more data than credit on stream {0}")]
    Credit(StreamId),
    /// It asks on and on and does not read the answers.
    #[error("too many pings without reading the answers")]
    Flood,
    /// More credit than a window holds.
    #[error("a window over its limit on stream {0}")]
    Window(StreamId),
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// As many as allowed are open.
    #[error("{MAX_STREAMS} streams are open already")]
    TooManyStreams,
    /// The other end takes no new ones, or ids are used up.
    #[error("the channel takes no new streams")]
    GoingAway,
    /// The other end does not read.
    #[error("the other end has not read what was sent before")]
    Stalled,
    /// The head does not fit.
    #[error("the head does not fit a channel")]
    Head(#[from] HeadError),
}

/// Why a head was refused, in either direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// Ends before it should, or goes on after.
    #[error("the head's lengths do not add up")]
    Length,
    /// Over one of the limits.
    #[error("expected a head of at most {MAX_PAYLOAD_BYTES} bytes and {MAX_FIELDS} fields")]
    TooLarge,
    /// A method, target or name with other characters than allowed.
    #[error("expected a token as method, visible ASCII as target and lower-case tokens as names")]
    Characters,
    /// A value with CR, LF or NUL.
    #[error("expected field values without CR, LF and NUL")]
    Value,
}
