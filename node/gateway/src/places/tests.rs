use super::*;
use proptest::prelude::*;

const SHARES: Shares = Shares {
    connections_per_network: 0,
    network_prefix_v4: 24,
    network_prefix_v6: 56,
    requests: 0,
    requests_per_tenant: 0,
};

fn network(address: &str) -> Network {
    Network::of(address.parse().unwrap(), &SHARES)
}

fn granted(admission: Admission) -> (Place, Option<Place>) {
    match admission {
        Admission::Granted { place, evicted } => (place, evicted),
        Admission::Full => panic!("expected a place"),
    }
}

#[test]
fn addresses_of_one_network_count_together() {
    assert_eq!(network("192.0.2.1"), network("192.0.2.254"));
    assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.9"));
    assert_ne!(network("192.0.2.1"), network("192.0.3.1"));
    assert_eq!(network("2001:db8:0:11::1"), network("2001:db8:0:1f::9"));
    assert_ne!(network("2001:db8:0:100::1"), network("2001:db8:0:200::1"));
    assert_ne!(network("0.0.0.1"), network("::1"));
    let whole = Shares {
        network_prefix_v4: 0,
        network_prefix_v6: 255,
        ..SHARES
    };
    let of = |address: &str| Network::of(address.parse().unwrap(), &whole);
    assert_eq!(of("192.0.2.1"), of("198.51.100.1"));
    assert_ne!(of("2001:db8::1"), of("2001:db8::2"));
}

#[test]
fn a_network_keeps_to_its_share_and_leaves_the_reserve() {
    let mut places: Places<()> = Places::new(16, 6);
    let (one, two, three) = (
        network("10.0.1.1"),
        network("10.0.2.1"),
        network("10.0.3.1"),
    );
    let mut held = Vec::new();
    for network in [one, two] {
        for _ in 0..6 {
            let (place, evicted) = granted(places.admit(network, 0));
            places.head_came(place);
            assert_eq!(evicted, None);
            held.push(place);
        }
        assert_eq!(places.admit(network, 0), Admission::Full);
    }
    // 12 of 16 are held; the last two are for networks that have none.
    for _ in 0..2 {
        let (place, _) = granted(places.admit(three, 0));
        places.head_came(place);
    }
    assert_eq!(places.admit(three, 0), Admission::Full);
    for other in ["10.0.4.1", "10.0.5.1"] {
        let (place, _) = granted(places.admit(network(other), 0));
        places.head_came(place);
    }
    assert_eq!(places.admit(network("10.0.6.1"), 0), Admission::Full);
}

#[test]
fn the_youngest_connection_without_a_head_goes_but_has_a_moment_first() {
    let mut places: Places<()> = Places::new(4, 4);
    let crowd = network("10.0.1.1");
    let held: Vec<Place> = (0..4)
        .map(|n| granted(places.admit(crowd, n * 600)).0)
        .collect();
    places.head_came(held[2]);
    // At 2400 the last connection is 600 ms old, and the third has sent its head.
    let (place, evicted) = granted(places.admit(network("10.0.2.1"), 2400));
    assert_eq!(evicted, Some(held[1]));
    places.head_came(place);
    let (_, evicted) = granted(places.admit(network("10.0.3.1"), 2401));
    assert_eq!(evicted, Some(held[0]));
    // Only a young connection is left in the crowd.
    let (_, evicted) = granted(places.admit(network("10.0.4.1"), 2402));
    assert_eq!(evicted, Some(held[3]));
    assert_eq!(places.release(held[3], 2403), None);
    assert_eq!(
        places.held, 4,
        "an evicted connection frees its slot only once"
    );
}

#[test]
fn a_small_network_loses_nothing_to_a_larger_one() {
    let mut places: Places<()> = Places::new(4, 4);
    let (large, small) = (network("10.0.1.1"), network("10.0.2.1"));
    let (slow, _) = granted(places.admit(small, 0));
    for _ in 0..3 {
        let (place, _) = granted(places.admit(large, 0));
        places.head_came(place);
    }
    assert_eq!(places.admit(large, 5000), Admission::Full);
    assert_eq!(granted(places.admit(small, 5000)).1, Some(slow));
}

#[test]
fn a_free_place_goes_to_the_network_with_the_fewest() {
    let mut places: Places<u32> = Places::new(4, 3);
    let (large, small) = (network("10.0.1.1"), network("10.0.2.1"));
    let take = |places: &mut Places<u32>, network| {
        let (place, _) = granted(places.admit(network, 0));
        places.head_came(place);
        place
    };
    let held: Vec<Place> = (0..3).map(|_| take(&mut places, large)).collect();
    take(&mut places, small);
    assert_eq!(places.admit(large, 0), Admission::Full);
    places.wait(large, 1).unwrap();
    assert!(places.is_crowded(large) && !places.is_crowded(small));
    assert_eq!(places.admit(small, 0), Admission::Full);
    places.wait(small, 2).unwrap();
    places.wait(small, 3).unwrap();
    assert!(places.is_crowded(large));
    let (waiter, _) = places.release(held[0], 1).unwrap();
    assert_eq!(waiter, 2);
    places.forget(|waiter| *waiter != 3);
    let (waiter, _) = places.release(held[1], 1).unwrap();
    assert_eq!(waiter, 1);
    assert_eq!(places.release(held[2], 1), None);
}

#[test]
fn the_queue_is_bounded_for_each_network_and_in_all() {
    let mut places: Places<usize> = Places::new(1, 1);
    let (place, _) = granted(places.admit(network("10.0.0.1"), 0));
    places.head_came(place);
    let mut queued = 0;
    for n in 0..1000 {
        let network = network(&format!("10.0.{}.1", n / 200));
        queued += usize::from(places.wait(network, n).is_ok());
    }
    assert_eq!(queued, MAX_WAITING);
    let first = network("10.0.0.1");
    assert_eq!(places.shares[&first].waiting, MAX_WAITING_PER_NETWORK);
    places.forget(|_| false);
    assert_eq!(places.shares.len(), 1);
}

proptest! {
    /// In any order of events the accounts agree, no bound is exceeded, and nothing is left at
    /// the end.
    #[test]
    fn no_bound_is_ever_passed(
        steps in proptest::collection::vec((0u8..5, 0u8..4, 0usize..64), 0..300),
    ) {
        let mut places: Places<u32> = Places::new(20, 8);
        let mut held: Vec<Place> = Vec::new();
        let mut leaving: Vec<Place> = Vec::new();
        for (now_ms, (step, network, at)) in (0u64..).step_by(100).zip(steps) {
            let network = self::network(&format!("10.0.{network}.1"));
            match step {
                0 | 1 => match places.admit(network, now_ms) {
                    Admission::Granted { place, evicted } => {
                        if let Some(evicted) = evicted {
                            let at = held.iter().position(|held| *held == evicted);
                            let at = at.expect("the released connection held a slot");
                            leaving.push(held.remove(at));
                        }
                        held.push(place);
                    }
                    Admission::Full => drop(places.wait(network, 0)),
                },
                2 if !held.is_empty() => places.head_came(held[at % held.len()]),
                3 if !held.is_empty() => {
                    let place = held.remove(at % held.len());
                    held.extend(places.release(place, now_ms).map(|(_, place)| place));
                }
                _ => {
                    if let Some(place) = leaving.pop() {
                        prop_assert_eq!(places.release(place, now_ms), None);
                    }
                }
            }
            prop_assert_eq!(places.held as usize, held.len());
            prop_assert!(places.held <= 20);
            prop_assert!(places.shares.values().all(|share| share.held <= 8));
            let headless: usize = places.ranking.iter().map(|rank| rank.headless).sum();
            let of_shares: usize = places.shares.values().map(|share| share.headless.len()).sum();
            prop_assert_eq!(headless, of_shares);
        }
        places.forget(|_| false);
        for place in held.into_iter().chain(leaving) {
            prop_assert_eq!(places.release(place, 0), None);
        }
        prop_assert!(places.shares.is_empty() && places.ranking.is_empty() && places.held == 0);
    }
}
