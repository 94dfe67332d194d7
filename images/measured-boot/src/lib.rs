//! Which boots may open a node's storage key.
//!
//! The boot stub measures every part of a unified kernel image into PCR 11; command lines and files
//! from outside go into PCR 12. The builder of an image can compute both, and signs that boots with
//! exactly these measurements may open the key, as long as the machine has not run a newer image.
//! The TPM takes the signature as an approval ([TPM 2.0, part 3], `TPM2_PolicyAuthorize`), so an
//! update needs no new seal.
//!
//! ```text
//! approved = PolicyPCR(11 and 12 = the image), then PolicyNV(version floor <= version of the image)
//! sealed   = PolicyAuthorize(image key), then PolicyPCR(7 = Secure Boot as it was when the key was sealed)
//! ```
//!
//! PCR 11 is only as trustworthy as the firmware that starts the stub: a program that runs earlier
//! can measure arbitrary values. That is why PCR 7 is in the policy too, and never alone. A PCR 7
//! or 11 that is all zeros, because nothing was measured, proves nothing: no key is sealed to it.
//!
//! This crate computes everything by the rules of [TPM 2.0, part 1], section 19.7, without a TPM.
//!
//! [TPM 2.0, part 1]: https://trustedcomputinggroup.org/resource/tpm-library-specification/
//! [TPM 2.0, part 3]: https://trustedcomputinggroup.org/resource/tpm-library-specification/
#![forbid(unsafe_code)]

mod key;
mod pcr;
mod policy;

pub use key::{ApprovalKey, ImageKey, KEY_BITS};
pub use pcr::{PcrValue, SECTIONS, command_lines, measured, sha256};
pub use policy::{
    Approval, Approvals, FLOOR_ATTRIBUTES, FLOOR_BYTES, FLOOR_INDEX, IMAGE_PCRS, NV_WRITTEN,
    PLATFORM_PCR, SignedApproval, sealed_policy,
};

/// Why a key or an approval cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file has another format.
    #[error("expected {expected}: {message}")]
    Malformed {
        /// The expected format.
        expected: &'static str,
        /// What is wrong with the file.
        message: String,
    },
    /// The key has another length; a TPM need not support longer keys.
    #[error("expected an RSA key of {KEY_BITS} bits, got one of {got}")]
    KeySize {
        /// Bits of the key's modulus.
        got: usize,
    },
    /// The key has another exponent than the default of every TPM.
    #[error("expected an RSA key with the exponent 65537")]
    Exponent,
    /// The key failed to sign.
    #[error("the key cannot sign")]
    Signing,
}
