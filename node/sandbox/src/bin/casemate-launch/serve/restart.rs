//! Restarts a supervisor that crashes.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use casemate_sandbox::launch::{End, Event};
use rustix::process::{Signal, kill_process};

use super::{Child, Server, command_socket};
use crate::cgroup::Cgroup;
use crate::exit;
use crate::start::{StartError, Started};

/// Restarts of the supervisor within [`RESTARTS_PERIOD`]; if it crashes more often, launch ends all
/// programs, and the service manager starts the node again.
const RESTARTS_MAX: usize = 5;
const RESTARTS_PERIOD: Duration = Duration::from_secs(600);

impl Server {
    /// Restarts a crashed supervisor, and passes it the sockets and the children. Returns whether
    /// one runs now.
    pub(super) fn restart_supervisor(&mut self) -> bool {
        if self.ending.is_some() || !self.supervisor_end.is_some_and(is_crash) {
            return false;
        }
        let now = Instant::now();
        self.restarts
            .retain(|at| now.duration_since(*at) < RESTARTS_PERIOD);
        if self.restarts.len() >= RESTARTS_MAX {
            tracing::error!(
                times = RESTARTS_MAX,
                within_secs = RESTARTS_PERIOD.as_secs(),
                "the supervisor crashes repeatedly; ending all programs"
            );
            return false;
        }
        self.restarts.push_back(now);
        // Events for the predecessor name children of which the successor learns now.
        self.events = self.sockets.events().collect();
        self.delayed = None;
        let held = self.events.len();
        for (id, child) in &self.children {
            match child.control.as_ref().and_then(|end| end.try_clone().ok()) {
                Some(control) => self.events.push_back((child.adopted(*id), Some(control))),
                // Without its control socket the child cannot be reached.
                None => drop(kill_process(child.pid, Signal::KILL)),
            }
        }
        let started = command_socket()
            .map_err(StartError::Line)
            .and_then(|(ours, theirs)| {
                let adopts = self.events.len() - held;
                let started = self
                    .launcher
                    .start_supervisor(theirs.as_fd(), held, adopts)?;
                Ok((ours, started))
            });
        match started {
            Ok((socket, Started { pid, cgroup })) => {
                let end = self.supervisor_end.take();
                tracing::error!(
                    ?end,
                    pid = pid.as_raw_nonzero(),
                    children = self.events.len() - held,
                    sockets = held,
                    "the supervisor has crashed; its successor runs and adopts the children"
                );
                (self.socket, self.supervisor, self.supervisor_cgroup) =
                    (socket, Some(pid), cgroup);
                (self.listening, self.deadline) = (true, None);
                true
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(
                    cause,
                    "the supervisor has crashed and cannot be started again: {error}"
                );
                false
            }
        }
    }
}

impl Child {
    /// The event for the supervisor's successor.
    fn adopted(&self, id: u64) -> Event {
        Event::Adopted {
            id,
            program: self.program,
            pid: self.pid.as_raw_nonzero().get().cast_unsigned(),
            memory_mib: self.memory_mib,
            tenant: self.cgroup.as_ref().and_then(Cgroup::tenant),
            note: self.note,
        }
    }
}

/// Whether an end of the supervisor was a crash: with another code it has found that it cannot
/// continue, and its successor would find the same.
pub(super) fn is_crash(end: End) -> bool {
    /// Exit code of a Rust program that has panicked.
    const PANICKED: i32 = 101;
    match end {
        End::Signal(_) | End::OutOfMemory => true,
        End::Exit(code) => code == PANICKED || code == i32::from(exit::SOFTWARE),
    }
}
