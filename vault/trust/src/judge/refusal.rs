//! Every refusal has a name.

use crate::Seconds;
use crate::freshness::MAX_SKEW_SECS;
use crate::host::HostName;
use crate::id::Digest;
use crate::image::ImageVersion;
use crate::key::PublicKey;
use crate::late::{Early, Late};
use crate::name::{Identifier, Name};
use crate::secret::SecretError;

/// Why a statement was refused. [`Refusal::code`] is stable; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no such statement, or makes no sense in itself.
    #[error("the statement is malformed: {0}")]
    Malformed(String),
    /// For another fleet.
    #[error("the statement is of another fleet")]
    FleetOther,
    /// Another first root than the fleet's fingerprint, or none yet.
    #[error("the root is not the fleet's, or was not shown yet")]
    RootUnknown,
    /// A root lower than remembered.
    #[error("root version {1} is lower than {0}, which was accepted before")]
    RootVersionLower(u64, u64),
    /// Another root of the same version.
    #[error("another root of the same version was accepted before")]
    RootEqualOther,
    /// A root that skips versions.
    #[error("root version {got} does not follow {held}")]
    RootVersionGap {
        /// What is held.
        held: u64,
        /// What came.
        got: u64,
    },
    /// Signed by a root that has expired.
    #[error("the root that signed it has expired: {0}")]
    RootExpired(Late),
    /// Too few of the right keys have signed.
    #[error("fewer of the right keys have signed than the threshold asks for")]
    SignatureThreshold,
    /// Lower than remembered.
    #[error("online key version {1} is lower than {0}, which was accepted before")]
    OnlineVersionLower(u64, u64),
    /// Same version, other digest.
    #[error("another online key of the same version was accepted before")]
    OnlineEqualOther,
    /// Expired.
    #[error("the online key has expired: {0}")]
    OnlineExpired(Late),
    /// Same epoch, other key.
    #[error("another key of the same pool and epoch was accepted before")]
    PoolEqualOther,
    /// Expired.
    #[error("the pool's key has expired: {0}")]
    PoolExpired(Late),
    /// Lower than remembered.
    #[error(
        "image {got} is lower than {held}, which was accepted for pool {pool} before; give it a higher version"
    )]
    ImageVersionLower {
        /// The pool.
        pool: Name,
        /// What is remembered.
        held: ImageVersion,
        /// What came.
        got: ImageVersion,
    },
    /// Same version, other bytes.
    #[error(
        "another image {version} was accepted for pool {pool} before; give this one a higher version"
    )]
    ImageEqualOther {
        /// The pool.
        pool: Name,
        /// The version of both.
        version: ImageVersion,
    },
    /// Expired.
    #[error("the image's statement has expired; push it again: {0}")]
    ImageExpired(Late),
    /// Not for the pool of this node.
    #[error("the image is for other pools than this node's")]
    ImagePoolOther,
    /// Lower than remembered.
    #[error("list {1} of revoked nodes is lower than {0}, which was accepted before")]
    RevocationsVersionLower(u64, u64),
    /// Same version, other digest.
    #[error("another list of revoked nodes of the same version was accepted before")]
    RevocationsEqualOther,
    /// Listed as revoked.
    #[error("the root has revoked the node with the key {0}")]
    NodeRevoked(PublicKey),
    /// Lower than remembered.
    #[error("tenant version {1} is lower than {0}, which was accepted before")]
    TenantVersionLower(u64, u64),
    /// Same version, other digest.
    #[error("another statement of the same tenant and version was accepted before")]
    TenantEqualOther,
    /// Expired.
    #[error("the tenant's statement has expired: {0}")]
    TenantExpired(Late),
    /// Neither the root nor enough of the keys before have signed.
    #[error("neither the root nor enough of the tenant's keys before have signed this change")]
    TenantKeyChange,
    /// The tenant signed for more than its keys.
    #[error(
        "a tenant may change its own keys and nothing else; hosts, ceilings and dates are the root's"
    )]
    TenantScopeWidened,
    /// A statement that moves the time at which the tenant was admitted.
    #[error(
        "the tenant's earlier statements say that it was admitted at {held:?}, this one says {got:?}: it decides whose a \
         host is and never changes"
    )]
    TenantAdmittedOther {
        /// What is held.
        held: Option<Seconds>,
        /// What came.
        got: Option<Seconds>,
    },
    /// A tenant that was never introduced, or a version that was not.
    #[error("the tenant, or this version of it, was not shown yet")]
    TenantUnknown,
    /// Lower than remembered.
    #[error("manifest version {1} is lower than {0}, which was accepted before")]
    ManifestVersionLower(u64, u64),
    /// Same version, other digest.
    #[error("another manifest of the same version was accepted before")]
    ManifestEqualOther,
    /// Expired.
    #[error("the manifest has expired; `casemate renew` signs it again: {0}")]
    ManifestExpired(Late),
    /// Of an older manifest than remembered.
    #[error("the statement names manifest {1}, and manifest {0} was accepted or named before")]
    FreshnessVersionLower(u64, u64),
    /// Of the same manifest and not newer.
    #[error(
        "a statement of freshness that was signed later, or at the same time, was accepted before"
    )]
    FreshnessOlder,
    /// Of another manifest of the same version.
    #[error("the statement names another manifest of the version that was accepted before")]
    FreshnessManifestOther,
    /// The manifest does not ask for it.
    #[error("the manifest demands no freshness; `casemate freshness require` signs one that does")]
    FreshnessUndemanded,
    /// Signed later than now.
    #[error(
        "the statement of freshness is dated more than {MAX_SKEW_SECS} seconds ahead: {0}; set the clock that is wrong"
    )]
    FreshnessFromFuture(Early),
    /// Too old.
    #[error("the statement of freshness is older than the manifest allows: {0}")]
    FreshnessExpired(Late),
    /// It lists objects that are not here.
    #[error("{} listed objects are not here yet", .0.len())]
    Missing(Vec<Digest>),
    /// An object with another digest than listed.
    #[error("the object has another digest than listed")]
    DigestMismatch,
    /// An object that no manifest lists.
    #[error("no manifest lists this object")]
    ObjectUnlisted,
    /// A release that is none.
    #[error("release of {function}: {message}")]
    ReleaseMalformed {
        /// The function.
        function: Name,
        /// What is wrong.
        message: String,
    },
    /// A release of another fleet, tenant or function.
    #[error("the release listed for {0} was made for something else")]
    ReleaseOther(Name),
    /// A host that the tenant was not given.
    #[error("{function} asks for host {host}, which the tenant was not given")]
    ReleaseHost {
        /// The function.
        function: Name,
        /// The host.
        host: HostName,
    },
    /// Two functions claim the same host.
    #[error("two functions ask for host {0}")]
    HostTwice(HostName),
    /// A limit over the tenant's ceiling.
    #[error("{function} asks for {limit} = {asked}, the tenant's ceiling is {allowed}")]
    ReleaseOverCeiling {
        /// The function.
        function: Name,
        /// Which limit.
        limit: &'static str,
        /// What is asked.
        asked: u32,
        /// What is allowed.
        allowed: u32,
    },
    /// A release that declares calls beyond the tenant's egress ceiling.
    #[error(
        "{function} declares calls to {host}:{port}, and the operator lets the tenant call {allowed}"
    )]
    ReleaseEgress {
        /// The function.
        function: Name,
        /// The host.
        host: HostName,
        /// The port.
        port: u16,
        /// What the ceiling allows, for people.
        allowed: String,
    },
    /// A secret that is none.
    #[error("secret {name}")]
    SecretMalformed {
        /// Its name.
        name: Identifier,
        /// What is wrong.
        #[source]
        source: SecretError,
    },
    /// A secret of another fleet, tenant, name or pool.
    #[error("the secret listed as {0} was sealed for something else")]
    SecretOther(Identifier),
    /// A slot that goes beyond its secret's limits.
    #[error("slot {binding} of {function}: {message}")]
    SecretLimitsWidened {
        /// The function.
        function: Name,
        /// The slot.
        binding: Identifier,
        /// Which limit.
        message: String,
    },
    /// More than can be remembered.
    #[error("no more {0} can be remembered")]
    TooMany(&'static str),
}

impl Refusal {
    /// Stable name, for scripts, logs and tests.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "statement_malformed",
            Self::FleetOther => "fleet_other",
            Self::RootUnknown => "root_unknown",
            Self::RootVersionLower(..) => "root_version_lower",
            Self::RootEqualOther => "root_same_version_other_digest",
            Self::RootVersionGap { .. } => "root_version_gap",
            Self::RootExpired(_) => "root_expired",
            Self::SignatureThreshold => "signature_threshold",
            Self::OnlineVersionLower(..) => "online_version_lower",
            Self::OnlineEqualOther => "online_same_version_other_digest",
            Self::OnlineExpired(_) => "online_expired",
            Self::PoolEqualOther => "pool_same_epoch_other_key",
            Self::PoolExpired(_) => "pool_expired",
            Self::ImageVersionLower { .. } => "image_version_lower",
            Self::ImageEqualOther { .. } => "image_same_version_other_digest",
            Self::ImageExpired(_) => "image_expired",
            Self::ImagePoolOther => "image_pool_other",
            Self::RevocationsVersionLower(..) => "revocations_version_lower",
            Self::RevocationsEqualOther => "revocations_same_version_other_digest",
            Self::NodeRevoked(_) => "node_revoked",
            Self::TenantVersionLower(..) => "tenant_version_lower",
            Self::TenantEqualOther => "tenant_same_version_other_digest",
            Self::TenantExpired(_) => "tenant_expired",
            Self::TenantKeyChange => "tenant_key_change_unauthorised",
            Self::TenantScopeWidened => "tenant_scope_widened",
            Self::TenantAdmittedOther { .. } => "tenant_admitted_other",
            Self::TenantUnknown => "tenant_unknown",
            Self::ManifestVersionLower(..) => "manifest_version_lower",
            Self::ManifestEqualOther => "manifest_same_version_other_digest",
            Self::ManifestExpired(_) => "manifest_expired",
            Self::FreshnessVersionLower(..) => "freshness_version_lower",
            Self::FreshnessOlder => "freshness_older",
            Self::FreshnessManifestOther => "freshness_manifest_other",
            Self::FreshnessUndemanded => "freshness_undemanded",
            Self::FreshnessFromFuture(_) => "freshness_from_future",
            Self::FreshnessExpired(_) => "freshness_expired",
            Self::Missing(_) => "objects_missing",
            Self::DigestMismatch => "digest_mismatch",
            Self::ObjectUnlisted => "object_unlisted",
            Self::ReleaseMalformed { .. } => "release_malformed",
            Self::ReleaseOther(_) => "release_other",
            Self::ReleaseHost { .. } => "release_host_not_tenants",
            Self::HostTwice(_) => "host_claimed_twice",
            Self::ReleaseOverCeiling { .. } => "release_over_ceiling",
            Self::ReleaseEgress { .. } => "release_egress_over_ceiling",
            Self::SecretMalformed { .. } => "secret_malformed",
            Self::SecretOther(_) => "secret_other",
            Self::SecretLimitsWidened { .. } => "secret_limits_widened",
            Self::TooMany(_) => "too_many",
        }
    }
}
