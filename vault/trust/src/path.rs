//! Methods, and by way of [`casemate_path`] the paths and path patterns, of egress rules and perimeters.

use std::str::FromStr;

pub use casemate_path::{CanonicalPath, MAX_PATTERN_BYTES, PathPattern, PatternError};

use crate::encoding::parsed_string;
use crate::name::excerpt;

/// Longest method, bytes.
pub const MAX_METHOD_BYTES: usize = 24;

/// Why a method was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an HTTP method in upper case such as `GET`, got {0:?}")]
pub struct MethodError(String);

/// An HTTP method (RFC 9110, section 9.1), upper case. `CONNECT` and `TRACE` are not allowed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method(String);

impl Method {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Method {
    type Err = MethodError;

    fn from_str(text: &str) -> Result<Self, MethodError> {
        let is_token = (1..=MAX_METHOD_BYTES).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        if is_token && !matches!(text, "CONNECT" | "TRACE") {
            Ok(Self(text.to_owned()))
        } else {
            Err(MethodError(excerpt(text)))
        }
    }
}

parsed_string!(Method);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_upper_case_and_none_that_opens_a_tunnel() {
        for method in ["GET", "PROPFIND", "VERSION-CONTROL"] {
            assert_eq!(method.parse::<Method>().unwrap().as_str(), method);
        }
        for bad in ["", "get", "CONNECT", "TRACE", "GET ", "G1"] {
            assert!(bad.parse::<Method>().is_err(), "{bad}");
        }
    }
}
