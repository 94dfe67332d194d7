//! Sealing to an X-Wing key: HPKE base mode, single shot (RFC 9180, section 6.1). Each encapsulation
//! seals a single value, so no nonce is ever used twice.

use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable as _, OpModeS, Serializable as _};

use crate::key::SealingKey;

pub use crate::suite::{Aead, Kdf, Kem};

/// Length of an encapsulated key, bytes.
pub const ENCAPSULATED_BYTES: usize = 1120;
/// What the cipher adds to a value, bytes.
pub const TAG_BYTES: usize = 16;

/// Sealing failed; the reason would be of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value could not be sealed to this key")]
pub struct SealError;

/// A sealed value: the encapsulated key, and the ciphertext with its tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Encapsulated key, [`ENCAPSULATED_BYTES`].
    pub enc: Vec<u8>,
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

/// Seals `value` to `key`. `info` names the purpose, `aad` binds the value to its place; the opener
/// needs the same values of both.
pub fn seal(
    key: &SealingKey,
    info: &[u8],
    aad: &[u8],
    value: &[u8],
    random: crate::Random<'_>,
) -> Result<Sealed, SealError> {
    let key = <Kem as hpke::Kem>::PublicKey::from_bytes(key.as_bytes()).map_err(|_| SealError)?;
    let sealed = hpke::single_shot_seal_with_rng::<Aead, Kdf, Kem>(
        &OpModeS::Base,
        &key,
        info,
        value,
        aad,
        &mut Source(random),
    );
    let (enc, ciphertext) = sealed.map_err(|_| SealError)?;
    Ok(Sealed {
        enc: enc.to_bytes().to_vec(),
        ciphertext,
    })
}

/// The caller's random bytes as the generator for `hpke`.
struct Source<'a>(crate::Random<'a>);

impl TryRng for Source<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        let mut bytes = [0; 4];
        (self.0)(&mut bytes);
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        let mut bytes = [0; 8];
        (self.0)(&mut bytes);
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        (self.0)(bytes);
        Ok(())
    }
}

impl TryCryptoRng for Source<'_> {}
