//! What the control plane's end reads, and what it tells its shell.

use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

use crate::message::{Cursor, Hello, LogEntry, NONCE_BYTES, NotStored, ObjectKind, StatementId};

/// A digest-addressed object as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// What it is.
    pub kind: ObjectKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What the control plane holds, seen by one node: its own grants and no other's.
pub trait Catalog {
    /// The store and the revision of its newest statement.
    fn now(&self) -> Cursor;
    /// The statements of the first revision above `revision` that has any: one, or the grants that came together. Of
    /// manifests and online keys only the newest is held.
    fn next_after(&self, revision: u64) -> Option<(u64, Vec<StatementId>)>;
    /// The statements of a tenant as (version, revision), ascending.
    fn tenant_versions(&self, tenant: &TenantId) -> Vec<(u64, u64)>;
    /// A statement's bytes.
    fn statement(&self, id: &StatementId) -> Option<Vec<u8>>;
    /// The newest image statement that names a pool.
    fn image(&self, pool: &Name) -> Option<StatementId>;
    /// The newest manifest's revision and bytes.
    fn manifest(&self, tenant: &TenantId) -> Option<(u64, &[u8])>;
}

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name under which it was admitted.
    pub name: Name,
    /// Its pool.
    pub pool: Name,
    /// Its key, from the TLS handshake.
    pub key: PublicKey,
    /// The fleet.
    pub fleet: FleetId,
}

/// What the shell is to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// This frame.
    Frame(Vec<u8>),
    /// An object: read it, hand it in with [`crate::ControlEnd::loaded`], ask again.
    Load {
        /// The tenant.
        tenant: TenantId,
        /// Which.
        digest: Digest,
    },
}

/// What the shell is to do or to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// A stranger wants to join. Answer with [`crate::ControlEnd::join_pending`], [`crate::ControlEnd::join_refused`], and once it was
    /// admitted [`crate::ControlEnd::admitted`].
    Join {
        /// Envelope.
        request: Vec<u8>,
    },
    /// A member said what it has.
    Hello(Box<Hello>),
    /// Accepted by the node.
    Acked {
        /// As it was sent.
        revision: u64,
        /// What.
        id: StatementId,
    },
    /// Refused by the node.
    Nacked {
        /// As it was sent.
        revision: u64,
        /// What.
        id: StatementId,
        /// Stable name.
        code: String,
        /// For people.
        message: String,
    },
    /// The node has every bundle that a manifest wants of it.
    Stored {
        /// The tenant.
        tenant: TenantId,
        /// Of the manifest.
        version: u64,
    },
    /// Bundles that a manifest wants of the node are not kept there.
    NotStored(NotStored),
    /// Open a stream and send the bundle, if it is listed for this node's pool; then [`crate::ControlEnd::bundle_done`].
    FetchBundle {
        /// Which.
        digest: Digest,
        /// From which byte.
        offset: u64,
    },
    /// Open a stream and send a piece of the image, if it is the newest for this node's pool, at a lower priority than
    /// anything else; then [`crate::ControlEnd::image_piece_done`].
    FetchImage {
        /// Which.
        digest: Digest,
        /// From which byte.
        offset: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// Objects were asked for; [`crate::ControlEnd::poll_transmit`] will bring them. An event all the same, so that no catalog
    /// is held over more than one question.
    FetchObjects,
    /// Sign, then [`crate::ControlEnd::lease_answer`].
    Lease {
        /// The nonce.
        nonce: [u8; NONCE_BYTES],
    },
    /// Log records.
    Logs {
        /// Oldest first.
        entries: Vec<LogEntry>,
        /// How many were lost before them.
        lost: u64,
    },
    /// What the node says of itself, JSON, unchecked.
    Status {
        /// JSON.
        json: String,
    },
}
