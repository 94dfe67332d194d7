//! How messages name the command that fills a credential slot of a project.

use casemate_trust::release::Credential;

use crate::endpoint::authority;

/// The command that seals a secret for a slot's host, port and certificate authority.
pub(crate) fn put_command(slot: &Credential) -> String {
    let ca = match slot.ca {
        Some(_) => " --ca FILE",
        None => "",
    };
    let host = authority(&slot.host, slot.port);
    format!("casemate secret put {} --host {host}{ca}", slot.secret)
}
