//! Places for those of whom nothing is known yet but their address: so many at a time, and fewer from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bits of an IPv6 address that tell one customer from another; the rest is theirs to choose.
const V6_NETWORK_BITS: u32 = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct Places {
    taken: Mutex<Taken>,
    most: usize,
    most_from_address: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One place, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    address: IpAddr,
}

impl Places {
    pub(crate) fn new(most: usize, most_from_address: usize) -> Arc<Self> {
        Arc::new(Self {
            taken: Mutex::default(),
            most,
            most_from_address,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one, if there is any for this address.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        let taken = &mut *self.taken();
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.all >= self.most || here >= self.most_from_address {
            return None;
        }
        taken.all += 1;
        taken.by_address.insert(address, here + 1);
        Some(Place {
            places: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &mut *self.places.taken();
        taken.all -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// What stands for everybody behind an address.
fn network(address: IpAddr) -> IpAddr {
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
    fn places_are_few_and_free_again_when_they_are_left() {
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
        assert!(taken.all == 0 && taken.by_address.is_empty());
    }

    #[test]
    fn one_network_is_one_address_however_it_is_written() {
        let places = Places::new(12, 1);
        for (first, second) in [
            ("2001:db8::1", "2001:db8::ffff:1"),
            ("192.0.2.1", "::ffff:192.0.2.1"),
        ] {
            let _place = places.take(first.parse().unwrap()).unwrap();
            assert!(places.take(second.parse().unwrap()).is_none());
        }
        let _place = places.take("2001:db8::1".parse().unwrap()).unwrap();
        assert!(places.take("2001:db8:0:1::1".parse().unwrap()).is_some());
    }
}
