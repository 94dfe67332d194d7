//! The common end of the commands that sign a manifest: wait for the nodes, then print what was
//! done.

use serde_json::json;

use crate::args::Signing;
use crate::error::Error;
use crate::tenancy::{Reach, Tenancy, Until};

/// Waits until the nodes run the manifest, and prints the result, in which `told` is the line
/// for people.
pub(super) async fn finish(
    tenancy: &mut Tenancy<'_>,
    signing: &Signing,
    version: u64,
    result: serde_json::Value,
    told: &str,
) -> Result<(), Error> {
    finish_when(Until::Taken, tenancy, signing, version, result, told).await
}

/// Like [`finish`]; `until` says what the nodes must have done before the command ends.
pub(super) async fn finish_when(
    until: Until<'_>,
    tenancy: &mut Tenancy<'_>,
    signing: &Signing,
    version: u64,
    mut result: serde_json::Value,
    told: &str,
) -> Result<(), Error> {
    let output = tenancy.session.cx.output;
    output.done(&format!("manifest {version} is signed and stored"));
    let reach = tenancy.wait(signing, until).await?;
    let reach = reach.unwrap_or_default();
    let Reach { current, total, .. } = reach;
    result["manifest"] = json!(version);
    result["nodes"] = json!({ "current": current, "total": total, "away": reach.away });
    output.result(&result, || match total {
        0 => told.to_owned(),
        _ => format!("{told} ({current} of {total} nodes)"),
    })?;
    reach.must_be_everywhere(version)
}
