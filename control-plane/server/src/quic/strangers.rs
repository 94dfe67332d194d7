//! Keys that nobody knows may ask to join: a few at a time, fewer from one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// At a time.
const MAX_STRANGERS: usize = 128;
/// At a time from one address.
const MAX_FROM_ADDRESS: usize = 16;

/// Those who are here now.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    strangers: Arc<Strangers>,
    address: IpAddr,
}

impl Strangers {
    /// Lets one in, if there is room.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Stranger> {
        let mut by_address = self
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_address.values().sum();
        let here = by_address.entry(address).or_default();
        if all >= MAX_STRANGERS || *here >= MAX_FROM_ADDRESS {
            by_address.retain(|_, count| *count > 0);
            return None;
        }
        *here += 1;
        Some(Stranger {
            strangers: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut by_address = self
            .strangers
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_address.get_mut(&self.address) {
            *count -= 1;
        }
        by_address.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_few_and_leave_room_when_they_go() {
        let strangers = Arc::new(Strangers::default());
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        let mut here: Vec<_> = (0..100)
            .filter_map(|_| strangers.enter(address(1)))
            .collect();
        assert_eq!(here.len(), MAX_FROM_ADDRESS);
        here.extend((2..200).filter_map(|number| strangers.enter(address(number))));
        assert_eq!(here.len(), MAX_STRANGERS);
        here.truncate(1);
        assert!(strangers.enter(address(7)).is_some());
        drop(here);
        assert!(strangers.by_address.lock().unwrap().is_empty());
    }
}
