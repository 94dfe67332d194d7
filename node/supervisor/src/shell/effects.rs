//! Doing what the state machine decided.

use std::collections::BTreeSet;
use std::io;

use casemate_channel::budget::Budget;
use casemate_channel::control::sealed_memfd;
use casemate_sandbox::launch::{Command, Program};
use casemate_trust::id::{Digest, TenantId};
use casemate_wire::control::gateway::ToGateway;
use casemate_wire::control::vault::{FunctionPlan, ToVault};
use casemate_wire::control::worker::{Load, Peer, ToWorker};
use casemate_wire::control::{FunctionKey, WorkerId};

use super::push::Say;
use super::{Child, Serving, Shell};
use crate::state::drive::Host;
use crate::state::{Effect, Input, NotStored, Single, Supervision, WORKER_PIDS};

impl Host for Shell {
    type Error = io::Error;

    fn state(&mut self) -> &mut Supervision {
        &mut self.state
    }

    fn now_ms(&self) -> u64 {
        Self::now_ms(self)
    }

    fn carry_out(&mut self, effect: Effect) -> io::Result<Option<Input>> {
        match effect {
            Effect::Serve { worker, key, plan } => return self.serve(worker, key, &plan),
            Effect::Fetch { bundle, bytes } => return Ok(Some(self.fetch(bundle, bytes))),
            Effect::Look { bundle } => {
                return Ok(self.has_bundle(bundle).then_some(Input::BundleHere(bundle)));
            }
            Effect::StartSingle { child, which } => self.start_single(child, which)?,

            Effect::StartWorker { worker, memory_mib } => {
                self.alive.insert(worker.0, Child::default());
                self.children
                    .start(worker.0, Program::Worker, memory_mib, WORKER_PIDS)?;
            }
            Effect::Assign {
                worker,
                memory_mib,
                tenant,
                tenant_memory_mib,
            } => {
                let command = Command::Assign {
                    id: worker.0,
                    memory_mib,
                    tenant,
                    tenant_memory_mib,
                };
                self.children.command(command).map_err(io::Error::other)?;
            }
            Effect::Kill { child } => self.children.kill(child),
            Effect::Recognised { worker, key } => {
                let records = Budget::new(self.now_ms());
                self.serving.insert(worker.0, Serving { key, records });
            }
            Effect::Rewire {
                worker,
                peer,
                key,
                release,
                concurrency,
                wall_time_ms,
            } => self.rewire(worker, peer, key, release, (concurrency, wall_time_ms))?,
            Effect::Violation { worker, what } => {
                tracing::error!(
                    worker = worker.0,
                    what,
                    "a worker broke the protocol of its control channel and is ended"
                );
                self.children.kill(worker.0);
            }
            Effect::Gateway(message) => self.tell_gateway(message),
            Effect::Warn { key, message } => self.warn(&key, &message),
            Effect::DistrustVault { error } => self.distrust_vault(&error),
            Effect::VaultGone { worker } => drop(self.children.vault(
                self.vault,
                ToVault::Gone { worker },
                Vec::new(),
            )),
            Effect::Stop { worker, grace_ms } => drop(self.children.worker(
                worker.0,
                ToWorker::Stop { grace_ms },
                Vec::new(),
            )),
            // Else the hello says it.
            Effect::Stored { tenant, version } if self.has_greeted => self.say(Say::Stored {
                tenant: TenantId(tenant),
                version,
            }),
            Effect::Stored { .. } => {}
            Effect::Loads { release } => self.remember_loaded(release),
            Effect::NotStored(not_stored) => self.tell_not_stored(not_stored),
            Effect::Keep => self.keep_needed(),
        }
        Ok(None)
    }
}

impl Shell {
    fn start_single(&mut self, child: u64, which: Single) -> io::Result<()> {
        let program = match which {
            Single::Vault => Program::Vault,
            Single::Gateway => Program::Gateway,
        };
        self.alive.insert(child, Child::default());
        self.children.start(child, program, 0, 0)?;
        match which {
            Single::Vault => self.vault = Some(child),
            Single::Gateway => {
                self.gateway = Some(child);
                self.start_gateway()?;
            }
        }
        Ok(())
    }

    /// Keeps the bundles and the records of loaded releases that the state needs, and no others.
    fn keep_needed(&mut self) {
        let needed = self.state.needed_bundles();
        let needed: BTreeSet<_> = needed.into_iter().map(Digest).collect();
        let loaded = self.state.proven_releases();
        if let Some(stored) = &self.bundles {
            stored.keep(&needed);
            stored.keep_loaded(&loaded.into_iter().map(Digest).collect());
        }
        self.say(Say::Keep(needed.into_iter().collect()));
    }

    /// Not before the hello, after which all of it is said.
    pub(super) fn tell_not_stored(&self, not_stored: NotStored) {
        if self.has_greeted {
            self.say(Say::NotStored(casemate_push::NotStored {
                tenant: TenantId(not_stored.tenant),
                version: not_stored.version,
                code: not_stored.code.to_owned(),
                message: not_stored.message,
            }));
        }
    }

    /// Gives a spare its function: the bundle, and an end each of two new channels, whose other ends go to gateway and vault.
    fn serve(
        &mut self,
        worker: WorkerId,
        key: FunctionKey,
        plan: &FunctionPlan,
    ) -> io::Result<Option<Input>> {
        let digest = Digest(plan.bundle);
        let Some(bytes) = self
            .bundles
            .as_ref()
            .and_then(|bundles| bundles.read(&digest))
        else {
            tracing::error!(%digest, "a bundle that was here is gone; it is fetched again");
            let bundle = plan.bundle;
            return Ok(Some(Input::BundleLost { bundle, worker }));
        };
        // First, so that a successor of ours knows what the worker runs.
        let note = Command::Note {
            id: worker.0,
            note: plan.release,
        };
        self.children.command(note).map_err(io::Error::other)?;
        let bundle = sealed_memfd("casemate-bundle", &bytes)?;
        let (gateway_end, from_gateway) = casemate_channel::pair()?;
        let (vault_end, to_vault) = casemate_channel::pair()?;
        let load = Load {
            function: key.function.clone(),
            entry: plan.entry.clone(),
            limits: plan.limits,
            vars: plan.vars.clone(),
            bindings: plan.bindings.clone(),
            dynamic_code: plan.dynamic_code,
        };
        let serving = Serving {
            key: key.clone(),
            records: Budget::new(self.now_ms()),
        };
        self.serving.insert(worker.0, serving);
        let (vault, release) = (
            ToVault::Channel {
                worker,
                key: key.clone(),
                release: plan.release,
            },
            plan.release,
        );
        let gateway = ToGateway::Channel {
            key,
            release,
            worker,
            concurrency: plan.limits.concurrency,
            wall_time_ms: plan.limits.wall_time_ms,
        };
        if !self.children.vault(self.vault, vault, vec![vault_end]) {
            tracing::debug!(
                worker = worker.0,
                "vault is not running; the worker gets a channel when the vault has started"
            );
        }
        let told = self.children.worker(
            worker.0,
            ToWorker::Load(Box::new(load)),
            vec![bundle, from_gateway, to_vault],
        ) && self
            .children
            .gateway(self.gateway, gateway, vec![gateway_end]);
        if !told {
            tracing::warn!(
                worker = worker.0,
                "could not deliver bundle and channels to the worker; the worker is ended and another one is started"
            );
        }
        Ok(None)
    }

    /// A release whose mark cannot be written is tried again after the next start, and that is all.
    fn remember_loaded(&self, release: [u8; 32]) {
        let Some(bundles) = &self.bundles else { return };
        if let Err(error) = bundles.mark_loaded(&Digest(release)) {
            tracing::warn!(%error, "cannot write down that a release has loaded; it is tried again after a restart");
        }
    }

    /// Gives a worker a new channel to a program that was started again. A program that cannot be
    /// told is not there any more; its successor gets channels of its own.
    fn rewire(
        &mut self,
        worker: WorkerId,
        peer: Peer,
        key: FunctionKey,
        release: [u8; 32],
        (concurrency, wall_time_ms): (u32, u32),
    ) -> io::Result<()> {
        let (worker_end, far_end) = casemate_channel::pair()?;
        let told = match peer {
            Peer::Vault => {
                let channel = ToVault::Channel {
                    worker,
                    key,
                    release,
                };
                self.children.vault(self.vault, channel, vec![far_end])
            }
            Peer::Gateway => {
                let channel = ToGateway::Channel {
                    key,
                    release,
                    worker,
                    concurrency,
                    wall_time_ms,
                };
                self.children.gateway(self.gateway, channel, vec![far_end])
            }
        };
        let is_wired = told
            && self
                .children
                .worker(worker.0, ToWorker::Channel(peer), vec![worker_end]);
        if !is_wired {
            tracing::warn!(
                worker = worker.0,
                ?peer,
                "a worker did not get its new channel"
            );
        }
        Ok(())
    }

    /// Asks for a bundle that is not on the disk.
    fn fetch(&mut self, bundle: [u8; 32], bytes: u64) -> Input {
        if self.has_bundle(bundle) {
            return Input::BundleHere(bundle);
        }
        let digest = Digest(bundle);
        tracing::info!(%digest, bytes, "fetching a bundle");
        self.say(Say::FetchBundle(digest));
        Input::BundleAbsent(bundle)
    }

    fn has_bundle(&self, bundle: [u8; 32]) -> bool {
        let stored = self.bundles.as_ref();
        stored.is_some_and(|bundles| bundles.read(&Digest(bundle)).is_some())
    }
}
