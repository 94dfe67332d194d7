//! Why the program ends, with its exit code (sysexits).

use std::path::Path;

use casemate_control_store::StoreError;

/// An end with a reason that a person can act on.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// What was expected, what was found, what would help.
    pub message: String,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// 64: the configuration or the command line.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(64, message)
    }

    /// 65: a newer control plane has written what is to be read.
    pub(crate) fn newer(message: impl Into<String>) -> Self {
        Self::new(65, message)
    }

    /// 69: something that is needed cannot be had, such as a port.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(69, message)
    }

    /// 70: our mistake.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(70, message)
    }

    /// 73: something cannot be created.
    pub(crate) fn cannot_create(message: impl Into<String>) -> Self {
        Self::new(73, message)
    }

    /// The same for a file.
    pub(crate) fn cannot_write(path: &Path, error: &std::io::Error) -> Self {
        Self::cannot_create(format!("cannot write {}: {error}", path.display()))
    }

    /// 74: the disk.
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
