//! A node is upgraded, restarted, and restarted program by program under continuous load: no caller
//! is lost.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(clippy::print_stdout, reason = "prints the number of answered calls")]

use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::load::{Load, RATE};
use casemate_tests::node::Node;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::task::block_in_place;

const HOST: &str = "calm.apps.demo.test";
const RIGHT: &str = "right";

/// The path `/slow` takes 300 ms, so that some requests are in flight at any time.
const SOURCE: &str = r#"
export default {
  async fetch(request) {
    const slow = new URL(request.url).pathname === "/slow";
    if (slow) await new Promise((resolve) => setTimeout(resolve, 300));
    return new Response("right");
  },
};"#;

/// Calls that must be answered before, between and after the events.
const CALLS: u64 = 200;

async fn fleet() -> Fleet {
    let fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    fleet
}

fn pid_of(status: &Value, program: &str) -> Option<i32> {
    let pid = status["pids"][program].as_i64()?;
    i32::try_from(pid).ok()
}

/// Process id of the gateway.
fn gateway(node: &Node) -> i32 {
    pid_of(&node.status().unwrap(), "gateway").unwrap()
}

fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn launch(node: &Node) -> i32 {
    i32::try_from(node.pid().unwrap()).unwrap()
}

/// Waits until a gateway other than `before` serves, and the node has reported this to its control
/// plane.
fn wait_for_another(node: &Node, before: i32) {
    let is_another = |status: &Value| {
        pid_of(status, "gateway").is_some_and(|pid| pid != before)
            && status["state"]["gateway"]["up"] == true
            && status["state"]["vault"]["up"] == true
            && status["connected"] == true
    };
    node.wait_for("another gateway serves", SOON, is_another)
        .unwrap();
}

/// Process id of the supervisor, which is a child of launch.
fn supervisor(node: &Node) -> Option<i32> {
    let launch = launch(node);
    let children = std::fs::read_to_string(format!("/proc/{launch}/task/{launch}/children"));
    let children = children.unwrap_or_default();
    let mut pids = children.split(' ').filter_map(|pid| pid.parse().ok());
    pids.find(|pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "casemate-node")
    })
}

/// Ends the load, prints its counts, and fails if a caller was lost.
async fn none_is_lost(load: Load, what: &str) {
    let tally = load.end().await;
    println!("{what}, at {RATE} calls a second: {}", tally.describe());
    assert_eq!(tally.lost(), 0, "{}", tally.describe());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_while_a_node_is_upgraded_in_place() {
    let mut fleet = fleet().await;
    let load = Load::start(fleet.node.gateway, HOST, RIGHT);
    load.more(CALLS).await;
    let launch_before = launch(&fleet.node);
    for _ in 0..2 {
        let before = gateway(&fleet.node);
        send(launch_before, Signal::USR2);
        block_in_place(|| wait_for_another(&fleet.node, before));
        load.more(CALLS).await;
    }
    none_is_lost(load, "two upgrades in place").await;
    assert_eq!(launch(&fleet.node), launch_before);
    assert_eq!(fleet.node.ended().unwrap(), None, "the same process");
    let log = fleet.node.log();
    assert!(
        log.contains("launch executes its program file again"),
        "{log}"
    );
    // The node still ends in order.
    assert!(block_in_place(|| fleet.node.stop()).unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_while_gateway_and_supervisor_are_started_again() {
    let fleet = fleet().await;
    let load = Load::start(fleet.node.gateway, HOST, RIGHT);
    load.more(CALLS).await;
    for _ in 0..2 {
        let before = gateway(&fleet.node);
        send(before, Signal::TERM);
        block_in_place(|| wait_for_another(&fleet.node, before));
        load.more(CALLS).await;

        let (before, same) = (supervisor(&fleet.node).unwrap(), gateway(&fleet.node));
        send(before, Signal::KILL);
        let is_over = |status: &Value| {
            supervisor(&fleet.node).is_some_and(|pid| pid != before)
                && pid_of(status, "gateway") == Some(same)
                && status["connected"] == true
        };
        let taken_over = || fleet.node.wait_for("a successor", SOON, is_over);
        block_in_place(taken_over).unwrap();
        load.more(CALLS).await;
    }
    none_is_lost(load, "two restarts each of gateway and supervisor").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_lost_in_a_restart_by_a_service_manager_that_keeps_descriptors() {
    let mut fleet = fleet().await;
    block_in_place(|| fleet.node.stop()).unwrap();
    fleet.node.manage().unwrap();
    block_in_place(|| fleet.node.restart()).unwrap();
    let load = Load::start(fleet.node.gateway, HOST, RIGHT);
    load.more(CALLS).await;
    for _ in 0..2 {
        let status = block_in_place(|| fleet.node.stop()).unwrap();
        assert!(status.success(), "{status}");
        block_in_place(|| fleet.node.restart()).unwrap();
        load.more(CALLS).await;
    }
    none_is_lost(load, "two restarts").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_when_the_gateway_is_killed() {
    let fleet = fleet().await;
    let before = gateway(&fleet.node);
    let status = fleet.node.status().unwrap();
    send(before, Signal::KILL);
    // Launch holds the listening socket with its queue, whatever happens to the gateway.
    let answer = casemate_tests::caller::get(fleet.node.gateway, HOST, "/").await;
    assert_eq!(answer.unwrap().text(), RIGHT);
    block_in_place(|| wait_for_another(&fleet.node, before));
    let after = fleet.node.status().unwrap();
    assert_eq!(after["listening"], status["listening"], "the same ports");
}
