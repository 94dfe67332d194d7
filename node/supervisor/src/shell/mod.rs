//! The shell around the state machine: one loop that takes what happens, asks the state what to do, and does it.

pub(crate) mod admin;
mod agree;
mod bundles;
mod children;
mod effects;
mod hear;
mod images;
mod launch;
mod push;
mod report;
mod sockets;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use casemate_channel::budget::Budget;
use casemate_push::{Cursor, Has, Hello, TenantHas, VERSIONS};
use casemate_sandbox::launch::{Client, End, Event, NOTE_BYTES, Program};
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::judge::MAX_TENANTS;
use casemate_trust::key::PublicKey;
use casemate_wire::control::gateway::{Certificate, FromGateway, ToGateway};
use casemate_wire::control::parts::Arriving;
use casemate_wire::control::vault::{FromVault, Have, Hello as VaultHello, ToVault};
use casemate_wire::control::worker::FromWorker;
use casemate_wire::control::{Failure, FunctionKey, LayerReport, WorkerId};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::state::carry::{Carried, Carrier};
use crate::state::drive::drive;
use crate::state::{AdoptedChild, AdoptedKind, Input, Single, Supervision, image};
use bundles::Bundles;
use children::Children;
use push::{Heard, Records, Say};
use sockets::Sockets;

/// Things that happened and wait; whoever has more to tell waits.
const MAX_HAPPENINGS: usize = 1024;
/// How often the control plane is told how we are.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// How often the CPU time of workers is looked at.
const CPU_TIME_INTERVAL: Duration = Duration::from_secs(1);
/// How often the file is read in which init says what it does with the machine.
const MACHINE_INTERVAL: Duration = Duration::from_secs(1);
/// From being told to end until we do, whatever still runs.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(12);

/// Everything that can happen.
#[derive(Debug)]
pub(crate) enum Happening {
    Started(u64, u32),
    Refused(u64, String),
    Exited(u64, End),
    /// A child's socket has closed: it has said all that it will.
    Closed(u64),
    /// A child cannot be told what it has to know.
    Deaf(u64),
    LaunchGone,
    Vault(u64, Box<FromVault>),
    /// With the descriptor, of a message that has one.
    Gateway(u64, Box<FromGateway>, Option<OwnedFd>),
    Worker(u64, Box<FromWorker>),
    Push(Heard),
    /// The disk has done something for an image.
    Image(image::Done),
    Status(oneshot::Sender<serde_json::Value>),
}

/// A child that runs or is going.
#[derive(Debug, Default)]
struct Child {
    pid: u32,
    /// How it ended, once launch has said so.
    ended: Option<End>,
    /// Whether everything that it said was read.
    closed: bool,
}

/// A worker that has a function.
#[derive(Debug)]
struct Serving {
    key: FunctionKey,
    /// What may be recorded of what it says.
    records: Budget,
}

/// See the module.
struct Shell {
    config: Config,
    state: Supervision,
    started: Instant,
    children: Children,
    alive: BTreeMap<u64, Child>,
    vault: Option<u64>,
    gateway: Option<u64>,
    /// Workers that have a function.
    serving: BTreeMap<u64, Serving>,
    bundles: Option<Bundles>,
    carrier: Carrier,
    /// The control plane is to be told by a new hello what is held.
    resync: bool,
    says: Option<mpsc::Sender<Say>>,
    records: Records,
    connected: bool,
    /// The control plane of this connection was told what is held.
    has_greeted: bool,
    cursor: Option<Cursor>,
    identity: Option<Box<VaultHello>>,
    happenings: mpsc::Sender<Happening>,
    /// What the vault has, as far as it has said so.
    haves: Arriving<Have>,
    layers: BTreeMap<&'static str, Vec<LayerReport>>,
    sockets: Sockets,
    addresses: Vec<String>,
    /// What the gateway serves.
    certificates: Vec<Certificate>,
    description: serde_json::Value,
    last_disconnect: Option<String>,
    lost_logs: u64,
    image: image::Fetching,
    images: images::Folder,
    /// Readers of the admin socket who wait.
    asks: Vec<oneshot::Sender<serde_json::Value>>,
}

/// What launch hands over first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inheritance {
    /// Listening sockets.
    pub(crate) sockets: u32,
    /// Children of a supervisor that has crashed.
    pub(crate) children: u32,
}

/// Runs the node until it is told to end; the exit code.
#[expect(clippy::too_many_lines, reason = "older than the limit")]
pub(crate) async fn run(
    config: Config,
    launch: Client,
    admin: UnixListener,
    layers: Vec<LayerReport>,
    inheritance: Inheritance,
) -> io::Result<u8> {
    let (happenings, mut happened) = mpsc::channel(MAX_HAPPENINGS);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(admin::serve(admin, happenings.clone()));
    let children = Children::new(launch, happenings.clone())?;
    let state = Supervision::new(config.bounds);
    let image = image::Fetching::new(config.machine.is_some());
    let images = images::Folder::below(&config.state);
    let sockets = Sockets::new(&config.gateway);
    let mut shell = Shell {
        config,
        state,
        started: Instant::now(),
        children,
        alive: BTreeMap::new(),
        vault: None,
        gateway: None,
        serving: BTreeMap::new(),
        bundles: None,
        carrier: Carrier::default(),
        resync: false,
        says: None,
        records: Records::default(),
        connected: false,
        has_greeted: false,
        cursor: None,
        identity: None,
        happenings,
        haves: Arriving::new(MAX_TENANTS as u32),
        layers: BTreeMap::from([("supervisor", layers)]),
        sockets,
        addresses: Vec::new(),
        certificates: Vec::new(),
        description: serde_json::Value::Null,
        last_disconnect: None,
        lost_logs: 0,
        image,
        images,
        asks: Vec::new(),
    };
    shell.adopt_sockets(inheritance.sockets).await?;
    shell.adopt(inheritance.children).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(Supervision::TICK_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut looks = tokio::time::interval(CPU_TIME_INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut machine_looks = tokio::time::interval(MACHINE_INTERVAL);
    machine_looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut reports = tokio::time::interval(STATUS_INTERVAL);
    let mut end_by: Option<tokio::time::Instant> = None;
    let mut batch = Vec::new();
    loop {
        shell.children.end_killed().map_err(io::Error::other)?;
        let deadline =
            end_by.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            _ = happened.recv_many(&mut batch, MAX_HAPPENINGS) => {
                for happening in batch.drain(..) {
                    if let Some(code) = shell.happen(happening)? {
                        return Ok(code);
                    }
                }
            },
            _ = ticks.tick() => {
                shell.answer();
                shell.carry_again()?;
                shell.input(Input::Tick)?;
            }
            _ = looks.tick() => shell.look_at_cpu_time()?,
            _ = machine_looks.tick() => shell.look_at_machine(),
            _ = reports.tick() => shell.report(),
            _ = hangup.recv() => shell.tell_gateway(ToGateway::Reload),
            _ = terminate.recv(), if end_by.is_none() => end_by = Some(shell.drain()?),
            _ = interrupt.recv(), if end_by.is_none() => end_by = Some(shell.drain()?),
            () = tokio::time::sleep_until(deadline) => if end_by.is_some() {
                tracing::warn!("drain timed out; exiting with requests still in flight");
                return Ok(0);
            },
        }
        if end_by.is_some() && shell.gateway.is_none() && !shell.state.has_workers() {
            // The vault goes last: functions that finish may still call out.
            shell.children.vault(shell.vault, ToVault::Stop, Vec::new());
            tracing::info!("drained");
            return Ok(0);
        }
    }
}

impl Shell {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Takes over the children of a supervisor that has crashed, and has vault and gateway say again what they said to that.
    async fn adopt(&mut self, children: u32) -> io::Result<()> {
        let mut adopted = Vec::new();
        for _ in 0..children {
            let Event::Adopted {
                id,
                program,
                pid,
                memory_mib,
                tenant,
                note,
            } = self.children.adopt().await?
            else {
                continue;
            };
            let child = Child {
                pid,
                ..Child::default()
            };
            self.alive.insert(id, child);
            let kind = match program {
                Program::Vault => {
                    self.vault = Some(id);
                    AdoptedKind::Single(Single::Vault)
                }
                Program::Gateway => {
                    self.gateway = Some(id);
                    AdoptedKind::Single(Single::Gateway)
                }
                Program::Worker => AdoptedKind::Worker {
                    memory_mib,
                    tenant,
                    release: (note != [0; NOTE_BYTES]).then_some(note),
                },
            };
            adopted.push(AdoptedChild { child: id, kind });
        }
        self.children.listen();
        if children > 0 {
            tracing::warn!(
                children,
                "adopted the children of a supervisor that has crashed"
            );
            self.children.vault(self.vault, ToVault::Resume, Vec::new());
            self.tell_gateway(ToGateway::Resume);
            self.input(Input::Adopt(adopted))?;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<tokio::time::Instant> {
        tracing::info!("draining");
        self.input(Input::Drain)?;
        Ok(tokio::time::Instant::now() + DRAIN_TIMEOUT)
    }

    /// Lets the state decide, and carries out its effects.
    fn input(&mut self, input: Input) -> io::Result<()> {
        drive(self, input)
    }

    /// Tells the state what workers have used; one that is ending may be gone already.
    fn look_at_cpu_time(&mut self) -> io::Result<()> {
        let used: Vec<_> = self
            .alive
            .iter()
            .map(|(id, child)| (WorkerId(*id), child.pid))
            .filter(|(worker, _)| self.state.has(*worker))
            .filter_map(|(worker, pid)| Some((worker, casemate_sandbox::cpu_time(pid).ok()?)))
            .collect();
        for (worker, used) in used {
            let used_ms = u64::try_from(used.as_millis()).unwrap_or(u64::MAX);
            self.input(Input::CpuTime { worker, used_ms })?;
        }
        Ok(())
    }

    /// The name of a child process, for the log.
    fn program(&self, id: u64) -> &'static str {
        match Some(id) {
            id if id == self.vault => "casemate-vault",
            id if id == self.gateway => "casemate-gateway",
            _ => "casemate-worker",
        }
    }

    /// Takes one thing that happened; an exit code ends us.
    fn happen(&mut self, happening: Happening) -> io::Result<Option<u8>> {
        match happening {
            Happening::Started(id, pid) => {
                if let Some(child) = self.alive.get_mut(&id) {
                    child.pid = pid;
                }
            }
            Happening::Refused(id, why) => {
                let program = self.program(id);
                tracing::error!(program, child = id, why, "a program could not be started");
                self.gone(id);
                self.input(Input::NotStarted { child: id })?;
            }
            Happening::Exited(id, end) => {
                // No start of this vault will open what a newer one has written.
                let newer = End::Exit(i32::from(casemate_config::EXIT_NEWER));
                if self.vault == Some(id) && end == newer {
                    tracing::error!(
                        "a newer casemate-vault has written its folder: this node ends"
                    );
                    return Ok(Some(casemate_config::EXIT_NEWER));
                }
                if let Some(child) = self.alive.get_mut(&id) {
                    child.ended = Some(end);
                }
                self.perhaps_ended(id)?;
            }
            Happening::Closed(id) => {
                if let Some(child) = self.alive.get_mut(&id) {
                    child.closed = true;
                    // A child that no longer speaks is of no use; its exit is awaited, and hurried.
                    self.children.kill(id);
                }
                self.perhaps_ended(id)?;
            }
            Happening::Deaf(id) => self.children.kill(id),
            Happening::LaunchGone => {
                tracing::error!("casemate-launch is gone");
                return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
            }
            Happening::Vault(id, message) if self.vault == Some(id) => {
                return self.hear_vault(*message);
            }
            Happening::Gateway(id, message, descriptor) if self.gateway == Some(id) => {
                return self.hear_gateway(*message, descriptor);
            }
            Happening::Vault(..) | Happening::Gateway(..) => {}
            Happening::Worker(id, message) => return self.hear_worker(id, *message),
            Happening::Image(done) => self.image_done(done),
            Happening::Push(heard) => self.hear_push(heard)?,
            // Answered with what the vault says of itself now; without a vault, at the next tick.
            Happening::Status(ask) => {
                self.asks.push(ask);
                self.children
                    .vault(self.vault, ToVault::Describe, Vec::new());
            }
        }
        Ok(None)
    }

    /// A child is over when it has ended and everything that it said was read.
    fn perhaps_ended(&mut self, id: u64) -> io::Result<()> {
        let Some(Child {
            ended: Some(end),
            closed: true,
            ..
        }) = self.alive.get(&id)
        else {
            return Ok(());
        };
        let (end, key) = (*end, self.serving.get(&id).map(|serving| &serving.key));
        let failure = match end {
            End::OutOfMemory => Failure::ExceededMemory,
            End::Exit(_) | End::Signal(_) => Failure::WorkerLost,
        };
        let quiet = matches!(end, End::Exit(0) | End::Signal(9));
        if !quiet || self.vault == Some(id) || self.gateway == Some(id) {
            tracing::warn!(
                program = self.program(id),
                child = id,
                ?end,
                function = key.as_ref().map(|key| key.function.as_str()),
                "a program has ended"
            );
        }
        self.gone(id);
        self.input(Input::Ended { child: id, failure })
    }

    fn gone(&mut self, id: u64) {
        self.alive.remove(&id);
        if let Some(mut serving) = self.serving.remove(&id) {
            let dropped = serving.records.take_dropped();
            self.log_dropped(&serving.key, dropped, "the function logged too fast");
        }
        self.children.forget(id);
        if self.vault == Some(id) {
            self.vault = None;
        }
        if self.gateway == Some(id) {
            self.gateway = None;
        }
    }

    fn carry(&mut self, carried: Vec<Carried>) {
        for carried in carried {
            match carried {
                Carried::Submit { id, kind, bytes } => {
                    if !self.children.vault(
                        self.vault,
                        ToVault::Submit { id, kind, bytes },
                        Vec::new(),
                    ) {
                        tracing::warn!(
                            "vault is not running, statement not submitted; the control plane sends it again"
                        );
                    }
                }
                Carried::Ack(id) => {
                    tracing::info!(%id, "statement accepted");
                    self.say(Say::Ack(id));
                }
                Carried::Nack { id, code, message } => {
                    tracing::warn!(%id, code, message, "statement refused");
                    self.say(Say::Nack { id, code, message });
                }
                Carried::Resync => self.resync = true,
                Carried::Fetch { tenant, digests } => {
                    self.say(Say::FetchObjects { tenant, digests });
                }
            }
        }
    }

    /// What was refused for a reason that passes is judged again; once the vault has taken something of that, a new
    /// connection tells the control plane.
    fn carry_again(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.resync) {
            tracing::info!(
                "statements that were refused are accepted now; connecting anew to report that"
            );
            return self.connect();
        }
        let now_ms = self.now_ms();
        let carried = self.carrier.tick(now_ms);
        self.carry(carried);
        Ok(())
    }

    fn say(&self, say: Say) {
        let Some(says) = &self.says else { return };
        if says.try_send(say).is_err() {
            tracing::warn!(
                "control-plane send queue full, message dropped; the message is sent again after a reconnect"
            );
        }
    }

    /// Begins, or begins anew, to keep a connection to the control plane.
    fn connect(&mut self) -> io::Result<()> {
        let Some(identity) = &self.identity else {
            return Ok(());
        };
        let (ours, theirs) = casemate_channel::control::pair()?;
        self.children
            .vault(self.vault, ToVault::Signer, vec![theirs]);
        let tls = tls::client(&identity.node_key, &identity.control_key, ours, VERSIONS)
            .map_err(io::Error::other)?;
        let link = push::Link {
            versions: VERSIONS,
            address: identity.control_address.clone(),
            tls,
            join_request: identity.join_request.clone(),
        };
        self.has_greeted = false;
        let (says, said) = mpsc::channel(push::MAX_COMMANDS);
        for digest in self.state.wanted_bundles() {
            // The queue is new and longer than any plan.
            let _queued = says.try_send(Say::FetchBundle(Digest(digest)));
        }
        self.says = Some(says);
        let (records, happenings) = (self.records.clone(), self.happenings.clone());
        tokio::spawn(push::run(link, said, records, happenings));
        Ok(())
    }

    fn hello(&mut self, have: &Have) {
        let Some(identity) = &self.identity else {
            return;
        };
        let Ok(node) = identity.node.parse() else {
            return;
        };
        let tenant = |held: &casemate_wire::control::vault::HaveTenant| {
            let manifest = held
                .manifest
                .map(|(version, digest)| (version, Digest(digest)));
            (
                TenantId(held.tenant),
                TenantHas {
                    version: held.tenant_version,
                    manifest,
                    freshness: held.freshness,
                    is_stored: manifest
                        .is_some_and(|(version, _)| self.state.is_stored(&held.tenant, version)),
                },
            )
        };
        let listed = have.tenants.iter().take(casemate_push::MAX_HELLO_TENANTS);
        let has = Has {
            root: have.root,
            online: have.online_key,
            epochs: have.epochs.iter().copied().collect(),
            grants: have.grants.iter().copied().collect(),
            tenants: listed.map(tenant).collect(),
            more_tenants: have.tenants.len() > casemate_push::MAX_HELLO_TENANTS,
            image: have
                .image
                .map(|(version, statement)| (version, Digest(statement))),
            revocations: have.revocations,
        };
        let hello = Hello {
            // The connection writes what was agreed on.
            protocol: VERSIONS.newest,
            node,
            node_key: PublicKey::from_bytes(identity.node_key),
            fleet: FleetId(identity.fleet),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            cursor: self.cursor,
            has,
        };
        self.say(Say::Hello(Box::new(hello)));
        self.has_greeted = true;
        for not_stored in self.state.not_stored() {
            self.tell_not_stored(not_stored);
        }
    }

    fn tell_gateway(&self, message: ToGateway) {
        if !self.children.gateway(self.gateway, message, Vec::new()) {
            tracing::debug!("gateway is not running; all routes are sent when it has started");
        }
    }
}
