//! Events: from launch to the supervisor.

use std::num::NonZeroU32;

use super::packet::{Fields, Malformed, NOTE_BYTES, PACKET_BYTES, noted, packet};
use super::program::Program;

/// An event for the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A predecessor of this supervisor has started the child, which runs. Comes with the
    /// supervisor's end of the child's control socket. An argument at a successor's start holds the
    /// number of these events, which come first.
    Adopted {
        /// The child's id in every event about it.
        id: u64,
        /// The program.
        program: Program,
        /// Its process id, as launch sees it.
        pid: u32,
        /// Memory limit, MiB; 0 for none.
        memory_mib: u32,
        /// The tenant to which the worker is assigned.
        tenant: Option<NonZeroU32>,
        /// The earlier supervisor's last note; zeroes for none.
        note: [u8; NOTE_BYTES],
    },
    /// Launch holds this listening socket. Comes with the socket. An argument at a supervisor's
    /// start holds the number of these events, which come first, before the children.
    Held {
        /// The socket's number.
        id: u64,
    },
    /// The child runs its program.
    Started {
        /// The child.
        id: u64,
        /// Its process id, as launch sees it.
        pid: u32,
    },
    /// The child was not started.
    Refused {
        /// The child.
        id: u64,
        /// The reason.
        refusal: Refusal,
    },
    /// The child has ended, and its cgroup is gone.
    Exited {
        /// The child.
        id: u64,
        /// How the child ended.
        end: End,
    },
}

/// Why a child was not started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `CHILDREN_MAX` children are alive, or the one vault or gateway is.
    Busy,
    /// A live child has this id.
    Duplicate,
    /// The descriptor is not a `SOCK_SEQPACKET` socket.
    NotAControlSocket,
    /// A worker has no limit.
    Unlimited,
    /// The kernel refused a step, with this errno; launch's log names the step.
    Failed(i32),
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exit(i32),
    /// This signal ended it. 31 is `SIGSYS`: a system call outside its policy.
    Signal(i32),
    /// The kernel ended it because it reached its memory limit.
    OutOfMemory,
}

impl Event {
    /// Encodes the event.
    pub fn encode(&self) -> [u8; PACKET_BYTES] {
        match *self {
            Self::Held { id } => packet(11, 0, id, [0; 3]),
            Self::Started { id, pid } => packet(3, 0, id, [pid, 0, 0]),
            Self::Adopted {
                id,
                program,
                pid,
                memory_mib,
                tenant,
                note,
            } => {
                let tenant = tenant.map_or(0, NonZeroU32::get);
                let numbers = [pid, memory_mib, tenant];
                noted(packet(8, program.to_byte(), id, numbers), note)
            }
            Self::Refused { id, refusal } => {
                let (which, errno) = match refusal {
                    Refusal::Busy => (1, 0),
                    Refusal::Duplicate => (2, 0),
                    Refusal::NotAControlSocket => (3, 0),
                    Refusal::Unlimited => (4, 0),
                    Refusal::Failed(errno) => (5, errno),
                };
                packet(4, which, id, [errno.cast_unsigned(), 0, 0])
            }
            Self::Exited { id, end } => {
                let (which, code) = match end {
                    End::Exit(code) => (1, code),
                    End::Signal(signal) => (2, signal),
                    End::OutOfMemory => (3, 0),
                };
                packet(5, which, id, [code.cast_unsigned(), 0, 0])
            }
        }
    }

    /// Decodes an event.
    ///
    /// # Errors
    /// A byte has a forbidden value.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::read(bytes)?;
        let (id, number) = (fields.id, fields.first.cast_signed());
        let event = match (fields.kind, fields.which) {
            (3, _) => Self::Started {
                id,
                pid: fields.first,
            },
            (4, 1) => Self::Refused {
                id,
                refusal: Refusal::Busy,
            },
            (4, 2) => Self::Refused {
                id,
                refusal: Refusal::Duplicate,
            },
            (4, 3) => Self::Refused {
                id,
                refusal: Refusal::NotAControlSocket,
            },
            (4, 4) => Self::Refused {
                id,
                refusal: Refusal::Unlimited,
            },
            (4, 5) => Self::Refused {
                id,
                refusal: Refusal::Failed(number),
            },
            (5, 1) => Self::Exited {
                id,
                end: End::Exit(number),
            },
            (5, 2) => Self::Exited {
                id,
                end: End::Signal(number),
            },
            (5, 3) => Self::Exited {
                id,
                end: End::OutOfMemory,
            },
            (8, program) => Self::Adopted {
                id,
                program: Program::from_byte(program)?,
                pid: fields.first,
                memory_mib: fields.second,
                tenant: NonZeroU32::new(fields.third),
                note: fields.note,
            },
            (11, _) => Self::Held { id },
            _ => return Err(Malformed),
        };
        if event.encode() == bytes {
            Ok(event)
        } else {
            Err(Malformed)
        }
    }
}
