//! Which bundles are here, and what runs until the wanted one is: what the manifest lists as a fallback, if its bundle is on the
//! disk. So a node that was cut off between a manifest and its bundle serves what it served before.

use std::collections::{BTreeMap, BTreeSet};

use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, FunctionKey, WorkerId};

use super::functions::Function;
use super::{Effect, Millis, Supervision};

/// Where a bundle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On the disk, checked.
    Here,
    /// Asked for.
    Coming,
    /// Of a fallback: looked for on the disk, and nowhere else.
    Sought,
}

/// First pause before a bundle that could not be written is fetched again, and the longest: a disk
/// is full for minutes or hours, and each fetch takes the bundle's size from the network.
const REFETCH_MIN_MS: Millis = 1000;
const REFETCH_MAX_MS: Millis = 300_000;

/// Of a bundle that could not be written to the disk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Retry {
    failures: u32,
    /// When it is fetched again; `None` while that goes on.
    again_ms: Option<Millis>,
}

/// All that some function may need.
pub(super) type Bundles = BTreeMap<Digest, Place>;

impl Function {
    /// The wanted release, and what it may fall back to.
    pub(super) fn releases(&self) -> impl Iterator<Item = &FunctionPlan> {
        std::iter::once(&self.plan).chain(&self.fallbacks)
    }

    /// Those whose bundles the tenant may keep here.
    pub(super) fn kept(&self) -> impl Iterator<Item = &FunctionPlan> {
        self.releases()
            .filter(|plan| !self.refused.contains_key(&plan.bundle))
    }

    /// Whether this release runs now.
    pub(super) fn runs(&self, release: Digest, bundles: &Bundles) -> bool {
        self.current(bundles)
            .is_some_and(|plan| plan.release == release)
    }

    /// What must stay on the disk for it: as long as the wanted release has not loaded, whatever it may fall back to.
    fn needed(&self, bundles: &Bundles) -> impl Iterator<Item = Digest> {
        let is_proven = self.is_proven(bundles);
        let needed = self
            .kept()
            .take_while(move |plan| !(is_proven && plan.is_fallback));
        needed.map(|plan| plan.bundle)
    }
}

impl Supervision {
    /// Bundles that are wanted and not here.
    pub(crate) fn wanted_bundles(&self) -> Vec<Digest> {
        let coming = self
            .bundles
            .iter()
            .filter(|(digest, place)| **place == Place::Coming && !self.is_paused(digest));
        coming.map(|(digest, _)| *digest).collect()
    }

    /// Bundles that must stay on the disk.
    pub(crate) fn needed_bundles(&self) -> BTreeSet<Digest> {
        let functions = self.functions.values();
        functions
            .flat_map(|function| function.needed(&self.bundles))
            .collect()
    }

    /// Remembers who may run which bundle, so that one that comes is brought to who needs it.
    pub(super) fn link(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get(key) else {
            return;
        };
        for plan in function.releases() {
            let users = self.users.entry(plan.bundle).or_default();
            users.insert(key.clone());
        }
    }

    /// Forgets it, before the function changes or goes.
    pub(super) fn unlink(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get(key) else {
            return;
        };
        for plan in function.releases() {
            if let Some(users) = self.users.get_mut(&plan.bundle) {
                users.remove(key);
                if users.is_empty() {
                    self.users.remove(&plan.bundle);
                }
            }
        }
    }

    /// Fetches the wanted bundle. With one that can run, a first function is routed at once, and another release is loaded
    /// before it serves.
    pub(super) fn bring_up(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let (bundle, bytes) = (function.plan.bundle, function.plan.bundle_bytes);
        let is_absent = matches!(self.bundles.get(&bundle), None | Some(Place::Sought));
        let is_unproven = !function.proofs.contains_key(&function.plan.release);
        if is_unproven
            && function
                .current(&self.bundles)
                .is_none_or(|plan| !plan.is_fallback)
        {
            // What ran before is looked for first, so that it serves while the wanted release is tried.
            let fallbacks: Vec<Digest> = function
                .kept()
                .filter(|plan| plan.is_fallback)
                .map(|plan| plan.bundle)
                .collect();
            self.seek(&fallbacks);
        }
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        if function.refused.contains_key(&bundle) {
            let seek = |fallback: &FunctionPlan| fallback.is_fallback.then_some(fallback.bundle);
            let fallbacks: Vec<Digest> = function.kept().filter_map(seek).collect();
            self.seek(&fallbacks);
        } else if is_absent {
            self.bundles.insert(bundle, Place::Coming);
            self.effects.push(Effect::Fetch { bundle, bytes });
        }
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let Some(release) = function.current(&self.bundles).map(|plan| plan.release) else {
            return;
        };
        match function.routed {
            None => self.route(key),
            Some(routed) if routed != release => function.begin_again(),
            Some(_) => {}
        }
        self.want_trial(key);
    }

    pub(super) fn bundle_here(&mut self, digest: Digest) {
        let Some(place) = self.bundles.get_mut(&digest) else {
            return;
        };
        *place = Place::Here;
        let users = self.users.get(&digest).cloned().unwrap_or_default();
        users.iter().for_each(|key| self.bring_up(key));
        let had_fallbacks = users.iter().filter_map(|key| self.functions.get(key));
        let is_tracked = |plan: &FunctionPlan| self.bundles.contains_key(&plan.bundle);
        if had_fallbacks
            .filter(|function| function.plan.bundle == digest)
            .any(|function| function.fallbacks.iter().any(is_tracked))
        {
            self.forget_bundles();
        }
        let tenants: BTreeSet<Digest> = users.iter().map(|key| key.tenant).collect();
        tenants
            .into_iter()
            .for_each(|tenant| self.look_whether_stored(tenant));
    }

    /// A bundle that was here cannot be read any more: it is fetched again, and the worker that was to load it is of no use.
    pub(super) fn bundle_lost(&mut self, bundle: Digest, worker: WorkerId) {
        let users = self.users.get(&bundle).into_iter().flatten();
        let plan = users
            .filter_map(|key| self.functions.get(key))
            .flat_map(Function::releases)
            .find(|plan| plan.bundle == bundle);
        if let (Some(plan), Some(place)) = (plan, self.bundles.get_mut(&bundle)) {
            *place = Place::Coming;
            let bytes = plan.bundle_bytes;
            self.effects.push(Effect::Fetch { bundle, bytes });
        }
        self.effects.push(Effect::Kill { child: worker.0 });
    }

    fn is_paused(&self, digest: &Digest) -> bool {
        self.unstored
            .get(digest)
            .is_some_and(|retry| retry.again_ms.is_some())
    }

    /// The disk has no room, or failed: the bundle is fetched again ever more slowly.
    pub(super) fn bundle_not_stored(&mut self, digest: Digest, now_ms: Millis) {
        if self.bundles.get(&digest) != Some(&Place::Coming) {
            return;
        }
        let retry = self.unstored.entry(digest).or_default();
        let pause_ms = REFETCH_MIN_MS << retry.failures.min(10);
        retry.failures = retry.failures.saturating_add(1);
        retry.again_ms = Some(now_ms + pause_ms.min(REFETCH_MAX_MS));
    }

    /// Fetches again what could not be written and is due.
    pub(super) fn fetch_unstored(&mut self, now_ms: Millis) {
        let places = &self.bundles;
        self.unstored
            .retain(|digest, _| places.get(digest) == Some(&Place::Coming));
        for (digest, retry) in &mut self.unstored {
            if retry.again_ms.is_none_or(|again_ms| now_ms < again_ms) {
                continue;
            }
            retry.again_ms = None;
            let users = self.users.get(digest).into_iter().flatten();
            let plan = users
                .filter_map(|key| self.functions.get(key))
                .flat_map(Function::releases)
                .find(|plan| plan.bundle == *digest);
            if let Some(plan) = plan {
                let (bundle, bytes) = (*digest, plan.bundle_bytes);
                self.effects.push(Effect::Fetch { bundle, bytes });
            }
        }
    }

    /// A wanted bundle has to come over the network: meanwhile a fallback may run.
    pub(super) fn bundle_absent(&mut self, digest: Digest) {
        if self.bundles.get(&digest) != Some(&Place::Coming) {
            return;
        }
        let users = self.users.get(&digest).into_iter().flatten();
        let waiting = users
            .filter_map(|key| self.functions.get(key))
            .filter(|function| function.plan.bundle == digest);
        let kept = waiting.flat_map(Function::kept);
        let fallbacks = kept.filter(|plan| plan.is_fallback);
        let fallbacks: Vec<Digest> = fallbacks.map(|plan| plan.bundle).collect();
        self.seek(&fallbacks);
    }

    /// Looks on the disk for what a function may fall back to.
    fn seek(&mut self, fallbacks: &[Digest]) {
        for bundle in fallbacks {
            let bundle = *bundle;
            self.bundles.entry(bundle).or_insert_with(|| {
                self.effects.push(Effect::Look { bundle });
                Place::Sought
            });
        }
    }

    /// Ends what the newest manifest does not list, not even as a fallback.
    pub(super) fn end_unlisted(&mut self, key: &FunctionKey, now_ms: Millis) {
        let Some(function) = self.functions.get(key) else {
            return;
        };
        let listed: BTreeSet<Digest> = function.releases().map(|plan| plan.release).collect();
        let is_routed_unlisted = function
            .routed
            .is_some_and(|routed| !listed.contains(&routed));
        for id in self.workers_of(key, None) {
            let release = self.workers[&id].release();
            if release.is_some_and(|release| !listed.contains(&release)) {
                self.retire(id, now_ms);
            }
        }
        if is_routed_unlisted {
            self.unroute(key);
        }
    }

    /// Whether every bundle that this manifest of a tenant wants is here, and every release has loaded.
    pub(crate) fn is_stored(&self, tenant: &Digest, version: u64) -> bool {
        self.manifests.get(tenant) == Some(&(version, true))
    }

    /// Says so once.
    pub(super) fn look_whether_stored(&mut self, tenant: Digest) {
        let Some((version, is_stored)) = self.manifests.get_mut(&tenant) else {
            return;
        };
        let first = FunctionKey {
            tenant,
            function: String::new(),
        };
        let functions = self.functions.range(first..);
        let mut functions = functions.take_while(|(key, _)| key.tenant == tenant);
        let is_settled = |function: &Function| function.is_settled(&self.bundles);
        if !*is_stored && functions.all(|(_, function)| is_settled(function)) {
            *is_stored = true;
            let version = *version;
            // Before the other word: who waits for that is to know.
            let failed = self.not_loaded_earlier(tenant);
            self.effects.extend(failed.map(Effect::NotStored));
            self.effects.push(Effect::Stored { tenant, version });
        }
    }

    /// The vault has told all its plans: what none of them needs may go from the disk.
    pub(super) fn told(&mut self) {
        self.is_told = true;
        self.end_unrecognised();
        self.nothing_is_found_any_more();
        self.effects.push(Effect::Keep);
    }

    /// Removes bundles that nothing runs and nothing wants. Not before all plans are told: others need what these do not.
    pub(super) fn forget_bundles(&mut self) {
        let needed = self.needed_bundles();
        let before = self.bundles.len();
        self.bundles.retain(|digest, _| needed.contains(digest));
        if self.bundles.len() < before && self.is_told {
            self.effects.push(Effect::Keep);
            // There is more room then.
            for retry in self.unstored.values_mut() {
                retry.again_ms = retry.again_ms.map(|_| 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::gateway::ToGateway;

    use super::super::Input;
    use super::super::tests::{
        BOUNDS, fallback, function, key, plan, plan_of, proven, served, started, up,
    };
    use super::*;

    /// Release 2 is wanted, and 1 ran before.
    fn second() -> Input {
        plan(2, vec![function("a", 2), fallback(function("a", 1))])
    }

    fn need(state: &mut Supervision, waiting: u32) -> Vec<Effect> {
        let key = key("a");
        state.handle(Input::Need { key, waiting }, 5)
    }

    fn routed(effects: &[Effect]) -> Vec<Digest> {
        let routes = effects.iter().filter_map(|effect| match effect {
            Effect::Gateway(ToGateway::Route(route)) => Some(route.release),
            _ => None,
        });
        routes.collect()
    }

    /// The next worker is ready; what it is given.
    fn spare(state: &mut Supervision, effects: &[Effect]) -> Vec<(WorkerId, Digest)> {
        let worker = started(effects)[0];
        served(&state.handle(Input::Ready { worker }, 6))
    }

    #[test]
    fn what_ran_before_serves_until_the_new_bundle_is_here() {
        let (mut state, worker) = up();
        let effects = state.handle(second(), 1);
        let (bundle, bytes) = ([2; 32], function("a", 2).bundle_bytes);
        assert_eq!(effects[0], Effect::Fetch { bundle, bytes });
        let effects = state.handle(Input::BundleAbsent([2; 32]), 2);
        assert_eq!(effects, [Effect::Look { bundle: [1; 32] }]);
        assert_eq!(state.wanted_bundles(), [[2; 32]]);
        let effects = state.handle(Input::BundleHere([1; 32]), 3);
        assert_eq!(routed(&effects), [[1; 32]]);
        let tenant = key("a").tenant;
        assert!(!state.is_stored(&tenant, 2));
        let effects = need(&mut state, 1);
        assert_eq!(served(&effects), [(worker, [1; 32])]);
        state.handle(Input::Loaded { worker }, 6);
        // The wanted one comes: it is made warm, and takes over.
        let mut effects2 = state.handle(Input::BundleHere([2; 32]), 7);
        assert!(effects2.contains(&Effect::Keep));
        assert_eq!(state.needed_bundles(), [[2; 32]].into());
        assert!(effects2.contains(&Effect::Stored { tenant, version: 2 }));
        assert!(state.is_stored(&tenant, 2) && !state.is_stored(&tenant, 1));
        assert_eq!(routed(&effects2), [[0; 32]; 0]);
        effects2.splice(0..0, effects);
        let given = spare(&mut state, &effects2);
        assert_eq!(given.len(), 1);
        let (worker, release) = given[0];
        assert_eq!(release, [2; 32]);
        let effects = state.handle(Input::Loaded { worker }, 8);
        assert_eq!(routed(&effects), [[2; 32]]);
    }

    #[test]
    fn a_bundle_that_does_not_fit_is_fetched_ever_more_slowly_until_there_is_room() {
        let (mut state, _) = up();
        state.handle(plan(1, vec![function("a", 1), function("b", 3)]), 1);
        state.handle(Input::BundleHere([3; 32]), 1);
        assert_eq!(state.wanted_bundles(), [[1; 32]]);
        let fetches = |effects: &[Effect]| {
            let is_fetch =
                |one: &&Effect| matches!(one, Effect::Fetch { bundle, .. } if *bundle == [1; 32]);
            effects.iter().filter(is_fetch).count()
        };
        // The disk is full for an hour; the control plane sends the bundle whenever it is asked
        // for.
        let mut fetched = 0;
        state.handle(Input::BundleNotStored([1; 32]), 2);
        assert_eq!(
            state.wanted_bundles(),
            [[0; 32]; 0],
            "not asked for in the pause"
        );
        for at_ms in (0..3_600_000).step_by(250) {
            let effects = state.handle(Input::Tick, at_ms);
            if fetches(&effects) > 0 {
                fetched += fetches(&effects);
                state.handle(Input::BundleNotStored([1; 32]), at_ms);
            }
        }
        assert!((15..=25).contains(&fetched), "{fetched} of 18000");
        // Another function goes, and its bundle: there is room at once.
        let effects = state.handle(plan(2, vec![function("a", 1)]), 3_600_000);
        let kept = effects.iter().position(|one| *one == Effect::Keep);
        assert_eq!(fetches(&effects), 1);
        assert!(
            kept < effects
                .iter()
                .position(|one| matches!(one, Effect::Fetch { .. }))
        );
        state.handle(Input::BundleHere([1; 32]), 3_600_001);
        assert_eq!(fetches(&state.handle(Input::Tick, 7_200_000)), 0);
    }

    #[test]
    fn a_running_node_keeps_what_it_serves_until_the_new_bundle_is_here() {
        let (mut state, _) = up();
        state.handle(plan(1, vec![function("a", 1)]), 1);
        state.handle(Input::BundleHere([1; 32]), 2);
        let effects = state.handle(second(), 3);
        assert!(!effects.contains(&Effect::Keep));
        state.handle(Input::BundleAbsent([2; 32]), 4);
        assert_eq!(state.needed_bundles(), [[1; 32], [2; 32]].into());
        assert_eq!(served(&need(&mut state, 1))[0].1, [1; 32]);
    }

    #[test]
    fn what_is_not_listed_any_more_does_not_run() {
        let (mut state, worker) = up();
        state.handle(plan(1, vec![function("a", 1)]), 1);
        state.handle(Input::BundleHere([1; 32]), 2);
        assert_eq!(served(&need(&mut state, 1)), [(worker, [1; 32])]);
        state.handle(Input::Loaded { worker }, 3);
        // Listed as a fallback, it goes on.
        let retire = Effect::Gateway(ToGateway::Retire { worker });
        assert!(!state.handle(second(), 4).contains(&retire));
        // Then it is not, and the bundle of the wanted one has still not come.
        let effects = state.handle(plan(3, vec![function("a", 2)]), 5);
        assert!(effects.contains(&retire) && effects.contains(&Effect::Keep));
        let routes = effects.iter().filter_map(|effect| match effect {
            Effect::Gateway(ToGateway::Route(route)) => Some(route.hosts.len()),
            _ => None,
        });
        assert_eq!(routes.collect::<Vec<_>>(), [0]);
        assert_eq!(state.needed_bundles(), [[2; 32]].into());
        assert_eq!(state.handle(Input::BundleAbsent([2; 32]), 6), []);
        assert_eq!(served(&need(&mut state, 1)), []);
    }

    #[test]
    fn nothing_is_removed_before_all_plans_are_told_nor_while_it_may_be_needed() {
        let mut state = proven(BOUNDS);
        let before = [2, 1].map(|release| fallback(function("a", release)));
        let functions = [vec![function("a", 3)], before.to_vec()].concat();
        state.handle(plan(3, functions), 1);
        let effects = state.handle(Input::BundleAbsent([3; 32]), 1);
        let look = |bundle| Effect::Look {
            bundle: [bundle; 32],
        };
        assert!(effects.contains(&look(1)) && effects.contains(&look(2)));
        // Only the first is there; another tenant has not been told of yet.
        let effects = state.handle(Input::BundleHere([2; 32]), 1);
        assert!(!effects.contains(&Effect::Keep));
        let other = plan_of([9; 32], vec![function("b", 7)]);
        assert!(!state.handle(other, 1).contains(&Effect::Keep));
        assert!(state.handle(Input::Told, 1).contains(&Effect::Keep));
        let all = [1, 2, 3, 7].map(|bundle| [bundle; 32]);
        assert_eq!(state.needed_bundles(), all.into());
        // The one that is wanted comes, and the others are of no use any more.
        let effects = state.handle(Input::BundleHere([3; 32]), 2);
        assert!(effects.contains(&Effect::Keep));
        assert_eq!(state.needed_bundles(), [[3; 32], [7; 32]].into());
    }

    #[test]
    fn a_bundle_that_was_a_fallbacks_is_fetched_once_it_is_wanted() {
        let (mut state, _) = up();
        state.handle(second(), 1);
        state.handle(Input::BundleAbsent([2; 32]), 1);
        assert_eq!(state.wanted_bundles(), [[2; 32]]);
        let effects = state.handle(plan(3, vec![function("a", 1)]), 2);
        let is_fetch =
            |effect: &Effect| matches!(effect, Effect::Fetch { bundle, .. } if *bundle == [1; 32]);
        assert!(effects.iter().any(is_fetch));
        assert_eq!(state.wanted_bundles(), [[1; 32]]);
    }

    #[test]
    fn a_fallback_takes_no_host_that_the_newest_manifest_gives_to_another() {
        let (mut state, _) = up();
        let before = fallback(function("a", 1));
        let host = before.hosts[0].clone();
        let moved = FunctionPlan {
            hosts: vec![],
            ..function("a", 2)
        };
        let taken = FunctionPlan {
            hosts: vec![host],
            ..function("b", 3)
        };
        state.handle(plan(2, vec![moved, before, taken]), 1);
        state.handle(Input::BundleAbsent([2; 32]), 2);
        let routes = |effects: &[Effect]| {
            let routes = effects.iter().filter_map(|effect| match effect {
                Effect::Gateway(ToGateway::Route(route)) => Some(route.hosts.len()),
                _ => None,
            });
            routes.collect::<Vec<_>>()
        };
        assert_eq!(routes(&state.handle(Input::BundleHere([1; 32]), 3)), [0]);
        assert_eq!(routes(&state.handle(Input::BundleHere([3; 32]), 4)), [1]);
    }
}
