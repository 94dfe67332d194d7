//! Joining: the token that an operator gives a machine, the join request that the machine's vault
//! makes from it, and the grant of the pool's key. The control plane relays all of them and can
//! forge none.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hkdf;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::Seconds;
use crate::dsse::Envelope;
use crate::encoding::{Canonical, base64_bytes};
use crate::id::FleetId;
use crate::key::{PublicKey, SEED_BYTES, SealingKey, SigningKey};
use crate::late::Late;
use crate::name::Name;
use crate::payload::Statement;
use crate::seal::{SealError, seal};
use crate::statement::Pool;

/// Prefix of a printed token.
pub const TOKEN_PREFIX: &str = "cmt1_";
/// Longest printed token, bytes.
pub const MAX_TOKEN_BYTES: usize = 2048;
/// Longest `host:port`, bytes.
pub const MAX_ADDRESS_BYTES: usize = 300;
/// The HPKE info string of a grant.
pub const GRANT_INFO: &[u8] = b"casemate grant v1";

/// Why a token, a request or a grant was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The text is not a token.
    #[error("expected a join token that begins with `{TOKEN_PREFIX}`, whole and unchanged")]
    Token,
    /// The token has expired.
    #[error("the join token has expired: {0}")]
    Expired(Late),
    /// The data is not a join request.
    #[error("the data is not a join request: {0}")]
    Format(String),
    /// The request is not signed with the token's key and the node's key.
    #[error("the join request is not signed with the token and the node's key")]
    Signature,
    /// The request asks for another name or pool than the token's.
    #[error("the join request asks for node {node} in pool {pool}, the token is for another")]
    Other {
        /// The requested name.
        node: Name,
        /// The requested pool.
        pool: Name,
    },
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl JoinError {
    /// The stable code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Token => "token_malformed",
            Self::Expired(_) => "token_expired",
            Self::Format(_) => "join_format",
            Self::Signature => "join_signature",
            Self::Other { .. } => "join_other",
            Self::Seal(_) => "grant_seal",
        }
    }
}

/// The token that the operator gives to a new node, once.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    secret: [u8; SEED_BYTES],
    /// The fleet: digest of the first root.
    pub fleet: FleetId,
    /// `host:port` of the control plane's QUIC socket.
    pub control_address: String,
    /// The control plane's key.
    pub control_key: PublicKey,
    /// The node's name.
    pub node: Name,
    /// The node's pool.
    pub pool: Name,
    /// When the token expires.
    pub expires: Seconds,
}

/// What the operator's machine stores of a token: enough to check its use, but not to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// The public key derived from the token.
    pub key: PublicKey,
    /// The node's name.
    pub node: Name,
    /// The node's pool.
    pub pool: Name,
    /// When the token expires.
    pub expires: Seconds,
    /// The node that used it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<PublicKey>,
}

impl JoinToken {
    /// Makes a new token.
    pub fn new(
        fleet: FleetId,
        control: (String, PublicKey),
        node: Name,
        pool: Name,
        expires: Seconds,
        random: crate::Random<'_>,
    ) -> Self {
        let mut secret = [0; SEED_BYTES];
        random(&mut secret);
        Self {
            secret,
            fleet,
            control_address: control.0,
            control_key: control.1,
            node,
            pool,
            expires,
        }
    }

    /// The printed form.
    pub fn expose_secret(&self) -> Zeroizing<String> {
        let json = Zeroizing::new(serde_json::to_vec(self).expect("plain data is JSON"));
        let mut bytes = Zeroizing::new(json.to_vec());
        bytes.extend_from_slice(&crate::id::sha256(&json)[..4]);
        Zeroizing::new(format!(
            "{TOKEN_PREFIX}{}",
            URL_SAFE_NO_PAD.encode(bytes.as_slice())
        ))
    }

    /// The signing key that is derived from the token (HKDF-SHA256, RFC 5869).
    pub fn key(&self) -> Result<SigningKey, JoinError> {
        let mut seed = Zeroizing::new([0; SEED_BYTES]);
        let prk =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"casemate join token v1").extract(&self.secret);
        let filled = prk
            .expand(
                &[&self.fleet.0, self.node.as_str().as_bytes()],
                hkdf::HKDF_SHA256,
            )
            .and_then(|okm| okm.fill(seed.as_mut()));
        filled.map_err(|_| JoinError::Token)?;
        SigningKey::from_seed(&seed).map_err(|_| JoinError::Token)
    }

    /// The record for the operator's machine.
    pub fn record(&self) -> Result<TokenRecord, JoinError> {
        let (node, pool) = (self.node.clone(), self.pool.clone());
        Ok(TokenRecord {
            key: self.key()?.public(),
            node,
            pool,
            expires: self.expires,
            used_by: None,
        })
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.secret);
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "JoinToken(for {} in {})", self.node, self.pool)
    }
}

impl FromStr for JoinToken {
    type Err = JoinError;

    fn from_str(text: &str) -> Result<Self, JoinError> {
        let text = text.trim();
        let encoded = text
            .strip_prefix(TOKEN_PREFIX)
            .filter(|_| text.len() <= MAX_TOKEN_BYTES)
            .ok_or(JoinError::Token)?;
        let bytes = Zeroizing::new(
            URL_SAFE_NO_PAD
                .decode(encoded)
                .map_err(|_| JoinError::Token)?,
        );
        // The last four bytes detect typing and copying errors.
        let (json, sum) = bytes.split_last_chunk::<4>().ok_or(JoinError::Token)?;
        if crate::id::sha256(json)[..4] != *sum {
            return Err(JoinError::Token);
        }
        let token: Self = serde_json::from_slice(json).map_err(|_| JoinError::Token)?;
        if token.control_address.len() > MAX_ADDRESS_BYTES {
            Err(JoinError::Token)
        } else {
            Ok(token)
        }
    }
}

/// A vault's request to become a member. Signed with the token's key and with the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinRequest {
    /// The fleet.
    pub fleet: FleetId,
    /// The node's name.
    pub node: Name,
    /// The node's pool.
    pub pool: Name,
    /// The node's Ed25519 key.
    pub node_key: PublicKey,
    /// The node's X-Wing key.
    pub sealing_key: SealingKey,
}

impl Statement for JoinRequest {
    const TYPE: &'static str = "application/vnd.casemate.join.v1+json";

    fn flaw(&self) -> Option<String> {
        None
    }
}

impl JoinRequest {
    /// Reads a request and checks it against the token that it claims to use.
    ///
    /// # Errors
    /// See [`JoinError`].
    pub fn check(
        envelope: &Envelope,
        token: &TokenRecord,
        now: Seconds,
    ) -> Result<Self, JoinError> {
        let request = Self::read(envelope).map_err(JoinError::Format)?;
        if !envelope.verify(&[token.key, request.node_key], 2) {
            return Err(JoinError::Signature);
        }
        if request.node != token.node || request.pool != token.pool {
            return Err(JoinError::Other {
                node: request.node,
                pool: request.pool,
            });
        }
        if now >= token.expires {
            Err(JoinError::Expired(Late {
                expires: token.expires,
                clock: now,
            }))
        } else {
            Ok(request)
        }
    }
}

/// A pool's private key, sealed to one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The fleet.
    pub fleet: FleetId,
    /// The node.
    pub node_key: PublicKey,
    /// The pool.
    pub pool: Name,
    /// The epoch of the key.
    pub epoch: u64,
    /// HPKE's encapsulated key.
    #[serde(with = "base64_bytes")]
    pub enc: Vec<u8>,
    /// Sealed seed.
    #[serde(with = "base64_bytes")]
    pub ciphertext: Vec<u8>,
}

/// Largest grant, bytes of JSON.
pub const MAX_GRANT_BYTES: usize = 8 * 1024;

impl Grant {
    /// Seals the pool's seed to a node that was admitted.
    ///
    /// # Errors
    /// Sealing failed.
    pub fn seal(
        pool: &Pool,
        seed: &[u8; SEED_BYTES],
        node_key: PublicKey,
        to: &SealingKey,
        random: crate::Random<'_>,
    ) -> Result<Self, SealError> {
        let mut grant = Self {
            fleet: pool.fleet,
            node_key,
            pool: pool.name.clone(),
            epoch: pool.epoch,
            enc: Vec::new(),
            ciphertext: Vec::new(),
        };
        let sealed = seal(to, GRANT_INFO, &grant.aad(&pool.public_key), seed, random)?;
        (grant.enc, grant.ciphertext) = (sealed.enc, sealed.ciphertext);
        Ok(grant)
    }

    /// The additional data of the sealed seed.
    pub fn aad(&self, public_key: &SealingKey) -> Vec<u8> {
        Canonical::new("casemate grant v1")
            .part(&self.fleet.0)
            .part(self.node_key.as_bytes())
            .part(self.pool.as_str().as_bytes())
            .number(self.epoch)
            .part(public_key.as_bytes())
            .bytes()
    }

    /// Encodes the grant.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data with text as keys is JSON")
    }

    /// Parses bytes from an untrusted sender.
    ///
    /// # Errors
    /// The bytes are too large, or not a grant.
    pub fn parse(bytes: &[u8]) -> Result<Self, JoinError> {
        if bytes.len() > MAX_GRANT_BYTES {
            return Err(JoinError::Format(format!(
                "expected a grant of at most {MAX_GRANT_BYTES} bytes, got {}",
                bytes.len()
            )));
        }
        serde_json::from_slice(bytes).map_err(|error| JoinError::Format(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(bytes: &mut [u8]) {
        bytes.fill(3);
    }

    fn token(expires: Seconds) -> JoinToken {
        let control = (
            "control.test:7000".to_owned(),
            SigningKey::from_seed(&[1; 32]).unwrap().public(),
        );
        JoinToken::new(
            FleetId([7; 32]),
            control,
            "edge-1".parse().unwrap(),
            "main".parse().unwrap(),
            expires,
            &mut random,
        )
    }

    fn request(token: &JoinToken, node: &SigningKey) -> JoinRequest {
        let sealing_key = SealingKey::of_seed(&[5; 32]).unwrap();
        JoinRequest {
            fleet: token.fleet,
            node: token.node.clone(),
            pool: token.pool.clone(),
            node_key: node.public(),
            sealing_key,
        }
    }

    #[test]
    fn a_token_survives_printing_and_no_changed_letter() {
        let printed = token(9).expose_secret();
        let read: JoinToken = printed.parse().unwrap();
        assert_eq!(read.record().unwrap(), token(9).record().unwrap());
        for at in (TOKEN_PREFIX.len()..printed.len()).step_by(7) {
            let mut changed = printed.as_bytes().to_vec();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(
                String::from_utf8(changed)
                    .unwrap()
                    .parse::<JoinToken>()
                    .is_err(),
                "{at}"
            );
        }
        assert!(printed[..printed.len() - 1].parse::<JoinToken>().is_err());
    }

    #[test]
    fn joins_need_the_token_the_node_key_and_time() {
        let (token, node) = (token(100), SigningKey::from_seed(&[8; 32]).unwrap());
        let (record, key) = (token.record().unwrap(), token.key().unwrap());
        let request = request(&token, &node);
        assert_eq!(
            JoinRequest::check(&request.sign(&[&key, &node]), &record, 99).unwrap(),
            request
        );
        assert_eq!(
            JoinRequest::check(&request.sign(&[&key, &node]), &record, 100).unwrap_err(),
            JoinError::Expired(Late {
                expires: 100,
                clock: 100
            })
        );
        assert_eq!(
            JoinRequest::check(&request.sign(&[&key]), &record, 1).unwrap_err(),
            JoinError::Signature
        );
        assert_eq!(
            JoinRequest::check(&request.sign(&[&node]), &record, 1).unwrap_err(),
            JoinError::Signature
        );
        let other = JoinRequest {
            node: "edge-2".parse().unwrap(),
            ..request
        };
        assert!(matches!(
            JoinRequest::check(&other.sign(&[&key, &node]), &record, 1),
            Err(JoinError::Other { .. })
        ));
    }

    #[test]
    fn a_relay_that_changes_the_nodes_keys_is_refused() {
        let (token, node) = (token(100), SigningKey::from_seed(&[8; 32]).unwrap());
        let relay = SigningKey::from_seed(&[9; 32]).unwrap();
        let changed = JoinRequest {
            node_key: relay.public(),
            ..request(&token, &node)
        };
        let record = token.record().unwrap();
        assert_eq!(
            JoinRequest::check(&changed.sign(&[&relay]), &record, 1).unwrap_err(),
            JoinError::Signature
        );
    }
}
