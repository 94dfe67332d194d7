//! What a node must be to become a member, and its grants to be stored.

use casemate_api::error::code;
use casemate_api::limits::MAX_GRANTS;
use casemate_trust::join::{Grant, JoinRequest};
use casemate_trust::key::PublicKey;
use casemate_trust::name::Name;

use super::held::Held;
use crate::fault::Fault;

/// Refuses a request whose name or key a member has, or whose key is revoked.
pub(super) fn must_be_new(held: &Held, request: &JoinRequest) -> Result<(), Fault> {
    let judge = held.judge.as_ref().ok_or_else(Fault::no_fleet)?;
    judge.must_not_be_revoked(&request.node_key)?;
    let by_key = held
        .nodes
        .values()
        .find(|node| node.key == request.node_key);
    match held.nodes.get(&request.node).or(by_key) {
        Some(node) => Err(node_exists(&node.name)),
        None => Ok(()),
    }
}

/// Refuses grants that are for another node, pool or fleet, or for an epoch that the pool does not
/// have.
pub(super) fn check_grants(
    held: &Held,
    grants: &[Grant],
    pool: &Name,
    key: &PublicKey,
) -> Result<(), Fault> {
    let judge = held.judge.as_ref().ok_or_else(Fault::no_fleet)?;
    judge.must_not_be_revoked(key)?;
    if !(1..=MAX_GRANTS).contains(&grants.len()) {
        return Err(Fault::bad_request(format!(
            "expected 1 to {MAX_GRANTS} grants, got {}",
            grants.len()
        )));
    }
    for grant in grants {
        let is_theirs =
            grant.fleet == judge.fleet() && grant.pool == *pool && grant.node_key == *key;
        if !is_theirs || grant.to_bytes().len() > casemate_trust::join::MAX_GRANT_BYTES {
            return Err(Fault::new(
                422,
                code::GRANT_OTHER,
                "the grant is for another node, pool or fleet",
            ));
        }
        if judge.pool(pool, grant.epoch).is_none() {
            let message = format!("pool {pool} has no epoch {}", grant.epoch);
            return Err(Fault::new(422, code::POOL_UNKNOWN, message));
        }
    }
    Ok(())
}

pub(super) fn node_exists(name: &Name) -> Fault {
    let message = format!("node {name} exists already, by this name or this key; revoke it first");
    Fault::new(409, code::NODE_EXISTS, message)
}

pub(super) fn token_used() -> Fault {
    Fault::new(
        422,
        code::TOKEN_USED,
        "the join token was used already; make another with `casemate node token`",
    )
}
