//! The limits that a connection of the API counts against: first the table of connections without a
//! token, and from its first request with a valid token on the slots of that token's kind.

use std::net::IpAddr;
use std::sync::Arc;

use casemate_api::token::Scope;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::arrivals::{Arrival, Arrivals};
use crate::config::ApiLimits;
use crate::places::{Place, Places, network};
use crate::plane::Actor;

/// This fraction of the slots for connections with a token is for operators only: tenants' tokens
/// cannot keep an operator out.
const OPERATORS_SHARE: usize = 4;

/// The slots of the listener, shared by all its connections.
#[derive(Debug)]
pub(super) struct Seats {
    arrivals: Arc<Arrivals>,
    operators: Arc<Places<String>>,
    others: Arc<Places<String>>,
}

/// The slot of one connection; freed when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    slot: Mutex<Slot>,
    evicted: CancellationToken,
    operators: Arc<Places<String>>,
    others: Arc<Places<String>>,
}

#[derive(Debug)]
enum Slot {
    Unproven { _arrival: Arrival },
    Proven { _place: Place<String> },
}

impl Seats {
    pub(super) fn new(limits: &ApiLimits) -> Self {
        let with_token = limits.all.saturating_sub(limits.without_token);
        let operators = (with_token / OPERATORS_SHARE).max(1);
        let others = with_token.saturating_sub(operators);
        Self {
            arrivals: Arrivals::new("api", limits.without_token, limits.from_address),
            operators: Places::new(operators, limits.of_token),
            others: Places::new(others, limits.of_token),
        }
    }

    /// Takes a slot for a new connection, if one is free.
    pub(super) fn take(&self, remote: IpAddr) -> Option<Seat> {
        let arrival = self.arrivals.arrive(network(remote))?;
        Some(Seat {
            evicted: arrival.evicted().clone(),
            slot: Mutex::new(Slot::Unproven { _arrival: arrival }),
            operators: Arc::clone(&self.operators),
            others: Arc::clone(&self.others),
        })
    }
}

impl Seat {
    /// A request on this connection has shown a valid token. Beyond the token's share the
    /// connection stays among those without a token: it is served, and newer ones may evict it.
    pub(super) fn prove(&self, actor: &Actor) {
        let Actor::Token { id, scope, .. } = actor else {
            return;
        };
        let mut slot = self.slot.lock();
        if matches!(*slot, Slot::Proven { .. }) {
            return;
        }
        let places = match scope {
            Scope::Operator => &self.operators,
            Scope::Tenant(_) | Scope::ReadOnly => &self.others,
        };
        if let Some(place) = places.take(id.clone()) {
            *slot = Slot::Proven { _place: place };
        }
    }

    /// Cancelled when the connection has lost its slot and has to close.
    pub(super) fn evicted(&self) -> &CancellationToken {
        &self.evicted
    }
}

#[cfg(test)]
mod tests {
    use casemate_trust::id::TenantId;

    use super::*;

    fn actor(number: usize, scope: Scope) -> Actor {
        Actor::Token {
            id: number.to_string(),
            label: String::new(),
            scope,
        }
    }

    fn is_proven(seat: &Seat) -> bool {
        matches!(*seat.slot.lock(), Slot::Proven { .. })
    }

    #[tokio::test]
    async fn tokens_of_tenants_fill_neither_the_operators_slots_nor_more_than_a_share() {
        let limits = ApiLimits {
            all: 40,
            without_token: 20,
            from_address: 20,
            of_token: 5,
        };
        let seats = Seats::new(&limits);
        let connect = |token: usize, scope| {
            let seat = seats.take(IpAddr::from([10, 0, 0, 1])).unwrap();
            seat.prove(&actor(token, scope));
            seat
        };
        let tenant = Scope::Tenant(TenantId([1; 32]));
        let greedy: Vec<_> = (0..10).map(|_| connect(0, tenant)).collect();
        assert_eq!(
            greedy.iter().filter(|seat| is_proven(seat)).count(),
            limits.of_token
        );
        let crowd: Vec<_> = (1..11).map(|token| connect(token, tenant)).collect();
        assert_eq!(crowd.iter().filter(|seat| is_proven(seat)).count(), 10);
        let late = connect(11, tenant);
        assert!(!is_proven(&late), "three quarters are taken");
        assert!(is_proven(&connect(12, Scope::Operator)));
    }
}
