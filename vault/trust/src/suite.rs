//! The algorithms of every sealed value (RFC 9180, section 7): X-Wing as the KEM
//! (draft-connolly-cfrg-xwing-kem, id 0x647a), HKDF-SHA256 as the KDF, ChaCha20-Poly1305 as the
//! AEAD.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::XWing;

/// The key encapsulation of every sealed value.
pub type Kem = XWing;
/// The key derivation of every sealed value.
pub type Kdf = HkdfSha256;
/// The cipher of every sealed value.
pub type Aead = ChaCha20Poly1305;
