//! Outgoing calls: each worker's channel is served by the release of its function, whatever its
//! messages claim.

mod answer;
mod authority;
mod body;
mod caller;
mod capacity;
mod cut;
mod dial;
mod heads;
mod in_flight;
mod prepare;
mod refused;
mod resolve;
mod searchers;
mod share;
mod upstream;
mod watch;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use casemate_channel::{Incoming, SendBody, fair};
use casemate_trust::id::{Digest, TenantId};
use casemate_trust::judge::TenantState;
use casemate_trust::name::Name;
use casemate_wire::control::vault::Event;
use casemate_wire::control::{FunctionKey, WorkerId};
use casemate_wire::{CallCode, Fields, RESET_ABANDONED, RequestHead, ResponseHead};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Config;
use crate::text::cut as cut_text;
use crate::vault::{State, Vault};
use answer::{Answer, Delivered};
use authority::SecretKey;
use caller::Caller;
use capacity::{Capacity, MAX_CALLS};
use in_flight::{InFlight, Registered};
use prepare::Prepared;
use refused::Refused;
use searchers::{Searchers, Values};
use share::{Admission, MAX_WAIT, Permit};
use upstream::{InUse, Place, Upstreams};
use watch::Credentialed;

/// Serves workers' channels. The vault's main loop owns it and passes it each new channel.
pub(crate) struct Calls {
    vault: Arc<Vault>,
    upstreams: Upstreams,
    events: Arc<fair::Queue<TenantId, Event>>,
    workers: Mutex<HashMap<WorkerId, tokio::task::AbortHandle>>,
    max_calls: usize,
    admission: Arc<Admission>,
    in_flight: Arc<InFlight>,
    searchers: Searchers,
}

/// A call whose answer has begun.
struct Answered {
    answer: Answer,
    under_way: UnderWay,
}

/// The resources of a call until it is over.
struct UnderWay {
    registered: Registered,
    exchange: cut::Exchange,
    deadline: Instant,
    lifetime: Duration,
    _pool: InUse,
    _permit: Arc<Permit>,
}

impl UnderWay {
    /// Waits until the call must end, whatever its upstream does.
    async fn must_end(&mut self) -> Refused {
        tokio::select! {
            refused = self.registered.ended() => refused,
            () = tokio::time::sleep_until(self.deadline) => {
                let message = format!(
                    "the call took longer than its release allows ({} ms)",
                    self.lifetime.as_millis()
                );
                Refused::new(CallCode::UpstreamTimeout, message)
            }
        }
    }
}

impl Calls {
    /// Makes the service for a process that may hold so many descriptors.
    pub(crate) fn new(
        config: &Config,
        descriptors: u64,
        vault: Arc<Vault>,
        events: Arc<fair::Queue<TenantId, Event>>,
    ) -> Result<Self, String> {
        let Capacity { calls, idle } = Capacity::within(descriptors);
        if calls < MAX_CALLS {
            tracing::warn!(
                descriptors,
                calls,
                "descriptor limit is low; concurrent calls reduced"
            );
        }
        Ok(Self {
            vault,
            upstreams: Upstreams::new(config, idle)?,
            events,
            workers: Mutex::default(),
            max_calls: calls,
            admission: Admission::new(calls, MAX_WAIT),
            in_flight: Arc::default(),
            searchers: Searchers::default(),
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
            tracing::warn!(
                ?worker,
                "supervisor sent a channel with an invalid function name; channel ignored"
            );
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
                Err(error) => {
                    return tracing::warn!(?worker, %error, "worker channel descriptor is unusable; calls of this worker fail");
                }
            };
            // Calls are taken out of the channel at once: how many of them wait, and for how long,
            // depends on their tenant alone.
            while let Some(incoming) = acceptor.accept().await {
                let (calls, caller) = (calls.clone(), caller.clone());
                tokio::spawn(async move { calls.call(&caller, incoming).await });
            }
        });
        let mut workers = self.workers.lock();
        workers.retain(|_, task| !task.is_finished());
        workers.insert(worker, task.abort_handle());
    }

    /// The worker's process has ended.
    pub(crate) fn gone(&self, worker: WorkerId) {
        let mut workers = self.workers.lock();
        if let Some(task) = workers.remove(&worker) {
            task.abort();
        }
    }

    /// Ends calls that depend on a withdrawn or expired statement, or on a lease that is over;
    /// closes their connections and forgets their credentials. Connections without a credential are
    /// checked for the tenants whose manifests have changed: nothing else withdraws them, and a
    /// tenant may have thousands of rules.
    pub(crate) fn close_what_is_withdrawn(&self, changed: &[TenantId]) {
        let state = self.vault.read();
        self.in_flight.end_where(|authority| {
            let (tenant, _) = authority::authorised(
                &state,
                &authority.tenant,
                &authority.function,
                &authority.release,
            )?;
            match &authority.secret {
                Some(secret) => self.still_usable(&state, tenant, secret),
                None => Ok(()),
            }
        });
        let holds = |tenant: &TenantId, secret: &SecretKey| {
            let tenant = state.judge.tenant(tenant);
            tenant.is_some_and(|tenant| self.still_usable(&state, tenant, secret).is_ok())
        };
        self.vault
            .kept
            .retain(|tenant, name, digest| holds(tenant, &(name.clone(), *digest)));
        self.upstreams.retain(|place| match &place.secret {
            Some(secret) => holds(&place.tenant, secret),
            None => !changed.contains(&place.tenant) || is_declared(&state, place),
        });
    }

    fn still_usable(
        &self,
        state: &State,
        tenant: &TenantState,
        (name, digest): &SecretKey,
    ) -> Result<(), Refused> {
        let (listed, _) = authority::usable(&self.vault, state, tenant, name)?;
        if listed == *digest {
            return Ok(());
        }
        let message = format!("the secret {name} was replaced while the call was under way");
        Err(Refused::new(CallCode::CredentialWithdrawn, message))
    }

    /// The state for the status page.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let mut description = self.upstreams.describe();
        let (calls, waiting) = self.admission.describe();
        description["max_calls"] = self.max_calls.into();
        description["calls"] = calls.into();
        description["waiting"] = waiting.into();
        description
    }

    async fn call(&self, caller: &Caller, incoming: Incoming) {
        let Incoming {
            head,
            body,
            mut reply,
            ..
        } = incoming;
        let request = head.fields.text(":request").map(ToOwned::to_owned);
        let answered = tokio::select! {
            answered = self.answer(caller, head, body) => answered,
            // The answer is not wanted any more: the connection is dropped, with everything under
            // way on it.
            () = reply.cancelled() => return,
        };
        match answered {
            Ok(Answered { answer, under_way }) => {
                let out = reply.send(&answer.head, answer.body.is_none());
                if let Err(refused) = deliver(answer, under_way, out).await {
                    self.record(caller, request, &refused);
                }
            }
            Err(refused) => {
                self.record(caller, request, &refused);
                let fields = Fields::default()
                    .with(":error", refused.code.name())
                    .with(":message", refused.message);
                reply
                    .send(&ResponseHead { status: 0, fields }, true)
                    .finish();
            }
        }
    }

    /// Logs a refusal in the function's own log.
    fn record(&self, caller: &Caller, request: Option<String>, refused: &Refused) {
        let Refused { code, message } = refused;
        let code = code.name();
        tracing::info!(tenant = %caller.tenant, function = %caller.function, code, "a call was refused");
        let event = Event {
            key: Some(caller.key.clone()),
            request: request.map(cut_text),
            code: code.to_owned(),
            message: cut_text(message.clone()),
            dropped: 0,
        };
        self.events.push(caller.tenant, event);
    }

    async fn answer(
        &self,
        caller: &Caller,
        head: RequestHead,
        body: casemate_channel::RecvBody,
    ) -> Result<Answered, Refused> {
        let permit = self
            .admission
            .admit(caller.tenant, head_bytes(&head))
            .await?;
        let Prepared {
            request,
            again,
            place,
            watch,
            lifetime,
            registered,
            exchange,
            permit,
        } = prepare::prepare(&self.vault, &self.in_flight, caller, &head, body, permit)?;
        let (client, pool) = self.upstreams.client(place)?;
        let mut under_way = UnderWay {
            registered,
            exchange,
            deadline: Instant::now() + lifetime,
            lifetime,
            _pool: pool,
            _permit: permit,
        };
        let turn = self.admission.turn(caller.tenant);
        let credentialed = match watch {
            Some((watch, values)) => {
                let make = |values: &Values| values.searcher(&self.vault);
                let searcher = tokio::select! {
                    searcher = self.searchers.of(values, &turn, make) => searcher?,
                    refused = under_way.must_end() => return Err(refused),
                };
                Some(Credentialed { watch, searcher })
            }
            None => None,
        };
        let mut response = tokio::select! {
            response = client.pooled.request(request) => response,
            refused = under_way.must_end() => return Err(refused),
        };
        if response.is_err()
            && under_way.exchange.was_stale()
            && let Some(again) = again
        {
            // The upstream closed a connection that had been idle (RFC 9112, section 9.3.1).
            let (request, exchange) = again.request();
            under_way.exchange = exchange;
            response = tokio::select! {
                response = client.fresh.request(request) => response,
                refused = under_way.must_end() => return Err(refused),
            };
        }
        let response = response.map_err(|error| dial::refusal(&error))?;
        let answer = Answer::new(response, credentialed, turn).await?;
        Ok(Answered { answer, under_way })
    }
}

/// Sends an answer's body to the worker, within the call's time limit.
async fn deliver(
    answer: Answer,
    mut under_way: UnderWay,
    mut out: SendBody,
) -> Result<(), Refused> {
    let delivered = match answer.body {
        None => Ok(Delivered::Whole),
        Some(body) => tokio::select! {
            delivered = body.deliver(&mut out) => delivered,
            refused = under_way.must_end() => Err(refused),
        },
    };
    match delivered {
        Ok(Delivered::Whole) => {
            under_way.exchange.answered();
            out.finish();
        }
        Ok(Delivered::Unwanted) => {}
        Err(refused) => {
            out.reset(RESET_ABANDONED);
            return Err(refused);
        }
    }
    Ok(())
}

/// Memory of a head while its call waits.
fn head_bytes(head: &RequestHead) -> usize {
    let fields = head.fields.iter();
    let fields: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
    head.method.len() + head.target.len() + fields
}

/// Whether a release of the tenant still declares calls to a place without a credential.
fn is_declared(state: &State, place: &Place) -> bool {
    let manifest = state
        .judge
        .tenant(&place.tenant)
        .and_then(|tenant| tenant.manifest.as_ref());
    let mut rules = manifest
        .into_iter()
        .flat_map(|manifest| manifest.releases.values())
        .flat_map(|release| &release.egress);
    rules.any(|rule| {
        rule.scheme == place.scheme && rule.host == place.host && rule.port == place.port
    })
}
