//! Key files: a seed behind a passphrase (Argon2id, RFC 9106; ChaCha20-Poly1305, RFC 8439), or
//! unencrypted on request.
//!
//! The file is JSON, so that a person can recognise it. The caller reads and writes it, with mode
//! 0600.

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::base64_bytes;
use crate::key::SEED_BYTES;

/// Largest key file, bytes.
pub const MAX_FILE_BYTES: usize = 16 * 1024;

/// Argon2id as RFC 9106, section 4, recommends for memory-constrained places: 64 MiB, 3 passes, 4 lanes.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// A file may ask for more than we write, but not for all of a machine's memory.
const MAX_MEMORY_KIB: u32 = 1024 * 1024;
const MAX_PASSES: u32 = 64;
const MAX_LANES: u32 = 16;

/// The purpose of a key, which is authenticated, so that one file cannot replace another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The fleet's root, Ed25519.
    FleetRoot,
    /// A tenant's key, Ed25519.
    Tenant,
    /// The key that a tenant's manifest names for statements of freshness, Ed25519.
    Freshness,
    /// A pool's key, X-Wing.
    Pool,
    /// The control plane's liveness key, Ed25519.
    Liveness,
    /// The control plane's QUIC key, Ed25519.
    Quic,
    /// The key of the API's certificate, Ed25519.
    Api,
    /// The seed of a join token, until the node is admitted.
    JoinToken,
}

/// Why a key file was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// The text is not a key file.
    #[error("the text is not a key file: {0}")]
    Format(String),
    /// The file holds a key for another purpose.
    #[error("expected a key file for {wanted:?}, got one for {found:?}")]
    Purpose {
        /// The expected purpose.
        wanted: Purpose,
        /// The purpose in the file.
        found: Purpose,
    },
    /// The file is encrypted, and there is no passphrase.
    #[error("the key file is encrypted: a passphrase is needed")]
    PassphraseNeeded,
    /// The passphrase is wrong, or the file was changed.
    #[error("the passphrase is wrong, or the key file was changed")]
    PassphraseWrong,
    /// Argon2 refused its parameters.
    #[error("the key file asks for Argon2id parameters outside of the limits")]
    Parameters,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    casemate_key: Purpose,
    #[serde(flatten)]
    body: Body,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Body {
    Plain(#[serde(with = "base64_bytes")] Vec<u8>),
    Encrypted(Encrypted),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encrypted {
    argon2id: Cost,
    #[serde(with = "base64_bytes")]
    salt: Vec<u8>,
    #[serde(with = "base64_bytes")]
    nonce: Vec<u8>,
    #[serde(with = "base64_bytes")]
    ciphertext: Vec<u8>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The text of a key file with `seed`; unencrypted when there is no passphrase.
pub fn write(
    purpose: Purpose,
    seed: &[u8; SEED_BYTES],
    passphrase: Option<&[u8]>,
    random: crate::Random<'_>,
) -> Result<Zeroizing<String>, KeyFileError> {
    let body = match passphrase {
        None => Body::Plain(seed.to_vec()),
        Some(passphrase) => {
            let (mut salt, mut nonce) = (vec![0; 16], vec![0; 12]);
            random(&mut salt);
            random(&mut nonce);
            let cost = Cost {
                memory_kib: MEMORY_KIB,
                passes: PASSES,
                lanes: LANES,
            };
            let key = derive(passphrase, &salt, cost)?;
            let mut ciphertext = seed.to_vec();
            let sealed =
                key.seal_in_place_append_tag(nonce_of(&nonce)?, aad(purpose), &mut ciphertext);
            sealed.map_err(|_| KeyFileError::Parameters)?;
            Body::Encrypted(Encrypted {
                argon2id: cost,
                salt,
                nonce,
                ciphertext,
            })
        }
    };
    let text = serde_json::to_string_pretty(&File {
        casemate_key: purpose,
        body,
    });
    text.map(Zeroizing::new)
        .map_err(|error| KeyFileError::Format(error.to_string()))
}

/// Whether this text is an encrypted key file, so that a passphrase must be asked for.
pub fn is_encrypted(text: &str) -> Result<bool, KeyFileError> {
    Ok(matches!(parse(text)?.body, Body::Encrypted(_)))
}

/// The seed in a key file.
pub fn read(
    text: &str,
    wanted: Purpose,
    passphrase: Option<&[u8]>,
) -> Result<Zeroizing<[u8; SEED_BYTES]>, KeyFileError> {
    let file = parse(text)?;
    if file.casemate_key != wanted {
        return Err(KeyFileError::Purpose {
            wanted,
            found: file.casemate_key,
        });
    }
    let seed = Zeroizing::new(match file.body {
        Body::Plain(seed) => seed,
        Body::Encrypted(encrypted) => {
            let key = derive(
                passphrase.ok_or(KeyFileError::PassphraseNeeded)?,
                &encrypted.salt,
                encrypted.argon2id,
            )?;
            let mut bytes = encrypted.ciphertext;
            let opened = key.open_in_place(nonce_of(&encrypted.nonce)?, aad(wanted), &mut bytes);
            opened.map_err(|_| KeyFileError::PassphraseWrong)?.to_vec()
        }
    });
    let array = <[u8; SEED_BYTES]>::try_from(seed.as_slice());
    array
        .map(Zeroizing::new)
        .map_err(|_| KeyFileError::Format("expected a seed of 32 bytes".into()))
}

fn parse(text: &str) -> Result<File, KeyFileError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(KeyFileError::Format(format!(
            "{} bytes, at most {MAX_FILE_BYTES}",
            text.len()
        )));
    }
    serde_json::from_str(text).map_err(|error| {
        KeyFileError::Format(format!("line {}, column {}", error.line(), error.column()))
    })
}

fn derive(passphrase: &[u8], salt: &[u8], cost: Cost) -> Result<LessSafeKey, KeyFileError> {
    if cost.memory_kib > MAX_MEMORY_KIB || cost.passes > MAX_PASSES || cost.lanes > MAX_LANES {
        return Err(KeyFileError::Parameters);
    }
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
        .map_err(|_| KeyFileError::Parameters)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(passphrase, salt, key.as_mut())
        .map_err(|_| KeyFileError::Parameters)?;
    let key =
        UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| KeyFileError::Parameters)?;
    Ok(LessSafeKey::new(key))
}

fn nonce_of(bytes: &[u8]) -> Result<Nonce, KeyFileError> {
    Nonce::try_assume_unique_for_key(bytes)
        .map_err(|_| KeyFileError::Format("expected a nonce of 12 bytes".into()))
}

fn aad(purpose: Purpose) -> Aad<Vec<u8>> {
    Aad::from(format!("casemate key file v1 {purpose:?}").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(passphrase: Option<&[u8]>) -> Zeroizing<String> {
        write(Purpose::Tenant, &[9; 32], passphrase, &mut |bytes| {
            bytes.fill(3);
        })
        .unwrap()
    }

    #[test]
    fn a_seed_comes_back() {
        assert_eq!(*read(&text(None), Purpose::Tenant, None).unwrap(), [9; 32]);
        assert_eq!(
            *read(
                &text(Some(b"open sesame")),
                Purpose::Tenant,
                Some(b"open sesame")
            )
            .unwrap(),
            [9; 32]
        );
    }

    #[test]
    fn the_wrong_passphrase_none_and_another_purpose_are_refused() {
        let encrypted = text(Some(b"open sesame"));
        assert_eq!(
            read(&encrypted, Purpose::Tenant, Some(b"open")).unwrap_err(),
            KeyFileError::PassphraseWrong
        );
        assert_eq!(
            read(&encrypted, Purpose::Tenant, None).unwrap_err(),
            KeyFileError::PassphraseNeeded
        );
        assert!(matches!(
            read(&encrypted, Purpose::FleetRoot, Some(b"open sesame")),
            Err(KeyFileError::Purpose { .. })
        ));
        let swapped = encrypted.replace("tenant", "fleet-root");
        assert_eq!(
            read(&swapped, Purpose::FleetRoot, Some(b"open sesame")).unwrap_err(),
            KeyFileError::PassphraseWrong
        );
    }

    #[test]
    fn a_file_cannot_ask_for_all_memory() {
        let greedy = text(Some(b"x")).replace("65536", "4294967295");
        assert_eq!(
            read(&greedy, Purpose::Tenant, Some(b"x")).unwrap_err(),
            KeyFileError::Parameters
        );
    }

    #[test]
    fn an_encrypted_file_does_not_hold_the_seed() {
        assert!(!text(Some(b"x")).contains(&crate::encoding::to_base64(&[9; 32])));
    }
}
