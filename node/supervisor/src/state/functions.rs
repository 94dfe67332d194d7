//! Functions: their bundles, routes and workers.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use casemate_wire::control::gateway::ToGateway;
use casemate_wire::control::vault::{FunctionPlan, Plan};
use casemate_wire::control::{Digest, Failure, FunctionKey, WORKER_OVERHEAD_MIB, WorkerId};

use super::bundles::{Bundles, Place};
use super::cpu::CpuWall;
use super::quota::{Refused, of_function};
use super::trials::Proof;
use super::turns::{Purpose, Waiting};
use super::{Effect, Millis, SILENCE_MS, STOP_GRACE_MS, Stage, Supervision, Worker, backoff_ms};

/// Of what a function said when it could not be loaded, in the status: a tenant has a thousand functions.
const MAX_ERROR_CHARS: usize = 400;
/// Ends of serving workers in a row, each soon after its start, that bring no pause: a caller that
/// finds a costly request must not be able to stop the function for everybody by sending it a few
/// times.
const FREE_ENDS: u32 = 3;
/// Workers of a function lost in a row while they loaded, none with a word, until that counts as a failure of the function:
/// a spare that dies as it is handed out is replaced, and a function that kills its worker is found out.
const MAX_LOST_LOADS: u32 = 3;

/// One function that should run here.
#[derive(Debug)]
pub(super) struct Function {
    /// What the newest manifest wants.
    pub(super) plan: FunctionPlan,
    /// What may run until the bundle of that is here, in order.
    pub(super) fallbacks: Vec<FunctionPlan>,
    /// Bundles of these for which the tenant has no room here.
    pub(super) refused: Refused,
    pub(super) tenant_name: String,
    pub(super) manifest_version: u64,
    /// The release that the gateway routes to.
    pub(super) routed: Option<Digest>,
    /// Hosts whose callers it gets.
    pub(super) hosts: Vec<String>,
    /// That it does not get all of them.
    pub(super) conflict: Option<String>,
    /// What is known of its releases.
    pub(super) proofs: BTreeMap<Digest, Proof>,
    /// Loads that failed in a row, and until when nobody tries again.
    failures: u32,
    again_ms: Millis,
    pub(super) last_error: Option<(Failure, String)>,
    /// Workers lost in a row while they loaded.
    lost: u32,
    /// Serving workers that ended in a row, each within [`super::WELL_AFTER_MS`] of its load.
    ends: u32,
    /// Until when no worker is started after such ends, and how the last one ended.
    pause: Option<(Millis, Failure)>,
}

impl Function {
    /// Another release runs now: what the one before could not do does not count.
    pub(super) fn begin_again(&mut self) {
        self.load_succeeded();
        (self.ends, self.pause) = (0, None);
    }

    fn load_succeeded(&mut self) {
        (self.failures, self.again_ms, self.last_error) = (0, 0, None);
        self.lost = 0;
    }

    /// Whether this release serves, or is to serve next.
    fn is_of_use(&self, release: Digest, bundles: &Bundles) -> bool {
        let next = self.next(bundles);
        self.runs(release, bundles) || next.is_some_and(|next| next.release == release)
    }

    /// Why no worker is started for the function now, if so: what its callers read.
    fn refusal(&self, now_ms: Millis) -> Option<(Failure, String)> {
        if now_ms < self.again_ms {
            return self.last_error.clone();
        }
        let (until_ms, failure) = self.pause.filter(|(until_ms, _)| now_ms < *until_ms)?;
        let message = format!(
            "workers of the function ended {} times in a row ({}); the next one starts in {} ms",
            self.ends,
            failure.code(),
            until_ms - now_ms
        );
        Some((failure, message))
    }
}

impl Supervision {
    /// Takes a tenant's newest plan in place of the one before.
    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(super) fn plan(&mut self, plan: Plan, now_ms: Millis) {
        let wanted: BTreeSet<&str> = plan
            .functions
            .iter()
            .map(|function| function.function.as_str())
            .collect();
        let gone: Vec<FunctionKey> = self
            .functions
            .keys()
            .filter(|key| key.tenant == plan.tenant && !wanted.contains(key.function.as_str()))
            .cloned()
            .collect();
        gone.iter().for_each(|key| self.withdraw(key, now_ms));
        let (tenant, version) = (plan.tenant, plan.manifest_version);
        self.set_ceiling(tenant, plan.memory_mib, now_ms);
        self.manifests.insert(tenant, (version, false));
        let refused = self.quota.admit(tenant, plan.functions.iter());
        let mut is_changed = !gone.is_empty();
        let mut functions = plan.functions.into_iter().peekable();
        while let Some(function) = functions.next() {
            let key = FunctionKey {
                tenant: plan.tenant,
                function: function.function.clone(),
            };
            let is_fallback =
                |next: &FunctionPlan| next.is_fallback && next.function == key.function;
            let fallbacks: Vec<_> = std::iter::from_fn(|| functions.next_if(is_fallback)).collect();
            let refused = of_function(&refused, &function, &fallbacks);
            if let Some(held) = self.functions.get_mut(&key) {
                held.manifest_version = plan.manifest_version;
                let is_same = held.plan == function && held.fallbacks == fallbacks;
                if is_same && held.refused == refused {
                    continue;
                }
            }
            is_changed = true;
            let routed = self.routed_hosts(&key);
            self.warn_of_lost_hosts(&key, &function);
            self.unlink(&key);
            let wanted = function.bundle;
            let was_coming = self.bundles.get(&wanted) == Some(&Place::Coming);
            if let Some(held) = self.functions.get_mut(&key) {
                (held.fallbacks, held.refused) = (fallbacks, refused);
                if held.plan != function {
                    if held.plan.release != function.release {
                        // Wanted anew, such as by a rollback, a release that failed is tried anew.
                        held.forget_failure(function.release);
                    }
                    held.plan = function;
                    held.begin_again();
                }
            } else {
                let (tenant_name, manifest_version) = (plan.name.clone(), plan.manifest_version);
                let held = Function {
                    plan: function,
                    fallbacks,
                    refused,
                    tenant_name,
                    manifest_version,
                    routed: None,
                    hosts: Vec::new(),
                    conflict: None,
                    proofs: BTreeMap::new(),
                    failures: 0,
                    again_ms: 0,
                    last_error: None,
                    lost: 0,
                    ends: 0,
                    pause: None,
                };
                self.functions.insert(key.clone(), held);
            }
            self.link(&key);
            self.recall_proofs(&key);
            self.recognise(&key, now_ms);
            self.end_unlisted(&key, now_ms);
            self.bring_up(&key);
            self.route_other_hosts(&key, routed);
            if was_coming {
                self.bundle_absent(wanted);
            }
        }
        if is_changed {
            self.forget_bundles();
            self.admit_short(Some(tenant));
        }
        self.look_whether_stored(tenant);
        self.say_shortage(tenant);
    }

    /// A function that no manifest lists any more: nobody is routed to it, and its workers finish.
    fn withdraw(&mut self, key: &FunctionKey, now_ms: Millis) {
        self.workers_of(key, None)
            .into_iter()
            .for_each(|id| self.retire(id, now_ms));
        self.waiting.retain(|other| other.key != *key);
        self.unlink(key);
        self.unroute(key);
        self.functions.remove(key);
    }

    /// Callers wait for this function.
    pub(super) fn need(&mut self, key: FunctionKey, waiting: u32, now_ms: Millis) {
        let Some(function) = self.functions.get(&key) else {
            let refusal = ToGateway::Refuse {
                key,
                failure: Failure::Unavailable,
                message: "the function was withdrawn".into(),
            };
            return self.effects.push(Effect::Gateway(refusal));
        };
        if let Some((failure, message)) = function.refusal(now_ms) {
            let refusal = ToGateway::Refuse {
                key,
                failure,
                message,
            };
            return self.effects.push(Effect::Gateway(refusal));
        }
        let needed_mib = needed_mib(function.current(&self.bundles).unwrap_or(&function.plan));
        if !self.can_fit(needed_mib) {
            let most_mib = self.admitted_mib();
            let refusal = ToGateway::Refuse {
                key,
                failure: Failure::Unavailable,
                message: format!(
                    "the function needs {needed_mib} MiB, and this node admits {most_mib} MiB"
                ),
            };
            return self.effects.push(Effect::Gateway(refusal));
        }
        if u64::from(needed_mib) > self.admitted_of_mib(&key.tenant) {
            return self.refuse_beyond_ceiling(key);
        }
        // Each worker on its way takes as many as it may; one more is asked for only when that is not enough.
        let plan = function.current(&self.bundles).unwrap_or(&function.plan);
        let is_coming = |other: &&Waiting| {
            let coming = self.plan_for(other).map(|plan| plan.release);
            other.key == key && coming.is_none_or(|coming| coming == plan.release)
        };
        let coming =
            self.loading(&key, plan.release) + self.waiting.iter().filter(is_coming).count();
        if (waiting as usize) <= coming * plan.limits.concurrency.max(1) as usize {
            return;
        }
        self.waiting.push_back(Waiting::new(key, Purpose::Callers));
    }

    /// Gives spares to those who wait, while gateway and bundle are there. A vault that is being
    /// started again keeps nobody waiting: the worker gets its channel to the vault when that is
    /// up.
    pub(super) fn serve_waiting(&mut self, now_ms: Millis) {
        if !self.gateway.up {
            return;
        }
        let mut later = std::collections::VecDeque::new();
        let mut in_turn = self.charges.in_turn(std::mem::take(&mut self.waiting));
        while let Some(waiting) = in_turn.pop_front() {
            let key = &waiting.key;
            let Some(function) = self.functions.get(key) else {
                continue;
            };
            if !waiting.is_trial() && function.refusal(now_ms).is_some() {
                // Its callers are refused when the gateway asks for them again.
                continue;
            }
            let plan = self.plan_for(&waiting);
            let may_have = |plan: &&FunctionPlan| {
                self.may_be_given(&key.tenant) && self.fits_tenant(&key.tenant, needed_mib(plan))
            };
            let Some(plan) = plan.filter(may_have) else {
                later.push_back(waiting);
                continue;
            };
            let spare = self
                .workers
                .iter()
                .find(|(_, worker)| worker.stage == Stage::Spare && fits(worker, plan));
            let Some(id) = spare.map(|(id, _)| *id) else {
                later.push_back(waiting);
                self.replace_small_spare();
                continue;
            };
            let is_trial = waiting.is_trial();
            let key = waiting.key;
            let plan = Box::new(plan.clone());
            let tenant = self.tenant_number(&key.tenant);
            let tenant_memory_mib = self.tenant_memory_mib(&key.tenant, 1);
            self.charges.add(key.tenant);
            if let Some(worker) = self.workers.get_mut(&id) {
                worker.stage = Stage::Loading(key.clone(), plan.release);
                worker.cpu = Some(CpuWall::new(&plan.limits));
                worker.concurrency = plan.limits.concurrency;
                worker.wall_time_ms = plan.limits.wall_time_ms;
                worker.is_trial = is_trial;
                (worker.since_ms, worker.deadline_ms) = (now_ms, Some(now_ms + SILENCE_MS));
                // A spare is as large as the largest function; nobody else is to have that much.
                worker.memory_mib = worker.memory_mib.min(needed_mib(&plan));
                worker.tenant_number = Some(tenant);
                let memory_mib = NonZeroU32::new(worker.memory_mib);
                self.effects.push(Effect::Assign {
                    worker: id,
                    memory_mib: memory_mib.expect("a worker's overhead is not zero"),
                    tenant,
                    tenant_memory_mib,
                });
            }
            self.effects.push(Effect::Serve {
                worker: id,
                key,
                plan,
            });
        }
        self.waiting = later;
    }

    /// Spares that were started before a function with a larger heap came are too small for it: one makes room.
    fn replace_small_spare(&mut self) {
        let largest = WORKER_OVERHEAD_MIB + self.largest_heap_mib();
        let is_small =
            |worker: &Worker| worker.stage == Stage::Spare && worker.memory_mib < largest;
        if let Some((id, worker)) = self.workers.iter_mut().find(|(_, worker)| is_small(worker)) {
            worker.stage = Stage::Discarded;
            self.effects.push(Effect::Kill { child: id.0 });
        }
    }

    pub(super) fn largest_heap_mib(&self) -> u32 {
        /// What a spare is made for before any function is known.
        const DEFAULT_HEAP_MIB: u32 = 64;
        self.functions
            .iter()
            .flat_map(|(key, function)| {
                let plans = [Some(&function.plan), function.current(&self.bundles)];
                plans.into_iter().flatten().map(move |plan| (key, plan))
            })
            // One that can never run here is refused; no spare is made for it.
            .filter(|(key, plan)| {
                let needed_mib = needed_mib(plan);
                self.can_fit(needed_mib)
                    && u64::from(needed_mib) <= self.admitted_of_mib(&key.tenant)
            })
            .map(|(_, plan)| plan.limits.heap_mib)
            .max()
            .unwrap_or(0)
            .max(DEFAULT_HEAP_MIB)
    }

    pub(super) fn loaded(&mut self, id: WorkerId, now_ms: Millis) {
        if !self.may_report_load(id) {
            return;
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Stage::Loading(key, release) = worker.stage.clone() else {
            return;
        };
        (worker.stage, worker.since_ms, worker.deadline_ms) =
            (Stage::Serving(key.clone(), release), now_ms, None);
        if worker.is_trial {
            // No caller waits for it: it makes room for one that waits for another.
            worker.idle_since_ms = Some(now_ms);
        }
        let Some(function) = self.functions.get_mut(&key) else {
            return;
        };
        if !function.is_of_use(release, &self.bundles) {
            // Overtaken by a newer manifest, or by its bundle, while it loaded.
            return self.retire(id, now_ms);
        }
        function.load_succeeded();
        self.prove(&key, release);
        self.switch(&key, now_ms);
    }

    /// Routes to the release that runs now and lets workers of others finish.
    fn switch(&mut self, key: &FunctionKey, now_ms: Millis) {
        let Some(function) = self.functions.get(key) else {
            return;
        };
        let next = function.next(&self.bundles).map(|plan| plan.release);
        let Some(wanted) = function.current(&self.bundles).map(|plan| plan.release) else {
            return;
        };
        if function.routed != Some(wanted) {
            self.route(key);
        }
        let old =
            self.workers_of(key, None)
                .into_iter()
                .filter(|id| match &self.workers[id].stage {
                    Stage::Loading(_, release) | Stage::Serving(_, release) => {
                        *release != wanted && Some(*release) != next
                    }
                    _ => false,
                });
        old.collect::<Vec<_>>()
            .into_iter()
            .for_each(|id| self.retire(id, now_ms));
    }

    pub(super) fn load_failed(&mut self, id: WorkerId, message: String, now_ms: Millis) {
        if !self.may_report_load(id) {
            return;
        }
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let Stage::Loading(key, release) = worker.stage.clone() else {
            return;
        };
        worker.fatal = Some(Failure::LoadFailed);
        worker.stage = Stage::Retired(key.clone(), release);
        worker.deadline_ms = Some(now_ms + Millis::from(STOP_GRACE_MS));
        self.failed(&key, release, Failure::LoadFailed, message, now_ms);
    }

    /// A worker that goes without a word is the node's loss first, and another spare is taken; after some in a row it is the
    /// function's.
    pub(super) fn died_while_loading(
        &mut self,
        key: &FunctionKey,
        release: Digest,
        failure: Failure,
        purpose: Purpose,
        now_ms: Millis,
    ) {
        let function = self.functions.get_mut(key);
        let function = function.filter(|function| function.is_of_use(release, &self.bundles));
        let Some(function) = function else {
            return;
        };
        if failure == Failure::WorkerLost {
            function.lost += 1;
            if function.lost < MAX_LOST_LOADS {
                return self.waiting.push_front(Waiting::new(key.clone(), purpose));
            }
        }
        let message = match failure {
            Failure::WorkerLost => {
                format!(
                    "{} workers in a row were lost while they loaded the function",
                    function.lost
                )
            }
            _ => format!(
                "the function's worker ended while it loaded: {}",
                failure.code()
            ),
        };
        function.lost = 0;
        self.failed(key, release, failure, message, now_ms);
    }

    /// Workers that end again and again are started ever more slowly: each start takes processor
    /// time from everybody.
    pub(super) fn died_while_serving(
        &mut self,
        key: &FunctionKey,
        release: Digest,
        failure: Failure,
        lived_ms: Millis,
        now_ms: Millis,
    ) {
        let function = self.functions.get_mut(key);
        let Some(function) = function.filter(|one| one.runs(release, &self.bundles)) else {
            return;
        };
        function.ends = if lived_ms >= super::WELL_AFTER_MS {
            1
        } else {
            function.ends.saturating_add(1)
        };
        if let Some(repeated @ 1..) = function.ends.checked_sub(FREE_ENDS) {
            function.pause = Some((now_ms + backoff_ms(repeated), failure));
        }
    }

    fn failed(
        &mut self,
        key: &FunctionKey,
        release: Digest,
        failure: Failure,
        message: String,
        now_ms: Millis,
    ) {
        let function = self.functions.get(key);
        if !function.is_some_and(|function| function.is_of_use(release, &self.bundles)) {
            return;
        }
        if self.disprove(key, release, failure, &message, now_ms) {
            // What served before goes on, or what ran before it serves again.
            return self.switch(key, now_ms);
        }
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        function.failures += 1;
        function.again_ms = now_ms + backoff_ms(function.failures) * 4;
        let excerpt = message.chars().take(MAX_ERROR_CHARS).collect();
        function.last_error = Some((failure, excerpt));
        self.switch(key, now_ms);
        self.effects.push(Effect::Gateway(ToGateway::Refuse {
            key: key.clone(),
            failure,
            message,
        }));
    }

    /// Workers of this release that load.
    pub(super) fn loading(&self, key: &FunctionKey, release: Digest) -> usize {
        self.workers_of(key, Some(release))
            .into_iter()
            .filter(|id| matches!(self.workers[id].stage, Stage::Loading(..)))
            .count()
    }

    pub(super) fn workers_of(&self, key: &FunctionKey, release: Option<Digest>) -> Vec<WorkerId> {
        let serves = |worker: &Worker| match &worker.stage {
            Stage::Loading(other, runs) | Stage::Serving(other, runs) => {
                other == key && release.is_none_or(|release| release == *runs)
            }
            _ => false,
        };
        self.workers
            .iter()
            .filter(|(_, worker)| serves(worker))
            .map(|(id, _)| *id)
            .collect()
    }
}

fn fits(worker: &Worker, plan: &FunctionPlan) -> bool {
    worker.memory_mib >= needed_mib(plan)
}

pub(super) fn needed_mib(plan: &FunctionPlan) -> u32 {
    WORKER_OVERHEAD_MIB + plan.limits.heap_mib
}
