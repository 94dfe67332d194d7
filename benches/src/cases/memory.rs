//! Memory of functions that wait for a request: each process's own pages and its part of the shared
//! ones (PSS, proc(5)), summed over all processes of each runtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use casemate_tests::caller;
use casemate_tests::node::Workers;
use tokio::task::block_in_place;

use crate::Run;
use crate::ours::Ours;
use crate::peer::{self, Peer, Who};
use crate::plot;
use crate::process::pss_kib;
use crate::report::{Case, Row};

const MOST: usize = 100;
const FUNCTIONS: [usize; 3] = [1, 10, MOST];
/// Number of Deno processes, one for each function: a higher number would measure this machine's
/// memory and nothing else.
const MOST_PROCESSES: usize = 10;

fn row(count: usize, who: Who, kib: u64, before: u64) -> Row {
    row_of(format!("{count} functions"), count, who, kib, before)
}

fn row_of(what: String, count: usize, who: Who, kib: u64, before: u64) -> Row {
    #[allow(
        clippy::cast_precision_loss,
        reason = "the counts stay below some million"
    )]
    let mib = |kib: u64| kib as f64 / 1024.0;
    #[allow(clippy::cast_precision_loss, reason = "some hundred")]
    let each = mib(kib.saturating_sub(before)) / count as f64;
    Row::of_once(what, who, [mib(kib), each])
}

/// The case `memory`: PSS with and without idle functions, for each runtime.
pub(crate) async fn run(run: &Run) -> Result<Case> {
    let columns = ["all processes, MiB", "each function, MiB"];
    let mut case = Case::new("memory", "Memory of idle functions", "none", &columns);
    let mut series = BTreeMap::<Who, Vec<(f64, f64)>>::new();
    let code = block_in_place(|| peer::bundled("hello", &run.folder))?;
    for count in FUNCTIONS {
        run.say(&format!("memory, {count} functions"));
        let (before, all) = ours(count, false, &code).await?;
        let mut rows = vec![row(count, Who::Casemate, all, before)];
        let (before, all) = block_in_place(|| workerd(count, &code, run))?;
        rows.push(row(count, Who::Workerd, all, before));
        if count <= MOST_PROCESSES {
            let all = block_in_place(|| deno(count, &code, run))?;
            rows.push(row(count, Who::Deno, all, 0));
        }
        for (who, row) in [Who::Casemate, Who::Workerd, Who::Deno]
            .into_iter()
            .zip(&rows)
        {
            #[allow(clippy::cast_precision_loss, reason = "some hundred")]
            let point = (count as f64, row.figures[0].median);
            series.entry(who).or_default().push(point);
        }
        case.rows.extend(rows);
    }
    run.say("memory, as many tenants");
    let (before, all) = ours(MOST, true, &code).await?;
    let what = format!("{MOST} functions of {MOST} tenants");
    case.rows
        .push(row_of(what, MOST, Who::Casemate, all, before));
    let name = "memory.svg";
    let series: Vec<_> = series.into_iter().collect();
    let axes = ("idle functions", "MiB");
    plot::lines(
        &run.out.join(name),
        "Memory of idle functions (PSS)",
        axes,
        &series,
    )?;
    case.pictures.push(name.to_owned());
    Ok(case)
}

/// PSS in KiB, first without a function, then with `count` functions that have each served one
/// request.
async fn ours(count: usize, is_tenant_each: bool, code: &Path) -> Result<(u64, u64)> {
    // A tenant never gets the last of a node's worker slots.
    let max = u32::try_from(count)? * 2 + 4;
    let ours = block_in_place(|| Ours::start(Workers { spares: 1, max }))?;
    let root = ours.fleet.node.pid().context("the node is not running")?;
    let before = block_in_place(|| pss_kib(root))?;
    let mut hosts = Vec::new();
    for number in 0..count {
        let name = format!("idle{number}");
        hosts.push(if is_tenant_each {
            ours.deploy_of_its_own_tenant(&name, code).await?
        } else {
            ours.deploy(&name, "", code).await?
        });
    }
    for host in &hosts {
        let answer = caller::get(ours.fleet.node.gateway, host, "/").await?;
        anyhow::ensure!(answer.status == 200, "{host}: {}", answer.text());
    }
    let all = block_in_place(|| pss_kib(root))?;
    let serving = ours.fleet.node.workers()?.len();
    anyhow::ensure!(serving == count, "expected {count} workers, got {serving}");
    Ok((before, all))
}

fn workerd(count: usize, code: &Path, run: &Run) -> Result<(u64, u64)> {
    let functions = |count: usize| -> Vec<(String, PathBuf)> {
        let function = |number| (format!("idle{number}"), code.to_owned());
        (0..count).map(function).collect()
    };
    let asked = |peer: &Peer, number: usize| {
        let host = format!("idle{number}.test");
        let status = std::process::Command::new("curl")
            .args(["--silent", "--fail", "--output", "/dev/null", "--header"])
            .arg(format!("Host: {host}"))
            .arg(format!("http://{}/", peer.address))
            .status()?;
        anyhow::ensure!(status.success(), "workerd does not answer for {host}");
        Ok(())
    };
    // workerd needs at least one function: a process whose function was never called is the nearest
    // baseline.
    let none = peer::workerd(&functions(1), &run.folder)?;
    let before = pss_kib(none.running.pid())?;
    let peer = peer::workerd(&functions(count), &run.folder)?;
    (0..count).try_for_each(|number| asked(&peer, number))?;
    Ok((before, pss_kib(peer.running.pid())?))
}

fn deno(count: usize, code: &Path, run: &Run) -> Result<u64> {
    let start = |_| peer::deno(code, &run.folder);
    let peers: Vec<Peer> = (0..count).map(start).collect::<Result<_>>()?;
    let mut all = 0;
    for peer in &peers {
        all += pss_kib(peer.running.pid())?;
    }
    Ok(all)
}
