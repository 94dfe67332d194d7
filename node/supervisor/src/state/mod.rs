//! What the supervisor decides: which programs run, which worker serves which function, when to try again. Time and events
//! in, effects out; it waits for nobody.

mod adopted;
mod bundles;
pub(crate) mod carry;
mod ceiling;
mod cpu;
mod describe;
pub(crate) mod drive;
mod functions;
pub(crate) mod image;
mod memory;
mod quota;
mod routes;
mod share;
#[cfg(test)]
mod tests;
mod trials;
mod turns;
#[cfg(test)]
mod waiting;
mod worker;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;

use casemate_trust::statement::{MAX_FALLBACKS, MAX_FUNCTIONS};
use casemate_wire::control::gateway::{Standing, ToGateway, WorkerFault};
use casemate_wire::control::parts::{Arriving, Part, PartError};
use casemate_wire::control::vault::{FunctionPlan, Plan};
use casemate_wire::control::worker::Peer;
use casemate_wire::control::{Digest, Failure, FunctionKey, WORKER_OVERHEAD_MIB, WorkerId};

use bundles::{Bundles, Retry};
use cpu::CpuWall;
use functions::Function;
use quota::Quota;
use trials::Trial;
use turns::{Charges, Waiting};
use worker::{Stage, Worker};

pub(crate) use adopted::{AdoptedChild, AdoptedKind};
pub(crate) use quota::{NotStored, Room};

/// Milliseconds since the supervisor started.
pub(crate) type Millis = u64;

/// First pause before a program that ended is started again.
const BACKOFF_MIN_MS: Millis = 100;
/// Longest pause.
const BACKOFF_MAX_MS: Millis = 10_000;
/// A program that ran so long is well: the next pause is the first again.
const WELL_AFTER_MS: Millis = 60_000;
/// Until a worker that was told to stop is killed.
const STOP_GRACE_MS: u32 = 10_000;
/// Until a worker that said nothing after being started or loaded is killed.
const SILENCE_MS: Millis = 30_000;
/// Workers that start at a time. Each start uses a processor for tens of milliseconds: one tenant's
/// hundred would delay the one that somebody else's caller waits for.
const MAX_STARTING: usize = 8;
/// Processes and threads of a worker.
pub(crate) const WORKER_PIDS: u32 = 16;

/// Bounds from the operator's configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Workers that wait for a function.
    pub(crate) spares: usize,
    /// Workers at all.
    pub(crate) max_workers: usize,
    /// What all workers may occupy together, MiB.
    pub(crate) memory_mib: u32,
    /// The limits of all workers together are at most so many times that.
    pub(crate) overcommit: u32,
    /// An idle worker leaves after this.
    pub(crate) idle_ms: Millis,
    /// For bundles, on the disk.
    pub(crate) room: Room,
}

/// Programs of which there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Single {
    Vault,
    Gateway,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Input {
    /// These children of a supervisor that has crashed run. Comes first.
    Adopt(Vec<AdoptedChild>),
    /// Time has passed.
    Tick,
    /// A child could not be started.
    NotStarted { child: u64 },
    /// A child is gone, and everything that it said has been read.
    Ended { child: u64, failure: Failure },
    /// The vault is open, or the gateway listens.
    Up(Single),
    /// Part of the vault's judgement of what a tenant runs.
    Plan(Box<Part<Plan>>),
    /// The vault has told what every tenant runs.
    Told,
    /// As the node starts, these bundles are on the disk, each of so many bytes, and these releases have loaded here
    /// before.
    Found {
        bundles: BTreeMap<Digest, u64>,
        loaded: BTreeSet<Digest>,
    },
    /// A bundle is on the disk, checked.
    BundleHere(Digest),
    /// A bundle that was to be fetched is not on the disk.
    BundleAbsent(Digest),
    /// A bundle that was on the disk cannot be read, and this worker did not get its function.
    BundleLost { bundle: Digest, worker: WorkerId },
    /// A bundle has come and could not be written to the disk.
    BundleNotStored(Digest),
    /// Callers wait.
    Need { key: FunctionKey, waiting: u32 },
    /// A worker has had nothing to do.
    Idle { worker: WorkerId, idle_ms: Millis },
    /// A worker was given so many requests since it serves.
    Given { worker: WorkerId, requests: u64 },
    /// A worker has used so much CPU time since it was started.
    CpuTime { worker: WorkerId, used_ms: Millis },
    /// A retired worker has finished.
    Drained { worker: WorkerId },
    /// The gateway has given a worker up.
    Unusable {
        worker: WorkerId,
        fault: WorkerFault,
    },
    /// A worker's walls are closed.
    Ready { worker: WorkerId },
    /// A worker's function is loaded.
    Loaded { worker: WorkerId },
    /// It cannot be.
    LoadFailed { worker: WorkerId, message: String },
    /// A worker is about to end because of this.
    Fatal { worker: WorkerId, failure: Failure },
    /// The operator wants an end.
    Drain,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Start the vault or the gateway.
    StartSingle { child: u64, which: Single },
    /// Start a worker.
    StartWorker { worker: WorkerId, memory_mib: u32 },
    /// Move a worker to its tenant's share of the machine, and narrow its memory limit to its function's, before it is
    /// given its function. Comes again, with the worker's limit as it is, when the tenant's has changed.
    Assign {
        worker: WorkerId,
        memory_mib: NonZeroU32,
        /// The tenant's number with launch.
        tenant: NonZeroU32,
        tenant_memory_mib: NonZeroU32,
    },
    /// End a child at once.
    Kill { child: u64 },
    /// Give a spare its function: bundle, and channels to gateway and vault.
    Serve {
        worker: WorkerId,
        key: FunctionKey,
        plan: Box<FunctionPlan>,
    },
    /// An adopted worker serves this function.
    Recognised { worker: WorkerId, key: FunctionKey },
    /// Give a worker a new channel to a vault or gateway that was started again, for the same
    /// function and release.
    Rewire {
        worker: WorkerId,
        peer: Peer,
        key: FunctionKey,
        release: Digest,
        concurrency: u32,
        wall_time_ms: u32,
    },
    /// End a worker that broke the protocol of its control channel.
    Violation {
        worker: WorkerId,
        what: &'static str,
    },
    /// Tell the gateway.
    Gateway(ToGateway),
    /// Say something in a function's own log.
    Warn { key: FunctionKey, message: String },
    /// End a vault that says half of something: the next one says everything from the beginning.
    DistrustVault { error: PartError },
    /// Tell the vault that a worker is gone.
    VaultGone { worker: WorkerId },
    /// Tell a worker to finish.
    Stop { worker: WorkerId, grace_ms: u32 },
    /// A bundle is wanted.
    Fetch { bundle: Digest, bytes: u64 },
    /// A bundle is of use if it is on the disk.
    Look { bundle: Digest },
    /// A release has loaded here: that is to be remembered on the disk.
    Loads { release: Digest },
    /// Every bundle that this manifest wants is on the disk, and every release has loaded here, but for what was reported
    /// with an earlier manifest.
    Stored { tenant: Digest, version: u64 },
    /// Bundles that a manifest wants are not kept here, or releases that it wants do not run here.
    NotStored(NotStored),
    /// Only [`Supervision::needed_bundles`] are kept, as it is when this is done.
    Keep,
}

/// One program of which there is one.
#[derive(Debug, Default)]
struct Program {
    child: Option<u64>,
    up: bool,
    started_ms: Millis,
    failures: u32,
    again_ms: Millis,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Supervision {
    bounds: Bounds,
    next_child: u64,
    vault: Program,
    gateway: Program,
    workers: BTreeMap<WorkerId, Worker>,
    functions: BTreeMap<FunctionKey, Function>,
    /// Whose callers a host's are.
    owners: BTreeMap<String, FunctionKey>,
    bundles: Bundles,
    /// Bundles that could not be written, and when each is fetched again.
    unstored: BTreeMap<Digest, Retry>,
    /// What each tenant may keep on the disk.
    quota: Quota,
    /// Who may run a bundle.
    users: BTreeMap<Digest, BTreeSet<FunctionKey>>,
    /// The vault has told all its plans.
    is_told: bool,
    /// Version of each tenant's manifest, and whether all its bundles are here.
    manifests: BTreeMap<Digest, (u64, bool)>,
    /// What each tenant's workers may occupy together, MiB.
    ceilings_mib: BTreeMap<Digest, u32>,
    /// A plan of which not all has come.
    plans: Arriving<Plan>,
    /// Functions that wait for a spare, in order.
    waiting: VecDeque<Waiting>,
    /// Functions whose next release has to be tried.
    trials: VecDeque<Trial>,
    /// Releases that had loaded here before the node was started.
    loaded_before: BTreeSet<Digest>,
    /// Workers that each tenant was given lately.
    charges: Charges,
    /// Hosts of plans whose functions are not ready here.
    expected: BTreeSet<String>,
    /// What the gateway was last told of the node.
    standing: Option<Standing>,
    /// Pace of starting workers that fail.
    spare_failures: u32,
    spare_again_ms: Millis,
    draining: bool,
    effects: Vec<Effect>,
}

fn backoff_ms(failures: u32) -> Millis {
    (BACKOFF_MIN_MS << failures.saturating_sub(1).min(10)).min(BACKOFF_MAX_MS)
}

impl Supervision {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            next_child: 1,
            vault: Program::default(),
            gateway: Program::default(),
            workers: BTreeMap::new(),
            functions: BTreeMap::new(),
            owners: BTreeMap::new(),
            bundles: Bundles::new(),
            unstored: BTreeMap::new(),
            quota: Quota::new(bounds.room),
            users: BTreeMap::new(),
            is_told: false,
            manifests: BTreeMap::new(),
            ceilings_mib: BTreeMap::new(),
            plans: Arriving::new((MAX_FUNCTIONS * (1 + MAX_FALLBACKS)) as u32),
            waiting: VecDeque::new(),
            trials: VecDeque::new(),
            loaded_before: BTreeSet::new(),
            charges: Charges::default(),
            expected: BTreeSet::new(),
            standing: None,
            spare_failures: 0,
            spare_again_ms: 0,
            draining: false,
            effects: Vec::new(),
        }
    }

    /// Takes an event; gives what is to be done, in order.
    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(crate) fn handle(&mut self, input: Input, now_ms: Millis) -> Vec<Effect> {
        let concerns_hosts = matches!(
            input,
            Input::Plan(_)
                | Input::Told
                | Input::BundleHere(_)
                | Input::BundleAbsent(_)
                | Input::BundleNotStored(_)
        );
        match input {
            Input::Adopt(children) => self.adopt(children, now_ms),
            Input::Tick => {}
            Input::NotStarted { child } => self.ended(child, Failure::Unavailable, now_ms),
            Input::Ended { child, failure } => self.ended(child, failure, now_ms),
            Input::Up(which) => {
                let was_up = std::mem::replace(&mut self.program(which).up, true);
                if which == Single::Gateway {
                    self.route_all();
                }
                // A vault that says hello again, with another key of the control plane, keeps its
                // channels.
                if !was_up {
                    self.rewire_all(which);
                }
            }
            Input::Plan(part) => match self.plans.take(*part) {
                Ok(Some(plan)) => self.plan(plan, now_ms),
                Ok(None) => {}
                Err(error) => self.effects.push(Effect::DistrustVault { error }),
            },
            Input::Told => self.told(),
            Input::Found { bundles, loaded } => {
                self.found(bundles);
                self.loaded_before(loaded);
            }
            Input::BundleHere(digest) => self.bundle_here(digest),
            Input::BundleAbsent(digest) => self.bundle_absent(digest),
            Input::BundleLost { bundle, worker } => self.bundle_lost(bundle, worker),
            Input::BundleNotStored(digest) => self.bundle_not_stored(digest, now_ms),
            Input::Need { key, waiting } => self.need(key, waiting, now_ms),
            Input::Idle { worker, idle_ms } if idle_ms >= self.bounds.idle_ms => {
                self.retire(worker, now_ms);
            }
            Input::Idle { worker, idle_ms } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.heard();
                    worker.rested_ms = Some(now_ms);
                    worker.idle_since_ms = Some(now_ms.saturating_sub(idle_ms));
                    if let Some(cpu) = &mut worker.cpu {
                        cpu.rested(idle_ms);
                    }
                }
            }
            Input::Given { worker, requests } => {
                if let Some(worker) = self.workers.get_mut(&worker) {
                    worker.heard();
                    worker.idle_since_ms = None;
                }
                if let Some(cpu) = self.wall_of(worker) {
                    cpu.given(requests);
                }
            }
            Input::CpuTime { worker, used_ms } => self.cpu_time(worker, used_ms),
            Input::Drained { worker } => self.stop(worker, now_ms),
            Input::Unusable { worker, fault } => self.unusable(worker, fault),
            Input::Ready { worker } => self.ready(worker, now_ms),
            Input::Loaded { worker } => self.loaded(worker, now_ms),
            Input::LoadFailed { worker, message } => self.load_failed(worker, message, now_ms),
            Input::Fatal { worker, failure } => self.last_words(worker, failure, now_ms),
            Input::Drain => self.drain(now_ms),
        }
        self.keep_running(now_ms);
        self.tell_standing(concerns_hosts);
        std::mem::take(&mut self.effects)
    }

    /// When time alone will change something.
    pub(crate) const TICK_MS: Millis = 250;

    /// Whether a worker may still be spoken to.
    pub(crate) fn has(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Whether a worker has not said yet that its walls are closed.
    pub(crate) fn is_starting(&self, worker: WorkerId) -> bool {
        let worker = self.workers.get(&worker);
        worker.is_some_and(|worker| worker.stage == Stage::Starting && !worker.was_ready)
    }

    fn program(&mut self, which: Single) -> &mut Program {
        match which {
            Single::Vault => &mut self.vault,
            Single::Gateway => &mut self.gateway,
        }
    }

    fn child(&mut self) -> u64 {
        let child = self.next_child;
        self.next_child += 1;
        child
    }

    fn wall_of(&mut self, worker: WorkerId) -> Option<&mut CpuWall> {
        self.workers.get_mut(&worker)?.cpu.as_mut()
    }

    /// A worker keeps to its CPU time itself; one that does not is ended from here.
    fn cpu_time(&mut self, id: WorkerId, used_ms: Millis) {
        if self.wall_of(id).is_some_and(|cpu| !cpu.holds(used_ms))
            && let Some(worker) = self.workers.get_mut(&id)
        {
            worker.cpu = None;
            worker.fatal.get_or_insert(Failure::ExceededCpu);
            self.kill_worker(id);
        }
    }

    /// Starts what should run and does not, kills what is over its time, serves who waits.
    fn keep_running(&mut self, now_ms: Millis) {
        let overdue: Vec<WorkerId> = self
            .workers
            .iter()
            .filter(|(_, worker)| {
                worker
                    .deadline_ms
                    .is_some_and(|deadline| now_ms >= deadline)
            })
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            if let Some(worker) = self.workers.get_mut(&id) {
                // Once; if launch is slow, so be it.
                worker.deadline_ms = None;
                if matches!(worker.stage, Stage::Loading(..)) {
                    worker.fatal.get_or_insert(Failure::ExceededWall);
                }
                self.kill_worker(id);
            }
        }
        if self.draining && self.gateway.child.is_none() {
            return;
        }
        if !self.draining {
            self.start_singles(now_ms);
            self.fetch_unstored(now_ms);
        }
        self.charges.decay(now_ms);
        if !self.draining {
            self.start_trials(now_ms);
        }
        self.serve_waiting(now_ms);
        self.share_out(now_ms);
        self.start_spares(now_ms);
    }

    fn start_singles(&mut self, now_ms: Millis) {
        for which in [Single::Vault, Single::Gateway] {
            if self.program(which).child.is_none() && now_ms >= self.program(which).again_ms {
                let child = self.child();
                let program = self.program(which);
                (program.child, program.started_ms) = (Some(child), now_ms);
                self.effects.push(Effect::StartSingle { child, which });
            }
        }
    }

    fn start_spares(&mut self, now_ms: Millis) {
        let idle = self
            .workers
            .values()
            .filter(|worker| matches!(worker.stage, Stage::Starting | Stage::Spare))
            .count();
        let wanted = self.bounds.spares + self.waiting.len();
        let room = self.places().saturating_sub(self.workers.len());
        if now_ms < self.spare_again_ms {
            return;
        }
        let starting = self
            .workers
            .values()
            .filter(|worker| worker.stage == Stage::Starting)
            .count();
        let room = room.min(MAX_STARTING.saturating_sub(starting));
        for _ in idle..wanted.min(idle + room) {
            let worker = WorkerId(self.child());
            let memory_mib = WORKER_OVERHEAD_MIB + self.largest_heap_mib();
            let deadline_ms = Some(now_ms + SILENCE_MS);
            self.workers.insert(
                worker,
                Worker {
                    stage: Stage::Starting,
                    since_ms: now_ms,
                    was_ready: false,
                    is_violator: false,
                    was_loaded: false,
                    is_trial: false,
                    is_unheard: false,
                    concurrency: 0,
                    wall_time_ms: 0,
                    fatal: None,
                    deadline_ms,
                    rested_ms: None,
                    idle_since_ms: None,
                    memory_mib,
                    tenant_number: None,
                    cpu: None,
                },
            );
            self.effects
                .push(Effect::StartWorker { worker, memory_mib });
        }
    }

    fn ended(&mut self, child: u64, failure: Failure, now_ms: Millis) {
        for which in [Single::Vault, Single::Gateway] {
            let program = self.program(which);
            if program.child == Some(child) {
                let well = now_ms.saturating_sub(program.started_ms) >= WELL_AFTER_MS;
                program.failures = if well { 1 } else { program.failures + 1 };
                (program.child, program.up) = (None, false);
                program.again_ms = now_ms + backoff_ms(program.failures);
                if which == Single::Gateway {
                    self.stop_retired(now_ms);
                    if self.draining {
                        self.end_workers(now_ms);
                    }
                }
            }
        }
        if let Some(worker) = self.workers.remove(&WorkerId(child)) {
            self.worker_ended(WorkerId(child), worker, failure, now_ms);
        }
    }

    /// The gateway finishes what is under way, which may still need workers; they end once it is gone.
    fn drain(&mut self, now_ms: Millis) {
        self.draining = true;
        self.effects.push(Effect::Gateway(ToGateway::Drain {
            grace_ms: STOP_GRACE_MS,
        }));
        if self.gateway.child.is_none() {
            self.end_workers(now_ms);
        }
    }

    /// Nobody calls any more: a worker may finish what it does after its answers, and one without a function ends.
    fn end_workers(&mut self, now_ms: Millis) {
        for (id, worker) in &mut self.workers {
            let is_of_use = worker.binding().is_some() || worker.stage == Stage::Discarded;
            if !is_of_use {
                worker.stage = Stage::Discarded;
                self.effects.push(Effect::Kill { child: id.0 });
            }
        }
        let serving: Vec<WorkerId> = self.workers.keys().copied().collect();
        serving.into_iter().for_each(|id| self.retire(id, now_ms));
    }

    /// Whether a worker has not ended yet.
    pub(crate) fn has_workers(&self) -> bool {
        !self.workers.is_empty()
    }
}
