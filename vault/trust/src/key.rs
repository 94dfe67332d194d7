//! Keys: Ed25519 for signing (RFC 8032), X-Wing for sealing (ML-KEM-768 with X25519).

use std::fmt;
use std::str::FromStr;

use hpke::{Deserializable as _, Kem as _, Serializable as _};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::encoding::{from_base64, to_base64};
use crate::id::{Digest, sha256};
use crate::name::excerpt;
use crate::suite::Kem;

/// Length of an Ed25519 or X-Wing seed, bytes.
pub const SEED_BYTES: usize = 32;
/// Length of an Ed25519 signature, bytes.
pub const SIGNATURE_BYTES: usize = 64;
/// Length of an X-Wing public key, bytes.
pub const SEALING_KEY_BYTES: usize = 1216;

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not an Ed25519 public key.
    #[error("expected an Ed25519 public key, 32 bytes in base64, got {0:?}")]
    Public(String),
    /// The bytes are not an X-Wing public key.
    #[error("expected an X-Wing public key, 1216 bytes in base64")]
    Sealing,
    /// ring refused the seed.
    #[error("the seed gives no Ed25519 key")]
    Seed,
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes; an invalid point is noticed when a signature is checked.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 of the key, which people compare out of band.
    pub fn fingerprint(&self) -> Digest {
        Digest(sha256(&self.0))
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&to_base64(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = from_base64(text).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes
            .map(Self)
            .ok_or_else(|| KeyError::Public(excerpt(text)))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 private key; the seed is wiped when it is dropped, and has no `Debug`.
pub struct SigningKey {
    seed: Zeroizing<[u8; SEED_BYTES]>,
    pair: Ed25519KeyPair,
}

impl SigningKey {
    /// The key of a seed (RFC 8032, section 5.1.5).
    pub fn from_seed(seed: &[u8; SEED_BYTES]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Seed)?;
        Ok(Self {
            seed: Zeroizing::new(*seed),
            pair,
        })
    }

    /// A new key.
    pub fn generate(random: crate::Random<'_>) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; SEED_BYTES]);
        random(seed.as_mut());
        Self::from_seed(&seed)
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Signature over `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut bytes = [0; SIGNATURE_BYTES];
        bytes.copy_from_slice(self.pair.sign(message).as_ref());
        bytes
    }

    /// The seed, to be written into a key file.
    pub fn expose_secret(&self) -> &[u8; SEED_BYTES] {
        &self.seed
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "SigningKey(of {})", self.public())
    }
}

/// An X-Wing public key: only the holder of its private key can open what is sealed to it.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey(Box<[u8; SEALING_KEY_BYTES]>);

impl SealingKey {
    /// Takes the bytes, and checks that they are a valid encapsulation key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        <Kem as hpke::Kem>::PublicKey::from_bytes(bytes).map_err(|_| KeyError::Sealing)?;
        let array = <[u8; SEALING_KEY_BYTES]>::try_from(bytes).map_err(|_| KeyError::Sealing)?;
        Ok(Self(Box::new(array)))
    }

    /// The public half of the X-Wing key whose private half is `seed`.
    pub fn of_seed(seed: &[u8; SEED_BYTES]) -> Result<Self, KeyError> {
        let private =
            <Kem as hpke::Kem>::PrivateKey::from_bytes(seed).map_err(|_| KeyError::Sealing)?;
        Self::from_bytes(&Kem::sk_to_pk(&private).to_bytes())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    /// SHA-256 of the key.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.as_bytes())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "SealingKey({})", self.fingerprint())
    }
}

impl Serialize for SealingKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&to_base64(self.as_bytes()))
    }
}

impl<'de> serde::Deserialize<'de> for SealingKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let bytes =
            from_base64(&text).ok_or_else(|| serde::de::Error::custom(KeyError::Sealing))?;
        Self::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032, section 7.1, test 2.
    #[test]
    fn ed25519_of_rfc_8032() {
        let seed = hex::decode("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
            .unwrap();
        let key = SigningKey::from_seed(&seed.try_into().unwrap()).unwrap();
        assert_eq!(
            hex::encode(key.public().as_bytes()),
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
        );
        let signature = key.sign(&[0x72]);
        assert!(
            hex::encode(signature).starts_with("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8f")
        );
        assert!(key.public().verifies(&[0x72], &signature));
        assert!(!key.public().verifies(&[0x73], &signature));
    }

    #[test]
    fn a_private_key_does_not_print() {
        let key = SigningKey::from_seed(&[7; 32]).unwrap();
        assert!(!format!("{key:?}").contains(&hex::encode([7; 32])));
        assert!(!format!("{key:?}").contains(&to_base64(&[7; 32])));
    }
}
