//! `casemate node admit`.

use std::collections::BTreeSet;
use std::time::Duration;

use casemate_api::node::{Admission, JoinList, JoinView, NodeView};
use casemate_trust::id::Digest;
use casemate_trust::join::TokenRecord;
use casemate_trust::name::Name;
use http::Method;
use serde_json::json;
use tokio::time::Instant;

use super::grants::{grants, no_pool};
use super::members::{Admitted, NODES, members};
use super::request::{Rejection, decide};
use super::tokens::TOKENS;
use crate::args::NodeAdmit;
use crate::error::{Code, Error};
use crate::machine::now;
use crate::session::{Context, Session};

/// Pause between two requests for the waiting nodes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the command waits for the right request of a named node after it has refused one.
const AFTER_REJECTION: Duration = Duration::from_secs(3);

/// `casemate node admit`
pub(in crate::commands) async fn admit(cx: &Context, args: &NodeAdmit) -> Result<(), Error> {
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
    let mut until = Instant::now() + Duration::from_secs(wait);
    let mut round = Round::default();
    loop {
        let list = match session.api.get::<JoinList>("/v1/nodes/joins").await {
            Ok(list) => list,
            Err(error) if args.watch && error.code() == Code::Unreachable => {
                JoinList { joins: Vec::new() }
            }
            Err(error) => return Err(error),
        };
        let wanted = |join: &JoinView| args.name.as_ref().is_none_or(|name| *name == join.node);
        for join in list.joins.into_iter().filter(wanted) {
            session.relock()?;
            let answered = admit_one(&mut session, &join).await?;
            if answered.is_err() {
                // The waiting request may be an old one, with the right one on its way.
                until = until.min(Instant::now() + AFTER_REJECTION);
            }
            round.note(cx, &join, answered);
        }
        let named_done = args.name.is_some() && !round.admitted.is_empty();
        if !args.watch && (named_done || Instant::now() >= until) {
            break;
        }
        session.unlock();
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    drop(progress);
    round.tell(cx)?;
    match &args.name {
        Some(name) if round.admitted.is_empty() => {
            Err(not_admitted(&session, name, wait, round.refused.first())?)
        }
        _ => Ok(()),
    }
}

/// The results of the join requests so far.
#[derive(Default)]
struct Round {
    admitted: Vec<Admitted>,
    refused: Vec<serde_json::Value>,
    /// A request that was refused once is not spoken of every second.
    spoken_of: BTreeSet<Digest>,
}

impl Round {
    fn note(&mut self, cx: &Context, join: &JoinView, answered: Result<Admitted, Rejection>) {
        match answered {
            Ok(node) => {
                let line = format!(
                    "node {} joins pool {}, key {}",
                    node.node,
                    node.pool,
                    node.node_key.fingerprint()
                );
                cx.output.done(&line);
                self.admitted.push(node);
            }
            Err(rejection) => {
                if self.spoken_of.insert(join.request) {
                    let (code, message) = (rejection.code(), rejection.to_string());
                    cx.output.warn(&format!(
                        "{} is not admitted ({code}): {message}",
                        join.node
                    ));
                    self.refused
                        .push(json!({ "node": join.node, "code": code, "message": message }));
                }
            }
        }
    }

    fn tell(&self, cx: &Context) -> Result<(), Error> {
        let result = json!({
            "admitted": self.admitted.iter().map(|node| json!({
                "node": node.node,
                "pool": node.pool,
                "key": node.node_key,
                "fingerprint": node.node_key.fingerprint(),
            })).collect::<Vec<_>>(),
            "refused": self.refused,
        });
        cx.output.result(&result, || {
            match (self.admitted.len(), self.refused.len()) {
                (0, 0) => "no node asks to join".to_owned(),
                (count, 0) => format!("{count} admitted"),
                (count, not) => format!("{count} admitted, {not} not"),
            }
        })
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
    if let Some(rejection) = refused {
        let code = rejection["code"].as_str().unwrap_or_default();
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
                "{name} is a member, and no machine has asked to join by that name within \
                 {wait_secs} seconds"
            ),
            "nothing needs to be done, unless another machine takes over its name: then `casemate \
             node revoke` comes first, and a new token",
        ),
        false => Error::new(
            Code::NotFound,
            format!("{name} has not asked to join within {wait_secs} seconds"),
            "start the node with its token and see its log; it must reach the control plane's QUIC \
             socket",
        ),
    })
}

async fn admit_one(
    session: &mut Session<'_>,
    join: &JoinView,
) -> Result<Result<Admitted, Rejection>, Error> {
    let home = &session.cx.home;
    let mut tokens: Vec<TokenRecord> = home.read_json(TOKENS)?.unwrap_or_default();
    let mut members: Vec<Admitted> = home.read_json(NODES)?.unwrap_or_default();
    let (request, at) = match decide(join, session.fleet(), &tokens, &members, now()) {
        Ok(decided) => decided,
        Err(rejection) => return Ok(Err(rejection)),
    };
    if session.known.judge().is_revoked(&request.node_key) {
        return Ok(Err(Rejection::Revoked));
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
