//! Connections that have not yet proven an identity. Their number is limited, and a full table does
//! not lock anyone out: a new connection takes the slot of an old one, so that silent connections
//! cannot keep others out.
//!
//! A connection leaves the table when it proves itself (a valid token, a known node key) and then
//! counts against [`Places`](crate::places::Places) of its own kind, which no stranger can fill.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Age that protects a connection from newer ones of a network that holds as many: a handshake and
/// a first request over a slow path. Without it, ten thousand nodes that come back at once would
/// evict each other in the middle of a handshake.
const MIN_AGE: Duration = Duration::from_secs(2);
/// Between two log messages about evicted and refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Table of the connections of one listener that have proven nothing. Shared by the listener, which
/// calls [`Self::arrive`], and by the [`Arrival`] of each connection, which frees its slot when
/// dropped.
#[derive(Debug)]
pub(crate) struct Arrivals {
    table: Mutex<Table>,
    most: usize,
    most_from_network: usize,
    /// Which listener, for the log.
    listener: &'static str,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// Waiting connections by number, so the first is the oldest.
    waiting: BTreeMap<u64, Waiting>,
    /// Numbers by network, ascending. Invariant: holds exactly the numbers of `waiting`, and no
    /// empty entry.
    by_network: HashMap<IpAddr, BTreeSet<u64>>,
    turned_away: TurnedAway,
}

#[derive(Debug)]
struct Waiting {
    network: IpAddr,
    since: Instant,
    evicted: CancellationToken,
}

/// Connections that were turned away since the last log message.
#[derive(Debug, Default, Clone, Copy)]
struct TurnedAway {
    evicted: u64,
    refused: u64,
    logged: Option<Instant>,
}

/// The slot of a connection that has proven nothing; freed when dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    arrivals: Arc<Arrivals>,
    number: u64,
    evicted: CancellationToken,
}

impl Arrivals {
    pub(crate) fn new(listener: &'static str, most: usize, most_from_network: usize) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            most,
            most_from_network,
            listener,
        })
    }

    /// Gives a new connection a slot. When the table or the share of its network is full, the
    /// oldest connection of the network that holds most is evicted. `None`: that connection is too
    /// young to be evicted for this one.
    pub(crate) fn arrive(self: &Arc<Self>, network: IpAddr) -> Option<Arrival> {
        let (now, table) = (Instant::now(), &mut *self.lock());
        let own = table.by_network.get(&network).map_or(0, BTreeSet::len);
        if own >= self.most_from_network {
            if !table.evict_from(network, own, own, now) {
                return table.refuse(self.listener, network, now);
            }
        } else if table.waiting.len() >= self.most {
            let (victim, most) = table.largest()?;
            if !table.evict_from(victim, most, own, now) {
                return table.refuse(self.listener, network, now);
            }
        }
        table.report(self.listener, network, now);
        let number = table.next;
        table.next += 1;
        let evicted = CancellationToken::new();
        let waiting = Waiting {
            network,
            since: now,
            evicted: evicted.clone(),
        };
        table.waiting.insert(number, waiting);
        table.by_network.entry(network).or_default().insert(number);
        Some(Arrival {
            arrivals: Arc::clone(self),
            number,
            evicted,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

impl Table {
    /// The network that holds most slots, and how many; of several, the one with the oldest
    /// connection.
    fn largest(&self) -> Option<(IpAddr, usize)> {
        let held = self.by_network.iter();
        held.max_by_key(|(_, numbers)| (numbers.len(), Reverse(numbers.first().copied())))
            .map(|(network, numbers)| (*network, numbers.len()))
    }

    /// Evicts the oldest connection of `victim`, which holds `held` slots, for a connection of a
    /// network that holds `own`. A network with more slots than the newcomer's will have yields at
    /// once; otherwise age decides.
    fn evict_from(&mut self, victim: IpAddr, held: usize, own: usize, now: Instant) -> bool {
        let oldest = self
            .by_network
            .get(&victim)
            .and_then(BTreeSet::first)
            .copied();
        let Some(number) = oldest else { return false };
        let is_old = self
            .waiting
            .get(&number)
            .is_some_and(|waiting| now.duration_since(waiting.since) >= MIN_AGE);
        if held <= own + 1 && !is_old {
            return false;
        }
        if let Some(waiting) = self.remove(number) {
            waiting.evicted.cancel();
        }
        self.turned_away.evicted += 1;
        true
    }

    fn remove(&mut self, number: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&number)?;
        if let Some(numbers) = self.by_network.get_mut(&waiting.network) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_network.remove(&waiting.network);
            }
        }
        Some(waiting)
    }

    fn refuse(&mut self, listener: &str, network: IpAddr, now: Instant) -> Option<Arrival> {
        self.turned_away.refused += 1;
        self.report(listener, network, now);
        None
    }

    /// Logs what was turned away, at most once in [`LOG_INTERVAL`].
    fn report(&mut self, listener: &str, network: IpAddr, now: Instant) {
        let TurnedAway {
            evicted,
            refused,
            logged,
        } = self.turned_away;
        let is_due = logged.is_none_or(|at| now.duration_since(at) >= LOG_INTERVAL);
        if evicted + refused == 0 || !is_due {
            return;
        }
        let waiting = self.waiting.len();
        tracing::warn!(
            listener,
            evicted,
            refused,
            waiting,
            newest_from = %network,
            "connections without proof of identity turned away: the table or one network's share of it is full"
        );
        self.turned_away = TurnedAway {
            logged: Some(now),
            ..TurnedAway::default()
        };
    }
}

impl Arrival {
    /// Cancelled when the connection has lost its slot and has to close.
    pub(crate) fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.arrivals.lock().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn is_evicted(arrival: &Arrival) -> bool {
        arrival.evicted().is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn silent_connections_of_few_networks_never_keep_another_network_out() {
        let arrivals = Arrivals::new("test", 8, 4);
        let silent: Vec<_> = (0..8)
            .map(|number| arrivals.arrive(network(number / 4)))
            .collect();
        let silent: Vec<_> = silent.into_iter().flatten().collect();
        assert_eq!(silent.len(), 8);
        // At once, without any waiting: the two networks hold more than their share.
        let guests: Vec<_> = (10..13)
            .filter_map(|number| arrivals.arrive(network(number)))
            .collect();
        assert_eq!(guests.len(), 3);
        assert!(!guests.iter().any(is_evicted));
        assert_eq!(
            silent.iter().filter(|arrival| is_evicted(arrival)).count(),
            3
        );
        drop((silent, guests));
        let table = arrivals.lock();
        assert!(table.waiting.is_empty() && table.by_network.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_herd_does_not_evict_itself_in_the_middle_of_a_handshake() {
        for (herd, late) in [([1, 1, 1, 1], 1), ([1, 2, 3, 4], 5)] {
            let arrivals = Arrivals::new("test", 4, 4);
            let first = herd.map(|number| arrivals.arrive(network(number)).unwrap());
            assert!(arrivals.arrive(network(late)).is_none(), "{herd:?}");
            tokio::time::advance(MIN_AGE).await;
            let next = arrivals.arrive(network(late)).unwrap();
            assert!(!is_evicted(&next));
            assert_eq!(
                first.each_ref().map(is_evicted),
                [true, false, false, false]
            );
        }
    }
}
