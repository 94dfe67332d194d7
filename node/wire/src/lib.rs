//! The channel between our own processes: frames, streams, credits. Sans-IO.
//!
//! A channel is a byte stream (a `SOCK_STREAM` socket pair) whose two ends do not trust each other.
//! One end *opens* streams, the other *accepts* them; a stream is one request and its response,
//! each a head, data and an end. Both directions stay open until ended, so a response of status 101
//! turns its stream into a raw two-way pipe (WebSocket).
//!
//! [`Channel`] takes bytes and commands in and gives bytes and [`Event`]s out; it uses no socket
//! and no clock. Every length is bounded, and the credit that we give bounds the memory that the
//! other end can occupy.
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
mod token_bucket;

pub use channel::{Channel, Event, Side};
pub use code::CallCode;
pub use error::{OpenError, Violation};
pub use fields::Fields;
pub use frame::StreamId;
pub use head::{RequestHead, ResponseHead};
pub use token_bucket::TokenBucket;

/// Reset code: the requester no longer wants the answer.
pub const RESET_CANCELLED: u16 = 0;
/// Reset code: the answering side ended in the middle.
pub const RESET_ABANDONED: u16 = 1;
/// Reset code: the request was not begun, and may be sent elsewhere.
pub const RESET_REFUSED: u16 = 2;
/// Reset code: the answer is complete, and the rest of the request's body is not read.
pub const RESET_UNREAD: u16 = 3;
