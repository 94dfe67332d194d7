//! The shell around [`crate::places`]: connections that hold a slot, and connections that wait for
//! one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use casemate_wire::control::gateway::Shares;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::places::{Admission, Network, Place, Places};
use crate::workers::now_ms;

/// How long an accepted connection waits for a slot: as long as a request waits for a worker.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// Pause between two log records about refused connections, milliseconds: a flood must not fill the
/// log.
const REFUSED_PERIOD_MS: u64 = 10_000;

/// Hands out connection slots.
#[derive(Debug)]
pub struct Admissions {
    shares: Shares,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    places: Places<oneshot::Sender<Seat>>,
    /// Signals to the connections that may be evicted.
    evictable: HashMap<Place, Arc<Notify>>,
    refused: Refused,
}

/// Refusals since the last log record.
#[derive(Debug, Default)]
struct Refused {
    count: u64,
    logged_ms: Option<u64>,
}

/// No slot became free in time, or too many connections wait already. The connection must be
/// closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("connection limit of this network reached")]
pub struct NoPlace;

/// The slot of a connection; dropping it frees the slot.
#[derive(Debug)]
pub struct Seat {
    admissions: Arc<Admissions>,
    place: Place,
    network: Network,
    evicted: Arc<Notify>,
}

/// Reports that the first whole head of a connection has come.
#[derive(Debug, Clone)]
pub struct HeadNotice {
    admissions: Arc<Admissions>,
    place: Place,
}

impl Admissions {
    /// Makes slots for `max_connections` connections.
    pub fn new(max_connections: u32, shares: Shares) -> Arc<Self> {
        Arc::new(Self {
            shares,
            state: Mutex::new(State {
                places: Places::new(max_connections, shares.connections_per_network),
                evictable: HashMap::new(),
                refused: Refused::default(),
            }),
        })
    }

    /// Takes a slot for a connection from this address, or a position in the queue. This may evict
    /// another connection. Call it in the order in which connections arrive.
    ///
    /// # Errors
    /// There is no slot, and too many connections wait already.
    pub fn ask(self: &Arc<Self>, address: IpAddr) -> Result<Entry, NoPlace> {
        let network = Network::of(address, &self.shares);
        let mut state = self.state();
        match state.places.admit(network, now_ms()) {
            Admission::Granted { place, evicted } => {
                let evicted = evicted.and_then(|evicted| state.evictable.remove(&evicted));
                let seat = self.seat(&mut state, place, network);
                drop(state);
                evicted.into_iter().for_each(|evicted| evicted.notify_one());
                Ok(Entry::Seated(seat))
            }
            Admission::Full => {
                let (sender, receiver) = oneshot::channel();
                match state.places.wait(network, sender) {
                    Ok(()) => Ok(Entry::Waits(Waiter(receiver, self.clone()))),
                    Err(_) => Err(state.refused.count(now_ms())),
                }
            }
        }
    }

    fn seat(self: &Arc<Self>, state: &mut State, place: Place, network: Network) -> Seat {
        let evicted = Arc::new(Notify::new());
        state.evictable.insert(place, evicted.clone());
        Seat {
            admissions: self.clone(),
            place,
            network,
            evicted,
        }
    }

    /// A panic in a holder of the lock leaves consistent state: every change completes before
    /// anything can fail.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// The result of [`Admissions::ask`].
#[derive(Debug)]
pub enum Entry {
    /// A slot.
    Seated(Seat),
    /// A position in the queue.
    Waits(Waiter),
}

impl Entry {
    /// Takes the slot; waits for it up to `PLACE_WAIT`.
    ///
    /// # Errors
    /// No slot became free in time.
    pub async fn seat(self) -> Result<Seat, NoPlace> {
        match self {
            Self::Seated(seat) => Ok(seat),
            Self::Waits(mut waiter) => {
                let granted = tokio::time::timeout(PLACE_WAIT, &mut waiter.0).await;
                match granted {
                    Ok(Ok(seat)) => Ok(seat),
                    Ok(Err(_)) | Err(_) => Err(waiter.1.state().refused.count(now_ms())),
                }
            }
        }
    }
}

/// A connection in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub struct Waiter(oneshot::Receiver<Seat>, Arc<Admissions>);

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.close();
        // A seat that was granted meanwhile goes to the next connection; its drop takes the lock
        // itself.
        drop(self.0.try_recv());
        self.1.state().places.forget(|waiter| !waiter.is_closed());
    }
}

impl Refused {
    fn count(&mut self, now_ms: u64) -> NoPlace {
        self.count += 1;
        let is_due = |logged: u64| now_ms.saturating_sub(logged) >= REFUSED_PERIOD_MS;
        if self.logged_ms.is_none_or(is_due) {
            self.logged_ms = Some(now_ms);
            tracing::warn!(
                connections = std::mem::take(&mut self.count),
                "connections refused: limit of the source network or of the gateway reached"
            );
        }
        NoPlace
    }
}

impl Seat {
    /// Waits until another connection has taken this slot.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Whether another connection that could have this slot is waiting.
    pub fn is_crowded(&self) -> bool {
        self.admissions.state().places.is_crowded(self.network)
    }

    /// A notice for the reader of the connection's requests.
    pub fn head_notice(&self) -> HeadNotice {
        HeadNotice {
            admissions: self.admissions.clone(),
            place: self.place,
        }
    }
}

impl HeadNotice {
    /// The first whole head has come: the connection keeps the slot until it ends.
    pub fn head_came(&self) {
        let mut state = self.admissions.state();
        state.places.head_came(self.place);
        state.evictable.remove(&self.place);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let granted = {
            let mut state = self.admissions.state();
            state.evictable.remove(&self.place);
            let granted = state.places.release(self.place, now_ms());
            granted.map(|(waiter, place)| {
                let network = place.network();
                (waiter, self.admissions.seat(&mut state, place, network))
            })
        };
        // Not under the lock: a seat whose waiter has left is dropped here, which takes the lock.
        if let Some((waiter, seat)) = granted {
            drop(waiter.send(seat));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares = Shares {
        connections_per_network: 2,
        network_prefix_v4: 24,
        network_prefix_v6: 56,
        requests: 1,
        requests_per_tenant: 1,
    };

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn enter(admissions: &Arc<Admissions>, text: &str) -> Result<Seat, NoPlace> {
        admissions.ask(address(text))?.seat().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_head_is_evicted() {
        let admissions = Admissions::new(2, SHARES);
        let first = enter(&admissions, "10.0.1.1").await.unwrap();
        let second = enter(&admissions, "10.0.1.2").await.unwrap();
        first.head_notice().head_came();
        let third = enter(&admissions, "10.0.1.3").await.unwrap();
        second.evicted().await;
        third.head_notice().head_came();
        drop(second);
        assert_eq!(enter(&admissions, "10.0.1.4").await.unwrap_err(), NoPlace);
        drop(first);
        enter(&admissions, "10.0.1.4").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_gets_the_next_free_slot_and_one_that_left_gets_none() {
        let admissions = Admissions::new(1, SHARES);
        let seat = enter(&admissions, "10.0.1.1").await.unwrap();
        seat.head_notice().head_came();
        let wait = |address: &'static str| {
            let admissions = admissions.clone();
            tokio::spawn(async move { enter(&admissions, address).await })
        };
        let left = wait("10.0.2.1");
        let stays = wait("10.0.3.1");
        tokio::task::yield_now().await;
        assert!(seat.is_crowded());
        left.abort();
        assert!(left.await.unwrap_err().is_cancelled());
        drop(seat);
        let seat = stays.await.unwrap().unwrap();
        assert!(!seat.is_crowded());
    }
}
