//! Why the vault cannot open, or must end, and the exit code that says so.

use casemate_config::{EXIT_IO, EXIT_NEWER, EXIT_SOFTWARE, EXIT_TEMPORARY, EXIT_USAGE};
use casemate_trust::join::JoinError;
use casemate_vault_store::StoreError;

/// Why the vault cannot open, or must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VaultError {
    /// The store.
    #[error("{store}{}", cause(.store))]
    Store {
        /// The cause.
        #[from]
        store: StoreError,
    },
    /// The storage key.
    #[error("the storage key {path}: {message}")]
    StorageKey {
        /// The path.
        path: String,
        /// The cause.
        message: String,
    },
    /// The storage key is missing, and files that were sealed with it exist.
    #[error(
        "the storage key {0} is missing, and this node's identity was sealed with it: put the \
         file back. If it is lost for good, \
         `casemate node revoke` the node, move its state folder aside and give it a new join token"
    )]
    StorageKeyLost(String),
    /// This is the first start, and there is no token.
    #[error(
        "this node has no identity yet: set `join_token_file` in vault.toml to a file with the \
         token that `casemate node token` printed"
    )]
    TokenNeeded,
    /// The token is unreadable.
    #[error("the join token {path}: {message}")]
    TokenFile {
        /// The path.
        path: String,
        /// The cause.
        message: String,
    },
    /// The token is invalid.
    #[error("the join token in {path}: {source}; make a new one with `casemate node token`")]
    Token {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: JoinError,
    },
    /// The rollback memory cannot be read.
    #[error(
        "the vault's memory of what it accepted cannot be read, and without it an old state could \
         be shown as new: restore {0}, or set \
         `accept_lost_memory = true` in vault.toml for one start (the file is set aside, not \
         deleted)"
    )]
    MemoryLost(String),
    /// The sealed keys are malformed.
    #[error(
        "the node's own keys cannot be used; restore the identity file, or join again with an \
         empty state folder"
    )]
    Keys,
    /// A write has failed halfway.
    #[error(
        "a write to the records has failed halfway: the vault ends, and its successor reads what \
         is on the disk"
    )]
    StoreBroken,
    /// The control socket.
    #[error("the supervisor's socket failed")]
    Control(#[from] casemate_channel::ControlError),
}

/// The innermost cause, for the one line that an operator reads.
fn cause(error: &StoreError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"))
}

impl VaultError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::TokenNeeded | Self::TokenFile { .. } | Self::Token { .. } => EXIT_USAGE,
            Self::Store {
                store: StoreError::Locked(_) | StoreError::Full(_),
            } => EXIT_TEMPORARY,
            Self::Store {
                store: StoreError::Format { .. },
            } => EXIT_NEWER,
            Self::Store { .. }
            | Self::StorageKey { .. }
            | Self::StorageKeyLost(_)
            | Self::MemoryLost(_)
            | Self::StoreBroken => EXIT_IO,
            Self::Keys | Self::Control(_) => EXIT_SOFTWARE,
        }
    }
}
