//! Connection slots, divided between source networks. Pure: time comes in as milliseconds, and
//! evictions and grants go out as values.
//!
//! A network holds at most its share. The last eighth of all slots is a reserve for networks that
//! hold none. A connection that finds no free slot takes the slot of a connection that has not yet
//! sent a whole request head; where every candidate has sent one, the new connection waits.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use casemate_wire::control::gateway::Shares;

/// The reserve for networks without a connection: one slot in this many.
const RESERVE_PART: u32 = 8;
/// A connection this young is evicted only where no older one can be: an honest caller's head comes within a second of
/// the connection, handshakes included, milliseconds.
const GRACE_MS: u64 = 1000;
/// Accepted connections that may wait for a slot, in all. Each costs a descriptor and a task.
const MAX_WAITING: usize = 256;
/// Waiting connections of one network, so that one network cannot fill the queue.
const MAX_WAITING_PER_NETWORK: usize = 64;

/// A source network: the first bits of an address. Addresses of one network share one allotment of
/// slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    is_v6: bool,
    prefix: u128,
}

impl Network {
    /// The network of an address. An IPv4 address that is written as IPv6 is an IPv4 address.
    pub fn of(address: IpAddr, shares: &Shares) -> Self {
        let mask = |bits: u128, width: u32, prefix: u8| {
            let cut = width - u32::from(prefix).min(width);
            bits.checked_shr(cut).unwrap_or(0)
        };
        match address.to_canonical() {
            IpAddr::V4(address) => Self {
                is_v6: false,
                prefix: mask(u32::from(address).into(), 32, shares.network_prefix_v4),
            },
            IpAddr::V6(address) => Self {
                is_v6: true,
                prefix: mask(address.into(), 128, shares.network_prefix_v6),
            },
        }
    }
}

/// A slot that a connection holds. Ordered by age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    since_ms: u64,
    number: u64,
    network: Network,
}

impl Place {
    /// The network that holds it.
    pub fn network(self) -> Network {
        self.network
    }
}

/// The result for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The connection has this slot; the connection in `evicted` has lost its own and must be
    /// closed.
    Granted {
        /// The slot of the new connection.
        place: Place,
        /// The evicted connection.
        evicted: Option<Place>,
    },
    /// No slot is free; the connection may wait: see [`Places::wait`].
    Full,
}

/// The slots of one network.
#[derive(Debug, Default)]
struct Share {
    held: u32,
    waiting: usize,
    /// Slots of connections that have not sent a whole head yet, oldest first.
    headless: BTreeSet<Place>,
}

/// Networks in the order of their connections without a head, then of all their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    headless: usize,
    held: u32,
    network: Network,
}

impl Share {
    fn rank(&self, network: Network) -> Rank {
        Rank {
            headless: self.headless.len(),
            held: self.held,
            network,
        }
    }
}

/// All connection slots. `W` is a connection that waits for one.
///
/// `admit`, `head_came`, `release` and `wait` change the state and return the consequences;
/// `is_crowded` is a getter.
#[derive(Debug)]
pub struct Places<W> {
    total: u32,
    per_network: u32,
    reserve: u32,
    held: u32,
    shares: HashMap<Network, Share>,
    /// Networks with connections without a head; the last network is the first that must yield a
    /// slot.
    ranking: BTreeSet<Rank>,
    /// Evicted connections that have not ended yet: their slots belong to others already.
    leaving: HashSet<Place>,
    waiting: VecDeque<(Network, W)>,
    next: u64,
}

impl<W> Places<W> {
    /// All slots free. Each bound is at least one.
    pub fn new(total: u32, per_network: u32) -> Self {
        let total = total.max(1);
        Self {
            total,
            per_network: per_network.clamp(1, total),
            reserve: total / RESERVE_PART,
            held: 0,
            shares: HashMap::new(),
            ranking: BTreeSet::new(),
            leaving: HashSet::new(),
            waiting: VecDeque::new(),
            next: 0,
        }
    }

    /// Admits a connection from this network, if it can have a slot.
    pub fn admit(&mut self, network: Network, now_ms: u64) -> Admission {
        let evicted = if self.has_room(network) {
            None
        } else if let Some(evicted) = self.evictable(network, now_ms) {
            self.take_back(evicted);
            self.leaving.insert(evicted);
            Some(evicted)
        } else {
            return Admission::Full;
        };
        let place = self.take(network, now_ms);
        Admission::Granted { place, evicted }
    }

    /// Queues a connection that was not admitted.
    ///
    /// # Errors
    /// The queue is full, or the network's part of it; the connection is given back and must be
    /// closed.
    pub fn wait(&mut self, network: Network, waiter: W) -> Result<(), W> {
        let share = self.shares.entry(network).or_default();
        if self.waiting.len() >= MAX_WAITING || share.waiting >= MAX_WAITING_PER_NETWORK {
            self.forget_if_empty(network);
            return Err(waiter);
        }
        share.waiting += 1;
        self.waiting.push_back((network, waiter));
        Ok(())
    }

    /// A whole request head has come on this connection: from now on the connection keeps its place until it ends.
    pub fn head_came(&mut self, place: Place) {
        self.change(place.network, |share| {
            share.headless.remove(&place);
        });
    }

    /// A connection has ended. Its slot goes to a waiting connection that may have it: of the
    /// network with the fewest slots first, and there to the one that has waited longest.
    pub fn release(&mut self, place: Place, now_ms: u64) -> Option<(W, Place)> {
        if self.leaving.remove(&place) {
            return None;
        }
        self.take_back(place);
        let next = (0..self.waiting.len())
            .filter(|at| self.has_room(self.waiting[*at].0))
            .min_by_key(|at| self.held_by(self.waiting[*at].0))?;
        let (network, waiter) = self.waiting.remove(next)?;
        if let Some(share) = self.shares.get_mut(&network) {
            share.waiting -= 1;
        }
        Some((waiter, self.take(network, now_ms)))
    }

    /// Drops the connections in the queue that no longer wait.
    pub fn forget(&mut self, is_waiting: impl Fn(&W) -> bool) {
        for (network, waiter) in std::mem::take(&mut self.waiting) {
            if is_waiting(&waiter) {
                self.waiting.push_back((network, waiter));
                continue;
            }
            if let Some(share) = self.shares.get_mut(&network) {
                share.waiting -= 1;
            }
            self.forget_if_empty(network);
        }
    }

    /// Whether a connection waits that could have the slot of a connection of this network.
    pub fn is_crowded(&self, network: Network) -> bool {
        self.waiting
            .iter()
            .any(|(waits, _)| *waits == network || self.held_by(*waits) < self.per_network)
    }

    fn held_by(&self, network: Network) -> u32 {
        self.shares.get(&network).map_or(0, |share| share.held)
    }

    fn has_room(&self, network: Network) -> bool {
        let mine = self.held_by(network);
        let open_to_network = if mine == 0 {
            self.total
        } else {
            self.total - self.reserve
        };
        mine < self.per_network && self.held < open_to_network
    }

    /// The connection that yields its slot to a new one of `network`: the youngest without a
    /// complete head, in the network that has most of these. A network at its share yields one of
    /// its own.
    fn evictable(&self, network: Network, now_ms: u64) -> Option<Place> {
        let mine = self.held_by(network);
        let from = if mine >= self.per_network {
            network
        } else {
            self.ranking.last()?.network
        };
        if from != network && self.held_by(from) <= mine {
            return None;
        }
        let headless = &self.shares.get(&from)?.headless;
        // Slots are ordered by age: those within their grace time come last and are skipped at
        // once.
        let first_young = Place {
            since_ms: (now_ms + 1).saturating_sub(GRACE_MS),
            number: 0,
            network: Network {
                is_v6: false,
                prefix: 0,
            },
        };
        let youngest_old = headless.range(..first_young).next_back();
        youngest_old.or_else(|| headless.first()).copied()
    }

    fn take(&mut self, network: Network, now_ms: u64) -> Place {
        let place = Place {
            since_ms: now_ms,
            number: self.next,
            network,
        };
        self.next += 1;
        self.held += 1;
        self.shares.entry(network).or_default();
        self.change(network, |share| {
            share.held += 1;
            share.headless.insert(place);
        });
        place
    }

    fn take_back(&mut self, place: Place) {
        self.held -= 1;
        self.change(place.network, |share| {
            share.held -= 1;
            share.headless.remove(&place);
        });
        self.forget_if_empty(place.network);
    }

    /// Updates the ranking of networks after a change of their shares.
    fn change(&mut self, network: Network, change: impl FnOnce(&mut Share)) {
        let Some(share) = self.shares.get_mut(&network) else {
            return;
        };
        self.ranking.remove(&share.rank(network));
        change(share);
        if !share.headless.is_empty() {
            self.ranking.insert(share.rank(network));
        }
    }

    fn forget_if_empty(&mut self, network: Network) {
        let is_empty = |share: &Share| share.held == 0 && share.waiting == 0;
        if self.shares.get(&network).is_some_and(is_empty) {
            self.shares.remove(&network);
        }
    }
}

#[cfg(test)]
mod tests;
