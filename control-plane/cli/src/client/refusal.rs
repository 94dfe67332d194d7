//! Translates the control plane's refusals for the person at the command line: an exit code and a
//! next step.

use casemate_api::error::{ErrorBody, ErrorDetail, code as api};
use http::StatusCode;

use super::MAX_SHOWN_CHARS;
use crate::error::{Code, Error};
use crate::machine::is_word;

/// The error for an answer that is not a success.
pub(super) fn refused(status: StatusCode, body: &[u8]) -> Error {
    let mut detail = serde_json::from_slice::<ErrorBody>(body).map_or_else(
        |_| ErrorDetail {
            code: status.as_str().to_owned(),
            message: String::from_utf8_lossy(body)
                .chars()
                .take(MAX_SHOWN_CHARS)
                .collect(),
            details: serde_json::Value::Null,
        },
        |body| body.error,
    );
    // A code is a name that programs compare and people see in brackets.
    if !is_word(&detail.code) {
        status.as_str().clone_into(&mut detail.code);
    }
    let (kind, next) = kind_and_next_step(&detail.code, status);
    let what = format!(
        "the control plane refused the request ({}): {}",
        detail.code, detail.message
    );
    let mut error = Error::new(kind, what, next);
    if let Some(digests) = detail
        .details
        .get("digests")
        .and_then(|list| list.as_array())
    {
        error = error.lines(digests.iter().map(|digest| format!("digest {digest}")));
    }
    error.remote(detail)
}

fn kind_and_next_step(code: &str, status: StatusCode) -> (Code, &'static str) {
    match (code, status) {
        (api::UNAUTHENTICATED, _) | (_, StatusCode::UNAUTHORIZED) => (
            Code::Forbidden,
            "log in with a token that is valid: `casemate login https://HOST:PORT#FINGERPRINT \
             --token-file FILE`",
        ),
        (api::FORBIDDEN, _) | (_, StatusCode::FORBIDDEN) => (
            Code::Forbidden,
            "this token does not allow that: use a home whose token does, or ask the operator for \
             another token",
        ),
        (api::NOT_FOUND, _) | (_, StatusCode::NOT_FOUND) => (
            Code::NotFound,
            "check the name; the listing commands show the existing names",
        ),
        (api::NO_FLEET, _) => (
            Code::Api,
            "publish the fleet first: `casemate fleet publish` from the operator's home",
        ),
        (api::MANIFEST_CONFLICT | api::CONFLICT, _) => (
            Code::Conflict,
            "another client changed it first: run the command again",
        ),
        (api::BUNDLE_MISSING, _) => (
            Code::Api,
            "the control plane has lost a function's code: deploy that function again from its \
             sources",
        ),
        (api::STORAGE_FULL, _) => (
            Code::Unreachable,
            "inform the operator that the control plane's disk is full; nothing was changed",
        ),
        (api::QUOTA_EXCEEDED, _) => (
            Code::Api,
            "`casemate prune FUNCTION` forgets earlier releases; `casemate status` shows how much \
             is used",
        ),
        (api::NODE_EXISTS, _) => (
            Code::Exists,
            "revoke that node first with `casemate node revoke NAME`, or give the new one another \
             name",
        ),
        (api::TOO_MANY, _) => (
            Code::Api,
            "remove objects that are no longer needed and try again",
        ),
        _ if status.is_server_error() => (
            Code::Unreachable,
            "run the command again; if it fails again, see the control plane's log",
        ),
        _ => (
            Code::Api,
            "correct the named mistake and run the command again",
        ),
    }
}

/// Whether a control plane answers with this status when it does not know the requested operation.
pub(super) fn may_be_unknown(status: StatusCode) -> bool {
    [
        StatusCode::BAD_REQUEST,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::UNPROCESSABLE_ENTITY,
    ]
    .contains(&status)
}
