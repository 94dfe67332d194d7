//! The channel between our own processes: frames, streams, credits. Sans-IO.
//!
//! A channel is a byte stream (a `SOCK_STREAM` socket pair) whose two ends do not trust each other.
//! One end *opens* streams, the other *accepts* them; a stream is one request and its response,
//! each a head, data and an end. Both ways stay open until ended, so a response of status 101 makes
//! of its stream a raw two-way pipe (WebSocket).
//!
//! [`Channel`] takes bytes and commands in and gives bytes and [`Event`]s out; it knows no socket
//! and no clock. Every length is bounded, and what the other end may make us hold is bounded by the
//! credit that we gave it.
#![forbid(unsafe_code)]

pub mod channel;
pub mod code;
pub mod control;
mod error;
mod fields;
pub mod frame;
pub mod head;
mod limits;
mod payload;
mod stream;

pub use channel::{Channel, Event, Side};
pub use code::CallCode;
pub use error::{OpenError, Violation};
pub use fields::Fields;
pub use frame::StreamId;
pub use head::{RequestHead, ResponseHead};

/// Reset code: whoever asked no longer wants the answer.
pub const RESET_CANCELLED: u16 = 0;
/// Reset code: whoever was to answer went away in the middle.
pub const RESET_ABANDONED: u16 = 1;
/// Reset code: the request was not begun, and may be sent elsewhere.
pub const RESET_REFUSED: u16 = 2;
/// Reset code: the answer is whole, and nobody reads the rest of the request's body.
pub const RESET_UNREAD: u16 = 3;
