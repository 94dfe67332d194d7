//! The load generators: `wrk` for maximum throughput, `oha` for a fixed rate. Both are independent,
//! well-known programs, so that this process does not limit the load.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// The script for wrk: it prints one line of JSON when wrk ends.
const SCRIPT: &str = include_str!("wrk.lua");
/// Prefix of that line.
const MARK: &str = "RESULT ";

/// The server that receives the load.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// `http://127.0.0.1:PORT`
    pub(crate) origin: String,
    /// Values of the `Host` header, which the requests use in turn.
    pub(crate) hosts: Vec<String>,
    /// The `Authorization` header.
    pub(crate) authorization: Option<String>,
}

/// The requests and their concurrency.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) connections: u32,
    pub(crate) secs: u32,
    pub(crate) path: &'static str,
    /// The file that each request sends with POST.
    pub(crate) body: Option<PathBuf>,
}

impl Load {
    /// GET requests without a body.
    pub(crate) const fn get(connections: u32, secs: u32, path: &'static str) -> Self {
        let body = None;
        Self {
            connections,
            secs,
            path,
            body,
        }
    }
}

/// The result of one measurement. Times are in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) bytes_per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) errors: u64,
}

/// Sends as many requests as the server can answer, on kept connections.
pub(crate) fn wrk(target: &Target, load: &Load, folder: &Path) -> Result<Sample> {
    let script = folder.join("wrk.lua");
    std::fs::write(&script, SCRIPT)?;
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--timeout", "10s"]);
    command.args(["--connections", &load.connections.to_string()]);
    command.args(["--duration", &format!("{}s", load.secs)]);
    if let Some(value) = &target.authorization {
        command.args(["--header", &format!("Authorization: {value}")]);
    }
    command.arg("--script").arg(&script);
    command.arg(format!("{}{}", target.origin, load.path));
    let body = load.body.as_deref().unwrap_or(Path::new(""));
    command.arg("--").arg(body).args(&target.hosts);
    let said = output(command, "wrk")?;
    let result = said.lines().find_map(|line| line.strip_prefix(MARK));
    let result = result.with_context(|| format!("wrk printed no result:\n{said}"))?;
    Ok(serde_json::from_str(result)?)
}

/// Sends `per_second` requests a second. A request's time counts from the moment at which it was
/// due, so that time spent waiting for an earlier request is included.
pub(crate) fn oha(target: &Target, load: &Load, per_second: u32) -> Result<Sample> {
    let mut command = Command::new("oha");
    command.args([
        "--no-tui",
        "--output-format",
        "json",
        "--latency-correction",
    ]);
    command.args(["-q", &per_second.to_string()]);
    command.args(["-c", &load.connections.to_string()]);
    command.args(["-z", &format!("{}s", load.secs)]);
    if let Some(host) = target.hosts.first() {
        command.args(["-H", &format!("Host: {host}")]);
    }
    if let Some(body) = &load.body {
        command.args(["-m", "POST", "-D"]).arg(body);
    }
    command.arg(format!("{}{}", target.origin, load.path));
    let said: serde_json::Value = serde_json::from_str(&output(command, "oha")?)?;
    let summary = &said["summary"];
    let number = |value: &serde_json::Value, name: &str| {
        value
            .as_f64()
            .with_context(|| format!("oha's result has no {name}: {said}"))
    };
    let percentile =
        |name: &str| -> Result<f64> { Ok(number(&said["latencyPercentiles"][name], name)? * 1e6) };
    let answered = said["statusCodeDistribution"].as_object();
    let well = said["statusCodeDistribution"]["200"].as_u64().unwrap_or(0);
    let all: u64 = answered
        .into_iter()
        .flat_map(|all| all.values())
        .filter_map(serde_json::Value::as_u64)
        .sum();
    Ok(Sample {
        per_second: number(&summary["requestsPerSec"], "requestsPerSec")?,
        bytes_per_second: number(&summary["sizePerSec"], "sizePerSec")?,
        p50_us: percentile("p50")?,
        p90_us: percentile("p90")?,
        p99_us: percentile("p99")?,
        p999_us: percentile("p99.9")?,
        errors: all - well,
    })
}

fn output(mut command: Command, name: &str) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{name}: `make bench` installs it"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{name}: {}{said}", String::from_utf8_lossy(&output.stderr));
    }
    ensure!(!said.is_empty(), "{name} printed nothing");
    Ok(said)
}
