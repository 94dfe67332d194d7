//! Cases `upstream` and `rotation`: a function with outgoing calls, and a hundred functions at
//! once.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use casemate_tests::node::Workers;
use tokio::task::block_in_place;

use crate::Run;
use crate::compare::{Rounds, Spread};
use crate::load::{Load, Target, wrk};
use crate::ours::Ours;
use crate::peer::{self, Upstream, Who};
use crate::report::{Case, Row};

/// Functions in rotation.
const FUNCTIONS: usize = 100;

/// A node with a function that calls an upstream with a credential.
pub(crate) struct Calling {
    pub(crate) upstream: Upstream,
    pub(crate) ours: Ours,
    pub(crate) host: String,
}

pub(crate) async fn calling(run: &Run) -> Result<Calling> {
    let upstream = block_in_place(|| Upstream::start(&run.folder))?;
    let ours = block_in_place(|| Ours::start(Workers::default()))?;
    let code = run.folder.join("call.js");
    std::fs::write(&code, function("env.payments.fetch(\"/v1/charges\")"))?;
    let config = upstream.credential();
    let project = ours.project("call", &config, &code)?;
    std::fs::write(project.join("upstream-ca.pem"), &upstream.ca_pem)?;
    block_in_place(|| ours.fleet.put_secret(&project))?;
    let host = ours.deploy("call", &config, &code).await?;
    Ok(Calling {
        upstream,
        ours,
        host,
    })
}

/// One upstream over TLS, on kept connections. In Casemate the vault opens the sealed key and sets
/// the header; for the other runtimes the key is written into the function's text.
pub(crate) async fn upstream(run: &Run) -> Result<Case> {
    let Calling {
        upstream,
        ours,
        host,
    } = calling(run).await?;
    let plain = run.folder.join("call-plain.js");
    std::fs::write(&plain, function(&upstream.plain_call()))?;
    let target = ours.target(vec![host]);
    let workerd = block_in_place(|| upstream.workerd(&plain, &run.folder))?;
    let deno = block_in_place(|| upstream.deno(&plain, &run.folder))?;
    let mut case = Case::of_load("upstream", "A function that calls one upstream over TLS");
    for connections in [1, 16, 64] {
        let load = Load::get(connections, run.secs, "/");
        run.say(&format!("upstream, {connections} connections"));
        let one = |who| {
            let target = match who {
                Who::Workerd => workerd.target(),
                Who::Deno => deno.target(),
                Who::Casemate | Who::Floor => target.clone(),
            };
            wrk(&target, &load, &run.folder)
        };
        let who = [Who::Casemate, Who::Workerd, Who::Deno];
        let rounds = block_in_place(|| Rounds::measure(&who, run.rounds, one))?;
        case.add_load(&format!("{connections} connections"), &rounds, |sample| {
            sample.per_second
        });
    }
    let code = block_in_place(|| peer::bundled("hello", &run.folder))?;
    let hello = ours.target(vec![ours.deploy("hello", "", &code).await?]);
    let deno_hello = block_in_place(|| peer::deno(&code, &run.folder))?;
    let direct = upstream.target();
    let pairs = [
        (Who::Casemate, target, hello),
        (Who::Deno, deno.target(), deno_hello.target()),
    ];
    case.rows
        .extend(block_in_place(|| added(&pairs, &direct, run))?);
    Ok(case)
}

/// What the function's outgoing call adds to the same call made directly: the latency of a function
/// that makes the call, minus the latency of a function that makes none, minus the latency of the
/// direct call. Casemate's call goes through the vault, the other runtime makes the call in its own
/// process. The load generator's own cost is in all three figures, and so lowers both rows alike:
/// the difference between the two rows is the cost of the vault and its sandbox.
fn added(pairs: &[(Who, Target, Target); 2], direct: &Target, run: &Run) -> Result<Vec<Row>> {
    run.say("upstream, added latency of a call");
    let one = |target: &Target, path: &'static str| -> Result<f64> {
        let load = Load::get(1, run.secs, path);
        let sample = wrk(target, &load, &run.folder)?;
        ensure!(sample.errors == 0, "{} calls failed", sample.errors);
        // Only medians can be subtracted: the slowest calls of the sum are not the slowest of its
        // parts.
        Ok(sample.p50_us)
    };
    let mut added = [Vec::new(), Vec::new()];
    // The first round warms up. The order of the two runtimes alternates from round to round.
    for round in 0..=run.rounds {
        let direct = one(direct, "/v1/charges")?;
        let mut order = [0, 1];
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let (_, calls, hello) = &pairs[index];
            let rest = one(calls, "/")? - one(hello, "/")? - direct;
            if round > 0 {
                added[index].push(rest);
            }
        }
    }
    let what = "1 connection: overhead of the function's call over a direct call";
    let rows = pairs.iter().zip(added).map(|((who, ..), added)| {
        let mut row = Row::of_once(what, *who, [f64::NAN; 4]);
        row.figures[1] = Spread::of(added).context("there are rounds")?;
        Ok(row)
    });
    rows.collect()
}

fn function(call: &str) -> String {
    format!(
        "let count = 0;\nexport default {{\n  async fetch(request, env) {{\n    const answer = await {call};\n    \
         count += 1;\n    return new Response(`${{await answer.text()}} ${{count}}`, {{ status: answer.status }});\n  }},\n}};\n"
    )
}

/// Each request goes to the next of a hundred functions. Casemate runs each function in its own
/// sandboxed process; workerd runs all of them in one process.
pub(crate) async fn rotation(run: &Run) -> Result<Case> {
    let code = block_in_place(|| peer::bundled("hello", &run.folder))?;
    let max = u32::try_from(FUNCTIONS)? * 2 + 4;
    let ours = block_in_place(|| Ours::start(Workers { spares: 2, max }))?;
    let mut hosts = Vec::new();
    for number in 0..FUNCTIONS {
        hosts.push(ours.deploy(&format!("turn{number}"), "", &code).await?);
    }
    let workerd = block_in_place(|| all_in_one(&code, run))?;
    let mut case = Case::of_load("rotation", "A hundred functions in rotation");
    let load = Load::get(64, run.secs, "/");
    let one = |who| {
        let target = if who == Who::Workerd {
            let hosts = (0..FUNCTIONS).map(|number| format!("turn{number}.test"));
            crate::load::Target {
                hosts: hosts.collect(),
                ..workerd.target()
            }
        } else {
            ours.target(hosts.clone())
        };
        wrk(&target, &load, &run.folder)
    };
    let rounds =
        block_in_place(|| Rounds::measure(&[Who::Casemate, Who::Workerd], run.rounds, one))?;
    case.add_load("64 connections", &rounds, |sample| sample.per_second);
    Ok(case)
}

fn all_in_one(code: &Path, run: &Run) -> Result<peer::Peer> {
    let function = |number| (format!("turn{number}"), code.to_owned());
    let functions: Vec<_> = (0..FUNCTIONS).map(function).collect();
    peer::workerd(&functions, &run.folder)
}
