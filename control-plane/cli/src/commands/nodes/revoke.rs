//! `casemate node revoke`.

use casemate_trust::name::Name;
use serde_json::json;

use super::members::{Admitted, NODES};
use super::revocations::sign_missing;
use super::tokens::cancel_tokens;
use crate::args::NodeRevoke;
use crate::commands::confirm::confirm;
use crate::error::{Code, Error};
use crate::session::{Context, Session};

/// `casemate node revoke`
pub(in crate::commands) async fn revoke(cx: &Context, args: &NodeRevoke) -> Result<(), Error> {
    confirm(args.yes, "revoke the node", args.name.as_str())?;
    // The revocation is written down before the control plane is called: whether and what it
    // answers must not keep a node among those that later keys are sealed to.
    let pool = mark_revoked(cx, &args.name)?;
    let is_listed = pool.is_some() && cx.is_operator() && sign_missing(cx)?;
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
                "node {} gets no more keys from this home; its connection is not closed yet: run \
                 this command again",
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
            "the revocation is not signed, because the fleet's root key or the node's record is \
             not in this home: only this control plane keeps the node out. Run the command again \
             from the home that admitted the node",
        );
    }
    let pool = pool.map_or("POOL".to_owned(), |pool| pool.to_string());
    cx.output.hint(&format!(
        "It still knows the pool's key: run `casemate pool rotate {pool}`, and have tenants put \
         their secrets again."
    ));
    Ok(())
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
