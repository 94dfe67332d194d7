//! Runs the node: starts launch and restarts it, polls its status, and stops it in order.

mod report;

use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait as wait_for_child};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use report::{health, report};

use crate::console::{Page, Problem, say};
use crate::network::{News, View};
use crate::seed::{JOIN_TOKEN, NODE, Seed, VAULT};
use crate::settings::{Settings, UID_BASE};
use crate::storage::Storage;
use crate::update::{Health, MACHINE, Next, Update};
use crate::{Failure, button, clock, figures, network};

const LAUNCH: &str = "/usr/lib/casemate/casemate-launch";
/// The only variable in the environment of launch.
const PATH: &str = "/usr/lib/casemate";

/// Time between two polls of the node's status.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Longest status that is read, bytes.
const MAX_STATUS_BYTES: u64 = 4 * 1024 * 1024;
const STATUS_WITHIN: Duration = Duration::from_secs(5);
/// A node that has not answered for this time is killed and started again.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// Longest pause before an ended node is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Pauses before an ended node is started again: the first again once the node has run for
/// [`RAN_WELL`].
const RESTART: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_secs(1))
    .with_max_delay(LONGEST_PAUSE)
    .without_max_times();
/// A node that ran for this time counts as healthy.
const RAN_WELL: Duration = Duration::from_secs(60);
/// The node starts after this wait without an address: it can serve what it has without a network.
const NETWORK_WITHIN: Duration = Duration::from_secs(10);
/// Time for requests under way when the machine is shut down.
const DRAIN_WITHIN: Duration = Duration::from_secs(25);
/// Time until the machine restarts to look again: what was missing, such as a disk on a network,
/// may be there then.
pub(crate) const LOOKS_AGAIN: Duration = Duration::from_secs(120);
/// Time for the operator to write the recovery key down, once the node has joined.
const RECOVERY_KEY_SHOWN_FOR: Duration = Duration::from_secs(600);
const WATCHDOG: &str = "/dev/watchdog";

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Restart,
}

/// The process of launch, while it runs.
#[derive(Debug, Clone, Copy)]
struct Running {
    pid: Pid,
    since: Instant,
    /// When the status was last read.
    heard: Instant,
    /// SIGTERM was sent.
    ending: bool,
}

struct Node {
    page: Page,
    settings: Settings,
    seed: Seed,
    storage: Storage,
    update: Update,
    health: Health,
    /// When the node became a member; set only while the page shows a recovery key.
    member_since: Option<Instant>,
    running: Option<Running>,
    /// When the node is to be started, if it does not run.
    start_at: Option<Instant>,
    pauses: ExponentialBackoff,
    /// Nameservers with which the node was started; the node reads them once.
    started_with: Vec<IpAddr>,
    view: View,
    last_end: Option<String>,
    /// The node was no member when this boot began.
    is_newcomer: bool,
}

/// Signals that init obeys.
struct Signals {
    child: tokio::signal::unix::Signal,
    restart: tokio::signal::unix::Signal,
    power_off: tokio::signal::unix::Signal,
    button: mpsc::Receiver<()>,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(Failure::step("listen to signals"));
        Ok(Self {
            child: listen(SignalKind::child())?,
            // The kernel sends SIGINT for Ctrl-Alt-Del.
            restart: listen(SignalKind::interrupt())?,
            power_off: listen(SignalKind::terminate())?,
            button: button::listen(),
        })
    }
}

/// How a wait ended.
pub(crate) enum Waited<T> {
    End(End),
    /// The awaited value is available.
    Found(T),
    /// The time ran out.
    LongEnough,
}

/// Waits while nothing can be served: until the machine is to end, `found` completes, or the time
/// runs out.
pub(crate) async fn wait<T>(
    time: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Result<Waited<T>, Failure> {
    let mut signals = Signals::new()?;
    let until = Instant::now() + time;
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        tokio::select! {
            () = sleep_until(until) => return Ok(Waited::LongEnough),
            _ = looks.tick() => {
                if let Some(found) = look() {
                    return Ok(Waited::Found(found));
                }
            }
            Some(()) = signals.button.recv() => break End::PowerOff,
            _ = signals.child.recv() => drop(reap()),
            _ = signals.restart.recv() => break End::Restart,
            _ = signals.power_off.recv() => break End::PowerOff,
        }
    };
    Ok(Waited::End(end))
}

/// Runs the node until the machine is to end.
pub(crate) async fn run(
    mut page: Page,
    settings: Settings,
    seed: Seed,
    storage: Storage,
    update: Update,
) -> Result<End, Failure> {
    if let Some(recovery) = &storage.recovery {
        let text = format!(
            "{} (write it down: this key opens the storage key when the TPM does not)",
            **recovery
        );
        page.line("recovery", text);
    }
    let mut signals = Signals::new()?;
    let (news, mut told) = mpsc::channel(8);
    tokio::spawn(network::run(settings.network.clone(), news));
    let mut node = Node {
        is_newcomer: !settings.state.has_identity(),
        page,
        settings,
        seed,
        storage,
        update,
        health: Health::default(),
        member_since: None,
        running: None,
        start_at: Some(Instant::now() + NETWORK_WITHIN),
        pauses: RESTART.build(),
        started_with: Vec::new(),
        view: View::default(),
        last_end: None,
    };
    // The node checks its sandbox once, at its start, so init first sets up everything that it needs.
    let folder = Path::new(MACHINE).parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(Failure::step(format!("make {}", folder.display())))?;
    node.update
        .node_runs(&node.settings.update, &mut node.storage, &mut node.page);
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watchdog = std::fs::File::options().write(true).open(WATCHDOG).ok();
    let (times, mut clock) = mpsc::channel(1);
    let mut asking: Option<tokio::task::JoinHandle<()>> = None;
    let end = loop {
        let start_at = node.start_at;
        tokio::select! {
            _ = signals.child.recv() => node.reaped(),
            _ = signals.restart.recv() => break End::Restart,
            _ = signals.power_off.recv() => break End::PowerOff,
            Some(()) = signals.button.recv() => break End::PowerOff,
            Some(news) = told.recv() => {
                if let Some(servers) = node.hear(news) {
                    if let Some(asking) = asking.take() {
                        asking.abort();
                    }
                    asking = Some(tokio::spawn(keep_time(servers, node.page.image_time(), times.clone())));
                }
            }
            Some(problem) = clock.recv() => node.page.clock(problem),
            () = sleep_until(start_at.unwrap_or_else(Instant::now)), if start_at.is_some() => node.start(),
            _ = looks.tick() => {
                if let Some(watchdog) = &mut watchdog {
                    // A watchdog that is not fed restarts the machine: that is its purpose.
                    let _fed = std::io::Write::write(watchdog, b"1");
                }
                node.look().await;
                if node.look_at_image().await == Next::Restart {
                    break End::Restart;
                }
            }
        }
        node.page.show();
    };
    node.end(&mut signals).await;
    Ok(end)
}

/// Sets the clock at intervals.
async fn keep_time(servers: Vec<String>, floor: u64, told: mpsc::Sender<Option<Problem>>) {
    loop {
        let (problem, pause) = match clock::ask(&servers, floor).await {
            Ok(()) => (None, clock::AGAIN),
            Err(why) => (
                Some(Problem::new(
                    why,
                    "the machine's own clock is used until a server answers; name others in `time_servers` of network.toml",
                )),
                clock::RETRY,
            ),
        };
        if told.send(problem).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

/// Reaps children that have ended, and records how the node ended.
fn reap() -> Vec<(Pid, rustix::process::WaitStatus)> {
    let mut ended = Vec::new();
    while let Ok(Some(child)) = wait_for_child(WaitOptions::NOHANG) {
        ended.push(child);
    }
    ended
}

impl Node {
    /// Takes over changes of the network, and restarts the clock when the time servers change.
    fn hear(&mut self, news: News) -> Option<Vec<String>> {
        let view = match news {
            News::Problem(problem) => {
                self.page.problem(problem);
                return None;
            }
            News::View(view) => view,
        };
        let before = std::mem::replace(&mut self.view, view);
        let silent = self.view.silent.iter().map(String::as_str);
        let silent = silent.collect::<Vec<_>>().join(" and ");
        self.page.network((!silent.is_empty()).then(|| {
            Problem::new(
                format!("no DHCP server answers on {silent}"),
                "check the cable and the network, or give the addresses in network.toml; DHCP requests continue",
            )
        }));
        let addresses = self
            .view
            .addresses
            .iter()
            .map(|(name, address)| format!("{name} {address}"));
        self.page
            .line("addresses", addresses.collect::<Vec<_>>().join(", "));
        if self.running.is_none() && self.last_end.is_none() && !self.view.addresses.is_empty() {
            self.start_at = Some(Instant::now());
        }
        let is_new =
            before.time_servers != self.view.time_servers && !self.view.time_servers.is_empty();
        is_new.then(|| self.view.time_servers.clone())
    }

    fn start(&mut self) {
        self.start_at = None;
        if !self.settings.has_token && !self.settings.state.has_identity() {
            self.page.state("waiting for a join token");
            self.page.problem(Problem::new(
                "this node belongs to no fleet, and the seed has no join token",
                "run `casemate node token NAME`, give its output as `join-token` over fw_cfg, SMBIOS or a seed disk, and restart",
            ));
            return;
        }
        let child = Command::new(LAUNCH)
            .arg("--node")
            .arg(self.settings.live.join(NODE))
            .arg("--vault")
            .arg(self.settings.live.join(VAULT))
            .arg("--state")
            .arg(self.settings.state.folder())
            .args(["--uid-base", &UID_BASE.to_string()])
            .args(["--machine", MACHINE])
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .spawn();
        let now = Instant::now();
        // `reap` collects every child that ends, so the handle is dropped.
        let pid = child.map(|child| Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)));
        match pid {
            Ok(Some(pid)) => {
                self.started_with = self.view.nameservers.clone();
                self.page.state("starting the node");
                self.running = Some(Running {
                    pid,
                    since: now,
                    heard: now,
                    ending: false,
                });
            }
            Ok(None) => {
                self.page.state("the node has no process");
            }
            Err(error) => {
                self.page.problem(Problem::new(
                    format!("{LAUNCH} cannot be started: {error}"),
                    "restart; if the failure repeats, the image is damaged: write it to the disk again",
                ));
                self.again_later();
            }
        }
    }

    fn again_later(&mut self) {
        let pause = self.pauses.next().unwrap_or(LONGEST_PAUSE);
        self.start_at = Some(Instant::now() + pause);
    }

    /// Every orphaned process becomes a child of init; most of them are unknown to it.
    fn reaped(&mut self) {
        for (pid, status) in reap() {
            let Some(running) = self.running.filter(|running| running.pid == pid) else {
                continue;
            };
            self.running = None;
            if running.since.elapsed() > RAN_WELL || running.ending {
                self.pauses = RESTART.build();
            }
            let how = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (_, Some(signal)) => format!("signal {signal}"),
                _ => "no known reason".to_owned(),
            };
            self.last_end = Some(how);
            self.again_later();
        }
    }

    fn terminate(&mut self, running: Running) {
        // The process may have ended by itself.
        let _gone = kill_process(running.pid, Signal::TERM);
        self.running = Some(Running {
            ending: true,
            ..running
        });
    }

    /// Whether the node runs with outdated nameservers; the node reads them once, at its start. The
    /// first nameservers cause a restart at once. Later changes wait until the node has run for a
    /// while, so that a server on the network cannot restart the node at will.
    fn has_old_nameservers(&self, running: Running) -> bool {
        let now = &self.view.nameservers;
        let is_due = self.started_with.is_empty() || running.since.elapsed() > RAN_WELL;
        !now.is_empty() && *now != self.started_with && is_due && !running.ending
    }

    /// Looks for changes of the machine's image, given the health of the node.
    async fn look_at_image(&mut self) -> Next {
        let next = self
            .update
            .look(self.health, &mut self.storage, &mut self.page)
            .await;
        if let Err(error) = self.update.tell(&self.storage) {
            self.page.problem(Problem::new(
                format!("the description of this machine for the node cannot be written: {error}"),
                "restart; if the failure repeats, report it",
            ));
        }
        next
    }

    async fn look(&mut self) {
        self.health = Health::default();
        let Some(running) = self.running else {
            if let Some(how) = &self.last_end {
                let what = format!("the node ended with {how}; it will be started again");
                let next =
                    "the node's own messages are above; if they name a mistake in the configuration, correct the seed and restart"
                        .to_owned();
                self.page.state("the node does not run");
                self.page.problems_of_node(vec![Problem { what, next }]);
            }
            return;
        };
        if self.has_old_nameservers(running) {
            say("the nameservers have changed: the node is restarted with them");
            self.terminate(running);
        }
        let Some(running) = self.running else { return };
        let socket = self.settings.state.admin_socket();
        let status = tokio::time::timeout(STATUS_WITHIN, read_status(&socket)).await;
        match status {
            Ok(Ok(status)) => {
                self.running = Some(Running {
                    heard: Instant::now(),
                    ..running
                });
                if let Some(status) = status {
                    self.show(&status);
                }
            }
            _ if running.heard.elapsed() > SILENT_FOR => {
                say("the node does not answer: it is killed and started again");
                // The process may have ended by itself.
                let _gone = kill_process(running.pid, Signal::KILL);
            }
            _ => {}
        }
    }

    /// Puts the node's status on the page.
    fn show(&mut self, status: &Value) {
        let vault = &status["vault"];
        let is_member = vault["member"] == true;
        self.health = health(status);
        let report = report(status, is_member);
        if self.page.state(report.state) {
            self.page.line("memory", figures::memory());
            self.page.line("ports", figures::ports());
        }
        if let (Some(node), Some(pool)) = (vault["node"].as_str(), vault["pool"].as_str()) {
            self.page.line("node", format!("{node} in pool {pool}"));
        }
        self.page.line("listening", report.listening);
        self.page.line("control", report.control);
        self.page.problems_of_node(report.problems);
        self.is_newcomer |= vault["member"] == false;
        if is_member && self.storage.recovery.is_some() {
            let since = *self.member_since.get_or_insert_with(Instant::now);
            if since.elapsed() > RECOVERY_KEY_SHOWN_FOR {
                self.page.remove_line("recovery");
                if let Err(fault) = self.storage.recovery_was_shown() {
                    self.page.problem(Problem::new(
                        format!("the TPM did not record that the recovery key was shown, so it will be shown again: {fault}"),
                        "restart; if the failure repeats, check the TPM in the firmware's settings",
                    ));
                }
            }
        }
        if is_member && self.settings.has_token {
            self.settings.has_token = false;
            if self.is_newcomer {
                let kept = self.seed.forget(JOIN_TOKEN);
                kept.into_iter()
                    .for_each(|problem| self.page.problem(problem));
            } else {
                self.page.problem(Problem::new(
                    "the join token of the seed was not used: this machine has joined before",
                    "to make another node of it, give it an empty state partition",
                ));
            }
        }
    }

    /// Stops the node in order, within [`DRAIN_WITHIN`].
    async fn end(&mut self, signals: &mut Signals) {
        self.page.state("ending");
        self.page.show();
        let Some(running) = self.running else { return };
        self.terminate(running);
        let until = Instant::now() + DRAIN_WITHIN;
        while self.running.is_some() {
            tokio::select! {
                _ = signals.child.recv() => self.reaped(),
                () = sleep_until(until) => break,
            }
        }
    }
}

/// Reads the status of a node. A node that answers with an unknown or too long status still counts
/// as running.
async fn read_status(socket: &Path) -> std::io::Result<Option<Value>> {
    let mut text = Vec::new();
    let stream = UnixStream::connect(socket).await?;
    stream.take(MAX_STATUS_BYTES).read_to_end(&mut text).await?;
    if text.is_empty() {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text).ok())
}
