//! Resolves names to addresses, and checks which addresses may be dialled. Each tenant has a
//! resolver of its own, with its own cache and bounds: one tenant's lookups, however slow, delay no
//! lookup of another, and no tenant can infer from the time of a lookup what another has looked up.

use std::collections::{BTreeMap, HashMap};
use std::future::Future as _;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use casemate_trust::host::HostName;
use casemate_trust::id::TenantId;
use casemate_vault_core::address::dialable;
use casemate_wire::CallCode;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::system_conf::read_system_conf;
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::refused::Refused;
use crate::config::Config;

/// Time limit for resolving a name, waiting included.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried, in order.
const MAX_ADDRESSES: usize = 4;
/// Most lookups of a tenant at once; further ones wait.
const MAX_LOOKUPS: usize = 16;
/// Most cached answers of a tenant. A name has two: its IPv4 and its IPv6 addresses.
const MAX_ANSWERS: u64 = 256;
/// Questions to the name servers that a tenant may cause at once ...
const BURST: u32 = 100;
/// ... and the time after which it may cause one more.
const PERIOD: Duration = Duration::from_millis(50);
/// Most resolvers that are kept for tenants without a lookup under way.
const MAX_IDLE_RESOLVERS: usize = 256;

/// The resolvers of all tenants. The calls own it; each lookup names its tenant.
pub(crate) struct Resolving {
    servers: ResolverConfig,
    options: ResolverOpts,
    /// Names that are resolved without a name server.
    hosts: BTreeMap<String, Vec<IpAddr>>,
    allowed: Vec<IpNet>,
    tenants: Mutex<HashMap<TenantId, Entry>>,
}

struct Entry {
    asking: Arc<Asking>,
    used: Instant,
}

impl Resolving {
    pub(crate) fn new(config: &Config) -> Self {
        let servers = &config.resolver.servers;
        let (servers, options) = if servers.is_empty() {
            read_system_conf().unwrap_or_else(|error| {
                // A machine without resolv.conf still serves functions that make no calls.
                tracing::warn!(%error, "the machine's resolver cannot be read; only names in `resolver.hosts` resolve");
                Default::default()
            })
        } else {
            let servers = servers
                .iter()
                .map(|ip| NameServerConfig::udp_and_tcp(*ip))
                .collect();
            let servers = ResolverConfig::from_parts(None, vec![], servers);
            (servers, ResolverOpts::default())
        };
        Self::with(
            servers,
            options,
            config.resolver.hosts.clone(),
            config.private_addresses.clone(),
        )
    }

    fn with(
        servers: ResolverConfig,
        mut options: ResolverOpts,
        hosts: BTreeMap<String, Vec<IpAddr>>,
        allowed: Vec<IpNet>,
    ) -> Self {
        options.cache_size = MAX_ANSWERS;
        Self {
            servers,
            options,
            hosts,
            allowed,
            tenants: Mutex::default(),
        }
    }

    /// The addresses of a host that may be dialled: public ones, and those of the tenant's private
    /// networks or, for a tenant without an egress ceiling, of the node's.
    pub(crate) async fn addresses(
        &self,
        tenant: &TenantId,
        host: &HostName,
        private: Option<&[IpNet]>,
    ) -> Result<Vec<IpAddr>, Refused> {
        let resolved = match (host.as_ip(), self.hosts.get(host.as_str())) {
            (Some(address), _) => vec![address],
            (None, Some(addresses)) => addresses.clone(),
            (None, None) => {
                let found = match self.asking(tenant) {
                    Ok(asking) => asking.ask(host).await,
                    Err(why) => Err(why),
                };
                found.map_err(|why| {
                    Refused::new(
                        CallCode::UpstreamDns,
                        format!("the name {host} cannot be resolved: {why}"),
                    )
                })?
            }
        };
        let mut may = dialable(&resolved, private.unwrap_or(&self.allowed));
        may.truncate(MAX_ADDRESSES);
        if may.is_empty() {
            let message = format!("{host} has no public address, and the operator allows no other");
            return Err(Refused::new(CallCode::AddressDenied, message));
        }
        Ok(may)
    }

    /// The tenant's resolver. If there are too many idle resolvers, the least recently used one is
    /// dropped.
    fn asking(&self, tenant: &TenantId) -> Result<Arc<Asking>, String> {
        let tenants = &mut *self.tenants.lock();
        if let Some(entry) = tenants.get_mut(tenant) {
            entry.used = Instant::now();
            return Ok(entry.asking.clone());
        }
        let idle = || {
            tenants
                .iter()
                .filter(|(_, entry)| Arc::strong_count(&entry.asking) == 1)
        };
        if idle().count() >= MAX_IDLE_RESOLVERS
            && let Some(oldest) = idle().min_by_key(|(_, entry)| entry.used)
        {
            let oldest = *oldest.0;
            tenants.remove(&oldest);
        }
        let asking = Arc::new(Asking::new(self.servers.clone(), self.options.clone())?);
        let entry = Entry {
            asking: asking.clone(),
            used: Instant::now(),
        };
        tenants.insert(*tenant, entry);
        Ok(asking)
    }
}

/// One tenant's resolver.
struct Asking {
    resolver: TokioResolver,
    places: Semaphore,
    pace: Mutex<Pace>,
}

impl Asking {
    fn new(servers: ResolverConfig, options: ResolverOpts) -> Result<Self, String> {
        let resolver = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| format!("the resolver cannot start: {error}"))?;
        Ok(Self {
            resolver,
            places: Semaphore::new(MAX_LOOKUPS),
            pace: Mutex::default(),
        })
    }

    async fn ask(&self, host: &HostName) -> Result<Vec<IpAddr>, String> {
        let found = tokio::time::timeout(TIMEOUT, self.ask_in_turn(host)).await;
        found.unwrap_or_else(|_| {
            Err(format!(
                "no answer in time; a tenant has {MAX_LOOKUPS} lookups under way at most, and {} questions \
                 a second for long",
                1000 / PERIOD.as_millis()
            ))
        })
    }

    async fn ask_in_turn(&self, host: &HostName) -> Result<Vec<IpAddr>, String> {
        let _place = self.places.acquire().await.map_err(|e| e.to_string())?;
        let due = self.pace().due(Instant::now());
        tokio::time::sleep_until(due).await;
        // Fully qualified, so that no search domain of the machine applies.
        let mut lookup = pin!(self.resolver.lookup_ip(format!("{host}.")));
        // A cached answer is ready at the first poll; everything else is a question to the name
        // servers.
        let at_once = std::future::poll_fn(|context| Poll::Ready(lookup.as_mut().poll(context)));
        let found = match at_once.await {
            Poll::Ready(found) => found,
            Poll::Pending => {
                self.pace().spend(Instant::now());
                lookup.await
            }
        };
        found
            .map(|found| found.iter().collect())
            .map_err(|error| error.to_string())
    }

    fn pace(&self) -> parking_lot::MutexGuard<'_, Pace> {
        self.pace.lock()
    }
}

/// Allows [`BURST`] at once, and one more in each [`PERIOD`].
#[derive(Debug, Default)]
struct Pace {
    /// When the whole budget will be available again.
    whole: Option<Instant>,
}

impl Pace {
    /// The earliest time of the next question.
    fn due(&self, now: Instant) -> Instant {
        self.whole
            .and_then(|whole| (whole + PERIOD).checked_sub(PERIOD * BURST))
            .map_or(now, |due| due.max(now))
    }

    fn spend(&mut self, now: Instant) {
        self.whole = Some(self.whole.map_or(now, |whole| whole.max(now)) + PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_resolver::config::ConnectionConfig;
    use tokio::net::UdpSocket;

    use super::*;

    const GREEDY: TenantId = TenantId([1; 32]);
    const MODEST: TenantId = TenantId([2; 32]);

    /// A name server that answers every question except for names that begin with `silent`, and
    /// counts them all.
    async fn name_server() -> (Arc<Resolving>, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let questions = Arc::new(AtomicUsize::new(0));
        let counted = questions.clone();
        tokio::spawn(async move {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                counted.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&packet[..length]) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        let connection = |mut connection: ConnectionConfig| {
            connection.port = port;
            connection
        };
        let mut server = NameServerConfig::udp_and_tcp([127, 0, 0, 1].into());
        server.connections = server.connections.into_iter().map(connection).collect();
        let servers = ResolverConfig::from_parts(None, vec![], vec![server]);
        let resolving = Resolving::with(servers, ResolverOpts::default(), BTreeMap::new(), vec![]);
        (Arc::new(resolving), questions)
    }

    /// RFC 1035, 4.1: the question unchanged, and one record of the requested type.
    fn answer(packet: &[u8]) -> Option<Vec<u8>> {
        let (name, labels) = (&packet[12..], &packet[13..]);
        if labels.starts_with(b"silent") {
            return None;
        }
        let end = 12 + name.iter().position(|byte| *byte == 0)? + 5;
        let kind = packet[end - 3];
        let mut answer = packet[..end].to_vec();
        answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
        match kind {
            1 => answer.extend([4, 93, 184, 216, 34]),
            _ => answer.extend([&[16, 0x26, 6, 0x28, 0, 2, 0x20][..], &[0; 9], &[1]].concat()),
        }
        Some(answer)
    }

    fn host(name: &str) -> HostName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn a_tenant_whose_names_are_not_answered_delays_no_other() {
        let (resolving, questions) = name_server().await;
        let greedy: Vec<_> = (0..300)
            .map(|count| {
                let resolving = resolving.clone();
                tokio::spawn(async move {
                    let host = host(&format!("silent{count}.test"));
                    resolving.addresses(&GREEDY, &host, None).await
                })
            })
            .collect();
        while questions.load(Ordering::SeqCst) < MAX_LOOKUPS {
            tokio::task::yield_now().await;
        }
        let found = resolving.addresses(&MODEST, &host("api.test"), None).await;
        assert!(!found.unwrap().is_empty());
        let places = &resolving.asking(&GREEDY).unwrap().places;
        assert_eq!(places.available_permits(), 0);
        greedy.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn no_tenant_is_answered_from_the_cache_of_another() {
        let (resolving, questions) = name_server().await;
        let host = host("api.test");
        for (tenant, asked) in [(GREEDY, 2), (GREEDY, 2), (MODEST, 4), (MODEST, 4)] {
            resolving.addresses(&tenant, &host, None).await.unwrap();
            assert_eq!(questions.load(Ordering::SeqCst), asked);
        }
    }

    #[tokio::test]
    async fn resolvers_are_bounded_and_one_in_use_stays() {
        let (resolving, _) = name_server().await;
        let used = resolving.asking(&GREEDY).unwrap();
        for number in 0..2 * MAX_IDLE_RESOLVERS {
            let mut id = [3; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            resolving.asking(&TenantId(id)).unwrap();
        }
        let again = resolving.asking(&GREEDY).unwrap();
        assert!(Arc::ptr_eq(&used, &again));
        let kept = resolving.tenants.lock().len();
        assert_eq!(kept, MAX_IDLE_RESOLVERS + 1);
    }

    #[test]
    fn a_burst_and_then_one_in_each_period() {
        let begin = Instant::now();
        let mut pace = Pace::default();
        for _ in 0..BURST {
            assert_eq!(pace.due(begin), begin);
            pace.spend(begin);
        }
        assert_eq!(pace.due(begin), begin + PERIOD);
        pace.spend(begin + PERIOD);
        assert_eq!(pace.due(begin + PERIOD), begin + 2 * PERIOD);
        let later = begin + PERIOD * (2 * BURST);
        assert_eq!(pace.due(later), later);
    }
}
