//! Closes the process in, before it reads anything of the network or the disk's.

use std::os::unix::fs::DirBuilderExt as _;

use casemate_sandbox::{Profile, SandboxError};
use casemate_wire::control::LayerReport;

use crate::clock;
use crate::config::Config;

/// The result of closing the sandbox.
pub(crate) struct Closed {
    pub(crate) layers: Vec<LayerReport>,
    /// Descriptors that this process may hold.
    pub(crate) descriptors: u64,
}

/// Makes the state folder and puts every wall up that the kernel has.
///
/// # Errors
/// A wall cannot be put up, or one that `require` names is missing.
pub(crate) fn close_in(config: &Config) -> Result<Closed, String> {
    // The first read of a clock locates the vDSO with a call that the sandbox forbids.
    let _now = clock::boot_ms();
    // Landlock rules need existing files.
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state);
    made.map_err(|error| format!("cannot make {}: {error}", config.state.display()))?;
    let failed = |error: SandboxError| {
        let cause = std::error::Error::source(&error)
            .map_or_else(String::new, |cause| format!(": {cause}"));
        format!("cannot close the sandbox: {error}{cause}")
    };
    let descriptors = casemate_sandbox::raise_descriptors().map_err(failed)?;
    let layers = casemate_sandbox::close_with(Profile::Vault, &config.paths()).map_err(failed)?;
    let missing = casemate_sandbox::missing(&config.require, &layers)
        .map_err(|unknown| unknown.to_string())?;
    if missing.is_empty() {
        Ok(Closed {
            layers,
            descriptors,
        })
    } else {
        Err(format!(
            "layers that `require` names are not in force: {}",
            missing.join(", ")
        ))
    }
}
