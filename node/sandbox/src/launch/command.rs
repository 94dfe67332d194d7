//! Commands: from the supervisor to launch.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::packet::{CHILDREN_MAX, Fields, Malformed, NOTE_BYTES, PACKET_BYTES, noted, packet};
use super::program::Program;

/// Children that one [`Command::Kill`] names at most: all that can be alive.
pub const KILL_MAX: usize = CHILDREN_MAX;

/// Length of the longest command, in bytes.
pub const COMMAND_BYTES_MAX: usize = PACKET_BYTES + KILL_MAX * ID_BYTES;

/// Length of an id in [`Command::Kill`], in bytes.
const ID_BYTES: usize = size_of::<u64>();

/// A command from the supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Start a program. Comes with a `SOCK_SEQPACKET` socket, which becomes the child's standard
    /// input, and may come with its other end, which launch keeps for the supervisor's successor:
    /// without it the child does not outlive the supervisor. Answered by `Event::Started` or
    /// `Event::Refused`.
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
    /// End children at once. Each child that ends is reported by `Event::Exited`. An id that no
    /// child has is ignored, because the child may just have ended by itself.
    Kill {
        /// The children: at least one, and at most [`KILL_MAX`].
        ids: BTreeSet<u64>,
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
    /// is not such a socket, one that would exceed `SOCKETS_MAX`, and a second one with this
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
impl Command {
    /// Encodes the command.
    pub fn encode(&self) -> Vec<u8> {
        let head = match *self {
            Self::Start {
                id,
                program,
                memory_mib,
                pids,
            } => packet(1, program.to_byte(), id, [memory_mib, pids, 0]),
            Self::Kill { ref ids } => packet(2, 0, ids.len() as u64, [0; 3]),
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
        };
        let mut bytes = head.to_vec();
        if let Self::Kill { ids } = self {
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes
    }

    /// Decodes a command.
    ///
    /// # Errors
    /// A byte has a forbidden value.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let (head, ids) = bytes.split_at_checked(PACKET_BYTES).ok_or(Malformed)?;
        let fields = Fields::read(head)?;
        let command = match fields.kind {
            1 => Self::Start {
                id: fields.id,
                program: Program::from_byte(fields.which)?,
                memory_mib: fields.first,
                pids: fields.second,
            },
            2 => Self::Kill {
                ids: killed(fields.id, ids)?,
            },
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

/// The ids of a kill, of which there are as many as the head says.
fn killed(count: u64, bytes: &[u8]) -> Result<BTreeSet<u64>, Malformed> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    let is_count = ids.len() as u64 == count && (1..=KILL_MAX).contains(&ids.len());
    if !is_count || !rest.is_empty() {
        return Err(Malformed);
    }
    // Unordered or repeated ids do not encode to the same bytes, which `Command::decode` checks.
    Ok(ids.iter().map(|id| u64::from_le_bytes(*id)).collect())
}
