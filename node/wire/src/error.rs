//! Violations by the other end of a channel, and reasons why a head is refused or a stream is not
//! opened.

use crate::frame::{FrameError, Kind, MAX_PAYLOAD_BYTES, StreamId};
use crate::limits::{MAX_FIELDS, MAX_STREAMS};

/// The other end broke the protocol: the channel must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame is malformed.
    #[error("invalid frame")]
    Frame(#[from] FrameError),
    /// A head is malformed.
    #[error("invalid head")]
    Head(#[from] HeadError),
    /// A frame that this end never accepts, or not at this time.
    #[error("a {0:?} frame out of place on stream {1}")]
    Unexpected(Kind, StreamId),
    /// A stream id was used before, or is too low.
    #[error("expected a stream id above {highest}, got {got}")]
    StreamId {
        /// The highest id so far.
        highest: StreamId,
        /// The id that came.
        got: StreamId,
    },
    /// More streams were opened than allowed.
    #[error("expected at most {MAX_STREAMS} streams at a time")]
    TooManyStreams,
    /// More data was sent than there was credit for.
    #[error("more data than credit on stream {0}")]
    Credit(StreamId),
    /// The other end sends requests and does not read the answers.
    #[error("too many pings without reading the answers")]
    Flood,
    /// More credit was given than a window holds.
    #[error("a window over its limit on stream {0}")]
    Window(StreamId),
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The maximum of streams is open.
    #[error("{MAX_STREAMS} streams are open already")]
    TooManyStreams,
    /// The other end accepts no new streams, or ids are used up.
    #[error("the channel accepts no new streams")]
    GoingAway,
    /// The other end does not read.
    #[error("the other end has not read what was sent before")]
    Stalled,
    /// The head does not fit into a frame.
    #[error("the head does not fit a channel")]
    Head(#[from] HeadError),
}

/// Why a head was refused, on sending or receiving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// The head ends too early, or bytes follow it.
    #[error("the head's lengths do not add up")]
    Length,
    /// The head exceeds a limit.
    #[error("expected a head of at most {MAX_PAYLOAD_BYTES} bytes and {MAX_FIELDS} fields")]
    TooLarge,
    /// A method, target or name has forbidden characters.
    #[error("expected a token as method, visible ASCII as target and lower-case tokens as names")]
    Characters,
    /// A value contains CR, LF or NUL.
    #[error("expected field values without CR, LF and NUL")]
    Value,
}
