//! The connection that `casemate login` has left in the home.

use casemate_trust::id::TenantId;
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error};
use crate::home::Home;

/// File of the connection.
const CONNECTION: &str = "connection.json";

/// Where the control plane is, and the token that proves that this home may talk to it. Written by
/// `casemate login`, read by each session.
#[derive(Clone, Serialize, Deserialize)]
pub struct Connection {
    /// `https://HOST:PORT`
    pub url: String,
    /// The API token.
    pub token: Option<String>,
    /// The tenant that this home acts for.
    pub tenant: Option<TenantId>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(to, "Connection({})", self.url)
    }
}

impl Connection {
    /// The connection of this home.
    ///
    /// # Errors
    /// There was no login.
    pub fn load(home: &Home) -> Result<Self, Error> {
        home.read_json(CONNECTION)?.ok_or_else(|| {
            Error::new(
                Code::NotLoggedIn,
                "this home is not logged in to a control plane",
                "run `casemate login https://HOST:PORT#FINGERPRINT --token-file FILE` with what \
                 the operator gave you",
            )
            .at(home.path().display())
        })
    }

    pub(super) fn save(&self, home: &Home) -> Result<(), Error> {
        home.write_json(CONNECTION, self)
    }
}
