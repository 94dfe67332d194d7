//! Stopped credentials in `casemate status`.

use casemate_api::tenant::StoppedCredential;

use crate::machine::date;
use crate::output::table;

/// The text about stopped credentials with the next step; `None` if none is stopped.
pub(super) fn describe(stopped: &[StoppedCredential]) -> Option<String> {
    if stopped.is_empty() {
        return None;
    }
    let rows: Vec<_> = stopped
        .iter()
        .map(|stopped| {
            let nodes: Vec<_> = stopped.nodes.iter().map(ToString::to_string).collect();
            vec![
                stopped.function.to_string(),
                stopped.secret.to_string(),
                date(stopped.until),
                nodes.join(" "),
            ]
        })
        .collect();
    let table = table(&["FUNCTION", "STOPPED SECRET", "UNTIL", "NODES"], &rows);
    Some(format!(
        "{table}\n\nanswers of a host held these secrets three times within an hour, so calls of \
         these functions to that host fail with `credential_reflected`. Next: change the upstream \
         or the call so that answers do not hold the secret; if the upstream returns it by design, \
         seal it again with `casemate secret put NAME --reflection scrub`, after reading in the \
         guide what that risks"
    ))
}
