//! Which host leads to which function.

use casemate_wire::control::gateway::{MAX_EXPECTED, Route, Standing, ToGateway};
use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, FunctionKey};

use super::functions::Function;
use super::{Effect, Stage, Supervision, Worker};

/// Starts of workers that fail in a row until the node says that it has none to give.
const SPARE_FAILURES: u32 = 3;

impl Supervision {
    /// Nobody is led to a function any more; its hosts lead to whoever waits for them.
    pub(super) fn unroute(&mut self, key: &FunctionKey) {
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        if function.routed.take().is_none() {
            return;
        }
        let given_up = std::mem::take(&mut function.hosts);
        let route = Route {
            key: key.clone(),
            release: function.plan.release,
            hosts: Vec::new(),
            perimeter: function.plan.perimeter.clone(),
        };
        self.effects
            .push(Effect::Gateway(ToGateway::Route(Box::new(route))));
        given_up
            .iter()
            .for_each(|host| drop(self.owners.remove(host)));
        self.hand_on(&given_up);
    }

    /// Leads the function's hosts to the release that runs now. A host that another function has stays there: both were signed for
    /// by the root, and whoever came first keeps it until it is given up or the operator decides.
    pub(super) fn route(&mut self, key: &FunctionKey) {
        let current = self.functions.get(key);
        let current = current.and_then(|function| function.current(&self.bundles));
        let Some(mut plan) = current.cloned() else {
            return;
        };
        if plan.is_fallback {
            // What the newest manifest gives to another function is not an older release's.
            plan.hosts
                .retain(|host| !self.is_given_to_another(key, host));
        }
        let Some(function) = self.functions.get_mut(key) else {
            return;
        };
        let (lost, hosts): (Vec<String>, Vec<String>) = plan
            .hosts
            .iter()
            .cloned()
            .partition(|host| self.owners.get(host).is_some_and(|owner| owner != key));
        let conflict = (!lost.is_empty()).then(|| {
            let more = match lost.len() {
                1 => String::new(),
                count => format!(" (and {} more of its hosts)", count - 1),
            };
            format!(
                "callers of {}{more} reach another function, which came first",
                lost[0]
            )
        });
        if let Some(message) = conflict.clone().filter(|_| function.conflict != conflict) {
            let key = key.clone();
            self.effects.push(Effect::Warn { key, message });
        }
        function.conflict = conflict;
        function.routed = Some(plan.release);
        let before = std::mem::replace(&mut function.hosts, hosts.clone());
        let route = Route {
            key: key.clone(),
            release: plan.release,
            hosts,
            perimeter: plan.perimeter,
        };
        let given_up: Vec<String> = before
            .into_iter()
            .filter(|host| !route.hosts.contains(host))
            .collect();
        given_up
            .iter()
            .for_each(|host| drop(self.owners.remove(host)));
        let owned = route.hosts.iter().map(|host| (host.clone(), key.clone()));
        self.owners.extend(owned);
        self.effects
            .push(Effect::Gateway(ToGateway::Route(Box::new(route))));
        self.hand_on(&given_up);
    }

    fn is_given_to_another(&self, key: &FunctionKey, host: &String) -> bool {
        let mut functions = self.functions.iter();
        functions.any(|(other, function)| other != key && function.plan.hosts.contains(host))
    }

    /// Hosts that a function has given up lead to whoever waits for them.
    fn hand_on(&mut self, hosts: &[String]) {
        if hosts.is_empty() {
            return;
        }
        // One whose next release is being made ready is routed by that.
        let waits = |function: &Function| {
            let current = function
                .current(&self.bundles)
                .filter(|plan| function.routed == Some(plan.release));
            function.conflict.is_some()
                && current.is_some_and(|plan| plan.hosts.iter().any(|host| hosts.contains(host)))
        };
        let waiting = self
            .functions
            .iter()
            .filter(|(_, function)| waits(function));
        let waiting: Vec<FunctionKey> = waiting.map(|(key, _)| key.clone()).collect();
        waiting.iter().for_each(|key| self.route(key));
    }

    /// Tells the gateway whether the node should get callers, when that has changed. Behind the routes: a host without one
    /// has none, then.
    pub(super) fn tell_standing(&mut self, concerns_hosts: bool) {
        if concerns_hosts && self.is_told {
            let plans = self.functions.values();
            let hosts = plans.flat_map(|function| &function.plan.hosts);
            let missing = hosts.filter(|host| !self.owners.contains_key(*host));
            self.expected = missing.take(MAX_EXPECTED).cloned().collect();
        }
        if !self.gateway.up {
            self.standing = None;
            return;
        }
        let can_start = self.can_start();
        let is_as_told = |told: &Standing| {
            told.is_loaded == self.is_told
                && told.can_start == can_start
                && (!concerns_hosts || told.expected.iter().eq(&self.expected))
        };
        if self.standing.as_ref().is_some_and(is_as_told) {
            return;
        }
        let standing = Standing {
            is_loaded: self.is_told,
            expected: self.expected.iter().cloned().collect(),
            can_start,
        };
        let message = ToGateway::Standing(standing.clone());
        self.effects.push(Effect::Gateway(message));
        self.standing = Some(standing);
    }

    /// Whether a request for a function without a worker can be hoped to get one.
    fn can_start(&self) -> bool {
        let is_of_use = |worker: &Worker| {
            matches!(
                worker.stage,
                Stage::Spare | Stage::Loading(..) | Stage::Serving(..)
            )
        };
        self.spare_failures < SPARE_FAILURES || self.workers.values().any(is_of_use)
    }

    /// A gateway that has just started knows no route.
    pub(super) fn route_all(&mut self) {
        let keys: Vec<FunctionKey> = self.functions.keys().cloned().collect();
        keys.iter().for_each(|key| self.route(key));
    }

    /// The release that a function's callers reach, and the hosts that its plan gives to that.
    pub(super) fn routed_hosts(&self, key: &FunctionKey) -> Option<(Digest, Vec<String>)> {
        let function = self.functions.get(key)?;
        let routed = function.routed?;
        let plan = function.releases().find(|plan| plan.release == routed)?;
        Some((routed, plan.hosts.clone()))
    }

    /// Routes a function anew whose release has stayed the same and whose hosts have not: the root has given one of them to
    /// another tenant, or taken it from one.
    pub(super) fn route_other_hosts(
        &mut self,
        key: &FunctionKey,
        before: Option<(Digest, Vec<String>)>,
    ) {
        let is_other = match (before, self.routed_hosts(key)) {
            (Some((before, hosts)), Some((now, others))) => before == now && hosts != others,
            _ => false,
        };
        if is_other {
            self.route(key);
        }
    }

    /// Says in the function's own log, once for each change, which of its hosts are another tenant's. Whose they are is
    /// only the operator's to know, who finds it in the node's status.
    pub(super) fn warn_of_lost_hosts(&mut self, key: &FunctionKey, plan: &FunctionPlan) {
        let held = self.functions.get(key).map(|held| &held.plan.lost_hosts);
        let Some(first) = plan.lost_hosts.first() else {
            return;
        };
        if held == Some(&plan.lost_hosts) {
            return;
        }
        let more = match plan.lost_hosts.len() {
            1 => String::new(),
            count => format!(" (and {} more of its hosts)", count - 1),
        };
        let message = format!(
            "callers of {}{more} do not reach this function: the host belongs to another tenant, which the operator admitted \
             first",
            first.host
        );
        let key = key.clone();
        self.effects.push(Effect::Warn { key, message });
    }
}

#[cfg(test)]
mod tests {
    use casemate_wire::control::Failure;
    use casemate_wire::control::vault::LostHost;

    use super::super::tests::{BOUNDS, function, plan_of, started, up};
    use super::super::{BACKOFF_MAX_MS, Input, Single};
    use super::*;

    /// Two tenants with a function for the same host; the second one's may be the first one's.
    fn plan_with(tenant: u8, owner: Option<&str>) -> Input {
        let mut function = function("web", tenant);
        if let Some(owner) = owner {
            function.lost_hosts = vec![LostHost {
                host: "web.test".into(),
                owner: owner.into(),
            }];
            function.hosts.clear();
        }
        plan_of([tenant; 32], vec![function])
    }

    /// The function that each route names, with its hosts.
    fn routes(effects: &[Effect]) -> Vec<(u8, Vec<String>)> {
        let routes = effects.iter().filter_map(|effect| match effect {
            Effect::Gateway(ToGateway::Route(route)) => {
                Some((route.key.tenant[0], route.hosts.clone()))
            }
            _ => None,
        });
        routes.collect()
    }

    fn warnings(effects: &[Effect]) -> Vec<(u8, &str)> {
        let warnings = effects.iter().filter_map(|effect| match effect {
            Effect::Warn { key, message } => Some((key.tenant[0], message.as_str())),
            _ => None,
        });
        warnings.collect()
    }

    fn standings(effects: &[Effect]) -> Vec<(bool, Vec<&str>, bool)> {
        let standings = effects.iter().filter_map(|effect| match effect {
            Effect::Gateway(ToGateway::Standing(standing)) => {
                let expected = standing.expected.iter().map(String::as_str).collect();
                Some((standing.is_loaded, expected, standing.can_start))
            }
            _ => None,
        });
        standings.collect()
    }

    #[test]
    fn the_gateway_hears_when_all_plans_are_known_and_which_hosts_wait() {
        let mut state = Supervision::new(BOUNDS);
        let first = started(&state.handle(Input::Tick, 0))[0];
        state.handle(Input::Up(Single::Vault), 0);
        // The vault is slow: the gateway has no route, and knows that this says nothing.
        let effects = state.handle(Input::Up(Single::Gateway), 0);
        assert_eq!(standings(&effects), [(false, vec![], true)]);
        let effects = state.handle(plan_with(1, None), 1);
        assert_eq!(standings(&effects), []);
        let effects = state.handle(Input::Told, 1);
        assert_eq!(standings(&effects), [(true, vec!["web.test"], true)]);
        // Its route comes first.
        let effects = state.handle(Input::BundleHere([1; 32]), 2);
        assert_eq!(routes(&effects).len(), 1);
        assert_eq!(standings(&effects[1..]), [(true, vec![], true)]);
        assert_eq!(standings(&state.handle(Input::Tick, 3)), []);
        // Workers that do not start.
        let (mut now_ms, mut worker, mut told) = (4, first, Vec::new());
        for _ in 0..SPARE_FAILURES {
            let failure = Failure::WorkerLost;
            let child = worker.0;
            let ended = state.handle(Input::Ended { child, failure }, now_ms);
            told.extend(standings(&ended).iter().map(|(.., can_start)| *can_start));
            now_ms += BACKOFF_MAX_MS;
            let again = state.handle(Input::Tick, now_ms);
            worker = started(&again)[0];
        }
        assert_eq!(told, [false]);
        let effects = state.handle(Input::Ready { worker }, now_ms);
        assert_eq!(standings(&effects), [(true, vec![], true)]);
        // A gateway that was started again is told anew, behind its routes.
        let child = state.gateway.child.unwrap();
        let failure = Failure::WorkerLost;
        state.handle(Input::Ended { child, failure }, now_ms);
        let effects = state.handle(Input::Up(Single::Gateway), now_ms);
        assert_eq!(routes(&effects).len(), 1);
        assert_eq!(standings(&effects), [(true, vec![], true)]);
    }

    #[test]
    fn a_host_moves_to_the_tenant_that_owns_it_although_no_release_changes() {
        let (mut state, _) = up();
        let web = vec!["web.test".to_owned()];
        state.handle(plan_with(2, None), 1);
        let effects = state.handle(Input::BundleHere([2; 32]), 1);
        assert_eq!(routes(&effects), [(2, web.clone())]);
        // The tenant that was admitted first comes later, and the vault tells both plans.
        state.handle(plan_with(1, None), 2);
        state.handle(Input::BundleHere([1; 32]), 2);
        let effects = state.handle(plan_with(2, Some("acme")), 3);
        assert_eq!(routes(&effects), [(2, vec![]), (1, web.clone())]);
        let said = warnings(&effects);
        assert!(said[0].1.contains("web.test"), "{said:?}");
        assert!(
            said.iter().all(|(_, text)| !text.contains("acme")),
            "the tenant is not told whose the host is: {said:?}"
        );
        let status = state.describe().to_string();
        assert!(status.contains(r#"{"host":"web.test","tenant":"acme"}"#));
        // Once is enough, and what is given back is routed again.
        let effects = state.handle(plan_with(2, Some("acme")), 4);
        assert_eq!((routes(&effects), warnings(&effects)), (vec![], vec![]));
        state.handle(plan_of([1; 32], vec![]), 5);
        let effects = state.handle(plan_with(2, None), 6);
        assert_eq!(routes(&effects), [(2, web)]);
    }
}
