//! DSSE envelopes (secure-systems-lab/dsse, protocol 1.0): the payload's type is inside the signature, key ids are only
//! hints, and signatures are counted by distinct public key.

use serde::{Deserialize, Serialize};

use crate::encoding::{base64_bytes, from_base64, to_base64};
use crate::id::Digest;
use crate::key::{PublicKey, SigningKey};

/// Largest envelope, bytes of JSON: a manifest of a thousand functions and secrets fits several times.
pub const MAX_ENVELOPE_BYTES: usize = 1024 * 1024;
/// Most signatures on one envelope.
pub const MAX_SIGNATURES: usize = 32;

/// Why an envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Over the limit.
    #[error("expected an envelope of at most {MAX_ENVELOPE_BYTES} bytes, got {0}")]
    TooLarge(usize),
    /// Not the JSON of an envelope.
    #[error("expected a DSSE envelope: {0}")]
    Format(String),
    /// Too many signatures.
    #[error("expected at most {MAX_SIGNATURES} signatures, got {0}")]
    TooManySignatures(usize),
}

/// A signed envelope in transit. Its content must not be trusted before [`Envelope::verify`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Envelope {
    payload_type: String,
    #[serde(with = "base64_bytes")]
    payload: Vec<u8>,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keyid: Option<String>,
    sig: String,
}

impl Envelope {
    /// Signs `payload` with each of `keys`.
    pub fn sign(payload_type: &str, payload: Vec<u8>, keys: &[&SigningKey]) -> Self {
        let mut envelope = Self {
            payload_type: payload_type.to_owned(),
            payload,
            signatures: Vec::new(),
        };
        keys.iter().for_each(|key| envelope.add_signature(key));
        envelope
    }

    /// Adds one more signature: holders of a threshold pass the envelope on.
    pub fn add_signature(&mut self, key: &SigningKey) {
        let sig = to_base64(&key.sign(&pae(&self.payload_type, &self.payload)));
        self.signatures.push(Signature {
            keyid: Some(key.public().fingerprint().to_string()),
            sig,
        });
    }

    /// Parses JSON from the network or a disk.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let envelope: Self = serde_json::from_slice(bytes)
            .map_err(|error| EnvelopeError::Format(error.to_string()))?;
        if envelope.signatures.len() > MAX_SIGNATURES {
            return Err(EnvelopeError::TooManySignatures(envelope.signatures.len()));
        }
        Ok(envelope)
    }

    /// Encodes the envelope as JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data with text as keys is JSON")
    }

    /// Type of the payload, unverified.
    pub fn payload_type(&self) -> &str {
        &self.payload_type
    }

    /// The payload, unverified: only for finding out which keys to check with.
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// SHA-256 of the payload.
    pub fn payload_digest(&self) -> Digest {
        Digest::of(&self.payload)
    }

    /// Number of `keys` that have signed. A key counts once, however often it or its id occurs.
    pub fn signers(&self, keys: &[PublicKey]) -> usize {
        let message = pae(&self.payload_type, &self.payload);
        let signatures: Vec<_> = self
            .signatures
            .iter()
            .filter_map(|signature| from_base64(&signature.sig))
            .collect();
        let mut distinct: Vec<_> = keys.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        distinct
            .iter()
            .filter(|key| {
                signatures
                    .iter()
                    .any(|signature| key.verifies(&message, signature))
            })
            .count()
    }

    /// Whether at least `threshold` of `keys` have signed. A threshold of zero is never met.
    pub fn verify(&self, keys: &[PublicKey], threshold: u32) -> bool {
        threshold > 0 && self.signers(keys) >= threshold as usize
    }
}

/// Pre-authentication encoding: the bytes that are signed.
fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    );
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    /// The example in the protocol's text.
    #[test]
    fn pae_of_the_protocol() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn the_same_key_twice_counts_once() {
        let envelope = Envelope::sign("t", b"p".to_vec(), &[&key(1), &key(1), &key(1)]);
        let keys = [key(1).public(), key(2).public(), key(1).public()];
        assert_eq!(envelope.signers(&keys), 1);
        assert!(!envelope.verify(&keys, 2));
        assert!(envelope.verify(&keys, 1));
        assert!(!envelope.verify(&keys, 0));
    }

    #[test]
    fn a_key_id_is_only_a_hint() {
        let mut envelope = Envelope::sign("t", b"p".to_vec(), &[&key(1)]);
        envelope.signatures[0].keyid = Some(key(2).public().fingerprint().to_string());
        assert!(envelope.verify(&[key(1).public()], 1));
        assert!(!envelope.verify(&[key(2).public()], 1));
    }

    #[test]
    fn the_type_is_signed() {
        let mut envelope = Envelope::sign("t", b"p".to_vec(), &[&key(1)]);
        envelope.payload_type = "u".into();
        assert!(!envelope.verify(&[key(1).public()], 1));
    }

    #[test]
    fn envelopes_of_a_gibibyte_and_a_thousand_signatures_are_refused() {
        assert!(matches!(
            Envelope::parse(&vec![b' '; MAX_ENVELOPE_BYTES + 1]),
            Err(EnvelopeError::TooLarge(_))
        ));
        let mut envelope = Envelope::sign("t", b"p".to_vec(), &[]);
        envelope.signatures = vec![
            Signature {
                keyid: None,
                sig: String::new()
            };
            1000
        ];
        assert!(matches!(
            Envelope::parse(&envelope.to_bytes()),
            Err(EnvelopeError::TooManySignatures(1000))
        ));
    }
}
