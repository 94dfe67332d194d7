//! Rows of the store: how tokens, joins and nodes are written down, and how rows are read.

use casemate_api::token::TokenView;
use casemate_control_store::{Entry, MAX_RANGE, Redb, Store as _, StoreError};
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::id::Digest;
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A token of the API as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// The public part of the token.
    pub(crate) view: TokenView,
    /// SHA-256 of the token.
    pub(crate) hash: Digest,
}

/// A waiting join request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct JoinRow {
    /// The request as the node's vault signed it.
    pub(crate) envelope: Envelope,
    /// Key of the token that signed the request.
    pub(crate) token: PublicKey,
    /// Time of its first arrival.
    pub(crate) first_seen: Seconds,
}

/// An admitted node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeRow {
    /// Name.
    pub(crate) name: Name,
    /// Pool.
    pub(crate) pool: Name,
    /// Ed25519 key.
    pub(crate) key: PublicKey,
    /// Time of the admission.
    pub(crate) admitted: Seconds,
    /// Its join request.
    pub(crate) join: Envelope,
}

/// A row; `None` where it cannot be read, which the log says.
pub(super) fn parse<T: DeserializeOwned>(entry: &Entry) -> Option<T> {
    let parsed = serde_json::from_slice(&entry.value);
    parsed
        .inspect_err(
            |error| tracing::error!(key = entry.key, %error, "a stored record cannot be read"),
        )
        .ok()
}

async fn entries(store: &Redb, prefix: &str) -> Result<Vec<Entry>, StoreError> {
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let after = found.last().map(|entry| entry.key.clone());
        let page = store.range(prefix, after.as_deref(), MAX_RANGE).await?;
        let is_last = page.len() < MAX_RANGE;
        found.extend(page);
        if is_last {
            return Ok(found);
        }
    }
}

/// All rows under a prefix, without those that cannot be read.
pub(super) async fn rows<T: DeserializeOwned>(
    store: &Redb,
    prefix: &str,
) -> Result<impl Iterator<Item = (Entry, T)> + use<T>, StoreError> {
    let found = entries(store, prefix).await?;
    Ok(found
        .into_iter()
        .filter_map(|entry| parse(&entry).map(|row| (entry, row))))
}
