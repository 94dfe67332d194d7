//! The supervisor's socket: submitted objects are judged in order, and requests are answered.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_channel::{Control, ControlError, Skipped, fair};
use casemate_trust::id::TenantId;
use casemate_wire::control::parts::Part;
use casemate_wire::control::vault::{Event, FromVault, Hello, ToVault};

use crate::calls::Calls;
use crate::config::Config;
use crate::error::VaultError;
use crate::signer;
use crate::text::cut;
use crate::vault::Vault;
use crate::walls::Closed;

/// Events that may wait to be sent; beyond this, events of the tenant that has most are dropped,
/// and counted in its next event.
const MAX_EVENTS: usize = 1024;
/// Tries to send a large message without free descriptors, and the pause in between: calls that end
/// free theirs. A vault that finds none for so long had better be restarted.
const MEMFD_TRIES: u32 = 100;
const MEMFD_PAUSE: Duration = Duration::from_millis(100);
/// Period at which the lease is checked.
const LEASE_INTERVAL: Duration = Duration::from_secs(1);

type Socket = Control<FromVault, ToVault>;

/// Serves until the supervisor stops the vault or disconnects.
pub(crate) async fn serve(
    control: OwnedFd,
    vault: Vault,
    config: &Config,
    Closed {
        layers,
        descriptors,
    }: Closed,
) -> Result<(), VaultError> {
    let control: Socket = Control::new(control).map_err(casemate_channel::ControlError::Socket)?;
    let vault = Arc::new(vault);
    let events = Arc::new(fair::Queue::<TenantId, Event>::new(MAX_EVENTS));
    let calls = match Calls::new(config, descriptors, vault.clone(), events.clone()) {
        Ok(calls) => Arc::new(calls),
        Err(message) => {
            let failed = FromVault::Failed {
                message: cut(message.clone()),
            };
            tell(&control, &failed).await?;
            return Err(VaultError::StorageKey {
                path: "trust_anchors".into(),
                message,
            });
        }
    };
    let mut hello = vault.hello(layers);
    greet(&control, &vault, &hello).await?;
    // In a task of its own: a supervisor that does not read its socket blocks this loop, and must
    // not block the checks of leases and expiry.
    let watched = calls.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LEASE_INTERVAL).await;
            watched.close_what_is_withdrawn(&[]);
        }
    });
    let mut leases = tokio::time::interval(LEASE_INTERVAL);
    leases.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut skipped = Skipped::default();
    loop {
        tokio::select! {
            message = control.recv() => match message {
                Ok(Some((ToVault::Resume, _))) => {
                    hello = vault.hello(hello.layers);
                    greet(&control, &vault, &hello).await?;
                }
                Ok(Some((message, fds))) => {
                    if !handle(message, fds, &control, &vault, &calls).await? {
                        return Ok(());
                    }
                    // The root has signed another key for the control plane: the old one must not
                    // be trusted any longer.
                    let now = vault.hello(hello.layers.clone());
                    if now.control_key != hello.control_key {
                        hello = now;
                        tell(&control, &FromVault::Hello(Box::new(hello.clone()))).await?;
                    }
                }
                // The supervisor is gone, and no other program can make requests.
                Ok(None) => return Ok(()),
                // The supervisor may have been taken over, or the vault has no descriptors left:
                // calls continue.
                Err(error) if error.is_of_one_message() => {
                    if let Some(packets) = skipped.one_more(Instant::now()) {
                        tracing::warn!(%error, packets, "invalid control packets from the supervisor skipped");
                    }
                }
                Err(error) => return Err(error.into()),
            },
            taken = events.next() => {
                let event = Event { dropped: taken.lost, ..taken.item };
                tell(&control, &FromVault::Event(event)).await?;
            }
            _ = leases.tick() => {
                tokio::task::block_in_place(|| vault.fill_reserve());
                if let Some(nonce) = vault.lease_question(false) {
                    tell(&control, &FromVault::LeaseWanted { nonce }).await?;
                }
                if let Some(statements) = vault.lacking() {
                    tell(&control, &FromVault::Behind { statements }).await?;
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
            vault.must_be_whole()?;
            if effect.joined {
                tell(control, &FromVault::Joined).await?;
            }
            if !effect.tenants.is_empty() || effect.revoked {
                calls.close_what_is_withdrawn(&effect.tenants);
            }
            if effect.image {
                tell_image(control, vault).await?;
            }
            for tenant in effect.tenants {
                tell_plan(control, vault, tenant).await?;
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
            None => tracing::warn!(
                ?worker,
                "channel message from the supervisor has no descriptor; ignored"
            ),
        },
        ToVault::Gone { worker } => calls.gone(worker),
        ToVault::Signer => {
            if let Some(fd) = fds.next() {
                tokio::spawn(signer::serve(fd, vault.clone()));
            }
        }
        ToVault::Connected => {
            for part in Part::cut(vault.have()) {
                tell(control, &FromVault::Have(Box::new(part))).await?;
            }
            if let Some(nonce) = vault.lease_question(true) {
                tell(control, &FromVault::LeaseWanted { nonce }).await?;
            }
        }
        ToVault::Describe => {
            let mut description = vault.describe();
            description["upstreams"] = calls.describe();
            let json = description.to_string();
            tell(control, &FromVault::Description { json }).await?;
        }
        ToVault::Stop => return Ok(false),
        ToVault::Resume => {}
    }
    Ok(true)
}

/// The first messages to a supervisor: that the vault is open, and the plans of all tenants.
async fn greet(control: &Socket, vault: &Vault, hello: &Hello) -> Result<(), ControlError> {
    tell(control, &FromVault::Hello(Box::new(hello.clone()))).await?;
    let mut has_plans = false;
    for tenant in vault.tenants() {
        has_plans |= tell_plan(control, vault, tenant).await?;
    }
    // Where records were lost, more may be missing than is known.
    if has_plans && vault.refill.is_none() {
        tell(control, &FromVault::AllPlans).await?;
    }
    tell_image(control, vault).await?;
    match vault.refill.clone() {
        Some(set_aside) => tell(control, &FromVault::Refill { set_aside }).await,
        None => Ok(()),
    }
}

/// Sends a tenant's plan, if it has one, in parts that take effect when complete. Returns whether
/// there was a plan.
async fn tell_plan(
    control: &Socket,
    vault: &Vault,
    tenant: TenantId,
) -> Result<bool, ControlError> {
    let Some(plan) = vault.plan(&tenant) else {
        return Ok(false);
    };
    for part in Part::cut(plan) {
        tell(control, &FromVault::Plan(Box::new(part))).await?;
    }
    Ok(true)
}

/// Sends the image that the machine is to run, if any.
async fn tell_image(control: &Socket, vault: &Vault) -> Result<(), ControlError> {
    match vault.image() {
        Some(image) => tell(control, &FromVault::Image(image)).await,
        None => Ok(()),
    }
}

/// Sends a message to the supervisor. Every message fits: lists are sent in parts and texts are
/// cut, and tests compare the rest with the largest objects that the judge accepts.
async fn tell(control: &Socket, message: &FromVault) -> Result<(), ControlError> {
    let mut tries = 1;
    loop {
        match control.send(message, &[]).await {
            Err(ControlError::NoMemfd(error)) if tries < MEMFD_TRIES => {
                if tries == 1 {
                    tracing::warn!(%error, "no memfd for a large message to the supervisor; retrying");
                }
                tries += 1;
                tokio::time::sleep(MEMFD_PAUSE).await;
            }
            sent => return sent,
        }
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::dsse::MAX_ENVELOPE_BYTES;
    use casemate_trust::judge::{MAX_EPOCHS_HELD, MAX_TENANTS};
    use casemate_trust::statement::{MAX_FALLBACKS, MAX_FUNCTIONS, MAX_SECRETS, MAX_VERSION};
    use casemate_wire::control::encode;
    use casemate_wire::control::vault::{Have, HaveTenant, ObjectKind, Verdict};

    use super::*;

    /// Plans are compared with their bound where they are made.
    #[test]
    fn the_largest_objects_that_the_judge_accepts_fit_into_messages() {
        let envelope = ToVault::Submit {
            id: u64::MAX,
            kind: ObjectKind::Manifest,
            bytes: vec![1; MAX_ENVELOPE_BYTES],
        };
        encode(&envelope).unwrap();
        let listed = MAX_FUNCTIONS * (1 + MAX_FALLBACKS) + MAX_SECRETS;
        let missing = FromVault::Verdict {
            id: u64::MAX,
            verdict: Verdict::Missing {
                digests: vec![[0xff; 32]; listed],
            },
        };
        encode(&missing).unwrap();
        let tenant = HaveTenant {
            tenant: [0xff; 32],
            tenant_version: MAX_VERSION,
            manifest: Some((MAX_VERSION, [0xff; 32])),
            freshness: Some((MAX_VERSION, u64::MAX)),
        };
        let have = Have {
            root: MAX_VERSION,
            online_key: MAX_VERSION,
            epochs: vec![MAX_VERSION; MAX_EPOCHS_HELD],
            tenants: vec![tenant; MAX_TENANTS],
            grants: vec![MAX_VERSION; MAX_EPOCHS_HELD],
            image: Some((u64::MAX, [0xff; 32])),
            revocations: MAX_VERSION,
        };
        for part in Part::cut(have) {
            encode(&FromVault::Have(Box::new(part))).unwrap();
        }
    }
}
