//! The refusals of the judge, each with a stable code.

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
    /// The data is not such a statement, or is inconsistent.
    #[error("the statement is malformed: {0}")]
    Malformed(String),
    /// The statement is for another fleet.
    #[error("the statement is of another fleet")]
    FleetOther,
    /// The first root differs from the fleet's fingerprint, or has not arrived.
    #[error("the root is not the fleet's, or has not arrived yet")]
    RootUnknown,
    /// The root's version is lower than the remembered one.
    #[error("root version {1} is lower than {0}, which was accepted before")]
    RootVersionLower(u64, u64),
    /// Another root of the same version.
    #[error("another root of the same version was accepted before")]
    RootEqualOther,
    /// A root that skips versions.
    #[error("root version {got} does not follow {held}")]
    RootVersionGap {
        /// The held version.
        held: u64,
        /// The version that came.
        got: u64,
    },
    /// The root that signed the statement has expired.
    #[error("the root that signed it has expired: {0}")]
    RootExpired(Late),
    /// Too few of the right keys have signed.
    #[error("fewer of the right keys have signed than the threshold asks for")]
    SignatureThreshold,
    /// The version is lower than the remembered one.
    #[error("online key version {1} is lower than {0}, which was accepted before")]
    OnlineVersionLower(u64, u64),
    /// The version is equal, but the digest differs.
    #[error("another online key of the same version was accepted before")]
    OnlineEqualOther,
    /// The online key has expired.
    #[error("the online key has expired: {0}")]
    OnlineExpired(Late),
    /// The epoch is equal, but the key differs.
    #[error("another key of the same pool and epoch was accepted before")]
    PoolEqualOther,
    /// The pool's key has expired.
    #[error("the pool's key has expired: {0}")]
    PoolExpired(Late),
    /// The version is lower than the remembered one.
    #[error(
        "image {got} is lower than {held}, which was accepted for pool {pool} before; give it a higher version"
    )]
    ImageVersionLower {
        /// The pool.
        pool: Name,
        /// The remembered version.
        held: ImageVersion,
        /// The version that came.
        got: ImageVersion,
    },
    /// The version is equal, but the bytes differ.
    #[error(
        "another image {version} was accepted for pool {pool} before; give this one a higher version"
    )]
    ImageEqualOther {
        /// The pool.
        pool: Name,
        /// The version of both.
        version: ImageVersion,
    },
    /// The image's statement has expired.
    #[error("the image's statement has expired; push it again: {0}")]
    ImageExpired(Late),
    /// The image is not for this node's pool.
    #[error("the image is for other pools than this node's")]
    ImagePoolOther,
    /// The version is lower than the remembered one.
    #[error("list {1} of revoked nodes is lower than {0}, which was accepted before")]
    RevocationsVersionLower(u64, u64),
    /// The version is equal, but the digest differs.
    #[error("another list of revoked nodes of the same version was accepted before")]
    RevocationsEqualOther,
    /// The node is listed as revoked.
    #[error("the root has revoked the node with the key {0}")]
    NodeRevoked(PublicKey),
    /// The version is lower than the remembered one.
    #[error("tenant version {1} is lower than {0}, which was accepted before")]
    TenantVersionLower(u64, u64),
    /// The version is equal, but the digest differs.
    #[error("another statement of the same tenant and version was accepted before")]
    TenantEqualOther,
    /// The tenant's statement has expired.
    #[error("the tenant's statement has expired: {0}")]
    TenantExpired(Late),
    /// Neither the root nor enough of the keys before have signed.
    #[error("neither the root nor enough of the tenant's keys before have signed this change")]
    TenantKeyChange,
    /// The tenant signed a change of more than its keys.
    #[error(
        "a tenant may change its own keys and nothing else; hosts, ceilings and dates are the root's"
    )]
    TenantScopeWidened,
    /// The statement changes the time at which the tenant was admitted.
    #[error(
        "the tenant's earlier statements say that it was admitted at {held:?}, this one says {got:?}: it decides whose a \
         host is and never changes"
    )]
    TenantAdmittedOther {
        /// The held time.
        held: Option<Seconds>,
        /// The time that came.
        got: Option<Seconds>,
    },
    /// The tenant, or this version of it, has not arrived.
    #[error("the tenant, or this version of it, has not arrived yet")]
    TenantUnknown,
    /// The version is lower than the remembered one.
    #[error("manifest version {1} is lower than {0}, which was accepted before")]
    ManifestVersionLower(u64, u64),
    /// The version is equal, but the digest differs.
    #[error("another manifest of the same version was accepted before")]
    ManifestEqualOther,
    /// The manifest has expired.
    #[error("the manifest has expired; `casemate renew` signs it again: {0}")]
    ManifestExpired(Late),
    /// The statement is about an older manifest than the remembered one.
    #[error("the statement names manifest {1}, and manifest {0} was accepted or named before")]
    FreshnessVersionLower(u64, u64),
    /// The statement is about the same manifest and not newer.
    #[error(
        "a statement of freshness that was signed later, or at the same time, was accepted before"
    )]
    FreshnessOlder,
    /// The statement is about another manifest of the same version.
    #[error("the statement names another manifest of the version that was accepted before")]
    FreshnessManifestOther,
    /// The manifest does not demand freshness.
    #[error("the manifest demands no freshness; `casemate freshness require` signs one that does")]
    FreshnessUndemanded,
    /// The statement is dated in the future.
    #[error(
        "the statement of freshness is dated more than {MAX_SKEW_SECS} seconds ahead: {0}; set the clock that is wrong"
    )]
    FreshnessFromFuture(Early),
    /// The statement is too old.
    #[error("the statement of freshness is older than the manifest allows: {0}")]
    FreshnessExpired(Late),
    /// The manifest lists objects that are not here.
    #[error("{} listed objects are not here yet", .0.len())]
    Missing(Vec<Digest>),
    /// An object's digest differs from the listed one.
    #[error("the object has another digest than listed")]
    DigestMismatch,
    /// No manifest lists the object.
    #[error("no manifest lists this object")]
    ObjectUnlisted,
    /// The release is malformed.
    #[error("release of {function}: {message}")]
    ReleaseMalformed {
        /// The function.
        function: Name,
        /// What is wrong with it.
        message: String,
    },
    /// The release is for another fleet, tenant or function.
    #[error("the release listed for {0} was made for something else")]
    ReleaseOther(Name),
    /// The tenant was not given the host.
    #[error("{function} asks for host {host}, which the tenant was not given")]
    ReleaseHost {
        /// The function.
        function: Name,
        /// The host.
        host: HostName,
    },
    /// Two functions declare the same host.
    #[error("two functions ask for host {0}")]
    HostTwice(HostName),
    /// A limit exceeds the tenant's ceiling.
    #[error("{function} asks for {limit} = {asked}, the tenant's ceiling is {allowed}")]
    ReleaseOverCeiling {
        /// The function.
        function: Name,
        /// The limit.
        limit: &'static str,
        /// The requested value.
        asked: u32,
        /// The ceiling.
        allowed: u32,
    },
    /// The release declares calls beyond the tenant's egress ceiling.
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
        /// The places that the ceiling allows, for people.
        allowed: String,
    },
    /// The secret is malformed.
    #[error("secret {name}")]
    SecretMalformed {
        /// Its name.
        name: Identifier,
        /// What is wrong with it.
        #[source]
        source: SecretError,
    },
    /// The secret is for another fleet, tenant, name or pool.
    #[error("the secret listed as {0} was sealed for something else")]
    SecretOther(Identifier),
    /// A slot exceeds its secret's limits.
    #[error("slot {binding} of {function}: {message}")]
    SecretLimitsWidened {
        /// The function.
        function: Name,
        /// The slot.
        binding: Identifier,
        /// The limit that it exceeds.
        message: String,
    },
    /// The memory is full.
    #[error("no more {0} can be remembered")]
    TooMany(&'static str),
}

impl Refusal {
    /// The stable code, for scripts, logs and tests.
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
