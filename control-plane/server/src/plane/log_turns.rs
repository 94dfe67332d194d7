//! How many log files are read at a time, so that nobody who searches a long log keeps others from
//! theirs.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use casemate_trust::id::TenantId;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Files that are read at a time, by all readers together; the readers of one log read one at a
/// time.
pub(super) const MAX_READING: usize = 4;

/// Whose turn it is to read files: owned by the logs, asked by each reader before each file.
#[derive(Debug)]
pub(super) struct Turns {
    pub(super) all: Semaphore,
    of_tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            all: Semaphore::new(MAX_READING),
            of_tenants: Mutex::default(),
        }
    }
}

impl Turns {
    /// One permit for all readers of a log: however many there are, readers of another log wait for
    /// at most one file of it.
    pub(super) fn of(&self, tenant: TenantId) -> Arc<Semaphore> {
        let turns = &mut *self.of_tenants.lock();
        if let Some(turn) = turns.get(&tenant).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Semaphore::new(1));
        turns.insert(tenant, Arc::downgrade(&turn));
        turn
    }
}
