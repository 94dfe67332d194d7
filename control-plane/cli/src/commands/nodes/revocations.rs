//! The root's list of revoked nodes: signed here, enforced by nodes, control plane and tenants'
//! tools.

use casemate_trust::revocation::Revocations;
use casemate_trust::statement::Statement as _;

use super::members::{Admitted, NODES};
use crate::error::{Code, Error};
use crate::machine::now;
use crate::memory::Known;
use crate::session::Context;

/// Signs a list with every node that this home has revoked, unless the newest list names them all,
/// and writes it down. Returns whether the list names at least one node.
pub(in crate::commands) fn sign_missing(cx: &Context) -> Result<bool, Error> {
    let _lock = cx.home.lock()?;
    let members: Vec<Admitted> = cx.home.read_json(NODES)?.unwrap_or_default();
    let Some(mut known) = Known::load(&cx.home)? else {
        return Ok(false);
    };
    let judge = known.judge();
    let issued = judge.time(now());
    let mut list = judge.revocations().cloned().unwrap_or(Revocations {
        fleet: judge.fleet(),
        version: 0,
        nodes: Vec::new(),
        exposed: std::collections::BTreeMap::new(),
        issued,
    });
    let before = list.nodes.len();
    for member in members.iter().filter(|member| member.revoked) {
        // The node received every key up to the newest one, and will not receive a later one.
        if !list.names(&member.node_key) {
            let epoch = judge.newest_pool(&member.pool).map(|pool| pool.epoch);
            list.revoke(member.node_key, &member.pool, epoch);
        }
    }
    if list.nodes.len() == before {
        return Ok(before > 0);
    }
    list.version += 1;
    list.issued = issued;
    if let Some(flaw) = list.flaw() {
        return Err(Error::new(
            Code::Refused,
            format!("the list of revoked nodes cannot be signed: {flaw}"),
            "the node gets no more keys from this home; rotate the pool's key and begin a new \
             fleet",
        ));
    }
    known.accept(&list.sign(&[&cx.root_key()?]), issued)?;
    Ok(true)
}
