//! The place of a request that a credential goes into.

use serde::{Deserialize, Serialize};

use crate::name::Identifier;

/// The part of a request that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Slot {
    /// A header, with an optional prefix.
    Header {
        /// Lower-case name.
        name: String,
        /// Text before the secret.
        #[serde(default)]
        prefix: String,
    },
    /// `Authorization: Bearer SECRET` (RFC 6750, section 2.1).
    Bearer,
    /// `Authorization: Basic BASE64(username:SECRET)` (RFC 7617).
    Basic {
        /// The user.
        username: String,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
    },
}

/// The kinds of slot, as a secret's limits name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    /// [`Slot::Header`]
    Header,
    /// [`Slot::Bearer`]
    Bearer,
    /// [`Slot::Basic`]
    Basic,
    /// [`Slot::Query`]
    Query,
}

impl SlotKind {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Bearer => "bearer",
            Self::Basic => "basic",
            Self::Query => "query",
        }
    }
}

/// Headers that a slot may not fill, because they frame or route the message.
const NEVER_A_SLOT: &[&str] = &[
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "content-type",
    "content-encoding",
    "cookie2",
    "date",
    "via",
    "forwarded",
    "accept-encoding",
    "range",
    "if-range",
    "cdn-loop",
];

impl Slot {
    /// Its kind.
    pub const fn kind(&self) -> SlotKind {
        match self {
            Self::Header { .. } => SlotKind::Header,
            Self::Bearer => SlotKind::Bearer,
            Self::Basic { .. } => SlotKind::Basic,
            Self::Query { .. } => SlotKind::Query,
        }
    }

    /// The header that it sets, if it sets one.
    pub fn header(&self) -> Option<&str> {
        match self {
            Self::Header { name, .. } => Some(name),
            Self::Bearer | Self::Basic { .. } => Some("authorization"),
            Self::Query { .. } => None,
        }
    }

    /// The name of the header or query parameter that it fills.
    pub fn name(&self) -> &str {
        match self {
            Self::Header { name, .. } | Self::Query { name } => name,
            Self::Bearer | Self::Basic { .. } => "authorization",
        }
    }

    /// The kind of place that it fills, for messages.
    pub(crate) const fn place(&self) -> &'static str {
        match self {
            Self::Query { .. } => "query parameter",
            Self::Header { .. } | Self::Bearer | Self::Basic { .. } => "header",
        }
    }

    /// Whether a name in a secret's limits is this slot's. Header names are case-insensitive, query
    /// parameters are not.
    pub(crate) fn is_named(&self, name: &str) -> bool {
        match self {
            Self::Query { name: own } => own == name,
            _ => self.name().eq_ignore_ascii_case(name),
        }
    }

    pub(crate) fn flaw(&self) -> Option<String> {
        let token = |text: &str| {
            (1..=64).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        };
        let visible =
            |text: &str| text.len() <= 256 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        match self {
            Self::Header { name, .. } if !token(name) => Some(format!(
                "expected a header name in lower case, got {:?}",
                crate::name::excerpt(name)
            )),
            Self::Header { name, .. } if NEVER_A_SLOT.contains(&name.as_str()) => {
                Some(format!("the header {name} is no place for a credential"))
            }
            Self::Header { prefix, .. } if !visible(prefix) => {
                Some("expected a prefix of visible ASCII, 256 bytes at most".into())
            }
            Self::Basic { username } if !visible(username) || username.contains(':') => {
                Some("expected a username without `:`".into())
            }
            Self::Query { name } if name.parse::<Identifier>().is_err() => Some(format!(
                "expected a parameter name, got {:?}",
                crate::name::excerpt(name)
            )),
            _ => None,
        }
    }
}
