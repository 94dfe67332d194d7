//! The events at a node's end.

use casemate_trust::id::{Digest, TenantId};

use crate::message::{Cursor, ObjectKind, StatementId};

/// An event for the shell: given by [`NodeEnd::poll_event`](crate::NodeEnd::poll_event) in the
/// order of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// The hello was accepted.
    Welcome {
        /// The store, and its present revision.
        now: Cursor,
    },
    /// The operator has not decided yet.
    JoinPending,
    /// The request will not be relayed.
    JoinRefused {
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
    /// The node is a member now: call [`NodeEnd::hello`](crate::NodeEnd::hello).
    Admitted,
    /// A statement: have it judged, then call [`NodeEnd::ack`](crate::NodeEnd::ack) or
    /// [`NodeEnd::nack`](crate::NodeEnd::nack).
    Statement {
        /// The statement that it claims to be.
        id: StatementId,
        /// Revision at the control plane.
        revision: u64,
        /// Envelope, or a grant's JSON.
        bytes: Vec<u8>,
    },
    /// An object that a manifest lists; its digest has been checked.
    Object {
        /// The tenant.
        tenant: TenantId,
        /// SHA-256 of the bytes.
        digest: Digest,
        /// The kind that it claims to be.
        kind: ObjectKind,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Everything up to `now` was sent and answered: this cursor may be stored.
    Synced {
        /// The position.
        now: Cursor,
    },
    /// A requested bundle or object does not exist, or is not for this node.
    Unavailable {
        /// Its digest.
        digest: Digest,
    },
    /// The requested image does not exist, or is not the newest for this node's pool.
    ImageUnavailable {
        /// Its digest.
        digest: Digest,
    },
    /// The answer to a lease request, for the vault.
    Lease {
        /// Envelope.
        answer: Vec<u8>,
    },
    /// The root has revoked this node. The list is for the vault to judge; the connection will be
    /// closed.
    Revoked {
        /// Envelope.
        list: Vec<u8>,
    },
    /// The control plane will close the connection.
    Refused {
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
}

/// The content that a stream is expected to carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A bundle, from the requested offset to its end.
    Bundle,
    /// The requested piece of an image.
    ImagePiece,
}
