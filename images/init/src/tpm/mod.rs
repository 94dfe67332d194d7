//! The machine's TPM 2.0: sealed objects, and the version floor below which no image opens them.
//!
//! Command and response layouts come from a library; sessions are in [`session`], and policies in
//! `casemate-measured-boot`. Parts and sections in this folder are those of the TPM 2.0 library
//! specification.

mod channel;
mod index;
mod session;
mod template;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;

use casemate_measured_boot::{
    FLOOR_ATTRIBUTES, FLOOR_BYTES, FLOOR_INDEX, IMAGE_PCRS, ImageKey, KEY_BITS, PLATFORM_PCR,
    PcrValue, SignedApproval,
};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use tpm2_protocol::basic::{TpmBuffer, TpmHandle, TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bData, Tpm2bDigest, Tpm2bEncryptedSecret, Tpm2bMaxBuffer, Tpm2bMaxNvBuffer,
    Tpm2bName, Tpm2bNonce, Tpm2bNvPublic, Tpm2bPrivate, Tpm2bPublic, Tpm2bPublicKeyRsa,
    Tpm2bSensitiveCreate, Tpm2bSensitiveData, TpmAlgId, TpmCap, TpmCc, TpmEccCurve, TpmEo, TpmRh,
    TpmSe, TpmaNv, TpmaObject, TpmlDigestValues, TpmlPcrSelection, TpmsEccParms, TpmsEccPoint,
    TpmsKeyedhashParms, TpmsNvPublic, TpmsPcrSelect, TpmsPcrSelection, TpmsRsaParms,
    TpmsSchemeHash, TpmsSensitiveCreate, TpmsSignatureRsa, TpmtHa, TpmtPublic, TpmtRsaScheme,
    TpmtSignature, TpmtSymDef, TpmuAsymScheme, TpmuCapabilities, TpmuHa, TpmuPublicId,
    TpmuPublicParms, TpmuSignature, TpmuSymKeyBits, TpmuSymMode,
};
use tpm2_protocol::frame::{
    TpmClearCommand, TpmClearResponse, TpmCreateCommand, TpmCreatePrimaryCommand,
    TpmCreatePrimaryResponse, TpmCreateResponse, TpmEvictControlCommand, TpmEvictControlResponse,
    TpmFlushContextCommand, TpmFlushContextResponse, TpmGetCapabilityCommand,
    TpmGetCapabilityResponse, TpmHierarchyChangeAuthCommand, TpmHierarchyChangeAuthResponse,
    TpmLoadCommand, TpmLoadExternalResponse, TpmLoadResponse, TpmNvDefineSpaceCommand,
    TpmNvDefineSpaceResponse, TpmNvReadCommand, TpmNvReadPublicCommand, TpmNvReadPublicResponse,
    TpmNvReadResponse, TpmNvUndefineSpaceCommand, TpmNvUndefineSpaceResponse, TpmNvWriteCommand,
    TpmNvWriteResponse, TpmPcrExtendCommand, TpmPcrExtendResponse, TpmPcrReadCommand,
    TpmPcrReadResponse, TpmPolicyAuthorizeCommand, TpmPolicyAuthorizeResponse, TpmPolicyNvCommand,
    TpmPolicyNvResponse, TpmPolicyPcrCommand, TpmPolicyPcrResponse, TpmReadPublicCommand,
    TpmReadPublicResponse, TpmStartAuthSessionCommand, TpmStartAuthSessionResponse,
    TpmUnsealCommand, TpmUnsealResponse, TpmVerifySignatureCommand, TpmVerifySignatureResponse,
};
use tpm2_protocol::{TpmError, TpmMarshal, TpmSized, TpmUnmarshal as _, TpmWriter};
use zeroize::Zeroizing;

use channel::{Auth, Carrier, Entity, Hidden, run};
use session::{Opening, Session};
use template::{cipher, parent_public, public_of, selection};

/// The kernel's device with its resource manager.
const DEVICE: &str = "/dev/tpmrm0";
/// The persistent handle of our storage key, among those of the owner.
const PARENT: u32 = 0x8100_ca5e;
/// The NV index that records whether the operator has seen the recovery key. Only the owner can
/// change it; control of the machine does not suffice.
const SHOWN_INDEX: u32 = FLOOR_INDEX + 1;
const NOT_SHOWN: u64 = 0;
const SHOWN: u64 = 1;
/// The event that is extended into PCR 11 once the key is open: nothing that runs later in this
/// boot can open it again.
const OPENED: &[u8] = b"casemate: the storage key is open";
/// `TPM_PT_PERMANENT` and its first bit, `ownerAuthSet` (part 2, 8.6).
const PROPERTY_PERMANENT: u32 = 0x200;
const OWNER_IS_SET: u32 = 1;
/// `TPM_RC_INTEGRITY`: the object was sealed by another TPM.
const RC_INTEGRITY: u32 = 0x9f;
/// PCRs whose values are stored, to report later which has changed.
pub(crate) const WATCHED: [u8; 6] = [0, 2, 4, PLATFORM_PCR, IMAGE_PCRS[0], IMAGE_PCRS[1]];

/// A failure of the TPM.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("the TPM cannot be reached: {0}")]
    Carrier(#[from] io::Error),
    #[error("the TPM answers command {command:#x} with {code:#x}")]
    Refused { command: u32, code: u32 },
    #[error("an answer of the TPM is malformed: {0}")]
    Malformed(String),
    #[error("an answer does not come from the TPM: its proof is wrong")]
    Forged,
    #[error("the kernel gives no random numbers")]
    Random,
    #[error("the TPM has no PCRs of SHA-256: turn the bank on in the firmware")]
    NoBank,
}

impl From<TpmError> for Fault {
    fn from(error: TpmError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl Fault {
    /// The handle or NV index does not exist (`TPM_RC_HANDLE`), or was never written
    /// (`TPM_RC_NV_UNINITIALIZED`).
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code & 0xbf == 0x8b || *code == 0x14a)
    }

    /// The authorization value was wrong (`TPM_RC_AUTH_FAIL`, `TPM_RC_BAD_AUTH`).
    pub(crate) fn is_authorization(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if matches!(code & 0xbf, 0x8e | 0xa2))
    }

    /// The sealed object does not belong to this TPM (`TPM_RC_INTEGRITY` of `TPM2_Load`).
    pub(crate) fn is_foreign(&self) -> bool {
        let load = TpmCc::Load.value();
        matches!(self, Self::Refused { command, code } if *command == load && code & 0xbf == RC_INTEGRITY)
    }
}

/// A sealed object, as the TPM returns it; it holds no secret in clear.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sealed {
    #[serde(with = "hex::serde")]
    public: Vec<u8>,
    #[serde(with = "hex::serde")]
    private: Vec<u8>,
}

/// A TPM and the carrier of its commands.
pub(crate) struct Tpm {
    carrier: Box<dyn Carrier>,
}

/// Our storage key, the parent of what we seal.
struct Parent {
    entity: Entity,
    point: TpmsEccPoint,
}

impl Tpm {
    /// The machine's TPM, if it has one.
    pub(crate) fn open() -> Result<Option<Self>, Fault> {
        match File::options().read(true).write(true).open(DEVICE) {
            Ok(device) => Ok(Some(Self::over(Box::new(device)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The TPM at the other end of a carrier.
    pub(crate) fn over(carrier: Box<dyn Carrier>) -> Self {
        Self { carrier }
    }

    /// Values of the watched PCRs.
    pub(crate) fn pcrs(&mut self) -> Result<BTreeMap<u8, PcrValue>, Fault> {
        let command = TpmPcrReadCommand {
            handles: [],
            pcr_selection_in: selection(&WATCHED)?,
        };
        let read: TpmPcrReadResponse = run(&mut *self.carrier, &command, &[], Auth::None)?;
        // Without the SHA-256 bank, the TPM returns no value.
        if read.pcr_values.iter().count() != WATCHED.len() {
            return Err(Fault::NoBank);
        }
        let value = |(pcr, digest): (&u8, &Tpm2bDigest)| {
            let value = digest.as_ref().try_into().map_err(|_| Fault::NoBank)?;
            Ok((*pcr, PcrValue(value)))
        };
        // The values come in the order of the PCRs' numbers.
        WATCHED
            .iter()
            .zip(read.pcr_values.iter())
            .map(value)
            .collect()
    }

    /// Whether the owner's authorization is set.
    pub(crate) fn is_owned(&mut self) -> Result<bool, Fault> {
        let command = TpmGetCapabilityCommand {
            handles: [],
            cap: TpmCap::TpmProperties,
            property: TpmUint32::from(PROPERTY_PERMANENT),
            property_count: TpmUint32::from(1),
        };
        let read: TpmGetCapabilityResponse = run(&mut *self.carrier, &command, &[], Auth::None)?;
        let TpmuCapabilities::TpmProperties(properties) = read.capability_data.data else {
            return Err(Fault::Malformed("it describes another capability".into()));
        };
        let permanent = properties
            .iter()
            .find(|property| property.property.value() == PROPERTY_PERMANENT)
            .ok_or_else(|| Fault::Malformed("it does not tell whether it has an owner".into()))?;
        Ok(permanent.value.value() & OWNER_IS_SET != 0)
    }

    /// Changes the owner's authorization value; also tests whether `from` is the present one.
    pub(crate) fn set_owner(&mut self, from: &[u8], to: &[u8]) -> Result<(), Fault> {
        let parent = self.parent(from)?;
        let mut session = self.session(&parent, TpmSe::Hmac)?;
        let hierarchy = Entity::permanent(TpmRh::Owner as u32);
        let command = TpmHierarchyChangeAuthCommand {
            handles: [handle(hierarchy.handle)],
            new_auth: Tpm2bAuth::try_from(to)?,
        };
        // The answer is proven with the new value (part 1, 19.6.10).
        let auth = Auth::Changing(&mut session, from, to);
        let changed = run(&mut *self.carrier, &command, &[&hierarchy], auth);
        self.flush(session.handle)?;
        changed.map(|_: TpmHierarchyChangeAuthResponse| ())
    }

    /// Clears the TPM: all sealed objects and the owner are gone.
    pub(crate) fn clear(&mut self) -> Result<(), Fault> {
        let lockout = Entity::permanent(TpmRh::Lockout as u32);
        let command = TpmClearCommand {
            handles: [handle(lockout.handle)],
        };
        let auth = Auth::Password(&[]);
        let _cleared: TpmClearResponse = run(&mut *self.carrier, &command, &[&lockout], auth)?;
        Ok(())
    }

    /// Seals a secret to this TPM under a policy.
    pub(crate) fn seal(
        &mut self,
        owner: &[u8],
        secret: &[u8],
        policy: &[u8; 32],
    ) -> Result<Sealed, Fault> {
        let parent = self.parent(owner)?;
        let mut session = self.session(&parent, TpmSe::Hmac)?;
        let public = TpmtPublic {
            object_type: TpmAlgId::KeyedHash,
            name_alg: TpmAlgId::Sha256,
            object_attributes: TpmaObject::FIXED_TPM | TpmaObject::FIXED_PARENT | TpmaObject::NO_DA,
            auth_policy: Tpm2bDigest::try_from(&policy[..])?,
            parameters: TpmuPublicParms::KeyedHash(TpmsKeyedhashParms {
                scheme: tpm2_protocol::data::TpmtKeyedhashScheme {
                    scheme: TpmAlgId::Null,
                    details: tpm2_protocol::data::TpmuKeyedhashScheme::Null,
                },
            }),
            unique: TpmuPublicId::KeyedHash(Tpm2bDigest::default()),
        };
        let command = TpmCreateCommand {
            handles: [handle(parent.entity.handle)],
            in_sensitive: Tpm2bSensitiveCreate {
                inner: TpmsSensitiveCreate {
                    user_auth: Tpm2bAuth::default(),
                    data: Tpm2bSensitiveData::try_from(secret)?,
                },
            },
            in_public: Tpm2bPublic { inner: public },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let auth = Auth::Session(&mut session, &[], Hidden::Command);
        let made = run(&mut *self.carrier, &command, &[&parent.entity], auth);
        self.flush(session.handle)?;
        let made: TpmCreateResponse = made?;
        Ok(Sealed {
            public: bytes(&made.out_public)?,
            private: made.out_private.as_ref().to_vec(),
        })
    }

    /// Opens an object that was sealed under an image's key: in a boot that the key has approved,
    /// and with PCR 7 as at sealing.
    pub(crate) fn unseal(
        &mut self,
        sealed: &Sealed,
        key: &ImageKey,
        signed: &SignedApproval,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let Some(parent) = self.find_parent()? else {
            // A cleared TPM has lost its storage key, and none of the objects under it can be
            // loaded.
            return Err(Fault::Refused {
                command: TpmCc::Load.value(),
                code: RC_INTEGRITY,
            });
        };
        let (public, _) = Tpm2bPublic::unmarshal(&sealed.public)?;
        let command = TpmLoadCommand {
            handles: [handle(parent.entity.handle)],
            in_private: Tpm2bPrivate::try_from(&sealed.private[..])?,
            in_public: public,
        };
        let auth = Auth::Password(&[]);
        let loaded: TpmLoadResponse = run(&mut *self.carrier, &command, &[&parent.entity], auth)?;
        let object = Entity {
            handle: loaded.handles[0].value(),
            name: loaded.name.as_ref().to_vec(),
        };
        let mut session = self.session(&parent, TpmSe::Policy)?;
        let opened = self
            .satisfy(session.handle, key, signed)
            .and_then(|()| self.open_in(&mut session, &object));
        self.flush(session.handle)?;
        self.flush(object.handle)?;
        opened
    }

    fn open_in(
        &mut self,
        session: &mut Session,
        object: &Entity,
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let command = TpmUnsealCommand {
            handles: [handle(object.handle)],
        };
        let auth = Auth::Session(session, &[], Hidden::Response);
        let opened: TpmUnsealResponse = run(&mut *self.carrier, &command, &[object], auth)?;
        Ok(Zeroizing::new(opened.out_data.as_ref().to_vec()))
    }

    /// Satisfies the policy of `casemate-measured-boot`, step by step.
    fn satisfy(
        &mut self,
        session: u32,
        key: &ImageKey,
        signed: &SignedApproval,
    ) -> Result<(), Fault> {
        self.policy_pcr(session, &IMAGE_PCRS)?;
        let index = self.entity(FLOOR_INDEX)?;
        let command = TpmPolicyNvCommand {
            handles: [handle(FLOOR_INDEX), handle(FLOOR_INDEX), handle(session)],
            operand_b: Tpm2bMaxBuffer::try_from(
                &signed.approval.version.as_u64().to_be_bytes()[..],
            )?,
            offset: TpmUint16::from(0),
            operation: TpmEo::UnsignedLe,
        };
        let auth = Auth::Password(&[]);
        let _asserted: TpmPolicyNvResponse =
            run(&mut *self.carrier, &command, &[&index, &index], auth)?;

        let loaded: TpmLoadExternalResponse = {
            let command = channel::LoadPublic(public_of(key)?);
            run(&mut *self.carrier, &command, &[], Auth::None)?
        };
        let key_handle = loaded.handles[0].value();
        let authorized = self.authorize(session, key_handle, &loaded.name, signed);
        self.flush(key_handle)?;
        authorized?;
        self.policy_pcr(session, &[PLATFORM_PCR])
    }

    fn authorize(
        &mut self,
        session: u32,
        key: u32,
        name: &Tpm2bName,
        signed: &SignedApproval,
    ) -> Result<(), Fault> {
        let policy = signed.approval.policy();
        // The reference of the policy is empty.
        let approved = digest(&SHA256, &policy);
        let command = TpmVerifySignatureCommand {
            handles: [handle(key)],
            digest: Tpm2bDigest::try_from(approved.as_ref())?,
            signature: TpmtSignature {
                sig_alg: TpmAlgId::Rsassa,
                signature: TpmuSignature::Rsassa(TpmsSignatureRsa {
                    hash: TpmAlgId::Sha256,
                    sig: Tpm2bPublicKeyRsa::try_from(&signed.signature[..])?,
                }),
            },
        };
        let verified: TpmVerifySignatureResponse =
            run(&mut *self.carrier, &command, &[], Auth::None)?;
        let command = TpmPolicyAuthorizeCommand {
            handles: [handle(session)],
            approved_policy: Tpm2bDigest::try_from(&policy[..])?,
            policy_ref: Tpm2bNonce::default(),
            key_sign: *name,
            check_ticket: verified.validation,
        };
        let _authorized: TpmPolicyAuthorizeResponse =
            run(&mut *self.carrier, &command, &[], Auth::None)?;
        Ok(())
    }

    fn policy_pcr(&mut self, session: u32, pcrs: &[u8]) -> Result<(), Fault> {
        let command = TpmPolicyPcrCommand {
            handles: [handle(session)],
            // The present values of the PCRs.
            pcr_digest: Tpm2bDigest::default(),
            pcrs: selection(pcrs)?,
        };
        let _asserted: TpmPolicyPcrResponse = run(&mut *self.carrier, &command, &[], Auth::None)?;
        Ok(())
    }

    /// Prevents that anything sealed is opened again before the next boot.
    pub(crate) fn end_opening(&mut self) -> Result<(), Fault> {
        let pcr = Entity::permanent(IMAGE_PCRS[0].into());
        let event = digest(&SHA256, OPENED);
        let mut digests = TpmlDigestValues::default();
        digests.try_push(TpmtHa {
            hash_alg: TpmAlgId::Sha256,
            digest: TpmuHa::Digest(TpmBuffer::try_from(event.as_ref())?),
        })?;
        let command = TpmPcrExtendCommand {
            handles: [handle(pcr.handle)],
            digests,
        };
        let auth = Auth::Password(&[]);
        let _extended: TpmPcrExtendResponse = run(&mut *self.carrier, &command, &[&pcr], auth)?;
        Ok(())
    }

    /// Our storage key; it is made if it does not exist.
    fn parent(&mut self, owner: &[u8]) -> Result<Parent, Fault> {
        if let Some(parent) = self.find_parent()? {
            return Ok(parent);
        }
        // The owner's authorization value is never sent in clear: a TPM that has an owner had a
        // storage key, with which a session encrypts.
        if !owner.is_empty() {
            return Err(Fault::Malformed("its storage key is gone".into()));
        }
        let hierarchy = Entity::permanent(TpmRh::Owner as u32);
        let command = TpmCreatePrimaryCommand {
            handles: [handle(hierarchy.handle)],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic {
                inner: parent_public(),
            },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let auth = Auth::Password(owner);
        let made: TpmCreatePrimaryResponse =
            run(&mut *self.carrier, &command, &[&hierarchy], auth)?;
        let transient = Entity {
            handle: made.handles[0].value(),
            name: made.name.as_ref().to_vec(),
        };
        let command = TpmEvictControlCommand {
            handles: [handle(hierarchy.handle), handle(transient.handle)],
            persistent_handle: handle(PARENT),
        };
        let entities = [&hierarchy, &transient];
        let kept = run(
            &mut *self.carrier,
            &command,
            &entities,
            Auth::Password(owner),
        );
        self.flush(transient.handle)?;
        kept.map(|_: TpmEvictControlResponse| ())?;
        self.find_parent()?
            .ok_or_else(|| Fault::Malformed("its storage key does not persist".into()))
    }

    fn find_parent(&mut self) -> Result<Option<Parent>, Fault> {
        let command = TpmReadPublicCommand {
            handles: [handle(PARENT)],
        };
        let read: TpmReadPublicResponse = match run(&mut *self.carrier, &command, &[], Auth::None) {
            Err(fault) if Fault::is_absence(&fault) => return Ok(None),
            read => read?,
        };
        let mut public = read.out_public.inner;
        match std::mem::replace(&mut public.unique, parent_public().unique) {
            // The key was made by this TPM, so that no program knows its private half.
            TpmuPublicId::Ecc(point) if public == parent_public() => Ok(Some(Parent {
                entity: Entity {
                    handle: PARENT,
                    name: read.name.as_ref().to_vec(),
                },
                point,
            })),
            _ => Err(Fault::Malformed(
                "its storage key is of another kind".into(),
            )),
        }
    }

    fn session(&mut self, parent: &Parent, kind: TpmSe) -> Result<Session, Fault> {
        let opening = Opening::with(&parent.point)?;
        let command = TpmStartAuthSessionCommand {
            handles: [handle(parent.entity.handle), handle(TpmRh::Null as u32)],
            nonce_caller: Tpm2bNonce::try_from(&opening.nonce_caller[..])?,
            encrypted_salt: Tpm2bEncryptedSecret::try_from(&bytes(&opening.point)?[..])?,
            session_type: kind,
            symmetric: cipher(),
            auth_hash: TpmAlgId::Sha256,
        };
        let started: TpmStartAuthSessionResponse =
            run(&mut *self.carrier, &command, &[], Auth::None)?;
        Ok(opening.opened(started.handles[0].value(), started.nonce_tpm.as_ref()))
    }

    fn flush(&mut self, used: u32) -> Result<(), Fault> {
        let command = TpmFlushContextCommand {
            handles: [],
            flush_handle: handle(used),
        };
        let _flushed: TpmFlushContextResponse = run(&mut *self.carrier, &command, &[], Auth::None)?;
        Ok(())
    }
}

fn handle(value: u32) -> TpmHandle {
    TpmHandle::from(value)
}

fn bytes<T: TpmMarshal + TpmSized>(value: &T) -> Result<Vec<u8>, Fault> {
    let mut buffer = vec![0; value.len()];
    let mut writer = TpmWriter::new(&mut buffer);
    value.marshal(&mut writer)?;
    Ok(buffer)
}

#[cfg(test)]
pub(crate) mod tests;
