//! Trials: a release is loaded in a spare, with its limits in force and without a request, before it counts as running on
//! this node. Until then the release that served before goes on serving; a release that cannot be loaded changes nothing for
//! callers, and its tenant reads why.
//!
//! A trial takes a worker as a caller's request does: it is charged to its tenant, and waits in turn. Of one tenant one trial
//! is under way at a time, of all tenants [`MAX_TRIALS`]. What has loaded is remembered on the disk, so that a node that
//! starts again tries nothing again that ran before.

use std::collections::{BTreeSet, VecDeque};

use casemate_push::{LOAD_FAILED, LOAD_FAILED_EARLIER, NO_PLACE, cannot_be_loaded};
use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, Failure, FunctionKey};

use super::bundles::{Bundles, Place};
use super::functions::{Function, needed_mib};
use super::turns::{Purpose, Waiting};
use super::{Effect, Millis, NotStored, Stage, Supervision};

/// Trials under way at a time: each uses up to 2 s of a processor.
pub(super) const MAX_TRIALS: usize = 2;
/// A trial that found no place for so long is reported to the tenant and the control plane, and goes on waiting. `deploy`
/// waits for 60 s unless told otherwise.
const REPORTED_AFTER_MS: Millis = 20_000;
/// Until a release is tried again whose workers were lost without a word: the node may be at fault.
const AGAIN_AFTER_MS: Millis = 60_000;
/// Longest text of a failure that is kept, bytes: with the words around it, it fits into a message to the control plane.
const MAX_MESSAGE_BYTES: usize = 1600;

/// What is known of a release on this node; nothing before its trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// It has loaded.
    Loads,
    /// It could not be loaded.
    Fails(LoadError),
}

/// How a load failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoadError {
    failure: Failure,
    /// What the tenant reads: message and stack.
    message: String,
    /// The manifest that was the newest one then.
    version: u64,
    /// When it is tried again, if time may help.
    again_ms: Option<Millis>,
}

/// A release that is to be tried: the one that [`Function::next`] names.
#[derive(Debug, Clone)]
pub(super) struct Trial {
    key: FunctionKey,
    /// Since when; set when time is next known.
    since_ms: Option<Millis>,
    /// The manifest with which it was reported that there is no place.
    reported: Option<u64>,
}

impl Function {
    /// The release that serves now. Of those whose bundles are here, one that has loaded comes before one that was not
    /// tried, and that before one that does not load; among equals the wanted one is the first.
    pub(super) fn current(&self, bundles: &Bundles) -> Option<&FunctionPlan> {
        let is_here = |plan: &&FunctionPlan| bundles.get(&plan.bundle) == Some(&Place::Here);
        let doubt = |plan: &&FunctionPlan| match self.proofs.get(&plan.release) {
            Some(Proof::Loads) => 0,
            None => 1,
            Some(Proof::Fails(_)) => 2,
        };
        self.kept().filter(is_here).min_by_key(doubt)
    }

    /// The release that is to serve next: the wanted one, unless its bundle is not here or it does not load.
    pub(super) fn next(&self, bundles: &Bundles) -> Option<&FunctionPlan> {
        let fails = matches!(self.proofs.get(&self.plan.release), Some(Proof::Fails(_)));
        if self.is_here(bundles) && !fails {
            return Some(&self.plan);
        }
        self.current(bundles)
    }

    /// The bundle of the wanted release is here, and kept.
    pub(super) fn is_here(&self, bundles: &Bundles) -> bool {
        let bundle = &self.plan.bundle;
        bundles.get(bundle) == Some(&Place::Here) && !self.refused.contains_key(bundle)
    }

    /// The wanted release is here and has loaded.
    pub(super) fn is_proven(&self, bundles: &Bundles) -> bool {
        self.is_here(bundles) && self.proofs.get(&self.plan.release) == Some(&Proof::Loads)
    }

    /// Why the wanted release does not load, if so.
    pub(super) fn load_error(&self) -> Option<&LoadError> {
        match self.proofs.get(&self.plan.release)? {
            Proof::Fails(error) => Some(error),
            Proof::Loads => None,
        }
    }

    /// Lets a release that could not be loaded count as not tried.
    pub(super) fn forget_failure(&mut self, release: Digest) {
        if matches!(self.proofs.get(&release), Some(Proof::Fails(_))) {
            self.proofs.remove(&release);
        }
    }

    /// Whether this manifest has nothing to wait for in the function: the wanted release runs, or is known since an earlier
    /// manifest not to load.
    pub(super) fn is_settled(&self, bundles: &Bundles) -> bool {
        let failed_before = |error: &LoadError| error.version < self.manifest_version;
        self.is_proven(bundles)
            || (self.is_here(bundles) && self.load_error().is_some_and(failed_before))
    }

    /// Whether [`Function::next`] is to be loaded before callers are led to it, or counts as running.
    fn needs_trial(&self, bundles: &Bundles) -> bool {
        self.next(bundles).is_some_and(|next| {
            let is_untried = !self.proofs.contains_key(&next.release);
            self.routed != Some(next.release) || (is_untried && !next.is_fallback)
        })
    }
}

impl LoadError {
    /// As the status shows it.
    pub(super) fn describe(&self) -> String {
        format!("{}: {}", self.failure.code(), self.message)
    }
}

impl Supervision {
    /// These releases have loaded here before the node was started.
    pub(super) fn loaded_before(&mut self, releases: BTreeSet<Digest>) {
        if !self.is_told {
            self.loaded_before = releases;
        }
    }

    /// Releases that have loaded here and that a manifest lists.
    pub(crate) fn proven_releases(&self) -> BTreeSet<Digest> {
        let proofs = self.functions.values().flat_map(|one| &one.proofs);
        proofs
            .filter(|(_, proof)| **proof == Proof::Loads)
            .map(|(release, _)| *release)
            .collect()
    }

    /// Keeps what is known of the releases that the function's plan lists.
    pub(super) fn recall_proofs(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let listed: BTreeSet<Digest> = function.releases().map(|plan| plan.release).collect();
        function
            .proofs
            .retain(|release, _| listed.contains(release));
        for release in listed.intersection(&self.loaded_before) {
            function.proofs.entry(*release).or_insert(Proof::Loads);
        }
    }

    /// The release that a worker for this purpose is to get.
    pub(super) fn plan_for(&self, waiting: &Waiting) -> Option<&FunctionPlan> {
        let function = self.functions.get(&waiting.key)?;
        match waiting.purpose {
            Purpose::Callers => function.current(&self.bundles),
            Purpose::Trial => function.next(&self.bundles),
        }
    }

    /// Has the function's next release tried, if that is necessary.
    pub(super) fn want_trial(&mut self, key: &FunctionKey) {
        let function = self.functions.get(key);
        let is_known = self.trials.iter().any(|trial| trial.key == *key);
        if !is_known && function.is_some_and(|one| one.needs_trial(&self.bundles)) {
            self.trials.push_back(Trial {
                key: key.clone(),
                since_ms: None,
                reported: None,
            });
        }
    }

    /// Begins as many trials as may be under way, those of the tenants with the fewest starts first.
    pub(super) fn start_trials(&mut self, now_ms: Millis) {
        self.try_again(now_ms);
        if self.trials.is_empty() {
            return;
        }
        let (functions, bundles) = (&self.functions, &self.bundles);
        let is_needed = |key: &FunctionKey| {
            functions
                .get(key)
                .is_some_and(|one: &Function| one.needs_trial(bundles))
        };
        self.trials.retain(|trial| is_needed(&trial.key));
        for trial in &mut self.trials {
            trial.since_ms.get_or_insert(now_ms);
        }
        let mut under_way: Vec<Digest> = self
            .waiting
            .iter()
            .filter(|one| one.is_trial())
            .map(|one| one.key.tenant)
            .collect();
        let loading = self
            .workers
            .values()
            .filter(|worker| worker.is_trial && matches!(worker.stage, Stage::Loading(..)));
        under_way.extend(loading.filter_map(|worker| Some(worker.binding()?.0.tenant)));
        let idle: VecDeque<Waiting> = self
            .trials
            .iter()
            .filter(|trial| !under_way.contains(&trial.key.tenant))
            .map(|trial| Waiting::new(trial.key.clone(), Purpose::Trial))
            .collect();
        for trial in self.charges.in_turn(idle) {
            let is_loading = self
                .plan_for(&trial)
                .is_some_and(|plan| self.loading(&trial.key, plan.release) > 0);
            if under_way.len() >= MAX_TRIALS {
                break;
            }
            if !is_loading && !under_way.contains(&trial.key.tenant) {
                under_way.push(trial.key.tenant);
                self.waiting.push_back(trial);
            }
        }
        self.report_without_place(now_ms);
    }

    /// Trials whose failure may have been the node's are repeated.
    fn try_again(&mut self, now_ms: Millis) {
        let is_due = |function: &Function| {
            function
                .load_error()
                .and_then(|error| error.again_ms)
                .is_some_and(|again_ms| now_ms >= again_ms)
        };
        let due = self
            .functions
            .iter()
            .filter(|(_, function)| is_due(function));
        let due: Vec<FunctionKey> = due.map(|(key, _)| key.clone()).collect();
        for key in due {
            if let Some(function) = self.functions.get_mut(&key) {
                function.proofs.remove(&function.plan.release);
            }
            self.want_trial(&key);
        }
    }

    /// Tells, once for each manifest, whose releases have waited long for a place.
    fn report_without_place(&mut self, now_ms: Millis) {
        let mut late = Vec::new();
        for trial in &mut self.trials {
            let Some(function) = self.functions.get(&trial.key) else {
                continue;
            };
            let is_late = trial
                .since_ms
                .is_some_and(|since_ms| now_ms >= since_ms + REPORTED_AFTER_MS);
            let version = function.manifest_version;
            if is_late && trial.reported != Some(version) {
                trial.reported = Some(version);
                late.push(trial.key.clone());
            }
        }
        for key in late {
            if let Some(not_stored) = self.without_place(&key) {
                let message = format!("{} ({NO_PLACE})", not_stored.message);
                self.effects.push(Effect::Warn { key, message });
                self.effects.push(Effect::NotStored(not_stored));
            }
        }
    }

    fn without_place(&self, key: &FunctionKey) -> Option<NotStored> {
        let function = self.functions.get(key)?;
        let needed_mib = needed_mib(function.next(&self.bundles)?);
        let why = if !self.can_fit(needed_mib) {
            let most_mib = self.admitted_mib();
            format!("needs a worker of {needed_mib} MiB, and this node admits {most_mib} MiB")
        } else if u64::from(needed_mib) > self.admitted_of_mib(&key.tenant) {
            let most_mib = self.admitted_of_mib(&key.tenant);
            format!(
                "needs a worker of {needed_mib} MiB, and the operator lets the tenant have {most_mib} MiB on this node"
            )
        } else {
            "waits for a free place for a worker on this node".to_owned()
        };
        Some(NotStored {
            tenant: key.tenant,
            version: function.manifest_version,
            code: NO_PLACE,
            message: format!(
                "the new release of `{}` {why}. It does not serve before it has been loaded once; what served before goes on, \
                 and the node tries again by itself",
                key.function
            ),
        })
    }

    /// The release has loaded here.
    pub(super) fn prove(&mut self, key: &FunctionKey, release: Digest) {
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let before = function.proofs.insert(release, Proof::Loads);
        if before == Some(Proof::Loads) {
            return;
        }
        let function_version = function.manifest_version;
        self.effects.push(Effect::Loads { release });
        if function.plan.release == release {
            self.forget_bundles();
            self.look_whether_stored(key.tenant);
            self.say_stored_again(key.tenant, function_version);
        }
    }

    /// What could not be loaded when its manifest was said to be stored has loaded since: the control plane forgets what was
    /// reported with that, and reads what is left of it.
    fn say_stored_again(&mut self, tenant: Digest, version: u64) {
        let is_last_word = |effect: &Effect| *effect == Effect::Stored { tenant, version };
        if self.is_stored(&tenant, version) && !self.effects.iter().any(is_last_word) {
            self.effects.push(Effect::Stored { tenant, version });
            let left = self.not_loaded_earlier(tenant);
            self.effects.extend(left.map(Effect::NotStored));
        }
    }

    /// The release does not load, which it never did here. Whether another release serves in its place.
    pub(super) fn disprove(
        &mut self,
        key: &FunctionKey,
        release: Digest,
        failure: Failure,
        message: &str,
        now_ms: Millis,
    ) -> bool {
        let Some(function) = self.functions.get_mut(key) else {
            return false;
        };
        if function.proofs.get(&release) == Some(&Proof::Loads) {
            return false;
        }
        let before = function.load_error().map(|error| error.version);
        let again_ms = (failure == Failure::WorkerLost).then_some(now_ms + AGAIN_AFTER_MS);
        let error = LoadError {
            failure,
            message: message[..message.floor_char_boundary(MAX_MESSAGE_BYTES)].to_owned(),
            version: before.unwrap_or(function.manifest_version),
            again_ms,
        };
        function.proofs.insert(release, Proof::Fails(error));
        let (wanted, version) = (function.plan.release, function.manifest_version);
        let current = function.current(&self.bundles).map(|plan| plan.release);
        if release == wanted && before != Some(version) {
            self.look_whether_stored(key.tenant);
            self.effects
                .extend(self.not_loaded(key).map(Effect::NotStored));
        }
        current.is_some_and(|current| current != release)
    }

    fn not_loaded(&self, key: &FunctionKey) -> Option<NotStored> {
        let function = self.functions.get(key)?;
        let error = function
            .load_error()
            .filter(|error| error.version == function.manifest_version)?;
        let current = function.current(&self.bundles);
        let serves = match current.filter(|plan| plan.release != function.plan.release) {
            Some(_) => "the release before it goes on serving",
            None => "its callers get an error",
        };
        Some(NotStored {
            tenant: key.tenant,
            version: function.manifest_version,
            code: LOAD_FAILED,
            message: cannot_be_loaded(&[&key.function], &format!(", {serves}: {}", error.message)),
        })
    }

    /// The tenant's functions whose wanted releases could not be loaded when an earlier manifest brought them.
    pub(super) fn not_loaded_earlier(&self, tenant: Digest) -> Option<NotStored> {
        let (version, _) = *self.manifests.get(&tenant)?;
        let functions = self.functions_of(tenant);
        let failed: Vec<(&str, &LoadError)> = functions
            .filter(|(_, function)| function.is_here(&self.bundles))
            .filter_map(|(key, function)| Some((key.function.as_str(), function.load_error()?)))
            .filter(|(_, error)| error.version < version)
            .collect();
        let (_, first) = failed.first()?;
        let names: Vec<&str> = failed.iter().map(|(name, _)| *name).collect();
        Some(NotStored {
            tenant,
            version,
            code: LOAD_FAILED_EARLIER,
            message: cannot_be_loaded(
                &names,
                &format!(
                    " since an earlier deployment, what ran before goes on: {}",
                    first.message
                ),
            ),
        })
    }

    /// What was reported of releases that do not run, for a control plane that was not told on this connection.
    pub(super) fn not_run(&self) -> impl Iterator<Item = NotStored> {
        let is_reported = |trial: &&Trial| trial.reported.is_some();
        let waiting = self.trials.iter().filter(is_reported);
        let waiting = waiting.filter_map(|trial| self.without_place(&trial.key));
        let stored = self
            .manifests
            .iter()
            .filter(|(_, (_, is_stored))| *is_stored);
        waiting
            .chain(self.functions.keys().filter_map(|key| self.not_loaded(key)))
            .chain(stored.filter_map(|(tenant, _)| self.not_loaded_earlier(*tenant)))
    }
}

#[cfg(test)]
mod tests;
