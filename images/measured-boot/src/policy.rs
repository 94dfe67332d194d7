//! Policies, as a TPM computes their digests (TPM 2.0 part 1, 19.7, and part 3, 23).

use casemate_trust::image::ImageVersion;
use serde::{Deserialize, Serialize};

use crate::key::ImageKey;
use crate::pcr::{PcrValue, sha256};

/// The PCRs of the stub's measurements: the image, and what comes from outside.
pub const IMAGE_PCRS: [u8; 2] = [11, 12];
/// The PCR of Secure Boot: whether it is on, its keys, and which of them signed the boot loader.
pub const PLATFORM_PCR: u8 = 7;

/// The NV index with the version floor, among those of the owner.
pub const FLOOR_INDEX: u32 = 0x0180_ca5e;
/// Length of the floor: a version as one number.
pub const FLOOR_BYTES: u16 = 8;
/// `TPMA_NV`: the owner may write (1), a reader needs only the empty authorization (18), no
/// lock-out (25).
pub const FLOOR_ATTRIBUTES: u32 = 1 << 1 | 1 << 18 | 1 << 25;
/// `TPMA_NV_WRITTEN`, part of the index's name from the first write on.
pub const NV_WRITTEN: u32 = 1 << 29;

const CC_POLICY_NV: u32 = 0x0149;
const CC_POLICY_AUTHORIZE: u32 = 0x016a;
const CC_POLICY_PCR: u32 = 0x017f;
const EO_UNSIGNED_LE: u16 = 0x0009;
const ALG_SHA256: u16 = 0x000b;
const NO_POLICY: [u8; 32] = [0; 32];

/// Values for which an image's boot may open the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// The image's version: a machine with a higher floor does not open the key.
    pub version: ImageVersion,
    /// PCR 11 after the stub.
    pub pcr11: PcrValue,
    /// PCR 12 at that time: the image's own command line as a boot loader measures it, or zero.
    pub pcr12: PcrValue,
}

impl Approval {
    /// The policy that the approval signs.
    pub fn policy(&self) -> [u8; 32] {
        let values = [self.pcr11, self.pcr12];
        let pcrs = policy_pcr(&NO_POLICY, &IMAGE_PCRS, &values);
        policy_nv(&pcrs, self.version)
    }
}

/// An approval with its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedApproval {
    /// The approval.
    pub approval: Approval,
    /// RSASSA-PKCS1-v1_5 with SHA-256 over the approved policy.
    #[serde(with = "hex::serde")]
    pub signature: Vec<u8>,
}

/// The section `.pcrsig` of an image, as JSON. An image can be started in more than one way, so it
/// may have several approvals.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Approvals(pub Vec<SignedApproval>);

impl Approvals {
    /// Longest text.
    const MAX_TEXT_BYTES: usize = 8192;

    /// Reads what [`Self::to_text`] writes.
    ///
    /// # Errors
    /// The text is not a list of approvals.
    pub fn from_text(text: &[u8]) -> Result<Self, crate::Error> {
        let malformed = |message: String| crate::Error::Malformed {
            expected: "approvals as JSON",
            message,
        };
        if text.len() > Self::MAX_TEXT_BYTES {
            return Err(malformed(format!("{} bytes", text.len())));
        }
        // Sections end with zeros.
        let text = text.split(|byte| *byte == 0).next().unwrap_or(text);
        let read: Self =
            serde_json::from_slice(text).map_err(|error| malformed(error.to_string()))?;
        if read.0.is_empty() {
            return Err(malformed("the list of approvals is empty".into()));
        }
        Ok(read)
    }

    /// The approvals as JSON.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings are JSON")
    }
}

/// The policy of a key that is sealed under an image key while PCR 7 has this value.
pub fn sealed_policy(key: &ImageKey, pcr7: PcrValue) -> [u8; 32] {
    let authorized = policy_authorize(&key.tpm_name());
    policy_pcr(&authorized, &[PLATFORM_PCR], &[pcr7])
}

fn policy_pcr(policy: &[u8; 32], pcrs: &[u8], values: &[PcrValue]) -> [u8; 32] {
    let mut bits = [0_u8; 3];
    for pcr in pcrs {
        bits[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    // `TPML_PCR_SELECTION` with one bank.
    let mut selection = 1_u32.to_be_bytes().to_vec();
    selection.extend(ALG_SHA256.to_be_bytes());
    selection.push(bits.len() as u8);
    selection.extend(bits);
    let values: Vec<&[u8]> = values.iter().map(|value| &value.0[..]).collect();
    sha256(&[
        policy,
        &CC_POLICY_PCR.to_be_bytes(),
        &selection,
        &sha256(&values),
    ])
}

fn policy_nv(policy: &[u8; 32], version: ImageVersion) -> [u8; 32] {
    let arguments = sha256(&[
        &version.as_u64().to_be_bytes(),
        // The comparison starts at the first byte.
        &0_u16.to_be_bytes(),
        &EO_UNSIGNED_LE.to_be_bytes(),
    ]);
    sha256(&[
        policy,
        &CC_POLICY_NV.to_be_bytes(),
        &arguments,
        &floor_name(),
    ])
}

/// The approved policy counts only together with its approver: the digest starts anew.
fn policy_authorize(key_name: &[u8]) -> [u8; 32] {
    let named = sha256(&[&NO_POLICY, &CC_POLICY_AUTHORIZE.to_be_bytes(), key_name]);
    // The reference is empty.
    sha256(&[&named])
}

/// The name of the NV index once it is written (TPM 2.0 part 1, 16).
fn floor_name() -> Vec<u8> {
    let mut area = FLOOR_INDEX.to_be_bytes().to_vec();
    area.extend(ALG_SHA256.to_be_bytes());
    area.extend((FLOOR_ATTRIBUTES | NV_WRITTEN).to_be_bytes());
    // The index has no policy of its own.
    area.extend(0_u16.to_be_bytes());
    area.extend(FLOOR_BYTES.to_be_bytes());
    [&ALG_SHA256.to_be_bytes()[..], &sha256(&[&area])].concat()
}
