//! Which host leads to which function.

use casemate_wire::control::gateway::{Route, ToGateway};
use casemate_wire::control::vault::FunctionPlan;
use casemate_wire::control::{Digest, FunctionKey};

use super::functions::Function;
use super::{Effect, Supervision};

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
    use casemate_wire::control::vault::LostHost;

    use super::super::Input;
    use super::super::tests::{function, plan_of, up};
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
