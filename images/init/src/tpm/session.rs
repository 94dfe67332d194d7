//! Sessions (TPM 2.0 part 1, 17 and 19.6), which authenticate commands and encrypt parameters. Each
//! session is salted with a secret that only this TPM can open, so an eavesdropper on the wires
//! between processor and TPM learns no key, and a changed byte is detected.

use aes::Aes128;
use casemate_measured_boot::sha256;
use cfb_mode::cipher::KeyIvInit as _;
use ring::agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use tpm2_protocol::data::{Tpm2bEccParameter, TpmaSession, TpmsEccPoint};

use super::Fault;

/// SHA-256, the hash of everything here, in bytes.
pub(super) const HASH_BYTES: usize = 32;
const HASH_BITS: u32 = 256;
/// AES-128: key and initialisation vector.
const CIPHER_BYTES: usize = 16;
/// Tag of an uncompressed point (SEC 1, 2.3.3).
const POINT_TAG: u8 = 4;

/// An open session, which the TPM holds too.
pub(super) struct Session {
    pub(super) handle: u32,
    key: [u8; HASH_BYTES],
    nonce_tpm: Vec<u8>,
    nonce_caller: [u8; HASH_BYTES],
}

/// A session that the TPM has not confirmed yet.
pub(super) struct Opening {
    salt: [u8; HASH_BYTES],
    pub(super) nonce_caller: [u8; HASH_BYTES],
    /// Our half of the key agreement.
    pub(super) point: TpmsEccPoint,
}

impl Opening {
    /// Agrees on a salt with a key of the TPM, on P-256 (part 1, C.6.1).
    pub(super) fn with(key: &TpmsEccPoint) -> Result<Self, Fault> {
        let failed = |_| Fault::Random;
        let random = SystemRandom::new();
        let mut nonce_caller = [0; HASH_BYTES];
        random.fill(&mut nonce_caller).map_err(failed)?;
        let private = EphemeralPrivateKey::generate(&ECDH_P256, &random).map_err(failed)?;
        let public = private.compute_public_key().map_err(failed)?;
        let (x, y) = public.as_ref()[1..].split_at(HASH_BYTES);
        let (their_x, their_y) = (padded(&key.x)?, padded(&key.y)?);
        let theirs = [&[POINT_TAG], &their_x[..], &their_y].concat();
        let peer = UnparsedPublicKey::new(&ECDH_P256, theirs);
        let salt = agree_ephemeral(private, &peer, |shared| {
            let one = 1_u32.to_be_bytes();
            sha256(&[&one, shared, b"SECRET\0", x, &their_x])
        });
        let salt = salt
            .map_err(|_| Fault::Malformed("its storage key is not a point of the curve".into()))?;
        let parameter = |bytes: &[u8]| Tpm2bEccParameter::try_from(bytes).map_err(Fault::from);
        Ok(Self {
            salt,
            nonce_caller,
            point: TpmsEccPoint {
                x: parameter(x)?,
                y: parameter(y)?,
            },
        })
    }

    pub(super) fn opened(self, handle: u32, nonce_tpm: &[u8]) -> Session {
        let mut key = [0; HASH_BYTES];
        let parts = [nonce_tpm, &self.nonce_caller];
        kdfa(&self.salt, b"ATH", parts, &mut key);
        Session {
            handle,
            key,
            nonce_tpm: nonce_tpm.to_vec(),
            nonce_caller: self.nonce_caller,
        }
    }
}

impl Session {
    /// Makes a new nonce for the next command.
    pub(super) fn next(&mut self) -> Result<[u8; HASH_BYTES], Fault> {
        let random = SystemRandom::new();
        random
            .fill(&mut self.nonce_caller)
            .map_err(|_| Fault::Random)?;
        Ok(self.nonce_caller)
    }

    /// Encrypts the first parameter of a command.
    pub(super) fn encrypt(&self, auth: &[u8], parameter: &mut [u8]) {
        let (key, iv) = self.cipher(auth, [&self.nonce_caller, &self.nonce_tpm]);
        cfb_mode::Encryptor::<Aes128>::new(&key.into(), &iv.into()).encrypt(parameter);
    }

    /// Decrypts the first parameter of a response, after [`Self::check`].
    pub(super) fn decrypt(&self, auth: &[u8], parameter: &mut [u8]) {
        let (key, iv) = self.cipher(auth, [&self.nonce_tpm, &self.nonce_caller]);
        cfb_mode::Decryptor::<Aes128>::new(&key.into(), &iv.into()).decrypt(parameter);
    }

    fn cipher(&self, auth: &[u8], nonces: [&[u8]; 2]) -> ([u8; CIPHER_BYTES], [u8; CIPHER_BYTES]) {
        let mut both = [0; 2 * CIPHER_BYTES];
        kdfa(&[&self.key, auth].concat(), b"CFB", nonces, &mut both);
        let (mut key, mut iv) = ([0; CIPHER_BYTES], [0; CIPHER_BYTES]);
        key.copy_from_slice(&both[..CIPHER_BYTES]);
        iv.copy_from_slice(&both[CIPHER_BYTES..]);
        (key, iv)
    }

    /// The proof of a command with this digest.
    pub(super) fn prove(&self, auth: &[u8], digest: &[u8], attributes: TpmaSession) -> hmac::Tag {
        let mut context = self.context(auth);
        for part in [digest, &self.nonce_caller, &self.nonce_tpm] {
            context.update(part);
        }
        context.update(&[attributes.bits()]);
        context.sign()
    }

    /// Checks that the TPM sent this response to our command, and takes the TPM's nonce for the
    /// next command.
    pub(super) fn check(
        &mut self,
        auth: &[u8],
        digest: &[u8],
        nonce: &[u8],
        attributes: u8,
        proof: &[u8],
    ) -> Result<(), Fault> {
        nonce.clone_into(&mut self.nonce_tpm);
        let signed = [digest, nonce, &self.nonce_caller, &[attributes]].concat();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[&self.key, auth].concat());
        hmac::verify(&key, &signed, proof).map_err(|_| Fault::Forged)
    }

    fn context(&self, auth: &[u8]) -> hmac::Context {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[&self.key, auth].concat());
        hmac::Context::with_key(&key)
    }
}

/// Pads a coordinate: the TPM may omit leading zeros.
fn padded(coordinate: &[u8]) -> Result<[u8; HASH_BYTES], Fault> {
    let mut padded = [0; HASH_BYTES];
    let start = HASH_BYTES.checked_sub(coordinate.len());
    let start = start.ok_or_else(|| Fault::Malformed("a coordinate that is too long".into()))?;
    padded[start..].copy_from_slice(coordinate);
    Ok(padded)
}

/// Key derivation of part 1, 11.4.10.2, for at most one hash of output.
fn kdfa(key: &[u8], label: &[u8], parts: [&[u8]; 2], to: &mut [u8; HASH_BYTES]) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let mut context = hmac::Context::with_key(&key);
    context.update(&1_u32.to_be_bytes());
    context.update(label);
    context.update(&[0]);
    parts.iter().for_each(|part| context.update(part));
    context.update(&HASH_BITS.to_be_bytes());
    to.copy_from_slice(context.sign().as_ref());
}
