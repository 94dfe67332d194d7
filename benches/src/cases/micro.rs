//! Case `micro`: single operations. Criterion measures their times; for pure operations valgrind
//! also counts their instructions, which repeat exactly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::task::block_in_place;

use crate::Run;
use crate::peer::Who;
use crate::report::{Case, Row};

/// The folders in which Criterion and gungraun leave their results.
const TIMES: &str = "target/criterion";
const INSTRUCTIONS: &str = "target/gungraun";

pub(crate) fn run(run: &Run) -> Result<Case> {
    block_in_place(|| {
        run.say("times of single operations");
        bench("micro", &[])?;
        run.say("instruction counts of single operations");
        bench("instructions", &["--save-summary=json"])?;
        let mut case = Case::new("micro", "Single steps", "none", &["ns", "instructions"]);
        // Keyed by name: the time and the instruction count of one operation share a row.
        let mut steps = BTreeMap::<String, [f64; 2]>::new();
        let unknown = [f64::NAN; 2];
        let mut files = Vec::new();
        find(Path::new(TIMES), "new/estimates.json", &mut files)?;
        for file in &files {
            let estimates = read(file)?;
            let nanos = estimates["median"]["point_estimate"].as_f64();
            let nanos = nanos.with_context(|| format!("{}: no median", file.display()))?;
            let name = file.strip_prefix(TIMES)?;
            let name = name.ancestors().nth(2).unwrap_or(name);
            steps.entry(name.display().to_string()).or_insert(unknown)[0] = nanos;
        }
        files.clear();
        find(Path::new(INSTRUCTIONS), "summary.json", &mut files)?;
        for file in &files {
            let summary = read(file)?;
            let name = summary["function_name"].as_str().unwrap_or("?").to_owned();
            let count = instructions(&summary);
            let count = count.with_context(|| format!("{}: no instructions", file.display()))?;
            steps.entry(name).or_insert(unknown)[1] = count;
        }
        let rows = steps.into_iter();
        let rows = rows.map(|(step, figures)| Row::of_once(step, Who::Casemate, figures));
        case.rows.extend(rows);
        Ok(case)
    })
}

fn bench(name: &str, more: &[&str]) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["bench", "--quiet", "--locked", "-p", "casemate-benches"]);
    command.args(["--bench", name]);
    if !more.is_empty() {
        command.arg("--").args(more);
    }
    let status = command.stdout(Stdio::null()).status().context("cargo")?;
    ensure!(status.success(), "cargo bench --bench {name}: {status}");
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| file.display().to_string())
}

/// The first count of instructions (`Ir`) in a summary of gungraun.
fn instructions(summary: &Value) -> Option<f64> {
    match summary {
        Value::Object(fields) => match fields.get("Ir") {
            Some(count) => first_number(count),
            None => fields.values().find_map(instructions),
        },
        Value::Array(values) => values.iter().find_map(instructions),
        _ => None,
    }
}

fn first_number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Object(fields) => fields.values().find_map(first_number),
        Value::Array(values) => values.iter().find_map(first_number),
        _ => None,
    }
}

/// The files below `folder` whose path ends in `end`, sorted.
fn find(folder: &Path, end: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            find(&path, end, files)?;
        } else if path.ends_with(end) {
            files.push(path);
        }
    }
    Ok(())
}
