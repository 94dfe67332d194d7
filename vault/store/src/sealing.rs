//! Seals everything at rest with an AEAD, with the name as additional data.

use casemate_trust::Random;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::{KEY_BYTES, StoreError};

/// Seals with random nonces of 96 bits: at one write a second a collision takes centuries.
#[derive(Debug)]
pub(crate) struct Sealer(LessSafeKey);

impl Sealer {
    pub(crate) fn new(key: &Zeroizing<[u8; KEY_BYTES]>) -> Result<Self, StoreError> {
        let key =
            UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| StoreError::Sealing)?;
        Ok(Self(LessSafeKey::new(key)))
    }

    pub(crate) fn seal(
        &self,
        name: &str,
        bytes: &[u8],
        random: Random<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_LEN];
        random(&mut nonce);
        let mut sealed = bytes.to_vec();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        self.0
            .seal_in_place_append_tag(nonce_of, Aad::from(name), &mut sealed)
            .map_err(|_| StoreError::Sealing)?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// `None`: the key or the name differs, or the bytes were changed.
    pub(crate) fn open(&self, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let length = self
            .0
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(name),
                &mut bytes,
            )
            .ok()?
            .len();
        bytes.truncate(length);
        Some(bytes)
    }
}
