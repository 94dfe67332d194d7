//! The control channel: carries out the supervisor's messages, and sends reports to it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use casemate_channel::ControlError;
use casemate_wire::control::Failure;
use casemate_wire::control::gateway::{FromGateway, Route, ToGateway};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::answer::{Code, Refusal};
use crate::route::Site;
use crate::serve::Gateway;
use crate::start::Supervisor;
use crate::workers::{Function, Promise};

/// Period at which repeated reports and idle workers are checked.
const ROUND: Duration = Duration::from_millis(250);
/// Pause between two packets of access records: under load each packet has many.
const RECORDS_PERIOD: Duration = Duration::from_millis(20);

/// Carries out one message of the supervisor; `Resume` is handled elsewhere, and `Drain` is
/// returned.
pub fn obey(gateway: &Arc<Gateway>, message: ToGateway, fds: Vec<OwnedFd>) -> Option<Duration> {
    match message {
        ToGateway::Start(_) | ToGateway::Socket { .. } => {
            tracing::error!(
                "second Start message, or a socket after it, from the supervisor ignored"
            );
        }
        ToGateway::Route(route) => lead(gateway, *route),
        ToGateway::Channel {
            key,
            release,
            worker,
            concurrency,
            wall_time_ms,
        } => match <[OwnedFd; 1]>::try_from(fds) {
            Ok([fd]) => {
                let promise = Promise {
                    concurrency,
                    wall: Duration::from_millis(wall_time_ms.into()),
                };
                if let Err(error) = gateway.registry.add(&key, release, worker, promise, fd) {
                    tracing::error!(worker = worker.0, %error, "a worker's channel cannot be used");
                }
            }
            Err(fds) => tracing::error!(
                worker = worker.0,
                "expected one descriptor with a channel, got {}",
                fds.len()
            ),
        },
        ToGateway::Retire { worker } => gateway.registry.retire(worker),
        ToGateway::Dying { worker, begun } => gateway.registry.dying(worker, begun),
        ToGateway::Gone { worker, failure } => gateway.registry.gone(worker, failure),
        ToGateway::Refuse {
            key,
            failure,
            message,
        } => {
            let mut refusal = Refusal::from(Code::Failed(failure));
            // An error that a function threw while it loaded is for its tenant's log alone.
            if !message.is_empty() && failure != Failure::LoadFailed {
                refusal.message = message.into();
            }
            gateway.registry.refuse(&key, &refusal);
        }
        ToGateway::Standing(mut standing) => {
            standing.expected.sort_unstable();
            gateway.stand(standing);
        }
        ToGateway::Reload => gateway.renewal.iter().for_each(|renewal| renewal.ask()),
        ToGateway::Resume => {}
        ToGateway::Drain { grace_ms } => return Some(Duration::from_millis(grace_ms.into())),
    }
    None
}

/// Only control messages change the table, one after the other.
fn lead(gateway: &Gateway, route: Route) {
    let Route {
        key,
        release,
        hosts,
        perimeter,
    } = route;
    let table = gateway.table.load();
    if hosts.is_empty() {
        gateway.table.store(Arc::new(table.without(&key)));
        gateway.registry.want(&key, None);
    } else {
        // The release is set first: a caller that finds the route finds the release.
        let function = gateway.registry.want(&key, Some(release));
        gateway.table.store(Arc::new(table.with(
            &hosts,
            Site {
                key,
                function,
                gate: perimeter.into(),
            },
        )));
    }
}

/// Sends reports to the supervisor until told to stop; then sends the last reports and `Stopped`.
///
/// # Errors
/// The control channel failed.
pub async fn speak(
    gateway: Arc<Gateway>,
    supervisor: Arc<Supervisor>,
    mut stop: oneshot::Receiver<()>,
) -> Result<(), ControlError> {
    let registry = gateway.registry.clone();
    let mut rounds = tokio::time::interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut records = tokio::time::interval(RECORDS_PERIOD);
    records.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = registry.bell.rung() => {
                for (worker, fault) in registry.bell.take_unusable() {
                    supervisor.send(&FromGateway::Unusable { worker, fault }, &[]).await?;
                }
                for function in registry.bell.take() {
                    report(&supervisor, &function).await?;
                }
            }
            _ = rounds.tick() => {
                for function in registry.all() {
                    report(&supervisor, &function).await?;
                }
                registry.forget_what_is_over();
            }
            _ = &mut stop => break,
            () = async { gateway.has_records().await; records.tick().await; } => {
                if let Some(records) = gateway.next_records() {
                    supervisor.send(&FromGateway::Access(records), &[]).await?;
                }
            }
        }
    }
    while let Some(records) = gateway.next_records() {
        supervisor.send(&FromGateway::Access(records), &[]).await?;
    }
    supervisor.send(&FromGateway::Stopped, &[]).await
}

async fn report(supervisor: &Supervisor, function: &Function) -> Result<(), ControlError> {
    let due = function.due();
    if let Some(waiting) = due.need {
        supervisor
            .send(
                &FromGateway::Need {
                    key: function.key.clone(),
                    waiting,
                },
                &[],
            )
            .await?;
    }
    for (worker, requests) in due.given {
        supervisor
            .send(&FromGateway::Given { worker, requests }, &[])
            .await?;
    }
    for worker in due.drained {
        supervisor
            .send(&FromGateway::Drained { worker }, &[])
            .await?;
    }
    for (worker, idle_ms) in due.idle {
        supervisor
            .send(&FromGateway::Idle { worker, idle_ms }, &[])
            .await?;
    }
    Ok(())
}
