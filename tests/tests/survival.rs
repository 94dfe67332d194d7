//! The vault and the gateway are killed under load, and a worker is stopped: what does not need
//! them goes on.

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

/// Says which worker answered; with `/call`, what became of a call that the release does not allow.
const SOURCE: &str = r#"
const worker = crypto.randomUUID();
export default {
  async fetch(request) {
    if (new URL(request.url).pathname !== "/call") return new Response(worker);
    const error = await fetch("https://elsewhere.test/").catch((error) => error);
    return new Response(`${error.code}`);
  },
};"#;

/// Deaths of the vault. The pause before each next start doubles: together some six seconds.
const DEATHS: u32 = 6;
/// Deaths of the supervisor; launch starts it again five times in ten minutes.
const DEATHS_OF_SUPERVISOR: u32 = 4;
/// Callers at a time, who never rest.
const CALLERS: u32 = 4;

/// Ends the vault or the gateway, and waits until its successor is up: the status then.
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

/// The answer to a call once the vault has heard of the worker's new channel.
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
    // The node was started with port 0.
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
/// The wall-clock limit that the release of the stopped worker declares.
const WALL: Duration = Duration::from_secs(2);
/// How much later the gateway gives a worker up: ten seconds, and what a busy machine adds.
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
    // One that went to the stopped worker would wait as long again.
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

/// The supervisor, which only launch knows.
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

/// Kills the supervisor, and waits until its successor has taken the node over.
fn kill_supervisor(node: &Node) {
    let before = supervisor(node).unwrap();
    kill_process(before, Signal::KILL).unwrap();
    // A socket of the one before answers for nobody.
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
        // Calls of functions go on too.
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

    // The successor deploys, starts workers and ends in order.
    let other = fleet.small_project("other", "", SOURCE).unwrap();
    block_in_place(|| fleet.deploy(&other)).unwrap();
    let answer = caller::get(fleet.node.gateway, "other.apps.demo.test", "/").await;
    assert_eq!(answer.unwrap().status, 200);
    let ended = block_in_place(|| fleet.node.stop()).unwrap();
    assert!(ended.success(), "{ended}");
}
