//! The image key: RSA, because firmware and every TPM support it, and because its signatures are
//! deterministic.

use pkcs1::RsaPublicKey;
use pkcs1::der::Decode as _;
use pkcs1::der::EncodePem as _;
use ring::rand::SystemRandom;
use ring::signature::{RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::Error;
use crate::pcr::sha256;
use crate::policy::{Approval, SignedApproval};

/// The key size that every TPM supports.
pub const KEY_BITS: usize = 2048;
const EXPONENT: [u8; 3] = [1, 0, 1];

/// TPM 2.0 part 2: `TPM_ALG_RSA`, `TPM_ALG_SHA256`, `TPM_ALG_NULL`, `TPM_ALG_RSASSA`.
const ALG_RSA: u16 = 0x0001;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
/// `TPMA_OBJECT`: `userWithAuth` and `sign`, the attributes with which an external key is loaded.
const ATTRIBUTES: u32 = 1 << 6 | 1 << 18;

/// The private image key, which approves images.
pub struct ApprovalKey {
    pair: RsaKeyPair,
    public: ImageKey,
}

impl ApprovalKey {
    /// Reads an RSA private key: PKCS #8 or PKCS #1, PEM.
    ///
    /// # Errors
    /// The file is not such a key, or the key has another size.
    pub fn from_pem(pem: &[u8]) -> Result<Self, Error> {
        let malformed = |message: String| Error::Malformed {
            expected: "an RSA private key as PEM",
            message,
        };
        let der =
            PrivateKeyDer::from_pem_slice(pem).map_err(|error| malformed(error.to_string()))?;
        let pair = match &der {
            PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
            _ => return Err(malformed("got a key of another kind".into())),
        };
        let pair = pair.map_err(|error| malformed(error.to_string()))?;
        let public = ImageKey::from_der(pair.public().as_ref())?;
        Ok(Self { pair, public })
    }

    /// The public half.
    pub fn public(&self) -> &ImageKey {
        &self.public
    }

    /// Signs that boots with these measurements may open what is sealed under this key.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn approve(&self, approval: Approval) -> Result<SignedApproval, Error> {
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let random = SystemRandom::new();
        let policy = approval.policy();
        self.pair
            .sign(&RSA_PKCS1_SHA256, &random, &policy, &mut signature)
            .map_err(|_| Error::Signing)?;
        Ok(SignedApproval {
            approval,
            signature,
        })
    }
}

/// The public half of an image's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageKey {
    modulus: Vec<u8>,
    pem: String,
}

impl ImageKey {
    /// Reads what [`Self::to_pem`] writes.
    ///
    /// # Errors
    /// The text is not such a key, or the key has another size or exponent.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let (label, der) =
            pkcs1::der::Document::from_pem(text).map_err(|error| malformed(&error))?;
        if label != "RSA PUBLIC KEY" {
            return Err(malformed(&format!("got {label:?}")));
        }
        Self::from_der(der.as_bytes())
    }

    fn from_der(der: &[u8]) -> Result<Self, Error> {
        let key = RsaPublicKey::from_der(der).map_err(|error| malformed(&error))?;
        let modulus = key.modulus.as_bytes().to_vec();
        if modulus.len() * 8 != KEY_BITS || modulus[0] < 0x80 {
            return Err(Error::KeySize {
                got: modulus.len() * 8,
            });
        }
        if key.public_exponent.as_bytes() != EXPONENT {
            return Err(Error::Exponent);
        }
        let pem = key
            .to_pem(pkcs1::LineEnding::LF)
            .map_err(|error| malformed(&error))?;
        Ok(Self { modulus, pem })
    }

    /// The key as PKCS #1, PEM.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The modulus, high byte first.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The key's name in a TPM (TPM 2.0 part 1, 16): the algorithm and the digest of its public
    /// area.
    pub fn tpm_name(&self) -> Vec<u8> {
        let mut area = Vec::with_capacity(self.modulus.len() + 32);
        area.extend(ALG_RSA.to_be_bytes());
        area.extend(ALG_SHA256.to_be_bytes());
        area.extend(ATTRIBUTES.to_be_bytes());
        // The key has no policy of its own.
        area.extend(0_u16.to_be_bytes());
        area.extend(ALG_NULL.to_be_bytes());
        area.extend(ALG_RSASSA.to_be_bytes());
        area.extend(ALG_SHA256.to_be_bytes());
        area.extend((KEY_BITS as u16).to_be_bytes());
        // The default exponent.
        area.extend(0_u32.to_be_bytes());
        area.extend((self.modulus.len() as u16).to_be_bytes());
        area.extend(&self.modulus);
        [&ALG_SHA256.to_be_bytes()[..], &sha256(&[&area])].concat()
    }

    /// Whether this key has signed the approval.
    pub fn has_signed(&self, signed: &SignedApproval) -> bool {
        let key = ring::signature::RsaPublicKeyComponents {
            n: &self.modulus[..],
            e: &EXPONENT[..],
        };
        key.verify(
            &RSA_PKCS1_2048_8192_SHA256,
            &signed.approval.policy(),
            &signed.signature,
        )
        .is_ok()
    }
}

fn malformed(message: &dyn std::fmt::Display) -> Error {
    Error::Malformed {
        expected: "an RSA public key as PKCS #1 PEM",
        message: message.to_string(),
    }
}
