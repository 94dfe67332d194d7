//! Measures the main job with the real programs and prints one line for each figure: cold start,
//! warm request, memory of an idle function, time from a deployment to its first answer. Only the
//! release build gives meaningful figures.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use casemate_tests::caller;
use casemate_tests::fleet::{Fleet, SOON};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::block_in_place;

const HOST: &str = "hello.apps.demo.test";
/// Calls on one kept connection: first those that warm up, then those that are measured.
const WARM_UP: usize = 500;
const WARM: usize = 5000;
/// Measured cold starts; each follows the kill of the running workers.
const COLD: usize = 20;
/// Measured deployments.
const DEPLOYS: u32 = 10;

fn main() -> Result<()> {
    tokio::runtime::Runtime::new()?.block_on(run())
}

fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Median and 99th percentile, microseconds.
fn percentiles(mut times: Vec<Duration>) -> (u128, u128) {
    times.sort_unstable();
    let at = |part: usize| {
        times
            .get((times.len() * part / 100).min(times.len().saturating_sub(1)))
            .map_or(0, Duration::as_micros)
    };
    (at(50), at(99))
}

fn code(version: u32) -> String {
    format!(
        "export default {{ fetch(request) {{ return new Response(`hello ${{new URL(request.url).pathname}} \
         ${{request.headers.get(\"host\")}} {version}`); }} }};\n"
    )
}

async fn run() -> Result<()> {
    let fleet = block_in_place(Fleet::start)?;
    let gateway = fleet.node.gateway;
    let project = fleet.small_project("hello", "", &code(0))?;
    block_in_place(|| fleet.deploy(&project))?;
    until(gateway, " 0").await?;

    let (p50, p99) = percentiles(warm(gateway).await?);
    say(&format!(
        "warm request, one kept connection, {WARM} calls: p50 {p50} us, p99 {p99} us"
    ))?;

    let mut cold = Vec::new();
    for _ in 0..COLD {
        for pid in block_in_place(|| fleet.node.workers())? {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        }
        let spare = |status: &serde_json::Value| {
            status["state"]["workers"]["spare"].as_u64() == Some(1)
                && status["workers"].as_array().is_some_and(Vec::is_empty)
        };
        block_in_place(|| {
            fleet
                .node
                .wait_for("a spare worker and no other", SOON, spare)
        })?;
        let started = Instant::now();
        let answer = caller::get(gateway, HOST, "/cold").await?;
        ensure!(answer.status == 200, "{}", answer.text());
        cold.push(started.elapsed());
    }
    let (p50, p99) = percentiles(cold);
    say(&format!(
        "cold start with a spare, new connection, {COLD} times: p50 {p50} us, p99 {p99} us"
    ))?;

    let pid = *block_in_place(|| fleet.node.workers())?
        .first()
        .context("a worker")?;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    let (pss, private) = (
        field("Pss:").context("Pss")?,
        field("Private_Dirty:").context("Private_Dirty")?,
    );
    say(&format!(
        "idle function, one worker after one request: PSS {pss}, private dirty {private}"
    ))?;

    let mut deploys = Vec::new();
    for version in 1..=DEPLOYS {
        std::fs::write(project.join("main.js"), code(version))?;
        block_in_place(|| fleet.tenant.ok(&project, &["deploy", "--wait", "0"], b""))?;
        let accepted = Instant::now();
        until(gateway, &format!(" {version}")).await?;
        deploys.push(accepted.elapsed());
    }
    let (p50, p99) = percentiles(deploys);
    say(&format!(
        "from the end of `casemate deploy --wait 0` to the first answer of the new version, {DEPLOYS} times: p50 {p50} us, p99 {p99} us"
    ))
}

async fn warm(gateway: SocketAddr) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut times = Vec::with_capacity(WARM);
    for number in 0..WARM_UP + WARM {
        let request = Request::get(format!("/{number}"))
            .header("host", HOST)
            .body(Empty::<Bytes>::new())?;
        let started = Instant::now();
        sender.ready().await?;
        let response = sender.send_request(request).await?;
        ensure!(response.status() == 200, "{}", response.status());
        response.into_body().collect().await?;
        if number >= WARM_UP {
            times.push(started.elapsed());
        }
    }
    driver.abort();
    Ok(times)
}

async fn until(gateway: SocketAddr, ending: &str) -> Result<()> {
    let end = Instant::now() + SOON;
    loop {
        let answer = caller::get(gateway, HOST, "/").await?;
        if answer.status == 200 && answer.text().ends_with(ending) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "no answer of the new version in time; the last answer: {} {}",
            answer.status,
            answer.text()
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
