//! The interfaces of the control plane's end: the catalog that it reads, and its reports to the
//! shell.

use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

use crate::message::{Cursor, Hello, LogEntry, NONCE_BYTES, NotStored, ObjectKind, StatementId};

/// A digest-addressed object in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The control plane's statements and objects, as one node may see them: with its own grants alone.
pub trait Catalog {
    /// The store and the revision of its newest statement.
    fn now(&self) -> Cursor;
    /// The statements of the first revision above `revision` that has any: one, or grants that came
    /// together. Of manifests and online keys only the newest is held.
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

/// The node at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The name under which it was admitted.
    pub name: Name,
    /// Its pool.
    pub pool: Name,
    /// Its key, from the TLS handshake.
    pub key: PublicKey,
    /// The fleet.
    pub fleet: FleetId,
}

/// Output that the shell has to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transmit {
    /// Write this frame.
    Frame(Vec<u8>),
    /// Read this object, pass it to [`crate::ControlEnd::loaded`], and poll again.
    Load {
        /// The tenant.
        tenant: TenantId,
        /// The object's digest.
        digest: Digest,
    },
}

/// An event for the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlEvent {
    /// A node that is not a member asks to join. Answer with [`crate::ControlEnd::join_pending`],
    /// [`crate::ControlEnd::join_refused`], and once it was admitted
    /// [`crate::ControlEnd::admitted`].
    Join {
        /// Envelope.
        request: Vec<u8>,
    },
    /// A member has sent its hello.
    Hello(Box<Hello>),
    /// The node has accepted a statement.
    Acked {
        /// The revision with which it was sent.
        revision: u64,
        /// The statement.
        id: StatementId,
    },
    /// The node has refused a statement.
    Nacked {
        /// The revision with which it was sent.
        revision: u64,
        /// The statement.
        id: StatementId,
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
    /// The node has every bundle of a manifest that it needs.
    Stored {
        /// The tenant.
        tenant: TenantId,
        /// Version of the manifest.
        version: u64,
    },
    /// The node lacks bundles of a manifest that it needs.
    NotStored(NotStored),
    /// Open a stream and send the bundle, if it is listed for this node's pool; then call
    /// [`crate::ControlEnd::bundle_done`].
    FetchBundle {
        /// The bundle's digest.
        digest: Digest,
        /// Offset of the first byte.
        offset: u64,
    },
    /// Open a stream and send a piece of the image, if it is the newest for this node's pool, at a
    /// lower priority than anything else; then call [`crate::ControlEnd::image_piece_done`].
    FetchImage {
        /// The image's digest.
        digest: Digest,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes.
        bytes: u32,
    },
    /// Objects were requested; [`crate::ControlEnd::poll_transmit`] will return them. This is an
    /// event so that no catalog is held over more than one request.
    FetchObjects,
    /// Sign this nonce, then call [`crate::ControlEnd::lease_answer`].
    Lease {
        /// The nonce.
        nonce: [u8; NONCE_BYTES],
    },
    /// Log records.
    Logs {
        /// The records, oldest first.
        entries: Vec<LogEntry>,
        /// Number of records that were lost before them.
        lost: u64,
    },
    /// The node's report about itself, JSON, unchecked.
    Status {
        /// JSON.
        json: String,
    },
}
