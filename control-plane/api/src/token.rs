//! Scopes and tokens of the API.

use std::fmt;
use std::str::FromStr;

use casemate_trust::Seconds;
use casemate_trust::id::TenantId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::ToSchema;

/// Prefix of a printed token, by which people and secret scanners recognise one.
pub const TOKEN_PREFIX: &str = "casemate_";
/// Random bytes in a token.
pub const TOKEN_BYTES: usize = 32;

/// The scope of a token. As text: `operator`, `read-only`, `tenant:ID`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Everything except acting for a tenant.
    Operator,
    /// One tenant: its manifests, objects, status and logs.
    Tenant(TenantId),
    /// Reads everything, changes nothing.
    ReadOnly,
}

/// The text is not a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeError;

impl fmt::Display for ScopeError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("expected `operator`, `read-only` or `tenant:` and a tenant's id")
    }
}

impl std::error::Error for ScopeError {}

impl fmt::Display for Scope {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => to.write_str("operator"),
            Self::ReadOnly => to.write_str("read-only"),
            Self::Tenant(id) => write!(to, "tenant:{id}"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        match text {
            "operator" => Ok(Self::Operator),
            "read-only" => Ok(Self::ReadOnly),
            _ => {
                let id = text.strip_prefix("tenant:").ok_or(ScopeError)?;
                id.parse().map(Self::Tenant).map_err(|_| ScopeError)
            }
        }
    }
}

impl Serialize for Scope {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A request for a new token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// The scope: `operator`, `read-only` or `tenant:ID`.
    #[schema(value_type = String)]
    pub scope: Scope,
    /// A description of its use.
    pub label: String,
    /// Unix time at which it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Seconds>,
}

/// A token that was just made.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MadeToken {
    /// Its id, for lists and for revoking it.
    pub id: String,
    /// The token, shown this once; the server stores its hash.
    pub token: String,
}

impl fmt::Debug for MadeToken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "MadeToken({})", self.id)
    }
}

/// A token in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// The scope.
    #[schema(value_type = String)]
    pub scope: Scope,
    /// The description of its use.
    pub label: String,
    /// Unix time at which it was made.
    pub created: Seconds,
    /// Unix time at which it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Seconds>,
}

/// All tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// The tokens, oldest first.
    pub tokens: Vec<TokenView>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_text() {
        let scopes = [
            Scope::Operator,
            Scope::ReadOnly,
            Scope::Tenant(TenantId([7; 32])),
        ];
        for scope in scopes {
            assert_eq!(scope.to_string().parse::<Scope>().unwrap(), scope);
        }
        for bad in ["", "tenant", "tenant:", "tenant:x", "Operator", "operator "] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_made_token_does_not_print() {
        let made = MadeToken {
            id: "a".into(),
            token: "casemate_hush".into(),
        };
        assert!(!format!("{made:?}").contains("hush"));
    }
}
