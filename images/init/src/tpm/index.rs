//! Values in the TPM's NV memory (TPM 2.0 part 1, 37): every program may read them, the owner
//! writes them.

use super::*;

impl Tpm {
    /// The version floor, if there is one.
    pub(crate) fn floor(&mut self) -> Result<Option<u64>, Fault> {
        self.number(FLOOR_INDEX)
    }

    /// Whether the operator has seen the recovery key. Where this is unknown, it counts as seen.
    pub(crate) fn recovery_was_shown(&mut self) -> Result<bool, Fault> {
        Ok(self.number(SHOWN_INDEX)? != Some(NOT_SHOWN))
    }

    fn number(&mut self, index: u32) -> Result<Option<u64>, Fault> {
        let entity = match self.entity(index) {
            Err(fault) if fault.is_absence() => return Ok(None),
            entity => entity?,
        };
        let command = TpmNvReadCommand {
            handles: [handle(index), handle(index)],
            size: TpmUint16::from(FLOOR_BYTES),
            offset: TpmUint16::from(0),
        };
        let entities = [&entity, &entity];
        let read = run(&mut *self.carrier, &command, &entities, Auth::Password(&[]));
        let read: TpmNvReadResponse = match read {
            Err(fault) if Fault::is_absence(&fault) => return Ok(None),
            read => read?,
        };
        let bytes = read.data.as_ref().try_into();
        let bytes =
            bytes.map_err(|_| Fault::Malformed("the version floor is not a number".into()))?;
        Ok(Some(u64::from_be_bytes(bytes)))
    }

    /// Whether the index of the floor exists, written or not.
    pub(crate) fn has_floor_index(&mut self) -> Result<bool, Fault> {
        match self.entity(FLOOR_INDEX) {
            Err(fault) if fault.is_absence() => Ok(false),
            entity => entity.map(|_| true),
        }
    }

    /// Makes our indexes anew: the floor at this version, and whether the recovery key was shown.
    pub(crate) fn make_indexes(
        &mut self,
        owner: &[u8],
        floor: u64,
        was_shown: bool,
    ) -> Result<(), Fault> {
        let shown = if was_shown { SHOWN } else { NOT_SHOWN };
        self.as_owner(owner, |tpm, session| {
            tpm.make_index(session, owner, FLOOR_INDEX, floor)?;
            tpm.make_index(session, owner, SHOWN_INDEX, shown)
        })
    }

    /// Records that the operator has seen the recovery key.
    pub(crate) fn set_recovery_shown(&mut self, owner: &[u8]) -> Result<(), Fault> {
        self.as_owner(owner, |tpm, session| {
            tpm.write(session, owner, SHOWN_INDEX, SHOWN)
        })
    }

    /// Raises the floor, and never lowers it.
    pub(crate) fn raise_floor(&mut self, owner: &[u8], version: u64) -> Result<(), Fault> {
        match self.floor()? {
            Some(floor) if floor >= version => return Ok(()),
            Some(_) => {}
            None => return Err(Fault::Malformed("the version floor is gone".into())),
        }
        self.as_owner(owner, |tpm, session| {
            tpm.write(session, owner, FLOOR_INDEX, version)
        })
    }

    fn as_owner<T>(
        &mut self,
        owner: &[u8],
        what: impl FnOnce(&mut Self, &mut Session) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let parent = self.parent(owner)?;
        let mut session = self.session(&parent, TpmSe::Hmac)?;
        let done = what(self, &mut session);
        self.flush(session.handle)?;
        done
    }

    fn make_index(
        &mut self,
        session: &mut Session,
        owner: &[u8],
        index: u32,
        value: u64,
    ) -> Result<(), Fault> {
        let hierarchy = Entity::permanent(TpmRh::Owner as u32);
        match self.entity(index) {
            Err(fault) if fault.is_absence() => {}
            Err(fault) => return Err(fault),
            Ok(entity) => {
                let command = TpmNvUndefineSpaceCommand {
                    handles: [handle(hierarchy.handle), handle(index)],
                };
                let auth = Auth::Session(session, owner, Hidden::Nothing);
                let entities = [&hierarchy, &entity];
                let _gone: TpmNvUndefineSpaceResponse =
                    run(&mut *self.carrier, &command, &entities, auth)?;
            }
        }
        let command = TpmNvDefineSpaceCommand {
            handles: [handle(hierarchy.handle)],
            auth: Tpm2bAuth::default(),
            public_info: Tpm2bNvPublic {
                inner: TpmsNvPublic {
                    nv_index: handle(index),
                    name_alg: TpmAlgId::Sha256,
                    attributes: TpmaNv::from_bits_truncate(FLOOR_ATTRIBUTES),
                    auth_policy: Tpm2bDigest::default(),
                    data_size: TpmUint16::from(FLOOR_BYTES),
                },
            },
        };
        let auth = Auth::Session(session, owner, Hidden::Command);
        let _defined: TpmNvDefineSpaceResponse =
            run(&mut *self.carrier, &command, &[&hierarchy], auth)?;
        self.write(session, owner, index, value)
    }

    fn write(
        &mut self,
        session: &mut Session,
        owner: &[u8],
        index: u32,
        value: u64,
    ) -> Result<(), Fault> {
        let hierarchy = Entity::permanent(TpmRh::Owner as u32);
        let entity = self.entity(index)?;
        let command = TpmNvWriteCommand {
            handles: [handle(hierarchy.handle), handle(index)],
            data: Tpm2bMaxNvBuffer::try_from(&value.to_be_bytes()[..])?,
            offset: TpmUint16::from(0),
        };
        let auth = Auth::Session(session, owner, Hidden::Nothing);
        let entities = [&hierarchy, &entity];
        let _written: TpmNvWriteResponse = run(&mut *self.carrier, &command, &entities, auth)?;
        Ok(())
    }

    /// The handle and name of one of our NV indexes.
    pub(super) fn entity(&mut self, index: u32) -> Result<Entity, Fault> {
        let command = TpmNvReadPublicCommand {
            handles: [handle(index)],
        };
        let read: TpmNvReadPublicResponse = run(&mut *self.carrier, &command, &[], Auth::None)?;
        Ok(Entity {
            handle: index,
            name: read.nv_name.as_ref().to_vec(),
        })
    }
}
