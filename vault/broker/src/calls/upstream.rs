//! Connections to upstreams: a pool for each (tenant, host, credential), so that no connection
//! carries calls of different owners.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use casemate_trust::host::HostName;
use casemate_trust::id::TenantId;
use casemate_trust::release::Scheme;
use casemate_wire::CallCode;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::authority::SecretKey;
use super::body::CallBody;
use super::dial::{Dialer, Trust};
use super::refused::Refused;
use super::resolve::Resolving;
use crate::config::Config;

/// Most pools at a time: more than calls, so that one can always be dropped.
pub(super) const MAX_POOLS: usize = 1024;
/// Most pools of one tenant at a time: a function that calls many hosts displaces its own pools.
const MAX_POOLS_OF_A_TENANT: usize = 64;
/// Idle connections in each pool, if there are enough descriptors.
pub(super) const MAX_IDLE: usize = 32;
/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Largest head of an answer, bytes: it must fit into a channel's head.
const MAX_HEAD_BYTES: usize = 48 * 1024;
/// Bytes that an upstream may send on one HTTP/2 stream before the function reads them: the window
/// of a channel's stream.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Bytes that an upstream may send on all streams of a connection: four calls at full speed.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// The smallest value that the protocol allows (RFC 9113, section 4.2), because one large frame
/// would delay other calls.
const MAX_FRAME_BYTES: u32 = 16 * 1024;
/// Bytes of a request's body that may wait for an HTTP/2 upstream.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// HPACK's table for the heads of answers: the protocol's default, which a peer could otherwise ask
/// to exceed.
const HEADER_TABLE_BYTES: u32 = 4096;
/// Reset streams of a connection that are still remembered.
const MAX_RESET_STREAMS: usize = 64;

/// The identity of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) tenant: TenantId,
    pub(crate) scheme: Scheme,
    pub(crate) host: HostName,
    pub(crate) port: u16,
    pub(crate) secret: Option<SecretKey>,
    pub(crate) ca: Option<String>,
    /// The private networks of the tenant's egress ceiling; the node's own if the tenant has none.
    /// A changed ceiling is another place, so that no connection outlives the ceiling that allowed
    /// it.
    pub(crate) private: Option<Vec<IpNet>>,
}

/// The clients for one place.
#[derive(Clone)]
pub(crate) struct Pool {
    /// Uses an idle connection, or a new one.
    pub(super) pooled: Client<Dialer, CallBody>,
    /// Uses a new connection that carries nothing else.
    pub(super) fresh: Client<Dialer, CallBody>,
}

struct Entry {
    client: Pool,
    open: watch::Sender<()>,
    used: Instant,
}

impl Entry {
    /// Whether a call is under way: each call holds a receiver.
    fn is_in_use(&self) -> bool {
        self.open.receiver_count() > 0
    }
}

/// Held by a call, which marks its pool as in use.
#[derive(Debug)]
pub(crate) struct InUse {
    _open: watch::Receiver<()>,
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
        let resolving = Arc::new(Resolving::new(config));
        Ok(Self {
            pools: Mutex::default(),
            resolving,
            trust: Trust::new(&config.trust_anchors)?,
            max_idle,
        })
    }

    /// The pool of a place.
    pub(crate) fn client(&self, place: Place) -> Result<(Pool, InUse), Refused> {
        let mut pools = self.pools.lock();
        if let Some(entry) = pools.get_mut(&place) {
            entry.used = Instant::now();
            let in_use = InUse {
                _open: entry.open.subscribe(),
            };
            return Ok((entry.client.clone(), in_use));
        }
        make_room(&mut pools, &place.tenant)?;
        let tls = match place.scheme {
            Scheme::Https => Some(self.trust.client(place.ca.as_deref())?),
            Scheme::Http => None,
        };
        let dialer = Dialer::new(
            (place.host.clone(), place.port),
            tls,
            self.resolving.clone(),
            (place.tenant, place.private.clone()),
        );
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(self.max_idle)
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .http2_max_header_list_size(MAX_HEAD_BYTES as u32)
            .http2_adaptive_window(false)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_frame_size(MAX_FRAME_BYTES)
            .http2_max_send_buf_size(SEND_BUFFER_BYTES)
            .http2_header_table_size(HEADER_TABLE_BYTES)
            .http2_max_concurrent_reset_streams(MAX_RESET_STREAMS);
        let client = Pool {
            pooled: builder.build(dialer.clone()),
            fresh: builder.pool_max_idle_per_host(0).build(dialer),
        };
        let (open, receiver) = watch::channel(());
        pools.insert(
            place,
            Entry {
                client: client.clone(),
                open,
                used: Instant::now(),
            },
        );
        Ok((client, InUse { _open: receiver }))
    }

    /// Drops the pools for which `keep` is false. Their idle connections close at once; those of
    /// calls under way close when the calls end.
    pub(crate) fn retain(&self, keep: impl Fn(&Place) -> bool) {
        let mut pools = self.pools.lock();
        pools.retain(|place, _| keep(place));
    }

    /// For the status page: the number of pools.
    pub(crate) fn describe(&self) -> serde_json::Value {
        let pools = self.pools.lock();
        let with_credential = pools.keys().filter(|place| place.secret.is_some()).count();
        serde_json::json!({ "pools": pools.len(), "with_credential": with_credential })
    }
}

/// Makes room for one more pool of this tenant. Pools with a call under way stay. If all tenants
/// together have too many, the tenant with most loses one.
fn make_room(pools: &mut HashMap<Place, Entry>, tenant: &TenantId) -> Result<(), Refused> {
    let mut held: HashMap<TenantId, usize> = HashMap::new();
    for place in pools.keys() {
        *held.entry(place.tenant).or_default() += 1;
    }
    let own = held.get(tenant).copied().unwrap_or(0);
    let whose = if own >= MAX_POOLS_OF_A_TENANT {
        Some(*tenant)
    } else if pools.len() >= MAX_POOLS {
        None
    } else {
        return Ok(());
    };
    let idle = pools
        .iter()
        .filter(|(place, entry)| {
            whose.is_none_or(|tenant| place.tenant == tenant) && !entry.is_in_use()
        })
        .max_by_key(|(place, entry)| (held[&place.tenant], std::cmp::Reverse(entry.used)))
        .map(|(place, _)| place.clone());
    let idle = idle.ok_or_else(|| {
        let full = match whose {
            Some(_) => format!("the tenant has calls in flight to {MAX_POOLS_OF_A_TENANT} hosts"),
            None => format!("calls to {MAX_POOLS} hosts are in flight"),
        };
        Refused::new(
            CallCode::TooManyUpstreams,
            format!("{full} on this node, the maximum; retry when some have ended"),
        )
    })?;
    pools.remove(&idle);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams() -> Upstreams {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault.toml");
        let settings = "trust_anchors = []\n[resolver]\nservers = [\"127.0.0.1\"]\n";
        std::fs::write(&file, settings).unwrap();
        Upstreams::new(&Config::read(&file, folder.path()).unwrap(), MAX_IDLE).unwrap()
    }

    fn place(tenant: u8, host: usize) -> Place {
        Place {
            tenant: TenantId([tenant; 32]),
            scheme: Scheme::Http,
            host: format!("h{host}.test").parse().unwrap(),
            port: 80,
            secret: None,
            ca: None,
            private: None,
        }
    }

    fn held(upstreams: &Upstreams, tenant: u8) -> usize {
        let pools = upstreams.pools.lock();
        let own = pools
            .keys()
            .filter(|place| place.tenant == TenantId([tenant; 32]));
        own.count()
    }

    #[tokio::test]
    async fn a_tenant_with_many_hosts_makes_room_among_its_own_and_never_closes_a_call_under_way() {
        let upstreams = upstreams();
        let (_, neighbour) = upstreams.client(place(1, 0)).unwrap();
        let (_, first) = upstreams.client(place(2, 0)).unwrap();
        for host in 1..3 * MAX_POOLS_OF_A_TENANT {
            upstreams.client(place(2, host)).unwrap();
        }
        assert_eq!(
            (held(&upstreams, 1), held(&upstreams, 2)),
            (1, MAX_POOLS_OF_A_TENANT)
        );
        for in_use in [&neighbour, &first] {
            let is_open = in_use._open.has_changed().is_ok();
            assert!(is_open, "the pool of a call under way was dropped");
        }
        let busy: Vec<_> = (1..MAX_POOLS_OF_A_TENANT)
            .map(|host| upstreams.client(place(2, 1000 + host)).unwrap())
            .collect();
        let refused = upstreams
            .client(place(2, 5000))
            .err()
            .map(|refused| refused.code);
        assert_eq!(refused, Some(CallCode::TooManyUpstreams));
        drop(busy);
        assert!(upstreams.client(place(2, 5000)).is_ok());
    }

    #[tokio::test]
    async fn with_too_many_pools_the_tenant_with_the_most_loses_one() {
        let upstreams = upstreams();
        let many = (MAX_POOLS / MAX_POOLS_OF_A_TENANT) as u8;
        upstreams.client(place(0, 0)).unwrap();
        for tenant in 1..=many {
            for host in 0..MAX_POOLS_OF_A_TENANT {
                upstreams.client(place(tenant, host)).unwrap();
            }
        }
        assert_eq!(held(&upstreams, 0), 1);
        assert_eq!(upstreams.pools.lock().len(), MAX_POOLS);
    }
}
