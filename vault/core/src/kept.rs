//! A cache of opened secrets. Opening with the pool's key takes some hundred microseconds, most of
//! a call's time. So an opened secret is cached, sealed under a key that this process made for
//! itself, and is in clear only while a call is sent. An attacker who reads the memory of this
//! process gains nothing by the cache: the pool's key, which opens everything, is there too.

use std::collections::HashMap;
use std::fmt;

use casemate_trust::Random;
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::Identifier;
use casemate_trust::secret::{Secret, SecretValue};
use parking_lot::{Mutex, MutexGuard};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::keys::PoolKeys;
use crate::opening::{OpeningError, open_secret};

/// Length of the process's own key.
const KEY_BYTES: usize = 32;

/// The cache; the vault owns it and opens every secret through it.
pub struct Kept {
    key: LessSafeKey,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    /// Sealed values, by the digest of the sealed object, which covers everything that the secret
    /// is bound to.
    sealed: HashMap<Digest, Entry>,
    /// Nonces used so far.
    nonces: u64,
}

struct Entry {
    tenant: TenantId,
    name: Identifier,
    nonce: [u8; NONCE_LEN],
    sealed: Vec<u8>,
}

impl Kept {
    /// Makes an empty cache with a new key.
    pub fn new(random: Random<'_>) -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        random(&mut *key);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &*key)
            .unwrap_or_else(|_| unreachable!("every key of this length is valid"));
        Self {
            key: LessSafeKey::new(key),
            entries: Mutex::default(),
        }
    }

    /// Opens a secret whose object has this digest. The caller decides, each time anew, whether it
    /// may be used.
    ///
    /// # Errors
    /// See [`open_secret`]. Without the pool's key, a cached secret does not open either.
    pub fn open(
        &self,
        digest: &Digest,
        secret: &Secret,
        keys: &PoolKeys,
    ) -> Result<SecretValue, OpeningError> {
        let place = &secret.place;
        keys.expose_secret(&place.pool, place.epoch)
            .ok_or(OpeningError::NoKey)?;
        let before = self
            .entries()
            .sealed
            .get(digest)
            .map(|entry| (entry.nonce, Zeroizing::new(entry.sealed.clone())));
        if let Some((nonce, mut bytes)) = before {
            let nonce = Nonce::assume_unique_for_key(nonce);
            let opened = self.key.open_in_place(nonce, aad(digest), &mut bytes);
            let length = opened.map_err(|_| OpeningError::Sealed)?.len();
            bytes.truncate(length);
            return SecretValue::parse(bytes).map_err(|_| OpeningError::Value);
        }
        let value = open_secret(secret, keys)?;
        let mut entries = self.entries();
        entries.nonces += 1;
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&entries.nonces.to_le_bytes());
        let mut sealed = value.expose_secret().to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                aad(digest),
                &mut sealed,
            )
            .map_err(|_| OpeningError::Sealed)?;
        let entry = Entry {
            tenant: place.tenant,
            name: place.name.clone(),
            nonce,
            sealed,
        };
        entries.sealed.insert(*digest, entry);
        Ok(value)
    }

    /// Removes the secrets for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&TenantId, &Identifier, &Digest) -> bool) {
        self.entries()
            .sealed
            .retain(|digest, entry| keep(&entry.tenant, &entry.name, digest));
    }

    /// Number of cached secrets.
    pub fn len(&self) -> usize {
        self.entries().sealed.len()
    }

    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock()
    }
}

fn aad(digest: &Digest) -> Aad<&[u8]> {
    Aad::from(&digest.0[..])
}

impl fmt::Debug for Kept {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "Kept({} secrets)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opening::tests::{keys, secret};

    fn kept() -> Kept {
        Kept::new(&mut |bytes| bytes.fill(7))
    }

    #[test]
    fn an_opened_secret_opens_again_and_is_cached_sealed() {
        let (kept, secret, digest) = (kept(), secret(), Digest([1; 32]));
        for _ in 0..3 {
            let value = kept.open(&digest, &secret, &keys()).unwrap();
            assert_eq!(value.expose_secret(), b"hunter2");
        }
        assert_eq!(kept.len(), 1);
        let entries = kept.entries();
        let sealed = &entries.sealed[&digest].sealed;
        assert!(!sealed.windows(7).any(|bytes| bytes == b"hunter2"));
        assert_eq!(entries.nonces, 1, "no nonce is used for two values");
    }

    #[test]
    fn a_secret_that_does_not_open_is_not_cached() {
        let (kept, mut changed) = (kept(), secret());
        changed.ciphertext[0] ^= 1;
        let opened = kept.open(&Digest([2; 32]), &changed, &keys());
        assert_eq!(opened.unwrap_err(), OpeningError::Sealed);
        assert!(kept.is_empty());
    }

    #[test]
    fn without_the_pools_key_and_once_removed_nothing_opens_from_the_cache() {
        let (kept, secret, digest) = (kept(), secret(), Digest([1; 32]));
        kept.open(&digest, &secret, &keys()).unwrap();
        let opened = kept.open(&digest, &secret, &PoolKeys::default());
        assert_eq!(opened.unwrap_err(), OpeningError::NoKey);
        kept.retain(|tenant, name, listed| {
            assert_eq!((tenant, name), (&secret.place.tenant, &secret.place.name));
            *listed != digest
        });
        assert!(kept.is_empty());
    }
}
