//! The gateway's own answers: the only module with codes, statuses and texts.

use std::borrow::Cow;

use bytes::Bytes;
use casemate_wire::control::Failure;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

/// The response field that holds the request's id, on every answer.
pub const REQUEST_FIELD: HeaderName = HeaderName::from_static("x-casemate-request");

/// Why the gateway answers instead of a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request's host is not unambiguous.
    BadHost,
    /// The path has more than one reading.
    BadPath,
    /// The body broke off or is malformed.
    BadBody,
    /// No function has this host.
    NoSuchHost,
    /// The TLS connection was made for a host with another certificate.
    Misdirected,
    /// The perimeter does not allow the method.
    PerimeterMethod,
    /// The perimeter does not allow the path.
    PerimeterPath,
    /// The body is larger than the perimeter allows.
    BodyTooLarge,
    /// The head is larger than a channel carries.
    HeadTooLarge,
    /// The body came too slowly.
    BodyTimeout,
    /// The request asks for an upgrade.
    NotSupported,
    /// The tenant has the most requests in flight that one tenant may have.
    TooManyRequests,
    /// The request has passed through Casemate nodes too often.
    LoopDetected,
    /// The function, or its worker, failed.
    Failed(Failure),
}

/// A refusal on its way to the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// The message for the caller.
    pub message: Cow<'static, str>,
}

impl Code {
    /// All codes, by status.
    pub const ALL: &[Self] = &[
        Self::BadHost,
        Self::BadPath,
        Self::BadBody,
        Self::NoSuchHost,
        Self::PerimeterPath,
        Self::PerimeterMethod,
        Self::BodyTimeout,
        Self::BodyTooLarge,
        Self::Misdirected,
        Self::HeadTooLarge,
        Self::NotSupported,
        Self::TooManyRequests,
        Self::LoopDetected,
        Self::Failed(Failure::Exception),
        Self::Failed(Failure::EgressDenied),
        Self::Failed(Failure::LoadFailed),
        Self::Failed(Failure::WorkerLost),
        Self::Failed(Failure::ExceededCpu),
        Self::Failed(Failure::ExceededMemory),
        Self::Failed(Failure::Unavailable),
        Self::Failed(Failure::LeaseExpired),
        Self::Failed(Failure::CredentialUnusable),
        Self::Failed(Failure::ExceededWall),
    ];

    /// The code's name, as callers see it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The default message for callers.
    pub fn message(self) -> &'static str {
        self.row().2
    }

    /// The class for access records, when the function is to blame or unavailable.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::BadHost => (
                400,
                "bad_host",
                "the request does not say for certain which host it is for",
            ),
            Self::BadPath => (
                400,
                "bad_path",
                "the path is not canonical: expected no dot segments, no backslashes and only visible ASCII",
            ),
            Self::BadBody => (400, "bad_body", "the request's body could not be read"),
            Self::NoSuchHost => (
                404,
                "no_such_host",
                "no function answers for this host here",
            ),
            Self::Misdirected => (
                421,
                "misdirected",
                "this connection was made for a host with another certificate",
            ),
            Self::PerimeterMethod => (
                405,
                "perimeter_method",
                "the function does not take this method",
            ),
            Self::PerimeterPath => (
                404,
                "perimeter_path",
                "the function does not take this path",
            ),
            Self::BodyTooLarge => (
                413,
                "body_too_large",
                "the request's body is larger than the function takes",
            ),
            Self::HeadTooLarge => (
                431,
                "head_too_large",
                "the request's target or fields are too large",
            ),
            Self::BodyTimeout => (408, "body_timeout", "the request's body came too slowly"),
            Self::NotSupported => (
                501,
                "not_supported",
                "upgrades to other protocols are not served",
            ),
            Self::TooManyRequests => (
                503,
                "too_many_requests",
                "the functions of this tenant have too many requests in flight; try again",
            ),
            Self::LoopDetected => (
                508,
                "loop_detected",
                "the request has passed through functions too often: they seem to call each other in a loop",
            ),
            Self::Failed(failure) => failed(failure),
        }
    }
}

fn failed(failure: Failure) -> (u16, &'static str, &'static str) {
    let (status, message) = match failure {
        Failure::ExceededCpu => (
            503,
            "the function used more CPU time than its release allows",
        ),
        Failure::ExceededMemory => (503, "the function used more memory than its release allows"),
        Failure::ExceededWall => (504, "the function took longer than its release allows"),
        Failure::Exception => (500, "the function failed"),
        Failure::EgressDenied => (
            500,
            "the function called a place that its release does not allow",
        ),
        Failure::WorkerLost => (
            502,
            "the function's worker ended in the middle of the request",
        ),
        Failure::LoadFailed => (500, "the function could not be loaded"),
        Failure::Unavailable => (503, "the function cannot be served at the moment"),
        Failure::LeaseExpired => (
            503,
            "the node has been without its control plane for too long to use the function's credentials; try again",
        ),
        Failure::CredentialUnusable => (
            503,
            "a credential that the function needs may not be used at the moment",
        ),
    };
    (status, failure.code(), message)
}

impl From<Code> for Refusal {
    fn from(code: Code) -> Self {
        Self {
            code,
            message: Cow::Borrowed(code.row().2),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Code::Failed(failure).into()
    }
}

impl Refusal {
    /// Builds the response. A 405 response must name the allowed methods (`allow`).
    pub fn respond(&self, request: &str, allow: Option<&str>) -> Response<Bytes> {
        let error = serde_json::json!({ "error": { "code": self.code.name(), "message": self.message, "request": request } });
        let mut response = Response::new(Bytes::from(error.to_string()));
        *response.status_mut() = self.code.status();
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(
            self.code,
            Code::Failed(Failure::Unavailable | Failure::LeaseExpired) | Code::TooManyRequests
        ) {
            fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(allow).ok()) {
            fields.insert(http::header::ALLOW, allow);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table is an interface: outsiders depend on these codes and statuses.
    #[test]
    fn the_table_is_the_golden_one() {
        let mut table = String::new();
        for code in Code::ALL.iter().copied() {
            let response = Refusal::from(code).respond("r-1", None);
            let body = String::from_utf8(response.body().to_vec()).unwrap();
            table.push_str(&format!("{} {body}\n", response.status().as_u16()));
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
        }
        assert_eq!(table, include_str!("answer.golden"));
    }

    #[test]
    fn texts_from_elsewhere_are_escaped() {
        let refusal = Refusal {
            code: Code::Failed(Failure::LoadFailed),
            message: Cow::Borrowed("no \"x\"\r\nin </script>"),
        };
        let response = refusal.respond("r-2", None);
        let value: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(value["error"]["message"], "no \"x\"\r\nin </script>");
        assert_eq!(value["error"]["request"], "r-2");
    }
}
