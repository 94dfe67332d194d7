//! The recovery key: opens the storage key when the TPM does not. The operator keeps it, on paper
//! or in a safe.

use data_encoding::BASE32_NOPAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

/// Length of a storage key, and of a recovery key.
pub(crate) const KEY_BYTES: usize = 32;
/// The checksum distinguishes a typing mistake from another machine's key.
const CHECKSUM_BYTES: usize = 4;
/// Letters between two hyphens of the key's text.
const GROUP: usize = 6;
/// Longest text that is parsed.
const MAX_TEXT_BYTES: usize = 256;
const PURPOSE: &[u8] = b"casemate storage key 1";

/// A secret of 256 bits.
pub(crate) type Key = Zeroizing<[u8; KEY_BYTES]>;

/// A new random key.
pub(crate) fn random_key() -> Result<Key, &'static str> {
    let mut key = Key::default();
    SystemRandom::new()
        .fill(&mut *key)
        .map_err(|_| "the kernel gives no random numbers")?;
    Ok(key)
}

/// The recovery key of a machine; it seals and opens a copy of the storage key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RecoveryKey(pub(crate) Key);

impl RecoveryKey {
    /// Parses the text of [`Self::to_text`]; spaces, hyphens and the case of letters do not matter.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let expected = "expected the letters and digits that were shown at the first boot";
        if text.len() > MAX_TEXT_BYTES {
            return Err(expected);
        }
        let is_part = |byte: &&u8| !byte.is_ascii_whitespace() && **byte != b'-';
        let letters: Zeroizing<Vec<u8>> = Zeroizing::new(
            text.iter()
                .filter(is_part)
                .map(u8::to_ascii_uppercase)
                .collect(),
        );
        let bytes = BASE32_NOPAD.decode(&letters).map_err(|_| expected)?;
        let bytes = Zeroizing::new(bytes);
        let (key, sum) = bytes.split_first_chunk().ok_or(expected)?;
        let key = Self(Zeroizing::new(*key));
        if sum != key.checksum() {
            return Err("a letter of the recovery key is wrong or missing");
        }
        Ok(key)
    }

    /// The text for the operator, to be shown on the console alone.
    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new([&self.0[..], &self.checksum()].concat());
        let letters = Zeroizing::new(BASE32_NOPAD.encode(&bytes).to_lowercase());
        let mut text = Zeroizing::new(String::with_capacity(MAX_TEXT_BYTES));
        for (at, letter) in letters.chars().enumerate() {
            if at > 0 && at.is_multiple_of(GROUP) {
                text.push('-');
            }
            text.push(letter);
        }
        text
    }

    fn checksum(&self) -> [u8; CHECKSUM_BYTES] {
        let mut sum = [0; CHECKSUM_BYTES];
        sum.copy_from_slice(&digest(&SHA256, &*self.0).as_ref()[..CHECKSUM_BYTES]);
        sum
    }

    fn cipher(&self) -> Result<LessSafeKey, &'static str> {
        let key = UnboundKey::new(&AES_256_GCM, &*self.0)
            .map_err(|_| "the cipher does not accept the key")?;
        Ok(LessSafeKey::new(key))
    }

    /// The nonce is constant, because a recovery key seals one storage key and nothing else.
    fn nonce() -> Nonce {
        Nonce::assume_unique_for_key([0; 12])
    }

    pub(crate) fn seal(&self, key: &Key) -> Result<Vec<u8>, &'static str> {
        let mut sealed = key.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(Self::nonce(), Aad::from(PURPOSE), &mut sealed)
            .map_err(|_| "the storage key cannot be sealed")?;
        Ok(sealed)
    }

    pub(crate) fn open(&self, sealed: &[u8]) -> Result<Key, &'static str> {
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let opened = self
            .cipher()?
            .open_in_place(Self::nonce(), Aad::from(PURPOSE), &mut bytes)
            .map_err(|_| {
                "this recovery key belongs to another machine, or to an earlier storage key of \
                 this one"
            })?;
        let key: &[u8; KEY_BYTES] = (&*opened)
            .try_into()
            .map_err(|_| "the sealed content is not a storage key")?;
        Ok(Zeroizing::new(*key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_written_down_and_typed_in_again() {
        let key = RecoveryKey(random_key().unwrap());
        let storage = random_key().unwrap();
        let sealed = key.seal(&storage).unwrap();
        let text = key.to_text();
        assert_eq!(text.split('-').count(), 10, "{}", &*text);
        let typed = format!("  {} \n", text.to_uppercase().replace('-', " "));
        let read = RecoveryKey::parse(typed.as_bytes()).unwrap();
        assert!(read == key && read.open(&sealed).unwrap() == storage);
        let other = RecoveryKey(random_key().unwrap());
        other.open(&sealed).unwrap_err();
        // Any single wrong letter is detected.
        for at in (0..text.len()).filter(|at| text.as_bytes()[*at] != b'-') {
            let mut slip = text.as_bytes().to_vec();
            slip[at] = if slip[at] == b'a' { b'b' } else { b'a' };
            assert!(RecoveryKey::parse(&slip).is_err(), "{at}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_does_harm(text: Vec<u8>) {
            let _ = RecoveryKey::parse(&text);
        }
    }
}
