//! The push protocol between control plane and node: both ends as state machines, no IO, no clock.
//!
//! A node opens one QUIC connection ([`Versions`], raw public keys at both ends) and on it one long
//! bidirectional stream. Both directions carry frames: a big-endian `u32` length, at most
//! [`MAX_FRAME_BYTES`], then one postcard message ([`ToControl`], [`ToNode`]). Bundles come on
//! unidirectional streams that the control plane opens ([`bundle::Receiver`]). Images come in the
//! same way, in pieces that the node requests one by one: a transfer of minutes resumes after a
//! lost connection or a restart of either end, and never delays a deployment.
//!
//! - **Absence never deletes.** There is no message that removes something; only a newer signed
//!   manifest does, and the node's vault judges it. Nothing that arrives is trusted before that.
//! - **Level, not edge.** [`Hello`] lists what the node has; the control plane sends what is
//!   missing, in the order in which the control plane itself accepted it (so that each statement
//!   finds the keys that signed it), for the node's pool only. Revisions are transport: a cursor of
//!   another store, or one from the future, is ignored.
//! - **Each statement is answered** by ACK or NACK with a code, and at most [`MAX_UNACKED`] wait
//!   for an answer, which bounds the queues of both ends. A refused statement is not sent again on
//!   the same connection.
//! - **A node that is not a member may only join.** It sends its signed request and waits; once
//!   admitted it sends `Hello` on the same connection.
//!
//! Both ends are driven alike: pass the bytes of the stream to `receive`, then call `poll_event`
//! until it returns `None` (a frame is decoded only then, so a slow consumer simply stops reading),
//! and write what `poll_transmit` returns. On a [`Violation`], close the connection with
//! [`Violation::close_code`]; a node retries later.
//!
//! ```
//! use casemate_push::{Hello, NodeEnd, NodeEvent, Has, VERSIONS};
//! # use casemate_trust::{id::FleetId, key::PublicKey};
//! let hello = Hello {
//!     protocol: VERSIONS.newest, // what the handshake has agreed on
//!     node: "edge-1".parse()?,
//!     node_key: PublicKey::from_bytes([1; 32]),
//!     fleet: FleetId([2; 32]),
//!     software: "0.1.0".into(),
//!     cursor: None,
//!     has: Has::default(),
//! };
//! let mut node = NodeEnd::member(hello); // or NodeEnd::joining(request)
//! // On connect, and after each call below: write everything to the stream.
//! while let Some(frame) = node.poll_transmit() {
//!     assert!(!frame.is_empty()); // stream.write_all(&frame).await?
//! }
//! // For each chunk that was read from the stream:
//! let chunk = [];
//! node.receive(&chunk)?;
//! while let Some(event) = node.poll_event()? {
//!     match event {
//!         // Have the vault judge it, then answer once.
//!         NodeEvent::Statement { id, .. } => node.ack(&id)?, // or node.nack(&id, code, message)?
//!         // Keep it until the manifest that lists it comes; the digest has been checked.
//!         NodeEvent::Object { .. } => {}
//!         // Everything up to here was answered: `cursor` may be stored.
//!         NodeEvent::Synced { .. } => {}
//!         // The node is now a member: announce its state.
//!         NodeEvent::Admitted => {} // node.hello(hello)?
//!         _ => {}
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod backoff;
mod bounds;
pub mod bundle;
mod catalog;
pub mod close;
mod codec;
mod control;
mod listing;
mod message;
mod node;
mod not_stored;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod version;

pub use backoff::Pauses;
pub use catalog::{Catalog, ControlEvent, Member, StoredObject, Transmit};
pub use codec::{Violation, encode};
pub use control::ControlEnd;
pub use message::{
    Cursor, Has, Hello, LogEntry, LogLevel, MAX_AHEAD_BYTES, MAX_BATCH_BYTES, MAX_BATCH_RECORDS,
    MAX_FETCH_DIGESTS, MAX_FETCHES, MAX_FRAME_BYTES, MAX_HELLO_TENANTS, MAX_IMAGE_PIECE_BYTES,
    MAX_LOG_BYTES, MAX_STATUS_BYTES, MAX_TEXT_BYTES, MAX_UNACKED, NONCE_BYTES, NotStored,
    ObjectKind, StatementId, StoreId, TenantHas, ToControl, ToNode,
};
pub use node::{Expected, NodeEnd, NodeEvent};
pub use not_stored::{
    LOAD_FAILED, LOAD_FAILED_EARLIER, NO_PLACE, cannot_be_loaded, is_not_loaded, is_transient,
};
pub use version::{APART, Agreed, MAX_OFFER_BYTES, Offer, VERSIONS, Versions, apart};
