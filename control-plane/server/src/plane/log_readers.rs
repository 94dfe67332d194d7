//! Readers of a tenant's log records: first the records in files, then those in memory.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use casemate_api::log::{LogQuery, LogRecord};
use casemate_trust::id::TenantId;
use tokio::sync::watch;

use super::logs::size;
use super::{Plane, log_files};

/// Records that are sent at a time: a reader that does not take them has them in memory.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 64 * 1024;
/// Approximate bytes of matching records of one file that are held for a reader; for more records
/// the file is read again.
const MAX_FOUND_BYTES: usize = 1024 * 1024;

/// A reader's position in a log.
#[derive(Debug)]
pub(crate) struct Following {
    tenant: TenantId,
    query: LogQuery,
    /// Files of records that are no longer in memory; they are read first.
    files: VecDeque<PathBuf>,
    /// Records of the file that was read last.
    found: VecDeque<Arc<LogRecord>>,
    /// The first record that need not be looked for in files.
    in_memory_from: u64,
    seen: u64,
    newest: watch::Receiver<u64>,
}

/// How many of these records are sent at a time.
fn batch(found: &VecDeque<Arc<LogRecord>>) -> usize {
    let mut bytes = 0;
    let fit = found.iter().take(BATCH).take_while(|record| {
        let is_room = bytes < BATCH_BYTES;
        bytes += size(record);
        is_room
    });
    fit.count()
}

/// The first of the wanted records, and whether these are all.
fn found(
    records: Vec<LogRecord>,
    is_wanted: impl Fn(&LogRecord) -> bool,
) -> (VecDeque<Arc<LogRecord>>, bool) {
    let (mut found, mut bytes) = (VecDeque::new(), 0);
    for record in records.into_iter().filter(is_wanted) {
        if bytes >= MAX_FOUND_BYTES {
            return (found, false);
        }
        bytes += size(&record);
        found.push_back(Arc::new(record));
    }
    (found, true)
}

impl Plane {
    /// A position in a tenant's log.
    pub(crate) fn follow(&self, tenant: TenantId, query: LogQuery) -> Following {
        let (newest, in_memory_from) = {
            let mut rings = self.logs.lock();
            let ring = rings.of(tenant);
            let first = ring.records.front().map(|record| record.seq);
            let newest = ring.newest.subscribe();
            let next = *newest.borrow() + 1;
            (newest, first.unwrap_or(next))
        };
        // A number that was never assigned belongs to a lost log: then every record is new.
        let is_known = |since: &u64| *since < in_memory_from || *since <= *newest.borrow();
        let seen = query.since.filter(is_known).unwrap_or(0);
        let files = if query.is_search() && seen + 1 < in_memory_from {
            self.logs.files_before(&tenant, in_memory_from)
        } else {
            VecDeque::new()
        };
        Following {
            tenant,
            files,
            found: VecDeque::new(),
            in_memory_from,
            seen,
            query,
            newest,
        }
    }

    /// The next records; empty at the end of a log that is not followed. Waits for more otherwise.
    pub(crate) async fn next_logs(&self, following: &mut Following) -> Vec<Arc<LogRecord>> {
        loop {
            self.read_files(following).await;
            if !following.found.is_empty() {
                let count = batch(&following.found);
                return following.found.drain(..count).collect();
            }
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

    /// Reads files until one of them holds a wanted record.
    async fn read_files(&self, following: &mut Following) {
        let turn = self.logs.turns.of(following.tenant);
        while following.found.is_empty()
            && let Some(path) = following.files.pop_front()
        {
            let Ok(_turn) = turn.acquire().await else {
                return;
            };
            let Ok(_reading) = self.logs.turns.all.acquire().await else {
                return;
            };
            let (query, seen) = (following.query.clone(), following.seen);
            let before = following.in_memory_from;
            let read = tokio::task::spawn_blocking(move || {
                let found = found(log_files::read(&path), |record| {
                    (seen + 1..before).contains(&record.seq) && query.wants(record)
                });
                (found, path)
            });
            let Ok(((found, is_whole), path)) = read.await else {
                continue;
            };
            if let Some(last) = found.back().filter(|_| !is_whole) {
                following.seen = last.seq;
                following.files.push_front(path);
            }
            following.found = found;
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
        let (mut found, mut bytes) = (Vec::new(), 0);
        for record in ring.records.range(from..) {
            following.seen = record.seq;
            if following.query.wants(record) {
                bytes += size(record);
                found.push(Arc::clone(record));
            }
            if found.len() == BATCH || bytes >= BATCH_BYTES {
                break;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::log_turns::MAX_READING;
    use super::super::logs::tests::entry;
    use super::*;

    /// A plane whose tenant with this number has a file of log records that lies in this folder.
    async fn plane_with_files(folder: &Path, tenants: &[u8], records: usize) -> Arc<Plane> {
        let plane = crate::plane::tests::plane(folder).await;
        let node = "edge-1".parse().unwrap();
        for tenant in tenants {
            let id = TenantId([*tenant; 32]);
            // Numbers beyond those in memory, as after a restart.
            let of_tenant: Vec<_> = {
                let mut rings = plane.logs.lock();
                let records = (0..records).map(|_| rings.push(&node, entry(*tenant, 1000)));
                let records = records.collect();
                rings.by_tenant.remove(&id);
                rings.of(id).newest.send_replace(1_000_000);
                records
            };
            let mut waiting = plane.logs.waiting.lock();
            for record in &of_tenant {
                waiting.push(&id, record);
            }
        }
        plane.logs.write();
        plane
    }

    fn search(plane: &Plane, tenant: u8, grep: &str) -> Following {
        let query = LogQuery {
            grep: Some(grep.into()),
            ..LogQuery::default()
        };
        plane.follow(TenantId([tenant; 32]), query)
    }

    #[tokio::test]
    async fn records_in_files_are_sent_completely_and_held_in_parts() {
        let folder = tempfile::tempdir().unwrap();
        let records = 3 * MAX_FOUND_BYTES / 1000;
        let plane = plane_with_files(folder.path(), &[1], records).await;
        let mut searching = search(&plane, 1, "x");
        let mut seqs = Vec::new();
        loop {
            let batch = plane.next_logs(&mut searching).await;
            let held = searching.found.iter().map(|record| size(record));
            assert!(held.sum::<usize>() <= MAX_FOUND_BYTES + 2000);
            let bytes: usize = batch.iter().map(|record| size(record)).sum();
            assert!(bytes <= BATCH_BYTES + 2000, "{bytes}");
            if batch.is_empty() {
                break;
            }
            seqs.extend(batch.iter().map(|record| record.seq));
        }
        assert_eq!(seqs, (1..=records as u64).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn an_endless_search_of_one_log_does_not_block_another_log() {
        let folder = tempfile::tempdir().unwrap();
        let plane = plane_with_files(folder.path(), &[1, 2], 3).await;
        // A file whose reading never ends: a pipe without a writer.
        let greedy = plane.logs.files_before(&TenantId([1; 32]), u64::MAX);
        std::fs::remove_file(&greedy[0]).unwrap();
        let made = std::process::Command::new("mkfifo")
            .arg(&greedy[0])
            .status();
        assert!(made.unwrap().success());
        let searches = (0..2 * MAX_READING).map(|_| {
            let (plane, mut searching) = (Arc::clone(&plane), search(&plane, 1, "x"));
            tokio::spawn(async move { plane.next_logs(&mut searching).await })
        });
        let searches: Vec<_> = searches.collect();
        tokio::task::yield_now().await;
        let mut searching = search(&plane, 2, "x");
        let found = tokio::time::timeout(Duration::from_secs(20), plane.next_logs(&mut searching));
        let found = found.await.map(|found| found.len());
        searches.iter().for_each(tokio::task::JoinHandle::abort);
        // Lets the reader of the pipe find its end.
        drop(std::fs::OpenOptions::new().write(true).open(&greedy[0]));
        assert_eq!(found, Ok(3));
    }
}
