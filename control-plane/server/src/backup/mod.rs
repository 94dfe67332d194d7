//! Backup and restore of a state folder: the store, the bundles, the control plane's own keys.
//!
//! A backup is a folder that exists completely and checked, or not at all. While the control plane
//! runs, it sends its store over a socket and removes no bundle until the backup has them all;
//! otherwise the store is opened here. Images are not part of it: they can be pushed again.

mod bundle_files;
mod serve;
mod wire;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use casemate_control_store::{Contents, Entry, Redb, Sink, StoreCopy, StoreError, StoreId, set_id};
use casemate_trust::Seconds;
use casemate_trust::id::{Digest, TenantId};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::files;
use crate::format::{self, BACKUP_LABEL};
use crate::keys::{self, Keys};
use crate::new_folder::NewFolder;
use crate::plane::{LogLimits, Survey, now, survey};
use crate::state_folder::{BUNDLES, KEYS, PUBLIC, STORE, open};

use bundle_files::BundleFile;
pub(crate) use serve::{Socket, run as serve};

/// Most entries that are written in one commit.
const BATCH_ENTRIES: usize = 1000;
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// Pause between two signs of life to the control plane, which waits while bundles are copied.
const WORD_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit for the control plane to send its store.
const PATIENCE: Duration = Duration::from_secs(60);

/// Progress of a backup or a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The current step.
    pub doing: &'static str,
    /// How many items are done.
    pub done: u64,
    /// How many items there are.
    pub total: u64,
}

/// Description of a backup that was made, or that a state folder was restored from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// Format of the folder.
    pub format: u32,
    /// Version of the software that made it.
    pub software: String,
    /// Time of the backup, Unix time.
    pub made: Seconds,
    /// The store's id.
    pub store: String,
    /// The newest revision in it.
    pub revision: u64,
    /// Number of entries of the store.
    pub entries: u64,
    /// Number of bundles.
    pub bundles: u64,
    /// Number of bytes of all bundles.
    pub bundle_bytes: u64,
}

/// Result of a backup or a restore.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// The new folder.
    pub folder: PathBuf,
    /// The description of the backup.
    pub backup: Label,
    /// Whether the audit chain in it is unbroken.
    pub audit_intact: bool,
    /// Bundles that are listed by newest manifests and were missing or damaged at the source, as
    /// `tenant/digest`. The tools of their tenants upload them again with the next deployment.
    pub missing_bundles: Vec<String>,
}

/// Copies the state in `state` to the new folder `to`, whether or not a control plane runs on it.
///
/// # Errors
/// The folder exists already, the state cannot be read or the copy not written, or the copy is
/// incomplete or damaged.
pub fn backup(state: &Path, to: &Path, tell: &mut dyn FnMut(Progress)) -> Result<Outcome, Failure> {
    if !state.join(KEYS).is_dir() {
        let message = format!(
            "{} is not a state folder: it has no {KEYS}; name the `state` of control.toml",
            state.display()
        );
        return Err(Failure::config(message));
    }
    format::check(state)?;
    let new = NewFolder::create(to)?;
    let (contents, mut source) = copy_store(state, &new.path(STORE), tell)?;
    let bundles = bundle_files::list(&state.join(BUNDLES))?;
    copy_bundles(&bundles, &new.path(BUNDLES), tell, &mut || {
        source.keep_waiting()
    })?;
    copy_keys(state, &new)?;
    format::copy(state, new.folder())?;
    drop(source);
    let label = Label {
        format: format::BACKUP.newest,
        software: env!("CARGO_PKG_VERSION").to_owned(),
        made: now(),
        store: hex::encode(contents.id.0),
        revision: contents.revision,
        entries: contents.entries,
        bundles: bundles.len() as u64,
        bundle_bytes: bundles.iter().map(|bundle| bundle.bytes).sum(),
    };
    let text =
        serde_json::to_vec_pretty(&label).map_err(|error| Failure::internal(error.to_string()))?;
    files::write_public(&new.path(BACKUP_LABEL), &text)?;
    finish(new, to, label, tell, None)
}

/// Restores the backup in `from` to the state folder `state`.
///
/// # Errors
/// The state folder exists already, the backup is damaged or of a later version, or the folder
/// cannot be written.
pub fn restore(
    from: &Path,
    state: &Path,
    tell: &mut dyn FnMut(Progress),
) -> Result<Outcome, Failure> {
    let text = files::read(&from.join(BACKUP_LABEL)).map_err(|failure| {
        let message = format!(
            "{} is not a backup of `casemate-control backup`: {}",
            from.display(),
            failure.message
        );
        Failure::config(message)
    })?;
    format::check_mark(format::BACKUP, from, Some(&text))?;
    format::check(from)?;
    let label: Label = serde_json::from_slice(&text).map_err(|error| {
        Failure::config(format!("{}: {error}", from.join(BACKUP_LABEL).display()))
    })?;
    let new = NewFolder::create(state)?;
    bundle_files::copy(&from.join(STORE), &new.path(STORE))?;
    let bundles = bundle_files::list(&from.join(BUNDLES))?;
    copy_bundles(&bundles, &new.path(BUNDLES), tell, &mut || Ok(()))?;
    copy_keys(from, &new)?;
    format::copy(from, new.folder())?;
    // Revisions after the backup exist in both stores with different content: the new id keeps
    // nodes from continuing theirs.
    let id = keys::random().map_err(|_| Failure::internal("the kernel gave no random bytes"))?;
    set_id(&new.path(STORE), StoreId(id))?;
    finish(new, state, label, tell, Some(from))
}

/// Checks the copy and puts it in place.
fn finish(
    new: NewFolder,
    place: &Path,
    label: Label,
    tell: &mut dyn FnMut(Progress),
    restored_from: Option<&Path>,
) -> Result<Outcome, Failure> {
    let whole = whole_bundles(&new, tell)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|error| Failure::internal(error.to_string()))?;
    let survey = runtime.block_on(check_store(&new, &label))?;
    Keys::open(&new.path(KEYS))?;
    let missing = survey
        .bundles
        .iter()
        .filter(|bundle| !whole.contains(*bundle));
    let missing_bundles = missing
        .map(|(tenant, digest)| format!("{tenant}/{digest}"))
        .collect();
    if restored_from.is_some() {
        runtime.block_on(record_restore(&new, &label))?;
    }
    drop(runtime);
    new.put_in_place()?;
    Ok(Outcome {
        folder: place.to_owned(),
        backup: label,
        audit_intact: survey.audit_intact,
        missing_bundles,
    })
}

/// The bundles that were copied undamaged; the others are removed from the copy.
fn whole_bundles(
    new: &NewFolder,
    tell: &mut dyn FnMut(Progress),
) -> Result<BTreeSet<(TenantId, Digest)>, Failure> {
    let doing = "checking";
    let copied = bundle_files::list(&new.path(BUNDLES))?;
    let total = copied.len() as u64;
    let mut whole = BTreeSet::new();
    for (done, bundle) in (0..).zip(&copied) {
        tell(Progress { doing, done, total });
        if bundle.is_whole()? {
            whole.insert((bundle.tenant, bundle.digest));
        } else {
            fs::remove_file(&bundle.path)
                .map_err(|error| Failure::cannot_write(&bundle.path, &error))?;
        }
    }
    tell(Progress {
        doing,
        done: total,
        total,
    });
    Ok(whole)
}

/// Whether the copied store has what its label says; what lies in it.
async fn check_store(new: &NewFolder, label: &Label) -> Result<Survey, Failure> {
    // The whole file is checked when it is opened.
    let store = Redb::open(&new.path(STORE), StoreId([0; 16]))?;
    let count = store.read_all(Count::default()).await?;
    let counted = count.ok().map(|count| (count.revision, count.entries));
    let survey = survey(&store).await?;
    if counted == Some((label.revision, label.entries)) {
        return Ok(survey);
    }
    let message = format!(
        "the copy is incomplete or damaged: expected revision {} with {} entries, got {counted:?}",
        label.revision, label.entries
    );
    Err(Failure::io(message))
}

/// Writes into the restored audit log where the state comes from.
async fn record_restore(new: &NewFolder, label: &Label) -> Result<(), Failure> {
    let subject = format!(
        "from a backup of {}, revision {} of the store {}",
        utc(label.made),
        label.revision,
        label.store
    );
    let keys = Keys::open(&new.path(KEYS))?;
    let limits = LogLimits::default();
    let plane = open(new.folder(), &keys, String::new(), false, u64::MAX, limits).await?;
    let recorded = plane.restored(&subject).await;
    recorded.map_err(|fault| Failure::io(fault.body.error.message.clone()))
}

/// Counts the entries without keeping them.
#[derive(Default)]
struct Count {
    revision: u64,
    entries: u64,
}

impl Sink for Count {
    fn begin(&mut self, contents: &Contents) -> io::Result<()> {
        self.revision = contents.revision;
        Ok(())
    }

    fn entry(&mut self, _: Entry) -> io::Result<()> {
        self.entries += 1;
        Ok(())
    }
}

fn utc(time: Seconds) -> String {
    let time = i64::try_from(time).ok();
    let time = time.and_then(|time| jiff::Timestamp::from_second(time).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}

fn copy_keys(from: &Path, new: &NewFolder) -> Result<(), Failure> {
    files::create_folder(&new.path(KEYS))?;
    for name in keys::files() {
        let bytes = zeroize::Zeroizing::new(files::read(&from.join(KEYS).join(name))?);
        files::write_private(&new.path(KEYS).join(name), &bytes)?;
    }
    files::write_public(&new.path(PUBLIC), &files::read(&from.join(PUBLIC))?)
}

fn copy_bundles(
    bundles: &[BundleFile],
    to: &Path,
    tell: &mut dyn FnMut(Progress),
    keep_waiting: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), Failure> {
    files::create_folder(to)?;
    let doing = "copying bundles";
    let total = bundles.len() as u64;
    for (done, bundle) in (0..).zip(bundles) {
        tell(Progress { doing, done, total });
        bundle.copy(to)?;
        keep_waiting().map_err(|error| stopped_meanwhile(&error))?;
    }
    tell(Progress {
        doing,
        done: total,
        total,
    });
    Ok(())
}

/// The source of the store, held until the bundles are copied.
enum Source {
    /// A control plane runs, and removes nothing while this is open.
    Running(UnixStream, Instant),
    /// No control plane runs, and none can start: the store is open here.
    Stopped { _store: Redb },
}

impl Source {
    fn keep_waiting(&mut self) -> io::Result<()> {
        match self {
            Self::Running(socket, last) if last.elapsed() >= WORD_INTERVAL => {
                *last = Instant::now();
                socket.write_all(b".")
            }
            _ => Ok(()),
        }
    }
}

fn copy_store(
    state: &Path,
    to: &Path,
    tell: &mut dyn FnMut(Progress),
) -> Result<(Contents, Source), Failure> {
    let from = state.join(STORE);
    if !from.exists() {
        return Err(Failure::io(format!("there is no store {}", from.display())));
    }
    let mut writer = Writer::new(to);
    tell(Progress {
        doing: "copying the store",
        done: 0,
        total: 1,
    });
    match UnixStream::connect(state.join(serve::SOCKET)) {
        Ok(mut socket) => {
            let received = (|| {
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.set_write_timeout(Some(PATIENCE))?;
                socket.write_all(wire::ASK)?;
                wire::receive(socket.try_clone()?, &mut writer)
            })();
            received.map_err(|error| writer.failure(&error))?;
            Ok((writer.finish()?, Source::Running(socket, Instant::now())))
        }
        Err(error)
            if matches!(
                error.kind(),
                // The last kind: the path is too long for a socket, so no control plane listens
                // there either.
                ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::InvalidInput
            ) =>
        {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            let runtime = runtime.map_err(|error| Failure::internal(error.to_string()))?;
            let store = Redb::open(&from, StoreId([0; 16])).map_err(|error| match error {
                StoreError::Locked(path) => Failure::temporary(format!(
                    "{} is in use, and no program listens at {}: restart the control plane, whose version may be older, or stop it",
                    path.display(),
                    state.join(serve::SOCKET).display()
                )),
                error => error.into(),
            })?;
            let read = runtime.block_on(store.read_all(writer))?;
            let writer = read
                .map_err(|error| Failure::io(format!("cannot write {}: {error}", to.display())))?;
            Ok((writer.finish()?, Source::Stopped { _store: store }))
        }
        Err(error) => {
            let message = format!(
                "cannot reach the control plane at {}: {error}",
                state.join(serve::SOCKET).display()
            );
            Err(Failure::io(message))
        }
    }
}

fn stopped_meanwhile(error: &io::Error) -> Failure {
    Failure::temporary(format!(
        "the control plane stopped before the backup was complete ({error}); make another"
    ))
}

/// Writes a store's entries into a new file, in batches.
struct Writer {
    path: PathBuf,
    copy: Option<(Contents, StoreCopy)>,
    batch: Vec<Entry>,
    batch_bytes: usize,
    failed: Option<StoreError>,
}

impl Writer {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            copy: None,
            batch: Vec::new(),
            batch_bytes: 0,
            failed: None,
        }
    }

    /// Remembers a failure of the file, so that it can be told apart from one of the socket.
    fn note<T>(&mut self, done: Result<T, StoreError>) -> io::Result<T> {
        done.map_err(|error| {
            let message = error.to_string();
            self.failed = Some(error);
            io::Error::other(message)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let written = match &self.copy {
            Some((_, copy)) => copy.write(&batch),
            None => Ok(()),
        };
        self.note(written)
    }

    fn failure(&mut self, error: &io::Error) -> Failure {
        match self.failed.take() {
            Some(failed) => failed.into(),
            None => stopped_meanwhile(error),
        }
    }

    fn finish(mut self) -> Result<Contents, Failure> {
        self.flush().map_err(|error| self.failure(&error))?;
        let (contents, copy) = self
            .copy
            .ok_or_else(|| Failure::internal("a store without a beginning"))?;
        copy.finish()?;
        Ok(contents)
    }
}

impl Sink for Writer {
    fn begin(&mut self, contents: &Contents) -> io::Result<()> {
        let copy = StoreCopy::create(&self.path, *contents);
        let copy = self.note(copy)?;
        self.copy = Some((*contents, copy));
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> io::Result<()> {
        self.batch_bytes += entry.key.len() + entry.value.len();
        self.batch.push(entry);
        if self.batch.len() >= BATCH_ENTRIES || self.batch_bytes >= BATCH_BYTES {
            self.flush()?;
        }
        Ok(())
    }
}
