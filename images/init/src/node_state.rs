//! Paths of the node's state on the state partition, as far as init reads them.

use std::path::{Path, PathBuf};

/// The folder that launch gets as `--state`.
#[derive(Debug, Clone)]
pub(crate) struct NodeState(PathBuf);

impl NodeState {
    /// The node's state on a partition that is mounted there.
    pub(crate) fn on(partition: &Path) -> Self {
        Self(partition.join("casemate"))
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    /// Whether the vault has made an identity, and so has sealed records.
    pub(crate) fn has_identity(&self) -> bool {
        self.0.join("vault/identity").exists()
    }

    /// The file in which the vault keeps the storage key when no key is sealed to a TPM.
    pub(crate) fn clear_storage_key(&self) -> PathBuf {
        self.0.join("vault/storage.key")
    }

    /// The file that names the image which the vault accepted last.
    pub(crate) fn accepted_image(&self) -> PathBuf {
        self.0.join("vault/image.json")
    }

    /// The supervisor's complete images, each named by its digest.
    pub(crate) fn images(&self) -> PathBuf {
        self.0.join("node/images")
    }

    /// The socket at which the supervisor serves the node's status.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.0.join("node/admin.sock")
    }
}
