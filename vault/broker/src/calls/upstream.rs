//! Connections to upstreams: a pool for each (tenant, host, credential), so that nobody's connection carries another's call.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use casemate_trust::host::HostName;
use casemate_trust::id::TenantId;
use casemate_trust::release::Scheme;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::watch;

use super::Refused;
use super::body::CallBody;
use super::dial::{Dialer, Resolving, Trust};
use super::prepare::SecretKey;
use crate::config::Config;

/// Pools at a time; the one that was unused longest goes first.
pub(super) const MAX_POOLS: usize = 1024;
/// Connections that wait for more work, in each pool, when there are descriptors enough.
pub(super) const MAX_IDLE: usize = 32;
/// How long they wait.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Largest head of an answer, bytes: it must fit a channel's head.
const MAX_HEAD_BYTES: usize = 48 * 1024;

/// What a pool belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) tenant: TenantId,
    pub(crate) scheme: Scheme,
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) secret: Option<SecretKey>,
    pub(crate) ca: Option<String>,
}

type Pool = Client<Dialer, CallBody>;

struct Entry {
    client: Pool,
    open: watch::Sender<()>,
    used: Instant,
}

/// Says when a pool has been closed.
#[derive(Debug, Clone)]
pub(crate) struct Closed(watch::Receiver<()>);

impl Closed {
    /// Waits until the pool is closed.
    pub(crate) async fn wait(&self) {
        // Nothing is ever sent: the error is the sender's end.
        let _closed = self.0.clone().changed().await;
    }
}

/// All pools.
pub(crate) struct Upstreams {
    pools: Mutex<HashMap<Place, Entry>>,
    resolving: Arc<Resolving>,
    trust: Trust,
    max_idle: usize,
}

impl Upstreams {
    pub(crate) fn new(config: &Config, max_idle: usize) -> Result<Self, String> {
        let resolving = Arc::new(Resolving::new(config)?);
        Ok(Self {
            pools: Mutex::default(),
            resolving,
            trust: Trust::new(&config.trust_anchors)?,
            max_idle,
        })
    }

    /// The pool of a place.
    pub(crate) fn client(&self, place: Place) -> Result<(Pool, Closed), Refused> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = pools.get_mut(&place) {
            entry.used = Instant::now();
            return Ok((entry.client.clone(), Closed(entry.open.subscribe())));
        }
        if pools.len() >= MAX_POOLS
            && let Some(oldest) = pools
                .iter()
                .min_by_key(|(_, entry)| entry.used)
                .map(|(place, _)| place.clone())
        {
            pools.remove(&oldest);
        }
        let tls = match place.scheme {
            Scheme::Https => Some(self.trust.client(place.ca.as_deref())?),
            Scheme::Http => None,
        };
        let dialer = Dialer::new(place.host.clone(), place.port, tls, self.resolving.clone());
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.max_idle)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
            .build(dialer);
        let (open, closed) = watch::channel(());
        pools.insert(
            place,
            Entry {
                client: client.clone(),
                open,
                used: Instant::now(),
            },
        );
        Ok((client, Closed(closed)))
    }

    /// Closes the pools for which `keep` is false: idle connections at once, calls under way with an error.
    pub(crate) fn retain(&self, keep: impl Fn(&TenantId, Option<&SecretKey>) -> bool) {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|place, _| keep(&place.tenant, place.secret.as_ref()));
    }

    /// For the status page: how many pools there are.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let with_credential = pools.keys().filter(|place| place.secret.is_some()).count();
        serde_json::json!({ "pools": pools.len(), "with_credential": with_credential })
    }
}
