//! `casemate token`, `casemate audit`.

use std::collections::VecDeque;

use casemate_api::audit::{AuditPage, AuditRecord, Broken};
use casemate_api::token::{MadeToken, NewToken, Scope, TokenList};
use casemate_trust::id::Digest;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::confirm::confirm;
use super::write_once::write_once;
use crate::args::{Audit, TokenCreate, TokenRevoke, TokenScope};
use crate::error::{Code, Error};
use crate::machine::{date, is_word, now};
use crate::output::table;
use crate::session::{Context, Session};

/// Ids of the tokens that were revoked from this home.
const REVOKED: &str = "revoked-tokens.json";
/// Most revoked ids that are remembered, the newest: as many as a control plane has tokens at a
/// time.
const MAX_REVOKED: usize = casemate_api::limits::MAX_TOKENS;
/// The file with the last verified record.
const HEAD: &str = "audit.json";

/// Request a new token.
pub(super) async fn make(
    session: &mut Session<'_>,
    scope: Scope,
    label: &str,
    expires: Option<u64>,
) -> Result<MadeToken, Error> {
    let new = NewToken {
        scope,
        label: label.to_owned(),
        expires,
    };
    let made: MadeToken = session
        .api
        .send_json(Method::POST, "/v1/tokens", &new)
        .await?;
    // Both are printed as they are, and people copy them from the terminal into other commands.
    if is_word(&made.id) && is_word(&made.token) {
        Ok(made)
    } else {
        Err(Error::new(
            Code::Api,
            "the control plane's answer is not a token: it contains characters that a token cannot \
             contain",
            "see the control plane's log; `casemate token list` shows whether one was made",
        ))
    }
}

/// `casemate token create`
pub(super) async fn create(cx: &Context, args: &TokenCreate) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let scope = match (args.scope, &args.tenant) {
        (TokenScope::Operator, _) => Scope::Operator,
        (TokenScope::ReadOnly, _) => Scope::ReadOnly,
        (TokenScope::Tenant, Some(name)) => Scope::Tenant(session.tenant_id(name).await?),
        (TokenScope::Tenant, None) => {
            return Err(Error::new(
                Code::Usage,
                "no tenant is named for the token",
                "add `--tenant NAME`",
            ));
        }
    };
    let expires = args.valid.map(|valid| now() + valid);
    let made = make(&mut session, scope, &args.label, expires).await?;
    let written = write_once(args.out.as_deref(), &made.token)?;
    let token = (!written).then_some(&made.token);
    let result = json!({ "id": made.id, "token": token, "scope": scope, "expires": expires });
    cx.output.result(&result, || {
        token.cloned().unwrap_or_else(|| made.id.clone())
    })?;
    cx.output.hint(&format!(
        "Token {} is shown this once; the control plane keeps its hash.",
        made.id
    ));
    Ok(())
}

/// `casemate token list`
pub(super) async fn list(cx: &Context) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let list: TokenList = session.api.get("/v1/tokens").await?;
    cx.output.result(&list.tokens, || {
        let rows: Vec<_> = list
            .tokens
            .iter()
            .map(|token| {
                vec![
                    token.id.clone(),
                    token.scope.to_string(),
                    token.expires.map_or("never".to_owned(), date),
                    token.label.clone(),
                ]
            })
            .collect();
        table(&["TOKEN", "SCOPE", "EXPIRES", "LABEL"], &rows)
    })
}

/// `casemate token revoke`
pub(super) async fn revoke(cx: &Context, args: &TokenRevoke) -> Result<(), Error> {
    let id = args.id.as_str();
    if !is_word(id) {
        return Err(Error::new(
            Code::Usage,
            "expected the id of a token",
            "`casemate token list` shows the ids; the token itself is not an id",
        ));
    }
    confirm(args.yes, "revoke the token", id)?;
    remember_revoked(cx, id)?;
    let mut session = Session::open(cx).await?;
    session.api.delete(&format!("/v1/tokens/{id}")).await?;
    cx.output.result(&json!({ "revoked": id }), || {
        format!("token {id} is revoked")
    })
}

/// Records a revoked token, so that it is revoked again at a control plane that was restored from
/// an older copy.
fn remember_revoked(cx: &Context, id: &str) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    note_revoked(cx, id)
}

/// Revokes a token, with the home locked by the session.
pub(super) async fn take_away(session: &mut Session<'_>, id: &str) -> Result<(), Error> {
    note_revoked(session.cx, id)?;
    session.api.delete(&format!("/v1/tokens/{id}")).await
}

fn note_revoked(cx: &Context, id: &str) -> Result<(), Error> {
    let mut revoked = revoked(cx)?;
    if !revoked.iter().any(|known| known == id) {
        revoked.push(id.to_owned());
        let surplus = revoked.len().saturating_sub(MAX_REVOKED);
        revoked.drain(..surplus);
        cx.home.write_json(REVOKED, &revoked)?;
    }
    Ok(())
}

/// Ids of the tokens that were revoked from this home, oldest first.
pub(super) fn revoked(cx: &Context) -> Result<Vec<String>, Error> {
    Ok(cx.home.read_json(REVOKED)?.unwrap_or_default())
}

/// The last record of a chain that was verified from this home. The chain has no key: without this
/// record, whoever controls the control plane could cut its end off, or compute all of it again.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    seq: u64,
    hash: Digest,
}

/// `casemate audit`
pub(super) async fn audit(cx: &Context, args: &Audit) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let head: Option<Head> = cx.home.read_json(HEAD)?;
    let mut page: AuditPage = session.api.get("/v1/audit").await?;
    let newest = page.newest;
    let first = if args.verify {
        0
    } else {
        newest.saturating_sub(args.last as u64)
    };
    if first > 0 {
        page = next_page(&mut session, first).await?;
    }
    let mut records: VecDeque<AuditRecord> = VecDeque::new();
    let mut before: Option<AuditRecord> = None;
    let mut since = first;
    while let Some(last) = page.records.last().cloned() {
        if args.verify {
            AuditRecord::verify(before.as_ref(), &page.records).map_err(broken)?;
            if let Some(head) = &head {
                must_contain(&page.records, head)?;
            }
        } else if last.seq <= since {
            break;
        }
        since = last.seq;
        before = Some(last);
        records.extend(page.records);
        let surplus = records.len().saturating_sub(args.last);
        records.drain(..surplus);
        page = next_page(&mut session, since).await?;
    }
    let verified = args.verify.then_some(since);
    if args.verify {
        if let Some(head) = head.filter(|head| head.seq > since) {
            return Err(rewritten(format!(
                "it ends with record {since}; record {} was verified from this home",
                head.seq
            )));
        }
        if let Some(last) = before {
            let (seq, hash) = (last.seq, last.hash);
            cx.home.write_json(HEAD, &Head { seq, hash })?;
        }
    }
    let result = json!({ "records": records, "newest": newest, "verified": verified });
    cx.output.result(&result, || {
        let rows: Vec<_> = records
            .iter()
            .map(|record| {
                vec![
                    record.seq.to_string(),
                    date(record.time),
                    record.actor.clone(),
                    record.action.clone(),
                    record.subject.clone(),
                ]
            })
            .collect();
        table(&["SEQ", "TIME", "WHO", "WHAT", "TO WHAT"], &rows)
    })?;
    if let Some(count) = verified {
        cx.output.done(&format!(
            "{count} records follow each other without a break"
        ));
    }
    Ok(())
}

async fn next_page(session: &mut Session<'_>, since: u64) -> Result<AuditPage, Error> {
    let path = format!("/v1/audit?since={since}");
    session.api.get(&path).await
}

fn must_contain(records: &[AuditRecord], head: &Head) -> Result<(), Error> {
    match records.iter().find(|record| record.seq == head.seq) {
        Some(record) if record.hash != head.hash => Err(rewritten(format!(
            "record {} differs from the one that was verified from this home",
            head.seq
        ))),
        _ => Ok(()),
    }
}

fn broken(broken: Broken) -> Error {
    Error::new(
        Code::Refused,
        format!("the audit chain is broken at record {}", broken.seq),
        "somebody changed, removed or reordered records: compare with a backup of the control \
         plane",
    )
}

fn rewritten(how: String) -> Error {
    Error::new(
        Code::Refused,
        "this is not the audit chain that was verified before",
        format!(
            "somebody rewrote it, or the control plane was restored from a backup: find out which. \
             Once it is explained, remove {HEAD} from the home to start again"
        ),
    )
    .lines([how])
}
