//! `casemate node`: the operator's machine decides which nodes join; the control plane only relays.

mod admit;
mod grants;
mod members;
mod request;
mod revocations;
mod revoke;
mod show;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use admit::admit;
pub(super) use grants::{grant_missing, readmit_lost};
pub(super) use members::{is_revoked, members};
pub(super) use revocations::sign_missing as sign_revocations;
pub(super) use revoke::revoke;
pub(super) use show::{list, show};
pub(super) use tokens::{TOKENS, token};
