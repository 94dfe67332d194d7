//! Sends commands to a TPM and parses its answers, over any carrier.

use std::io::{Read, Write};

use casemate_measured_boot::sha256;
use tpm2_protocol::basic::{TpmHandle, TpmUint16, TpmUint32};
use tpm2_protocol::constant::TPM_MAX_COMMAND_SIZE;
use tpm2_protocol::data::{
    Tpm2bAuth, Tpm2bNonce, Tpm2bPublic, TpmCc, TpmRh, TpmSt, TpmaSession, TpmsAuthCommand,
};
use tpm2_protocol::frame::{TpmFrame, TpmMarshalBody, TpmUnmarshalBody};
use tpm2_protocol::{TpmMarshal, TpmResult, TpmSized, TpmWriter};

use super::Fault;
use super::session::Session;

/// Length of tag, size and code.
const HEADER_BYTES: usize = 10;

/// A carrier of commands: the kernel's device, or an emulator's socket.
pub(crate) trait Carrier: Read + Write {}
impl<T: Read + Write> Carrier for T {}

/// An object of a command: its handle, and the name (part 1, 16) by which a session knows it.
#[derive(Debug, Clone)]
pub(super) struct Entity {
    pub(super) handle: u32,
    pub(super) name: Vec<u8>,
}

impl Entity {
    /// A hierarchy or a PCR, whose handle is its name.
    pub(super) fn permanent(handle: u32) -> Self {
        Self {
            handle,
            name: handle.to_be_bytes().to_vec(),
        }
    }
}

/// The parameter that is encrypted on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hidden {
    Nothing,
    /// The first parameter of the command.
    Command,
    /// The first parameter of the response.
    Response,
}

/// How a command is authorized.
pub(super) enum Auth<'a> {
    /// No authorization.
    None,
    /// A password, which is visible on the way: an empty one, or one that is of no use to anybody
    /// yet.
    Password(&'a [u8]),
    /// A session, and the first entity's authorization value.
    Session(&'a mut Session, &'a [u8], Hidden),
    /// A session, for the command that replaces the authorization value.
    Changing(&'a mut Session, &'a [u8], &'a [u8]),
}

/// Sends a command for these entities and parses the response.
pub(super) fn run<C, R>(
    carrier: &mut dyn Carrier,
    command: &C,
    entities: &[&Entity],
    auth: Auth<'_>,
) -> Result<R, Fault>
where
    C: TpmFrame,
    R: TpmUnmarshalBody,
{
    let mut parameters = marshalled(|writer| command.marshal_parameters(writer))?;
    let mut session = None;
    let with = match auth {
        Auth::None => None,
        Auth::Password(value) => Some(Err(value)),
        Auth::Session(with, value, hidden) => Some(Ok((with, value, value, hidden))),
        Auth::Changing(with, from, to) => Some(Ok((with, from, to, Hidden::Command))),
    };
    let proof = match with {
        None => None,
        Some(Err(value)) => Some(TpmsAuthCommand {
            session_handle: TpmHandle::from(TpmRh::Pw as u32),
            hmac: Tpm2bAuth::try_from(value)?,
            ..TpmsAuthCommand::default()
        }),
        Some(Ok((with, value, after, hidden))) => {
            let nonce = with.next()?;
            let mut attributes = TpmaSession::CONTINUE_SESSION;
            match hidden {
                Hidden::Nothing => {}
                Hidden::Command => {
                    attributes |= TpmaSession::DECRYPT;
                    with.encrypt(value, first(&mut parameters)?);
                }
                Hidden::Response => attributes |= TpmaSession::ENCRYPT,
            }
            let code = command.cc().value().to_be_bytes();
            let mut parts: Vec<&[u8]> = vec![&code];
            parts.extend(entities.iter().map(|entity| &entity.name[..]));
            parts.push(&parameters);
            let tag = with.prove(value, &sha256(&parts), attributes);
            let proof = TpmsAuthCommand {
                session_handle: TpmHandle::from(with.handle),
                nonce: Tpm2bNonce::try_from(&nonce[..])?,
                session_attributes: attributes,
                hmac: Tpm2bAuth::try_from(tag.as_ref())?,
            };
            session = Some((with, after, hidden));
            Some(proof)
        }
    };
    let request = frame(command, proof.as_ref(), &parameters)?;
    let answer = exchange(carrier, &request)?;
    let answer = Answer::read(&answer, command.cc().value(), R::HANDLES)?;
    let mut parameters = answer.parameters.to_vec();
    if let Some((session, value, hidden)) = session {
        let (nonce, attributes, proof) = answer.proof()?;
        let code = command.cc().value().to_be_bytes();
        let digest = sha256(&[&[0; 4], &code, &parameters]);
        session.check(value, &digest, nonce, attributes, proof)?;
        if hidden == Hidden::Response {
            session.decrypt(value, first(&mut parameters)?);
        }
    }
    Ok(R::unmarshal_body(answer.handles, &parameters)?)
}

fn frame<C: TpmFrame>(
    command: &C,
    proof: Option<&TpmsAuthCommand>,
    parameters: &[u8],
) -> Result<Vec<u8>, Fault> {
    let handles = marshalled(|writer| command.marshal_handles(writer))?;
    let (tag, proof) = match proof {
        None => (TpmSt::NoSessions, Vec::new()),
        Some(proof) => {
            let proof = marshalled(|writer| proof.marshal(writer))?;
            let length = u32::try_from(proof.len()).unwrap_or(u32::MAX);
            let proof = [&length.to_be_bytes()[..], &proof].concat();
            (TpmSt::Sessions, proof)
        }
    };
    let total = HEADER_BYTES + handles.len() + proof.len() + parameters.len();
    let size = TpmUint32::try_from(total).map_err(|_| Fault::Malformed("a long command".into()))?;
    let mut request = marshalled(|writer| {
        tag.marshal(writer)?;
        size.marshal(writer)?;
        command.cc().marshal(writer)
    })?;
    request.extend(handles);
    request.extend(proof);
    request.extend(parameters);
    Ok(request)
}

fn exchange(carrier: &mut dyn Carrier, request: &[u8]) -> Result<Vec<u8>, Fault> {
    carrier.write_all(request)?;
    let mut answer = Vec::new();
    let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
    loop {
        let read = carrier.read(&mut buffer)?;
        answer.extend(&buffer[..read]);
        let size = answer.get(2..6).and_then(|size| size.try_into().ok());
        let size = size.map(|size| u32::from_be_bytes(size) as usize);
        match size {
            Some(size) if size > TPM_MAX_COMMAND_SIZE => break,
            Some(size) if answer.len() >= size => return Ok(answer),
            _ if read == 0 => break,
            _ => {}
        }
    }
    Err(Fault::Malformed("it ends early".into()))
}

/// The parts of a response.
struct Answer<'a> {
    handles: &'a [u8],
    parameters: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Answer<'a> {
    fn read(bytes: &'a [u8], command: u32, handles: usize) -> Result<Self, Fault> {
        let mut rest = bytes;
        let tag = u16::from_be_bytes(take(&mut rest)?);
        let size = u32::from_be_bytes(take(&mut rest)?) as usize;
        let code = u32::from_be_bytes(take(&mut rest)?);
        if code != 0 {
            return Err(Fault::Refused { command, code });
        }
        if size != bytes.len() {
            return Err(Fault::Malformed("its length field does not match".into()));
        }
        let handles = cut(&mut rest, handles * 4)?;
        let parameters = if tag == TpmSt::Sessions.value() {
            let length = u32::from_be_bytes(take(&mut rest)?) as usize;
            cut(&mut rest, length)?
        } else {
            std::mem::take(&mut rest)
        };
        Ok(Self {
            handles,
            parameters,
            rest,
        })
    }

    /// The nonce, attributes and proof of the response's session.
    fn proof(&self) -> Result<(&'a [u8], u8, &'a [u8]), Fault> {
        let mut rest = self.rest;
        let sized = |rest: &mut &'a [u8]| {
            let length = u16::from_be_bytes(take(rest)?);
            cut(rest, length.into())
        };
        let nonce = sized(&mut rest)?;
        let [attributes] = take(&mut rest)?;
        Ok((nonce, attributes, sized(&mut rest)?))
    }
}

fn cut<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Fault> {
    let (head, tail) = rest
        .split_at_checked(length)
        .ok_or_else(|| Fault::Malformed("it is too short".into()))?;
    *rest = tail;
    Ok(head)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Fault> {
    let mut bytes = [0; N];
    bytes.copy_from_slice(cut(rest, N)?);
    Ok(bytes)
}

/// The content of the first parameter, which has a length field of 16 bits.
fn first(parameters: &mut [u8]) -> Result<&mut [u8], Fault> {
    let short = || Fault::Malformed("its first parameter is too short".into());
    let (length, rest) = parameters.split_first_chunk_mut().ok_or_else(short)?;
    rest.get_mut(..u16::from_be_bytes(*length).into())
        .ok_or_else(short)
}

fn marshalled(
    write: impl FnOnce(&mut TpmWriter<'_>) -> tpm2_protocol::TpmResult<()>,
) -> Result<Vec<u8>, Fault> {
    let mut buffer = [0; TPM_MAX_COMMAND_SIZE];
    let mut writer = TpmWriter::new(&mut buffer);
    write(&mut writer)?;
    Ok(writer.as_bytes().to_vec())
}

/// `TPM2_LoadExternal` of a public key alone; the library's command always has a private half.
#[derive(Debug)]
pub(super) struct LoadPublic(pub(super) Tpm2bPublic);

impl TpmSized for LoadPublic {
    const SIZE: usize = TPM_MAX_COMMAND_SIZE;

    fn len(&self) -> usize {
        size_of::<u16>() + self.0.len() + size_of::<u32>()
    }
}

impl TpmMarshal for LoadPublic {
    fn marshal(&self, writer: &mut TpmWriter<'_>) -> TpmResult<()> {
        self.marshal_parameters(writer)
    }
}

impl TpmMarshalBody for LoadPublic {
    fn marshal_handles(&self, _: &mut TpmWriter<'_>) -> TpmResult<()> {
        Ok(())
    }

    fn marshal_parameters(&self, writer: &mut TpmWriter<'_>) -> TpmResult<()> {
        TpmUint16::from(0).marshal(writer)?;
        self.0.marshal(writer)?;
        // Tickets of the owner's hierarchy are valid in any session.
        TpmRh::Owner.marshal(writer)
    }
}

impl TpmFrame for LoadPublic {
    fn cc(&self) -> TpmCc {
        TpmCc::LoadExternal
    }

    fn handles(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_answer_does_harm(bytes: Vec<u8>, handles in 0_usize..4) {
            if let Ok(answer) = Answer::read(&bytes, 1, handles) {
                let _ = answer.proof();
                let _ = first(&mut answer.parameters.to_vec());
            }
        }
    }
}
