//! Keys that only the vault holds.

use std::collections::BTreeMap;
use std::fmt;

use casemate_trust::key::{KeyError, SEED_BYTES, SealingKey, SigningKey};
use casemate_trust::name::Name;
use ring::hkdf;
use zeroize::Zeroizing;

/// Length of the storage key and of the keys derived from it, bytes.
pub const STORAGE_KEY_BYTES: usize = 32;

/// The key under which everything at rest is sealed.
pub struct StorageKey(Zeroizing<[u8; STORAGE_KEY_BYTES]>);

impl StorageKey {
    /// Takes the key from its provider.
    pub fn new(bytes: Zeroizing<[u8; STORAGE_KEY_BYTES]>) -> Self {
        Self(bytes)
    }

    /// Derives the vault's own key by HKDF-SHA256 (RFC 5869), with a purpose of its own.
    pub fn vault_key(&self) -> Zeroizing<[u8; STORAGE_KEY_BYTES]> {
        self.derive(b"casemate vault records v1")
    }

    /// Derives the key with which the supervisor seals its state.
    pub fn state_key(&self) -> Zeroizing<[u8; STORAGE_KEY_BYTES]> {
        self.derive(b"casemate supervisor state v1")
    }

    fn derive(&self, purpose: &[u8]) -> Zeroizing<[u8; STORAGE_KEY_BYTES]> {
        let mut key = Zeroizing::new([0; STORAGE_KEY_BYTES]);
        let prk =
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"casemate storage key").extract(self.0.as_ref());
        // A failure must end the program: otherwise the key would be all zeros, which everybody
        // knows.
        prk.expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(key.as_mut()))
            .expect("32 bytes are within HKDF's bound");
        key
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("StorageKey")
    }
}

/// The node's own keys: its identity, and the key that grants are sealed to.
pub struct NodeKeys {
    identity: SigningKey,
    sealing_seed: Zeroizing<[u8; SEED_BYTES]>,
    sealing: SealingKey,
}

impl NodeKeys {
    /// Makes the keys from their two seeds.
    ///
    /// # Errors
    /// A seed gives no valid key.
    pub fn from_seeds(
        identity: &[u8; SEED_BYTES],
        sealing: &[u8; SEED_BYTES],
    ) -> Result<Self, KeyError> {
        let public = SealingKey::of_seed(sealing)?;
        Ok(Self {
            identity: SigningKey::from_seed(identity)?,
            sealing_seed: Zeroizing::new(*sealing),
            sealing: public,
        })
    }

    /// Makes new keys.
    ///
    /// # Errors
    /// As for [`Self::from_seeds`].
    pub fn generate(random: casemate_trust::Random<'_>) -> Result<Self, KeyError> {
        let (mut identity, mut sealing) = (
            Zeroizing::new([0; SEED_BYTES]),
            Zeroizing::new([0; SEED_BYTES]),
        );
        random(identity.as_mut());
        random(sealing.as_mut());
        Self::from_seeds(&identity, &sealing)
    }

    /// The key that signs for the node.
    pub fn identity(&self) -> &SigningKey {
        &self.identity
    }

    /// The key to which grants are sealed.
    pub fn sealing_key(&self) -> &SealingKey {
        &self.sealing
    }

    /// The seeds, identity first: to be sealed at rest, and to open grants.
    pub fn expose_secret(&self) -> (&[u8; SEED_BYTES], &[u8; SEED_BYTES]) {
        (self.identity.expose_secret(), &self.sealing_seed)
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "NodeKeys(of {})", self.identity.public())
    }
}

/// Private keys of the node's pool, by epoch.
#[derive(Default)]
pub struct PoolKeys(BTreeMap<(Name, u64), Zeroizing<[u8; SEED_BYTES]>>);

impl PoolKeys {
    /// Stores the key of an epoch.
    pub fn insert(&mut self, pool: Name, epoch: u64, seed: Zeroizing<[u8; SEED_BYTES]>) {
        self.0.insert((pool, epoch), seed);
    }

    /// The key of an epoch.
    pub fn expose_secret(&self, pool: &Name, epoch: u64) -> Option<&[u8; SEED_BYTES]> {
        self.0.get(&(pool.clone(), epoch)).map(|seed| &**seed)
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The pools and epochs of the keys.
    pub fn epochs(&self) -> impl Iterator<Item = (&Name, u64)> {
        self.0.keys().map(|(name, epoch)| (name, *epoch))
    }
}

impl fmt::Debug for PoolKeys {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "PoolKeys({} epochs)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_keys_differ_from_each_other_and_from_their_source() {
        let storage = StorageKey::new(Zeroizing::new([7; 32]));
        let (vault, state) = (storage.vault_key(), storage.state_key());
        assert_ne!(vault, state);
        assert_ne!(*vault, [7; 32]);
        assert_eq!(vault, StorageKey::new(Zeroizing::new([7; 32])).vault_key());
        assert!(!format!("{storage:?}").contains('7'));
    }
}
