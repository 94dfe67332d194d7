//! How an outgoing call travels: over TLS, or in clear.

use serde::{Deserialize, Serialize};

/// How an outgoing call travels. Named by egress rules; a credential slot is always
/// [`Scheme::Https`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// TLS.
    Https,
    /// Without TLS; never with a credential.
    Http,
}

impl Scheme {
    /// The default port.
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Https => 443,
            Self::Http => 80,
        }
    }

    /// The name in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}
