//! The protocol between the supervisor and `casemate-launch`: packets of 64 bytes, and nothing
//! else.
//!
//! The socket is a `SOCK_SEQPACKET` pair; the supervisor's end is its descriptor 0. A packet is, in little-endian order,
//!
//! | bytes | of a command | of an event |
//! |---|---|---|
//! | 0..4 | `CSMT` | `CSMT` |
//! | 4 | 1 start, 2 kill, 6 assign, 7 note, 9 hold, 10 release | 3 started, 4 refused, 5 exited, 8 adopted, 11 held |
//! | 5 | of start: the program | of refused: why; of exited: how; of adopted: the program |
//! | 6..8 | 0 | 0 |
//! | 8..16 | id | id |
//! | 16..20 | of start and assign: memory, MiB | of started and adopted: pid; of refused: errno; of exited: code or signal |
//! | 20..24 | of start: processes and threads; of assign: the tenant's number | of adopted: memory, MiB |
//! | 24..28 | of assign: memory of the tenant, MiB | of adopted: the tenant's number, 0 for none |
//! | 28..60 | of note: the note | of adopted: the note, 0 for none |
//! | 60..64 | 0 | 0 |
//!
//! Anything else is malformed: `casemate-launch` ends everything rather than guess.

mod client;
mod listener;

use std::num::NonZeroU32;

pub use client::Client;
pub use listener::{NotAListener, listener_address};

/// The variable in which launch passes its own namespaces to a child, as the links of /proc/self/ns
/// with spaces between: a child whose link differs has left launch's namespace.
pub const OUTER_NAMESPACES: &str = "CASEMATE_OUTER_NS";

/// Prefix of the variables that are passed on to every program; launch passes on no others.
pub const KEPT_VARIABLES: &str = "CASEMATE_LOG";

/// Prefix of the names of launch's cgroups: `casemate-{its pid}-{child's number}` for a child, and
/// `casemate-{its pid}.{name}` for a group of them.
pub const CGROUP_PREFIX: &str = "casemate-";

/// Length of every packet, in bytes.
pub const PACKET_BYTES: usize = 64;

/// Children alive at a time. Launch refuses more, because each costs it an entry in its table and a
/// user id.
pub const CHILDREN_MAX: usize = 4096;

/// Listening sockets that launch holds at most; more are ignored.
pub const SOCKETS_MAX: usize = casemate_wire::control::gateway::MAX_SOCKETS;

/// Length of a note about a child, in bytes: a release's digest.
pub const NOTE_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"CSMT";
/// Position of a note in a packet.
const NOTE: std::ops::Range<usize> = 28..28 + NOTE_BYTES;

/// A program that launch starts for the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Program {
    /// `casemate-vault`; one at a time.
    Vault,
    /// `casemate-gateway`; one at a time.
    Gateway,
    /// `casemate-worker`.
    Worker,
}

/// A command from the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Start a program. Comes with a `SOCK_SEQPACKET` socket, which becomes the child's standard input, and may come with its
    /// other end, which launch keeps for the supervisor's successor: without it the child does not outlive the supervisor.
    /// Answered by [`Event::Started`] or [`Event::Refused`].
    Start {
        /// The supervisor's name for the child, in every event about it. No live child may have it.
        id: u64,
        /// The program.
        program: Program,
        /// Memory limit, MiB; a worker needs one, for the others 0 means the machine's.
        memory_mib: u32,
        /// Processes and threads; a worker needs a limit, for the others 0 means none.
        pids: u32,
    },
    /// End a child at once. Answered by [`Event::Exited`]; without an answer if there is no such
    /// child, which may just have ended by itself.
    Kill {
        /// The child.
        id: u64,
    },
    /// Assign a spare worker to a tenant: the worker moves into the tenant's cgroup, and its own
    /// memory limit, which was that of the largest function, is lowered to its function's. Has no
    /// answer. Launch ends a worker that it cannot move or limit, ignores a limit that would be
    /// higher, and ignores a second tenant for the same worker. Without cgroups the command does
    /// nothing.
    Assign {
        /// The worker.
        id: u64,
        /// Memory limit of the worker, MiB: at most the one in force.
        memory_mib: NonZeroU32,
        /// The tenant: the supervisor's number for it among the tenants that have workers.
        tenant: NonZeroU32,
        /// Memory limit of all workers of the tenant together, MiB. The latest value counts.
        tenant_memory_mib: NonZeroU32,
    },
    /// Store a note about a child for the supervisor's successor. The latest note counts; a note
    /// about a child that is gone is ignored. Has no answer.
    Note {
        /// The child.
        id: u64,
        /// The note that the successor gets.
        note: [u8; NOTE_BYTES],
    },
    /// Hold a listening TCP socket, so that it stays open when the gateway, the supervisor or
    /// launch is restarted. Comes with the socket. Has no answer. Launch closes a descriptor that
    /// is not such a socket, one that would exceed [`SOCKETS_MAX`], and a second one with this
    /// number.
    Hold {
        /// The supervisor's number for the socket.
        id: u64,
    },
    /// Close a held socket; ignored if there is none. Has no answer.
    Release {
        /// The socket's number.
        id: u64,
    },
}

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
    /// [`CHILDREN_MAX`] children are alive, or the one vault or gateway is.
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

/// The bytes are not a packet of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a packet of the launch protocol")]
pub struct Malformed;

impl Command {
    /// Encodes the command.
    pub fn encode(&self) -> [u8; PACKET_BYTES] {
        match *self {
            Self::Start {
                id,
                program,
                memory_mib,
                pids,
            } => packet(1, program.to_byte(), id, [memory_mib, pids, 0]),
            Self::Kill { id } => packet(2, 0, id, [0; 3]),
            Self::Assign {
                id,
                memory_mib,
                tenant,
                tenant_memory_mib,
            } => {
                let numbers = [memory_mib, tenant, tenant_memory_mib];
                packet(6, 0, id, numbers.map(NonZeroU32::get))
            }
            Self::Note { id, note } => noted(packet(7, 0, id, [0; 3]), note),
            Self::Hold { id } => packet(9, 0, id, [0; 3]),
            Self::Release { id } => packet(10, 0, id, [0; 3]),
        }
    }

    /// Decodes a command.
    ///
    /// # Errors
    /// A byte has a forbidden value.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let fields = Fields::read(bytes)?;
        let command = match fields.kind {
            1 => Self::Start {
                id: fields.id,
                program: Program::from_byte(fields.which)?,
                memory_mib: fields.first,
                pids: fields.second,
            },
            2 => Self::Kill { id: fields.id },
            6 => Self::Assign {
                id: fields.id,
                memory_mib: NonZeroU32::new(fields.first).ok_or(Malformed)?,
                tenant: NonZeroU32::new(fields.second).ok_or(Malformed)?,
                tenant_memory_mib: NonZeroU32::new(fields.third).ok_or(Malformed)?,
            },
            7 => Self::Note {
                id: fields.id,
                note: fields.note,
            },
            9 => Self::Hold { id: fields.id },
            10 => Self::Release { id: fields.id },
            _ => return Err(Malformed),
        };
        if command.encode() == bytes {
            Ok(command)
        } else {
            Err(Malformed)
        }
    }
}

impl Command {
    /// The number of descriptors that come with the command.
    pub fn descriptors(&self) -> std::ops::RangeInclusive<usize> {
        match self {
            Self::Start { .. } => 1..=2,
            Self::Hold { .. } => 1..=1,
            Self::Kill { .. } | Self::Assign { .. } | Self::Note { .. } | Self::Release { .. } => {
                0..=0
            }
        }
    }
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

impl Program {
    fn to_byte(self) -> u8 {
        match self {
            Self::Vault => 1,
            Self::Gateway => 2,
            Self::Worker => 3,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, Malformed> {
        [Self::Vault, Self::Gateway, Self::Worker]
            .into_iter()
            .find(|program| program.to_byte() == byte)
            .ok_or(Malformed)
    }
}

/// The fields that packets have in common, before validation.
struct Fields {
    kind: u8,
    which: u8,
    id: u64,
    first: u32,
    second: u32,
    third: u32,
    note: [u8; NOTE_BYTES],
}

impl Fields {
    fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let bytes: &[u8; PACKET_BYTES] = bytes.try_into().map_err(|_| Malformed)?;
        if bytes[..4] != MAGIC {
            return Err(Malformed);
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let id = u64::from(word(8)) | u64::from(word(12)) << 32;
        let mut note = [0; NOTE_BYTES];
        note.copy_from_slice(&bytes[NOTE]);
        Ok(Self {
            kind: bytes[4],
            which: bytes[5],
            id,
            first: word(16),
            second: word(20),
            third: word(24),
            note,
        })
    }
}

fn packet(kind: u8, which: u8, id: u64, numbers: [u32; 3]) -> [u8; PACKET_BYTES] {
    let mut bytes = [0; PACKET_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = kind;
    bytes[5] = which;
    bytes[8..16].copy_from_slice(&id.to_le_bytes());
    for (place, number) in bytes[16..28].chunks_exact_mut(4).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn noted(mut packet: [u8; PACKET_BYTES], note: [u8; NOTE_BYTES]) -> [u8; PACKET_BYTES] {
    packet[NOTE].copy_from_slice(&note);
    packet
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn commands() -> impl Strategy<Value = Command> {
        let program = prop::sample::select(vec![Program::Vault, Program::Gateway, Program::Worker]);
        prop_oneof![
            (any::<u64>(), program, any::<u32>(), any::<u32>()).prop_map(
                |(id, program, memory_mib, pids)| Command::Start {
                    id,
                    program,
                    memory_mib,
                    pids
                }
            ),
            any::<u64>().prop_map(|id| Command::Kill { id }),
            any::<u64>().prop_map(|id| Command::Hold { id }),
            any::<u64>().prop_map(|id| Command::Release { id }),
            (any::<u64>(), any::<[u8; NOTE_BYTES]>())
                .prop_map(|(id, note)| Command::Note { id, note }),
            (any::<u64>(), any::<[NonZeroU32; 3]>()).prop_map(
                |(id, [memory_mib, tenant, tenant_memory_mib])| Command::Assign {
                    id,
                    memory_mib,
                    tenant,
                    tenant_memory_mib
                }
            ),
        ]
    }

    fn events() -> impl Strategy<Value = Event> {
        let refusal = prop_oneof![
            Just(Refusal::Busy),
            Just(Refusal::Duplicate),
            Just(Refusal::NotAControlSocket),
            Just(Refusal::Unlimited),
            any::<i32>().prop_map(Refusal::Failed),
        ];
        let end = prop_oneof![
            any::<i32>().prop_map(End::Exit),
            any::<i32>().prop_map(End::Signal),
            Just(End::OutOfMemory)
        ];
        prop_oneof![
            any::<u64>().prop_map(|id| Event::Held { id }),
            (any::<u64>(), any::<u32>()).prop_map(|(id, pid)| Event::Started { id, pid }),
            (any::<u64>(), any::<[u32; 3]>(), any::<[u8; NOTE_BYTES]>()).prop_map(
                |(id, [pid, memory_mib, tenant], note)| Event::Adopted {
                    id,
                    program: Program::Worker,
                    pid,
                    memory_mib,
                    tenant: NonZeroU32::new(tenant),
                    note,
                }
            ),
            (any::<u64>(), refusal).prop_map(|(id, refusal)| Event::Refused { id, refusal }),
            (any::<u64>(), end).prop_map(|(id, end)| Event::Exited { id, end }),
        ]
    }

    proptest! {
        #[test]
        fn commands_round_trip(command in commands()) {
            prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
            prop_assert_eq!(Event::decode(&command.encode()), Err(Malformed));
        }

        #[test]
        fn events_round_trip(event in events()) {
            prop_assert_eq!(Event::decode(&event.encode()), Ok(event));
            prop_assert_eq!(Command::decode(&event.encode()), Err(Malformed));
        }

        #[test]
        fn truncated_and_lengthened_packets_are_refused(command in commands(), length in 0..PACKET_BYTES, more in 1..100_usize) {
            let bytes = command.encode();
            prop_assert_eq!(Command::decode(&bytes[..length]), Err(Malformed));
            let longer: Vec<u8> = bytes.into_iter().chain(std::iter::repeat_n(0, more)).collect();
            prop_assert_eq!(Command::decode(&longer), Err(Malformed));
        }

        #[test]
        fn a_decoded_packet_encodes_to_the_same_bytes(bytes in prop::collection::vec(any::<u8>(), PACKET_BYTES)) {
            if let Ok(command) = Command::decode(&bytes) {
                prop_assert_eq!(command.encode().to_vec(), bytes.clone());
            }
        }

        #[test]
        fn a_limit_of_zero_is_malformed(id in any::<u64>()) {
            for numbers in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
                prop_assert_eq!(Command::decode(&packet(6, 0, id, numbers)), Err(Malformed));
            }
        }

        #[test]
        fn a_changed_byte_is_refused_or_means_something_else(command in commands(), at in 0..PACKET_BYTES, flip in 1..=255_u8) {
            let mut bytes = command.encode();
            bytes[at] ^= flip;
            prop_assert_ne!(Command::decode(&bytes), Ok(command));
            let is_note = matches!(command, Command::Note { .. }) && NOTE.contains(&at);
            if at < 4 || at == 6 || at == 7 || (at >= 28 && !is_note) {
                prop_assert_eq!(Command::decode(&bytes), Err(Malformed));
            }
        }
    }
}
