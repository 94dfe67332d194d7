//! The supervisor's socket: what it carries is judged in order, what it asks is answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use casemate_channel::{Control, ControlError};
use casemate_trust::id::TenantId;
use casemate_wire::control::LayerReport;
use casemate_wire::control::vault::{Event, FromVault, ToVault};
use tokio::sync::mpsc;

use crate::calls::Calls;
use crate::config::Config;
use crate::signer;
use crate::vault::{Vault, VaultError};

/// Events that wait to be sent; more are dropped and counted in the log.
const MAX_EVENTS: usize = 1024;
/// How often a lease is looked at.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);

type Socket = Control<FromVault, ToVault>;

/// Serves until the supervisor stops us or goes away.
pub(crate) async fn serve(
    control: OwnedFd,
    vault: Vault,
    config: &Config,
    layers: Vec<LayerReport>,
) -> Result<(), VaultError> {
    let control: Socket = Control::new(control).map_err(casemate_channel::ControlError::Socket)?;
    let vault = Arc::new(vault);
    let (events, mut pending) = mpsc::channel::<Event>(MAX_EVENTS);
    let calls = match Calls::new(config, vault.clone(), events) {
        Ok(calls) => Arc::new(calls),
        Err(message) => {
            control
                .send(
                    &FromVault::Failed {
                        message: message.clone(),
                    },
                    &[],
                )
                .await?;
            return Err(VaultError::StorageKey {
                path: "trust_anchors".into(),
                message,
            });
        }
    };
    let mut hello = vault.hello(layers);
    tell(&control, &FromVault::Hello(Box::new(hello.clone()))).await?;
    for plan in vault.plans() {
        tell(&control, &FromVault::Plan(Box::new(plan))).await?;
    }
    if let Some(set_aside) = vault.refill.clone() {
        tell(&control, &FromVault::Refill { set_aside }).await?;
    }
    // In a task of its own: a supervisor that does not read its socket stops this loop, and must not stop that.
    let watched = calls.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LEASE_INTERVAL).await;
            watched.close_what_is_withdrawn();
        }
    });
    let mut leases = tokio::time::interval(LEASE_INTERVAL);
    leases.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            message = control.recv() => match message? {
                Some((message, fds)) => {
                    if !handle(message, fds, &control, &vault, &calls).await? {
                        return Ok(());
                    }
                    // The root has signed another key for the control plane: the old one is not to be trusted any longer.
                    let now = vault.hello(hello.layers.clone());
                    if now.control_key != hello.control_key {
                        hello = now;
                        tell(&control, &FromVault::Hello(Box::new(hello.clone()))).await?;
                    }
                }
                // Our supervisor is gone, and with it whoever could ask us anything.
                None => return Ok(()),
            },
            Some(event) = pending.recv() => tell(&control, &FromVault::Event(event)).await?,
            _ = leases.tick() => {
                if let Some(nonce) = vault.lease_question(false) {
                    tell(&control, &FromVault::LeaseWanted { nonce }).await?;
                }
            }
        }
    }
}

/// Handles one message; false: stop.
async fn handle(
    message: ToVault,
    fds: Vec<OwnedFd>,
    control: &Socket,
    vault: &Arc<Vault>,
    calls: &Arc<Calls>,
) -> Result<bool, VaultError> {
    let mut fds = fds.into_iter();
    match message {
        ToVault::Submit { id, kind, bytes } => {
            let (verdict, effect) = tokio::task::block_in_place(|| vault.submit(kind, &bytes));
            tell(control, &FromVault::Verdict { id, verdict }).await?;
            if effect.joined {
                tell(control, &FromVault::Joined).await?;
            }
            if !effect.tenants.is_empty() {
                calls.close_what_is_withdrawn();
            }
            for tenant in effect.tenants {
                if let Some(plan) = plan_of(vault, tenant) {
                    tell(control, &FromVault::Plan(Box::new(plan))).await?;
                }
            }
            if !effect.leased
                && let Some(nonce) = vault.lease_question(false)
            {
                tell(control, &FromVault::LeaseWanted { nonce }).await?;
            }
        }
        ToVault::Channel {
            worker,
            key,
            release,
        } => match fds.next() {
            Some(fd) => calls.serve(worker, key, release, fd),
            None => tracing::warn!(?worker, "a channel came without its descriptor"),
        },
        ToVault::Gone { worker } => calls.gone(worker),
        ToVault::Signer => {
            if let Some(fd) = fds.next() {
                tokio::spawn(signer::serve(fd, vault.clone()));
            }
        }
        ToVault::Connected => {
            tell(control, &FromVault::Have(Box::new(vault.have()))).await?;
            if let Some(nonce) = vault.lease_question(true) {
                tell(control, &FromVault::LeaseWanted { nonce }).await?;
            }
        }
        ToVault::Describe => {
            let mut description = vault.describe();
            description["upstreams"] = calls.describe();
            control
                .send(
                    &FromVault::Description {
                        json: description.to_string(),
                    },
                    &[],
                )
                .await?;
        }
        ToVault::Stop => return Ok(false),
    }
    Ok(true)
}

/// Says something to the supervisor. What is too large to be said is logged and left out: it must not end the vault.
async fn tell(control: &Socket, message: &FromVault) -> Result<(), ControlError> {
    match control.send(message, &[]).await {
        Err(ControlError::Message(error)) => {
            tracing::error!(%error, "a message to the supervisor is too large and is left out");
            Ok(())
        }
        sent => sent,
    }
}

fn plan_of(vault: &Vault, tenant: TenantId) -> Option<casemate_wire::control::vault::Plan> {
    let state = vault.read();
    state
        .judge
        .tenant(&tenant)
        .map(|tenant| crate::plan::plan(tenant, &state.identity.pool))
}
