//! `casemate node token`: makes a token with which one node may ask to join, once.

use casemate_api::node::NewJoinToken;
use casemate_trust::join::{JoinToken, MAX_ADDRESS_BYTES, TokenRecord};
use casemate_trust::name::Name;
use http::Method;
use serde_json::json;

use super::grants::no_pool;
use crate::args::NodeToken;
use crate::commands::write_once::write_once;
use crate::error::{Code, Error};
use crate::home::Home;
use crate::machine::{date, now, random};
use crate::session::{Context, Session};

/// The tokens that were made, without their secret part.
pub(in crate::commands) const TOKENS: &str = "joins.json";

/// `casemate node token`
pub(in crate::commands) async fn token(cx: &Context, args: &NodeToken) -> Result<(), Error> {
    if args.cancel {
        return cancel(cx, &args.name);
    }
    cx.root_key()?;
    let mut session = Session::open(cx).await?;
    session.read_pools().await?;
    if session.known.judge().newest_pool(&args.pool).is_none() {
        return Err(no_pool(&args.pool));
    }
    let control = quic_socket(&session, args)?;
    let online = session.known.judge().online();
    let quic = online
        .map(|online| online.quic)
        .ok_or_else(|| Error::internal("no online key"))?;
    let expires = now() + args.valid;
    let token = JoinToken::new(
        session.fleet(),
        (control.clone(), quic),
        args.name.clone(),
        args.pool.clone(),
        expires,
        &mut random,
    );
    let record = token
        .record()
        .map_err(|error| Error::internal("the token has no key").source(error))?;
    register(&mut session, record).await?;
    let text = token.expose_secret();
    let written = write_once(args.out.as_deref(), &text)?;
    let shown = (!written).then_some(text.as_str());
    let result = json!({
        "token": shown,
        "node": args.name,
        "pool": args.pool,
        "control": control,
        "expires": expires,
    });
    cx.output.result(&result, || {
        shown.map_or_else(
            || format!("token for {} until {}", args.name, date(expires)),
            str::to_owned,
        )
    })?;
    cx.output.hint(&format!(
        "For the node {} in pool {}, once, until {}. Then: casemate node admit {}",
        args.name,
        args.pool,
        date(expires),
        args.name
    ));
    Ok(())
}

/// Where the node finds the control plane, `HOST:PORT`.
fn quic_socket(session: &Session<'_>, args: &NodeToken) -> Result<String, Error> {
    let control = args
        .control
        .clone()
        .unwrap_or_else(|| session.view.quic_address.clone());
    let port = control
        .rsplit_once(':')
        .map(|(host, port)| (!host.is_empty(), port.parse::<u16>().is_ok()));
    if control.len() > MAX_ADDRESS_BYTES || port != Some((true, true)) {
        return Err(Error::new(
            Code::Usage,
            "expected the control plane's QUIC socket as HOST:PORT",
            "give it with `--control HOST:PORT`",
        )
        .at(control));
    }
    Ok(control)
}

/// Writes down the public part of a token here, and then registers it with the control plane.
async fn register(session: &mut Session<'_>, record: TokenRecord) -> Result<(), Error> {
    let home = &session.cx.home;
    let mut tokens: Vec<TokenRecord> = home.read_json(TOKENS)?.unwrap_or_default();
    // Expired tokens are refused by their date alone, so they need not be kept.
    tokens.retain(|token| token.expires > now());
    tokens.push(record.clone());
    home.write_json(TOKENS, &tokens)?;
    let json = serde_json::to_vec(&NewJoinToken { record })
        .map_err(|error| Error::internal("a token has no JSON").source(error))?;
    session
        .api
        .send_bytes(
            Method::POST,
            "/v1/nodes/tokens",
            "application/json",
            json.into(),
        )
        .await?;
    Ok(())
}

/// `casemate node token --cancel`. Only this home admits nodes, so no other program needs to know.
fn cancel(cx: &Context, name: &Name) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let count = cancel_tokens(&cx.home, name)?;
    if count == 0 {
        return Err(Error::new(
            Code::NotFound,
            format!("this home keeps no token for a node {name}"),
            "check the name; cancel tokens of another home there; expired ones admit no node",
        ));
    }
    let result = json!({ "node": name, "cancelled": count });
    cx.output.result(&result, || {
        format!("{count} tokens for {name} are cancelled: they admit no node any more")
    })?;
    cx.output.hint(&format!(
        "A node that has joined already stays: `casemate node revoke {name}` removes it."
    ));
    Ok(())
}

/// Delete the tokens that were made for a node; returns how many.
pub(super) fn cancel_tokens(home: &Home, name: &Name) -> Result<usize, Error> {
    let mut tokens: Vec<TokenRecord> = home.read_json(TOKENS)?.unwrap_or_default();
    let before = tokens.len();
    tokens.retain(|token| token.node != *name);
    let gone = before - tokens.len();
    if gone > 0 {
        home.write_json(TOKENS, &tokens)?;
    }
    Ok(gone)
}
