//! Messages on the control channels between the supervisor and its programs.
//!
//! A control channel is a `SOCK_SEQPACKET` socket pair whose child end is file descriptor 0 of the
//! child. One packet holds one [`crate::frame`] of kind `control`, whose payload is one of these
//! enums in postcard encoding, and at most [`MAX_DESCRIPTORS`] descriptors. A payload over
//! [`MAX_INLINE_BYTES`] travels in a sealed memfd, which is then the packet's last descriptor; the
//! driver does that by itself. Each kind of message has a bound of its own
//! ([`Message::MAX_BYTES`]); a list that may be longer than that is said in [`parts`].
//!
//! A control channel's peer is never identified by what it claims: a worker is identified by the
//! descriptor that it was given.

pub mod gateway;
pub mod parts;
pub mod vault;
pub mod worker;

use serde::{Deserialize, Serialize};

/// Largest payload inside a packet, in bytes; larger ones travel in a memfd.
pub const MAX_INLINE_BYTES: usize = 32 * 1024;
/// Most descriptors in one packet, the memfd of a large payload not counted.
pub const MAX_DESCRIPTORS: usize = 3;

/// A message of a control channel.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// Largest encoding, in bytes, for sending and receiving: the most that an honest sender has to
    /// send, and so the most memory that a hostile one can occupy at the receiver.
    const MAX_BYTES: usize;
}

/// SHA-256 of an object, or an id made from one.
pub type Digest = [u8; 32];

/// One worker process in the lifetime of this supervisor; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

/// A function of a tenant, the subject of routes, workers and logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FunctionKey {
    /// The tenant's id.
    pub tenant: Digest,
    /// The function's name within the tenant.
    pub function: String,
}

/// Memory that a worker may use beyond its function's heap, MiB: the program, V8, buffers and code.
/// The worker enforces it, and its cgroup allows for it.
pub const WORKER_OVERHEAD_MIB: u32 = 192;

/// The limits in a release that bound a running function. Zero is never "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// CPU time of one request, milliseconds of thread time.
    pub cpu_time_ms: u32,
    /// Wall-clock time of one request until its response ends, milliseconds.
    pub wall_time_ms: u32,
    /// JavaScript heap, MiB.
    pub heap_mib: u32,
    /// Outgoing calls of one request.
    pub subrequests: u32,
    /// Requests in one worker at a time.
    pub concurrency: u32,
}

/// Why a request, or a worker, failed. Outsiders see the snake-case name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// More CPU time than the release allows.
    ExceededCpu,
    /// More heap, buffers or resident memory than the release allows.
    ExceededMemory,
    /// More wall-clock time than the release allows.
    ExceededWall,
    /// The handler threw, or returned an invalid response.
    Exception,
    /// An uncaught refusal of an outgoing call that the release does not allow.
    EgressDenied,
    /// The worker's process ended without a reason.
    WorkerLost,
    /// The function could not be loaded.
    LoadFailed,
    /// No worker is available: the node is at its limit or draining.
    Unavailable,
    /// An uncaught refusal of an outgoing call: the node's lease is over, so it uses no
    /// credentials.
    LeaseExpired,
    /// An uncaught refusal of an outgoing call: the credential that it needs may not be used now.
    CredentialUnusable,
}

/// State of one layer of a program's sandbox, for status and logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The layer's name, as in `require = [...]`.
    pub layer: String,
    /// Whether the layer is in force.
    pub in_force: bool,
    /// The mechanism (`cgroup v1`), or why it is not in force.
    pub detail: String,
}

/// Reset codes below this are the channel's own.
const FIRST_FAILURE_CODE: u16 = 16;

impl Failure {
    const ALL: [Self; 10] = [
        Self::ExceededCpu,
        Self::ExceededMemory,
        Self::ExceededWall,
        Self::Exception,
        Self::EgressDenied,
        Self::WorkerLost,
        Self::LoadFailed,
        Self::Unavailable,
        Self::LeaseExpired,
        Self::CredentialUnusable,
    ];

    /// The snake-case name that outsiders see.
    pub fn code(self) -> &'static str {
        match self {
            Self::ExceededCpu => "exceeded_cpu",
            Self::ExceededMemory => "exceeded_memory",
            Self::ExceededWall => "exceeded_wall",
            Self::Exception => "exception",
            Self::EgressDenied => "egress_denied",
            Self::WorkerLost => "worker_lost",
            Self::LoadFailed => "load_failed",
            Self::Unavailable => "unavailable",
            Self::LeaseExpired => "credential_lease_expired",
            Self::CredentialUnusable => "credential_unusable",
        }
    }

    /// The code of a stream that is reset for this failure.
    pub fn to_reset(self) -> u16 {
        FIRST_FAILURE_CODE
            + Self::ALL
                .iter()
                .position(|other| *other == self)
                .expect("ALL has every failure") as u16
    }

    /// The failure of a stream's reset code; `None` for the channel's own codes.
    pub fn from_reset(code: u16) -> Option<Self> {
        Self::ALL
            .get(usize::from(code.checked_sub(FIRST_FAILURE_CODE)?))
            .copied()
    }
}

/// Encodes a message.
///
/// # Errors
/// The encoding exceeds [`Message::MAX_BYTES`].
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, MessageError> {
    let bytes = postcard::to_stdvec(message).map_err(MessageError::Format)?;
    must_fit::<M>(&bytes)?;
    Ok(bytes)
}

/// Decodes a message from all of these bytes.
///
/// # Errors
/// The bytes are too long, or not such a message.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, MessageError> {
    must_fit::<M>(bytes)?;
    match postcard::take_from_bytes(bytes).map_err(MessageError::Format)? {
        (message, []) => Ok(message),
        (_, rest) => Err(MessageError::Trailing(rest.len())),
    }
}

fn must_fit<M: Message>(bytes: &[u8]) -> Result<(), MessageError> {
    if bytes.len() > M::MAX_BYTES {
        return Err(MessageError::TooLarge {
            most: M::MAX_BYTES,
            got: bytes.len(),
        });
    }
    Ok(())
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The message is too long.
    #[error("expected a message of at most {most} bytes, got {got}")]
    TooLarge {
        /// [`Message::MAX_BYTES`].
        most: usize,
        /// The size that came.
        got: usize,
    },
    /// The bytes are not such a message.
    #[error("the bytes are not a message of the expected kind")]
    Format(#[source] postcard::Error),
    /// More bytes follow the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_and_reset_codes() {
        for failure in Failure::ALL {
            assert_eq!(Failure::from_reset(failure.to_reset()), Some(failure));
        }
        assert_eq!(Failure::from_reset(crate::RESET_CANCELLED), None);
        assert_eq!(Failure::from_reset(u16::MAX), None);
    }

    #[test]
    fn messages_round_trip_whole() {
        let message = worker::ToWorker::Stop { grace_ms: 7 };
        let mut bytes = encode(&message).unwrap();
        assert_eq!(decode::<worker::ToWorker>(&bytes).unwrap(), message);
        bytes.push(0);
        assert_eq!(
            decode::<worker::ToWorker>(&bytes),
            Err(MessageError::Trailing(1))
        );
    }

    #[test]
    fn a_message_over_its_own_bound_is_neither_sent_nor_read() {
        let long = worker::FromWorker::LoadFailed {
            message: "x".repeat(worker::FromWorker::MAX_BYTES),
        };
        assert!(matches!(
            encode(&long),
            Err(MessageError::TooLarge {
                most: MAX_INLINE_BYTES,
                ..
            })
        ));
        let bytes = postcard::to_stdvec(&long).unwrap();
        assert!(matches!(
            decode::<worker::FromWorker>(&bytes),
            Err(MessageError::TooLarge { .. })
        ));
    }
}
