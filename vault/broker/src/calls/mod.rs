//! Outgoing calls: each worker's channel is served by what its function's release allows, and by nothing that a message
//! claims.

mod answer;
mod body;
mod dial;
mod prepare;
mod upstream;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use casemate_channel::{Incoming, fair};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::name::{Identifier, Name};
use casemate_wire::control::vault::Event;
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{Fields, ResponseHead};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::control::cut;
use crate::vault::Vault;
use answer::Answer;
use prepare::Prepared;
use upstream::{MAX_IDLE, MAX_POOLS, Upstreams};

/// Until the head of an answer has come; a function's own wall-clock limit is mostly shorter.
const HEAD_TIMEOUT: Duration = Duration::from_secs(300);
/// Calls of one worker at a time; more wait in its channel.
const MAX_CALLS_OF_A_WORKER: usize = 128;
/// Calls at a time, when there are descriptors enough.
const MAX_CALLS: usize = 700;
/// Descriptors of a call: its connection, and a resolver's socket before that.
const DESCRIPTORS_OF_A_CALL: usize = 2;

/// How the descriptors of the process are shared out: a quarter to calls, half to connections that wait for one, and a
/// quarter to workers' channels and everything else. So a vault that may hold few does less, and fails at nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Calls at a time.
    calls: usize,
    /// Connections that wait, in each pool; with none, every call dials.
    idle: usize,
}

impl Room {
    fn within(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Self {
            calls: (descriptors / 4 / DESCRIPTORS_OF_A_CALL).clamp(1, MAX_CALLS),
            idle: (descriptors / 2 / MAX_POOLS).min(MAX_IDLE),
        }
    }
}

/// Why a call got no answer from its upstream. The function reads code and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Refused {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }
}

/// Whose channel it is: decided when it was handed over, by the descriptor.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    pub(crate) function: Name,
    pub(crate) release: Digest,
    key: FunctionKey,
}

/// Serves workers' channels.
pub(crate) struct Calls {
    vault: Arc<Vault>,
    upstreams: Upstreams,
    events: Arc<fair::Queue<TenantId, Event>>,
    workers: Mutex<HashMap<WorkerId, tokio::task::AbortHandle>>,
    max_calls: usize,
    room: Arc<Semaphore>,
}

impl Calls {
    /// Ready to call, in a process that may hold so many descriptors.
    pub(crate) fn new(
        config: &Config,
        descriptors: u64,
        vault: Arc<Vault>,
        events: Arc<fair::Queue<TenantId, Event>>,
    ) -> Result<Self, String> {
        let Room { calls, idle } = Room::within(descriptors);
        if calls < MAX_CALLS {
            tracing::warn!(
                descriptors,
                calls,
                "few descriptors: fewer calls are made at a time"
            );
        }
        Ok(Self {
            vault,
            upstreams: Upstreams::new(config, idle)?,
            events,
            workers: Mutex::default(),
            max_calls: calls,
            room: Arc::new(Semaphore::new(calls)),
        })
    }

    /// Serves a worker's channel from now on.
    pub(crate) fn serve(
        self: &Arc<Self>,
        worker: WorkerId,
        key: FunctionKey,
        release: [u8; 32],
        fd: OwnedFd,
    ) {
        let Ok(function) = key.function.parse::<Name>() else {
            tracing::warn!(?worker, "a channel for a function with no name");
            return;
        };
        let caller = Arc::new(Caller {
            tenant: TenantId(key.tenant),
            function,
            release: Digest(release),
            key,
        });
        let calls = self.clone();
        let task = tokio::spawn(async move {
            let mut acceptor = match casemate_channel::acceptor(fd) {
                Ok(acceptor) => acceptor,
                Err(error) => return tracing::warn!(?worker, %error, "a worker's channel is none"),
            };
            let own = Arc::new(Semaphore::new(MAX_CALLS_OF_A_WORKER));
            // One call waits here for room, more in their worker's socket: a flood takes nobody's descriptors, and a
            // worker that calls nobody no room.
            loop {
                let own = own.clone().acquire_owned().await;
                let Some(incoming) = acceptor.accept().await else {
                    return;
                };
                let room = (own, calls.room.clone().acquire_owned().await);
                let (calls, caller) = (calls.clone(), caller.clone());
                tokio::spawn(async move {
                    calls.call(&caller, incoming).await;
                    drop(room);
                });
            }
        });
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.retain(|_, task| !task.is_finished());
        workers.insert(worker, task.abort_handle());
    }

    /// The worker's process has ended.
    pub(crate) fn gone(&self, worker: WorkerId) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = workers.remove(&worker) {
            task.abort();
        }
    }

    /// Closes connections whose credential was withdrawn or whose lease is over, and forgets such credentials.
    pub(crate) fn close_what_is_withdrawn(&self) {
        let state = self.vault.read();
        let leased = self.vault.lease_holds() && state.is_barred().is_none();
        let pool = &state.identity.pool;
        let holds = |tenant: &TenantId, name: &Identifier, digest: &Digest| {
            let listed = state.judge.tenant(tenant).and_then(|tenant| {
                tenant
                    .manifest
                    .as_ref()?
                    .manifest
                    .secrets
                    .get(name)?
                    .get(pool)
                    .copied()
            });
            leased && listed == Some(*digest)
        };
        self.vault.kept.retain(holds);
        self.upstreams.retain(|tenant, secret| match secret {
            Some((name, digest)) => holds(tenant, name, digest),
            None => state.judge.tenant(tenant).is_some(),
        });
    }

    /// For the status page.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let mut description = self.upstreams.describe();
        description["max_calls"] = self.max_calls.into();
        description
    }

    async fn call(&self, caller: &Caller, incoming: Incoming) {
        let Incoming {
            head,
            body,
            mut reply,
        } = incoming;
        let request = head.fields.text(":request").map(ToOwned::to_owned);
        let answered = tokio::select! {
            answered = self.answer(caller, head, body) => answered,
            // Nobody wants the answer: the connection is dropped, and with it what was under way.
            () = reply.cancelled() => return,
        };
        match answered {
            Ok(answer) => answer.deliver(reply).await,
            Err(refused) => {
                let Refused { code, message } = refused;
                tracing::info!(tenant = %caller.tenant, function = %caller.function, code, "a call was refused");
                let event = Event {
                    key: Some(caller.key.clone()),
                    request: request.map(cut),
                    code: code.to_owned(),
                    message: cut(message.clone()),
                    dropped: 0,
                };
                self.events.push(caller.tenant, event);
                let fields = Fields::default()
                    .with(":error", code)
                    .with(":message", message);
                reply
                    .send(&ResponseHead { status: 0, fields }, true)
                    .finish();
            }
        }
    }

    async fn answer(
        &self,
        caller: &Caller,
        head: casemate_wire::RequestHead,
        body: casemate_channel::RecvBody,
    ) -> Result<Answer, Refused> {
        let Prepared {
            request,
            place,
            scrubber,
        } = prepare::prepare(&self.vault, caller, &head, body)?;
        let (client, closed) = self.upstreams.client(place)?;
        let sent = tokio::time::timeout(HEAD_TIMEOUT, client.request(request));
        let response = tokio::select! {
            sent = sent => sent.map_err(|_| Refused::new("upstream_timeout", "the upstream did not answer in time"))?,
            () = closed.wait() => {
                let message = "the credential was withdrawn while the call was under way";
                return Err(Refused::new("credential_withdrawn", message));
            }
        };
        let response = response.map_err(|error| dial::refusal(&error))?;
        Answer::new(response, scrubber, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_waiting_connections_leave_a_quarter_of_the_descriptors_to_the_rest() {
        let all = Room {
            calls: MAX_CALLS,
            idle: MAX_IDLE,
        };
        assert_eq!(
            Room::within(65_536),
            all,
            "the most that is asked for is enough"
        );
        assert_eq!(Room::within(u64::MAX), all);
        assert_eq!(
            Room::within(1024),
            Room {
                calls: 128,
                idle: 0
            }
        );
        assert_eq!(Room::within(0).calls, 1);
        for limit in 8..100_000 {
            let Room { calls, idle } = Room::within(limit as u64);
            assert!(calls > 0 && calls * DESCRIPTORS_OF_A_CALL + idle * MAX_POOLS <= limit * 3 / 4);
        }
    }
}
