//! The newest commits, kept in memory for watches.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Change, Event, HISTORY_BYTES, HISTORY_REVISIONS, StoreError};

/// Commits since `oldest`, bounded in number and size.
#[derive(Debug)]
pub(crate) struct History {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Event>,
    bytes: usize,
    /// Revision of the newest event that is no longer kept.
    oldest: u64,
}

impl History {
    /// Makes a history that begins at `revision`.
    pub(crate) fn new(revision: u64) -> Self {
        let kept = Kept {
            events: VecDeque::new(),
            bytes: 0,
            oldest: revision,
        };
        Self {
            kept: Mutex::new(kept),
            newest: watch::Sender::new(revision),
        }
    }

    pub(crate) fn newest(&self) -> u64 {
        *self.newest.borrow()
    }

    pub(crate) fn push(&self, event: Event) {
        let revision = event.revision;
        let mut kept = self.kept.lock();
        kept.bytes += size(&event);
        kept.events.push_back(event);
        while kept.events.len() > HISTORY_REVISIONS || kept.bytes > HISTORY_BYTES {
            let Some(event) = kept.events.pop_front() else {
                break;
            };
            kept.bytes -= size(&event);
            kept.oldest = event.revision;
        }
        drop(kept);
        self.newest.send_replace(revision);
    }

    /// Drops all events, because the disk may have commits that this history lacks.
    pub(crate) fn restart(&self, revision: u64) {
        let mut kept = self.kept.lock();
        kept.events.clear();
        (kept.bytes, kept.oldest) = (0, revision);
        drop(kept);
        self.newest.send_replace(revision);
    }

    fn after(&self, revision: u64) -> Result<Option<Event>, StoreError> {
        let kept = self.kept.lock();
        if revision < kept.oldest {
            return Err(StoreError::Compacted {
                asked: revision,
                oldest: kept.oldest,
            });
        }
        let at = kept
            .events
            .partition_point(|event| event.revision <= revision);
        Ok(kept.events.get(at).cloned())
    }
}

fn size(event: &Event) -> usize {
    let of = |change: &Change| {
        size_of::<Change>() + change.key.len() + change.value.as_ref().map_or(0, Vec::len)
    };
    event.changes.iter().map(of).sum()
}

/// Commits as they happen: given by [`Store::watch`](crate::Store::watch), owned by whoever waits
/// for the next one.
#[derive(Debug)]
pub struct Watch {
    history: Arc<History>,
    newest: watch::Receiver<u64>,
    seen: u64,
}

impl Watch {
    pub(crate) fn new(history: Arc<History>, revision: u64) -> Result<Self, StoreError> {
        history.after(revision)?;
        let newest = history.newest.subscribe();
        Ok(Self {
            history,
            newest,
            seen: revision,
        })
    }

    /// Waits for the next commit.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when the watcher was slower than the store remembers.
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            self.newest.borrow_and_update();
            if let Some(event) = self.history.after(self.seen)? {
                self.seen = event.revision;
                return Ok(event);
            }
            self.newest
                .changed()
                .await
                .map_err(|_| StoreError::Closed)?;
        }
    }
}
