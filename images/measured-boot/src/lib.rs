//! Which boots may open a node's storage key.
//!
//! The boot stub measures every part of a unified kernel image into PCR 11; command lines and files
//! that are given from outside go into PCR 12. Who builds an image knows what both will be, and
//! signs that boots which have measured this, and nothing else, may open the key, as long as the
//! machine has not run a newer image. The TPM takes the signature as an approval ([TPM 2.0, part
//! 3], `TPM2_PolicyAuthorize`), so an update needs no new seal.
//!
//! ```text
//! approved = PolicyPCR(11 and 12 = the image), then PolicyNV(version floor <= version of the image)
//! sealed   = PolicyAuthorize(image key), then PolicyPCR(7 = Secure Boot as it was when the key was sealed)
//! ```
//!
//! PCR 11 is worth what the firmware is worth that starts the stub: whatever runs before can
//! measure what it likes. That is why PCR 7 is in the policy too, and never alone. A PCR 7 or 11
//! that is all zeros, because nothing was measured, proves nothing: nothing is sealed to it.
//!
//! All is computed here, by the rules of [TPM 2.0, part 1], section 19.7, and nothing touches a
//! TPM.
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

/// What is wrong with a key or an approval.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of another kind.
    #[error("expected {expected}: {message}")]
    Malformed {
        /// What it should be.
        expected: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// A TPM need not know longer keys.
    #[error("expected an RSA key of {KEY_BITS} bits, got one of {got}")]
    KeySize {
        /// Bits of its modulus.
        got: usize,
    },
    /// The one exponent that a TPM takes for granted.
    #[error("expected an RSA key with the exponent 65537")]
    Exponent,
    /// A fault of the key.
    #[error("the key cannot sign")]
    Signing,
}
