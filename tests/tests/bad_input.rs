//! Bad input with the real programs: each input gets a clear error that names the mistake, its
//! place, and the expected form.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;
use std::process::{Command, Stdio};

use casemate_tests::fleet::{Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::programs::{program, wait_until};
use casemate_tests::upstream::Upstream;
use tokio::task::block_in_place;

const HELLO: &str = "export default { fetch() { return new Response('hello'); } };\n";

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_reported_and_nothing_is_lost() {
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await.unwrap();
    let fleet = block_in_place(Fleet::start).unwrap();
    drop(upstream);
    block_in_place(|| mistakes(&fleet));
}

fn mistakes(fleet: &Fleet) {
    let good = fleet.small_project("good", "", HELLO).unwrap();
    fleet.deploy(&good).unwrap();
    projects_with_mistakes(fleet);
    secrets_that_break_headers(fleet, &good);
    two_deploys_at_once(fleet, &good);
    a_token_used_twice(fleet);
    a_port_in_use_and_a_locked_store(fleet);
    // The good version is still served afterwards.
    let status = fleet.tenant.json(&good, &["status"]).unwrap();
    assert!(status.to_string().contains("good"), "{status}");
}

/// Deploys a project, which must be refused with this exit code and these words.
fn refused(fleet: &Fleet, project: &Path, code: i32, parts: &[&str]) {
    let ran = fleet.tenant.run_in(project, &["deploy"], b"").unwrap();
    assert_eq!(ran.code, code, "{}", ran.stderr);
    for part in parts.iter().chain(&["next:"]) {
        let is_there = ran.stderr.contains(part);
        assert!(is_there, "{part:?} is not in: {}", ran.stderr);
    }
}

fn projects_with_mistakes(fleet: &Fleet) {
    // casemate.toml: all mistakes are reported at once, with their lines.
    let wrong = fleet
        .small_project("wrong", "limit = 1\n[limits]\ncpu_time = 5\n", HELLO)
        .unwrap();
    refused(fleet, &wrong, 64, &["line 4", "line 6", "cpu_time"]);
    // TypeScript: the error names file, line and column.
    let broken = fleet
        .small_project(
            "broken",
            "",
            "export default {\n  fetch() { return ( } };\n",
        )
        .unwrap();
    refused(fleet, &broken, 65, &["main.js:2:"]);
    // A host that does not belong to the tenant.
    let thief = fleet.small_project("thief", "", HELLO).unwrap();
    let config = std::fs::read_to_string(thief.join("casemate.toml"))
        .unwrap()
        .replace("thief.apps.demo.test", "bank.example");
    std::fs::write(thief.join("casemate.toml"), config).unwrap();
    refused(fleet, &thief, 64, &["bank.example"]);
    // A bundle over the size limit.
    let big = format!(
        "export const data = '{}';\nexport default {{ fetch() {{ return new Response(data); }} }};\n",
        "x".repeat(11 << 20)
    );
    let huge = fleet.small_project("huge", "", &big).unwrap();
    refused(fleet, &huge, 65, &["10 MiB"]);
}

fn secrets_that_break_headers(fleet: &Fleet, good: &Path) {
    // A secret with a line break, which would break a header; the error does not repeat the value.
    for value in [&b"sec\rret-value"[..], b"sec\nret-value", b"sec\0ret-value"] {
        let ran = fleet
            .tenant
            .run_in(good, &["secret", "put", "K", "--host", "a.test"], value)
            .unwrap();
        assert_eq!(ran.code, 65, "{}", ran.stderr);
        assert!(
            ran.stderr.contains("byte 3") && !ran.stderr.contains("ret-value"),
            "{}",
            ran.stderr
        );
    }
}

fn two_deploys_at_once(fleet: &Fleet, good: &Path) {
    // Each command succeeds or asks for a retry (75).
    let children: Vec<_> = (0..2)
        .map(|_| {
            fleet
                .tenant
                .command(good, &["deploy", "--wait", "0"])
                .unwrap()
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let ended = child.wait_with_output().unwrap();
        assert!(
            matches!(ended.status.code(), Some(0 | 75)),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}

fn a_token_used_twice(fleet: &Fleet) {
    // A second node must not get a token for the same name.
    let again = fleet
        .operator
        .run_in(&fleet.folder, &["node", "token", "edge-1"], b"")
        .unwrap();
    assert_ne!(
        again.code, 0,
        "a second node of that name: {}",
        again.stdout
    );
}

fn a_port_in_use_and_a_locked_store(fleet: &Fleet) {
    let config = fleet.folder.join("second.toml");
    let state = fleet.folder.join("second");
    let init = Command::new(program("casemate-control").unwrap())
        .arg("init")
        .arg("--state")
        .arg(&state)
        .output()
        .unwrap();
    assert!(init.status.success());
    let serve = |state: &Path, api: &str| {
        std::fs::write(
            &config,
            format!(
                "state = \"{}\"\napi = \"{api}\"\nquic = \"127.0.0.1:0\"\n",
                state.display()
            ),
        )
        .unwrap();
        let ran = Command::new(program("casemate-control").unwrap())
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .output()
            .unwrap();
        (
            ran.status.code(),
            String::from_utf8_lossy(&ran.stderr).into_owned(),
        )
    };
    let (code, said) = serve(&state, &fleet.control.api.to_string());
    assert_eq!(code, Some(69), "a port in use: {said}");
    let (code, said) = serve(&fleet.control.state(), "127.0.0.1:0");
    assert_eq!(code, Some(75), "a locked store: {said}");
}

/// Layers that a worker has, and no other program of the node.
const LAYERS_OF_WORKERS: &[&str] = &[
    "user",
    "pid",
    "mount",
    "network",
    "ipc",
    "uts",
    "rlimits",
    "speculation",
];

#[test]
fn a_node_whose_workers_lack_a_required_layer_does_not_serve() {
    let mut fleet = Fleet::start().unwrap();
    let has_worker = |status: &serde_json::Value| status["sandbox"]["worker"].is_array();
    let status = fleet.node.wait_for("a worker is ready", SOON, has_worker);
    let status = status.unwrap();
    let layers = status["sandbox"]["worker"].as_array().unwrap();
    let lacking = layers.iter().filter(|layer| layer["in_force"] == false);
    let mut lacking = lacking.filter_map(|layer| layer["layer"].as_str());
    let Some(layer) = lacking.find(|layer| LAYERS_OF_WORKERS.contains(layer)) else {
        println!("skipped: workers have every layer on this machine");
        return;
    };
    fleet.node.kill().unwrap();
    let file = fleet.node.folder().join("node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let required = text.replacen("require = [", &format!("require = [\"{layer}\","), 1);
    assert_ne!(text, required);
    std::fs::write(&file, required).unwrap();
    // The gateway may listen before the first worker has reported its layers.
    let said = match fleet.node.restart() {
        Err(error) => format!("{error:#}"),
        Ok(()) => {
            let ended = wait_until(SOON, || fleet.node.ended()).unwrap();
            format!("{ended}: {}", fleet.node.log())
        }
    };
    assert!(said.contains("exit status: 69"), "{said}");
    assert!(said.contains("not in force in a worker"), "{said}");
}
