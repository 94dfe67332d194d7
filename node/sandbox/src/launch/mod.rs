//! The protocol between the supervisor and `casemate-launch`: packets of 64 bytes. Only the kill
//! command is longer: after its 64 bytes come the ids of the children to kill, in ascending order,
//! 8 bytes each.
//!
//! The socket is a `SOCK_SEQPACKET` pair; the supervisor's end is its descriptor 0. A packet is, in little-endian order,
//!
//! | bytes | of a command | of an event |
//! |---|---|---|
//! | 0..4 | `CSMT` | `CSMT` |
//! | 4 | 1 start, 2 kill, 6 assign, 7 note, 9 hold, 10 release | 3 started, 4 refused, 5 exited, 8 adopted, 11 held |
//! | 5 | of start: the program | of refused: why; of exited: how; of adopted: the program |
//! | 6..8 | 0 | 0 |
//! | 8..16 | id; of kill: number of ids | id |
//! | 16..20 | of start and assign: memory, MiB | of started and adopted: pid; of refused: errno; of exited: code or signal |
//! | 20..24 | of start: processes and threads; of assign: the tenant's number | of adopted: memory, MiB |
//! | 24..28 | of assign: memory of the tenant, MiB | of adopted: the tenant's number, 0 for none |
//! | 28..60 | of note: the note | of adopted: the note, 0 for none |
//! | 60..64 | 0 | 0 |
//!
//! Anything else is malformed: `casemate-launch` ends everything rather than guess.

mod client;
mod command;
mod event;
mod listener;
mod packet;
mod program;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use command::{COMMAND_BYTES_MAX, Command, KILL_MAX};
pub use event::{End, Event, Refusal};
pub use listener::{NotAListener, listener_address};
pub use packet::{CHILDREN_MAX, Malformed, NOTE_BYTES, PACKET_BYTES};
pub use program::Program;

/// The variable in which launch passes its own namespaces to a child, as the links of /proc/self/ns
/// with spaces between: a child whose link differs has left launch's namespace.
pub const OUTER_NAMESPACES: &str = "CASEMATE_OUTER_NS";

/// Prefix of the variables that are passed on to every program; launch passes on no others.
pub const KEPT_VARIABLES: &str = "CASEMATE_LOG";

/// Prefix of the names of launch's cgroups: `casemate-{its pid}-{child's number}` for a child, and
/// `casemate-{its pid}.{name}` for a group of them.
pub const CGROUP_PREFIX: &str = "casemate-";

/// Listening sockets that launch holds at most; more are ignored.
pub const SOCKETS_MAX: usize = casemate_wire::control::gateway::MAX_SOCKETS;
