//! How tenants share the disk for bundles. A tenant pays for every bundle that it wants, also for one that another tenant has too:
//! what it may keep says nothing about others. What it may fall back to while wanted bundles come takes as much again at most.

use std::collections::{BTreeMap, BTreeSet};

use casemate_trust::release::MAX_BUNDLE_BYTES;
use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, FunctionKey};

use super::functions::Function;
use super::share::RESERVED_ONE_IN;
use super::{Effect, Supervision};

/// Room for bundles on this node's disk, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// For those that all tenants want.
    pub(crate) all_bytes: u64,
    /// For those that one tenant wants.
    pub(crate) tenant_bytes: u64,
}

impl Room {
    /// A quarter for each tenant, and in any case room for one bundle, which has at most 10 MiB.
    pub(crate) fn of(all_bytes: u64, tenant_bytes: Option<u64>) -> Self {
        let all_bytes = all_bytes.max(MAX_BUNDLE_BYTES);
        let tenant_bytes = tenant_bytes.unwrap_or(all_bytes / 4);
        Self {
            all_bytes,
            tenant_bytes: tenant_bytes.max(MAX_BUNDLE_BYTES),
        }
    }
}

/// That bundles of a manifest are not kept here, for the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NotStored {
    pub(crate) tenant: Digest,
    pub(crate) version: u64,
    /// Stable name.
    pub(crate) code: &'static str,
    /// For people: what is not kept, and what to do.
    pub(crate) message: String,
}

/// Why a bundle is not kept here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shortage {
    /// The tenant's share is used up.
    Quota,
    /// The room is used up, but for what is kept for tenants that have no bundle here.
    Space,
}

impl Shortage {
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Quota => "bundle_quota",
            Self::Space => "bundle_space",
        }
    }
}

/// Bundles that are not kept, of one tenant or one function.
pub(super) type Refused = BTreeMap<Digest, Shortage>;

/// What each tenant may keep.
#[derive(Debug)]
pub(super) struct Quota {
    room: Room,
    /// On the disk when the node was started. They were kept before and go on being kept; until all plans are told, those of
    /// which no plan was told yet take room too.
    found: BTreeMap<Digest, u64>,
    kept: BTreeMap<Digest, BTreeMap<Digest, u64>>,
    /// Tenants of which a wanted bundle is not kept, with what was said of that: the manifest's version, and how many functions.
    short: BTreeMap<Digest, Option<(u64, usize)>>,
}

impl Quota {
    pub(super) fn new(room: Room) -> Self {
        let (found, kept, short) = Default::default();
        Self {
            room,
            found,
            kept,
            short,
        }
    }

    /// Decides anew what a tenant may keep; the rest of what its plan names. Bundles that are kept stay so, others follow in the
    /// plan's order.
    pub(super) fn admit<'a>(
        &mut self,
        tenant: Digest,
        plans: impl Iterator<Item = &'a FunctionPlan>,
    ) -> Refused {
        let before = self.kept.remove(&tenant).unwrap_or_default();
        let (mut wanted, mut fallbacks) = (Vec::new(), Vec::new());
        let mut depth = 0;
        for plan in plans {
            if plan.is_fallback {
                depth += 1;
                fallbacks.push((depth, plan));
            } else {
                depth = 0;
                wanted.push(plan);
            }
        }
        let was_kept =
            |bundle: &Digest| before.contains_key(bundle) || self.found.contains_key(bundle);
        wanted.sort_by_key(|plan| !was_kept(&plan.bundle));
        fallbacks.sort_by_key(|(depth, _)| *depth);
        let others = self.bytes_but(&wanted);
        let (mut kept, mut refused) = (BTreeMap::new(), Refused::new());
        let mut bytes = 0;
        for plan in wanted {
            if kept.contains_key(&plan.bundle) {
                continue;
            }
            let ceiling = match kept.len() {
                0 => self.room.all_bytes,
                _ => self.room.all_bytes - self.room.all_bytes / RESERVED_ONE_IN as u64,
            };
            let after = bytes + plan.bundle_bytes;
            if after > self.room.tenant_bytes {
                refused.insert(plan.bundle, Shortage::Quota);
            } else if others + after > ceiling && !was_kept(&plan.bundle) {
                refused.insert(plan.bundle, Shortage::Space);
            } else {
                kept.insert(plan.bundle, plan.bundle_bytes);
                bytes = after;
            }
        }
        if refused.is_empty() {
            self.short.remove(&tenant);
        } else {
            self.short.entry(tenant).or_default();
        }
        let (mut seen, mut bytes) = (BTreeSet::new(), 0);
        for (_, plan) in fallbacks {
            let is_counted = kept.contains_key(&plan.bundle) || !seen.insert(plan.bundle);
            if is_counted || refused.contains_key(&plan.bundle) {
                continue;
            }
            if bytes + plan.bundle_bytes > self.room.tenant_bytes {
                refused.insert(plan.bundle, Shortage::Quota);
            } else {
                bytes += plan.bundle_bytes;
            }
        }
        if !kept.is_empty() {
            self.kept.insert(tenant, kept);
        }
        refused
    }

    /// What others take, and what nobody was told to want yet.
    fn bytes_but(&self, wanted: &[&FunctionPlan]) -> u64 {
        let kept = self.kept.values().flat_map(BTreeMap::iter);
        let claimed: BTreeSet<&Digest> = kept
            .clone()
            .map(|(bundle, _)| bundle)
            .chain(wanted.iter().map(|plan| &plan.bundle))
            .collect();
        let unclaimed = self.found.iter();
        let unclaimed = unclaimed.filter(|(bundle, _)| !claimed.contains(bundle));
        kept.chain(unclaimed).map(|(_, bytes)| bytes).sum()
    }
}

/// Of these, what a function names.
pub(super) fn of_function(
    refused: &Refused,
    wanted: &FunctionPlan,
    fallbacks: &[FunctionPlan],
) -> Refused {
    let bundles = std::iter::once(wanted).chain(fallbacks);
    bundles
        .filter_map(|plan| refused.get_key_value(&plan.bundle))
        .map(|(bundle, shortage)| (*bundle, *shortage))
        .collect()
}

impl Supervision {
    /// These are on the disk as the node starts.
    pub(super) fn found(&mut self, found: BTreeMap<Digest, u64>) {
        if !self.is_told {
            self.quota.found = found;
        }
    }

    /// All plans are told: what was found and nobody wants takes no room.
    pub(super) fn nothing_is_found_any_more(&mut self) {
        self.quota.found.clear();
        self.admit_short(None);
    }

    /// Functions of a tenant.
    pub(super) fn functions_of(
        &self,
        tenant: Digest,
    ) -> impl Iterator<Item = (&FunctionKey, &Function)> {
        let first = FunctionKey {
            tenant,
            function: String::new(),
        };
        let functions = self.functions.range(first..);
        functions.take_while(move |(key, _)| key.tenant == tenant)
    }

    /// There may be more room for those who found none, but for this tenant.
    pub(super) fn admit_short(&mut self, but: Option<Digest>) {
        let short: Vec<Digest> = self.quota.short.keys().copied().collect();
        for tenant in short.into_iter().filter(|tenant| Some(*tenant) != but) {
            // Plans may be as large as all that a tenant runs: they are looked at and not copied.
            let aside = Quota::new(self.quota.room);
            let mut quota = std::mem::replace(&mut self.quota, aside);
            let functions = self.functions_of(tenant);
            let plans = functions.flat_map(|(_, function)| function.releases());
            let refused = quota.admit(tenant, plans);
            self.quota = quota;
            let keys: Vec<FunctionKey> = self
                .functions_of(tenant)
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                let Some(function) = self.functions.get_mut(&key) else {
                    continue;
                };
                let of_it = of_function(&refused, &function.plan, &function.fallbacks);
                if function.refused != of_it {
                    function.refused = of_it;
                    self.bring_up(&key);
                }
            }
            self.say_shortage(tenant);
        }
    }

    /// Tells the tenant and the control plane which functions wait for room, once for each manifest and each number of them. Not
    /// before all plans are told: until then there may be more room than there seems.
    pub(super) fn say_shortage(&mut self, tenant: Digest) {
        let Some(version) = self.manifests.get(&tenant).map(|(version, _)| *version) else {
            return;
        };
        if !self.is_told || !self.quota.short.contains_key(&tenant) {
            return;
        }
        let short: Vec<FunctionKey> = self.short_functions(tenant).cloned().collect();
        let said = Some((version, short.len()));
        if self.quota.short.insert(tenant, said) == Some(said) {
            return;
        }
        let Some((code, message)) = self.shortage(tenant) else {
            return;
        };
        for key in short {
            let message = format!("{message} ({code})");
            self.effects.push(Effect::Warn { key, message });
        }
        self.effects.push(Effect::NotStored(NotStored {
            tenant,
            version,
            code,
            message,
        }));
    }

    /// What is not kept, for a control plane that was not told on this connection.
    pub(crate) fn not_stored(&self) -> Vec<NotStored> {
        let tenants = self.quota.short.iter();
        let said = tenants.filter_map(|(tenant, said)| Some((*tenant, said.as_ref()?.0)));
        let short = said.filter_map(|(tenant, version)| {
            let (code, message) = self.shortage(tenant)?;
            Some(NotStored {
                tenant,
                version,
                code,
                message,
            })
        });
        short.chain(self.not_run()).collect()
    }

    /// Whether a bundle of this size is what some function has declared.
    pub(crate) fn is_declared(&self, bundle: &Digest, bytes: u64) -> bool {
        let users = self.users.get(bundle).into_iter().flatten();
        let plans = users
            .filter_map(|key| self.functions.get(key))
            .flat_map(Function::releases);
        plans
            .filter(|plan| plan.bundle == *bundle)
            .any(|plan| plan.bundle_bytes == bytes)
    }

    fn short_functions(&self, tenant: Digest) -> impl Iterator<Item = &FunctionKey> {
        let is_short = |function: &Function| function.refused.contains_key(&function.plan.bundle);
        let functions = self.functions_of(tenant);
        functions
            .filter(move |(_, function)| is_short(function))
            .map(|(key, _)| key)
    }

    /// Why wanted bundles of a tenant are not kept.
    fn shortage(&self, tenant: Digest) -> Option<(&'static str, String)> {
        let first = self.short_functions(tenant).next()?;
        let function = self.functions.get(first)?;
        let shortage = *function.refused.get(&function.plan.bundle)?;
        let count = self.short_functions(tenant).count();
        let message = self.shortage_message(&first.function, count, shortage);
        Some((shortage.code(), message))
    }

    fn shortage_message(&self, function: &str, functions: usize, shortage: Shortage) -> String {
        const MIB: u64 = 1024 * 1024;
        let what = match functions {
            1 => format!("the bundle of `{function}` is"),
            more => format!(
                "the bundles of `{function}` and {} more functions are",
                more - 1
            ),
        };
        let tenant_mib = self.quota.room.tenant_bytes / MIB;
        match shortage {
            Shortage::Quota => format!(
                "{what} not kept on this node: the bundles that a tenant wants may have {tenant_mib} MiB here. Make bundles smaller or \
                 remove functions, or ask the operator for a larger `tenant_mib`"
            ),
            Shortage::Space => format!(
                "{what} not kept on this node: its room for bundles is used up. Remove functions, or ask the operator for a larger disk \
                 or `max_mib`"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BOUNDS, dice, fallback, function, plan_of, proven};
    use super::super::{Bounds, Input};
    use super::*;

    /// Of a bundle, unless said otherwise.
    const BYTES: u64 = 10;

    /// Eight bundles, of which one tenant has two, and the last is for one that has none.
    fn node() -> Supervision {
        proven(Bounds {
            room: Room {
                all_bytes: 8 * BYTES,
                tenant_bytes: 2 * BYTES,
            },
            ..BOUNDS
        })
    }

    fn sized(name: &str, release: u8, bytes: u64) -> FunctionPlan {
        FunctionPlan {
            bundle_bytes: bytes,
            ..function(name, release)
        }
    }

    /// A function for each release, in the order of their numbers.
    fn wants(tenant: u8, releases: &[u8]) -> Input {
        let functions = releases.iter().map(|release| {
            let name = format!("f{release:03}");
            sized(&name, *release, BYTES)
        });
        plan_of([tenant; 32], functions.collect())
    }

    fn fetched(effects: &[Effect]) -> Vec<u8> {
        let fetched = effects.iter().filter_map(|effect| match effect {
            Effect::Fetch { bundle, .. } => Some(bundle[0]),
            _ => None,
        });
        fetched.collect()
    }

    fn said(effects: &[Effect]) -> Vec<(u8, &'static str)> {
        let said = effects.iter().filter_map(|effect| match effect {
            Effect::NotStored(not) => Some((not.tenant[0], not.code)),
            _ => None,
        });
        said.collect()
    }

    fn here(state: &mut Supervision, bundles: &[u8]) {
        for bundle in bundles {
            state.handle(Input::BundleHere([*bundle; 32]), 1);
        }
    }

    #[test]
    fn a_greedy_tenant_keeps_nobody_elses_bundle_out_after_a_restart_neither() {
        let mut state = node();
        state.handle(Input::Told, 1);
        let greedy: Vec<u8> = (10..60).collect();
        let effects = state.handle(wants(1, &greedy), 1);
        assert_eq!(fetched(&effects), [10, 11]);
        assert_eq!(said(&effects), [(1, "bundle_quota")]);
        here(&mut state, &[10, 11]);
        assert!(!state.is_stored(&[1; 32], 1));
        let warned = effects
            .iter()
            .filter(|one| matches!(one, Effect::Warn { .. }));
        assert_eq!(warned.count(), 48, "each function that has no room");
        // What is refused is said once, and again to a control plane that was away.
        assert_eq!(said(&state.handle(wants(1, &greedy), 1)), []);
        let again = state.not_stored();
        assert_eq!(again.len(), 1);
        assert!(
            again[0].message.contains("`f012` and 47 more functions"),
            "{again:?}"
        );
        let modest = state.handle(wants(2, &[70]), 1);
        assert_eq!(fetched(&modest), [70]);
        here(&mut state, &[70]);
        assert!(state.is_stored(&[2; 32], 1));
        let on_disk = state.needed_bundles();
        assert_eq!(on_disk, [10, 11, 70].map(|bundle| [bundle; 32]).into());
        // The same disk after a restart, and a function more that comes first in the plan.
        let mut state = node();
        let found = on_disk.iter().map(|bundle| (*bundle, BYTES)).collect();
        state.handle(
            Input::Found {
                bundles: found,
                loaded: BTreeSet::new(),
            },
            1,
        );
        let more: Vec<u8> = (5..60).collect();
        assert_eq!(fetched(&state.handle(wants(1, &more), 1)), [10, 11]);
        assert_eq!(fetched(&state.handle(wants(2, &[70]), 1)), [70]);
        let effects = state.handle(Input::Told, 1);
        assert_eq!(said(&effects), [(1, "bundle_quota")]);
        assert_eq!(state.needed_bundles(), on_disk);
    }

    #[test]
    fn the_last_eighth_is_for_tenants_that_have_none() {
        let mut state = node();
        state.handle(Input::Told, 1);
        for tenant in 1..=3 {
            let effects = state.handle(wants(tenant, &[10 * tenant, 10 * tenant + 1]), 1);
            assert_eq!(fetched(&effects).len(), 2);
        }
        let effects = state.handle(wants(4, &[40, 41]), 1);
        assert_eq!(fetched(&effects), [40]);
        assert_eq!(said(&effects), [(4, "bundle_space")]);
        assert_eq!(fetched(&state.handle(wants(5, &[50]), 1)), [50]);
        let effects = state.handle(wants(6, &[60]), 1);
        assert_eq!(said(&effects), [(6, "bundle_space")]);
        // Others need less: who waits is served, and what was kept is kept.
        let effects = state.handle(wants(1, &[10]), 1);
        assert_eq!(fetched(&effects), [60]);
        let effects = state.handle(wants(2, &[]), 1);
        assert_eq!(fetched(&effects), [41]);
        assert_eq!(state.not_stored(), []);
    }

    #[test]
    fn until_all_plans_are_told_what_others_have_on_the_disk_takes_room() {
        let mut state = node();
        let others = (1..=7).map(|bundle| ([bundle; 32], BYTES)).collect();
        state.handle(
            Input::Found {
                bundles: others,
                loaded: BTreeSet::new(),
            },
            1,
        );
        let effects = state.handle(wants(9, &[90, 91]), 1);
        assert_eq!((fetched(&effects), said(&effects)), (vec![90], vec![]));
        // Nobody wants them any more.
        let effects = state.handle(Input::Told, 1);
        assert_eq!((fetched(&effects), said(&effects)), (vec![91], vec![]));
    }

    #[test]
    fn what_another_tenant_has_is_paid_for_and_not_run_without_room() {
        let mut state = node();
        state.handle(Input::Told, 1);
        state.handle(wants(1, &[10, 11]), 1);
        here(&mut state, &[10, 11]);
        state.handle(wants(2, &[20, 21]), 1);
        here(&mut state, &[20, 21]);
        // The bundle of tenant 1 lies on the disk; tenant 2 has no room for it, and does not learn that.
        let effects = state.handle(wants(2, &[20, 21, 11]), 1);
        assert_eq!(said(&effects), [(2, "bundle_quota")]);
        let key = FunctionKey {
            tenant: [2; 32],
            function: "f011".into(),
        };
        assert!(state.functions[&key].current(&state.bundles).is_none());
        assert_eq!(
            fetched(&state.handle(wants(2, &[20, 11]), 1)),
            [0; 0],
            "it is here"
        );
        assert!(state.functions[&key].is_here(&state.bundles));
    }

    #[test]
    fn a_release_without_room_leaves_what_ran_before() {
        let mut state = node();
        state.handle(Input::Told, 1);
        let before = sized("web", 1, BYTES);
        state.handle(plan_of([1; 32], vec![before.clone()]), 1);
        here(&mut state, &[1]);
        let large = sized("web", 2, 2 * BYTES + 1);
        let effects = state.handle(plan_of([1; 32], vec![large, fallback(before)]), 1);
        assert_eq!(said(&effects), [(1, "bundle_quota")]);
        assert_eq!(state.needed_bundles(), [[1; 32]].into());
        let key = state.functions.keys().next().unwrap();
        let current = state.functions[key].current(&state.bundles);
        assert_eq!(current.unwrap().release, [1; 32]);
    }

    #[test]
    fn only_bundles_of_a_declared_size_are_written() {
        let mut state = node();
        state.handle(plan_of([1; 32], vec![sized("web", 1, 5)]), 1);
        let is = [4, 5, 6].map(|bytes| state.is_declared(&[1; 32], bytes));
        assert_eq!(is, [false, true, false]);
        assert!(!state.is_declared(&[2; 32], 5));
    }

    /// Any plans in any order: shares hold, what is kept stays so as long as it is wanted, and only what is kept is fetched.
    #[test]
    fn simulation() {
        let mut refused = 0;
        for seed in 0..300_u64 {
            let mut roll = dice(seed);
            let mut state = node();
            state.handle(Input::Told, 1);
            for step in 0..60 {
                let tenant = roll(6) as u8;
                // The digest says the size, as it does where nobody lies.
                let bundles = (0..roll(5))
                    .map(|_| roll(30) as u8)
                    .collect::<BTreeSet<u8>>();
                let plans = bundles.iter().map(|bundle| {
                    let bytes = u64::from(*bundle) % 13 + 1;
                    sized(&format!("f{bundle}"), *bundle, bytes)
                });
                let before = state.quota.kept.get(&[tenant; 32]).cloned();
                let effects = state.handle(plan_of([tenant; 32], plans.collect()), step);
                for bundle in fetched(&effects) {
                    if roll(2) == 0 {
                        here(&mut state, &[bundle]);
                    }
                }
                let kept = &state.quota.kept;
                let sum = |of: &BTreeMap<Digest, u64>| of.values().sum::<u64>();
                assert!(kept.values().all(|of| sum(of) <= 2 * BYTES), "seed {seed}");
                assert!(
                    kept.values().map(sum).sum::<u64>() <= 8 * BYTES,
                    "seed {seed}"
                );
                let wanted: BTreeSet<_> = kept.values().flat_map(BTreeMap::keys).collect();
                let needed = state.needed_bundles();
                assert!(
                    needed.iter().all(|bundle| wanted.contains(bundle)),
                    "seed {seed}"
                );
                for bundle in before.iter().flat_map(BTreeMap::keys) {
                    let is_wanted = bundles.contains(&bundle[0]);
                    let is_kept = kept
                        .get(&[tenant; 32])
                        .is_some_and(|of| of.contains_key(bundle));
                    assert_eq!(is_kept, is_wanted, "seed {seed}");
                }
                refused += state.quota.short.len();
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
