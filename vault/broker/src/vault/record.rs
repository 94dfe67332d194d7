//! Under which kind and name the store keeps what the judge names by row.

use casemate_trust::judge::RowKey;
use casemate_trust::name::Name;
use casemate_vault_store::Kind;

/// Kind and name of the record of a row. Of statements whose version only rises the newest one is
/// stored, but every root is, because each signs the next.
pub(super) fn record(key: &RowKey) -> (Kind, String) {
    const NEWEST: &str = "newest";
    match key {
        RowKey::Root(version) => (Kind::Root, format!("{version:020}")),
        RowKey::OnlineKey => (Kind::OnlineKey, NEWEST.to_owned()),
        RowKey::Revocations => (Kind::Revocations, NEWEST.to_owned()),
        RowKey::Pool(name, epoch) => (Kind::Pool, format!("{name}/{epoch:020}")),
        RowKey::Image(..) => (Kind::Image, NEWEST.to_owned()),
        RowKey::Tenant(id, _) => (Kind::Tenant, id.to_string()),
        RowKey::Manifest(id) => (Kind::Manifest, id.to_string()),
        RowKey::Freshness(id) => (Kind::Freshness, id.to_string()),
        RowKey::Object(digest) => (Kind::Object, digest.to_string()),
    }
}

/// Name of a grant's record.
pub(super) fn grant_record(pool: &Name, epoch: u64) -> String {
    format!("{pool}/{epoch:020}")
}
