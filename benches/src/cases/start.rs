//! Cases `cold` and `deploy`: time until the first answer of an idle function without a running
//! worker, and of a newly deployed version.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casemate_tests::caller;
use casemate_tests::fleet::SOON;
use casemate_tests::node::Workers;
use tokio::task::block_in_place;

use crate::Run;
use crate::compare::{Spread, percentile};
use crate::ours::{Ours, host};
use crate::peer::{self, Who};
use crate::report::{Case, Row};

/// Cold starts measured for each runtime.
const STARTS: usize = 30;
/// Versions that the case deploys.
const DEPLOYS: u32 = 15;

const COLUMNS: [&str; 3] = ["p50 us", "p90 us", "p99 us"];

/// The times in microseconds, sorted.
fn micros(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
    times.sort_by(f64::total_cmp);
    times
}

fn row(what: &str, who: Who, times: &[Duration], ours: Option<f64>) -> Row {
    let times = micros(times);
    let figures = [50, 90, 99].map(|part| percentile(&times, part));
    Row {
        ratio: ours.map(|ours| Spread::of_one(ours / figures[0])),
        ..Row::of_once(what, who, figures)
    }
}

/// The first answer of a function that is not running. Casemate has a spare worker waiting that has
/// not run a function yet. For each other runtime a process is started, because the process is the
/// boundary around a tenant there.
pub(crate) async fn cold(run: &Run) -> Result<Case> {
    let code = block_in_place(|| peer::bundled("hello", &run.folder))?;
    let ours = block_in_place(|| Ours::start(Workers::default()))?;
    let host = ours.deploy("hello", "", &code).await?;
    let (mut of_ours, mut of_workerd, mut of_deno) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        of_ours.push(cold_worker(&ours, &host).await?);
        let started = Instant::now();
        let functions = [("hello".to_owned(), code.clone())];
        let workerd = block_in_place(|| peer::workerd(&functions, &run.folder))?;
        of_workerd.push(first_answer(workerd.address, started).await?);
        drop(workerd);
        let started = Instant::now();
        let deno = block_in_place(|| peer::deno(&code, &run.folder))?;
        of_deno.push(first_answer(deno.address, started).await?);
    }
    let mut case = Case::new(
        "cold",
        "Cold start: from the request, or from starting the process, to the answer",
        "p50, ours against theirs (less is better)",
        &COLUMNS,
    );
    let what = "hello";
    let ours_p50 = percentile(&micros(&of_ours), 50);
    case.rows.push(row(what, Who::Casemate, &of_ours, None));
    case.rows
        .push(row(what, Who::Workerd, &of_workerd, Some(ours_p50)));
    case.rows
        .push(row(what, Who::Deno, &of_deno, Some(ours_p50)));
    Ok(case)
}

async fn first_answer(address: SocketAddr, started: Instant) -> Result<Duration> {
    let answer = caller::get(address, "hello.test", "/").await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(started.elapsed())
}

/// Ends the function's workers, waits for a spare, and sends a request.
async fn cold_worker(ours: &Ours, host: &str) -> Result<Duration> {
    let node = &ours.fleet.node;
    for pid in block_in_place(|| node.workers())? {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    }
    let spare = |status: &serde_json::Value| {
        status["state"]["workers"]["spare"].as_u64() == Some(1)
            && status["workers"].as_array().is_some_and(Vec::is_empty)
    };
    block_in_place(|| node.wait_for("a spare worker and no other", SOON, spare))?;
    let started = Instant::now();
    let answer = caller::get(node.gateway, host, "/cold").await?;
    ensure!(answer.status == 200, "{}", answer.text());
    Ok(started.elapsed())
}

/// Time from the deployment to the first answer of the new version.
pub(crate) async fn deploy(run: &Run) -> Result<Case> {
    let ours = block_in_place(|| Ours::start(Workers::default()))?;
    let code = run.folder.join("version.js");
    write_version(&code, 0)?;
    ours.deploy("version", "", &code).await?;
    let (mut whole, mut after) = (Vec::new(), Vec::new());
    for version in 1..=DEPLOYS {
        write_version(&code, version)?;
        let project = ours.project("version", "", &code)?;
        // Without a waiting spare, the figure would include the time that the next spare takes to
        // start.
        let spare =
            |status: &serde_json::Value| status["state"]["workers"]["spare"].as_u64() == Some(1);
        block_in_place(|| ours.fleet.node.wait_for("a spare", SOON, spare))?;
        let started = Instant::now();
        let tenant = &ours.fleet.tenant;
        block_in_place(|| tenant.ok(&project, &["deploy", "--wait", "0"], b""))?;
        let committed = Instant::now();
        until(ours.fleet.node.gateway, version).await?;
        whole.push(started.elapsed());
        after.push(committed.elapsed());
    }
    let title = "Deploy to serve, a connected node";
    let mut case = Case::new("deploy", title, "none", &COLUMNS);
    case.rows.push(row(
        "`casemate deploy` begins until the new version answers",
        Who::Casemate,
        &whole,
        None,
    ));
    case.rows.push(row(
        "`casemate deploy` returns until the new version answers",
        Who::Casemate,
        &after,
        None,
    ));
    Ok(case)
}

fn write_version(path: &Path, version: u32) -> Result<()> {
    let code = format!("export default {{ fetch() {{ return new Response(\"{version}\"); }} }};\n");
    Ok(std::fs::write(path, code)?)
}

async fn until(gateway: SocketAddr, version: u32) -> Result<()> {
    let (host, version, end) = (host("version"), version.to_string(), Instant::now() + SOON);
    loop {
        let answer = caller::get(gateway, &host, "/").await?;
        if answer.text() == version {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "no answer of version {version} in time"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
