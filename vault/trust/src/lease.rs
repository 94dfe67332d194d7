//! Leases: the control plane proves that it is alive and belongs to the fleet, by signing a nonce
//! that the vault just made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Seconds;
use crate::dsse::Envelope;
use crate::encoding::{Canonical, base64_bytes};
use crate::id::{Digest, FleetId, TenantId};
use crate::key::PublicKey;
use crate::payload::Statement;
use crate::statement::OnlineKey;

/// Length of a nonce, bytes.
pub const NONCE_BYTES: usize = 32;

/// Most tenants that a lease names: with them it takes half a megabyte, half of the largest
/// envelope. A node with functions of more tenants gets a signed digest of the others.
pub const MAX_CLAIMED_TENANTS: usize = 4096;

/// What the control plane claims to be the newest. It can lie by omission or by naming an older
/// version, but only under its signature: the node stores the lease, and a person who knows a newer
/// manifest can prove the lie with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The control plane's time.
    pub issued: Seconds,
    /// Version of the newest list of revoked nodes; 0 for none.
    pub revocations: u64,
    /// Versions of the newest manifests that matter to the node: the first [`MAX_CLAIMED_TENANTS`] by id.
    pub tenants: BTreeMap<TenantId, u64>,
    /// How many tenants there are in all.
    pub tenants_in_all: u64,
    /// [`Claims::digest_of`] all tenants.
    pub digest: Digest,
}

impl Default for Claims {
    /// Claims nothing.
    fn default() -> Self {
        Self::new(0, 0, BTreeMap::new())
    }
}

impl Claims {
    /// Claims about these tenants.
    pub fn new(issued: Seconds, revocations: u64, mut all: BTreeMap<TenantId, u64>) -> Self {
        let (tenants_in_all, digest) = (all.len() as u64, Self::digest_of(&all));
        if let Some(first_left_out) = all.keys().nth(MAX_CLAIMED_TENANTS).copied() {
            all.split_off(&first_left_out);
        }
        Self {
            issued,
            revocations,
            tenants: all,
            tenants_in_all,
            digest,
        }
    }

    /// SHA-256 over the canonical bytes of (tenant, version), ascending by tenant.
    pub fn digest_of(all: &BTreeMap<TenantId, u64>) -> Digest {
        let start = Canonical::new("casemate claims v1").number(all.len() as u64);
        let bytes = all.iter().fold(start, |bytes, (tenant, version)| {
            bytes.part(&tenant.0).number(*version)
        });
        Digest::of(&bytes.bytes())
    }
}

/// The content that the online key signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The fleet.
    pub fleet: FleetId,
    /// The node that requested it.
    pub node: PublicKey,
    /// Its nonce.
    #[serde(with = "base64_bytes")]
    pub nonce: Vec<u8>,
    /// What the control plane claims to be the newest.
    #[serde(default)]
    pub claims: Claims,
}

impl Statement for Lease {
    const TYPE: &'static str = "application/vnd.casemate.lease.v1+json";

    fn flaw(&self) -> Option<String> {
        if self.claims.tenants.len() > MAX_CLAIMED_TENANTS {
            return Some(format!(
                "expected at most {MAX_CLAIMED_TENANTS} tenants, got {}",
                self.claims.tenants.len()
            ));
        }
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
    /// The data is not a lease.
    #[error("the data is not a lease")]
    Format,
    /// The lease is not signed by the liveness key that the root named.
    #[error("the lease is not signed by the fleet's online key")]
    Signature,
    /// The lease answers another nonce, node or fleet: it is an old answer, or another node's.
    #[error("the lease answers another question")]
    Other,
}

impl LeaseError {
    /// The stable code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Format => "lease_format",
            Self::Signature => "lease_signature",
            Self::Other => "lease_other",
        }
    }
}

/// A node's request: the lease's fleet, node and nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The fleet.
    pub fleet: FleetId,
    /// The requesting node.
    pub node: PublicKey,
    /// Its nonce.
    pub nonce: Vec<u8>,
}

/// Checks an answer to `asked`; returns its claims.
///
/// # Errors
/// See [`LeaseError`].
pub fn check(
    envelope: &Envelope,
    asked: &Question,
    online: &OnlineKey,
) -> Result<Claims, LeaseError> {
    let lease = Lease::read(envelope).map_err(|_| LeaseError::Format)?;
    if !envelope.verify(&[online.liveness], 1) {
        return Err(LeaseError::Signature);
    }
    let answered = Question {
        fleet: lease.fleet,
        node: lease.node,
        nonce: lease.nonce,
    };
    if answered == *asked {
        Ok(lease.claims)
    } else {
        Err(LeaseError::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dsse::MAX_ENVELOPE_BYTES;
    use crate::key::SigningKey;
    use crate::payload::MAX_VERSION;

    #[test]
    fn the_largest_lease_fits_an_envelope_and_names_the_others_by_digest() {
        let tenant = |number: usize| {
            let mut id = [255; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            TenantId(id)
        };
        let mut all: BTreeMap<_, _> = (0..=MAX_CLAIMED_TENANTS)
            .map(|number| (tenant(number), MAX_VERSION))
            .collect();
        let claims = Claims::new(u64::MAX, u64::MAX, all.clone());
        assert_eq!(claims.tenants.len(), MAX_CLAIMED_TENANTS);
        assert_eq!(claims.tenants_in_all, all.len() as u64);
        all.insert(tenant(MAX_CLAIMED_TENANTS), 1);
        assert_ne!(claims.digest, Claims::digest_of(&all));
        let key = SigningKey::from_seed(&[1; 32]).unwrap();
        let lease = Lease {
            fleet: FleetId([255; 32]),
            node: key.public(),
            nonce: vec![1; NONCE_BYTES],
            claims,
        };
        let bytes = lease.sign(&[&key]).to_bytes();
        assert!(bytes.len() < MAX_ENVELOPE_BYTES * 2 / 3, "{}", bytes.len());
        assert_eq!(Lease::read(&Envelope::parse(&bytes).unwrap()), Ok(lease));
    }
}
