//! Messages between supervisor and vault.

use serde::{Deserialize, Serialize};

use super::gateway::Perimeter;
use super::parts::{Part, Whole};
use super::worker::Binding;
use super::{Digest, FunctionKey, LayerReport, Limits, Message, WorkerId};

/// The kind of an object that the supervisor submits to the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectKind {
    /// DSSE envelope of a `Root`.
    Root,
    /// DSSE envelope of an `OnlineKey`.
    OnlineKey,
    /// DSSE envelope of a `Pool`.
    Pool,
    /// DSSE envelope of a `Tenant`.
    Tenant,
    /// DSSE envelope of a `Manifest`.
    Manifest,
    /// A `Release`, named by its digest.
    Release,
    /// A `Secret`, named by its digest.
    Secret,
    /// A pool key sealed to this node.
    Grant,
    /// The control plane's answer to a lease nonce.
    Lease,
    /// DSSE envelope of an `Image`.
    Image,
    /// DSSE envelope of a `Revocations`.
    Revocations,
    /// DSSE envelope of a `Freshness`.
    Freshness,
}

/// From the supervisor to the vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToVault {
    /// Judge this object. Answered by `Verdict` with the same id, in order.
    Submit {
        /// Chosen by the supervisor.
        id: u64,
        /// The kind that the object claims to be.
        kind: ObjectKind,
        /// The object's bytes.
        bytes: Vec<u8>,
    },
    /// A worker's channel. Descriptor: the channel (the vault accepts streams). The function and
    /// release, which must be in the tenant's newest manifest, decide which egress rules and slots
    /// apply.
    Channel {
        /// The worker.
        worker: WorkerId,
        /// The function.
        key: FunctionKey,
        /// The release.
        release: Digest,
    },
    /// The worker's process has ended.
    Gone {
        /// The worker.
        worker: WorkerId,
    },
    /// A channel on which the vault signs the node's TLS handshakes. Descriptor: a `SOCK_SEQPACKET`
    /// socket; one packet is the request (the TLS 1.3 `CertificateVerify` content of a client), one
    /// packet the answer (64 bytes, or one byte for a refusal).
    Signer,
    /// The control plane is connected: ask for `Have`, and for a `LeaseWanted` if a lease is wanted.
    Connected,
    /// Ask for a `Description`.
    Describe,
    /// Close upstream connections, flush, exit 0.
    Stop,
    /// First message of a supervisor that replaces one that has crashed: send the first messages
    /// once more.
    Resume,
}

/// From the vault to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVault {
    /// First message: the vault is open. The `Plan` of each tenant that it knows follows.
    Hello(Box<Hello>),
    /// The vault could not start; it exits after this.
    Failed {
        /// The fault, its place, and the remedy.
        message: String,
    },
    /// The verdict on a submitted object.
    Verdict {
        /// The id of the `Submit`.
        id: u64,
        /// The verdict. `Accepted` means: on disk, synced.
        verdict: Verdict,
    },
    /// A part of a tenant's plan by its newest accepted manifest; the whole replaces the plan
    /// before.
    Plan(Box<Part<Plan>>),
    /// All plans that follow `Hello` were sent, and there was at least one: functions that were
    /// served before the vault's start can be served again. A vault without plans waits for the
    /// control plane, and then answers `Connected`.
    AllPlans,
    /// Ask the control plane to sign this nonce. Sent when a lease is wanted, and repeated until
    /// one is accepted.
    LeaseWanted {
        /// Fresh random bytes.
        nonce: [u8; 32],
    },
    /// A part of the list of held statements, from which the control plane derives what to send.
    /// Answer to `Connected`.
    Have(Box<Part<Have>>),
    /// The node has become a member: a grant of its pool's key was accepted.
    Joined,
    /// The store was set aside because it could not be read; all statements must be sent again.
    Refill {
        /// The path of the unreadable store.
        set_aside: String,
    },
    /// An event for the tenant's log or the node's.
    Event(Event),
    /// Answer to `Describe`: JSON for the status page, without secrets and keys.
    Description {
        /// A JSON object.
        json: String,
    },
    /// The control plane has for a while claimed newer statements than the vault holds: reconnect,
    /// so that the control plane sends them. Sent at most once for each lease.
    Behind {
        /// Number of missing statements: manifests, and the list of revoked nodes.
        statements: u64,
    },
    /// The newest image that was accepted for this node's pool. Sent after `Hello` and whenever it
    /// changes.
    Image(Image),
}

impl Message for ToVault {
    /// The largest envelope, 1 MiB, plus the rest of a `Submit`.
    const MAX_BYTES: usize = 1024 * 1024 + 1024;
}

impl Message for FromVault {
    /// `Missing` of a manifest with a thousand functions of nine releases each, and a thousand
    /// secrets: 320 KB. A part of a list is smaller.
    const MAX_BYTES: usize = 512 * 1024;
}

impl Whole for Plan {
    type Item = FunctionPlan;

    fn items(&mut self) -> &mut Vec<FunctionPlan> {
        &mut self.functions
    }
}

impl Whole for Have {
    type Item = HaveTenant;

    fn items(&mut self) -> &mut Vec<HaveTenant> {
        &mut self.tenants
    }
}

/// The statements that the vault holds; 0 means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Version of the root.
    pub root: u64,
    /// Version of the online key.
    pub online_key: u64,
    /// Epochs of the node's pool whose statement is held.
    pub epochs: Vec<u64>,
    /// The tenants.
    pub tenants: Vec<HaveTenant>,
    /// Epochs of the node's pool whose private key is held.
    pub grants: Vec<u64>,
    /// Version of the newest image of the node's pool as a number, and the digest of the statement's payload.
    pub image: Option<(u64, Digest)>,
    /// Version of the newest list of revoked nodes.
    pub revocations: u64,
}

/// The statements that the vault holds of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveTenant {
    /// The tenant's id.
    pub tenant: Digest,
    /// Version of the tenant's statement.
    pub tenant_version: u64,
    /// Version and digest of the tenant's manifest.
    pub manifest: Option<(u64, Digest)>,
    /// The tenant's newest statement of freshness: version of the manifest that it names, and the
    /// time of its signature.
    pub freshness: Option<(u64, u64)>,
}

/// An image of the machine that a node may fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The image's version as a number.
    pub version: u64,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
}

/// The facts that the supervisor needs to connect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The node's name.
    pub node: String,
    /// The node's Ed25519 public key.
    pub node_key: [u8; 32],
    /// Fleet id (hash of the first root).
    pub fleet: Digest,
    /// The node's pool.
    pub pool: String,
    /// `host:port` of the control plane's QUIC socket.
    pub control_address: String,
    /// Ed25519 public key of the control plane's QUIC socket, from the newest `OnlineKey` or the token.
    pub control_key: [u8; 32],
    /// The signed join request, which is sent while the node is not a member.
    pub join_request: Option<Vec<u8>>,
    /// A key derived from the storage key, which seals the supervisor's files.
    pub state_key: [u8; 32],
    /// Layers of its sandbox.
    pub layers: Vec<LayerReport>,
}

/// A verdict on an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Accepted and durable, or equal to what was held already.
    Accepted,
    /// These releases and secrets are needed, by digest, before the object can be judged.
    Missing {
        /// Digests.
        digests: Vec<Digest>,
    },
    /// Refused.
    Refused {
        /// Stable name, such as `manifest_version_lower`.
        code: String,
        /// The message for the operator.
        message: String,
    },
}

/// The functions that a tenant runs on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The tenant's id.
    pub tenant: Digest,
    /// The tenant's name, for display.
    pub name: String,
    /// Memory that the tenant's workers may use together on the node, MiB.
    pub memory_mib: u32,
    /// Version of the accepted manifest.
    pub manifest_version: u64,
    /// Digest of the accepted manifest's payload.
    pub manifest: Digest,
    /// Functions for this node's pool; each is followed by its fallbacks, in order.
    pub functions: Vec<FunctionPlan>,
}

/// One function of a plan: the wanted release, or a fallback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPlan {
    /// Name.
    pub function: String,
    /// Runs only as long as the bundle of no earlier entry is here.
    pub is_fallback: bool,
    /// Digest of the release.
    pub release: Digest,
    /// Digest of the bundle.
    pub bundle: Digest,
    /// Size of the bundle.
    pub bundle_bytes: u64,
    /// Entry module.
    pub entry: String,
    /// Host names that lead to the function.
    pub hosts: Vec<String>,
    /// Host names of its release that belong to another tenant, which the root admitted first.
    pub lost_hosts: Vec<LostHost>,
    /// The checks before a worker is woken.
    pub perimeter: Perimeter,
    /// Limits.
    pub limits: Limits,
    /// Plain variables.
    pub vars: Vec<(String, String)>,
    /// Capabilities.
    pub bindings: Vec<Binding>,
    /// Whether `eval` works.
    pub dynamic_code: bool,
}

/// A host name that two tenants were given, and that belongs to the other one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostHost {
    /// The host.
    pub host: String,
    /// Name of the tenant that owns it: for the operator, not for the tenant that declared it too.
    pub owner: String,
}

/// An event for the tenant's or the operator's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The tenant and function; `None` for an event of the node.
    pub key: Option<FunctionKey>,
    /// The `:request` field, if the event concerns an outgoing call.
    pub request: Option<String>,
    /// Stable name, such as `egress_denied`.
    pub code: String,
    /// Text for the reader, without secrets.
    pub message: String,
    /// Events of this tenant that were dropped before, because they came faster than they could be
    /// sent.
    pub dropped: u32,
}
