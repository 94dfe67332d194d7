//! The messages of the protocol, and their bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use casemate_trust::Seconds;
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::image::ImageVersion;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use serde::{Deserialize, Serialize};

/// Largest frame, bytes: the largest envelope or the largest `Hello`, with a margin.
pub const MAX_FRAME_BYTES: usize = 4 * 1024 * 1024;
/// Most statements that wait for an answer, which bounds the queues of both ends.
pub const MAX_UNACKED: usize = 64;
/// Most bundles on their way to one node: half of the streams that a node allows.
pub const MAX_FETCHES: usize = 4;
/// Most bundles that the control plane is sending to one node: those on their way, and as many that
/// have ended. A node may notice the end, and request the next bundles, before the control plane
/// does.
pub(crate) const MAX_BUNDLES_IN_HAND: usize = 2 * MAX_FETCHES;
/// Largest piece of an image, bytes. One is on its way to a node at a time: small enough that a
/// statement or a bundle never waits long for it, large enough that a path of 100 ms carries ten of
/// them a second.
pub const MAX_IMAGE_PIECE_BYTES: u32 = 1024 * 1024;
/// Most pieces of an image that the control plane is sending to one node: the one on its way, and
/// the next, which the node may request before the control plane has noticed the end of the first.
pub(crate) const MAX_IMAGE_PIECES: usize = 2;
/// Most digests in one `FetchObjects`.
pub const MAX_FETCH_DIGESTS: usize = 512;
/// Most tenants in one `Hello`: 160 bytes each, so well below a frame.
pub const MAX_HELLO_TENANTS: usize = 10_000;
/// Bytes of objects that are sent with a manifest without a request: the node keeps them until the
/// manifest is judged. The others are fetched.
pub const MAX_AHEAD_BYTES: usize = 32 * 1024 * 1024;
/// Longest text for people, bytes.
pub const MAX_TEXT_BYTES: usize = 2048;
/// Longest text of a log record, bytes.
pub const MAX_LOG_BYTES: usize = 8 * 1024;
/// Most log records in a batch.
pub const MAX_BATCH_RECORDS: usize = 256;
/// Largest batch, bytes of text.
pub const MAX_BATCH_BYTES: usize = 256 * 1024;
/// Largest status, bytes of JSON.
pub const MAX_STATUS_BYTES: usize = 64 * 1024;
/// Length of a lease nonce, bytes.
pub const NONCE_BYTES: usize = casemate_trust::lease::NONCE_BYTES;

/// Id of a control plane's store, random at its creation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "StoreId({self})")
    }
}

/// A position in a store's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The store.
    pub store: StoreId,
    /// Everything up to this revision has been answered.
    pub revision: u64,
}

/// A statement by kind and version.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StatementId {
    /// `Root`.
    Root {
        /// Version.
        version: u64,
    },
    /// `OnlineKey`.
    OnlineKey {
        /// Version.
        version: u64,
    },
    /// `Pool`.
    Pool {
        /// Name.
        name: Name,
        /// Epoch.
        epoch: u64,
    },
    /// `Tenant`.
    Tenant {
        /// Tenant.
        tenant: TenantId,
        /// Version.
        version: u64,
    },
    /// `Manifest`.
    Manifest {
        /// Tenant.
        tenant: TenantId,
        /// Version.
        version: u64,
    },
    /// A pool key sealed to the receiving node.
    Grant {
        /// Pool.
        pool: Name,
        /// Epoch.
        epoch: u64,
    },
    /// `Image`. The same version may be signed again, for more pools or a longer time.
    Image {
        /// Version, as a number.
        version: u64,
        /// Digest of the statement's payload.
        statement: Digest,
    },
    /// `Revocations`: for every node, whatever its pool.
    Revocations {
        /// Version.
        version: u64,
    },
    /// `Freshness`: states that a manifest is its tenant's newest.
    Freshness {
        /// Tenant.
        tenant: TenantId,
        /// Version of the manifest that it names.
        version: u64,
        /// When the statement was signed.
        issued: Seconds,
    },
}

impl StatementId {
    /// The tenant of the statement.
    pub const fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Tenant { tenant, .. }
            | Self::Manifest { tenant, .. }
            | Self::Freshness { tenant, .. } => Some(tenant),
            _ => None,
        }
    }

    /// Version or epoch; of a statement of freshness, the version of the manifest that it names.
    pub const fn version(&self) -> u64 {
        match self {
            Self::Root { version }
            | Self::OnlineKey { version }
            | Self::Tenant { version, .. }
            | Self::Manifest { version, .. }
            | Self::Image { version, .. }
            | Self::Freshness { version, .. }
            | Self::Revocations { version } => *version,
            Self::Pool { epoch, .. } | Self::Grant { epoch, .. } => *epoch,
        }
    }

    /// Whether both are versions of the same object.
    pub fn is_same_thing(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Root { .. }, Self::Root { .. })
            | (Self::OnlineKey { .. }, Self::OnlineKey { .. })
            | (Self::Image { .. }, Self::Image { .. })
            | (Self::Revocations { .. }, Self::Revocations { .. }) => true,
            (Self::Pool { name: one, .. }, Self::Pool { name: two, .. }) => one == two,
            (Self::Grant { pool: one, .. }, Self::Grant { pool: two, .. }) => one == two,
            (Self::Tenant { tenant: one, .. }, Self::Tenant { tenant: two, .. })
            | (Self::Manifest { tenant: one, .. }, Self::Manifest { tenant: two, .. })
            | (Self::Freshness { tenant: one, .. }, Self::Freshness { tenant: two, .. }) => {
                one == two
            }
            _ => false,
        }
    }
}

impl fmt::Display for StatementId {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root { version } => write!(to, "root {version}"),
            Self::OnlineKey { version } => write!(to, "online key {version}"),
            Self::Pool { name, epoch } => write!(to, "pool {name} epoch {epoch}"),
            Self::Tenant { tenant, version } => write!(to, "tenant {tenant} version {version}"),
            Self::Manifest { tenant, version } => {
                write!(to, "manifest {version} of tenant {tenant}")
            }
            Self::Revocations { version } => write!(to, "list {version} of revoked nodes"),
            Self::Freshness {
                tenant, version, ..
            } => write!(to, "freshness of manifest {version} of tenant {tenant}"),
            Self::Grant { pool, epoch } => write!(to, "grant of pool {pool} epoch {epoch}"),
            Self::Image { version, statement } => match ImageVersion::from_u64(*version) {
                Some(version) => write!(to, "image {version}, statement {statement}"),
                None => write!(to, "image {version:#x}, statement {statement}"),
            },
        }
    }
}

/// The kinds of digest-addressed objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A release.
    Release,
    /// A sealed secret.
    Secret,
}

/// The statements that a node's vault has accepted and stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Has {
    /// Version of the newest root; 0 for none.
    pub root: u64,
    /// Version of the newest online key; 0 for none.
    pub online: u64,
    /// Epochs of its own pool whose statement it has.
    pub epochs: BTreeSet<u64>,
    /// Epochs of its own pool whose key it has.
    pub grants: BTreeSet<u64>,
    /// Its tenants, at most [`MAX_HELLO_TENANTS`].
    pub tenants: BTreeMap<TenantId, TenantHas>,
    /// Whether there are more tenants than fit into the list.
    pub more_tenants: bool,
    /// Version of its newest image as a number, and the digest of the statement's payload.
    pub image: Option<(u64, Digest)>,
    /// Version of the newest list of revoked nodes; 0 for none.
    pub revocations: u64,
}

/// The statements that a node has of a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantHas {
    /// Version of its newest statement; 0 for none.
    pub version: u64,
    /// Version and payload digest of its newest manifest.
    pub manifest: Option<(u64, Digest)>,
    /// Its newest statement of freshness: version of the manifest that it names, and the time of
    /// its signature.
    pub freshness: Option<(u64, Seconds)>,
    /// Whether the node runs what the manifest wants of it: see [`ToControl::Stored`].
    pub is_stored: bool,
}

/// The first message of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the protocol that the handshake has agreed on: see [`crate::Versions`].
    pub protocol: u16,
    /// Its name, which must be the one under which its key was admitted.
    pub node: Name,
    /// Its key, which must be the one of the TLS handshake.
    pub node_key: PublicKey,
    /// Its fleet.
    pub fleet: FleetId,
    /// Version of its software.
    pub software: String,
    /// Its cursor, with the store that it belongs to.
    pub cursor: Option<Cursor>,
    /// The statements that it has.
    pub has: Has,
}

/// Level of a log record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogLevel {
    /// Debug.
    Debug,
    /// Info.
    Info,
    /// Warning.
    Warn,
    /// Error.
    Error,
}

impl LogLevel {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// One log record of a tenant's function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// The tenant.
    pub tenant: TenantId,
    /// The function.
    pub function: Name,
    /// The request, if the record concerns one.
    pub request: Option<String>,
    /// Level.
    pub level: LogLevel,
    /// Text.
    pub message: String,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// Error class, such as `exceeded_cpu`.
    pub failure: Option<String>,
}

impl LogEntry {
    /// Bytes of text in the record.
    pub fn bytes(&self) -> usize {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.message.len() + optional(&self.request) + optional(&self.failure)
    }
}

/// Reports that a node lacks bundles of a manifest which it has accepted, or does not run a release
/// of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotStored {
    /// The tenant.
    pub tenant: TenantId,
    /// Version of the manifest.
    pub version: u64,
    /// Stable code, such as `bundle_quota`.
    pub code: String,
    /// Text for people.
    pub message: String,
}

/// A message from a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToControl {
    /// First message of a member, or the first after `Admitted`.
    Hello(Box<Hello>),
    /// The only message of a node that was not admitted: its signed request.
    Join {
        /// Envelope.
        request: Vec<u8>,
    },
    /// A statement is accepted and on disk.
    Ack {
        /// The revision with which it was sent.
        revision: u64,
        /// The statement.
        id: StatementId,
    },
    /// A statement is refused; the one before stays in force.
    Nack {
        /// The revision with which it was sent.
        revision: u64,
        /// The statement.
        id: StatementId,
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
    /// Every bundle of a manifest that the node needs is on its disk, and every release has been
    /// loaded once, without a request: it runs here, also after a power cut without the control
    /// plane. A release that an earlier manifest wanted too, and that failed to load then, does not
    /// prevent this.
    Stored {
        /// The tenant.
        tenant: TenantId,
        /// Version of the manifest.
        version: u64,
    },
    /// The node lacks bundles of a manifest that it needs, or releases fail to run; the earlier
    /// state stays in force.
    NotStored(NotStored),
    /// Requests a bundle on a stream of its own.
    FetchBundle {
        /// The bundle's digest.
        digest: Digest,
        /// Offset of the first byte.
        offset: u64,
    },
    /// Requests a piece of the image that the newest statement for the node's pool names, on a
    /// stream of its own.
    FetchImage {
        /// The image's digest.
        digest: Digest,
        /// Offset of the first byte.
        offset: u64,
        /// Number of bytes, at most [`MAX_IMAGE_PIECE_BYTES`].
        bytes: u32,
    },
    /// Requests objects that a tenant's newest manifest lists.
    FetchObjects {
        /// The tenant.
        tenant: TenantId,
        /// Digests of the objects.
        digests: Vec<Digest>,
    },
    /// Requests a lease.
    Lease {
        /// A nonce that the vault has just made.
        nonce: [u8; NONCE_BYTES],
    },
    /// Log records.
    Logs {
        /// The records, oldest first.
        entries: Vec<LogEntry>,
        /// Number of records that were lost before these, because they came faster than they could
        /// be sent.
        lost: u64,
    },
    /// The node's report about itself.
    Status {
        /// A JSON object.
        json: String,
    },
}

/// A message from the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToNode {
    /// Answer to `Hello`.
    Welcome {
        /// The store, and its present revision.
        now: Cursor,
    },
    /// The request is plausible and waits for the operator.
    JoinPending,
    /// The request will not be relayed.
    JoinRefused {
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
    /// The node is a member now and sends its `Hello`.
    Admitted,
    /// A signed statement, or a grant.
    Statement {
        /// Revision at which the control plane accepted it.
        revision: u64,
        /// The statement that it claims to be.
        id: StatementId,
        /// Envelope, or the grant's JSON.
        bytes: Vec<u8>,
    },
    /// An object that a manifest lists.
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
    /// Everything up to this position was sent.
    Synced {
        /// The position.
        now: Cursor,
    },
    /// A requested bundle or object does not exist, or is not for this node.
    Unavailable {
        /// A bundle or an object.
        digest: Digest,
    },
    /// Answer to `Lease`: an envelope.
    Lease {
        /// Envelope.
        answer: Vec<u8>,
    },
    /// The root has revoked this node: the list that names it, for its vault. The connection will
    /// be closed. It may come at any time, also instead of the answer to `Hello`.
    Revoked {
        /// Envelope.
        list: Vec<u8>,
    },
    /// The connection will be closed.
    Refused {
        /// Stable code.
        code: String,
        /// Text for people.
        message: String,
    },
}
