//! The reason why the program ends, with its exit code (sysexits).

use std::path::Path;

use casemate_control_store::StoreError;

/// A failure with a message on which a person can act.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What was expected, what was found, and the next step.
    pub message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// 64: a mistake in the configuration or on the command line.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(64, message)
    }

    /// 65: the data is of a newer control plane.
    pub(crate) fn newer(message: impl Into<String>) -> Self {
        Self::new(65, message)
    }

    /// 69: a needed resource is not available, such as a port.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(69, message)
    }

    /// 70: a fault of this program.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(70, message)
    }

    /// 73: a file or folder cannot be created.
    pub(crate) fn cannot_create(message: impl Into<String>) -> Self {
        Self::new(73, message)
    }

    /// A file cannot be written.
    pub(crate) fn cannot_write(path: &Path, error: &std::io::Error) -> Self {
        Self::cannot_create(format!("cannot write {}: {error}", path.display()))
    }

    /// 74: reading or writing failed.
    pub(crate) fn io(message: impl Into<String>) -> Self {
        Self::new(74, message)
    }

    /// 75: try again later.
    pub(crate) fn temporary(message: impl Into<String>) -> Self {
        Self::new(75, message)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let message = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        match error {
            StoreError::Locked(_) => Self::temporary(message),
            StoreError::Unreadable { .. } => Self::newer(message),
            _ => Self::io(message),
        }
    }
}
