//! Keys of the store. Numbers have twenty digits, so that they sort.

use casemate_push::StatementId;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

pub(crate) const ROOT: &str = "root/";
pub(crate) const ONLINE: &str = "online";
pub(crate) const REVOCATIONS: &str = "revocations";
pub(crate) const POOL: &str = "pool/";
pub(crate) const IMAGE: &str = "image/";
pub(crate) const TENANT: &str = "tenant/";
pub(crate) const MANIFEST: &str = "manifest/";
pub(crate) const FRESHNESS: &str = "freshness/";
/// Time and size of an object's upload: stored beside it, so that a pass over all of them reads no
/// object.
pub(crate) const KEPT: &str = "kept/";
pub(crate) const TOKEN: &str = "token/";
pub(crate) const JOIN_TOKEN: &str = "join-token/";
pub(crate) const JOIN: &str = "join/";
pub(crate) const NODE: &str = "node/";
pub(crate) const GRANT: &str = "grant/";
pub(crate) const SEEN: &str = "seen/";
pub(crate) const AUDIT: &str = "audit/";

pub(crate) fn statement(id: &StatementId) -> String {
    match id {
        StatementId::Root { version } => format!("{ROOT}{version:020}"),
        StatementId::OnlineKey { .. } => ONLINE.to_owned(),
        StatementId::Revocations { .. } => REVOCATIONS.to_owned(),
        StatementId::Pool { name, epoch } => format!("{POOL}{name}/{epoch:020}"),
        StatementId::Tenant { tenant, version } => format!("{TENANT}{tenant}/{version:020}"),
        StatementId::Manifest { tenant, .. } => format!("{MANIFEST}{tenant}"),
        StatementId::Freshness { tenant, .. } => freshness(tenant),
        StatementId::Image { version, statement } => format!("{IMAGE}{version:020}/{statement}"),
        StatementId::Grant { pool, epoch } => format!("{GRANT}{pool}/{epoch:020}"),
    }
}

pub(crate) fn freshness(tenant: &TenantId) -> String {
    format!("{FRESHNESS}{tenant}")
}

pub(crate) fn object(tenant: &TenantId, digest: &Digest) -> String {
    format!("object/{tenant}/{digest}")
}

pub(crate) fn kept(tenant: &TenantId, digest: &Digest) -> String {
    format!("{KEPT}{tenant}/{digest}")
}

pub(crate) fn parse_kept(key: &str) -> Option<(TenantId, Digest)> {
    let (tenant, digest) = key.strip_prefix(KEPT)?.split_once('/')?;
    Some((tenant.parse().ok()?, digest.parse().ok()?))
}

pub(crate) fn token(id: &str) -> String {
    format!("{TOKEN}{id}")
}

pub(crate) fn join_token(key: &PublicKey) -> String {
    format!("{JOIN_TOKEN}{}", key.fingerprint())
}

pub(crate) fn join(request: &Digest) -> String {
    format!("{JOIN}{request}")
}

pub(crate) fn node(name: &Name) -> String {
    format!("{NODE}{name}")
}

pub(crate) fn grant(node: &Name, epoch: u64) -> String {
    format!("{GRANT}{node}/{epoch:020}")
}

pub(crate) fn seen(node: &Name) -> String {
    format!("{SEEN}{node}")
}

pub(crate) fn audit(seq: u64) -> String {
    format!("{AUDIT}{seq:020}")
}
