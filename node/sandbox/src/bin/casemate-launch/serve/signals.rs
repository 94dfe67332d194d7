//! What launch is asked for by signals: certificates anew, an upgrade in place, an end.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{Signal, kill_process};

use super::{GRACE, Server};

/// Why everything ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// We exit.
    Stop,
    /// We execute our program anew.
    Upgrade,
}

impl Server {
    pub(super) fn take_signals(&mut self) {
        let size = size_of::<libc::signalfd_siginfo>();
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        while rustix::io::read(&self.signals, &mut info).is_ok_and(|read| read == size) {
            // ssi_signo, the structure's first field.
            let signal = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]).cast_signed();
            match signal {
                libc::SIGCHLD => {}
                libc::SIGHUP => {
                    tracing::info!("asked to read certificates again");
                    if let Some(pid) = self.supervisor {
                        let _ = kill_process(pid, Signal::HUP);
                    }
                }
                libc::SIGUSR2 => self.upgrade(),
                signal => {
                    tracing::info!(
                        signal,
                        grace_secs = GRACE.as_secs(),
                        "asked to end; the supervisor drains"
                    );
                    self.end(Ending::Stop);
                }
            }
        }
    }

    /// Begins an upgrade in place, unless everything ends already or there is nothing to become.
    fn upgrade(&mut self) {
        if self.ending.is_some() {
            return tracing::warn!("asked for an upgrade while ending; ignored");
        }
        match self.successor.check() {
            Ok(()) => {
                tracing::info!(
                    program = %self.successor.program().display(),
                    sockets = self.sockets.len(),
                    grace_secs = GRACE.as_secs(),
                    "asked for an upgrade in place; the supervisor drains, then launch executes the program anew"
                );
                self.end(Ending::Upgrade);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(cause, "no upgrade in place, the node goes on: {error}");
            }
        }
    }

    /// Has the supervisor drain. Whoever asks for a stop during an upgrade gets the stop.
    fn end(&mut self, ending: Ending) {
        let was_ending = self.ending.is_some();
        if ending == Ending::Stop || !was_ending {
            self.ending = Some(ending);
        }
        if !was_ending {
            self.end_within(GRACE);
            if let Some(pid) = self.supervisor {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
    }
}

/// SIGCHLD and the signals that ask for something, as something to poll; they interrupt nothing any more. They stay blocked,
/// and what came meanwhile stays pending, when we become another program.
pub(super) fn signals() -> io::Result<OwnedFd> {
    // SAFETY: `sigemptyset` makes the set of the zeroed memory before anything reads it, and the set outlives all calls.
    // `signalfd` with -1 gives a new descriptor that nobody else has, which is what `OwnedFd` takes over.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [
            libc::SIGCHLD,
            libc::SIGHUP,
            libc::SIGUSR2,
            libc::SIGTERM,
            libc::SIGINT,
        ] {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            descriptor => Ok(OwnedFd::from_raw_fd(descriptor)),
        }
    }
}
