//! A bounded queue that divides its capacity between keys and never blocks a sender: when it is
//! full, the key with the most items loses one. It carries records of many functions to one
//! destination, so that no function can displace the records of others.

use std::collections::{BTreeMap, VecDeque};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// The queue. Keys (`K`) must come from a small set over time, such as functions that were signed:
/// the count of a key's lost items is kept until it is reported.
#[derive(Debug)]
pub struct Queue<K, T> {
    lanes: Mutex<Lanes<K, T>>,
    filled: Notify,
}

/// An item that was taken out of the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    /// The oldest item of its key. Keys take turns.
    pub item: T,
    /// How many items of this key were lost since the last one of it was taken out.
    pub lost: u32,
}

#[derive(Debug)]
struct Lanes<K, T> {
    bound: usize,
    length: usize,
    lanes: BTreeMap<K, Lane<T>>,
    /// Keys with items in the queue, in the order of their turns.
    turns: VecDeque<K>,
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<T>,
    lost: u32,
}

impl<K: Ord + Clone, T> Queue<K, T> {
    /// Makes a queue for at most `bound` items.
    pub fn new(bound: usize) -> Self {
        Self {
            lanes: Mutex::new(Lanes {
                bound,
                length: 0,
                lanes: BTreeMap::new(),
                turns: VecDeque::new(),
            }),
            filled: Notify::new(),
        }
    }

    /// Adds an item; returns false when an item was lost, this one or another.
    pub fn push(&self, key: K, item: T) -> bool {
        let kept = self.lanes().push(key, item);
        self.filled.notify_one();
        kept
    }

    /// Takes the next item. Dropping the future loses nothing.
    pub async fn next(&self) -> Taken<T> {
        loop {
            if let Some(taken) = self.try_next() {
                return taken;
            }
            self.filled().await;
        }
    }

    /// Waits until the queue holds an item.
    pub async fn filled(&self) {
        while self.lanes().length == 0 {
            self.filled.notified().await;
        }
    }

    /// Takes the next item without waiting.
    pub fn try_next(&self) -> Option<Taken<T>> {
        self.lanes().pop()
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes<K, T>> {
        self.lanes.lock()
    }
}

impl<K: Ord + Clone, T> Lanes<K, T> {
    fn push(&mut self, key: K, item: T) -> bool {
        let mine = self.lanes.get(&key).map_or(0, |lane| lane.items.len());
        let is_full = self.length >= self.bound;
        if is_full {
            // A key with a whole share loses its item at once, so that a flood needs no search.
            let share = self.bound / (self.turns.len() + usize::from(mine == 0));
            if mine >= share {
                self.lane(key).lost += 1;
                return false;
            }
            // The queue is full, so some key has more than a share.
            if let Some(most) = self.lanes.values_mut().max_by_key(|lane| lane.items.len()) {
                most.items.pop_back();
                most.lost += 1;
                self.length -= 1;
            }
        }
        if mine == 0 {
            self.turns.push_back(key.clone());
        }
        self.lane(key).items.push_back(item);
        self.length += 1;
        !is_full
    }

    fn pop(&mut self) -> Option<Taken<T>> {
        let key = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        let item = lane.items.pop_front()?;
        let lost = std::mem::take(&mut lane.lost);
        self.length -= 1;
        if lane.items.is_empty() {
            self.lanes.remove(&key);
        } else {
            self.turns.push_back(key);
        }
        Some(Taken { item, lost })
    }

    fn lane(&mut self, key: K) -> &mut Lane<T> {
        self.lanes.entry(key).or_insert_with(|| Lane {
            items: VecDeque::new(),
            lost: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(queue: &Queue<char, u32>) -> Vec<Taken<u32>> {
        std::iter::from_fn(|| queue.try_next()).collect()
    }

    #[test]
    fn a_flood_loses_its_own_items_and_learns_how_many() {
        let queue = Queue::new(10);
        for n in 0..1000 {
            queue.push('f', n);
        }
        for n in 5000..5003 {
            assert!(!queue.push('a', n), "one item of the flood was lost for it");
        }
        for n in 1000..2000 {
            queue.push('f', n);
        }
        let taken = all(&queue);
        let quiet: Vec<_> = taken.iter().filter(|taken| taken.item >= 5000).collect();
        assert_eq!(quiet.len(), 3);
        assert!(quiet.iter().all(|taken| taken.lost == 0));
        let flood: Vec<_> = taken.iter().filter(|taken| taken.item < 5000).collect();
        assert_eq!(flood.len(), 7);
        assert_eq!(
            flood[0].lost,
            2000 - 7,
            "reported once, with the first item"
        );
        assert!(flood[1..].iter().all(|taken| taken.lost == 0));
    }

    #[test]
    fn keys_take_turns_and_each_keeps_its_order() {
        let queue = Queue::new(10);
        for (key, item) in [('a', 1), ('a', 2), ('a', 3), ('b', 4), ('c', 5), ('b', 6)] {
            assert!(queue.push(key, item));
        }
        let taken: Vec<_> = all(&queue).into_iter().map(|taken| taken.item).collect();
        assert_eq!(taken, [1, 4, 5, 2, 6, 3]);
    }

    #[test]
    fn more_keys_than_places_are_counted_too() {
        let queue = Queue::new(2);
        let kept = "abc".chars().map(|key| queue.push(key, 1));
        assert_eq!(kept.collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(all(&queue).len(), 2);
        queue.push('c', 2);
        assert_eq!(all(&queue), [Taken { item: 2, lost: 1 }]);
    }

    /// For every sequence: never more items than the bound, no item twice, and every item that is
    /// not taken out is counted as lost.
    #[test]
    fn simulation() {
        let mut lost_at_all = 0;
        for seed in 0..200u64 {
            let mut dice = seed;
            let mut roll = move |sides: u64| {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % sides
            };
            let bound = 1 + roll(12) as usize;
            let queue = Queue::new(bound);
            let (mut pushed, mut out, mut lost) = (0, 0, 0);
            let mut last = BTreeMap::new();
            let mut take = |taken: Taken<(u64, u32)>| {
                let (key, item) = taken.item;
                assert!(
                    last.insert(key, item).is_none_or(|last| last < item),
                    "seed {seed}"
                );
                (out, lost) = (out + 1, lost + taken.lost);
            };
            for _ in 0..400 {
                if roll(3) > 0 {
                    let key = roll(6).min(roll(6));
                    pushed += 1;
                    queue.push(key, (key, pushed));
                } else if let Some(taken) = queue.try_next() {
                    take(taken);
                }
                let lanes = queue.lanes();
                let held: usize = lanes.lanes.values().map(|lane| lane.items.len()).sum();
                assert!(held <= bound && held == lanes.length, "seed {seed}");
            }
            while let Some(taken) = queue.try_next() {
                take(taken);
            }
            let untold: u32 = queue.lanes().lanes.values().map(|lane| lane.lost).sum();
            assert_eq!(out + lost + untold, pushed, "seed {seed}");
            lost_at_all += lost;
        }
        assert!(
            lost_at_all > 1000,
            "the simulation must lose items: {lost_at_all}"
        );
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let queue = std::sync::Arc::new(Queue::new(1));
        let other = queue.clone();
        let waiting = tokio::spawn(async move { other.next().await });
        tokio::task::yield_now().await;
        queue.push('a', 1);
        assert_eq!(waiting.await.unwrap(), Taken { item: 1, lost: 0 });
    }
}
