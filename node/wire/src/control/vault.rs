//! Supervisor and vault.

use serde::{Deserialize, Serialize};

use super::gateway::Perimeter;
use super::parts::{Part, Whole};
use super::worker::Binding;
use super::{Digest, FunctionKey, LayerReport, Limits, Message, WorkerId};

/// What the supervisor carries to the vault to be judged.
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
        /// What it claims to be.
        kind: ObjectKind,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// A worker's channel. Descriptor: the channel (the vault accepts streams). The function and release decide which
    /// egress rules and slots apply; they must be in the tenant's newest manifest.
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
    /// A channel on which the vault signs the node's TLS handshakes. Descriptor: a `SOCK_SEQPACKET` socket; one packet
    /// asks (the TLS 1.3 `CertificateVerify` content of a client), one packet answers (64 bytes, or one byte when refused).
    Signer,
    /// The control plane is connected: ask for `Have`, and for a `LeaseWanted` if a lease is wanted.
    Connected,
    /// Ask for a `Description`.
    Describe,
    /// Close upstream connections, flush, exit 0.
    Stop,
    /// First message of a supervisor that was started in place of one that has crashed: say once more what is said at the
    /// start.
    Resume,
}

/// From the vault to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromVault {
    /// First message: the vault is open. Then the `Plan` of each tenant that it knows.
    Hello(Box<Hello>),
    /// Could not start; the vault exits after this.
    Failed {
        /// What was wrong, where, and what would be right.
        message: String,
    },
    /// Judgement of a submitted object.
    Verdict {
        /// Of the `Submit`.
        id: u64,
        /// The judgement. Accepted means: on disk, synced.
        verdict: Verdict,
    },
    /// A part of what a tenant's newest accepted manifest says now; the whole replaces the plan before.
    Plan(Box<Part<Plan>>),
    /// The plans that follow `Hello` are told, and there was at least one: what was served before the vault was started can be
    /// served again. A vault without plans waits for the control plane, and then answers `Connected`.
    AllPlans,
    /// Have the control plane sign this nonce. Sent when a lease is wanted, and again until one is accepted.
    LeaseWanted {
        /// Fresh random bytes.
        nonce: [u8; 32],
    },
    /// A part of what is held, so that the control plane sends the rest. Answer to `Connected`.
    Have(Box<Part<Have>>),
    /// The node has become a member: a grant of its pool's key was accepted.
    Joined,
    /// The store was set aside because it could not be read; everything must be sent again.
    Refill {
        /// Where the unreadable store is now.
        set_aside: String,
    },
    /// An event for the tenant's log or the node's.
    Event(Event),
    /// Answer to `Describe`: JSON for the status page. No secret, no key.
    Description {
        /// A JSON object.
        json: String,
    },
    /// For a while now the control plane has claimed newer statements than are held: connect anew, so that it is asked for
    /// them. Said at most once for each lease.
    Behind {
        /// How many are lacking: manifests, and the list of revoked nodes.
        statements: u64,
    },
    /// The newest image that was accepted for this node's pool. Said after `Hello` and whenever it becomes another.
    Image(Image),
}

impl Message for ToVault {
    /// The largest envelope, 1 MiB, with room for the rest of a `Submit`.
    const MAX_BYTES: usize = 1024 * 1024 + 1024;
}

impl Message for FromVault {
    /// `Missing` of a manifest with a thousand functions of nine releases each, and a thousand secrets: 320 KB. A part of a
    /// list is smaller.
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

/// What the vault holds; 0 is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Have {
    /// Version of the root.
    pub root: u64,
    /// Version of the online key.
    pub online_key: u64,
    /// Epochs of the node's pool whose statement it holds.
    pub epochs: Vec<u64>,
    /// Tenants.
    pub tenants: Vec<HaveTenant>,
    /// Epochs of the node's pool whose private key it holds.
    pub grants: Vec<u64>,
    /// Version of the newest image of the node's pool as a number, and the digest of the statement's payload.
    pub image: Option<(u64, Digest)>,
    /// Version of the newest list of revoked nodes.
    pub revocations: u64,
}

/// What the vault holds of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaveTenant {
    /// The tenant's id.
    pub tenant: Digest,
    /// Version of its statement.
    pub tenant_version: u64,
    /// Version of its manifest, and the digest of that.
    pub manifest: Option<(u64, Digest)>,
    /// Its newest statement of freshness: version of the manifest that it names, and when it was signed.
    pub freshness: Option<(u64, u64)>,
}

/// An image of the machine that a node may fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its version as a number.
    pub version: u64,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// Size of the file.
    pub bytes: u64,
}

/// What the supervisor needs to connect.
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
    /// What to send while not yet a member: the signed join request.
    pub join_request: Option<Vec<u8>>,
    /// Derived from the storage key: seals what the supervisor keeps.
    pub state_key: [u8; 32],
    /// Layers of its sandbox.
    pub layers: Vec<LayerReport>,
}

/// A judgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Accepted and durable, or the same as what was already held.
    Accepted,
    /// It needs these releases and secrets, by digest, before it can be judged.
    Missing {
        /// Digests.
        digests: Vec<Digest>,
    },
    /// Refused.
    Refused {
        /// Stable name, such as `manifest_version_lower`.
        code: String,
        /// What an operator reads.
        message: String,
    },
}

/// What a tenant runs on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The tenant's id.
    pub tenant: Digest,
    /// The tenant's name, for people.
    pub name: String,
    /// What the tenant's workers may occupy on the node together, MiB.
    pub memory_mib: u32,
    /// Of the accepted manifest.
    pub manifest_version: u64,
    /// Digest of the accepted manifest's payload.
    pub manifest: Digest,
    /// Functions for this node's pool, each with what it may fall back to behind it, in order.
    pub functions: Vec<FunctionPlan>,
}

/// One function of a plan: the wanted release, or one to fall back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionPlan {
    /// Name.
    pub function: String,
    /// Runs only as long as no bundle of a release before it is here.
    pub is_fallback: bool,
    /// Digest of the release.
    pub release: Digest,
    /// Digest of the bundle.
    pub bundle: Digest,
    /// Size of the bundle.
    pub bundle_bytes: u64,
    /// Entry module.
    pub entry: String,
    /// Host names that lead to it.
    pub hosts: Vec<String>,
    /// Host names of its release that lead to another tenant, which the root admitted first.
    pub lost_hosts: Vec<LostHost>,
    /// Checks before a worker is woken.
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

/// A host name that two tenants may answer for, and that is the other one's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostHost {
    /// The host.
    pub host: String,
    /// Name of the tenant whose it is: for the operator, and not for the tenant that asked for it.
    pub owner: String,
}

/// Something that the tenant or the operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The tenant and function, unless it is about the node.
    pub key: Option<FunctionKey>,
    /// The `:request` field, when it is about an outgoing call.
    pub request: Option<String>,
    /// Stable name, such as `egress_denied`.
    pub code: String,
    /// Text for people, without secrets.
    pub message: String,
    /// Events of this tenant that were dropped before: they came faster than they could be said.
    pub dropped: u32,
}
