//! Which bundles are here, and what runs until the wanted one is: what the manifest lists as a fallback, if its bundle is on the
//! disk. So a node that was cut off between a manifest and its bundle serves what it served before.

use std::collections::{BTreeMap, BTreeSet};

use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, FunctionKey};

use super::functions::Function;
use super::{Effect, Supervision};

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

/// All that some function may need.
pub(super) type Bundles = BTreeMap<Digest, Place>;

impl Function {
    /// The wanted release, and what it may fall back to.
    fn releases(&self) -> impl Iterator<Item = &FunctionPlan> {
        std::iter::once(&self.plan).chain(&self.fallbacks)
    }

    /// The release that runs now: the wanted one, or the first fallback until that is here.
    pub(super) fn current(&self, bundles: &Bundles) -> Option<&FunctionPlan> {
        let is_here = |plan: &&FunctionPlan| bundles.get(&plan.bundle) == Some(&Place::Here);
        self.releases().find(is_here)
    }

    /// Whether this release runs now.
    pub(super) fn runs(&self, release: Digest, bundles: &Bundles) -> bool {
        self.current(bundles)
            .is_some_and(|plan| plan.release == release)
    }
}

impl Supervision {
    /// Bundles that are wanted and not here.
    pub(crate) fn wanted_bundles(&self) -> Vec<Digest> {
        let coming = self
            .bundles
            .iter()
            .filter(|(_, place)| **place == Place::Coming);
        coming.map(|(digest, _)| *digest).collect()
    }

    /// Fetches the wanted bundle. With one that can run, a first function is routed at once and another release made warm first.
    pub(super) fn bring_up(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let (bundle, bytes) = (function.plan.bundle, function.plan.bundle_bytes);
        if !self.bundles.contains_key(&bundle) {
            self.bundles.insert(bundle, Place::Coming);
            self.effects.push(Effect::Fetch { bundle, bytes });
        }
        let Some(release) = function.current(&self.bundles).map(|plan| plan.release) else {
            return;
        };
        match function.routed {
            None => self.route(key),
            Some(routed) if routed != release => {
                function.warming = true;
                if !self.waiting.contains(key) {
                    self.waiting.push_back(key.clone());
                }
            }
            Some(_) => {}
        }
    }

    pub(super) fn bundle_here(&mut self, digest: Digest) {
        let Some(place) = self.bundles.get_mut(&digest) else {
            return;
        };
        *place = Place::Here;
        let needing = self.needing(digest);
        needing.iter().for_each(|key| self.bring_up(key));
        self.forget_bundles();
        let tenants: BTreeSet<Digest> = needing.iter().map(|key| key.tenant).collect();
        tenants
            .into_iter()
            .for_each(|tenant| self.look_whether_stored(tenant));
    }

    /// Whether every bundle that this manifest of a tenant wants is here.
    pub(crate) fn is_stored(&self, tenant: &Digest, version: u64) -> bool {
        self.manifests.get(tenant) == Some(&(version, true))
    }

    /// Says so once.
    pub(super) fn look_whether_stored(&mut self, tenant: Digest) {
        let Some((version, is_stored)) = self.manifests.get_mut(&tenant) else {
            return;
        };
        let mut functions = self
            .functions
            .iter()
            .filter(|(key, _)| key.tenant == tenant);
        let is_here =
            |function: &Function| self.bundles.get(&function.plan.bundle) == Some(&Place::Here);
        if !*is_stored && functions.all(|(_, function)| is_here(function)) {
            *is_stored = true;
            let version = *version;
            self.effects.push(Effect::Stored { tenant, version });
        }
    }

    /// A wanted bundle has to come over the network: meanwhile a fallback may run.
    pub(super) fn bundle_absent(&mut self, digest: Digest) {
        if self.bundles.get(&digest) != Some(&Place::Coming) {
            return;
        }
        let waiting = self
            .functions
            .values()
            .filter(|function| function.plan.bundle == digest);
        for fallback in waiting.flat_map(|function| &function.fallbacks) {
            let bundle = fallback.bundle;
            self.bundles.entry(bundle).or_insert_with(|| {
                self.effects.push(Effect::Look { bundle });
                Place::Sought
            });
        }
    }

    fn needing(&self, digest: Digest) -> Vec<FunctionKey> {
        let needs = |function: &Function| function.releases().any(|plan| plan.bundle == digest);
        let functions = self
            .functions
            .iter()
            .filter(|(_, function)| needs(function));
        functions.map(|(key, _)| key.clone()).collect()
    }

    /// Removes bundles that nothing runs and nothing wants.
    pub(super) fn forget_bundles(&mut self) {
        let needed = |function: &Function| {
            let current = function.current(&self.bundles).map(|plan| plan.bundle);
            [Some(function.plan.bundle), current].into_iter().flatten()
        };
        let keep: BTreeSet<Digest> = self.functions.values().flat_map(needed).collect();
        if self.bundles.keys().any(|digest| !keep.contains(digest)) {
            self.bundles.retain(|digest, _| keep.contains(digest));
            self.effects.push(Effect::Keep {
                bundles: keep.into_iter().collect(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::WorkerId;
    use casemate_wire::control::gateway::ToGateway;

    use super::super::Input;
    use super::super::tests::{function, key, plan, served, started, up};
    use super::*;

    /// Release 2 is wanted, and 1 ran before.
    fn second() -> Input {
        let before = FunctionPlan {
            is_fallback: true,
            ..function("a", 1)
        };
        plan(2, vec![function("a", 2), before])
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
        assert_eq!(effects, [Effect::Fetch { bundle, bytes }]);
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
        assert!(effects2.contains(&Effect::Keep {
            bundles: vec![[2; 32]]
        }));
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
    fn a_running_node_keeps_what_it_serves_until_the_new_bundle_is_here() {
        let (mut state, _) = up();
        state.handle(plan(1, vec![function("a", 1)]), 1);
        state.handle(Input::BundleHere([1; 32]), 2);
        let effects = state.handle(second(), 3);
        assert!(
            !effects
                .iter()
                .any(|effect| matches!(effect, Effect::Keep { .. }))
        );
        state.handle(Input::BundleAbsent([2; 32]), 4);
        assert_eq!(served(&need(&mut state, 1))[0].1, [1; 32]);
    }

    #[test]
    fn what_is_no_fallback_any_more_does_not_run() {
        let (mut state, _) = up();
        state.handle(plan(1, vec![function("a", 1)]), 1);
        state.handle(Input::BundleHere([1; 32]), 2);
        let effects = state.handle(plan(2, vec![function("a", 2)]), 3);
        assert!(effects.contains(&Effect::Keep {
            bundles: vec![[2; 32]]
        }));
        let effects = state.handle(Input::BundleAbsent([2; 32]), 4);
        assert_eq!(effects, []);
        assert_eq!(served(&need(&mut state, 1)), []);
    }
}
