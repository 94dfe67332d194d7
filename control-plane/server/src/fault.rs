//! Errors of the API as the caller sees them, and the error body.

use casemate_api::error::{ErrorBody, code};
use casemate_control_store::StoreError;
use casemate_trust::judge::Refusal;
use serde_json::{Value, json};

/// A refusal or a failure, with its HTTP status. Internal causes are logged where they occur and
/// not sent to the caller.
#[derive(Debug)]
pub(crate) struct Fault {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body that the caller reads.
    pub(crate) body: Box<ErrorBody>,
    /// For the audit log: the refused object, where the request's path does not name it.
    pub(crate) about: Option<String>,
}

impl Fault {
    pub(crate) fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        let body = Box::new(ErrorBody::new(code, message));
        Self {
            status,
            body,
            about: None,
        }
    }

    pub(crate) fn about(mut self, what: impl std::fmt::Display) -> Self {
        self.about = Some(what.to_string());
        self
    }

    pub(crate) fn with(mut self, details: Value) -> Self {
        self.body.error.details = details;
        self
    }

    pub(crate) fn code(&self) -> &str {
        &self.body.error.code
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(404, code::NOT_FOUND, format!("there is no such {what}"))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, code::BAD_REQUEST, message)
    }

    pub(crate) fn too_many(what: &str, limit: usize) -> Self {
        let message = format!("expected at most {limit} {what}");
        Self::new(429, code::TOO_MANY, message).with(json!({ "limit": limit }))
    }

    pub(crate) fn no_fleet() -> Self {
        let message = "this control plane has no fleet yet; `casemate fleet init` makes one";
        Self::new(409, code::NO_FLEET, message)
    }

    pub(crate) fn storage_full() -> Self {
        let message = "the control plane's disk is full; nothing was changed, try again when there is free space";
        Self::new(507, code::STORAGE_FULL, message)
    }

    pub(crate) fn storage_failed() -> Self {
        let message = "the control plane could not store this; nothing was acknowledged, trying again is safe";
        Self::new(500, code::STORAGE_FAILED, message)
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        let details = match &refusal {
            Refusal::Missing(digests) => json!({ "digests": digests }),
            _ => Value::Null,
        };
        // The source is written for people too: a value that is not a secret explains why.
        let source = std::error::Error::source(&refusal).map(|source| format!(": {source}"));
        let message = format!("{refusal}{}", source.unwrap_or_default());
        Self::new(422, refusal.code(), message).with(details)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full(_) => {
                tracing::error!(%error, "the store is full");
                Self::storage_full()
            }
            StoreError::Conflict(_) => {
                let message = "someone else changed this at the same time; try again";
                Self::new(409, code::CONFLICT, message)
            }
            _ => {
                tracing::error!(error = &error as &dyn std::error::Error, "the store failed");
                Self::storage_failed()
            }
        }
    }
}
