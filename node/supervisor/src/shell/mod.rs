//! The shell around the state machine: one loop that takes what happens, asks the state what to do, and does it.

pub(crate) mod admin;
mod bundles;
mod children;
mod effects;
mod push;
mod tls;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use casemate_push::{Cursor, Has, Hello, LogEntry, LogLevel, NodeEvent, PROTOCOL, TenantHas};
use casemate_sandbox::launch::{Client, End};
use casemate_trust::id::{Digest, FleetId, TenantId};
use casemate_trust::key::PublicKey;
use casemate_wire::control::gateway::{Access, FromGateway, ToGateway};
use casemate_wire::control::vault::{Event, FromVault, Have, Hello as VaultHello, ToVault};
use casemate_wire::control::worker::FromWorker;
use casemate_wire::control::{Failure, FunctionKey, LayerReport, WorkerId, worker};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::config::Config;
use crate::state::carry::{Carried, Carrier};
use crate::state::{Input, Single, Supervision};
use bundles::Bundles;
use children::Children;
use push::{Heard, Say};

/// Things that happened and wait; whoever has more to tell waits.
const MAX_HAPPENINGS: usize = 1024;
/// How often the control plane is told how we are.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
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
    LaunchGone,
    Vault(u64, Box<FromVault>),
    Gateway(u64, Box<FromGateway>),
    Worker(u64, Box<FromWorker>),
    Push(Heard),
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

/// See the module.
struct Shell {
    config: Config,
    state: Supervision,
    started: Instant,
    children: Children,
    alive: BTreeMap<u64, Child>,
    vault: Option<u64>,
    gateway: Option<u64>,
    /// Function of each worker that has one, for its log lines.
    serving: BTreeMap<u64, FunctionKey>,
    bundles: Option<Bundles>,
    carrier: Carrier,
    says: Option<mpsc::Sender<Say>>,
    connected: bool,
    cursor: Option<Cursor>,
    identity: Option<Box<VaultHello>>,
    happenings: mpsc::Sender<Happening>,
    layers: BTreeMap<&'static str, Vec<LayerReport>>,
    addresses: Vec<String>,
    description: serde_json::Value,
    last_disconnect: Option<String>,
    lost_logs: u64,
}

/// Runs the node until it is told to end; the exit code.
pub(crate) async fn run(
    config: Config,
    launch: Client,
    admin: UnixListener,
    layers: Vec<LayerReport>,
) -> io::Result<u8> {
    let (happenings, mut happened) = mpsc::channel(MAX_HAPPENINGS);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(admin::serve(admin, happenings.clone()));
    let children = Children::new(launch, happenings.clone())?;
    let state = Supervision::new(config.bounds);
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
        says: None,
        connected: false,
        cursor: None,
        identity: None,
        happenings,
        layers: BTreeMap::from([("supervisor", layers)]),
        addresses: Vec::new(),
        description: serde_json::Value::Null,
        last_disconnect: None,
        lost_logs: 0,
    };
    let mut ticks = tokio::time::interval(Duration::from_millis(Supervision::TICK_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut reports = tokio::time::interval(STATUS_INTERVAL);
    let mut end_by: Option<tokio::time::Instant> = None;
    loop {
        let deadline =
            end_by.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            happening = happened.recv() => match happening {
                Some(Happening::LaunchGone) | None => {
                    tracing::error!("casemate-launch is gone");
                    return Ok(casemate_config::EXIT_UNAVAILABLE);
                }
                Some(happening) => if let Some(code) = shell.happen(happening).await? {
                    return Ok(code);
                },
            },
            _ = ticks.tick() => shell.input(Input::Tick).await?,
            _ = reports.tick() => shell.report(),
            _ = terminate.recv(), if end_by.is_none() => end_by = Some(shell.drain().await?),
            _ = interrupt.recv(), if end_by.is_none() => end_by = Some(shell.drain().await?),
            () = tokio::time::sleep_until(deadline) => if end_by.is_some() {
                tracing::warn!("not everything has finished in time");
                return Ok(0);
            },
        }
        if end_by.is_some() && shell.gateway.is_none() {
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

    async fn drain(&mut self) -> io::Result<tokio::time::Instant> {
        tracing::info!("draining");
        self.input(Input::Drain).await?;
        Ok(tokio::time::Instant::now() + DRAIN_TIMEOUT)
    }

    /// Lets the state decide, and does what it says.
    async fn input(&mut self, input: Input) -> io::Result<()> {
        for effect in self.state.handle(input, self.now_ms()) {
            self.effect(effect).await?;
        }
        Ok(())
    }

    /// Takes one thing that happened; an exit code ends us.
    async fn happen(&mut self, happening: Happening) -> io::Result<Option<u8>> {
        match happening {
            Happening::Started(id, pid) => {
                if let Some(child) = self.alive.get_mut(&id) {
                    child.pid = pid;
                }
            }
            Happening::Refused(id, why) => {
                tracing::error!(child = id, why, "a program could not be started");
                self.gone(id);
                self.input(Input::NotStarted { child: id }).await?;
            }
            Happening::Exited(id, end) => {
                if let Some(child) = self.alive.get_mut(&id) {
                    child.ended = Some(end);
                }
                self.perhaps_ended(id).await?;
            }
            Happening::Closed(id) => {
                if let Some(child) = self.alive.get_mut(&id) {
                    child.closed = true;
                    // A child that no longer speaks is of no use; its exit is awaited, and hurried.
                    self.children.kill(id).await?;
                }
                self.perhaps_ended(id).await?;
            }
            Happening::LaunchGone => {}
            Happening::Vault(id, message) if self.vault == Some(id) => {
                return self.from_vault(*message).await;
            }
            Happening::Gateway(id, message) if self.gateway == Some(id) => {
                return self.from_gateway(*message).await;
            }
            Happening::Vault(..) | Happening::Gateway(..) => {}
            Happening::Worker(id, message) => self.from_worker(id, *message).await?,
            Happening::Push(heard) => self.from_push(heard).await?,
            Happening::Status(ask) => {
                // Whoever asked may be gone.
                let _sent = ask.send(self.status());
            }
        }
        Ok(None)
    }

    /// A child is over when it has ended and everything that it said was read.
    async fn perhaps_ended(&mut self, id: u64) -> io::Result<()> {
        let Some(Child {
            ended: Some(end),
            closed: true,
            ..
        }) = self.alive.get(&id)
        else {
            return Ok(());
        };
        let (end, key) = (*end, self.serving.get(&id).cloned());
        let failure = match end {
            End::OutOfMemory => Failure::ExceededMemory,
            End::Exit(_) | End::Signal(_) => Failure::WorkerLost,
        };
        let quiet = matches!(end, End::Exit(0) | End::Signal(9));
        if !quiet || self.vault == Some(id) || self.gateway == Some(id) {
            tracing::warn!(
                child = id,
                ?end,
                function = key.as_ref().map(|key| key.function.as_str()),
                "a program has ended"
            );
        }
        self.gone(id);
        self.input(Input::Ended { child: id, failure }).await
    }

    fn gone(&mut self, id: u64) {
        self.alive.remove(&id);
        self.serving.remove(&id);
        self.children.forget(id);
        if self.vault == Some(id) {
            self.vault = None;
        }
        if self.gateway == Some(id) {
            self.gateway = None;
        }
    }

    async fn from_vault(&mut self, message: FromVault) -> io::Result<Option<u8>> {
        match message {
            FromVault::Hello(hello) => {
                if let Err(message) = self.config.must_be_in_force("the vault", &hello.layers) {
                    tracing::error!(message);
                    return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
                }
                self.layers.insert("vault", hello.layers.clone());
                self.bundles = Some(Bundles::open(&self.config.state, &hello.state_key)?);
                self.identity = Some(hello);
                self.input(Input::Up(Single::Vault)).await?;
                self.connect()?;
            }
            FromVault::Failed { message } => {
                tracing::error!(message, "the vault cannot start");
                self.description = serde_json::json!({ "error": message });
            }
            FromVault::Verdict { id, verdict } => {
                let carried = self.carrier.judged(id, verdict);
                self.carry(carried);
            }
            FromVault::Plan(plan) => self.input(Input::Plan(*plan)).await?,
            FromVault::LeaseWanted { nonce } => self.say(Say::Lease(nonce)),
            FromVault::Have(have) => self.hello(&have),
            FromVault::Joined => {
                tracing::info!("this node is a member of its fleet");
                if let Some(identity) = &mut self.identity {
                    identity.join_request = None;
                }
            }
            FromVault::Refill { set_aside } => {
                tracing::error!(
                    set_aside,
                    "the vault's records could not be read; the control plane will send everything again"
                );
                self.cursor = None;
            }
            FromVault::Event(event) => self.log_event(event),
            FromVault::Description { json } => {
                self.description = serde_json::from_str(&json).unwrap_or_default()
            }
        }
        Ok(None)
    }

    async fn from_gateway(&mut self, message: FromGateway) -> io::Result<Option<u8>> {
        match message {
            FromGateway::Ready { addresses, layers } => {
                if let Err(message) = self.config.must_be_in_force("the gateway", &layers) {
                    tracing::error!(message);
                    return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
                }
                tracing::info!(addresses = addresses.join(" "), "the gateway listens");
                self.layers.insert("gateway", layers);
                self.addresses = addresses;
                self.input(Input::Up(Single::Gateway)).await?;
            }
            FromGateway::Failed { message } => tracing::error!(message, "the gateway cannot start"),
            FromGateway::Need { key, waiting } => self.input(Input::Need { key, waiting }).await?,
            FromGateway::Idle { worker, idle_ms } => {
                self.input(Input::Idle { worker, idle_ms }).await?
            }
            FromGateway::Drained { worker } => self.input(Input::Drained { worker }).await?,
            FromGateway::Access(access) => self.log_access(access),
            FromGateway::Stopped => {}
        }
        Ok(None)
    }

    async fn from_worker(&mut self, id: u64, message: FromWorker) -> io::Result<()> {
        let worker = WorkerId(id);
        if !self.state.has(worker) {
            return Ok(());
        }
        match message {
            FromWorker::Ready { layers } => {
                if let Err(message) = self.config.must_be_in_force_in_a_worker(&layers) {
                    tracing::error!(message);
                    return self.children.kill(id).await;
                }
                self.layers.insert("worker", layers);
                self.input(Input::Ready { worker }).await?;
            }
            FromWorker::Loaded { load_us } => {
                tracing::debug!(worker = id, load_us, "loaded");
                self.input(Input::Loaded { worker }).await?;
            }
            FromWorker::LoadFailed { message } => {
                self.log(
                    id,
                    None,
                    LogLevel::Error,
                    &message,
                    Some(Failure::LoadFailed.code()),
                );
                self.input(Input::LoadFailed { worker, message }).await?;
            }
            FromWorker::Log(line) => {
                let level = match line.level {
                    worker::LogLevel::Debug => LogLevel::Debug,
                    worker::LogLevel::Info => LogLevel::Info,
                    worker::LogLevel::Warn => LogLevel::Warn,
                    worker::LogLevel::Error => LogLevel::Error,
                };
                if line.dropped > 0 {
                    self.log(
                        id,
                        None,
                        LogLevel::Warn,
                        &format!(
                            "{} log lines were dropped: the function logs too fast",
                            line.dropped
                        ),
                        None,
                    );
                }
                self.log(id, line.request, level, &line.message, None);
            }
            FromWorker::Outcome(outcome) => {
                if let Some(failure) = outcome.failure {
                    self.log(
                        id,
                        Some(outcome.request),
                        LogLevel::Error,
                        &outcome.message,
                        Some(failure.code()),
                    );
                }
            }
            FromWorker::Fatal { failure, message } => {
                self.log(id, None, LogLevel::Error, &message, Some(failure.code()));
                self.input(Input::Fatal { worker, failure }).await?;
            }
        }
        Ok(())
    }

    async fn from_push(&mut self, heard: Heard) -> io::Result<()> {
        match heard {
            Heard::Connected => {
                self.carrier = Carrier::starting_at(self.carrier.next());
                self.children
                    .vault(self.vault, ToVault::Connected, Vec::new());
            }
            Heard::Disconnected(why) => {
                if self.connected || self.last_disconnect.as_ref() != Some(&why) {
                    tracing::warn!(why, "not connected to the control plane; what runs goes on");
                }
                self.connected = false;
                self.last_disconnect = Some(why);
            }
            Heard::Bundle { digest, bytes } => {
                let Some(bundles) = &self.bundles else {
                    return Ok(());
                };
                match bundles.write(&digest, &bytes) {
                    Ok(()) => self.input(Input::BundleHere(digest.0)).await?,
                    Err(error) => {
                        tracing::error!(%digest, %error, "a bundle cannot be stored; it will be fetched again");
                        self.say(Say::FetchBundle(digest));
                    }
                }
            }
            Heard::Event(NodeEvent::Welcome { .. }) => {
                tracing::info!("connected to the control plane");
                (self.connected, self.last_disconnect) = (true, None);
                self.report();
            }
            Heard::Event(NodeEvent::Synced { now }) => self.cursor = Some(now),
            Heard::Event(NodeEvent::JoinPending) => {
                tracing::info!("waiting for the operator to admit this node: `casemate node admit`")
            }
            Heard::Event(NodeEvent::JoinRefused { code, message }) => tracing::error!(
                code,
                message,
                "the control plane does not relay our join request"
            ),
            Heard::Event(NodeEvent::Refused { code, message }) => {
                tracing::error!(code, message, "the control plane refuses this node")
            }
            Heard::Event(event) => {
                let carried = self.carrier.pushed(event);
                self.carry(carried);
            }
        }
        Ok(())
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
                            "the vault is not there to judge; the control plane will send this again"
                        );
                    }
                }
                Carried::Ack(id) => {
                    tracing::info!(%id, "accepted");
                    self.say(Say::Ack(id));
                }
                Carried::Nack { id, code, message } => {
                    tracing::warn!(%id, code, message, "refused");
                    self.say(Say::Nack { id, code, message });
                }
                Carried::Fetch { tenant, digests } => {
                    self.say(Say::FetchObjects { tenant, digests })
                }
            }
        }
    }

    fn say(&mut self, say: Say) {
        if let Some(says) = &self.says
            && says.try_send(say).is_err()
        {
            self.lost_logs += 1;
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
        let tls = tls::client(&identity.node_key, &identity.control_key, ours)
            .map_err(io::Error::other)?;
        let link = push::Link {
            address: identity.control_address.clone(),
            tls,
            join_request: identity.join_request.clone(),
        };
        let (says, said) = mpsc::channel(push::MAX_COMMANDS);
        for digest in self.state.wanted_bundles() {
            // The queue is new and longer than any plan.
            let _queued = says.try_send(Say::FetchBundle(Digest(digest)));
        }
        self.says = Some(says);
        tokio::spawn(push::run(link, said, self.happenings.clone()));
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
        };
        let hello = Hello {
            protocol: PROTOCOL,
            node,
            node_key: PublicKey::from_bytes(identity.node_key),
            fleet: FleetId(identity.fleet),
            software: env!("CARGO_PKG_VERSION").to_owned(),
            cursor: self.cursor,
            has,
        };
        self.say(Say::Hello(Box::new(hello)));
    }

    fn log(
        &mut self,
        worker: u64,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        if let Some(key) = self.serving.get(&worker).cloned() {
            self.log_function(&key, request, level, message, failure);
        }
    }

    fn log_function(
        &mut self,
        key: &FunctionKey,
        request: Option<String>,
        level: LogLevel,
        message: &str,
        failure: Option<&str>,
    ) {
        let Ok(function) = key.function.parse() else {
            return;
        };
        let time_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            });
        let (message, failure) = (message.to_owned(), failure.map(ToOwned::to_owned));
        self.say(Say::Log(LogEntry {
            tenant: TenantId(key.tenant),
            function,
            request,
            level,
            message,
            time_ms,
            failure,
        }));
    }

    fn log_event(&mut self, event: Event) {
        match event.key {
            Some(key) => self.log_function(
                &key,
                event.request,
                LogLevel::Warn,
                &event.message,
                Some(&event.code),
            ),
            None => tracing::warn!(
                code = event.code,
                message = event.message,
                "the vault reports"
            ),
        }
    }

    fn log_access(&mut self, access: Access) {
        let Some(key) = access.key else { return };
        let message = format!(
            "{} {} {} {} us",
            access.method, access.path, access.status, access.head_us
        );
        let failure = access.failure.map(Failure::code);
        self.log_function(
            &key,
            Some(access.request),
            LogLevel::Info,
            &message,
            failure,
        );
    }

    /// Tells the control plane how we are, and asks the vault how it is for the next time.
    fn report(&mut self) {
        self.children
            .vault(self.vault, ToVault::Describe, Vec::new());
        let status = self.status().to_string();
        self.say(Say::Status(status));
    }

    fn status(&self) -> serde_json::Value {
        let layers: BTreeMap<_, Vec<_>> = self
            .layers
            .iter()
            .map(|(program, layers)| {
                let layer = |layer: &LayerReport| serde_json::json!({ "layer": layer.layer, "in_force": layer.in_force, "detail": layer.detail });
                (*program, layers.iter().map(layer).collect())
            })
            .collect();
        let pid = |id: Option<u64>| id.and_then(|id| self.alive.get(&id)).map(|child| child.pid);
        let workers: Vec<_> = self
            .serving
            .iter()
            .map(|(id, key)| serde_json::json!({ "worker": id, "pid": pid(Some(*id)), "function": key.function }))
            .collect();
        serde_json::json!({
            "software": env!("CARGO_PKG_VERSION"),
            "node": self.identity.as_ref().map(|identity| identity.node.clone()),
            "connected": self.connected, "disconnected_because": self.last_disconnect, "listening": self.addresses,
            "state": self.state.describe(), "vault": self.description, "sandbox": layers,
            "pids": { "vault": pid(self.vault), "gateway": pid(self.gateway) }, "workers": workers, "lost_logs": self.lost_logs,
        })
    }

    fn tell_gateway(&self, message: ToGateway) {
        if !self.children.gateway(self.gateway, message, Vec::new()) {
            tracing::debug!("the gateway is not there; it hears all routes when it is");
        }
    }
}
