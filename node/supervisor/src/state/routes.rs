//! Which host leads to which function.

use casemate_wire::control::FunctionKey;
use casemate_wire::control::gateway::{Route, ToGateway};

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
                count => format!(" and {} more hosts", count - 1),
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
}
