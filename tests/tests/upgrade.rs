//! Upgrades with the real programs: a node refuses a folder that a newer version has written, and a
//! serving fleet is upgraded part by part.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a panic is how a test fails, and a skipped test prints why"
)]

use std::path::{Path, PathBuf};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::programs::{take_from, wait_until};
use serde_json::Value;
use tokio::task::block_in_place;

const HOST: &str = "calm.apps.demo.test";
const NEWER: &str = r#"{"format":99,"software":"9.0.0"}"#;
/// The folder with the programs of an earlier build, for `make test-upgrade`.
const EARLIER: &str = "CASEMATE_EARLIER";
/// The upgraded parts: command lines, control plane, and a node's programs, which launch finds
/// beside itself.
const CLI: &str = "casemate";
const CONTROL: &str = "casemate-control";
const NODE: &str = "casemate-launch";

fn source(version: u32) -> String {
    format!("export default {{ fetch() {{ return new Response(\"{version}\"); }} }};\n")
}

async fn answer(fleet: &Fleet) -> String {
    let answer = caller::get(fleet.node.gateway, HOST, "/").await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// Starts the node and waits until it has ended by itself; returns the exit code.
fn start_and_end(fleet: &mut Fleet) -> i32 {
    if let Err(error) = fleet.node.restart() {
        let text = format!("{error:#}");
        assert!(text.contains("exit status: 65"), "{text}");
        return 65;
    }
    let ended = wait_until(SOON, || fleet.node.ended()).unwrap();
    ended.code().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_on_the_folder_of_a_newer_one_ends_and_says_why() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", &source(1)).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    for folder in ["vault", "node"] {
        block_in_place(|| fleet.node.kill()).unwrap();
        let mark = fleet
            .node
            .folder()
            .join("state")
            .join(folder)
            .join("format.json");
        let own = std::fs::read(&mark).unwrap();
        std::fs::write(&mark, NEWER).unwrap();
        assert_eq!(block_in_place(|| start_and_end(&mut fleet)), 65, "{folder}");
        assert!(
            fleet
                .node
                .log()
                .contains("format 99, written by casemate 9.0.0"),
            "{folder}: {}",
            fleet.node.log()
        );
        assert_eq!(std::fs::read_to_string(&mark).unwrap(), NEWER);
        std::fs::write(&mark, own).unwrap();
    }
    block_in_place(|| fleet.node.restart()).unwrap();
    let connected = |status: &Value| status["connected"] == true;
    block_in_place(|| fleet.node.wait_for("connected", SOON, connected)).unwrap();
    assert_eq!(answer(&fleet).await, "1");
}

/// Replaces one part by its chosen program.
fn replace(fleet: &mut Fleet, part: &str) {
    match part {
        CONTROL => {
            fleet.control.kill().unwrap();
            fleet.control.restart().unwrap();
        }
        NODE => {
            fleet.node.kill().unwrap();
            fleet.node.restart().unwrap();
        }
        _ => {}
    }
    let connected = |status: &Value| status["connected"] == true;
    fleet.node.wait_for("connected", SOON, connected).unwrap();
}

/// Upgrades the parts in this order, and downgrades them in reverse. After each step a deployment
/// reaches the node.
async fn play(earlier: &Path, order: [&str; 3]) {
    take_from(Some(earlier), &order);
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", &source(0)).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let upgrades = order.map(|part| (part, None));
    let mut back = order.map(|part| (part, Some(earlier)));
    back.reverse();
    for (version, (part, folder)) in (1..).zip(upgrades.into_iter().chain(back)) {
        take_from(folder, &[part]);
        block_in_place(|| replace(&mut fleet, part));
        let before = (version - 1).to_string();
        assert_eq!(answer(&fleet).await, before, "{part} was replaced");
        std::fs::write(project.join("main.js"), source(version)).unwrap();
        block_in_place(|| fleet.deploy(&project)).unwrap();
        assert_eq!(answer(&fleet).await, version.to_string(), "after {part}");
    }
}

fn earlier() -> Option<PathBuf> {
    let folder = std::env::var_os(EARLIER).map(PathBuf::from);
    if folder.is_none() {
        println!(
            "skipped: {EARLIER} names no folder with the programs of an earlier build; `make test-upgrade` makes one"
        );
    }
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_an_earlier_build_is_upgraded_control_plane_first_and_back() {
    if let Some(earlier) = earlier() {
        play(&earlier, [CONTROL, NODE, CLI]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_of_an_earlier_build_is_upgraded_nodes_first_and_back() {
    if let Some(earlier) = earlier() {
        play(&earlier, [NODE, CONTROL, CLI]).await;
    }
}
