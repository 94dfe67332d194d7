//! The common part of the commands that make a key and print its public half.

use casemate_trust::key::PublicKey;
use casemate_trust::keyfile::Purpose;

use crate::error::Error;
use crate::session::Context;

/// Makes a key in its two files, or finds an existing one, and prints its public half; returns
/// whether it is new.
pub(super) fn show_key(
    cx: &Context,
    files: (&str, &str),
    purpose: Purpose,
    plain: bool,
    name: &str,
) -> Result<(PublicKey, bool), Error> {
    let (public, new) = cx.keys().find_or_make(files, purpose, plain, name)?;
    let fingerprint = public.fingerprint();
    let result =
        serde_json::json!({ "public_key": public, "fingerprint": fingerprint, "new": new });
    cx.output.result(&result, || {
        format!("public key   {public}\nfingerprint  {fingerprint}")
    })?;
    Ok((public, new))
}
