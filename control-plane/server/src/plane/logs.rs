//! The newest log records of each tenant, in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use casemate_api::limits::{LOG_BYTES_PER_TENANT, LOG_RECORDS_PER_TENANT};
use casemate_api::log::{LogQuery, LogRecord};
use casemate_push::LogEntry;
use casemate_trust::id::TenantId;
use casemate_trust::name::Name;
use tokio::sync::watch;

use super::Plane;

/// Records that are handed on at a time.
const BATCH: usize = 256;

#[derive(Debug)]
struct Ring {
    records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
    newest: watch::Sender<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    rings: Mutex<BTreeMap<TenantId, Ring>>,
}

/// A reader's place in a log.
#[derive(Debug)]
pub(crate) struct Following {
    tenant: TenantId,
    query: LogQuery,
    seen: u64,
    newest: watch::Receiver<u64>,
}

impl Logs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn new() -> Self {
        Self {
            records: VecDeque::new(),
            bytes: 0,
            newest: watch::Sender::new(0),
        }
    }

    fn push(&mut self, node: &Name, entry: LogEntry) {
        let seq = *self.newest.borrow() + 1;
        let record = LogRecord {
            seq,
            time_ms: entry.time_ms,
            node: node.clone(),
            function: entry.function,
            request: entry.request,
            level: entry.level.as_str().to_owned(),
            message: entry.message,
            failure: entry.failure,
        };
        self.bytes += size(&record);
        self.records.push_back(Arc::new(record));
        while self.records.len() > LOG_RECORDS_PER_TENANT || self.bytes > LOG_BYTES_PER_TENANT {
            let Some(oldest) = self.records.pop_front() else {
                break;
            };
            self.bytes -= size(&oldest);
        }
        self.newest.send_replace(seq);
    }
}

fn size(record: &LogRecord) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    size_of::<LogRecord>()
        + record.message.len()
        + optional(&record.request)
        + optional(&record.failure)
}

impl Plane {
    /// Keeps a node's records, of those tenants that run in its pool: a node speaks for no other.
    pub(crate) fn log(&self, node: &Name, pool: &Name, entries: Vec<LogEntry>) {
        let held = self.held();
        let runs_here = |tenant: &TenantId| {
            let state = held.judge.as_ref().and_then(|judge| judge.tenant(tenant));
            let accord = state.and_then(|state| state.manifest.as_ref());
            accord.is_some_and(|accord| {
                accord
                    .manifest
                    .functions
                    .values()
                    .any(|wanted| wanted.pools.contains(pool))
            })
        };
        let mut rings = self.logs.lock();
        for entry in entries {
            if runs_here(&entry.tenant) {
                rings
                    .entry(entry.tenant)
                    .or_insert_with(Ring::new)
                    .push(node, entry);
            }
        }
    }

    /// A place in a tenant's log.
    pub(crate) fn follow(&self, tenant: TenantId, query: LogQuery) -> Following {
        let newest = self
            .logs
            .lock()
            .entry(tenant)
            .or_insert_with(Ring::new)
            .newest
            .subscribe();
        Following {
            tenant,
            seen: query.since.unwrap_or(0),
            query,
            newest,
        }
    }

    /// The next records; empty at the end of a log that is not followed. Waits for more otherwise.
    pub(crate) async fn next_logs(&self, following: &mut Following) -> Vec<Arc<LogRecord>> {
        loop {
            following.newest.borrow_and_update();
            let found = self.logs_after(following);
            if !found.is_empty()
                || !following.query.follow
                || following.newest.changed().await.is_err()
            {
                return found;
            }
        }
    }

    fn logs_after(&self, following: &mut Following) -> Vec<Arc<LogRecord>> {
        let rings = self.logs.lock();
        let Some(ring) = rings.get(&following.tenant) else {
            return Vec::new();
        };
        let from = ring
            .records
            .partition_point(|record| record.seq <= following.seen);
        let mut found = Vec::new();
        for record in ring.records.range(from..) {
            following.seen = record.seq;
            let is_wanted = following
                .query
                .function
                .as_ref()
                .is_none_or(|function| *function == record.function);
            if is_wanted {
                found.push(Arc::clone(record));
            }
            if found.len() == BATCH {
                break;
            }
        }
        found
    }
}
