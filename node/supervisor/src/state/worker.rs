//! One worker, as the supervisor sees it.

use std::num::NonZeroU32;

use casemate_wire::control::{Digest, Failure, FunctionKey};

use super::Millis;
use super::cpu::CpuWall;

/// How far a worker has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    /// Started; has not said that its walls are closed.
    Starting,
    /// Waits for a function.
    Spare,
    /// Has been given a function.
    Loading(FunctionKey, Digest),
    /// Serves it.
    Serving(FunctionKey, Digest),
    /// Finishes.
    Retired(FunctionKey, Digest),
    /// Never had a function, and is being killed.
    Discarded,
    /// Was given this release by a supervisor that has crashed; no plan has named the release yet.
    Adopted(Digest),
}

/// A worker from the command that starts it until launch has reported its end.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) stage: Stage,
    pub(super) since_ms: Millis,
    /// Whether the worker has reported that its walls are closed.
    pub(super) was_ready: bool,
    /// Whether the worker broke the protocol of its control channel, and is being ended for that.
    pub(super) is_violator: bool,
    /// Whether the worker has reported how loading its function went.
    pub(super) was_loaded: bool,
    /// Whether it was given its function for a trial of the release.
    pub(super) is_trial: bool,
    /// Whether it was adopted, and the gateway has not spoken of it since.
    pub(super) is_unheard: bool,
    /// Requests at a time, once it has a function.
    pub(super) concurrency: u32,
    /// Wall-clock time of a request, once it has a function.
    pub(super) wall_time_ms: u32,
    /// Said by itself before it ended.
    pub(super) fatal: Option<Failure>,
    /// When it is killed if it is still there.
    pub(super) deadline_ms: Option<Millis>,
    /// When it was last said to have nothing to do.
    pub(super) rested_ms: Option<Millis>,
    /// Since when it has had nothing to do, as far as the gateway has reported.
    pub(super) idle_since_ms: Option<Millis>,
    pub(super) memory_mib: u32,
    /// Its tenant's number with launch, once it has a tenant.
    pub(super) tenant_number: Option<NonZeroU32>,
    /// What it may use of a processor, once it has a function.
    pub(super) cpu: Option<CpuWall>,
}

impl Worker {
    /// The function and release of a worker that has been given one.
    pub(super) fn binding(&self) -> Option<(&FunctionKey, Digest)> {
        match &self.stage {
            Stage::Loading(key, release)
            | Stage::Serving(key, release)
            | Stage::Retired(key, release) => Some((key, *release)),
            Stage::Starting | Stage::Spare | Stage::Discarded | Stage::Adopted(_) => None,
        }
    }

    /// The gateway knows the worker: it has a channel there.
    pub(super) fn heard(&mut self) {
        if std::mem::take(&mut self.is_unheard) {
            self.deadline_ms = None;
        }
    }

    /// What it serves, or is about to.
    pub(super) fn release(&self) -> Option<Digest> {
        match self.stage {
            Stage::Loading(_, release) | Stage::Serving(_, release) => Some(release),
            _ => None,
        }
    }
}
