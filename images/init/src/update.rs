//! Updates of the image: init installs the image that the vault has accepted, tries it, and keeps
//! it when the node is healthy with it.
//!
//! ```mermaid
//! stateDiagram-v2
//!     [*] --> Steady
//!     Steady --> Writing: the vault names a newer image, and its file is complete
//!     Writing --> [*]: restart into it, after a random pause
//!     [*] --> Trial: this image has not been blessed
//!     Trial --> Steady: healthy for a while, blessed, older images locked out
//!     Trial --> [*]: not healthy in time, restart: the boot loader counts
//!     Steady --> Steady: back from an image whose tries are used up, which is refused from now on
//! ```
//!
//! The vault is the judge: the image that its file names was signed by the fleet's root, for this
//! node's pool, with a version that only rises. The supervisor delivers the file, which counts only
//! with the right digest.

mod trial;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use casemate_durable::PRIVATE;
use casemate_trust::id::Digest;
use casemate_trust::image::{ImageVersion, MAX_IMAGE_BYTES};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use trial::{Trial, Verdict};

pub(crate) use trial::Health;

use crate::boot_partition::{BootPartition, Entry, Fault, TRIES};
use crate::console::{Page, Problem};
use crate::files::{open_file, read_json};
use crate::node_state::NodeState;
use crate::storage::{Mode, Storage};

/// The record of updates on the state partition, readable by root alone.
const RECORD: &str = "update.json";
/// The description of the machine for the node, in a folder that the supervisor may read.
pub(crate) const MACHINE: &str = "/run/machine/machine.json";
/// Longest of these files, bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// Refused images that are remembered; images before them have too low a version anyway.
const MAX_REFUSED: usize = 16;
/// Time until a storage key that does not open is tried again: the fault may have passed.
const LOOKS_AGAIN: Duration = Duration::from_secs(120);
/// That time with an image on trial, where a key that stays sealed shows that the image is bad.
const TRIAL_SEALED_FOR: Duration = Duration::from_secs(30);
/// Pause before an image that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// The content of `update.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Longest pause before the restart into a new image, seconds. It is random, so that not all
    /// nodes of a pool restart at once.
    pub(crate) spread_secs: u32,
    /// Time for which the node must be healthy with a new image, seconds.
    pub(crate) healthy_secs: u32,
    /// Time after which a machine that is not healthy restarts, seconds.
    pub(crate) trial_secs: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            spread_secs: 300,
            healthy_secs: 60,
            trial_secs: 600,
        }
    }
}

/// The content of `vault/image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accepted {
    version: ImageVersion,
    digest: Digest,
    bytes: u64,
}

/// An image that failed its trial, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Refused {
    version: ImageVersion,
    digest: Digest,
    why: String,
}

/// The content of `update.json`. A newer image may add fields; the image before it must read the
/// file all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    /// The image on trial.
    trying: Option<Accepted>,
    /// The machine was restarted into it.
    restarted: bool,
    /// The health of the node before the trial.
    before: Health,
    /// Why the last try was given up.
    why: Option<String>,
    refused: Vec<Refused>,
}

/// What the machine has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    Restart,
}

enum Phase {
    Steady,
    /// This image is on trial; the trial begins when the node is started.
    Untried,
    Trial(Trial),
    /// The file is being written.
    Writing(JoinHandle<Result<(), Fault>>, Record),
    /// The new image is written, and the machine restarts at this time.
    Restarting(Instant),
    /// The image could not be written; the next try is at this time.
    Failed(Instant),
}

/// The state of updates; the node's loop polls it with [`Update::look`].
pub(crate) struct Update {
    version: ImageVersion,
    settings: Settings,
    /// `None` when this machine does not start from a disk of its own.
    boot: Option<BootPartition>,
    record: Record,
    phase: Phase,
    /// The best health that this boot has seen.
    best: Health,
    /// This image's file exists, and its tries are not counted.
    is_blessed: bool,
    /// The present activity, as text for the operator.
    doing: Option<String>,
    record_file: PathBuf,
    node: NodeState,
    told: Vec<u8>,
}

impl Update {
    /// Determines the kind of this boot: usual, a trial, or the return from one.
    pub(crate) fn start(
        version: ImageVersion,
        boot: Option<BootPartition>,
        state: &Path,
        page: &mut Page,
    ) -> Self {
        let record_file = state.join(RECORD);
        let record = read_json::<Record>(&record_file, MAX_FILE_BYTES).unwrap_or_else(|error| {
            page.problem(Problem::new(
                format!("the record of earlier images cannot be read: {error}"),
                "an image that failed earlier may be tried once more",
            ));
            None
        });
        let mut update = Self {
            version,
            settings: Settings::default(),
            boot,
            record: record.unwrap_or_default(),
            phase: Phase::Steady,
            best: Health::default(),
            is_blessed: false,
            doing: None,
            record_file,
            node: NodeState::on(state),
            told: Vec::new(),
        };
        if let Some(boot) = update.boot.clone() {
            let begun = boot
                .images()
                .and_then(|images| update.begin(&boot, &images));
            if let Err(fault) = begun {
                page.problem(problem(&fault));
            }
        }
        let is_newer = |refused: &&Refused| refused.version > version;
        for refused in update.record.refused.iter().filter(is_newer) {
            page.problem(Problem::new(
                format!(
                    "the image {} was tried and refused: {}",
                    refused.version, refused.why
                ),
                "push a newer image; this machine keeps running the present one",
            ));
        }
        update
    }

    fn begin(&mut self, boot: &BootPartition, images: &[Entry]) -> Result<(), Fault> {
        let here = images.iter().find(|entry| entry.version == self.version);
        let is_counted = here.is_some_and(|entry| entry.tries_left.is_some());
        self.is_blessed = here.is_some() && !is_counted;
        let trying = self.record.trying.clone();
        match trying {
            Some(tried) if tried.version != self.version => {
                let file = images.iter().find(|entry| entry.version == tried.version);
                let left = file.and_then(|entry| entry.tries_left);
                // The boot loader was asked to start the image, and has not counted a try.
                let is_ignored = self.record.restarted && left == Some(TRIES);
                let is_over = left == Some(0) || is_ignored;
                if is_over {
                    let why = self.record.why.take().unwrap_or_else(|| {
                        if is_ignored {
                            "the firmware does not start from this disk".to_owned()
                        } else {
                            format!("it did not become healthy in {TRIES} tries")
                        }
                    });
                    self.record
                        .refused
                        .retain(|refused| refused.digest != tried.digest);
                    self.record.refused.push(Refused {
                        version: tried.version,
                        digest: tried.digest,
                        why,
                    });
                    let excess = self.record.refused.len().saturating_sub(MAX_REFUSED);
                    self.record.refused.drain(..excess);
                }
                // Without a file the image was never tried: power was cut before.
                if file.is_none() || is_over {
                    self.record.trying = None;
                    self.save()?;
                }
                if is_ignored {
                    boot.remove(tried.version)?;
                }
            }
            _ if is_counted => {
                self.phase = Phase::Untried;
                self.doing = Some(format!("trying the image {}", self.version));
            }
            Some(_) => {
                // The image was blessed, and power was cut before the record was written.
                self.record = Record {
                    refused: std::mem::take(&mut self.record.refused),
                    ..Record::default()
                };
                self.save()?;
            }
            None => {}
        }
        for entry in images {
            let is_known = self
                .record
                .trying
                .as_ref()
                .is_some_and(|it| it.version == entry.version);
            if entry.tries_left == Some(0) && entry.version != self.version && !is_known {
                boot.remove(entry.version)?;
            }
        }
        Ok(())
    }

    /// Whether this image is on trial.
    pub(crate) fn is_trial(&self) -> bool {
        matches!(self.phase, Phase::Untried | Phase::Trial(_))
    }

    /// How long to wait for a storage key that does not open.
    pub(crate) fn sealed_for(&self) -> Duration {
        if self.is_trial() {
            TRIAL_SEALED_FOR
        } else {
            LOOKS_AGAIN
        }
    }

    /// Records that this try has failed.
    pub(crate) fn give_up(&mut self, why: &str) {
        self.record.why = Some(why.to_owned());
        // If the record cannot be written, only the reason is lost.
        let _kept = self.save();
    }

    /// The key is open and the node starts: begins a trial, or locks older images out.
    pub(crate) fn node_runs(
        &mut self,
        settings: &Settings,
        storage: &mut Storage,
        page: &mut Page,
    ) {
        self.settings = settings.clone();
        if self.is_blessed {
            shut_out_older(storage, page);
        }
        // For an image that was not started from this disk, the boot loader vouches for nothing; so
        // a machine that loads its image otherwise has a trial too.
        if matches!(self.phase, Phase::Untried) || self.boot.is_none() {
            let secs = |secs: u32| Duration::from_secs(secs.into());
            let at_least = Health {
                vault: true,
                ..Health::default()
            };
            self.phase = Phase::Trial(Trial {
                before: self.record.before.or(at_least),
                until: Instant::now() + secs(self.settings.trial_secs),
                well_since: None,
                well_for: secs(self.settings.healthy_secs),
            });
        }
    }

    fn save(&self) -> io::Result<()> {
        save(&self.record_file, &self.record)
    }

    /// Checks the health of the node, and whether there is a new image.
    pub(crate) async fn look(
        &mut self,
        health: Health,
        storage: &mut Storage,
        page: &mut Page,
    ) -> Next {
        let now = Instant::now();
        self.best = self.best.or(health);
        let next = match &mut self.phase {
            Phase::Untried => Next::GoOn,
            Phase::Trial(trial) => match trial.look(health, now) {
                Verdict::Wait => Next::GoOn,
                Verdict::Good => {
                    self.bless(storage, page);
                    Next::GoOn
                }
                // There is no other image to go back to.
                Verdict::Bad(_) if self.boot.is_none() => Next::GoOn,
                Verdict::Bad(why) => {
                    let secs = self.settings.trial_secs;
                    self.give_up(&format!("{why}, after {secs} seconds"));
                    Next::Restart
                }
            },
            Phase::Writing(writing, _) if !writing.is_finished() => Next::GoOn,
            Phase::Writing(..) => {
                self.written(page).await;
                Next::GoOn
            }
            Phase::Restarting(at) if now >= *at => {
                self.record.restarted = true;
                match self.save() {
                    Ok(()) => Next::Restart,
                    Err(error) => {
                        page.problem(unsaved(&error));
                        self.phase = Phase::Failed(now + RETRY);
                        Next::GoOn
                    }
                }
            }
            Phase::Failed(until) if now < *until => Next::GoOn,
            Phase::Restarting(_) => Next::GoOn,
            Phase::Steady | Phase::Failed(_) => {
                // No update starts on a machine whose key the next boot could not open, or that is
                // not healthy.
                if health.vault && storage.mode != Mode::Recovery {
                    self.take_what_is_new(page);
                }
                Next::GoOn
            }
        };
        match &self.doing {
            Some(doing) => page.line("update", doing.clone()),
            None => page.remove_line("update"),
        }
        next
    }

    fn bless(&mut self, storage: &mut Storage, page: &mut Page) {
        if let Some(boot) = &self.boot {
            if let Err(fault) = boot.bless(self.version) {
                page.problem(problem(&fault));
                return;
            }
            self.record = Record {
                refused: std::mem::take(&mut self.record.refused),
                ..Record::default()
            };
            if let Err(error) = self.save() {
                page.problem(unsaved(&error));
            }
            self.is_blessed = true;
        }
        self.phase = Phase::Steady;
        self.doing = None;
        shut_out_older(storage, page);
    }

    /// Begins to write the image that the vault has accepted, when that is newer and complete.
    fn take_what_is_new(&mut self, page: &mut Page) {
        let Ok(Some(accepted)) = read_json::<Accepted>(&self.node.accepted_image(), MAX_FILE_BYTES)
        else {
            return;
        };
        let is_refused = |refused: &Refused| refused.digest == accepted.digest;
        if accepted.version <= self.version
            || accepted.bytes > MAX_IMAGE_BYTES
            || self.record.refused.iter().any(is_refused)
        {
            return;
        }
        let Some(boot) = self.boot.clone() else {
            self.doing = Some(format!(
                "the image {} waits: this machine has no boot partition; replace the image where it boots from",
                accepted.version
            ));
            return;
        };
        let path = self.node.images().join(accepted.digest.to_string());
        let file = open_file(&path).and_then(|file| {
            let is_whole = file.metadata()?.len() == accepted.bytes;
            is_whole
                .then_some(file)
                .ok_or_else(|| io::ErrorKind::NotFound.into())
        });
        // The file is not complete yet.
        let Ok(mut file) = file else { return };
        self.doing = Some(format!("writing the image {}", accepted.version));
        page.line("update", self.doing.clone().unwrap_or_default());
        page.show();
        let record = Record {
            trying: Some(accepted.clone()),
            restarted: false,
            before: self.best,
            why: None,
            refused: self.record.refused.clone(),
        };
        let (running, record_file) = (self.version, self.record_file.clone());
        let (wanted, written) = (accepted, record.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let digest = &wanted.digest.0;
            boot.add(
                running,
                wanted.version,
                &mut file,
                wanted.bytes,
                digest,
                || save(&record_file, &written),
            )
        });
        self.phase = Phase::Writing(writing, record);
    }

    async fn written(&mut self, page: &mut Page) {
        let Phase::Writing(writing, record) = std::mem::replace(&mut self.phase, Phase::Steady)
        else {
            return;
        };
        let named = record.trying.as_ref().map(|it| it.version.to_string());
        let named = named.unwrap_or_default();
        let done = writing
            .await
            .unwrap_or_else(|error| Err(Fault::Io(io::Error::other(error))));
        match done {
            Ok(()) => {
                // The record is already on the disk in this form.
                self.record = record;
                let pause = random_below(self.settings.spread_secs);
                self.doing = Some(format!(
                    "the image {named} is written: restarting within {} seconds",
                    self.settings.spread_secs
                ));
                self.phase = Phase::Restarting(Instant::now() + pause);
            }
            Err(fault) => {
                self.doing = Some(format!("the image {named} could not be written"));
                page.problem(problem(&fault));
                self.phase = Phase::Failed(Instant::now() + RETRY);
            }
        }
    }

    /// Why the newest image that arrived was refused, if so.
    fn newest_refusal(&self) -> Option<String> {
        let refused = self.record.refused.last()?;
        let is_newer = refused.version > self.version;
        is_newer.then(|| format!("the image {} was refused: {}", refused.version, refused.why))
    }

    /// Writes the description of the machine for the node, when it has changed.
    pub(crate) fn tell(&mut self, storage: &Storage) -> io::Result<()> {
        let told = serde_json::json!({
            "version": self.version,
            "blessed": self.boot.is_none() || self.is_blessed,
            "refused": self.record.refused,
            "takes_images": self.boot.is_some(),
            "storage_key": storage.sealed_with(),
            "update": self.doing.clone().or_else(|| self.newest_refusal()),
        });
        let told = told.to_string().into_bytes();
        if told != self.told {
            casemate_durable::replace(Path::new(MACHINE), 0o444, &told)?;
            self.told = told;
        }
        Ok(())
    }
}

/// Locks older images out: from here on they cannot open the storage key.
fn shut_out_older(storage: &mut Storage, page: &mut Page) {
    if let Err(fault) = storage.raise_floor() {
        page.problem(Problem::new(
            format!("older images can still open the storage key: {fault}"),
            "restart; if the failure repeats, check the TPM in the firmware's settings",
        ));
    }
}

fn unsaved(error: &io::Error) -> Problem {
    Problem::new(
        format!("the record of images cannot be written: {error}"),
        "the state partition may be full or damaged",
    )
}

fn problem(fault: &Fault) -> Problem {
    let next = match fault {
        Fault::Full { .. } => {
            "the boot partition must hold two images: write the disk again with a larger one"
        }
        Fault::Digest { .. } => {
            "the node fetches it again; if the failure repeats, the disk is damaged"
        }
        Fault::Io(_) => "init retries; if the failure repeats, the disk is damaged: replace it",
    };
    Problem::new(fault.to_string(), next)
}

fn save(path: &Path, record: &Record) -> io::Result<()> {
    let text = serde_json::to_vec(record)?;
    casemate_durable::replace(path, PRIVATE, &text)
}

fn random_below(secs: u32) -> Duration {
    let mut bytes = [0; 4];
    // Without random numbers the machine restarts at once.
    let is_random = SystemRandom::new().fill(&mut bytes).is_ok();
    let part = if is_random {
        u32::from_le_bytes(bytes)
    } else {
        0
    };
    Duration::from_secs((u64::from(part) * u64::from(secs)) >> 32)
}

#[cfg(test)]
mod tests;
