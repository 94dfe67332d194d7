//! Signals to launch: reload certificates, upgrade in place, end.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::process::{Signal, kill_process};

use super::{GRACE, Server};

/// Why everything ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// Launch exits.
    Stop,
    /// Launch executes its program again.
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
                    tracing::info!("SIGHUP: the gateway will read its certificates again");
                    if let Some(pid) = self.supervisor {
                        let _ = kill_process(pid, Signal::HUP);
                    }
                }
                libc::SIGUSR2 => self.upgrade(),
                signal => {
                    tracing::info!(
                        signal,
                        grace_secs = GRACE.as_secs(),
                        "signal to end received; the supervisor drains the node"
                    );
                    self.end(Ending::Stop);
                }
            }
        }
    }

    /// Begins an upgrade in place, unless an end was requested or there is no program to execute.
    fn upgrade(&mut self) {
        if self.ending.is_some() {
            return tracing::warn!("request for an upgrade ignored: the node is ending");
        }
        match self.successor.check() {
            Ok(()) => {
                tracing::info!(
                    program = %self.successor.program().display(),
                    sockets = self.sockets.len(),
                    grace_secs = GRACE.as_secs(),
                    "upgrade in place requested; the supervisor drains, then launch executes its program file again"
                );
                self.end(Ending::Upgrade);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(
                    cause,
                    "no upgrade in place, the node keeps running: {error}"
                );
            }
        }
    }

    /// Asks the supervisor to drain. A stop that is requested during an upgrade wins.
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

/// A descriptor to poll for SIGCHLD and the request signals, which interrupt nothing any more. They
/// stay blocked, and pending signals stay pending, across an exec.
pub(super) fn signals() -> io::Result<OwnedFd> {
    // SAFETY: `sigemptyset` initialises the zeroed memory before anything reads it, and the set
    // outlives all calls. `signalfd` with -1 returns a new descriptor without another owner, which
    // `OwnedFd` takes over.
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
