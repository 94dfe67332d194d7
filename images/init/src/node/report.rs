//! A node's status in the form in which an operator reads it.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::console::Problem;
use crate::update::Health;

/// Most problems of a node on the page, so that a tenant cannot fill the console.
const MAX_PROBLEMS: usize = 8;

/// The lines of the page about a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) state: String,
    pub(super) listening: String,
    pub(super) control: String,
    pub(super) problems: Vec<Problem>,
}

/// The health of the node, for the trial of an image.
pub(super) fn health(status: &Value) -> Health {
    Health {
        vault: status["vault"]["member"] == true,
        connected: status["connected"] == true,
        serving: serves(status),
    }
}

/// Whether functions are served. A route alone does not prove it: workers must start too.
fn serves(status: &Value) -> bool {
    let state = &status["state"];
    let workers = |stage: &str| state["workers"][stage].as_u64().unwrap_or_default();
    let has_worker = ["spare", "loading", "serving"]
        .iter()
        .any(|stage| workers(stage) > 0);
    // Where no spares are wanted, a request starts a worker.
    let are_well = state["worker_failures"] == 0 && (has_worker || workers("starting") == 0);
    // A node without functions needs no route.
    let has_route = routed(status) > 0 || functions(status).is_empty();
    state["gateway"]["up"] == true && are_well && has_route
}

fn functions(status: &Value) -> &[Value] {
    let functions = status["state"]["functions"].as_array();
    functions.map_or(&[], Vec::as_slice)
}

/// Number of functions that callers can reach.
fn routed(status: &Value) -> usize {
    let is_routed = |function: &&Value| function["routed"].is_string();
    functions(status).iter().filter(is_routed).count()
}

/// Translates a node's status into the lines of the page.
pub(super) fn report(status: &Value, is_member: bool) -> Report {
    let empty = Vec::new();
    let functions = functions(status);
    let routed = routed(status);
    let listening = status["listening"].as_array().unwrap_or(&empty);
    let listening: Vec<_> = listening.iter().filter_map(Value::as_str).collect();
    let connected = status["connected"] == true;
    let mut problems = BTreeSet::new();
    let because = status["disconnected_because"].as_str();
    if let (false, Some(why)) = (connected, because) {
        problems.insert(Problem::new(
            format!("the control plane is away: {why}"),
            "check the network between here and the control plane; functions still serve",
        ));
    }
    if is_member && status["vault"]["lease_left_secs"].as_u64().unwrap_or(0) == 0 && !connected {
        problems.insert(Problem::new(
            "no lease: functions serve, but credentials are not used",
            "bring the control plane back; no state is lost",
        ));
    }
    let worker_failures = status["state"]["worker_failures"].as_u64().unwrap_or(0);
    if worker_failures > 0 {
        problems.insert(Problem::new(
            format!("workers do not start ({worker_failures} in a row): functions answer only while their present workers run"),
            "the log shows why a worker ended; memory may be short, or the kernel lacks a layer that `require` names",
        ));
    }
    for function in functions {
        if let (Some(error), Some(name)) =
            (function["error"].as_str(), function["function"].as_str())
        {
            problems.insert(Problem::new(
                format!("the function {name}: {error}"),
                "its tenant sees this in `casemate logs`",
            ));
        }
    }
    let vault_error = status["vault"]["error"].as_str();
    if let Some(error) = vault_error {
        problems.insert(Problem::new(
            format!("the vault cannot start: {error}"),
            "follow this message; the vault is restarted until it starts",
        ));
    }
    let is_waiting = status["vault"]["member"] == false;
    let state = match (is_member, listening.is_empty(), routed) {
        _ if vault_error.is_some() => {
            "the vault does not run: credentials cannot be used".to_owned()
        }
        _ if is_waiting => "waiting to be admitted: run `casemate node admit NAME`".to_owned(),
        (false, ..) | (_, true, _) => "starting the node".to_owned(),
        (true, ..) if worker_failures > 0 => "workers do not start".to_owned(),
        (true, _, 0) => "ready; no function yet".to_owned(),
        (true, _, 1) => "serving 1 function".to_owned(),
        (true, _, count) => format!("serving {count} functions"),
    };
    Report {
        state,
        listening: listening.join(", "),
        control: if connected {
            "connected"
        } else {
            "not connected"
        }
        .to_owned(),
        problems: problems.into_iter().take(MAX_PROBLEMS).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_workers_do_not_start_does_not_serve() {
        let status = |workers: Value, failures: u32, routed: Value| {
            serde_json::json!({ "state": {
                "gateway": { "up": true }, "workers": workers, "worker_failures": failures,
                "functions": [{ "function": "web", "routed": routed }],
            } })
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert!(serves(&status(json(r#"{"spare":1}"#), 0, "ab".into())));
        assert!(serves(&status(
            json(r#"{"serving":1,"starting":1}"#),
            0,
            "ab".into()
        )));
        assert!(serves(&status(json("{}"), 0, "ab".into())));
        assert!(!serves(&status(json(r#"{"starting":1}"#), 0, "ab".into())));
        let mut failing = status(json(r#"{"starting":1}"#), 3, "ab".into());
        failing["listening"] = serde_json::json!(["0.0.0.0:80"]);
        let said = report(&failing, true);
        assert_eq!(said.state, "workers do not start");
        let problem = |problem: &Problem| problem.what.contains("3 in a row");
        assert!(said.problems.iter().any(problem));
        assert!(!serves(&status(json("{}"), 3, "ab".into())));
        assert!(!serves(&status(json(r#"{"spare":1}"#), 0, Value::Null)));
        let mut none = status(json(r#"{"spare":1}"#), 0, Value::Null);
        none["state"]["functions"] = json("[]");
        assert!(serves(&none));
        none["state"]["gateway"]["up"] = false.into();
        assert!(!serves(&none) && !serves(&Value::Null));
    }

    #[test]
    fn a_status_becomes_a_line_that_an_operator_understands() {
        let mut status = serde_json::json!({
            "listening": ["0.0.0.0:80"], "connected": true, "disconnected_because": null,
            "vault": { "member": true, "lease_left_secs": 5 },
            "state": { "functions": [{ "function": "web", "routed": "ab", "error": null }] },
        });
        let well = report(&status, true);
        assert_eq!(
            (well.state.as_str(), well.problems.len()),
            ("serving 1 function", 0)
        );
        status["vault"]["member"] = false.into();
        assert!(report(&status, false).state.contains("node admit"));
        status["vault"] = serde_json::json!({ "error": "vault.toml:1: unknown field" });
        let none = report(&status, false);
        assert!(
            none.state.contains("the vault does not run")
                && none.problems[0].what.contains("unknown field")
        );
        status["vault"] = serde_json::json!({ "member": true });
        status["connected"] = false.into();
        status["disconnected_because"] = "no answer in time".into();
        status["vault"]["lease_left_secs"] = 0.into();
        status["state"]["functions"][0]["error"] = "it throws".into();
        let ill = report(&status, true);
        assert_eq!(ill.problems.len(), 3, "{ill:?}");
        assert_eq!(report(&Value::Null, false).state, "starting the node");
    }
}
