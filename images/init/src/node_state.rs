//! Where the node's own state is on the state partition, for what init looks at there.

use std::path::{Path, PathBuf};

/// The folder that launch is given as `--state`.
#[derive(Debug, Clone)]
pub(crate) struct NodeState(PathBuf);

impl NodeState {
    /// Of a state partition that is mounted there.
    pub(crate) fn on(partition: &Path) -> Self {
        Self(partition.join("casemate"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Whether the vault has made itself an identity, and so has sealed something.
    pub(crate) fn has_identity(&self) -> bool {
        self.0.join("vault/identity").exists()
    }

    /// Where the vault keeps the storage key when nobody else does.
    pub(crate) fn clear_storage_key(&self) -> PathBuf {
        self.0.join("vault/storage.key")
    }

    /// Which image the vault has accepted last.
    pub(crate) fn accepted_image(&self) -> PathBuf {
        self.0.join("vault/image.json")
    }

    /// The supervisor's images that have come whole, each named by its digest.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("node/images")
    }

    /// Where the supervisor answers who asks how the node is.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.0.join("node/admin.sock")
    }
}
