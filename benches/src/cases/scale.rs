//! Case `scale`: push to many nodes over real QUIC with the real protocol, from simulated nodes
//! that run no functions. The case measures how long a manifest takes to reach all nodes, what each
//! node costs the control plane, and how fast the nodes reconnect after a restart of the control
//! plane.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use casemate_api::fleet::PublicKeys;
use casemate_control_testing::fleet::{LATER, tenant_path};
use casemate_control_testing::node::{admission, hello, joining};
use casemate_control_testing::{Fleet, Node, Plane};
use casemate_push::{NodeEnd, NodeEvent, Pauses, StatementId};
use casemate_tests::control::Control;
use casemate_trust::key::SigningKey;
use futures_util::StreamExt as _;
use rustix::process::{Resource, Rlimit};
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use crate::Run;
use crate::compare::percentile;
use crate::peer::Who;
use crate::plot;
use crate::process::{kib, pss_kib};
use crate::report::{Case, Row};

/// Numbers of connected nodes.
const NODES: [u32; 3] = [100, 1000, 10_000];
/// Memory that a node takes in this process and in the control plane together, KiB. Runs that need
/// more than the free memory are skipped.
const NODE_KIB: u64 = 1024;
/// Nodes that join concurrently; the control plane permits 16 connections of unadmitted nodes from
/// one address.
const JOINS_AT_A_TIME: usize = 8;
/// Deployments of each run, one after the other.
const DEPLOYS: u64 = 5;
/// The reported percentiles.
const PARTS: [usize; 3] = [50, 99, 100];
/// Points that are drawn of each line.
const POINTS: usize = 500;
/// Longest wait for the reports of all nodes.
const PATIENCE: Duration = Duration::from_secs(120);
/// Limit on open descriptors: each node needs one, the case some more.
const DESCRIPTORS: u64 = 64 * 1024;

/// What a simulated node reports to the case.
enum Said {
    /// The node has the manifest of this version.
    Has(u64, Instant),
    /// The control plane serves the node again, after its restart.
    Back(Instant),
}

/// A fleet of simulated nodes.
struct Many {
    control: Control,
    plane: Arc<Plane>,
    fleet: Arc<Fleet>,
    said: mpsc::UnboundedReceiver<Said>,
    count: u32,
    _folder: tempfile::TempDir,
}

impl Many {
    async fn start(count: u32, run: &Run) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let control = block_in_place(|| Control::start(folder.path(), None))?;
        let read = |name: &str| std::fs::read_to_string(control.state().join(name));
        let keys: PublicKeys = serde_json::from_str(&read("public.json")?)?;
        let plane = Arc::new(Plane {
            api: control.api.to_string(),
            quic: control.quic.to_string(),
            keys,
            operator: read("operator.token")?.trim().to_owned(),
        });
        let fleet = Arc::new(Fleet::new(&plane).await);
        let (say, said) = mpsc::unbounded_channel();
        let mut joined = futures_util::stream::iter(0..count)
            .map(|number| join(&plane, &fleet, number))
            .buffer_unordered(JOINS_AT_A_TIME)
            .enumerate();
        while let Some((before, node)) = joined.next().await {
            let (number, node) = node?;
            tokio::spawn(live(
                node,
                number,
                plane.clone(),
                fleet.clone(),
                say.clone(),
            ));
            if before % 200 == 199 {
                run.say(&format!("{} nodes have joined", before + 1));
            }
        }
        drop(joined);
        Ok(Self {
            control,
            plane,
            fleet,
            said,
            count,
            _folder: folder,
        })
    }

    /// Waits until every node has reported what `is_it` accepts; returns each node's time since
    /// `since`, in milliseconds, sorted.
    async fn all(
        &mut self,
        since: Instant,
        is_it: impl Fn(&Said) -> Option<Instant>,
    ) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        while times.len() < self.count as usize {
            let said = tokio::time::timeout(PATIENCE, self.said.recv()).await;
            let said = said.with_context(|| {
                format!("reports of {} of {} nodes in time", times.len(), self.count)
            })?;
            if let Some(at) = said.as_ref().and_then(&is_it) {
                times.push(at.duration_since(since).as_secs_f64() * 1e3);
            }
        }
        times.sort_by(f64::total_cmp);
        Ok(times)
    }

    /// Processor time that the control plane has used so far.
    fn cpu(&self) -> Result<Duration> {
        let pid = self
            .control
            .pid()
            .context("the control plane is not running")?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, rest) = stat.rsplit_once(')').context("a process's stat")?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(
            ticks * 1000 / rustix::param::clock_ticks_per_second(),
        ))
    }

    fn pss_kib(&self) -> Result<u64> {
        pss_kib(
            self.control
                .pid()
                .context("the control plane is not running")?,
        )
    }
}

/// Joins a node with a join token of its own, and has the operator admit it.
async fn join(plane: &Plane, fleet: &Fleet, number: u32) -> Result<(u32, Node)> {
    let key = key(number)?;
    let label = format!("edge-{number}");
    let token = fleet.join_token(plane, &label, LATER).await;
    let mut node = joining(plane, fleet, &token, &key).await;
    expect(&mut node, &NodeEvent::JoinPending).await?;
    let admission = admission(plane, fleet, &key).await;
    plane
        .operator()
        .post("/v1/nodes/admit", &admission)
        .await
        .ok();
    expect(&mut node, &NodeEvent::Admitted).await?;
    let greeting = hello(&label, &key, fleet.id);
    node.end.hello(greeting).map_err(anyhow::Error::msg)?;
    Ok((number, node))
}

fn key(number: u32) -> Result<SigningKey> {
    let mut seed = [77; 32];
    seed[..4].copy_from_slice(&number.to_le_bytes());
    SigningKey::from_seed(&seed).context("a key")
}

async fn expect(node: &mut Node, event: &NodeEvent) -> Result<()> {
    let got = node.next().await.map_err(anyhow::Error::msg)?;
    ensure!(got == *event, "expected {event:?}, got {got:?}");
    Ok(())
}

/// Acknowledges statements, reports manifests, and reconnects when the connection is lost.
async fn live(
    mut node: Node,
    number: u32,
    plane: Arc<Plane>,
    fleet: Arc<Fleet>,
    say: mpsc::UnboundedSender<Said>,
) {
    let mut pauses = Pauses::default();
    loop {
        serve(&mut node, &say).await;
        loop {
            tokio::time::sleep(pauses.take()).await;
            let Ok(key) = key(number) else { return };
            let greeting = hello(&format!("edge-{number}"), &key, fleet.id);
            match Node::try_connect(&plane, &key, NodeEnd::member(greeting)).await {
                Ok(again) => {
                    node = again;
                    break;
                }
                Err(_) if say.is_closed() => return,
                Err(_) => {}
            }
        }
        if let Ok(NodeEvent::Welcome { .. }) = node.next().await {
            pauses = Pauses::default();
            // The send fails only after the end of the case, when nobody receives reports any more.
            let _heard = say.send(Said::Back(Instant::now()));
        }
    }
}

/// Serves one connection until it is lost.
async fn serve(node: &mut Node, say: &mpsc::UnboundedSender<Said>) {
    loop {
        match node.next().await {
            Ok(NodeEvent::Statement { id, .. }) => {
                if node.end.ack(&id).is_err() || node.try_write().await.is_err() {
                    return;
                }
                if let StatementId::Manifest { version, .. } = id {
                    let _heard = say.send(Said::Has(version, Instant::now()));
                }
            }
            Ok(_) => {}
            // A quiet connection is not an error.
            Err(why) if why == casemate_control_testing::node::QUIET => {}
            Err(_) => return,
        }
    }
}

/// Runs the case.
pub(crate) async fn run(run: &Run) -> Result<Case> {
    // Each node has a socket in this process; the control plane inherits the limit on descriptors.
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = limit
        .maximum
        .map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    let limit = Rlimit {
        current: Some(current),
        ..limit
    };
    rustix::process::setrlimit(Resource::Nofile, limit)?;
    let title = "Push to many connected nodes: milliseconds";
    let mut case = Case::new("scale", title, "none", &["p50 ms", "p99 ms", "max ms"]);
    for count in NODES {
        let memory = std::fs::read_to_string("/proc/meminfo")?;
        let available_kib = kib(&memory, "MemAvailable").context("meminfo without MemAvailable")?;
        if available_kib < u64::from(count) * NODE_KIB {
            run.say(&format!("scale: not enough free memory for {count} nodes"));
            break;
        }
        run.say(&format!("scale: {count} nodes join"));
        one(count, &mut case, run).await?;
    }
    Ok(case)
}

/// The share of nodes, in percent, over the time; at most [`POINTS`] points.
#[allow(
    clippy::cast_precision_loss,
    reason = "the counts stay below some million"
)]
fn steps(times: &[f64]) -> Vec<(f64, f64)> {
    let many = times.len() as f64;
    let point = |(number, time): (usize, &f64)| (time.max(0.1), (number + 1) as f64 / many * 100.0);
    let all = times.iter().enumerate().map(point);
    all.step_by(times.len().div_ceil(POINTS).max(1)).collect()
}

#[allow(
    clippy::cast_precision_loss,
    reason = "the counts stay below some million"
)]
async fn one(count: u32, case: &mut Case, run: &Run) -> Result<()> {
    let mut many = Many::start(count, run).await?;
    let before_kib = many.pss_kib()?;
    let (tenant, mut all) = (many.plane.client(&many.fleet.tenant_token), Vec::new());
    let cpu = many.cpu()?;
    for version in 1..=DEPLOYS {
        let bundle = format!("export default {{}} // {version}");
        let manifest = many.fleet.upload(&tenant, version, bundle.as_bytes()).await;
        let path = tenant_path(&many.fleet.tenant.id, "manifest");
        let started = Instant::now();
        tenant.put(&path, manifest.to_bytes()).await.ok();
        let has = |said: &Said| match said {
            Said::Has(got, at) if *got == version => Some(*at),
            _ => None,
        };
        all.extend(many.all(started, has).await?);
    }
    all.sort_by(f64::total_cmp);
    case.rows.push(Row::of_once(
        format!("{count} nodes: time from the upload of a manifest until a node has it"),
        Who::Casemate,
        PARTS.map(|part| percentile(&all, part)),
    ));
    let cpu_us = (many.cpu()?.saturating_sub(cpu)).as_secs_f64() * 1e6;
    let each = f64::from(count);
    case.rows.push(Row::of_once(
        format!("{count} nodes: control plane's processor time per node and deployment, us; memory per node, KiB; memory in all, MiB"),
        Who::Casemate,
        [
            cpu_us / each / DEPLOYS as f64,
            before_kib as f64 / each,
            before_kib as f64 / 1024.0,
        ],
    ));
    let name = format!("scale-{count}.svg");
    many.control.kill()?;
    // Long enough for every node to notice the loss and to be in its back-off.
    tokio::time::sleep(Duration::from_secs(5)).await;
    block_in_place(|| many.control.restart())?;
    let started = Instant::now();
    let back = |said: &Said| match said {
        Said::Back(at) => Some(*at),
        Said::Has(..) => None,
    };
    let back = many.all(started, back).await?;
    case.rows.push(Row::of_once(
        format!(
            "{count} nodes: time from the control plane's restart until a node is served again"
        ),
        Who::Casemate,
        PARTS.map(|part| percentile(&back, part)),
    ));
    let series = [
        ("have the manifest", steps(&all)),
        ("are served again", steps(&back)),
    ];
    let title = format!("{count} nodes");
    plot::steps(
        &run.out.join(&name),
        &title,
        ("milliseconds", "% of nodes"),
        &series,
    )?;
    case.pictures.push(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_a_key_of_its_own() {
        let (one, other) = (key(1).unwrap(), key(256).unwrap());
        assert_ne!(one.public(), other.public());
    }
}
