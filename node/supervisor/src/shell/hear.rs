//! What children and the control plane say, and what it means.

use std::io;
use std::os::fd::OwnedFd;

use casemate_push::{LogLevel, NodeEvent};
use casemate_wire::control::gateway::{FromGateway, ToGateway};
use casemate_wire::control::parts::PartError;
use casemate_wire::control::vault::{FromVault, ToVault};
use casemate_wire::control::worker::{self, FromWorker};
use casemate_wire::control::{Failure, WorkerId};

use super::Shell;
use super::bundles::Bundles;
use super::push::{Heard, Say};
use crate::state::carry::Carrier;
use crate::state::{Input, Single};

impl Shell {
    pub(super) fn hear_vault(&mut self, message: FromVault) -> io::Result<Option<u8>> {
        match message {
            FromVault::Hello(hello) => {
                if let Err(message) = self.config.must_be_in_force_in_the_vault(&hello.layers) {
                    tracing::error!(message);
                    return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
                }
                self.layers.insert("vault", hello.layers.clone());
                let bundles = Bundles::open(&self.config.state, &hello.state_key)?;
                let (bundles_found, loaded) = (bundles.found()?, bundles.loaded()?);
                self.bundles = Some(bundles);
                let found = Input::Found {
                    bundles: bundles_found,
                    loaded,
                };
                self.input(found)?;
                self.identity = Some(hello);
                self.input(Input::Up(Single::Vault))?;
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
            FromVault::Plan(part) => self.input(Input::Plan(part))?,
            FromVault::AllPlans => self.input(Input::Told)?,
            FromVault::LeaseWanted { nonce } => self.say(Say::Lease(nonce)),
            FromVault::Have(part) => match self.haves.take(*part) {
                Ok(Some(have)) => {
                    self.input(Input::Told)?;
                    self.hello(&have);
                }
                Ok(None) => {}
                Err(error) => self.distrust_vault(&error),
            },
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
            FromVault::Behind { statements } => {
                tracing::warn!(
                    statements,
                    "the control plane claims newer statements than it has sent; connecting anew to ask for them"
                );
                self.connect()?;
            }
            FromVault::Image(image) => self.image_accepted(&image),
            FromVault::Event(event) => self.log_event(event),
            FromVault::Description { json } => {
                self.description = serde_json::from_str(&json).unwrap_or_else(|error| {
                    tracing::error!(%error, "the vault described itself in malformed JSON");
                    serde_json::json!({ "error": "the vault described itself in malformed JSON" })
                });
                self.answer();
            }
        }
        Ok(None)
    }

    /// See [`crate::state::Effect::DistrustVault`].
    pub(super) fn distrust_vault(&self, error: &PartError) {
        tracing::error!(%error, "vault sent an incomplete multi-part message; the vault is killed and restarted");
        if let Some(vault) = self.vault {
            self.children.kill(vault);
        }
    }

    pub(super) fn hear_gateway(
        &mut self,
        message: FromGateway,
        descriptor: Option<OwnedFd>,
    ) -> io::Result<Option<u8>> {
        match message {
            FromGateway::Socket { place } => self.hold_socket(place, descriptor)?,
            FromGateway::Ready { addresses, layers } => {
                if let Err(message) = self.config.must_be_in_force("the gateway", &layers) {
                    tracing::error!(message);
                    return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
                }
                tracing::info!(addresses = addresses.join(" "), "the gateway listens");
                self.layers.insert("gateway", layers);
                self.addresses = addresses;
                self.input(Input::Up(Single::Gateway))?;
            }
            FromGateway::Failed { message } => tracing::error!(message, "the gateway cannot start"),
            FromGateway::Need { key, waiting } => self.input(Input::Need { key, waiting })?,
            FromGateway::Idle { worker, idle_ms } => {
                self.input(Input::Idle { worker, idle_ms })?;
            }
            FromGateway::Given { worker, requests } => {
                self.input(Input::Given { worker, requests })?;
            }
            FromGateway::Drained { worker } => self.input(Input::Drained { worker })?,
            FromGateway::Unusable { worker, fault } => {
                tracing::warn!(worker = worker.0, ?fault, "the gateway gave a worker up");
                self.input(Input::Unusable { worker, fault })?;
            }
            FromGateway::Certificates(certificates) => self.certificates = certificates,
            FromGateway::Access(records) => {
                records
                    .into_iter()
                    .for_each(|access| self.log_access(access));
            }
            FromGateway::Stopped => {}
        }
        Ok(None)
    }

    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(super) fn hear_worker(&mut self, id: u64, message: FromWorker) -> io::Result<Option<u8>> {
        let worker = WorkerId(id);
        if !self.state.has(worker) {
            return Ok(None);
        }
        match message {
            FromWorker::Ready { layers } => {
                // Of a worker that runs nobody's code yet: the word of another one must not end the node.
                if self.state.is_starting(worker) {
                    if let Err(message) = self.config.must_be_in_force_in_a_worker(&layers) {
                        tracing::error!(message);
                        return Ok(Some(casemate_config::EXIT_UNAVAILABLE));
                    }
                    self.layers.insert("worker", layers);
                }
                self.input(Input::Ready { worker })?;
            }
            FromWorker::Loaded { load_us } => {
                tracing::debug!(worker = id, load_us, "loaded");
                self.input(Input::Loaded { worker })?;
            }
            FromWorker::LoadFailed { message } => {
                self.log(
                    id,
                    None,
                    LogLevel::Error,
                    &message,
                    Some(Failure::LoadFailed.code()),
                );
                self.input(Input::LoadFailed { worker, message })?;
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
            FromWorker::Outcomes(outcomes) => {
                for outcome in outcomes {
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
            }
            FromWorker::Fatal {
                failure,
                message,
                begun,
            } => {
                // First of all: until the gateway knows, it gives the worker requests. Once: a worker that was taken over
                // may repeat its last words without end.
                if !self.state.is_dying(worker) {
                    let begun = u32::from_le_bytes(begun);
                    self.tell_gateway(ToGateway::Dying { worker, begun });
                }
                self.log(id, None, LogLevel::Error, &message, Some(failure.code()));
                self.input(Input::Fatal { worker, failure })?;
            }
        }
        Ok(None)
    }

    #[expect(clippy::too_many_lines, reason = "older than the limit")]
    pub(super) fn hear_push(&mut self, heard: Heard) -> io::Result<()> {
        match heard {
            Heard::ImagePiece {
                digest,
                offset,
                bytes,
            } => self.image_piece(&digest, offset, bytes),
            Heard::Event(NodeEvent::ImageUnavailable { digest }) => {
                let now_ms = self.now_ms();
                self.image.unavailable(&digest, now_ms);
            }
            Heard::Connected => {
                self.has_greeted = false;
                self.carrier = Carrier::starting_at(self.carrier.next());
                self.children
                    .vault(self.vault, ToVault::Connected, Vec::new());
            }
            Heard::Disconnected(why) => {
                if self.connected || self.last_disconnect.as_ref() != Some(&why) {
                    tracing::warn!(
                        why,
                        "not connected to the control plane; functions keep running"
                    );
                }
                (self.connected, self.has_greeted) = (false, false);
                self.image.connected(false);
                self.last_disconnect = Some(why);
            }
            Heard::Bundle { digest, bytes } => {
                let Some(bundles) = &self.bundles else {
                    return Ok(());
                };
                let written = if self.state.is_declared(&digest.0, bytes.len() as u64) {
                    bundles.write(&digest, &bytes)
                } else {
                    let what = "no release that names the bundle declares its size";
                    Err(io::Error::other(what))
                };
                match written {
                    Ok(()) => self.input(Input::BundleHere(digest.0))?,
                    Err(error) => {
                        tracing::error!(
                            %digest,
                            %error,
                            "a bundle cannot be stored; it will be fetched again after a pause"
                        );
                        self.input(Input::BundleNotStored(digest.0))?;
                    }
                }
            }
            Heard::Event(NodeEvent::Welcome { .. }) => {
                tracing::info!("connected to the control plane");
                (self.connected, self.last_disconnect) = (true, None);
                self.image.connected(true);
                self.fetch_image();
                self.report();
            }
            Heard::Event(NodeEvent::Synced { now }) => self.cursor = Some(now),
            Heard::Event(NodeEvent::JoinPending) => {
                tracing::info!(
                    "waiting for the operator to admit this node: `casemate node admit`"
                );
            }
            Heard::Event(NodeEvent::JoinRefused { code, message }) => tracing::error!(
                code,
                message,
                "the control plane does not relay our join request"
            ),
            Heard::Event(NodeEvent::Refused { code, message }) => {
                tracing::error!(code, message, "the control plane refuses this node");
            }
            Heard::Event(event) => {
                let carried = self.carrier.pushed(event);
                self.carry(carried);
            }
        }
        Ok(())
    }
}
