//! Limits how many of a resource are used at a time, in total and by one key: an address, where
//! nothing else is known of the client, or a token.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// Bits of an IPv6 address that identify a customer's network; the customer chooses the other bits.
const V6_NETWORK_BITS: u32 = 64;

/// Bounded slots, counted by key. Shared by all who take from them; `take` gives a [`Place`], whose
/// drop frees the slot.
#[derive(Debug)]
pub(crate) struct Places<K: Eq + Hash = IpAddr> {
    taken: Mutex<Taken<K>>,
    most: usize,
    most_of_one: usize,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

/// One slot, freed when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Eq + Hash = IpAddr> {
    places: Arc<Places<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Places<K> {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        let taken = Taken {
            all: 0,
            by_key: HashMap::new(),
        };
        Arc::new(Self {
            taken: Mutex::new(taken),
            most,
            most_of_one,
        })
    }

    /// Takes a slot for `key`, if one is free.
    pub(crate) fn take(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let taken = &mut *self.taken();
        let here = taken.by_key.get(&key).copied().unwrap_or(0);
        if taken.all >= self.most || here >= self.most_of_one {
            return None;
        }
        taken.all += 1;
        taken.by_key.insert(key.clone(), here + 1);
        let places = Arc::clone(self);
        Some(Place { places, key })
    }
}

impl<K: Eq + Hash> Places<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        self.taken.lock()
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let taken = &mut *self.places.taken();
        taken.all -= 1;
        if let Some(here) = taken.by_key.get_mut(&self.key) {
            *here -= 1;
            if *here == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

/// The network that all clients behind an address share.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = address.to_bits() >> (u128::BITS - V6_NETWORK_BITS);
            Ipv6Addr::from_bits(bits << (u128::BITS - V6_NETWORK_BITS)).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_limited_and_freed_when_dropped() {
        let places = Places::new(12, 4);
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        let mut here: Vec<_> = (0..100).filter_map(|_| places.take(address(1))).collect();
        assert_eq!(here.len(), 4);
        here.extend((2..200).filter_map(|number| places.take(address(number))));
        assert_eq!(here.len(), 12);
        here.truncate(1);
        assert!(places.take(address(7)).is_some());
        drop(here);
        let taken = places.taken();
        assert!(taken.all == 0 && taken.by_key.is_empty());
    }

    #[test]
    fn one_network_is_one_address_however_it_is_written() {
        let places = Places::new(12, 1);
        for (first, second) in [
            ("2001:db8::1", "2001:db8::ffff:1"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
        ] {
            let _place = places.take(network(first.parse().unwrap())).unwrap();
            let second = network(second.parse().unwrap());
            assert!(places.take(second).is_none());
        }
        let [here, there] = ["2001:db8::1", "2001:db8:0:1::1"];
        assert_ne!(
            network(here.parse().unwrap()),
            network(there.parse().unwrap())
        );
    }
}
