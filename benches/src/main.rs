//! `casemate-bench` compares Casemate with the runtimes that a user could take instead, alternating
//! between them within one run. The program writes a table as Markdown and as JSON, and charts. Run
//! the release build.
#![forbid(unsafe_code)]

mod cases;
mod compare;
mod load;
mod ours;
mod peer;
mod plot;
mod process;
mod report;

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use casemate_tests::node::Workers;
use clap::Parser;
use tokio::task::block_in_place;

use ours::Ours;
use report::Machine;

/// The cases beside those of [`cases::load`].
const OTHERS: &[&str] = &[
    "upstream", "rotation", "cold", "memory", "deploy", "scale", "resync", "micro",
];

/// Measures Casemate side by side with its peers.
#[derive(Debug, Parser)]
struct Args {
    /// Names of the cases; without names, all cases run
    cases: Vec<String>,
    /// Folder of the report
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each measurement, seconds
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=600))]
    secs: u32,
    /// Serves one of the functions, without measuring, until it is interrupted: for use with a
    /// profiler
    #[arg(long, value_name = "FUNCTION", conflicts_with = "cases")]
    hold: Option<String>,
}

/// Inputs that all cases share.
struct Run {
    out: PathBuf,
    /// A folder for intermediate files.
    folder: PathBuf,
    rounds: u32,
    secs: u32,
}

impl Run {
    fn say(&self, text: &str) {
        // A failed write to a closed pipe is ignored.
        let _said = writeln!(std::io::stderr(), "bench: {text}");
    }
}

async fn hold(function: &str, run: &Run) -> Result<()> {
    if function == "call" {
        let calling = cases::calls::calling(run).await?;
        return serve(&calling.ours, &calling.host, run).await;
    }
    let code = block_in_place(|| peer::bundled(function, &run.folder))?;
    let ours = block_in_place(|| Ours::start(Workers::default()))?;
    let host = ours.deploy(function, "", &code).await?;
    serve(&ours, &host, run).await
}

async fn serve(ours: &Ours, host: &str, run: &Run) -> Result<()> {
    let origin = ours.target(Vec::new()).origin;
    run.say(&format!("serving: curl -H 'Host: {host}' {origin}/"));
    Ok(tokio::signal::ctrl_c().await?)
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let known: Vec<&str> = cases::load::names().chain(OTHERS.iter().copied()).collect();
    for case in &args.cases {
        ensure!(
            known.contains(&case.as_str()),
            "expected a case ({}), got {case:?}",
            known.join(", ")
        );
    }
    let names: Vec<&str> = known
        .into_iter()
        .filter(|name| args.cases.is_empty() || args.cases.iter().any(|case| case == name))
        .collect();
    let temporary = tempfile::tempdir()?;
    std::fs::create_dir_all(&args.out)?;
    let run = Run {
        out: args.out,
        folder: temporary.path().to_owned(),
        rounds: args.rounds,
        secs: args.secs,
    };
    if let Some(function) = &args.hold {
        return hold(function, &run).await;
    }
    let machine = Machine::look()?;
    let mut measured = Vec::new();
    for name in names {
        run.say(name);
        // Each case has its own fleet, so that the result does not depend on the state that an
        // earlier case left behind.
        let case = match name {
            "memory" => cases::memory::run(&run).await?,
            "cold" => cases::start::cold(&run).await?,
            "deploy" => cases::start::deploy(&run).await?,
            "scale" => cases::scale::run(&run).await?,
            "resync" => cases::resync::run(&run).await?,
            "micro" => cases::micro::run(&run)?,
            "upstream" => cases::calls::upstream(&run).await?,
            "rotation" => cases::calls::rotation(&run).await?,
            _ => {
                let ours = block_in_place(|| Ours::start(Workers::default()))?;
                let Some(case) = cases::load::run(name, &ours, &run).await? else {
                    continue;
                };
                case
            }
        };
        measured.push(case);
        report::write(&run.out, &machine, run.rounds, run.secs, &measured)?;
    }
    run.say(&format!("wrote {}", run.out.join("report.md").display()));
    Ok(())
}
