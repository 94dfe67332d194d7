//! `casemate fleet rotate-root`: the root signs its successor.

use casemate_trust::keyfile::Purpose;
use casemate_trust::statement::{Root, Statement as _};
use serde_json::json;

use super::fleet::{ROOT_DAYS, here};
use crate::error::Error;
use crate::keys::ROOT;
use crate::machine::{DAY, now};
use crate::session::Context;

/// `casemate fleet rotate-root`
pub(super) fn rotate_root(cx: &Context) -> Result<(), Error> {
    let _lock = cx.home.lock()?;
    let keys = cx.keys();
    let mut known = here(cx)?;
    let root = known.judge().root().cloned();
    let root = root.ok_or_else(|| Error::internal("a fleet without a root"))?;
    let next = keys.next((ROOT, Purpose::FleetRoot))?;
    // A rotation that was interrupted continues where it stopped.
    if !root.keys.contains(&next.public()) {
        let old = keys.signing(ROOT, Purpose::FleetRoot)?;
        let issued = known.judge().time(now());
        let successor = Root {
            version: root.version + 1,
            keys: vec![next.public()],
            threshold: 1,
            issued,
            expires: issued + ROOT_DAYS * DAY,
        };
        known.accept(&successor.sign(&[&old, &next]), issued)?;
    }
    let count = known.sign_anew(&next)?;
    let kept = keys.promote_key(ROOT)?;
    let version = known.judge().root().map_or(0, |root| root.version);
    let result = json!({ "fleet": known.fleet(), "root": version, "signed_anew": count, "earlier_key": kept });
    cx.output.result(&result, || {
        format!(
            "root {version} is signed by root {} and holds; {count} statements are signed again",
            version - 1
        )
    })?;
    cx.output.hint(&format!(
        "Next, at once: `casemate fleet publish`. The fingerprint stays. Back up {}; the earlier \
         key is kept as {} and signs nothing any more once every node has the new root.",
        cx.home.file(ROOT).display(),
        kept.display()
    ));
    Ok(())
}
