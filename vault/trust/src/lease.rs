//! Leases: the control plane proves that it is alive and whose it is, by signing a nonce that the vault just made.

use serde::{Deserialize, Serialize};

use crate::dsse::Envelope;
use crate::encoding::base64_bytes;
use crate::id::FleetId;
use crate::key::PublicKey;
use crate::statement::{OnlineKey, Statement};

/// Length of a nonce, bytes.
pub const NONCE_BYTES: usize = 32;

/// What the online key signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The fleet.
    pub fleet: FleetId,
    /// The node that asked.
    pub node: PublicKey,
    /// Its nonce.
    #[serde(with = "base64_bytes")]
    pub nonce: Vec<u8>,
}

impl Statement for Lease {
    const TYPE: &'static str = "application/vnd.casemate.lease.v1+json";

    fn flaw(&self) -> Option<String> {
        (self.nonce.len() != NONCE_BYTES).then(|| {
            format!(
                "expected a nonce of {NONCE_BYTES} bytes, got {}",
                self.nonce.len()
            )
        })
    }
}

/// Why a lease answer was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// Not a lease.
    #[error("this is no lease")]
    Format,
    /// Not signed by the liveness key that the root named.
    #[error("the lease is not signed by the fleet's online key")]
    Signature,
    /// It answers another nonce, another node or another fleet: an old answer, or another's.
    #[error("the lease answers another question")]
    Other,
}

impl LeaseError {
    /// Stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Format => "lease_format",
            Self::Signature => "lease_signature",
            Self::Other => "lease_other",
        }
    }
}

/// Checks an answer to `asked`.
///
/// # Errors
/// See [`LeaseError`].
pub fn check(envelope: &Envelope, asked: &Lease, online: &OnlineKey) -> Result<(), LeaseError> {
    let lease = Lease::read(envelope).map_err(|_| LeaseError::Format)?;
    if !envelope.verify(&[online.liveness], 1) {
        return Err(LeaseError::Signature);
    }
    if lease == *asked {
        Ok(())
    } else {
        Err(LeaseError::Other)
    }
}
