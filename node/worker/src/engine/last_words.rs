//! How the worker ends when nothing else can run any more: one packet that was made beforehand, then exit.
//!
//! Used where V8 must not be entered again (inside a heap callback) or cannot be stopped (a builtin that ignores
//! termination), also from another thread. Nothing here allocates.

use std::sync::OnceLock;

use casemate_wire::control::worker::FromWorker;
use casemate_wire::control::{Failure, MessageError, encode};
use casemate_wire::frame::control_packet;

/// The control socket: file descriptor 0 of every child.
const CONTROL_FD: libc::c_int = 0;

static PACKETS: OnceLock<Vec<(Failure, Vec<u8>)>> = OnceLock::new();

/// Exit code of a worker that was ended by its limits, for the log of whoever reaps it.
pub(crate) fn exit_code(failure: Failure) -> u8 {
    match failure {
        Failure::ExceededCpu => 80,
        Failure::ExceededMemory => 81,
        Failure::ExceededWall => 82,
        Failure::LoadFailed => 83,
        _ => 70,
    }
}

/// What the tenant reads about a limit.
pub(crate) fn message(failure: Failure) -> &'static str {
    match failure {
        Failure::ExceededCpu => "the function used more CPU time than its limit",
        Failure::ExceededMemory => "the function used more memory than its limit",
        Failure::ExceededWall => "the function took longer than its limit",
        _ => "the worker ended",
    }
}

/// Makes the packets, while memory can still be had.
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
        };
        packets.push((failure, control_packet(&encode(&fatal)?)));
    }
    PACKETS.get_or_init(|| packets);
    Ok(())
}

/// Says why, and ends the process at once.
pub(crate) fn speak(failure: Failure) -> ! {
    let packet = PACKETS
        .get()
        .and_then(|all| all.iter().find(|(which, _)| *which == failure));
    if let Some((_, packet)) = packet {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: the pointer and length are those of a live buffer; a failed send is what there is no remedy for.
        unsafe { libc::send(CONTROL_FD, packet.as_ptr().cast(), packet.len(), flags) };
    }
    // SAFETY: ends the process without running destructors, which may not run inside V8's callbacks.
    unsafe { libc::_exit(exit_code(failure).into()) }
}
