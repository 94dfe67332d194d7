//! `casemate token`, `casemate audit`.

use casemate_api::audit::{AuditPage, AuditRecord};
use casemate_api::token::{MadeToken, NewToken, Scope, TokenList};
use http::Method;
use serde_json::json;

use super::write_once;
use crate::args::{Audit, TokenCreate, TokenScope};
use crate::error::{Code, Error};
use crate::machine::{date, now, printable};
use crate::output::table;
use crate::session::{Context, Session};

/// Ask for a token.
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
    session
        .api
        .send_json(Method::POST, "/v1/tokens", &new)
        .await
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
                "whose token is it to be?",
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
                    printable(&token.label),
                ]
            })
            .collect();
        table(&["TOKEN", "SCOPE", "EXPIRES", "LABEL"], &rows)
    })
}

/// `casemate token revoke`
pub(super) async fn revoke(cx: &Context, id: &str) -> Result<(), Error> {
    if id.is_empty()
        || !id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    {
        return Err(Error::new(
            Code::Usage,
            "expected the id of a token",
            "`casemate token list` shows the ids; the token itself is not one",
        ));
    }
    let mut session = Session::open(cx).await?;
    session.api.delete(&format!("/v1/tokens/{id}")).await?;
    cx.output.result(&json!({ "revoked": id }), || {
        format!("token {id} is worth nothing any more")
    })
}

/// `casemate audit`
pub(super) async fn audit(cx: &Context, args: &Audit) -> Result<(), Error> {
    let mut session = Session::open(cx).await?;
    let mut page: AuditPage = session.api.get("/v1/audit").await?;
    let mut records: Vec<AuditRecord> = Vec::new();
    let mut verified = None;
    if args.verify {
        let mut count = 0;
        let mut before: Option<AuditRecord> = None;
        while !page.records.is_empty() {
            AuditRecord::verify(before.as_ref(), &page.records).map_err(|broken| {
                Error::new(
                    Code::Refused,
                    format!("the audit chain is broken at record {}", broken.seq),
                    "somebody changed, removed or reordered records: compare with a backup of the control plane",
                )
            })?;
            count += page.records.len();
            before = page.records.last().cloned();
            records.append(&mut page.records);
            let surplus = records.len().saturating_sub(args.last);
            records.drain(..surplus);
            let since = before.as_ref().map_or(0, |record| record.seq);
            page = session.api.get(&format!("/v1/audit?since={since}")).await?;
        }
        verified = Some(count);
    } else {
        let since = page.newest.saturating_sub(args.last as u64);
        if since > 0 {
            page = session.api.get(&format!("/v1/audit?since={since}")).await?;
        }
        records = page.records;
    }
    let result = json!({ "records": records, "newest": page.newest, "verified": verified });
    cx.output.result(&result, || {
        let rows: Vec<_> = records
            .iter()
            .map(|record| {
                vec![
                    record.seq.to_string(),
                    date(record.time),
                    printable(&record.actor),
                    printable(&record.action),
                    printable(&record.subject),
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
