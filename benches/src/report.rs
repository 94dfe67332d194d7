//! The report: Markdown for people, JSON for programs, and the charts beside both.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::Serialize;

use crate::compare::{Rounds, Spread};
use crate::load::Sample;
use crate::peer::{self, Who};
use crate::process::kib;

/// A row of a table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The parameter of the row, such as the number of connections or functions.
    pub(crate) what: String,
    pub(crate) who: &'static str,
    /// One figure for each column, in the columns' order.
    pub(crate) figures: Vec<Spread>,
    /// Casemate's figure divided by the figure of this row's runtime.
    pub(crate) ratio: Option<Spread>,
    pub(crate) errors: u64,
}

/// One case with its table and its charts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) title: String,
    /// The figure that the ratio compares, and whether a lower ratio is better.
    pub(crate) ratio_of: &'static str,
    pub(crate) columns: Vec<&'static str>,
    pub(crate) rows: Vec<Row>,
    /// File names of the charts.
    pub(crate) pictures: Vec<String>,
    /// The command that repeats the case.
    pub(crate) command: String,
}

impl Row {
    /// A row of figures that were measured once.
    pub(crate) fn of_once(
        what: impl Into<String>,
        who: Who,
        figures: impl IntoIterator<Item = f64>,
    ) -> Self {
        Self {
            what: what.into(),
            who: who.name(),
            figures: figures.into_iter().map(Spread::of_one).collect(),
            ratio: None,
            errors: 0,
        }
    }
}

impl Case {
    /// A case without rows.
    pub(crate) fn new(
        name: &'static str,
        title: impl Into<String>,
        ratio_of: &'static str,
        columns: &[&'static str],
    ) -> Self {
        Self {
            name,
            title: title.into(),
            ratio_of,
            columns: columns.to_vec(),
            rows: Vec::new(),
            pictures: Vec::new(),
            command: format!("make bench-{name}"),
        }
    }

    /// A case with the usual columns of a load: requests a second, and latencies.
    pub(crate) fn of_load(name: &'static str, title: impl Into<String>) -> Self {
        let ratio_of = "requests per second, ours against theirs";
        let columns = ["requests/s", "p50 us", "p99 us", "p99.9 us"];
        Self::new(name, title, ratio_of, &columns)
    }

    pub(crate) fn add_load(&mut self, what: &str, rounds: &Rounds, ratio: fn(&Sample) -> f64) {
        let figures: [fn(&Sample) -> f64; 4] = [
            |sample| sample.per_second,
            |sample| sample.p50_us,
            |sample| sample.p99_us,
            |sample| sample.p999_us,
        ];
        for who in rounds.who() {
            self.rows.push(Row {
                what: what.to_owned(),
                who: who.name(),
                figures: figures
                    .iter()
                    .filter_map(|figure| rounds.of(who, figure))
                    .collect(),
                ratio: (who != Who::Casemate)
                    .then(|| rounds.ratio(who, ratio))
                    .flatten(),
                errors: rounds.errors(who),
            });
        }
    }
}

/// The machine and the versions of the measured programs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    commit: String,
    versions: Vec<(&'static str, String)>,
}

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory_kib = kib(&read("/proc/meminfo"), "MemTotal").unwrap_or(0);
        let commit = Command::new("git")
            .args(["describe", "--always", "--dirty"])
            .output()?;
        let mut versions = peer::versions()?;
        let first_line = |program: &str, argument: &str| {
            let output = Command::new(program).arg(argument).output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            text.ok()
                .and_then(|text| text.lines().next().map(ToOwned::to_owned))
                .unwrap_or_default()
        };
        versions.push(("wrk", first_line("wrk", "--version")));
        versions.push(("oha", first_line("oha", "--version")));
        versions.push(("rustc", first_line("rustc", "--version")));
        Ok(Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_mib: memory_kib / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit: String::from_utf8_lossy(&commit.stdout).trim().to_owned(),
            versions,
        })
    }
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rounds: u32,
    secs: u32,
    cases: &'a [Case],
}

/// Writes `report.md` and `report.json`.
pub(crate) fn write(
    folder: &Path,
    machine: &Machine,
    rounds: u32,
    secs: u32,
    cases: &[Case],
) -> Result<()> {
    let report = Report {
        machine,
        rounds,
        secs,
        cases,
    };
    std::fs::write(
        folder.join("report.json"),
        serde_json::to_string_pretty(&report)? + "\n",
    )?;
    Ok(std::fs::write(folder.join("report.md"), text(&report)?)?)
}

fn text(report: &Report<'_>) -> Result<String> {
    let machine = report.machine;
    let mut text = String::from("# Benchmarks\n\n");
    writeln!(
        text,
        "{} rounds of {} s each, in turn (A B C, C B A, ...), each warmed up before. A figure is the median of its rounds; `ratio` is\n\
         ours against theirs within a round: median (least to most). *noisy*: the rounds lie too far apart to mean anything.\n",
        report.rounds, report.secs
    )?;
    writeln!(
        text,
        "{}, {} cores, {} MiB, Linux {}; Casemate {}",
        machine.processor, machine.cores, machine.memory_mib, machine.kernel, machine.commit
    )?;
    for (name, version) in &machine.versions {
        writeln!(text, "- {name}: {version}")?;
    }
    for case in report.cases {
        writeln!(text, "\n## {}\n", case.title)?;
        writeln!(text, "`{}`; ratio: {}\n", case.command, case.ratio_of)?;
        writeln!(text, "| | | {} | ratio | |", case.columns.join(" | "))?;
        writeln!(
            text,
            "|---|---|{}---|---|",
            "---:|".repeat(case.columns.len())
        )?;
        for row in &case.rows {
            let figures: Vec<_> = row
                .figures
                .iter()
                .map(|figure| number(figure.median))
                .collect();
            let ratio = row.ratio.as_ref().map(ratio).unwrap_or_default();
            let errors = match row.errors {
                0 => String::new(),
                errors => format!("{errors} errors"),
            };
            writeln!(
                text,
                "| {} | {} | {} | {ratio} | {errors} |",
                row.what,
                row.who,
                figures.join(" | ")
            )?;
        }
        for picture in &case.pictures {
            writeln!(text, "\n![{}]({picture})", case.title)?;
        }
    }
    Ok(text)
}

fn ratio(ratio: &Spread) -> String {
    let noisy = if ratio.is_noisy() { " *noisy*" } else { "" };
    format!(
        "{:.2} ({:.2} to {:.2}){noisy}",
        ratio.median, ratio.low, ratio.high
    )
}

/// Formats a figure with three significant digits.
fn number(value: f64) -> String {
    match value {
        value if value.is_nan() => String::new(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
