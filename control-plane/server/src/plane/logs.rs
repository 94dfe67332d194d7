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
/// Largest sum of all tenants' kept records, bytes: what thirty-two noisy tenants keep of their own.
const MAX_BYTES: usize = 32 * LOG_BYTES_PER_TENANT;

#[derive(Debug)]
struct Ring {
    records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
    newest: watch::Sender<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    rings: Mutex<Rings>,
}

#[derive(Debug, Default)]
struct Rings {
    by_tenant: BTreeMap<TenantId, Ring>,
    /// Of all of them.
    bytes: usize,
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
    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Rings {
    fn of(&mut self, tenant: TenantId) -> &mut Ring {
        self.by_tenant.entry(tenant).or_insert_with(Ring::new)
    }

    /// Keeps a record. When all of them are too much, whoever has most loses the older half: a flood costs its own tenant.
    fn push(&mut self, node: &Name, entry: LogEntry) {
        let ring = self.of(entry.tenant);
        let before = ring.bytes;
        ring.push(node, entry);
        let after = ring.bytes;
        self.bytes = self.bytes - before + after;
        while self.bytes > MAX_BYTES
            && let Some(largest) = self.by_tenant.values_mut().max_by_key(|ring| ring.bytes)
        {
            self.bytes -= largest.bytes;
            largest.shorten(LOG_RECORDS_PER_TENANT, largest.bytes / 2);
            self.bytes += largest.bytes;
        }
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
        self.shorten(LOG_RECORDS_PER_TENANT, LOG_BYTES_PER_TENANT);
        self.newest.send_replace(seq);
    }

    /// Drops the oldest.
    fn shorten(&mut self, records: usize, bytes: usize) {
        while (self.records.len() > records || self.bytes > bytes)
            && let Some(oldest) = self.records.pop_front()
        {
            self.bytes -= size(&oldest);
        }
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
    /// Keeps a node's records, of those functions that run in its pool: a node speaks for no other.
    pub(crate) fn log(&self, node: &Name, pool: &Name, entries: Vec<LogEntry>) {
        let held = self.held();
        let runs_here = |entry: &LogEntry| {
            let judge = held.judge.as_ref()?;
            let accord = judge.tenant(&entry.tenant)?.manifest.as_ref()?;
            let wanted = accord.manifest.functions.get(&entry.function)?;
            Some(wanted.pools.contains(pool))
        };
        let mut rings = self.logs.lock();
        for entry in entries {
            if runs_here(&entry) == Some(true) {
                rings.push(node, entry);
            }
        }
    }

    /// A place in a tenant's log.
    pub(crate) fn follow(&self, tenant: TenantId, query: LogQuery) -> Following {
        let newest = self.logs.lock().of(tenant).newest.subscribe();
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
        let Some(ring) = rings.by_tenant.get(&following.tenant) else {
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

#[cfg(test)]
mod tests {
    use casemate_push::{LogLevel, MAX_LOG_BYTES};

    use super::*;

    fn entry(tenant: u8, bytes: usize) -> LogEntry {
        LogEntry {
            tenant: TenantId([tenant; 32]),
            function: "web".parse().unwrap(),
            request: None,
            level: LogLevel::Info,
            message: "x".repeat(bytes),
            time_ms: 1,
            failure: None,
        }
    }

    #[test]
    fn a_flood_in_many_names_is_bounded_and_costs_those_names() {
        let (mut rings, node) = (Rings::default(), "edge-1".parse().unwrap());
        for _ in 0..10 {
            rings.push(&node, entry(0, 1000));
        }
        for tenant in 1..=64 {
            for _ in 0..LOG_BYTES_PER_TENANT / MAX_LOG_BYTES {
                rings.push(&node, entry(tenant, MAX_LOG_BYTES));
            }
            assert!(rings.bytes <= MAX_BYTES);
        }
        let held = rings.by_tenant.values();
        assert_eq!(held.map(|ring| ring.bytes).sum::<usize>(), rings.bytes);
        assert!(rings.bytes > MAX_BYTES / 2);
        assert_eq!(rings.by_tenant[&TenantId([0; 32])].records.len(), 10);
    }
}
