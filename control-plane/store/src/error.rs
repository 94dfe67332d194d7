//! The errors of a store, by who has to act.

use std::path::PathBuf;

/// Why an operation failed. Nothing was changed, unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another program has the file open.
    #[error("the store {0} is locked: another control plane uses it; stop that one first")]
    Locked(PathBuf),
    /// The file was changed or damaged since it was written.
    #[error("the store {path} is damaged: {message}; put it aside and restore a backup")]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What was found.
        message: String,
    },
    /// An entry that is whole is not what its reader knows.
    #[error(
        "the store's entry {key} cannot be read by this version ({message}): a newer control plane \
         has written it; run that version or go back to a backup from before it; nothing was \
         changed"
    )]
    Unreadable {
        /// Its key.
        key: String,
        /// What was expected.
        message: String,
    },
    /// No space left.
    #[error("the disk of the store {0} is full: nothing was written")]
    Full(PathBuf),
    /// The disk did not do what it was asked.
    #[error("the store {path} could not be read or written")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A comparison failed.
    #[error("the value of the key {0} is not the expected one")]
    Conflict(String),
    /// Longer ago than is remembered.
    #[error("revision {asked} is no longer remembered, the oldest is {oldest}")]
    Compacted {
        /// The requested revision.
        asked: u64,
        /// The oldest after which a watch can begin.
        oldest: u64,
    },
    /// Over a bound.
    #[error("{what}: expected at most {most}, got {got}")]
    TooLarge {
        /// The kind of the value.
        what: &'static str,
        /// The bound.
        most: usize,
        /// The size found.
        got: usize,
    },
    /// The store is going away.
    #[error("the store is closed")]
    Closed,
}
