//! Ends the worker when no other code can run any more: sends one packet that was made beforehand,
//! then exits.
//!
//! Used where V8 must not be entered again (inside a heap callback) or cannot be stopped (a builtin
//! that ignores termination), also from another thread. Nothing here allocates.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use casemate_wire::control::worker::FromWorker;
use casemate_wire::control::{Failure, MessageError, encode};
use casemate_wire::frame::control_packet;

/// The control socket: file descriptor 0 of every child.
const CONTROL_FD: libc::c_int = 0;

static PACKETS: OnceLock<Vec<(Failure, Vec<u8>)>> = OnceLock::new();

/// The last stream of the gateway's channel that was begun. Later requests go to another worker.
static BEGUN: AtomicU32 = AtomicU32::new(0);

/// Longest packet, bytes.
const MAX_PACKET_BYTES: usize = 256;

/// Records that a request of the gateway's channel has begun.
pub(crate) fn note_begun(stream: u32) {
    BEGUN.store(stream, Ordering::Relaxed);
}

/// The last stream of the gateway's channel that was begun, in the encoding of the message.
pub(crate) fn begun() -> [u8; 4] {
    BEGUN.load(Ordering::Relaxed).to_le_bytes()
}

/// Exit code of a worker that was ended by its limits, for launch's log.
pub(crate) fn exit_code(failure: Failure) -> u8 {
    match failure {
        Failure::ExceededCpu => 80,
        Failure::ExceededMemory => 81,
        Failure::ExceededWall => 82,
        Failure::LoadFailed => 83,
        _ => 70,
    }
}

/// The message about a limit in the tenant's log.
pub(crate) fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::ExceededCpu => "the function used more CPU time than its limit",
        Failure::ExceededMemory => "the function used more memory than its limit",
        Failure::ExceededWall => "the function took longer than its limit",
        _ => "the worker ended",
    }
}

/// Makes the packets, while memory can still be allocated.
pub(crate) fn prepare() -> Result<(), MessageError> {
    let mut packets = Vec::new();
    for failure in [
        Failure::ExceededCpu,
        Failure::ExceededMemory,
        Failure::ExceededWall,
    ] {
        let fatal = FromWorker::Fatal {
            failure,
            message: message(failure).to_owned(),
            begun: [0; 4],
        };
        packets.push((failure, control_packet(&encode(&fatal)?)));
    }
    PACKETS.get_or_init(|| packets);
    Ok(())
}

/// Sends the packet with the reason, and ends the process at once.
pub(crate) fn speak(failure: Failure) -> ! {
    let packet = PACKETS
        .get()
        .and_then(|all| all.iter().find(|(which, _)| *which == failure));
    let mut room = [0; MAX_PACKET_BYTES];
    if let Some((_, prepared)) = packet
        && let Some(packet) = room.get_mut(..prepared.len())
    {
        packet.copy_from_slice(prepared);
        // `begun` is the last field of the message and has a fixed length.
        if let Some(last) = packet.last_chunk_mut() {
            *last = begun();
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the pointer and length are those of a live buffer; a failed send has no remedy.
        unsafe { libc::send(CONTROL_FD, packet.as_ptr().cast(), packet.len(), flags) };
    }
    // SAFETY: ends the process without running destructors, which must not run inside V8's
    // callbacks.
    unsafe { libc::_exit(exit_code(failure).into()) }
}
