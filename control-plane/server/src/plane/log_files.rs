//! Log records on the disk: a folder for each tenant with files of lines, each named after its
//! first record. They survive the program, within limits of bytes and days; older records are
//! removed, from the largest log first when all together are too large. No record is acknowledged:
//! a killed program loses the records of the last second.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use casemate_api::log::LogRecord;
use casemate_trust::id::TenantId;

/// Size at which a new file is begun, bytes.
const FILE_BYTES: u64 = 1024 * 1024;
/// Bytes of one tenant that wait to be written; records beyond are not kept on the disk.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;
/// Bytes of all tenants that wait to be written.
const MAX_ALL_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// Longest line that is read, bytes: a record is far shorter.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// Limits on the stored logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Largest log of one tenant, MiB.
    pub tenant_mib: u64,
    /// Largest size of all logs, MiB.
    pub all_mib: u64,
    /// Largest age, days.
    pub days: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            tenant_mib: 64,
            all_mib: 4096,
            days: 14,
        }
    }
}

/// One file of a tenant's log.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    /// Number of its first record.
    first: u64,
    bytes: u64,
    written: SystemTime,
}

/// The files by tenant, owned by [`Logs`](super::logs::Logs), which writes from one task; readers
/// are given paths.
#[derive(Debug)]
pub(super) struct LogFiles {
    folder: PathBuf,
    limits: LogLimits,
    segments: BTreeMap<TenantId, VecDeque<Segment>>,
}

/// Lines that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lines: BTreeMap<TenantId, Lines>,
    bytes: usize,
    /// Number of records that were dropped.
    pub(super) lost: u64,
}

#[derive(Debug)]
struct Lines {
    first: u64,
    text: Vec<u8>,
}

impl Waiting {
    /// Adds a record.
    pub(super) fn push(&mut self, tenant: &TenantId, record: &LogRecord) {
        let Ok(mut line) = serde_json::to_vec(record) else {
            self.lost += 1;
            return;
        };
        line.push(b'\n');
        let of_tenant = self.lines.get(tenant).map_or(0, |lines| lines.text.len());
        let is_over = of_tenant + line.len() > MAX_WAITING_BYTES
            || self.bytes + line.len() > MAX_ALL_WAITING_BYTES;
        if is_over {
            self.lost += 1;
            return;
        }
        self.bytes += line.len();
        let lines = self.lines.entry(*tenant).or_insert_with(|| Lines {
            first: record.seq,
            text: Vec::new(),
        });
        lines.text.append(&mut line);
    }
}

impl LogFiles {
    /// Opens the folder, and creates it if it does not exist.
    pub(super) fn open(folder: &Path, limits: LogLimits) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut segments = BTreeMap::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let tenant = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let Some(tenant) = tenant {
                segments.insert(tenant, list(&entry.path())?);
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            limits,
            segments,
        })
    }

    pub(super) fn tenants(&self) -> impl Iterator<Item = &TenantId> {
        self.segments.keys()
    }

    fn path(&self, tenant: &TenantId, first: u64) -> PathBuf {
        let folder = self.folder.join(tenant.to_string());
        folder.join(format!("{first:020}"))
    }

    /// The files of a tenant that may hold records before `seq`, oldest first.
    pub(super) fn before(&self, tenant: &TenantId, seq: u64) -> VecDeque<PathBuf> {
        let segments = self.segments.get(tenant).into_iter().flatten();
        let older = segments.take_while(|segment| segment.first < seq);
        older
            .map(|segment| self.path(tenant, segment.first))
            .collect()
    }

    /// The newest records of a tenant, oldest first, from the given number of bytes of files.
    pub(super) fn newest(&self, tenant: &TenantId, bytes: u64) -> Vec<LogRecord> {
        let segments = self.segments.get(tenant).into_iter().flatten().rev();
        let mut used = 0;
        let newest = segments.take_while(|segment| {
            let is_wanted = used < bytes;
            used += segment.bytes;
            is_wanted
        });
        let mut paths: Vec<_> = newest
            .map(|segment| self.path(tenant, segment.first))
            .collect();
        paths.reverse();
        paths.iter().flat_map(|path| read(path)).collect()
    }

    /// Writes the waiting lines and removes files that are too many or too old.
    pub(super) fn write(&mut self, waiting: Waiting, now: SystemTime) -> io::Result<()> {
        let mut written = Ok(());
        for (tenant, lines) in waiting.lines {
            written = written.and(self.append(&tenant, &lines, now));
        }
        self.shorten(now);
        written
    }

    fn append(&mut self, tenant: &TenantId, lines: &Lines, now: SystemTime) -> io::Result<()> {
        let newest = self.segments.get(tenant).and_then(VecDeque::back);
        let first = newest
            .filter(|segment| segment.bytes < FILE_BYTES)
            .map_or(lines.first, |segment| segment.first);
        let path = self.path(tenant, first);
        fs::create_dir_all(path.parent().unwrap_or(&self.folder))?;
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        let before = file.metadata()?.len();
        if let Err(error) = file.write_all(&lines.text) {
            // Half a line would make the next line unreadable too.
            file.set_len(before)?;
            return Err(error);
        }
        let segment = Segment {
            first,
            bytes: before + lines.text.len() as u64,
            written: now,
        };
        let segments = self.segments.entry(*tenant).or_default();
        segments.pop_back_if(|newest| newest.first == first);
        segments.push_back(segment);
        Ok(())
    }

    fn shorten(&mut self, now: SystemTime) {
        let days = Duration::from_secs(self.limits.days.saturating_mul(24 * 60 * 60));
        let oldest = now.checked_sub(days);
        let (most, most_of_all) = (mib(self.limits.tenant_mib), mib(self.limits.all_mib));
        let tenants: Vec<TenantId> = self.segments.keys().copied().collect();
        for tenant in tenants {
            while let Some(first) = self.segments[&tenant].front() {
                let is_old = oldest.is_some_and(|oldest| first.written < oldest);
                if !is_old && self.bytes_of(&tenant) <= most {
                    break;
                }
                self.remove_oldest(&tenant);
            }
        }
        while self
            .segments
            .keys()
            .map(|tenant| self.bytes_of(tenant))
            .sum::<u64>()
            > most_of_all
        {
            let largest = self
                .segments
                .keys()
                .max_by_key(|tenant| self.bytes_of(tenant));
            let Some(largest) = largest.copied() else {
                break;
            };
            self.remove_oldest(&largest);
        }
        self.segments.retain(|_, segments| !segments.is_empty());
    }

    fn bytes_of(&self, tenant: &TenantId) -> u64 {
        let segments = self.segments.get(tenant).into_iter().flatten();
        segments.map(|segment| segment.bytes).sum()
    }

    fn remove_oldest(&mut self, tenant: &TenantId) {
        let Some(segments) = self.segments.get_mut(tenant) else {
            return;
        };
        if let Some(oldest) = segments.pop_front() {
            let is_last = segments.is_empty();
            let path = self.path(tenant, oldest.first);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "an old log file could not be removed");
            }
            if is_last {
                fs::remove_dir(self.folder.join(tenant.to_string())).ok();
            }
        }
    }
}

fn mib(number: u64) -> u64 {
    number.saturating_mul(1024 * 1024)
}

fn list(folder: &Path) -> io::Result<VecDeque<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let first = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let metadata = entry.metadata()?;
        if let Some(first) = first {
            found.push(Segment {
                first,
                bytes: metadata.len(),
                written: metadata.modified()?,
            });
        }
    }
    found.sort_by_key(|segment| segment.first);
    Ok(found.into())
}

/// The records of a file. A line that cannot be parsed, such as one that a crash truncated, is
/// skipped.
pub(super) fn read(path: &Path) -> Vec<LogRecord> {
    let Ok(file) = File::open(path) else {
        // The file was removed since it was listed.
        return Vec::new();
    };
    let lines = BufReader::new(file).split(b'\n');
    let lines = lines.map_while(Result::ok);
    lines
        .filter(|line| line.len() <= MAX_LINE_BYTES)
        .filter_map(|line| serde_json::from_slice(&line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: SystemTime = SystemTime::UNIX_EPOCH;
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn tenant(number: u8) -> TenantId {
        TenantId([number; 32])
    }

    fn record(seq: u64, bytes: usize) -> LogRecord {
        LogRecord {
            seq,
            time_ms: 1,
            node: "edge-1".parse().unwrap(),
            function: "web".parse().unwrap(),
            request: None,
            level: "info".into(),
            message: "x".repeat(bytes),
            failure: None,
        }
    }

    fn waiting(tenant: TenantId, seqs: std::ops::Range<u64>, bytes: usize) -> Waiting {
        let mut waiting = Waiting::default();
        for seq in seqs {
            waiting.push(&tenant, &record(seq, bytes));
        }
        waiting
    }

    fn seqs(files: &LogFiles, of: u8) -> Vec<u64> {
        let records = files.newest(&tenant(of), u64::MAX);
        records.iter().map(|record| record.seq).collect()
    }

    #[test]
    fn records_are_there_after_opening_again_and_a_torn_line_costs_itself() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogLimits::default();
        let mut files = LogFiles::open(folder.path(), limits).unwrap();
        for part in [1..3, 3..6] {
            files.write(waiting(tenant(1), part, 10), NOON).unwrap();
        }
        let path = files.path(&tenant(1), 1);
        let mut torn = OpenOptions::new().append(true).open(&path).unwrap();
        torn.write_all(b"{\"seq\":6,\"ti").unwrap();
        let files = LogFiles::open(folder.path(), limits).unwrap();
        assert_eq!(seqs(&files, 1), [1, 2, 3, 4, 5]);
        assert_eq!(files.before(&tenant(1), 1).len(), 0);
        assert_eq!(files.before(&tenant(1), 2).len(), 1);
    }

    #[test]
    fn bytes_and_days_are_bounded_and_the_largest_pays_for_all() {
        let folder = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            tenant_mib: 3,
            all_mib: 5,
            days: 2,
        };
        let mut files = LogFiles::open(folder.path(), limits).unwrap();
        let eighth = 128 * 1024;
        for part in 0..20 {
            let lines = waiting(tenant(1), 4 * part..4 * part + 4, eighth);
            files.write(lines, NOON).unwrap();
            assert!(files.bytes_of(&tenant(1)) <= mib(3));
        }
        assert_eq!(seqs(&files, 1).last(), Some(&79));
        files
            .write(waiting(tenant(2), 1..13, eighth), NOON + DAY)
            .unwrap();
        files
            .write(waiting(tenant(3), 1..13, eighth), NOON + DAY)
            .unwrap();
        let sum: u64 = (1..4).map(|of| files.bytes_of(&tenant(of))).sum();
        assert!(sum <= mib(5), "{sum}");
        assert_eq!((seqs(&files, 2).len(), seqs(&files, 3).len()), (12, 12));
        // A log without new records for two days is removed, with its folder.
        files
            .write(Waiting::default(), NOON + 2 * DAY + DAY / 2)
            .unwrap();
        assert_eq!(seqs(&files, 1), [] as [u64; 0]);
        assert!(!folder.path().join(tenant(1).to_string()).exists());
        assert_eq!(seqs(&files, 2).len(), 12);
    }

    #[test]
    fn waiting_records_are_limited() {
        let waiting = waiting(tenant(1), 0..10, MAX_WAITING_BYTES / 4);
        assert_eq!(waiting.lost, 7);
        assert!(waiting.bytes <= MAX_WAITING_BYTES);
    }
}
