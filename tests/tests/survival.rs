//! The vault and the gateway are killed under load, and a worker is stopped. Requests that do not
//! depend on the killed program go on.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use casemate_tests::node::Node;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::block_in_place;

const HOST: &str = "calm.apps.demo.test";

/// Answers with the worker's identity; `/call` answers with the error code of a call that the
/// release does not permit.
const SOURCE: &str = r#"
const worker = crypto.randomUUID();
export default {
  async fetch(request) {
    if (new URL(request.url).pathname !== "/call") return new Response(worker);
    const error = await fetch("https://elsewhere.test/").catch((error) => error);
    return new Response(`${error.code}`);
  },
};"#;

/// Kills of the vault. The pause before its restart doubles each time: together about six seconds.
const DEATHS: u32 = 6;
/// Kills of the supervisor; launch restarts it at most five times in ten minutes.
const DEATHS_OF_SUPERVISOR: u32 = 4;
/// Concurrent callers, which send one request after the other.
const CALLERS: u32 = 4;

/// Kills the vault or the gateway, and waits until its successor is up; returns the status then.
fn kill(node: &Node, program: &str) -> serde_json::Value {
    let pid_of = |status: &serde_json::Value| status["pids"][program].as_i64();
    let status = node.wait_for("the program runs", SOON, |status| {
        pid_of(status).is_some() && status["state"][program]["up"] == true
    });
    let before = pid_of(&status.unwrap());
    let pid = Pid::from_raw(i32::try_from(before.unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    node.wait_for("its successor is up", SOON, |status| {
        pid_of(status).is_some()
            && pid_of(status) != before
            && status["state"][program]["up"] == true
    })
    .unwrap()
}

async fn text(fleet: &Fleet, path: &str) -> String {
    let answer = caller::get(fleet.node.gateway, HOST, path).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// The answer to an outgoing call, once the vault has the worker's new channel.
async fn refused(fleet: &Fleet) -> String {
    loop {
        let code = text(fleet, "/call").await;
        if code != "vault_unavailable" {
            return code;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_that_makes_no_call_fails_while_the_vault_is_killed() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let worker = text(&fleet, "/").await;
    let before = refused(&fleet).await;

    let (over, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let callers = (0..CALLERS).map(|_| {
        let (over, served, gateway) = (over.clone(), served.clone(), fleet.node.gateway);
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = caller::get(gateway, HOST, "/").await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for death in 1..=DEATHS {
        block_in_place(|| kill(&fleet.node, "vault"));
        assert_eq!(refused(&fleet).await, before, "after death {death}");
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let served = served.load(Ordering::Relaxed);
    println!("{served} requests were served during {DEATHS} deaths of the vault");
    assert!(served > DEATHS * CALLERS);
    assert_eq!(text(&fleet, "/").await, worker, "the same worker");

    let status = block_in_place(|| kill(&fleet.node, "gateway"));
    // The node was started with port 0; its status names the port in use.
    let listening = status["listening"][0].as_str().unwrap();
    fleet.node.gateway = listening.parse().unwrap();
    assert_eq!(
        text(&fleet, "/").await,
        worker,
        "it outlives the gateway too"
    );
    assert_eq!(refused(&fleet).await, before);
}

const STOPPED_HOST: &str = "stopped.apps.demo.test";
/// The wall-clock limit in the release of the stopped worker.
const WALL: Duration = Duration::from_secs(2);
/// Time after that limit at which the gateway gives up a worker: ten seconds, and a margin for a
/// busy machine.
const GRACE: Duration = Duration::from_secs(10);
const BUSY: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_worker_that_is_stopped_end_in_time_and_the_next_goes_to_another() {
    let fleet = block_in_place(Fleet::start).unwrap();
    let limits = format!("[limits]\nwall_time_ms = {}\n", WALL.as_millis());
    let project = fleet.small_project("stopped", &limits, SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let gateway = fleet.node.gateway;
    let get = || caller::get(gateway, STOPPED_HOST, "/");
    let before = get().await.unwrap();
    assert_eq!(before.status, 200, "{}", before.text());
    let workers = block_in_place(|| fleet.node.workers()).unwrap();
    let [stopped] = workers[..] else {
        panic!("one worker serves: {workers:?}");
    };
    let pid = Pid::from_raw(i32::try_from(stopped).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();

    let began = Instant::now();
    let (first, second) = tokio::join!(get(), get());
    let took = began.elapsed();
    for answer in [first, second] {
        let answer = answer.unwrap();
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert!(answer.text().contains("exceeded_wall"), "{}", answer.text());
    }
    assert!(WALL < took && took < WALL + GRACE + BUSY, "{took:?}");
    // A second request to the stopped worker would wait equally long.
    let after = get().await.unwrap();
    assert_eq!(after.status, 200, "{}", after.text());
    assert_ne!(after.text(), before.text(), "another worker");
    let ended = |status: &serde_json::Value| {
        let workers = status["workers"].as_array().unwrap().iter();
        workers.clone().count() > 0 && workers.clone().all(|worker| worker["pid"] != stopped)
    };
    block_in_place(|| {
        fleet
            .node
            .wait_for("the stopped worker has ended", SOON, ended)
    })
    .unwrap();
}

/// Process id of the supervisor, which is a child of launch.
fn supervisor(node: &Node) -> Option<Pid> {
    let launch = node.pid().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{launch}/task/{launch}/children"));
    let children = children.unwrap_or_default();
    let mut pids = children
        .split(' ')
        .filter_map(|pid| pid.parse::<i32>().ok());
    let pid = pids.find(|pid| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "casemate-node")
    });
    pid.and_then(Pid::from_raw)
}

/// Kills the supervisor, and waits until its successor has taken over the node.
fn kill_supervisor(node: &Node) {
    let before = supervisor(node).unwrap();
    kill_process(before, Signal::KILL).unwrap();
    // The predecessor's socket accepts no connection any more.
    let is_over = |status: &serde_json::Value| {
        supervisor(node).is_some_and(|pid| pid != before)
            && status["state"]["vault"]["up"] == true
            && status["state"]["gateway"]["up"] == true
            && status["connected"] == true
            && status["state"]["functions"][0]["workers"]["serving"] == 1
    };
    node.wait_for("its successor has taken over", SOON, is_over)
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_supervisor_is_killed_and_its_successor_goes_on() {
    let mut fleet = block_in_place(Fleet::start).unwrap();
    let project = fleet.small_project("calm", "", SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&project)).unwrap();
    let worker = text(&fleet, "/").await;
    let before = refused(&fleet).await;
    let single = |status: &serde_json::Value| status["pids"].clone();
    let pids = single(&fleet.node.status().unwrap());

    let (over, served) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let callers = (0..CALLERS).map(|caller| {
        let (over, served, gateway) = (over.clone(), served.clone(), fleet.node.gateway);
        // Outgoing calls of functions go on too.
        let path = if caller == 0 { "/call" } else { "/" };
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let answer = caller::get(gateway, HOST, path).await.unwrap();
                assert_eq!(answer.status, 200, "{}", answer.text());
                served.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    for death in 1..=DEATHS_OF_SUPERVISOR {
        block_in_place(|| kill_supervisor(&fleet.node));
        let now = (text(&fleet, "/").await, text(&fleet, "/call").await);
        assert_eq!(now, (worker.clone(), before.clone()), "after death {death}");
        let status = fleet.node.status().unwrap();
        assert_eq!(single(&status), pids, "vault and gateway are the same");
    }
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let served = served.load(Ordering::Relaxed);
    println!(
        "{served} requests were served during {DEATHS_OF_SUPERVISOR} deaths of the supervisor"
    );
    assert!(served > DEATHS_OF_SUPERVISOR * CALLERS);

    // The successor can deploy, start workers, and end the node in order.
    let other = fleet.small_project("other", "", SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&other)).unwrap();
    let answer = caller::get(fleet.node.gateway, "other.apps.demo.test", "/").await;
    assert_eq!(answer.unwrap().status, 200);
    let ended = block_in_place(|| fleet.node.stop()).unwrap();
    assert!(ended.success(), "{ended}");
}
