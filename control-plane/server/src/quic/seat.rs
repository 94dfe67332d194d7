//! The limits that a node's connection counts against, from the end of its handshake until its
//! hello. Then it replaces the node's earlier connection, so that there are as many as nodes.

use std::net::IpAddr;
use std::sync::Arc;

use casemate_trust::key::PublicKey;
use tokio_util::sync::CancellationToken;

use crate::arrivals::{Arrival, Arrivals};
use crate::places::{Place, Places};

/// The slots that connections with a known key share.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    /// Members that have not sent their hello.
    pub(super) members: Arc<Places<PublicKey>>,
    /// Unknown keys.
    pub(super) strangers: Arc<Arrivals>,
    /// Unknown keys that have shown a registered join token.
    pub(super) joining: Arc<Places<PublicKey>>,
}

/// The slot of one connection; freed when dropped.
#[derive(Debug)]
pub(super) enum Seat {
    /// A member's, or a newcomer's that has shown a registered token.
    Proven { _place: Place<PublicKey> },
    /// A stranger's, which newer ones may evict.
    Stranger(Arrival),
}

impl Seats {
    /// A slot for a connection whose handshake has proven `key`.
    pub(super) fn take(&self, key: PublicKey, is_member: bool, network: IpAddr) -> Option<Seat> {
        if is_member {
            let place = self.members.take(key)?;
            Some(Seat::Proven { _place: place })
        } else {
            self.strangers.arrive(network).map(Seat::Stranger)
        }
    }
}

impl Seat {
    /// The stranger has shown a join request that a registered token signed. Beyond the slots for
    /// such connections it stays among the strangers.
    pub(super) fn prove(&mut self, key: PublicKey, seats: &Seats) {
        if let Self::Stranger(_) = self
            && let Some(place) = seats.joining.take(key)
        {
            *self = Self::Proven { _place: place };
        }
    }

    /// Waits until the slot is lost.
    pub(super) async fn evicted(&self) {
        let evicted: Option<CancellationToken> = match self {
            Self::Stranger(arrival) => Some(arrival.evicted().clone()),
            Self::Proven { .. } => None,
        };
        match evicted {
            Some(evicted) => evicted.cancelled().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32])
    }

    fn is_evicted(seat: &Seat) -> bool {
        matches!(seat, Seat::Stranger(arrival) if arrival.evicted().is_cancelled())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_strangers_keep_out_neither_members_nor_newcomers_with_a_token() {
        let seats = Seats {
            members: Places::new(2, 1),
            strangers: Arrivals::new("test", 2, 2),
            joining: Places::new(2, 1),
        };
        let here: IpAddr = "192.0.2.1".parse().unwrap();
        let silent = [1, 2].map(|number| seats.take(key(number), false, here).unwrap());
        tokio::time::advance(Duration::from_secs(60)).await;
        let mut joining = seats.take(key(3), false, here).unwrap();
        assert!(is_evicted(&silent[0]) && !is_evicted(&silent[1]));
        joining.prove(key(3), &seats);
        tokio::time::advance(Duration::from_secs(60)).await;
        let strangers = [4, 5, 6].map(|number| seats.take(key(number), false, here));
        assert!(!is_evicted(&joining));
        let member = seats.take(key(7), true, here).unwrap();
        assert!(
            seats.take(key(7), true, here).is_none(),
            "one node has its share"
        );
        assert!(seats.take(key(8), true, here).is_some());
        drop((silent, joining, strangers, member));
    }
}
