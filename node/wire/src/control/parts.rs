//! Lists that may be too long for one message. They are sent in parts, and count only as a whole:
//! half of a plan would withdraw the other half.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// Bytes of items in a part: with the head and one item more, a part is still well below the bound
/// of any message with parts.
const PART_BYTES: usize = 128 * 1024;

/// A value that is sent in parts: a list of items, and a small head that is the same in each part.
pub trait Whole: Clone + PartialEq + Debug {
    /// An item of the list.
    type Item: Serialize + Debug;

    /// The list. Without its items, `self` is the head.
    fn items(&mut self) -> &mut Vec<Self::Item>;
}

/// Some of the items. Nothing else is sent on the channel between the parts of a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part<W> {
    /// The head, with the items of this part.
    pub of: W,
    /// Number of items in the earlier parts; 0 begins a new whole, whatever came before.
    pub before: u32,
    /// Number of items of the whole.
    pub total: u32,
}

impl<W: Whole> Part<W> {
    /// Cuts a whole into parts, at least one, in order.
    pub fn cut(mut whole: W) -> Vec<Self> {
        let items = std::mem::take(whole.items());
        let total = count(items.len());
        let begin = |before| Self {
            of: whole.clone(),
            before,
            total,
        };
        let (mut parts, mut part, mut bytes) = (Vec::new(), begin(0), 0);
        for (before, item) in items.into_iter().enumerate() {
            let size = size(&item);
            if bytes > 0 && bytes + size > PART_BYTES {
                parts.push(std::mem::replace(&mut part, begin(count(before))));
                bytes = 0;
            }
            bytes += size;
            part.of.items().push(item);
        }
        parts.push(part);
        parts
    }
}

fn count(items: usize) -> u32 {
    u32::try_from(items).unwrap_or(u32::MAX)
}

/// The size of an item's encoding, bytes. An item that cannot be encoded fails when it is sent.
pub fn size<T: Serialize>(item: &T) -> usize {
    postcard::serialize_with_flavor(item, postcard::ser_flavors::Size::default()).unwrap_or(0)
}

/// Why a part was refused; the earlier parts of its whole are discarded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// Parts are missing, or belong to another whole.
    #[error("the part does not follow what came before")]
    Order,
    /// The whole has too many items.
    #[error("expected at most {most} items, got {got}")]
    TooMany {
        /// The bound.
        most: u32,
        /// The number that came, or was announced.
        got: u32,
    },
}

/// Puts parts together again.
#[derive(Debug)]
pub struct Arriving<W: Whole> {
    most: u32,
    unfinished: Option<Unfinished<W>>,
}

#[derive(Debug)]
struct Unfinished<W: Whole> {
    head: W,
    items: Vec<W::Item>,
    total: u32,
}

impl<W: Whole> Arriving<W> {
    /// Accepts wholes of at most `most` items, which bounds the memory: each item has come in a
    /// message.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            unfinished: None,
        }
    }

    /// Takes the next part; returns the whole with the last one.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn take(&mut self, part: Part<W>) -> Result<Option<W>, PartError> {
        let Part {
            of: mut head,
            before,
            total,
        } = part;
        let items = std::mem::take(head.items());
        let follows = |so_far: &Unfinished<W>| {
            so_far.head == head && so_far.total == total && count(so_far.items.len()) == before
        };
        let mut whole = match self.unfinished.take() {
            Some(so_far) if before > 0 && follows(&so_far) => so_far,
            _ if before > 0 => return Err(PartError::Order),
            _ => Unfinished {
                head,
                items: Vec::new(),
                total,
            },
        };
        whole.items.extend(items);
        let (most, got) = (self.most.min(total), count(whole.items.len()));
        if total > self.most || got > total {
            return Err(PartError::TooMany {
                most,
                got: got.max(total),
            });
        }
        if got < total {
            self.unfinished = Some(whole);
            return Ok(None);
        }
        *whole.head.items() = whole.items;
        Ok(Some(whole.head))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::encode;
    use crate::control::vault::{FromVault, Have, HaveTenant};

    fn have(root: u64, tenants: u32) -> Have {
        let tenant = |n: u32| HaveTenant {
            tenant: [7; 32],
            tenant_version: u64::from(n),
            manifest: Some((u64::MAX, [8; 32])),
            freshness: Some((u64::MAX, u64::MAX)),
        };
        Have {
            root,
            tenants: (0..tenants).map(tenant).collect(),
            ..Have::default()
        }
    }

    #[test]
    fn a_hundred_thousand_tenants_arrive_in_messages_that_fit() {
        let whole = have(1, 100_000);
        let mut arriving = Arriving::new(100_000);
        let mut parts = Part::cut(whole.clone());
        assert!(parts.len() > 10);
        let last = parts.pop().unwrap();
        for part in parts {
            encode(&FromVault::Have(Box::new(part.clone()))).unwrap();
            assert_eq!(arriving.take(part), Ok(None));
        }
        assert_eq!(arriving.take(last), Ok(Some(whole)));
    }

    #[test]
    fn an_empty_list_is_a_whole_too() {
        let parts = Part::cut(have(1, 0));
        assert_eq!(parts.len(), 1);
        assert_eq!(
            Arriving::new(0).take(parts[0].clone()),
            Ok(Some(have(1, 0)))
        );
    }

    #[test]
    fn a_whole_with_too_many_items_is_refused() {
        let part = |before, total, tenants| Part {
            of: have(1, tenants),
            before,
            total,
        };
        let mut arriving = Arriving::new(10);
        let announced = arriving.take(part(0, 11, 1));
        assert_eq!(announced, Err(PartError::TooMany { most: 10, got: 11 }));
        assert_eq!(arriving.take(part(0, 10, 6)), Ok(None));
        let sent = arriving.take(part(6, 10, 6));
        assert_eq!(sent, Err(PartError::TooMany { most: 10, got: 12 }));
        assert_eq!(
            arriving.take(part(6, 10, 4)),
            Err(PartError::Order),
            "the earlier parts were discarded"
        );
    }

    proptest! {
        /// For parts of several wholes, some lost, some duplicated: the result is one of the wholes
        /// unchanged, or nothing.
        #[test]
        fn a_whole_is_never_made_of_less(tenants in 1_u32..8_000, lost in proptest::collection::vec(0_u8..4, 60)) {
            let wholes = [have(1, tenants), have(2, tenants), have(1, tenants + 1), have(1, tenants)];
            let mut arriving = Arriving::new(10_000);
            let parts = wholes.iter().flat_map(|whole| Part::cut(whole.clone()));
            for (part, fate) in parts.zip(lost.into_iter().cycle()) {
                for _ in 0..[1, 0, 2, 1][usize::from(fate)] {
                    if let Ok(Some(whole)) = arriving.take(part.clone()) {
                        prop_assert!(wholes.contains(&whole));
                    }
                }
            }
        }
    }
}
