//! What comes to a node.

use casemate_trust::id::{Digest, TenantId};

use crate::message::{Cursor, ObjectKind, StatementId};

/// What came: given by [`NodeEnd::poll_event`](crate::NodeEnd::poll_event) in the order of the
/// stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// The hello was taken.
    Welcome {
        /// The store, and its revision now.
        now: Cursor,
    },
    /// The operator has not decided.
    JoinPending,
    /// The request will not be relayed.
    JoinRefused {
        /// Stable name.
        code: String,
        /// For people.
        message: String,
    },
    /// Now a member: call [`NodeEnd::hello`](crate::NodeEnd::hello).
    Admitted,
    /// Have it judged, then [`NodeEnd::ack`](crate::NodeEnd::ack) or
    /// [`NodeEnd::nack`](crate::NodeEnd::nack).
    Statement {
        /// What it claims to be.
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
        /// What it claims to be.
        kind: ObjectKind,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// Everything up to `now` was sent and answered: this cursor may be stored.
    Synced {
        /// Where.
        now: Cursor,
    },
    /// A bundle or an object that was asked for is not there, or not for this node.
    Unavailable {
        /// Which.
        digest: Digest,
    },
    /// The image that was asked for is not there, or is not the newest for this node's pool.
    ImageUnavailable {
        /// Which.
        digest: Digest,
    },
    /// Answer to a lease question, for the vault.
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
        /// Stable name.
        code: String,
        /// For people.
        message: String,
    },
}

/// What a stream brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// A bundle, from where it was asked for to its end.
    Bundle,
    /// The piece of an image.
    ImagePiece,
}
