//! In which order functions that wait are given workers: the tenant that was given the fewest
//! lately comes first.
//!
//! A start costs the node processor time. It is charged to the tenant whose function made it
//! necessary, and the charge is halved as time passes. So a tenant whose workers end again and
//! again, or that wakes a hundred functions at once, waits behind a tenant that needs one worker;
//! alone, it waits for nobody.

use std::collections::{BTreeMap, VecDeque};

use casemate_wire::control::{Digest, FunctionKey};

use super::Millis;

/// After this all charges are halved: some cold starts of a minute ago do not matter any more.
const HALVED_AFTER_MS: Millis = 10_000;

/// A function that waits for a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) key: FunctionKey,
    pub(super) purpose: Purpose,
}

impl Waiting {
    pub(super) const fn new(key: FunctionKey, purpose: Purpose) -> Self {
        Self { key, purpose }
    }

    pub(super) fn is_trial(&self) -> bool {
        self.purpose == Purpose::Trial
    }
}

/// What a function needs a worker for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Its callers wait: the worker gets the release that serves.
    Callers,
    /// The release that is to serve next is loaded before any caller is led to it.
    Trial,
}

/// Workers that each tenant was given lately. Bounded by the workers that can be started in a few
/// times [`HALVED_AFTER_MS`]; a tenant without a charge is not in it.
#[derive(Debug, Default)]
pub(super) struct Charges {
    starts: BTreeMap<Digest, u32>,
    halved_ms: Millis,
}

impl Charges {
    /// A function of this tenant is given a worker.
    pub(super) fn add(&mut self, tenant: Digest) {
        let starts = self.starts.entry(tenant).or_default();
        *starts = starts.saturating_add(1);
    }

    /// Time has passed.
    pub(super) fn decay(&mut self, now_ms: Millis) {
        while !self.starts.is_empty() && now_ms >= self.halved_ms + HALVED_AFTER_MS {
            self.halved_ms += HALVED_AFTER_MS;
            self.starts.retain(|_, starts| {
                *starts /= 2;
                *starts > 0
            });
        }
        if self.starts.is_empty() {
            self.halved_ms = now_ms;
        }
    }

    /// Those who wait in the order in which they are given workers: each time one of the tenant
    /// with the lowest charge, with what it would have got by then. The functions of a tenant stay
    /// in their order.
    pub(super) fn in_turn(&self, waiting: VecDeque<Waiting>) -> VecDeque<Waiting> {
        let mut queues = BTreeMap::<Digest, VecDeque<Waiting>>::new();
        for one in waiting {
            queues.entry(one.key.tenant).or_default().push_back(one);
        }
        let mut ordered = Vec::new();
        for (tenant, queue) in queues {
            let charge = self.starts.get(&tenant).copied().unwrap_or(0) as usize;
            let places = queue.into_iter().enumerate();
            ordered.extend(places.map(|(place, one)| (charge + place, one)));
        }
        // Stable: of one tenant the order stays.
        ordered.sort_by_key(|(charge, _)| *charge);
        ordered.into_iter().map(|(_, one)| one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: u8, function: usize) -> Waiting {
        let key = FunctionKey {
            tenant: [tenant; 32],
            function: format!("f{function}"),
        };
        Waiting::new(key, Purpose::Callers)
    }

    fn order(charges: &Charges, waiting: Vec<Waiting>) -> Vec<u8> {
        let ordered = charges.in_turn(waiting.into());
        ordered.iter().map(|one| one.key.tenant[0]).collect()
    }

    #[test]
    fn a_modest_tenant_comes_before_the_second_of_a_greedy_one() {
        let mut charges = Charges::default();
        let mut waiting: Vec<_> = (0..100).map(|n| key(1, n)).collect();
        waiting.push(key(2, 0));
        assert_eq!(order(&charges, waiting.clone())[..3], [1, 2, 1]);
        // What the greedy one was given counts against it, for some time.
        charges.add([1; 32]);
        assert_eq!(order(&charges, waiting.clone())[..2], [2, 1]);
        (0..9).for_each(|_| charges.add([1; 32]));
        waiting.extend((1..9).map(|n| key(2, n)));
        assert!(
            order(&charges, waiting.clone())[..9]
                .iter()
                .all(|one| *one == 2)
        );
        for halved in 1..=4 {
            charges.decay(halved * HALVED_AFTER_MS);
        }
        assert!(charges.starts.is_empty());
        assert_eq!(order(&charges, waiting)[..3], [1, 2, 1]);
    }

    #[test]
    fn alone_a_tenant_keeps_its_order() {
        let mut charges = Charges::default();
        charges.add([1; 32]);
        let waiting: VecDeque<_> = [3, 1, 2, 1].map(|n| key(1, n)).into();
        assert_eq!(charges.in_turn(waiting.clone()), waiting);
    }
}
