//! Whether a node that asks to join is one that this home has made a token for.

use casemate_api::node::JoinView;
use casemate_trust::Seconds;
use casemate_trust::id::FleetId;
use casemate_trust::join::{JoinError, JoinRequest, TokenRecord};
use casemate_trust::name::Name;
use casemate_trust::statement::Statement as _;

use super::members::Admitted;

/// Why a join request is refused: shown to the operator, who decides what happens next.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejection {
    #[error(
        "the control plane's listing contradicts the signed join request, which is for node {0} in \
         pool {1}"
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

impl Rejection {
    /// The code that programs compare.
    pub(super) fn code(&self) -> &'static str {
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
pub(super) fn decide(
    join: &JoinView,
    fleet: FleetId,
    tokens: &[TokenRecord],
    members: &[Admitted],
    now: Seconds,
) -> Result<(JoinRequest, usize), Rejection> {
    let signed = JoinRequest::read(&join.envelope).map_err(JoinError::Format)?;
    let is_as_shown = join.node == signed.node
        && join.pool == signed.pool
        && join.node_key == signed.node_key
        && join.request == join.envelope.payload_digest();
    if !is_as_shown {
        return Err(Rejection::LabelOther(signed.node, signed.pool));
    }
    let mut rejection = Rejection::TokenUnknown;
    for (at, token) in tokens.iter().enumerate() {
        let request = match JoinRequest::check(&join.envelope, token, now) {
            Ok(request) => request,
            // The request was signed with another token, or with this one too late or for another
            // node.
            Err(JoinError::Signature) => continue,
            Err(error) => {
                rejection = error.into();
                continue;
            }
        };
        if request.fleet != fleet {
            return Err(Rejection::FleetOther);
        }
        if token.used_by.is_some_and(|used| used != request.node_key) {
            return Err(Rejection::TokenUsed);
        }
        for member in members.iter().filter(|member| !member.revoked) {
            let same_key = member.node_key == request.node_key;
            if member.node == request.node && !same_key {
                return Err(Rejection::NameTaken);
            }
            if member.node != request.node && same_key {
                return Err(Rejection::KeyTaken(member.node.clone()));
            }
        }
        return Ok((request, at));
    }
    Err(rejection)
}
