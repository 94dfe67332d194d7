//! The log records of each tenant: the newest are in memory, for followers; more of them are on the
//! disk (`log_files`).

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use casemate_api::limits::{LOG_BYTES_PER_TENANT, LOG_RECORDS_PER_TENANT};
use casemate_api::log::LogRecord;
use casemate_push::LogEntry;
use casemate_trust::id::TenantId;
use casemate_trust::name::Name;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Plane;
use super::held::Held;
use super::log_files::{LogFiles, LogLimits, Waiting};
use super::log_turns::Turns;

/// Largest sum of all tenants' records in memory, bytes: the records of thirty-two tenants with
/// full logs.
const MAX_BYTES: usize = 32 * LOG_BYTES_PER_TENANT;

#[derive(Debug)]
pub(super) struct Ring {
    pub(super) records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
    pub(super) newest: watch::Sender<u64>,
}

/// Interval between two writes to the disk: a killed program loses the records since the last one.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);
/// Increment of the numbers at each start: more than the records that a killed program had shown
/// and not written, so that a follower that continues after its last record misses none.
const NUMBERS_BETWEEN_STARTS: u64 = 1_000_000;
/// The logs of all tenants, owned by the plane: nodes' connections add records, one task writes
/// them to the disk, readers follow them (`log_readers`).
#[derive(Debug)]
pub(crate) struct Logs {
    rings: Mutex<Rings>,
    pub(super) waiting: Mutex<Waiting>,
    /// `None` if the folder cannot be used: the newest records are in memory nevertheless.
    files: Mutex<Option<LogFiles>>,
    pub(super) turns: Turns,
}

#[derive(Debug, Default)]
pub(super) struct Rings {
    pub(super) by_tenant: BTreeMap<TenantId, Ring>,
    /// Bytes of all of them.
    bytes: usize,
}

impl Logs {
    /// Reads the newest records.
    pub(crate) fn open(folder: &Path, limits: LogLimits) -> Self {
        let files = LogFiles::open(folder, limits);
        let files = files.inspect_err(|error| {
            let folder = folder.display();
            tracing::error!(%folder, %error, "logs are not kept on the disk");
        });
        let (mut rings, files) = (Rings::default(), files.ok());
        for tenant in files.iter().flat_map(LogFiles::tenants) {
            let records = files
                .iter()
                .flat_map(|files| files.newest(tenant, LOG_BYTES_PER_TENANT as u64));
            let records: Vec<_> = records.collect();
            rings.load(tenant, records);
        }
        Self {
            rings: Mutex::new(rings),
            waiting: Mutex::default(),
            files: Mutex::new(files),
            turns: Turns::default(),
        }
    }

    /// Writes the waiting records.
    pub(super) fn write(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if waiting.lost > 0 {
            let lost = waiting.lost;
            tracing::warn!(lost, "log records are not kept on the disk: too many wait");
        }
        let mut files = self.files.lock();
        if let Some(files) = &mut *files
            && let Err(error) = files.write(waiting, SystemTime::now())
        {
            tracing::warn!(%error, "log records could not be written to the disk");
        }
    }

    pub(super) fn files_before(&self, tenant: &TenantId, seq: u64) -> VecDeque<PathBuf> {
        let files = self.files.lock();
        let files = files.as_ref().map(|files| files.before(tenant, seq));
        files.unwrap_or_default()
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock()
    }
}

impl Rings {
    pub(super) fn of(&mut self, tenant: TenantId) -> &mut Ring {
        self.by_tenant.entry(tenant).or_insert_with(Ring::new)
    }

    /// Adds the records that an earlier program has written.
    fn load(&mut self, tenant: &TenantId, records: Vec<LogRecord>) {
        let ring = self.of(*tenant);
        let before = ring.bytes;
        let newest = records.last().map_or(0, |record| record.seq);
        for record in records {
            ring.bytes += size(&record);
            ring.records.push_back(Arc::new(record));
        }
        ring.shorten(LOG_RECORDS_PER_TENANT, LOG_BYTES_PER_TENANT);
        ring.newest.send_replace(newest + NUMBERS_BETWEEN_STARTS);
        let after = ring.bytes;
        self.bytes = self.bytes - before + after;
        self.bound();
    }

    /// Adds a record. If all records are too many, the tenant with the most loses its older half: a
    /// flood costs its own tenant.
    pub(super) fn push(&mut self, node: &Name, entry: LogEntry) -> Arc<LogRecord> {
        let ring = self.of(entry.tenant);
        let before = ring.bytes;
        let record = ring.push(node, entry);
        let after = ring.bytes;
        self.bytes = self.bytes - before + after;
        self.bound();
        record
    }

    fn bound(&mut self) {
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

    fn push(&mut self, node: &Name, entry: LogEntry) -> Arc<LogRecord> {
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
        let record = Arc::new(record);
        self.records.push_back(Arc::clone(&record));
        self.shorten(LOG_RECORDS_PER_TENANT, LOG_BYTES_PER_TENANT);
        self.newest.send_replace(seq);
        record
    }

    /// Drops the oldest records.
    fn shorten(&mut self, records: usize, bytes: usize) {
        while (self.records.len() > records || self.bytes > bytes)
            && let Some(oldest) = self.records.pop_front()
        {
            self.bytes -= size(&oldest);
        }
    }
}

pub(super) fn size(record: &LogRecord) -> usize {
    let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    size_of::<LogRecord>()
        + record.message.len()
        + optional(&record.request)
        + optional(&record.failure)
}

/// Whether a record of a node in this pool is about a function that runs there: a node may report
/// on no other.
pub(super) fn speaks_of_its_own(held: &Held, pool: &Name, entry: &LogEntry) -> bool {
    let pools = || {
        let judge = held.judge.as_ref()?;
        let accord = judge.tenant(&entry.tenant)?.manifest.as_ref()?;
        Some(&accord.manifest.functions.get(&entry.function)?.pools)
    };
    pools().is_some_and(|pools| pools.contains(pool))
}

impl Plane {
    /// Keeps a node's records about functions that run in its pool.
    pub(crate) fn log(&self, node: &Name, pool: &Name, entries: Vec<LogEntry>) {
        let held = self.held();
        let mut rings = self.logs.lock();
        let mut kept = Vec::new();
        for entry in entries {
            if speaks_of_its_own(&held, pool, &entry) {
                kept.push((entry.tenant, rings.push(node, entry)));
            }
        }
        drop(rings);
        let waiting = &mut *self.logs.waiting.lock();
        for (tenant, record) in kept {
            waiting.push(&tenant, &record);
        }
    }

    /// Writes log records to the disk until `stopping`, and the rest then.
    pub(crate) async fn write_logs(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            let is_last = tokio::select! {
                () = tokio::time::sleep(WRITE_INTERVAL) => false,
                () = stopping.cancelled() => true,
            };
            // On a full disk the space is reserved for the operator; the waiting records are
            // limited, and written later.
            if self.reserve().await.is_ok() {
                let plane = Arc::clone(&self);
                let written = tokio::task::spawn_blocking(move || plane.logs.write());
                written.await.ok();
            }
            if is_last {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use casemate_push::{LogLevel, MAX_LOG_BYTES};

    use super::*;

    pub(in super::super) fn entry(tenant: u8, bytes: usize) -> LogEntry {
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
