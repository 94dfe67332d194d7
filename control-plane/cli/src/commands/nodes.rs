//! `casemate node`: the operator's machine decides which nodes join; the control plane only relays.

mod revocations;
mod show;
mod tokens;

use std::time::Duration;

use casemate_api::limits::MAX_GRANTS;
use casemate_api::node::{
    Admission, JoinList, JoinView, NewGrants, NodeList, NodeView, Readmission,
};
use casemate_trust::Seconds;
use casemate_trust::dsse::Envelope;
use casemate_trust::join::{Grant, JoinError, JoinRequest, TokenRecord};
use casemate_trust::key::{PublicKey, SealingKey};
use casemate_trust::keyfile::Purpose;
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::confirm::confirm;
use crate::args::{NodeAdmit, NodeRevoke};
use crate::error::{Code, Error};
use crate::keys::pool_file;
use crate::machine::{now, random};
use crate::session::{Context, Session};
use tokens::cancel_tokens;

pub(super) use revocations::sign_missing as sign_revocations;
pub(super) use show::{list, show};
pub(super) use tokens::{TOKENS, token};

/// Admitted nodes: later pool keys are sealed to the keys in this file, never to keys that the
/// control plane reports.
const NODES: &str = "nodes.json";
/// Pause between two requests for the waiting nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the command waits for the right request of a named node after it has refused one.
const AFTER_REFUSAL: Duration = Duration::from_secs(3);

/// An admitted node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Admitted {
    node: Name,
    pool: Name,
    node_key: PublicKey,
    sealing_key: SealingKey,
    admitted: Seconds,
    revoked: bool,
    /// The node's request, which is uploaded again to a control plane that has lost the node. It is
    /// missing for nodes that were admitted before requests were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    join: Option<Envelope>,
}

/// Why a join request is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum No {
    #[error(
        "the control plane's listing contradicts the signed join request, which is for node {0} in pool {1}"
    )]
    LabelOther(Name, Name),
    #[error("no token that was made here signed this request")]
    TokenUnknown,
    #[error("the join token was already used by another node")]
    TokenUsed,
    #[error("the join request is for another fleet")]
    FleetOther,
    #[error("another node of this name is a member; revoke it first with `casemate node revoke`")]
    NameTaken,
    #[error("member {0} already has this node key")]
    KeyTaken(Name),
    #[error(
        "the root has revoked its key; start the node with an empty state folder and a new token"
    )]
    Revoked,
    #[error(transparent)]
    Join(#[from] JoinError),
}

impl No {
    fn code(&self) -> &'static str {
        match self {
            Self::LabelOther(..) => "label_other",
            Self::TokenUnknown => "token_unknown",
            Self::TokenUsed => "token_used",
            Self::FleetOther => "fleet_other",
            Self::NameTaken => "node_exists",
            Self::KeyTaken(_) => "key_exists",
            Self::Revoked => "node_revoked",
            Self::Join(error) => error.code(),
        }
    }
}

/// Decides about one request; returns the token that signed it. The control plane's listing must
/// agree with the signed request, because the operator chooses by the name that is listed.
fn decide(
    join: &JoinView,
    fleet: casemate_trust::id::FleetId,
    tokens: &[TokenRecord],
    members: &[Admitted],
    now: Seconds,
) -> Result<(JoinRequest, usize), No> {
    let signed = JoinRequest::read(&join.envelope).map_err(JoinError::Format)?;
    let is_as_shown = join.node == signed.node
        && join.pool == signed.pool
        && join.node_key == signed.node_key
        && join.request == join.envelope.payload_digest();
    if !is_as_shown {
        return Err(No::LabelOther(signed.node, signed.pool));
    }
    let mut no = No::TokenUnknown;
    for (at, token) in tokens.iter().enumerate() {
        let request = match JoinRequest::check(&join.envelope, token, now) {
            Ok(request) => request,
            // The request was signed with another token, or with this one too late or for another
            // node.
            Err(JoinError::Signature) => continue,
            Err(error) => {
                no = error.into();
                continue;
            }
        };
        if request.fleet != fleet {
            return Err(No::FleetOther);
        }
        if token.used_by.is_some_and(|used| used != request.node_key) {
            return Err(No::TokenUsed);
        }
        for member in members.iter().filter(|member| !member.revoked) {
            let same_key = member.node_key == request.node_key;
            if member.node == request.node && !same_key {
                return Err(No::NameTaken);
            }
            if member.node != request.node && same_key {
                return Err(No::KeyTaken(member.node.clone()));
            }
        }
        return Ok((request, at));
    }
    Err(no)
}

fn no_pool(pool: &Name) -> Error {
    Error::new(
        Code::NotFound,
        format!("there is no pool {pool}"),
        "`casemate pool list` shows the pools of the fleet; `casemate pool add` makes one",
    )
}

/// `casemate node admit`
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub(super) async fn admit(cx: &Context, args: &NodeAdmit) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    session.read_pools().await?;
    let progress = match &args.name {
        Some(name) => Some(
            cx.output
                .progress(format!("waiting for {name} to ask to join")),
        ),
        None if args.watch => Some(cx.output.progress("waiting for nodes to ask to join")),
        None => None,
    };
    let wait = if args.name.is_some() { args.wait } else { 0 };
    let mut until = tokio::time::Instant::now() + Duration::from_secs(wait);
    // Each refused request is reported once, not every second.
    let mut spoken_of = std::collections::BTreeSet::new();
    let (mut admitted, mut refused) = (Vec::new(), Vec::new());
    loop {
        let list = match session.api.get::<JoinList>("/v1/nodes/joins").await {
            Ok(list) => list,
            Err(error) if args.watch && error.code() == Code::Unreachable => {
                JoinList { joins: Vec::new() }
            }
            Err(error) => return Err(error),
        };
        for join in list.joins {
            if args.name.as_ref().is_some_and(|name| *name != join.node) {
                continue;
            }
            session.relock()?;
            match admit_one(&mut session, &join).await? {
                Ok(node) => {
                    let line = format!(
                        "node {} joins pool {}, key {}",
                        node.node,
                        node.pool,
                        node.node_key.fingerprint()
                    );
                    cx.output.done(&line);
                    admitted.push(node);
                }
                Err(no) => {
                    // The waiting request may be an old one, with the right one on its way.
                    until = until.min(tokio::time::Instant::now() + AFTER_REFUSAL);
                    if spoken_of.insert(join.request) {
                        cx.output.warn(&format!(
                            "{} is not admitted ({}): {no}",
                            join.node,
                            no.code()
                        ));
                        refused.push(json!({ "node": join.node, "code": no.code(), "message": no.to_string() }));
                    }
                }
            }
        }
        let named_done = args.name.is_some() && !admitted.is_empty();
        if !args.watch && (named_done || tokio::time::Instant::now() >= until) {
            break;
        }
        session.unlock();
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    drop(progress);
    let result = json!({
        "admitted": admitted.iter().map(|node| json!({
            "node": node.node,
            "pool": node.pool,
            "key": node.node_key,
            "fingerprint": node.node_key.fingerprint(),
        })).collect::<Vec<_>>(),
        "refused": refused,
    });
    cx.output
        .result(&result, || match (admitted.len(), refused.len()) {
            (0, 0) => "no node asks to join".to_owned(),
            (count, 0) => format!("{count} admitted"),
            (count, not) => format!("{count} admitted, {not} not"),
        })?;
    match &args.name {
        Some(name) if admitted.is_empty() => {
            Err(not_admitted(&session, name, wait, refused.first())?)
        }
        _ => Ok(()),
    }
}

/// The error for a named node that is not admitted: why its request was refused, or that none
/// arrived.
fn not_admitted(
    session: &Session<'_>,
    name: &Name,
    wait_secs: u64,
    refused: Option<&serde_json::Value>,
) -> Result<Error, Error> {
    if let Some(no) = refused {
        let code = no["code"].as_str().unwrap_or_default();
        return Ok(Error::new(
            Code::Refused,
            format!("{name} was not admitted ({code})"),
            format!(
                "make a new token with `casemate node token {name}` and start the node with it"
            ),
        ));
    }
    let is_member = members(session)?.iter().any(|(member, _)| member == name);
    Ok(match is_member {
        true => Error::new(
            Code::Exists,
            format!(
                "{name} is a member, and no machine has asked to join by that name within {wait_secs} seconds"
            ),
            "nothing is to be done, unless another machine is to take its name: then `casemate node revoke` comes first, and \
             a new token",
        ),
        false => Error::new(
            Code::NotFound,
            format!("{name} has not asked to join within {wait_secs} seconds"),
            "start the node with its token and look into its log; it must reach the control plane's QUIC socket",
        ),
    })
}

async fn admit_one(
    session: &mut Session<'_>,
    join: &JoinView,
) -> Result<Result<Admitted, No>, Error> {
    let home = &session.cx.home;
    let mut tokens: Vec<TokenRecord> = home.read_json(TOKENS)?.unwrap_or_default();
    let mut members: Vec<Admitted> = home.read_json(NODES)?.unwrap_or_default();
    let (request, at) = match decide(join, session.fleet(), &tokens, &members, now()) {
        Ok(decided) => decided,
        Err(no) => return Ok(Err(no)),
    };
    if session.known.judge().is_revoked(&request.node_key) {
        return Ok(Err(No::Revoked));
    }
    let grants = grants(
        session,
        &request.pool,
        request.node_key,
        &request.sealing_key,
        &[],
    )?;
    if grants.is_empty() {
        return Err(no_pool(&request.pool));
    }
    let node = Admitted {
        node: request.node,
        pool: request.pool,
        node_key: request.node_key,
        sealing_key: request.sealing_key,
        admitted: now(),
        revoked: false,
        join: Some(join.envelope.clone()),
    };
    // The token is marked as used before it is used: after a crash in between the same node tries
    // again, never a second node.
    tokens[at].used_by = Some(node.node_key);
    home.write_json(TOKENS, &tokens)?;
    members.retain(|member| member.node != node.node);
    members.push(node.clone());
    home.write_json(NODES, &members)?;
    let admission = Admission {
        request: join.request,
        node_key: node.node_key,
        name: node.node.clone(),
        pool: node.pool.clone(),
        grants,
    };
    let _: NodeView = session
        .api
        .send_json(Method::POST, "/v1/nodes/admit", &admission)
        .await?;
    Ok(Ok(node))
}

/// The unexpired keys of a pool, sealed to a node; keys that the node already has are left out.
fn grants(
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
                "the key of pool {pool}, epoch {epoch}, is not in this home: the node does not get it"
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
pub(super) async fn readmit_lost(session: &mut Session<'_>) -> Result<Vec<Name>, Error> {
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
pub(super) async fn grant_missing(
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

/// `casemate node revoke`
pub(super) async fn revoke(cx: &Context, args: &NodeRevoke) -> Result<(), Error> {
    confirm(args.yes, "revoke the node", args.name.as_str())?;
    // The revocation is written down before the control plane is called: whether and what it
    // answers must not keep a node among those that later keys are sealed to.
    let pool = mark_revoked(cx, &args.name)?;
    let is_listed = pool.is_some() && cx.is_operator() && sign_revocations(cx)?;
    let told = async {
        let mut session = Session::open(cx).await?;
        let path = format!("/v1/nodes/{}", args.name);
        let deleted = session.api.delete(&path).await;
        // In any case the list is published: a control plane cannot revert it.
        session.publish_fleet().await?;
        deleted
    };
    match told.await {
        Ok(()) => {}
        Err(error) if error.code() == Code::NotFound && pool.is_some() => cx.output.warn(&format!(
            "the control plane knows no node {}; this home gives it no more keys",
            args.name
        )),
        Err(error) if pool.is_some() => {
            return Err(error.lines([format!(
                "node {} gets no more keys from this home; its connection is not closed yet: run this command again",
                args.name
            )]));
        }
        Err(error) => return Err(error),
    }
    let result = json!({ "revoked": args.name, "signed": is_listed });
    cx.output
        .result(&result, || format!("node {} is revoked", args.name))?;
    if !is_listed {
        cx.output.warn(
            "the revocation is not signed, because the fleet's root key or the node's record is not in this home: only \
             this control plane keeps the node out. Run the command again from the home that admitted the node",
        );
    }
    let pool = pool.map_or("POOL".to_owned(), |pool| pool.to_string());
    cx.output.hint(&format!(
        "It still knows the pool's key: run `casemate pool rotate {pool}`, and have tenants put their secrets again."
    ));
    Ok(())
}

/// Whether a node that the control plane lists was revoked by this home or by the root.
pub(super) fn is_revoked(
    session: &Session<'_>,
    name: &Name,
    key: &PublicKey,
) -> Result<bool, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let is_marked = members
        .iter()
        .any(|member| member.node == *name && member.node_key == *key && member.revoked);
    Ok(is_marked || session.known.judge().is_revoked(key))
}

/// The members that this home has admitted and not revoked, each with its key.
pub(super) fn members(session: &Session<'_>) -> Result<Vec<(Name, PublicKey)>, Error> {
    let members: Vec<Admitted> = session.cx.home.read_json(NODES)?.unwrap_or_default();
    let current = members.into_iter().filter(|member| !member.revoked);
    Ok(current
        .map(|member| (member.node, member.node_key))
        .collect())
}

/// Mark a node as revoked: this home gives it no more keys, and does not admit it again with a
/// token that it still has. Returns its pool.
fn mark_revoked(cx: &Context, name: &Name) -> Result<Option<Name>, Error> {
    let _lock = cx.home.lock()?;
    cancel_tokens(&cx.home, name)?;
    let mut members: Vec<Admitted> = cx.home.read_json(NODES)?.unwrap_or_default();
    let mut pool = None;
    for member in members.iter_mut().filter(|member| member.node == *name) {
        member.revoked = true;
        pool = Some(member.pool.clone());
    }
    if pool.is_some() {
        cx.home.write_json(NODES, &members)?;
    }
    Ok(pool)
}

#[cfg(test)]
mod tests;
