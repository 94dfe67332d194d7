//! A control plane as its users see it, for tests and benchmarks: an operator and a tenant over
//! HTTPS, and nodes that speak the push protocol over QUIC and run no functions. Every deviation
//! panics, because this code is not part of a product.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "names of a test's own world")]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod client;
pub mod fleet;
pub mod node;

use std::time::Duration;

use casemate_api::fleet::PublicKeys;

pub use client::Client;
pub use fleet::Fleet;
pub use node::Node;

/// Bound for every wait.
pub const SOON: Duration = Duration::from_secs(20);

/// The addresses and the operator's token of a control plane.
#[derive(Debug)]
pub struct Plane {
    /// Address of the HTTPS API.
    pub api: String,
    /// Address of the QUIC socket.
    pub quic: String,
    pub keys: PublicKeys,
    /// The operator's token.
    pub operator: String,
}

impl Plane {
    pub fn client(&self, token: &str) -> Client {
        Client::new(&self.api, self.keys.api, token)
    }

    pub fn operator(&self) -> Client {
        self.client(&self.operator)
    }
}
