//! Pool keys, sealed to members.

use casemate_api::limits::MAX_GRANTS;
use casemate_api::node::{NewGrants, NodeList, NodeView, Readmission};
use casemate_trust::join::Grant;
use casemate_trust::key::{PublicKey, SealingKey};
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use http::Method;

use super::members::{Admitted, NODES};
use crate::error::{Code, Error};
use crate::keys::pool_file;
use crate::machine::{now, random};
use crate::session::Session;

/// The error for a pool that no statement names.
pub(super) fn no_pool(pool: &Name) -> Error {
    Error::new(
        Code::NotFound,
        format!("there is no pool {pool}"),
        "`casemate pool list` shows the pools of the fleet; `casemate pool add` makes one",
    )
}

/// The unexpired keys of a pool, sealed to a node; keys that the node already has are left out.
pub(super) fn grants(
    session: &Session<'_>,
    pool: &Name,
    node_key: PublicKey,
    sealing_key: &SealingKey,
    has: &[u64],
) -> Result<Vec<Grant>, Error> {
    let judge = session.known.judge();
    let newest = judge.newest_pool(pool).map_or(0, |pool| pool.epoch);
    let mut grants = Vec::new();
    for epoch in (1..=newest).rev() {
        let Some(statement) = judge.pool(pool, epoch) else {
            continue;
        };
        if statement.expires <= now() || has.contains(&epoch) {
            continue;
        }
        let (keys, file) = (session.cx.keys(), pool_file(pool, epoch));
        if !keys.has(&file) && epoch < newest {
            // Secrets that were sealed to a lost key cannot be opened by nodes that do not have it;
            // the newest key is required.
            session.cx.output.warn(&format!(
                "the key of pool {pool}, epoch {epoch}, is not in this home: the node does not get \
                 it"
            ));
            continue;
        }
        let seed = keys.seed(&file, Purpose::Pool)?;
        let grant = Grant::seal(statement, &seed, node_key, sealing_key, &mut random)
            .map_err(|error| Error::internal("the pool key could not be sealed").source(error))?;
        grants.push(grant);
        if grants.len() == MAX_GRANTS {
            break;
        }
    }
    Ok(grants)
}

/// Have the control plane admit again the members that it has lost; returns their names.
pub(in crate::commands) async fn readmit_lost(
    session: &mut Session<'_>,
) -> Result<Vec<Name>, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let list: NodeList = session.api.get("/v1/nodes").await?;
    let mut again = Vec::new();
    for member in members {
        let is_there = list.nodes.iter().any(|there| there.name == member.node);
        let is_revoked = member.revoked || session.known.judge().is_revoked(&member.node_key);
        let Some(join) = member.join.filter(|_| !is_there && !is_revoked) else {
            continue;
        };
        let (pool, sealing_key) = (&member.pool, &member.sealing_key);
        let grants = grants(session, pool, member.node_key, sealing_key, &[])?;
        let readmission = Readmission { join, grants };
        let _: NodeView = session
            .api
            .send_json(Method::POST, "/v1/nodes", &readmission)
            .await?;
        again.push(member.node);
    }
    Ok(again)
}

/// Give every member the pool keys that it lacks; returns the nodes that received one.
pub(in crate::commands) async fn grant_missing(
    session: &mut Session<'_>,
    only: Option<&Name>,
) -> Result<Vec<Name>, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let mut given = Vec::new();
    for member in members {
        let is_revoked = member.revoked || session.known.judge().is_revoked(&member.node_key);
        if is_revoked {
            continue;
        }
        if only.is_some_and(|pool| *pool != member.pool) {
            continue;
        }
        let path = format!("/v1/nodes/{}", member.node);
        let view: NodeView = match session.api.get(&path).await {
            Ok(view) => view,
            Err(error) if error.code() == Code::NotFound => continue,
            Err(error) => return Err(error),
        };
        let grants = grants(
            session,
            &member.pool,
            member.node_key,
            &member.sealing_key,
            &view.grants,
        )?;
        if grants.is_empty() {
            continue;
        }
        let path = format!("{path}/grants");
        let _: NodeView = session
            .api
            .send_json(Method::POST, &path, &NewGrants { grants })
            .await?;
        given.push(member.node);
    }
    Ok(given)
}
