//! The main job as a demonstration: a fleet, a sandboxed node, a tenant, a sealed key, a function
//! and its callers. `casemate-demo` leaves everything running until Ctrl-C; `casemate-demo --once`
//! ends by itself. With `--image` the node is an emulated machine that boots from an image. With
//! `--keep` the folder of the demo is not removed.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use casemate_tests::caller;
use casemate_tests::fleet::{FUNCTION_HOST, Fleet, SOON, UPSTREAM_HOST, UPSTREAM_KEY};
use casemate_tests::machine::{self, Hardware, Machine};
use casemate_tests::programs;
use casemate_tests::upstream::Upstream;
use tokio::task::block_in_place;

/// Pause between two calls of the continuous caller during the change of versions.
const CALL_INTERVAL: Duration = Duration::from_millis(20);

/// The command that installs the project's npm packages: the versions in its lock file, without
/// running the packages' scripts.
const INSTALL: [&str; 5] = [
    "ci",
    "--ignore-scripts",
    "--no-audit",
    "--no-fund",
    "--silent",
];

/// The permissions in the demo project's configuration.
const DEMO_CPU_TIME_MS: u32 = 50;

/// Prints what happens, with the time since the start.
struct Story {
    started: Instant,
    number: usize,
}

impl Story {
    fn line(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        // A failed write, for instance to a closed pipe, does not end the demo.
        let _written = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    fn step(&mut self, text: &str) {
        self.number += 1;
        self.line(&format!(
            "\n{:>2}. {text}  [{:.1} s]",
            self.number,
            self.started.elapsed().as_secs_f32()
        ));
    }

    /// Prints the command of a step in a shell's syntax.
    fn command(&self, text: &str) {
        self.line(&format!("    $ {text}"));
    }

    fn shown(&self, what: &str, text: &str) {
        self.line(&format!("    {what}:"));
        text.trim_end()
            .lines()
            .for_each(|line| self.line(&format!("      {line}")));
    }
}

/// The options of the command line.
#[derive(Debug, Clone, Copy)]
struct Asked {
    /// End by itself.
    once: bool,
    /// Boot the node from an image.
    image: bool,
    /// Do not remove the folder.
    keep: bool,
}

fn main() -> ExitCode {
    let asks = |option: &str| std::env::args().any(|argument| argument == option);
    let asked = Asked {
        once: asks("--once"),
        image: asks("--image"),
        keep: asks("--keep"),
    };
    // The printed commands of the fleet are those that the harness runs.
    programs::tell_commands(|text| {
        let mut out = std::io::stdout().lock();
        let _written = writeln!(out, "    $ {text}").and_then(|()| out.flush());
    });
    let mut story = Story {
        started: Instant::now(),
        number: 0,
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            story.line(&format!("cannot start: {error}"));
            return ExitCode::from(70);
        }
    };
    match runtime.block_on(run(asked, &mut story)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            story.line(&format!("\nthe demo failed: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(asked: Asked, story: &mut Story) -> Result<()> {
    let temporary = tempfile::Builder::new()
        .prefix("casemate-demo-")
        .disable_cleanup(asked.keep)
        .tempdir()?;
    let folder = temporary.path();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    story.line("Casemate: a function uses a key that it never sees, on a node that trusts nobody.");
    story.line(&format!("Everything lies in {}", folder.display()));
    let programs = programs::programs_folder()?;
    story.line(&format!(
        "Each step shows its commands behind `$`; the programs are in {}",
        programs.display()
    ));
    let told = tell(asked, story, folder).await;
    if asked.keep {
        story.line(&kept(folder));
    }
    told
}

/// The closing text when the folder is kept: the paths of its parts.
fn kept(folder: &Path) -> String {
    let shown = folder.display();
    format!(
        "\nEverything is kept, and nothing of it runs any more:\n  \
         {shown}/control     the control plane: control.toml, its state and its log\n  \
         {shown}/node        the node: node.toml, vault.toml, its state and its log\n  \
         {shown}/operator    the operator's home, with the fleet's root key\n  \
         {shown}/tenant      the tenant's home\n  \
         {shown}/hello       the function's project\n\
         Start the control plane again with `casemate-control serve --config {shown}/control/control.toml`.\n\
         Remove it all with: rm -rf {shown}"
    )
}

/// Runs the demonstration in a folder.
async fn tell(asked: Asked, story: &mut Story, folder: &Path) -> Result<()> {
    let image = asked.image;
    story.step("an upstream starts: over TLS, and 401 for whoever comes without the key");
    let upstream = Upstream::start(UPSTREAM_HOST, UPSTREAM_KEY).await?;
    if !image {
        let mut fleet = block_in_place(|| Fleet::start_in(folder, &mut |text| story.step(text)))?;
        let gateway = fleet.node.gateway;
        play(asked, story, &fleet, gateway, &upstream, 1).await?;
        story.step("everything ends");
        block_in_place(|| fleet.node.stop())?;
        return Ok(());
    }
    story.step("an image is made of the node's programs and Debian packages, signed by nobody yet");
    block_in_place(machine::image)?;
    let start = |folder: &Path, token: &str| {
        let seed = machine::seed(token);
        Machine::start(
            folder,
            &Hardware {
                seed,
                ..Hardware::default()
            },
        )
    };
    let started = block_in_place(|| {
        Fleet::start_with(
            folder,
            Some(machine::HOST),
            &mut |text| story.step(text),
            start,
        )
    });
    let mut fleet = started?;
    story.shown("the machine's console", &fleet.node.said());
    let gateway = fleet.node.gateway;
    // An emulated processor is about twenty times slower.
    play(asked, story, &fleet, gateway, &upstream, 20).await?;
    story.step("the power is cut");
    block_in_place(|| fleet.node.cut_power())
}

/// From the function's source to its callers, the same steps for every kind of node.
async fn play<N>(
    asked: Asked,
    story: &mut Story,
    fleet: &Fleet<N>,
    gateway: SocketAddr,
    upstream: &Upstream,
    slower: u32,
) -> Result<()> {
    let project = block_in_place(|| fleet.project(upstream))?;
    let config = project.join("casemate.toml");
    let text = std::fs::read_to_string(&config)?;
    let time = format!("cpu_time_ms = {}", DEMO_CPU_TIME_MS * slower);
    let text = text.replace(&format!("cpu_time_ms = {DEMO_CPU_TIME_MS}"), &time);
    std::fs::write(&config, text)?;
    story.step("the tenant's function: TypeScript, several files, and hono from npm");
    story.command(&format!(
        "cd {} && npm {}",
        project.display(),
        INSTALL.join(" ")
    ));
    block_in_place(|| install(&project))?;
    story.step(
        "the tenant seals the upstream's key: from here on only the nodes' vaults can open it",
    );
    block_in_place(|| fleet.put_secret(&project))?;
    story.step("the tenant deploys: bundled, signed, uploaded, pushed, judged by the vault");
    block_in_place(|| fleet.deploy(&project))?;

    show_calls(story, gateway, upstream).await?;
    show_environment(story, gateway).await?;
    change_versions(story, fleet, gateway, &project).await?;
    if !asked.once {
        linger(story, fleet, gateway, &project, asked.keep).await?;
    }
    Ok(())
}

/// Sends a caller's requests, one of which uses the credential.
async fn show_calls(story: &mut Story, gateway: SocketAddr, upstream: &Upstream) -> Result<()> {
    story.step("a caller asks");
    story.command(&format!(
        "curl -H 'Host: {FUNCTION_HOST}' http://{gateway}/"
    ));
    story.shown(
        &format!("GET http://{FUNCTION_HOST}/"),
        &until_version(gateway, "1").await?,
    );
    story.command(&format!(
        "curl -H 'Host: {FUNCTION_HOST}' http://{gateway}/charge/42"
    ));
    let charge = caller::get(gateway, FUNCTION_HOST, "/charge/42").await?;
    ensure!(
        charge.status == 200 && charge.text().contains("\"upstream_status\":200"),
        "the upstream did not take the call: {}",
        charge.text()
    );
    story.shown(
        "GET /charge/42, for which the function calls the upstream",
        &charge.text(),
    );
    let seen = upstream.seen();
    let injected = seen
        .iter()
        .any(|seen| seen.header("authorization") == Some(&format!("Bearer {UPSTREAM_KEY}")));
    ensure!(injected, "the upstream saw no key");
    story.line("    The upstream saw the right key: the vault set it on the way out.");
    Ok(())
}

/// Shows the function's environment, which contains no credential.
async fn show_environment(story: &mut Story, gateway: SocketAddr) -> Result<()> {
    story.step("what the function itself can see");
    story.command(&format!(
        "curl -H 'Host: {FUNCTION_HOST}' http://{gateway}/environment"
    ));
    let environment = caller::get(gateway, FUNCTION_HOST, "/environment")
        .await?
        .text();
    ensure!(
        environment.contains("payments") && !environment.contains(UPSTREAM_KEY),
        "the environment is not as it should be: {environment}"
    );
    story.shown("GET /environment, everything in its `env`", &environment);
    story.line("    A slot called “payments”, and no key.");
    Ok(())
}

/// A deployment and a rollback during requests.
async fn change_versions<N>(
    story: &mut Story,
    fleet: &Fleet<N>,
    gateway: SocketAddr,
    project: &Path,
) -> Result<()> {
    story.step("version 2 is deployed and rolled back while requests go on");
    let traffic = Traffic::start(gateway);
    story.command("sed -i 's/VERSION = \"1\"/VERSION = \"2\"/' casemate.toml");
    let config = project.join("casemate.toml");
    let text = std::fs::read_to_string(&config)?.replace("VERSION = \"1\"", "VERSION = \"2\"");
    std::fs::write(&config, text)?;
    block_in_place(|| fleet.deploy(project))?;
    story.shown("after the deployment", &until_version(gateway, "2").await?);
    block_in_place(|| {
        fleet
            .tenant
            .ok(project, &["rollback", "hello", "--wait", "60"], b"")
    })?;
    story.shown("after the rollback", &until_version(gateway, "1").await?);
    let (calls, failed) = traffic.stop().await?;
    ensure!(failed == 0, "{failed} of {calls} requests failed meanwhile");
    story.line(&format!(
        "    {calls} requests went on meanwhile, none failed."
    ));
    Ok(())
}

/// Installs the project's npm packages.
fn install(project: &Path) -> Result<()> {
    let ran = Command::new("npm")
        .args(INSTALL)
        .current_dir(project)
        .output();
    let ran = ran.context("running npm")?;
    if !ran.status.success() {
        bail!(
            "npm ci ended with {}:\n{}",
            ran.status,
            String::from_utf8_lossy(&ran.stderr)
        );
    }
    Ok(())
}

/// Waits until the function's greeting names this version; returns it.
async fn until_version(gateway: SocketAddr, version: &str) -> Result<String> {
    let end = Instant::now() + SOON;
    let wanted = format!("version {version}");
    loop {
        let answer = caller::get(gateway, FUNCTION_HOST, "/").await?;
        if answer.status == 200 && answer.text().contains(&wanted) {
            return Ok(answer.text());
        }
        ensure!(
            Instant::now() < end,
            "version {version} does not answer; last: {} {}",
            answer.status,
            answer.text()
        );
        tokio::time::sleep(CALL_INTERVAL).await;
    }
}

/// A caller that sends requests continuously and counts failures.
struct Traffic {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<usize>,
}

impl Traffic {
    fn start(gateway: SocketAddr) -> Self {
        let (stop, failed) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, failures) = (stop.clone(), failed.clone());
        let task = tokio::spawn(async move {
            let mut calls = 0;
            while !stopped.load(Ordering::Relaxed) {
                calls += 1;
                let well = caller::get(gateway, FUNCTION_HOST, "/")
                    .await
                    .is_ok_and(|answer| answer.status == 200);
                failures.fetch_add(usize::from(!well), Ordering::Relaxed);
                tokio::time::sleep(CALL_INTERVAL).await;
            }
            calls
        });
        Self { stop, failed, task }
    }

    async fn stop(self) -> Result<(usize, usize)> {
        self.stop.store(true, Ordering::Relaxed);
        let calls = self.task.await?;
        Ok((calls, self.failed.load(Ordering::Relaxed)))
    }
}

/// Leaves everything running, and prints commands to try.
async fn linger<N>(
    story: &Story,
    fleet: &Fleet<N>,
    gateway: SocketAddr,
    project: &Path,
    keep: bool,
) -> Result<()> {
    let casemate = programs::program("casemate")?;
    let casemate = casemate.display();
    let (operator, tenant) = (
        fleet.operator.home().display(),
        fleet.tenant.home().display(),
    );
    story.line("\nEverything is running. Try, in another terminal:");
    story.line(&format!(
        "  curl -H 'Host: {FUNCTION_HOST}' http://{gateway}/charge/7"
    ));
    story.line(&format!("  {casemate} --home {operator} node show edge-1"));
    story.line(&format!("  {casemate} --home {operator} audit"));
    story.line(&format!("  {casemate} --home {tenant} logs --follow"));
    story.line(&format!(
        "  cd {} && {casemate} --home {tenant} status",
        project.display()
    ));
    story.line(&format!(
        "  edit {}/src/main.ts, then: {casemate} --home {tenant} deploy",
        project.display()
    ));
    let then = match keep {
        true => "keeps its folder",
        false => "removes everything (KEEP=1 keeps it)",
    };
    story.line(&format!("\nCtrl-C ends it and {then}."));
    tokio::signal::ctrl_c().await.context("waiting for Ctrl-C")
}
