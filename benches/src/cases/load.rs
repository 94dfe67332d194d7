//! Functions under load: throughput and latency.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tokio::task::block_in_place;

use crate::Run;
use crate::compare::Rounds;
use crate::load::{Load, Sample, Target, oha, wrk};
use crate::ours::Ours;
use crate::peer::{self, Peer, Who};
use crate::plot;
use crate::report::Case;

/// One case: a function under concurrent requests.
struct Asked {
    name: &'static str,
    function: &'static str,
    title: &'static str,
    path: &'static str,
    connections: &'static [u32],
    /// The request body, for functions that read one.
    body: Option<fn() -> Vec<u8>>,
    /// The figure that the ratio compares.
    ratio: fn(&Sample) -> f64,
    has_floor: bool,
}

const PER_SECOND: fn(&Sample) -> f64 = |sample| sample.per_second;

const ASKED: &[Asked] = &[
    Asked {
        name: "hello",
        function: "hello",
        title: "Hello world: the function reads the URL and a header, and answers a new text each time",
        path: "/some/path?x=1",
        connections: &[1, 16, 64, 256],
        body: None,
        ratio: PER_SECOND,
        has_floor: true,
    },
    Asked {
        name: "json",
        function: "json",
        title: "JSON of 1 KiB in and out",
        path: "/orders",
        connections: &[16, 64],
        body: Some(order),
        ratio: PER_SECOND,
        has_floor: false,
    },
    Asked {
        name: "echo",
        function: "echo",
        title: "A body of 64 KiB, sent back",
        path: "/echo",
        connections: &[16],
        body: Some(|| vec![b'x'; 64 * 1024]),
        ratio: PER_SECOND,
        has_floor: false,
    },
    Asked {
        name: "stream",
        function: "stream",
        title: "10 MB streamed in pieces of 64 KiB",
        path: "/",
        connections: &[4],
        body: None,
        ratio: |sample| sample.bytes_per_second,
        has_floor: false,
    },
    Asked {
        name: "router",
        function: "router",
        title: "An app with the hono router",
        path: "/orders/42/lines/7",
        connections: &[64],
        body: None,
        ratio: PER_SECOND,
        has_floor: false,
    },
    Asked {
        name: "cpu",
        function: "cpu",
        title: "Some 5 ms of processor time a request",
        path: "/",
        connections: &[16],
        body: None,
        ratio: PER_SECOND,
        has_floor: false,
    },
];

/// The names of these cases.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ASKED.iter().map(|asked| asked.name)
}

/// An order of about 1 KiB.
fn order() -> Vec<u8> {
    let line = |number: u32| {
        let sku = format!("sku-{number:04}");
        let name = format!("thing {number}");
        serde_json::json!({ "sku": sku, "name": name, "price": 100 + number, "count": 1 + number % 3 })
    };
    let lines: Vec<_> = (0..15).map(line).collect();
    let order = serde_json::json!({ "id": 4711, "customer": "c-17", "lines": lines });
    order.to_string().into_bytes()
}

/// The runtimes that run one function.
pub(crate) struct Field {
    pub(crate) ours: Target,
    workerd: Peer,
    deno: Peer,
    floor: Option<Peer>,
}

impl Field {
    pub(crate) async fn of(
        ours: &Ours,
        function: &str,
        has_floor: bool,
        run: &Run,
    ) -> Result<Self> {
        let code = block_in_place(|| peer::bundled(function, &run.folder))?;
        let host = ours.deploy(function, "", &code).await?;
        block_in_place(|| {
            Ok(Self {
                ours: ours.target(vec![host]),
                workerd: peer::workerd(&[(function.to_owned(), code.clone())], &run.folder)?,
                deno: peer::deno(&code, &run.folder)?,
                floor: has_floor.then(|| peer::floor(&run.folder)).transpose()?,
            })
        })
    }

    pub(crate) fn who(&self) -> Vec<Who> {
        let mut who = vec![Who::Casemate, Who::Workerd, Who::Deno];
        who.extend(self.floor.as_ref().map(|_| Who::Floor));
        who
    }

    pub(crate) fn target(&self, who: Who) -> Target {
        match (who, &self.floor) {
            (Who::Workerd, _) => self.workerd.target(),
            (Who::Deno, _) => self.deno.target(),
            (Who::Floor, Some(floor)) => floor.target(),
            (Who::Casemate | Who::Floor, _) => self.ours.clone(),
        }
    }
}

fn body(asked: &Asked, folder: &Path) -> Result<Option<PathBuf>> {
    let Some(make) = asked.body else {
        return Ok(None);
    };
    let path = folder.join(format!("{}.body", asked.name));
    std::fs::write(&path, make())?;
    Ok(Some(path))
}

/// Measures the case of this name; `None` for a name of another kind of case.
pub(crate) async fn run(name: &str, ours: &Ours, run: &Run) -> Result<Option<Case>> {
    let Some(asked) = ASKED.iter().find(|asked| asked.name == name) else {
        return Ok(None);
    };
    let field = Field::of(ours, asked.function, asked.has_floor, run).await?;
    let mut case = Case::of_load(asked.name, asked.title);
    if asked.name == "stream" {
        case.ratio_of = "bytes per second, ours against theirs";
    }
    let body = body(asked, &run.folder)?;
    let mut slowest = f64::INFINITY;
    for connections in asked.connections {
        let load = Load {
            connections: *connections,
            secs: run.secs,
            path: asked.path,
            body: body.clone(),
        };
        run.say(&format!("{name}, {connections} connections"));
        let one = |who| wrk(&field.target(who), &load, &run.folder);
        let rounds = block_in_place(|| Rounds::measure(&field.who(), run.rounds, one))?;
        if *connections == 64 {
            let least = field
                .who()
                .into_iter()
                .filter_map(|who| rounds.of(who, PER_SECOND));
            slowest = least.map(|spread| spread.median).fold(slowest, f64::min);
        }
        case.add_load(&format!("{connections} connections"), &rounds, asked.ratio);
    }
    if asked.name == "hello" {
        fixed_rate(&mut case, &field, slowest, run)?;
    }
    Ok(Some(case))
}

/// Latency at one request rate for all runtimes: half of the slowest runtime's throughput.
fn fixed_rate(case: &mut Case, field: &Field, slowest: f64, run: &Run) -> Result<()> {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "some thousand"
    )]
    let per_second = (slowest / 2.0) as u32;
    let load = Load::get(64, run.secs, "/some/path?x=1");
    run.say(&format!("{}, {per_second} requests a second", case.name));
    let one = |who| oha(&field.target(who), &load, per_second);
    let rounds = block_in_place(|| Rounds::measure(&field.who(), run.rounds, one))?;
    let what = format!("{per_second}/s, 64 connections (ratio of p99: less is better)");
    case.add_load(&what, &rounds, |sample| sample.p99_us);
    case.pictures
        .push(plot::latency(&rounds, per_second, &run.out)?);
    Ok(())
}
