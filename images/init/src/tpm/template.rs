//! Keys and selections in the TPM's own structures.

use super::*;

/// PCRs of the SHA-256 bank.
pub(super) fn selection(pcrs: &[u8]) -> Result<TpmlPcrSelection, Fault> {
    let mut bits = [0_u8; 3];
    for pcr in pcrs {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    let mut selection = TpmlPcrSelection::default();
    selection.try_push(TpmsPcrSelection {
        hash: TpmAlgId::Sha256,
        pcr_select: TpmsPcrSelect::try_from(&bits[..])?,
    })?;
    Ok(selection)
}

/// AES-128 in CFB mode, which every TPM has.
pub(super) fn cipher() -> TpmtSymDef {
    TpmtSymDef {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::from(128)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    }
}

/// A storage key on P-256 (TCG PC Client Platform TPM Profile, storage primary key).
pub(super) fn parent_public() -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::FIXED_TPM
            | TpmaObject::FIXED_PARENT
            | TpmaObject::SENSITIVE_DATA_ORIGIN
            | TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA
            | TpmaObject::RESTRICTED
            | TpmaObject::DECRYPT,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric: cipher(),
            curve_id: TpmEccCurve::NistP256,
            ..TpmsEccParms::default()
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint::default()),
    }
}

/// An image's key, in the form whose name `ImageKey::tpm_name` computes.
pub(super) fn public_of(key: &ImageKey) -> Result<Tpm2bPublic, Fault> {
    let inner = TpmtPublic {
        object_type: TpmAlgId::Rsa,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::USER_WITH_AUTH | TpmaObject::SIGN_ENCRYPT,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::Rsa(TpmsRsaParms {
            symmetric: TpmtSymDef {
                algorithm: TpmAlgId::Null,
                ..TpmtSymDef::default()
            },
            scheme: TpmtRsaScheme {
                scheme: TpmAlgId::Rsassa,
                details: TpmuAsymScheme::Hash(TpmsSchemeHash {
                    hash_alg: TpmAlgId::Sha256,
                }),
            },
            key_bits: TpmUint16::from(KEY_BITS as u16),
            // The default exponent.
            exponent: TpmUint32::from(0),
        }),
        unique: TpmuPublicId::Rsa(Tpm2bPublicKeyRsa::try_from(key.modulus())?),
    };
    Ok(Tpm2bPublic { inner })
}
